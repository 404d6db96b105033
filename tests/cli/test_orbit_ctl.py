"""orbit-ctl against the real API: what it calls, prints and returns."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.errors import OrbitError
from ghostd.facade import CommitStatus, DaemonState
from orbit_socket import default_socket
from tests.api.double import DAMAGED, STATUS

ROOT = Path(__file__).parents[2]


def test_status_in_words(orbit_ctl, socket_path):
    ran = orbit_ctl("--socket", socket_path, "status")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "ready     /mnt/orbit, stored in /var/lib/orbit",
        "daemon    version 0.1.0, pid 4711, up 12 s",
        "dirty     4.0 KiB and 3 changes; last commit 400 ms ago, took 20 ms",
        "disk      10 GiB free",
        "content   100 files in 10 directories, 1.0 GiB",
        "store     256 MiB in packs, with snapshots and what is cached of remotes",
    ]


def test_status_of_a_daemon_in_trouble(orbit_ctl, control, socket_path):
    control.current = replace(
        STATUS,
        state=DaemonState.STOPPING,
        loop_lag_s=90.0,
        damaged_chunks=2,
        damaged_files=1,
        commit=CommitStatus(last_error="No space left", in_flight_s=42.0),
        warnings=("less than the reserve is free",),
    )
    lines = orbit_ctl("--socket", socket_path, "status").stdout.splitlines()
    assert lines[0].startswith("stopping")
    assert "dirty     4.0 KiB and 3 changes; no commit yet, one running for 42 s" in lines
    assert "stuck     the filesystem last moved 90 s ago" in lines
    assert "error     the last commit failed: No space left" in lines
    assert "damaged   1 files, 2 chunks; `orbit-ctl check --data` names them" in lines
    assert "warning   less than the reserve is free" in lines


@pytest.mark.parametrize("verb", ["status", "stats", "flush", "check", "collect", "stop"])
def test_json_is_one_object(orbit_ctl, socket_path, verb):
    more = ["--no-wait"] if verb == "stop" else []
    ran = orbit_ctl("--json", verb, *more, ORBIT_SOCKET=str(socket_path))
    assert ran.returncode == 0, ran.stderr
    assert isinstance(json.loads(ran.stdout), dict)
    assert ran.stdout.count("\n") == 1


def test_stats_in_words(orbit_ctl, socket_path):
    lines = orbit_ctl("--socket", socket_path, "stats").stdout.splitlines()
    assert lines[1].split() == ["read", "5", "1", "250", "ms", "50000", "us"]
    assert any(line.split() == ["cache_hits", "42"] for line in lines)
    assert any(line.split() == ["cache_bytes", "1024", "(1.0", "KiB)"] for line in lines)


def test_flush_and_collect_pass_their_options(orbit_ctl, control, socket_path):
    orbit_ctl("--socket", socket_path, "flush", "--timeout", "5")
    ran = orbit_ctl("--socket", socket_path, "collect", "--dry-run", "--waste-max", "0.5")
    assert control.calls == [("flush", 5.0), ("collect", True, 0.5)]
    assert ran.stdout.startswith(
        "would free 1000 B: 2 packs are mostly unused, 500 B of them still needed"
    )


def test_check_of_a_healthy_store(orbit_ctl, control, socket_path):
    ran = orbit_ctl("--socket", socket_path, "check")
    assert ran.returncode == 0
    assert "ok    pack-headers: every pack begins with a valid header" in ran.stdout
    assert "all 1 checks passed (structure only" in ran.stdout
    assert control.calls == [("check", False)]


def test_check_names_the_damage_and_tells_by_its_exit_code(orbit_ctl, control, socket_path):
    control.report = DAMAGED
    ran = orbit_ctl("--socket", socket_path, "check", "--data")
    assert ran.returncode == 4
    assert "FAIL  chunks: bytes match their ids\n        abc: pack 3\n" in ran.stdout
    assert "  /a/b.txt\n" in ran.stdout
    assert "1 of 2 checks failed, 2 files are damaged (everything was read back" in ran.stdout
    assert orbit_ctl("--socket", socket_path, "--json", "check").returncode == 4


def test_a_refusal_is_told_with_its_reason(orbit_ctl, control, socket_path):
    control.error = OrbitError("the moon is in the way")
    ran = orbit_ctl("--socket", socket_path, "flush")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("orbit-ctl: the moon is in the way\n")
    ran = orbit_ctl("--socket", socket_path, "--json", "flush")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["message"] == "the moon is in the way"


def test_a_timeout_has_its_own_exit_code(orbit_ctl, control, socket_path):
    control.gate.clear()
    ran = orbit_ctl("--socket", socket_path, "flush", "--timeout", "0.1")
    assert ran.returncode == 5
    assert "within 0.1 s" in ran.stderr


def test_without_a_daemon_it_says_how_to_start_one(orbit_ctl, tmp_path):
    ran = orbit_ctl("--socket", tmp_path / "none.sock", "status")
    assert ran.returncode == 3
    assert f"no daemon at {tmp_path}/none.sock" in ran.stderr
    for way in ("systemctl start ghostd", "ghostd --mount", "make mount"):
        assert way in ran.stderr
    answer = json.loads(orbit_ctl("--socket", tmp_path / "none.sock", "--json", "status").stdout)
    assert answer["error"] == "daemon_absent"


def test_without_a_daemon_no_job_seems_to_have_ended(orbit_ctl, tmp_path):
    # 3 would say that data did not verify, 1 that some of it was copied.
    none = ("--socket", tmp_path / "none.sock")
    assert orbit_ctl(*none, "verify", "/a", "/b").returncode == 2
    assert orbit_ctl(*none, "copy", "/a", "/b").returncode == 2
    assert orbit_ctl(*none, "jobs", "wait", "1").returncode == 5


def test_without_a_daemon_it_names_the_neighbours(orbit_ctl, socket_path):
    ran = orbit_ctl("--socket", socket_path.with_name("other.sock"), "status")
    assert ran.returncode == 3
    assert str(socket_path) in ran.stderr


def test_stop_waits_for_the_end_of_the_process(orbit_ctl, tmp_path):
    # A daemon that ends when told to: the API with the double behind it, in a process of its own.
    path = tmp_path / "s.sock"
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from ghostd.api import ApiServer\n"
        "from tests.api.double import DoubleControl\n"
        "told = threading.Event()\n"
        "control = DoubleControl()\n"
        "control.stop = told.set\n"
        "server = ApiServer(control, Path(sys.argv[1]))\n"
        "server.start()\n"
        "print('listening', flush=True)\n"
        "told.wait()\n"
        "Path(sys.argv[1] + '.ended').touch()\n"
        "server.stop()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout.readline() == b"listening\n"
        ran = orbit_ctl("--socket", path, "stop")
        assert (ran.returncode, ran.stdout) == (0, "stopped\n"), ran.stderr
        assert Path(f"{path}.ended").exists()
        assert daemon.wait(20) == 0


def test_stop_says_when_the_daemon_does_not_end(orbit_ctl, control, socket_path):
    ran = orbit_ctl("--socket", socket_path, "stop", "--timeout", "0.1")
    assert ran.returncode == 5
    assert f"pid {os.getpid()}" in ran.stderr
    assert ("stop",) in control.calls


def test_a_daemon_that_hangs_up_is_told(orbit_ctl, control, server, socket_path):
    control.gate.clear()
    command = [sys.executable, "-m", "cli.orbit_ctl", "--socket", socket_path, "check"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as waiting:
        assert control.entered.acquire(timeout=20)
        server.stop()
        assert waiting.wait(20) == 1
        assert "ended the connection" in waiting.stderr.read()


def test_help_imports_little(orbit_ctl):
    code = (
        "import sys, runpy\n"
        "sys.argv = ['orbit-ctl', '--help']\n"
        "try: runpy.run_module('cli.orbit_ctl', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'http.client', 'trio', 'fastapi', 'ghostd', 'blockstore', 'structlog'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "Exit codes:" in ran.stdout
    assert ran.stderr == "[]\n"


@pytest.mark.parametrize(
    ("env", "uid", "path"),
    [
        ({}, 0, "/run/orbit/ghostd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/orbit/ghostd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/orbit/ghostd.sock"),
        ({"HOME": "/home/u"}, 7, "/home/u/.cache/orbit/ghostd.sock"),
        ({"ORBIT_SOCKET": "/x/y.sock", "XDG_RUNTIME_DIR": "/r"}, 7, "/x/y.sock"),
        ({"ORBIT_SOCKET": ""}, 0, "/run/orbit/ghostd.sock"),
    ],
)
def test_the_sockets_place(env, uid, path):
    assert default_socket(env, uid) == Path(path)
