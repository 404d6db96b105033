"""`orbit` as users call it: no daemon, no set-up."""

import json
import os
import pty
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from cli import job_render
from cli.jobs import COMMANDS
from cli.orbit import main
from cli.verbs import GROUPS, job_of, rewritten
from syncer.jobs_spec import spec_of
from syncer.options import Mode, Options

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path):
    """What the command finds around it."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def orbit(home, tmp_path):
    def run(*arguments, code=0):
        ran = subprocess.run(
            [sys.executable, "-m", "cli.orbit", *map(str, arguments)],
            capture_output=True, text=True, env=home, check=False, timeout=60, cwd=tmp_path,
        )  # fmt: skip
        assert ran.returncode == code, (ran.stdout, ran.stderr)
        return ran

    return run


@pytest.fixture
def source(tmp_path):
    made = tmp_path / "source"
    (made / "d").mkdir(parents=True)
    (made / "d" / "f").write_text("content")
    (made / "g.o").write_text("object")
    return made


def lines(ran):
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_the_spelling_of_the_design(orbit, source, tmp_path):
    ran = orbit(
        "--source", source, "--dest", "backup", "--recursive", "--compression", "zstd",
        "--checksum", "blake3", "--bandwidth-limit", "50M", "--resume", "--parallel", "4",
        "--filter", "- *.o", "--verbose", "--json",
    )  # fmt: skip
    assert (tmp_path / "backup" / "d" / "f").read_text() == "content"
    assert not (tmp_path / "backup" / "g.o").exists()
    events = lines(ran)
    assert events[-1]["event"] == "report"
    copied = next(each for each in events if each["event"] == "file.copied")
    fields = {
        "timestamp", "event", "source", "destination", "bytes", "duration_ms", "checksum",
        "compression",
    }  # fmt: skip
    assert fields <= copied.keys()
    assert any("--compression zstd does nothing" in each.get("message", "") for each in events)
    orbit("sync", "--source", source, "--dest", "backup", "--smart")
    assert (tmp_path / "backup" / "g.o").exists()


def test_exit_codes(orbit, source, tmp_path):
    orbit("copy", source, "there")
    assert "nothing to do" in orbit("copy", source, "there").stdout
    (source / "d" / "f").write_text("CONTENT")
    orbit("verify", source, "there", code=3)
    orbit("copy", "nowhere", "there", code=2)
    orbit("copy", source, "s3:/bucket", code=2)
    assert not (tmp_path / "s3:").exists()
    orbit("copy", source, code=2)
    (tmp_path / "there" / "g.o").unlink()
    (tmp_path / "there" / "g.o").mkdir()
    assert "in the way" in orbit("copy", source, "there", code=1).stdout


def test_verify_compares_metadata_only_where_it_is_asked_to(orbit, source, tmp_path):
    orbit("copy", source, "there")
    (tmp_path / "there" / "d" / "f").chmod(0o600)
    os.utime(tmp_path / "there" / "g.o", (1, 1))
    orbit("verify", source, "there")
    assert "mode differs" in orbit("verify", source, "there", "--modes", "-v", code=3).stderr
    assert "time" in orbit("verify", source, "there", "--times", "-v", code=3).stderr
    orbit("verify", source, "there", "--archive", code=3)
    orbit("verify", source / "d" / "f", "there/d/f")
    orbit("verify", source / "d" / "f", "there/d/f", "--modes", code=3)


def test_what_is_not_there_is_no_difference(orbit, source):
    ran = orbit("verify", source, "nowhere", code=2)
    assert "is not there" in ran.stdout + ran.stderr
    assert "only at the source" not in ran.stdout


def test_a_damaged_snapshot_does_not_verify(orbit, source, tmp_path):
    orbit("backup", source, "--repo", "repo", "--name", "first", "--compression", "none")
    orbit("verify", "first", "--repo", "repo")
    damaged = 0
    for pack in (tmp_path / "repo").rglob("*"):
        data = pack.read_bytes() if pack.is_file() else b""
        if b"content" in data:
            pack.write_bytes(data.replace(b"content", b"CONTENT"))
            damaged += 1
    assert damaged
    assert "d/f" in orbit("verify", "first", "--repo", "repo", code=3).stdout
    orbit("verify", "--repo", "repo", code=3)


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
def test_a_repository_is_compressed_as_asked_for(orbit, source, tmp_path, codec):
    text = "a line like many others\n" * 10_000
    (source / "text").write_text(text)
    ran = orbit("backup", source, "--repo", "repo", "--compression", codec, "--explain")
    assert f"codec {codec}: as asked for" in ran.stderr
    stored = b"".join(
        path.read_bytes() for path in (tmp_path / "repo").rglob("*") if path.is_file()
    )
    assert (text[:5_000].encode() in stored) == (codec == "none")
    assert (len(stored) < len(text) / 2) == (codec != "none")
    orbit("restore", "latest", "back", "--repo", "repo")
    assert (tmp_path / "back" / "text").read_text() == text


def test_a_backup_that_is_verified_notices_a_damaged_store(orbit, source, tmp_path):
    orbit("backup", source, "--repo", "repo", "--verify", "--compression", "none")
    for pack in (tmp_path / "repo").rglob("*"):
        data = pack.read_bytes() if pack.is_file() else b""
        if b"content" in data:
            pack.write_bytes(data.replace(b"content", b"CONTENT"))
    (source / "new").write_text("new")
    orbit("backup", source, "--repo", "repo", "--verify", code=3)


def test_what_a_backup_cannot_do_is_refused(orbit, source):
    ran = orbit("backup", source, "--repo", "repo", "--symlinks", "follow", code=2)
    assert "--symlinks skip" in ran.stdout


def test_a_dry_run_writes_nothing(orbit, source, tmp_path):
    ran = orbit("copy", source, "there", "--dry-run")
    assert "would be copied d/f" in ran.stdout
    assert not (tmp_path / "there").exists()


def test_who_stops_reading_does_not_end_the_job(home, source, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cli.orbit", "copy", source, tmp_path / "copy", "--json"]
    ran = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, env=home, timeout=60, check=False
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "copy" / "d" / "f").read_text() == "content"


def test_backup_and_restore(orbit, source, tmp_path):
    orbit("init", "repo")
    orbit("backup", source, "--repo", "repo", "--name", "first", "--tag", "nightly")
    (source / "d" / "f").write_text("changed")
    orbit("backup", source, "repo", "--name", "second")
    listed = lines(orbit("snapshots", "list", "--repo", "repo", "--json"))
    assert [each["name"] for each in listed] == ["first", "second"]
    shown = lines(orbit("snapshots", "show", "first", "d", "--repo", "repo", "--json"))
    assert [each["name"] for each in shown[1:]] == ["f"]
    changed = lines(orbit("snapshots", "diff", "first", "second", "--repo", "repo", "--json"))
    assert {"path": "d/f", "change": "content"} in changed
    meant = orbit("restore", "latest:nightly", "back", "--repo", "repo", code=2)
    assert "that tag is latest:nightly:" in meant.stdout + meant.stderr
    orbit("restore", "latest:nightly:d", "tagged", "--repo", "repo")
    assert (tmp_path / "tagged" / "f").read_text() == "content"
    no_folder = orbit("backup", source, source / "d" / "f", code=2)
    assert "is a file: name a folder" in no_folder.stdout + no_folder.stderr
    orbit("restore", "first", "back", "--repo", "repo")
    assert (tmp_path / "back" / "d" / "f").read_text() == "content"
    orbit("restore", "second:d", "part", "--repo", "repo")
    assert (tmp_path / "part" / "f").read_text() == "changed"
    orbit("verify", "--repo", "repo")
    orbit("verify", "second", "--repo", "repo")
    pruned = orbit("snapshots", "prune", "--keep-last", "1", "--repo", "repo", "--dry-run")
    assert "second  stays" in pruned.stdout
    orbit("snapshots", "remove", "first", "--repo", "repo")
    assert [
        each["name"] for each in lines(orbit("snapshots", "list", "--repo", "repo", "--json"))
    ] == ["second"]
    assert "no lock" in orbit("unlock", "repo").stdout


def test_a_job_in_the_background(orbit, source, tmp_path):
    (source / "large").write_bytes(random.Random(1).randbytes(4 << 20))
    ran = orbit("copy", source, "there", "--detach", "--bandwidth-limit", "32K", "--json")
    number = lines(ran)[0]["job"]
    deadline = time.monotonic() + 60

    def until(state):
        while lines(orbit("jobs", "show", number, "--json"))[0]["state"] != state:
            assert time.monotonic() < deadline

    until("running")
    orbit("jobs", "pause", number)
    orbit("jobs", "wait", number, "--timeout", "0", code=5)
    until("paused")
    assert not (tmp_path / "there" / "large").exists()
    orbit("jobs", "resume", number)
    orbit("jobs", "cancel", number)
    orbit("jobs", "wait", number, code=2)
    assert "cancelled" in orbit("jobs", "list").stdout
    assert "job.started" in orbit("jobs", "log", number).stdout
    orbit("jobs", "remove", number)
    assert "no jobs" in orbit("jobs", "list").stdout


def test_a_job_is_changed(orbit, source):
    (made,) = lines(orbit("copy", source, "there", "--schedule", "@daily", "--json"))
    number = made["job"]
    (job,) = lines(
        orbit("jobs", "set", number, "--bandwidth-limit", "5M", "--priority", "3", "--json")
    )
    assert (job["spec"]["options"]["bandwidth"], job["priority"]) == ("5M", 3)
    assert "no rate" in orbit("jobs", "set", number, "--bwlimit", "fast", code=2).stderr
    assert "set what" in orbit("jobs", "set", number, code=2).stderr
    assert "never done" in orbit("jobs", "set", number, "--after", number, code=2).stderr
    orbit("jobs", "set", number + 1, "--priority", "1", code=2)


def test_two_places_are_compared_where_the_environment_names_a_repository(
    orbit, home, source, tmp_path
):
    orbit("copy", source, "there")
    orbit("backup", source, "--repo", "repo", "--name", "first")
    home["ORBIT_REPOSITORY"] = str(tmp_path / "repo")
    assert "1 file equal" in orbit("verify", "source/d", "there/d").stdout
    orbit("verify", "first", "there", "--repo", "repo")
    orbit("verify", "first")


def test_the_audit_trail(orbit, source):
    orbit("copy", source, "there")
    shown = lines(orbit("audit", "show", "--json"))
    assert any(each["destination"].endswith("/there/d/f") for each in shown)
    assert "records are right" in orbit("audit", "verify").stdout
    assert "timestamp" in orbit("audit", "export", "--csv").stdout


def test_filter_test(orbit):
    ran = orbit("filter-test", "build/x.o", "--include", "*.c", "--exclude", "build/")
    assert "left out" in ran.stdout
    answer = lines(orbit("filter-test", "a.c", "--exclude", "*.o", "--json"))[0]
    assert (answer["verdict"], answer["rule"]) == ("keep", None)


def test_a_terminal_asks_once_what_ctrl_c_means(home, source, tmp_path):
    """c at the question cancels; what is drawn is drawn on the terminal."""
    (source / "large").write_bytes(random.Random(1).randbytes(16 << 20))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        command = [
            sys.executable, "-m", "cli.orbit", "copy", str(source), "there",
            "--bandwidth-limit", "1M",
        ]  # fmt: skip
        os.execve(command[0], command, home)
    seen = b""

    def until(text):
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1.0)[0]:
                seen += os.read(terminal, 65536)

    try:
        until(b"copying")
        os.write(terminal, b"\x03")
        until(b"etach")
        os.write(terminal, b"c\n")
        until(b"cancelled")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 2


def test_help_loads_nothing_of_the_syncer():
    script = (
        "import sys, click.testing, cli.orbit\n"
        "ran = click.testing.CliRunner().invoke(cli.orbit.main, ['--help'])\n"
        "assert ran.exit_code == 0, ran.output\n"
        "bad = [n for n in sys.modules if n.startswith(('syncer', 'blockstore', 'trio', 'rich'))]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


# --- options to jobs ------------------------------------------------------------------------------


def parsed(verb, *arguments):
    command = main.commands[verb]
    context = command.make_context(verb, list(arguments))
    given = {
        name: value
        for name, value in context.params.items()
        if name not in {"dry_run", "verbose", "quiet", "as_json", "explain", "repo"}
    }
    return spec_of(job_of(verb, given))


def test_every_option_ends_up_in_the_job():
    spec = parsed(
        "sync", "/a", "/b", "--mode", "mirror", "--delete-max", "20%", "--trash", ".t", "--smart",
        "--parallel", "3", "--bwlimit", "5M", "--verify", "--no-resume", "--fail-fast",
        "--no-durable", "--reserve", "1G", "--symlinks", "skip", "--no-specials", "-x",
        "--owners", "--numeric-ids", "--xattrs", "--no-modes", "--checksum", "--ignore-existing",
        "--mtime-window", "2s", "--option", "endpoint=http://x", "--priority", "3", "--after", "7",
        "--schedule", "@daily",
    )  # fmt: skip
    assert spec.options == Options(
        mode=Mode.MIRROR, delete_max=0.2, trash=".t", smart=True, parallel=3, bandwidth="5M",
        verify=True, resume=False, fail_fast=True, durable=False, reserve_bytes=1 << 30,
        symlinks="skip", specials=False, one_file_system=True, owners=True, numeric_ids=True,
        xattrs=True, modes=False, checksum=True, ignore_existing=True, mtime_window_ns=2 * 10**9,
        remote_options=("endpoint=http://x",),
    )  # fmt: skip
    assert (spec.priority, spec.after, spec.schedule) == (3, (7,), "@daily")


def test_nought_is_said_too():
    options = parsed(
        "sync", "/a", "/b", "--mode", "mirror", "--delete-max", "0", "--reserve", "0",
    ).options  # fmt: skip
    assert (options.delete_max, options.reserve_bytes) == (0, 0)
    assert Options().delete_max is None


def test_archive_keeps_everything_but_what_is_switched_off():
    options = parsed("copy", "/a", "/b", "--archive", "--no-owners").options
    assert (options.xattrs, options.owners, options.hard_links) == (True, False, True)


def test_a_restore_brings_everything_back_but_what_is_switched_off():
    options = parsed("restore", "/a", "/b", "--no-owners").options
    assert (options.xattrs, options.owners, options.modes) == (True, False, True)


def test_rules_keep_their_order():
    options = parsed(
        "copy", "/a", "/b", "--exclude", "x", "--include=y", "-f", "- z", "--max-size", "1G",
        "--gitignore",
    ).options  # fmt: skip
    assert options.filters == ("- x", "+ y", "- z", "max-size 1G", "gitignore")


def test_checksum_never_swallows_a_place():
    assert rewritten(["--checksum", "/a", "/b"]) == ["--checksum", "/a", "/b"]
    assert rewritten(["--checksum", "blake3", "/a"]) == ["--checksum", "/a"]
    with pytest.raises(click.UsageError):
        rewritten(["--checksum", "md5"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["--delete", "--mode", "update"],
        ["--delete-max", "100%"],
        ["--delete-max", "some"],
        ["--mtime-window", "soon"],
        ["/c"],
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(click.UsageError):
        parsed("sync", "/a", "/b", *wrong)


def test_no_flag_is_dead():
    """Every option of every verb is a field of the job, or is known not to be."""
    fields = set(Options.__dataclass_fields__) | {"priority", "after", "schedule"}
    elsewhere = {"places", "source", "destination", "archive", "delete", "detach"}
    shown = {"dry_run", "verbose", "quiet", "as_json", "explain", "repo"}
    commands = [*main.commands.values(), *COMMANDS]  # of orbit, of orbit-ctl
    verbs = [command for command in commands if command.name in GROUPS]
    assert {command.name for command in verbs} == set(GROUPS)
    for command in verbs:
        names = {each.name for each in command.params}
        assert names - fields - elsewhere - shown == set()


def test_progress_and_report_in_words():
    progress = {
        "phase": "copying", "planned": True, "files_total": 4, "files_done": 1, "files_equal": 2,
        "files_failed": 1, "bytes_total": 2048, "bytes_done": 1024, "bytes_per_s": 512.0,
        "eta_s": 2.0, "current": ["a\x1b[31m"],
    }  # fmt: skip
    assert job_render.progress_lines(progress) == [
        "████████████░░░░░░░░░░░░  50%",
        "copying: 1/4 files, 1.0 KiB of 2.0 KiB, 512 B/s, 2.0 s left, 2 equal, 1 failed",
        "  a\\x1b[31m",
    ]
