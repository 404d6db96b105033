"""What mount(8) passes to the helper, and what the helper makes of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ghostd.mount_helper import UsageError, parse_options, parse_request


def test_a_line_of_fstab_as_mount_passes_it_on():
    # Seen with strace on Debian 12 for the options config=/x,_netdev,noauto,nofail,user,ro.
    given = [
        "/s",
        "/m",
        "-o",
        "ro,noexec,nosuid,nodev,config=/x,_netdev,user=u",
        "-t",
        "fuse.orbit",
    ]
    request = parse_request(given)
    assert request.launch.state == Path("/s")
    assert request.launch.mount == Path("/m")
    assert request.launch.config == Path("/x")
    assert request.launch.socket is None
    assert request.flags == ("ro", "noexec", "nosuid", "nodev")
    assert not request.fake


def test_the_last_of_ro_and_rw_counts():
    assert parse_options(["ro", "nosuid", "rw"], sloppy=False) == ({}, ["nosuid"])
    assert parse_options(["rw", "ro"], sloppy=False) == ({}, ["ro"])


def test_options_of_others_are_dropped():
    options = ["defaults", "_netdev", "x-systemd.automount", "comment=mine", "nofail", "users"]
    assert parse_options(options, sloppy=False) == ({}, [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("compression=zstd", "unknown option compression=zstd"),
        ("config=relative.toml", "config needs an absolute path"),
        ("socket", "socket needs an absolute path"),
    ],
)
def test_a_wrong_option_is_an_error(options, words):
    with pytest.raises(UsageError, match=words):
        parse_request(["/s", "/m", "-o", options])


def test_sloppy_lets_unknown_ones_pass():
    assert parse_request(["/s", "/m", "-s", "-o", "strange,ro"]).flags == ("ro",)


@pytest.mark.parametrize("given", [[], ["/s"], ["/s", "/m", "/x"], ["-q", "/s", "/m"], ["s", "/m"]])
def test_a_wrong_command_line_is_an_error(given):
    with pytest.raises(UsageError):
        parse_request(given)


def test_usage_errors_have_the_exit_code_of_mount():
    command = [sys.executable, "-m", "ghostd.mount_helper", "/s", "/m", "-o", "nonsense"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("mount.fuse.orbit: unknown option nonsense; known are config=")


def test_fake_touches_nothing(tmp_path):
    command = [sys.executable, "-m", "ghostd.mount_helper", tmp_path / "s", tmp_path / "m", "-f"]
    assert subprocess.run(command, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []
