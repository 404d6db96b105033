"""Copies on a filesystem that shares extents: XFS in a loop device."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def run(*command):
    subprocess.run([str(each) for each in command], check=True, capture_output=True, timeout=60)


@pytest.fixture
def xfs(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    image, folder = tmp_path / "image", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    run("mkfs.xfs", "-q", image)
    folder.mkdir()
    run("mount", "-o", "loop", image, folder)
    yield folder
    run("umount", folder)


def orbit(home, *arguments):
    """The report of a command."""
    ran = subprocess.run(
        [sys.executable, "-m", "cli.orbit", *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def used(folder):
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_copies_share_their_bytes(xfs, tmp_path):
    source, copy = xfs / "source", xfs / "copy"
    source.mkdir()
    rng = random.Random(1)
    (source / "large").write_bytes(rng.randbytes(64 * MIB))
    for number in range(50):
        (source / f"small{number}").write_bytes(rng.randbytes(5_000))
    with (source / "holes").open("wb") as file:
        file.truncate(32 * MIB)
        file.seek(20 * MIB)
        file.write(b"data")
    before = used(xfs)
    report = orbit(tmp_path, "copy", "-a", source, copy)
    assert report["how"] == {"reflink": 52}
    assert (report["bytes_moved"], report["files_copied"]) == (0, 52)
    assert used(xfs) - before < 2 * MIB
    run("diff", "-r", source, copy)
    assert (copy / "holes").stat().st_blocks == (source / "holes").stat().st_blocks

    with (source / "large").open("r+b") as file:
        file.seek(30 * MIB)
        file.write(rng.randbytes(MIB))
    os.utime(source / "large", ns=(time.time_ns(), time.time_ns() + 10**10))
    before = used(xfs)
    report = orbit(tmp_path, "sync", "-a", source, copy)
    assert (report["files_copied"], report["files_equal"]) == (1, 51)
    assert used(xfs) - before < 2 * MIB
    run("diff", "-r", source, copy)
