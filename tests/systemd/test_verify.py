"""systemd has nothing to say against the units; it exits with 0 on unknown keys, so words fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"

# Each of these gives a service a mount namespace: the mount would be invisible to all others.
NAMESPACE_KEYS = re.compile(
    r"(PrivateTmp|PrivateDevices|PrivateMounts|PrivateIPC|Protect(System|Home|Proc|KernelTunables|"
    r"KernelModules|KernelLogs|ControlGroups)|ProcSubset|(ReadOnly|ReadWrite|Inaccessible|Exec|"
    r"NoExec)Paths|Bind(ReadOnly)?Paths|TemporaryFileSystem|RootDirectory|RootImage|DynamicUser|"
    r"MountAPIVFS|LogNamespace)\s*="
)


def in_place(name: str, folder: Path) -> Path:
    """The unit as installed, with this environment's programs."""
    unit = folder / name
    bin_folder = Path(sys.executable).parent
    unit.write_text((SYSTEMD / name).read_text().replace("/usr/local/bin", str(bin_folder)))
    return unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize(
    ("name", "manager"), [("ghostd.service", "--system"), ("ghostd@.service", "--user")]
)
def test_verify_prints_nothing(name, manager, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command = ["systemd-analyze", "verify", manager, "--man=no", in_place(name, tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_verify_would_complain(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    unit = in_place("ghostd.service", tmp_path)
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    command = ["systemd-analyze", "verify", "--man=no", unit]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "WatchdogSeconds" in ran.stderr


@pytest.mark.parametrize("name", ["ghostd.service", "ghostd@.service"])
def test_nothing_hides_the_mount(name):
    settings = [
        line for line in (SYSTEMD / name).read_text().splitlines() if not line.startswith("#")
    ]
    assert [line for line in settings if NAMESPACE_KEYS.match(line)] == []


def test_the_users_unit_lets_fusermount_become_root():
    settings = (SYSTEMD / "ghostd@.service").read_text()
    for key in ("NoNewPrivileges=", "SystemCallFilter=", "LockPersonality=", "CapabilityBounding"):
        assert f"\n{key}" not in settings
