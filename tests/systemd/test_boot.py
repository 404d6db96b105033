"""The unit under a real systemd: mounted for everyone, restarted, cleared, stopped.

Not in the default run (root, and a minute); `make test-systemd`.
"""

import os
import re

import pytest

from tests.systemd.machine import Machine
from tests.systemd.test_verify import in_place

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def machine(tmp_path):
    units = tmp_path / "units"
    units.mkdir()
    in_place("ghostd.service", units)
    with Machine(units, tmp_path / "systemd.log") as machine:
        yield machine


def started(machine) -> int:
    machine.must("systemctl", "start", "ghostd")
    return int(machine.show("ghostd", "MainPID"))


def test_it_mounts_for_everyone_and_stops_cleanly(machine):
    started(machine)
    assert machine.show("ghostd", "ActiveState") == "active"
    # `machine.run` is not a child of the service: what it sees is what everybody sees.
    machine.must("sh", "-c", "echo hello >/mnt/orbit/file && sync /mnt/orbit/file")
    assert "mounted on /mnt/orbit" in machine.show("ghostd", "StatusText")
    assert machine.must("stat", "-c", "%a", "/run/orbit/ghostd.sock") == "600\n"
    assert machine.must("stat", "-c", "%a", "/var/lib/orbit") == "700\n"
    machine.must("systemctl", "stop", "ghostd")
    assert machine.show("ghostd", "Result") == "success"
    assert machine.run("mountpoint", "-q", "/mnt/orbit")[0] != 0
    started(machine)
    assert machine.must("cat", "/mnt/orbit/file") == "hello\n"


def test_a_killed_daemon_comes_back(machine):
    first = started(machine)
    machine.must("sh", "-c", "echo kept >/mnt/orbit/file && sync /mnt/orbit/file")
    machine.must("kill", "-9", str(first))
    machine.wait_for_restart("ghostd", first)
    assert machine.must("cat", "/mnt/orbit/file") == "kept\n"
    # Nothing is left of the dead mount below the new one.
    points = re.findall(r" /mnt/orbit ", machine.must("cat", "/proc/self/mountinfo"))
    assert len(points) == 1


def test_a_dead_mount_is_cleared_when_it_is_not_restarted(machine):
    first = started(machine)
    machine.must("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "ghostd")
    machine.must("systemctl", "stop", "ghostd")
    assert machine.run("stat", "/mnt/orbit")[0] == 0
    assert machine.run("mountpoint", "-q", "/mnt/orbit")[0] != 0
    assert first > 0


def test_a_stuck_daemon_is_restarted_by_the_watchdog(machine):
    machine.override("ghostd", "[Service]\nWatchdogSec=1\n")
    first = started(machine)
    machine.must("kill", "-STOP", str(first))
    machine.wait_for_restart("ghostd", first)
    machine.must("sh", "-c", "echo again >/mnt/orbit/file")


def test_a_refused_second_start_leaves_the_live_mount_alone(machine):
    started(machine)
    machine.must("sh", "-c", "echo mine >/mnt/orbit/file")
    machine.copy_unit("ghostd", "second")
    assert machine.run("systemctl", "start", "second")[0] != 0
    machine.must("systemctl", "stop", "second")
    assert machine.must("cat", "/mnt/orbit/file") == "mine\n"
    machine.must("stat", "/run/orbit/ghostd.sock")


def _bounding(status: str) -> int:
    """The capabilities that a process may have at most, as bits (capabilities(7))."""
    found = re.search(r"^CapBnd:\t([0-9a-f]+)$", status, re.MULTILINE)
    assert found is not None
    return int(found[1], 16)


def test_the_hardening_is_in_force(machine):
    pid = started(machine)
    status = machine.must("cat", f"/proc/{pid}/status")
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    # Mounting, reading everything, limits; what jobs need for owners, modes, devices; no other.
    wanted = sum(1 << number for number in (0, 1, 2, 3, 4, 21, 24, 27, 31))
    init = machine.must("cat", "/proc/1/status")
    assert _bounding(status) == wanted & _bounding(init)
    assert "open_by_handle_at" in machine.show("ghostd", "SystemCallFilter").split()
    same = [machine.must("readlink", f"/proc/{each}/ns/mnt") for each in (1, pid)]
    assert same[0] == same[1]
