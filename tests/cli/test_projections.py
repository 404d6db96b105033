"""orbit-ctl's commands about remote trees, against the real API: what they call and print."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ghostd.projection_facade import Attach, Diff
from syncer.remotes.errors import Unreachable
from tests.api.double_projections import CHANGES, DONE, FAILED, PROBLEM, WORK

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ctl(orbit_ctl, socket_path):
    """Run a command against the double."""
    return lambda *arguments: orbit_ctl("--socket", socket_path, *arguments)


def test_project_reads_its_options(ctl, control):
    ran = ctl(
        *("project", "s3://bucket/prefix", "/mnt/orbit/x", "--mode", "cow", "--ttl", "5m"),
        *("--block-size", "128K", "--option", "region=eu=1", "--option", "anonymous=true"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("s3://bucket/prefix is at /mnt/orbit/x (cow,")
    options = {"region": "eu=1", "anonymous": "true"}
    assert control.calls == [
        ("project", Attach("s3://bucket/prefix", "/x", "cow", 300.0, 1 << 17, options))
    ]
    ctl("project", "s3://bucket/prefix", "/mnt/orbit/x/")
    assert control.calls[1] == ("project", Attach("s3://bucket/prefix", "/x"))


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--ttl", "soon"], "60s"),
        (["--block-size", "large"], "128K"),
        (["--option", "region"], "KEY=VALUE"),
        (["--mode", "write"], "cow"),
    ],
)
def test_project_refuses_what_makes_no_sense(ctl, control, more, word):
    ran = ctl("project", "s3://b", "/mnt/orbit/x", *more)
    assert ran.returncode == 2
    assert word in ran.stderr
    assert control.calls == []


def test_a_path_outside_of_the_mount_is_refused(ctl, control):
    ran = ctl("evict", "/mnt/orbit/ok", "/etc/passwd")
    assert ran.returncode == 1
    assert "/etc/passwd is not in the mount at /mnt/orbit" in ran.stderr
    assert "name a path below the mount" in ran.stderr
    assert control.calls == []


def test_bytes_that_are_no_text_arrive(control, socket_path):
    path = b"/mnt/orbit/caf\xe9 %41"
    command = [sys.executable, "-m", "cli.orbit_ctl", "--socket", socket_path, "evict", path]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    assert control.calls == [("evict", ["/caf%E9 %2541"])]


def test_projections_tell_what_is_wrong(ctl):
    lines = ctl("projections").stdout.splitlines()
    assert lines[0] == "/mnt/orbit/data"
    assert "    mode     cow, attached 2 h ago" in lines
    assert "    listings listed 5.0 s ago, renewed after 60 s" in lines
    assert "    options  region=eu-west-1" in lines
    assert "/mnt/orbit/caf\\xe9" in lines
    wrong = "    state    failing for 5 min: sftp://host/tree: connection refused"
    assert wrong in lines
    assert "    cure     see whether the server runs" in lines
    assert any(line.startswith("    conflict 1 file changed here") for line in lines)


def test_status_names_remotes_in_trouble(ctl, control):
    control.projections.wrong = (PROBLEM,)
    control.current = control.with_remotes()
    assert (
        "remote    sftp://host/tree: failing for 5 min: connection refused; start it"
        in ctl("status").stdout.splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "call", "text"),
    [
        (["unproject", "/mnt/orbit/x"], ("unproject", "/x", False), "is detached from s3://"),
        (["unproject", "--force", "/mnt/orbit/x"], ("unproject", "/x", True), "is detached"),
        (["refresh", "/mnt/orbit/x"], ("refresh", "/x", False), "3 directories renewed"),
        (["refresh", "-r", "/mnt/orbit"], ("refresh", "/", True), "3 directories renewed"),
        (["unpin", "/mnt/orbit/x"], ("unpin", ["/x"]), "5 files may be evicted again"),
        (["evict", "/mnt/orbit/x"], ("evict", ["/x"]), "evicted 3 blocks (3.0 MiB) of 2 files"),
        (["revert", "--yes", "/mnt/orbit/x"], ("revert", "/x"), "dropped 4 changes"),
        (["residency", "/mnt/orbit/x"], ("residency", ["/x"]), "25 %"),
        (["works", "--stop", "3"], ("stop_work", 3), "warm 3: stopped"),
    ],
)
def test_simple_commands(ctl, control, arguments, call, text):
    ran = ctl(*arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert text in ran.stdout
    assert control.calls == [call]


def test_a_remote_that_does_not_answer_has_its_exit_code(ctl, control):
    control.error = Unreachable("sftp://host: no answer")
    ran = ctl("refresh", "/mnt/orbit/x")
    assert ran.returncode == 5
    assert ran.stderr.splitlines()[0] == "orbit-ctl: sftp://host: no answer"
    assert "see whether the server runs" in ran.stderr


@pytest.mark.parametrize("verb", ["warm", "pin"])
def test_works_are_waited_for(ctl, control, verb):
    ran = ctl(verb, "/mnt/orbit/data", "/mnt/orbit/b")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "done, 10/10 files, 4.0 KiB of 4.0 KiB here (100 %)" in ran.stdout
    assert control.calls == [(verb, ["/data", "/b"])]
    detached = ctl(verb, "--detach", "/mnt/orbit/data")
    assert f"{verb} 3: running, 4/10+ files" in detached.stdout


def test_a_work_that_fails_says_why(ctl, control):
    control.projections.answers = [WORK, FAILED]
    ran = ctl("warm", "/mnt/orbit/data")
    assert ran.returncode == 1
    assert "failed, " in ran.stdout
    assert "  no room" in ran.stdout.splitlines()
    assert "  /mnt/orbit/data/x: gone" in ran.stdout.splitlines()
    assert "pin 2: failed" in ctl("works").stdout


def test_progress_is_drawn_on_a_terminal_and_ctrl_c_stops(control, socket_path):
    control.projections.answers = [WORK]
    command = [sys.executable, "-m", "cli.orbit_ctl", "--socket", socket_path]
    reading, writing = pty.openpty()
    with subprocess.Popen(
        [*command, "warm", "/mnt/orbit/data"],
        stdout=subprocess.PIPE,
        stderr=writing,
        cwd=ROOT,
        text=True,
    ) as running:
        os.close(writing)
        drawn = b""
        while b"4/10+ files" not in drawn:
            assert select.select([reading], [], [], 20)[0], drawn
            drawn += os.read(reading, 4096)
        running.send_signal(signal.SIGINT)
        output = running.stdout.read()
        assert running.wait(20) == 130
    os.close(reading)
    assert "warm 3: stopped" in output
    assert control.calls[-1] == ("stop_work", 3)


def test_diff_shows_all_pages(ctl, control):
    lines = ctl("diff", "/mnt/orbit/data").stdout.splitlines()
    assert lines == [
        "added      /mnt/orbit/data/new",
        "renamed    /mnt/orbit/data/d/b%/  (from /mnt/orbit/data/b)  (and modified)",
        "deleted    /mnt/orbit/data/gone",
        "modified   /mnt/orbit/data/\\x1b[31m  (conflict: the remote has changed it, too)",
    ]
    assert [call[2] for call in control.calls] == [None, "1:-"]
    answer = json.loads(ctl("--json", "diff", "/mnt/orbit/data").stdout)
    assert len(answer["changes"]) == len(CHANGES)
    control.projections.pages = [Diff((), None)]
    assert ctl("diff", "/mnt/orbit/data").stdout == "no changes\n"


def test_revert_asks_on_a_terminal_and_wants_yes_elsewhere(ctl, control, socket_path):
    ran = ctl("revert", "/mnt/orbit/data")
    assert ran.returncode == 2
    assert "--yes" in ran.stderr
    assert ctl("--json", "revert", "/mnt/orbit/data").returncode == 2
    assert control.calls == []
    command = [sys.executable, "-m", "cli.orbit_ctl", "--socket", socket_path]
    for answer, calls, code in ((b"n\n", ["diff"], 1), (b"y\n", ["diff", "revert"], 0)):
        control.calls.clear()
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*command, "revert", "/mnt/orbit/data"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as asking:
            os.close(theirs)
            os.write(ours, answer)
            shown = asking.stdout.read()
            assert asking.wait(20) == code
        os.close(ours)
        assert "added      /mnt/orbit/data/new" in shown
        assert "and more" in shown
        assert [call[0] for call in control.calls] == calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["projections"],
        ["project", "s3://b", "/mnt/orbit/x"],
        ["unproject", "/mnt/orbit/x"],
        ["refresh", "/mnt/orbit/x"],
        ["residency", "/mnt/orbit/x"],
        ["warm", "/mnt/orbit/x"],
        ["pin", "--detach", "/mnt/orbit/x"],
        ["unpin", "/mnt/orbit/x"],
        ["evict", "/mnt/orbit/x"],
        ["works"],
        ["diff", "/mnt/orbit/x"],
        ["revert", "-y", "/mnt/orbit/x"],
    ],
)
def test_json_is_one_object(ctl, control, arguments):
    control.projections.answers = [DONE]
    ran = ctl("--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert isinstance(json.loads(ran.stdout), dict)
    assert ran.stdout.count("\n") == 1


def test_refresh_says_when_the_remote_is_silent(ctl, control):
    refreshed = control.projections.refresh
    control.projections.refresh = lambda path, *, recursive: replace(
        refreshed(path, recursive=recursive), waiting="sftp://host: no answer"
    )
    shown = ctl("refresh", "/mnt/orbit/x").stdout
    assert shown == "3 directories will be asked for again: sftp://host: no answer\n"
