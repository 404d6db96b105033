"""Disks that answer nothing for a while, and daemons killed while something waits for them."""

import concurrent.futures as cf
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from cli.client import CallFailed, CallRefused
from ghostd.mountpoint import attach, serves
from tests.mount.harness import abort_connection, clear_mount, run

MIB = 1 << 20
END_LIMIT_S = 60.0  # for what happens at once, unless something is broken


@pytest.fixture
def freezable(workplace):
    """An ext4 in a loop device, for a state folder whose disk can be frozen."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    image = workplace / f"image{time.monotonic_ns()}"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    folder = image.with_suffix(".mnt")
    folder.mkdir()
    run("mount", "-o", "loop", image, folder)
    yield folder
    run("fsfreeze", "--unfreeze", folder, codes=(0, 1))
    run("umount", folder)
    folder.rmdir()
    image.unlink()


SYNC = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(b"y" * 1_000_000)
    print("written", flush=True)
    sys.stdin.readline()
    os.fsync(file.fileno())
print("synced")
"""


def test_the_daemon_answers_while_its_disk_is_frozen(freezable, new_daemon):
    daemon = new_daemon(state=freezable / "state")
    daemon.start()
    writer = subprocess.Popen(
        ["python3", "-c", SYNC, daemon.mount / "stuck"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"written\n"
        run("fsfreeze", "--freeze", freezable)
        try:
            writer.stdin.write(b"now\n")
            writer.stdin.flush()
            # The limit is the promise itself; a stuck daemon never answers.
            for _ in range(20):
                assert daemon.client.get("/v1/status", 1.0)["state"] == "ready"
                daemon.client.get("/v1/stats", 1.0)
            assert writer.poll() is None, "fsync returned from a frozen disk"
        finally:
            run("fsfreeze", "--unfreeze", freezable)
        assert writer.communicate(timeout=60)[0] == b"synced\n"
    daemon.crash()
    assert (daemon.mount / "stuck").read_bytes() == b"y" * 1_000_000
    daemon.check_clean()
    daemon.stop()


def test_names_are_answered_while_the_disk_is_frozen(freezable, new_daemon):
    daemon = new_daemon(state=freezable / "state")
    daemon.start()
    (daemon.mount / "file").write_bytes(b"x" * MIB)
    daemon.flush()
    command = (
        'ls "$1" && cat "$1/file" && touch "$1/file" && mkdir "$1/new" && echo new > "$1/new/er"'
    )
    run("fsfreeze", "--freeze", freezable)
    try:
        shell = subprocess.Popen(
            ["sh", "-c", command, "sh", daemon.mount], stdout=subprocess.DEVNULL
        )
        try:
            code = shell.wait(10)
        except subprocess.TimeoutExpired:
            code = None
    finally:
        run("fsfreeze", "--unfreeze", freezable)
        shell.wait(60)
    assert code == 0


def test_stopping_waits_for_a_frozen_disk(freezable, new_daemon):
    daemon = new_daemon(state=freezable / "state")
    daemon.start()
    (daemon.mount / "file").write_bytes(b"kept")
    (daemon.mount / "new").write_bytes(b"x" * MIB)
    run("fsfreeze", "--freeze", freezable)
    try:
        os.kill(daemon.pid, signal.SIGTERM)
        # It answers although it stops, and waits for the disk.
        assert daemon.client.get("/v1/status", 30.0)["state"] in ("ready", "stopping")
    finally:
        run("fsfreeze", "--unfreeze", freezable)
    assert daemon.wait() == 0
    daemon.start()
    assert (daemon.mount / "file").read_bytes() == b"kept"
    assert (daemon.mount / "new").read_bytes() == b"x" * MIB
    daemon.check_clean()
    daemon.stop()


# --- killed while something waits ----------------------------------------------------------------

# A daemon whose loop stops for good at the first request that somebody makes by looking at the
# root: taken, never answered.
HELD = """
import sys, threading
from ghostd import fuse, main

async def hold(self, *_):
    print("the loop is held", flush=True)
    threading.Event().wait()

fuse.Operations.getattr = fuse.Operations.opendir = fuse.Operations.statfs = hold
sys.exit(main.main(sys.argv[4:]))
"""


def test_a_daemon_killed_in_the_middle_of_a_flush_ends(new_daemon):
    """No thread of it waits for an answer that only it could give: that would outlive SIGKILL."""
    daemon = new_daemon().start()
    (daemon.mount / "before").write_bytes(b"before")
    daemon.stop()
    stuck = new_daemon(state=daemon.state, prefix=(sys.executable, "-c", HELD))
    stuck.start()  # it needs no answer of its own to be ready
    with cf.ThreadPoolExecutor(1) as pool:
        flush = pool.submit(stuck.client.post, "/v1/flush", {"timeout_s": 120.0}, 130.0)
        deadline = time.monotonic() + END_LIMIT_S
        while "the loop is held" not in stuck.log.read_text():
            assert time.monotonic() < deadline, "the flush asked the kernel for nothing"
            assert not flush.done(), flush.result()
        os.kill(stuck.pid, signal.SIGKILL)
        try:
            assert stuck.ends(END_LIMIT_S), "the killed daemon lives on and holds its mount"
        finally:
            abort_connection(stuck.mount)
        with pytest.raises(CallFailed):
            flush.result(END_LIMIT_S)
    again = new_daemon(state=daemon.state)
    again.mount = stuck.mount
    again.start()
    assert (again.mount / "before").read_bytes() == b"before"
    again.check_clean()
    again.stop()


def test_a_flush_that_is_late_says_so_and_goes_on(freezable, new_daemon):
    daemon = new_daemon(state=freezable / "state").start()
    (daemon.mount / "file").write_bytes(b"x" * MIB)
    run("fsfreeze", "--freeze", freezable)
    try:
        with pytest.raises(CallRefused, match="it goes on in the daemon"):
            daemon.client.post("/v1/flush", {"timeout_s": 0.1}, 10.0)
    finally:
        run("fsfreeze", "--unfreeze", freezable)
    daemon.client.post("/v1/flush", {"timeout_s": END_LIMIT_S}, 2 * END_LIMIT_S)
    daemon.crash()
    assert (daemon.mount / "file").read_bytes() == b"x" * MIB
    daemon.stop()


FILL = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(24):
        file.write(b"x" * (1 << 20))
    print("written", flush=True)
    sys.stdin.readline()
"""


def test_a_flush_waits_for_what_the_kernel_still_holds(freezable, new_daemon):
    """Also when the daemon takes it in slowly: here it is at its limit until the disk works."""
    daemon = new_daemon(state=freezable / "state", config='[write]\ndirty_bytes_max = "16 MiB"\n')
    daemon.start()
    run("fsfreeze", "--freeze", freezable)
    with (
        cf.ThreadPoolExecutor(1) as pool,
        subprocess.Popen(
            ["python3", "-c", FILL, daemon.mount / "much"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as writer,
    ):
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
            flush = pool.submit(daemon.client.post, "/v1/flush", {"timeout_s": 120.0}, 130.0)
            deadline = time.monotonic() + END_LIMIT_S
            while daemon.status()["dirty_bytes"] < 16 * MIB:
                assert time.monotonic() < deadline, "the daemon never came to its limit"
                assert not flush.done(), flush.result()
            run("fsfreeze", "--unfreeze", freezable)
            flush.result(END_LIMIT_S)
            daemon.kill()
        finally:
            run("fsfreeze", "--unfreeze", freezable, codes=(0, 1))
            abort_connection(daemon.mount)
            writer.kill()
    daemon.start()
    assert (daemon.mount / "much").read_bytes() == b"x" * 24 * MIB
    daemon.stop()


def test_a_daemon_that_holds_a_request_for_ever_is_alive(workplace):
    """Looking whether a mount is served returns, though what looks cannot be killed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    mount = workplace / "deaf"
    mount.mkdir()
    device = int(attach(mount, allow_other=False).rpartition("/")[2])
    try:
        agree(device)
        with cf.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(serves, mount)
            assert opcode(os.read(device, REQUEST_MAX)) == STATFS
            try:
                assert answer.result(END_LIMIT_S) is True
            finally:
                abort_connection(mount)
    finally:
        os.close(device)
        clear_mount(mount)
        mount.rmdir()


REQUEST_MAX = 1 << 20
INIT, STATFS = 26, 17  # linux/fuse.h


def opcode(request: bytes) -> int:
    """Of a request read from /dev/fuse: struct fuse_in_header."""
    return int(struct.unpack_from("<II", request)[1])


def agree(device: int) -> None:
    """Answer the kernel's first request: version 7.31, nothing special."""
    request = os.read(device, REQUEST_MAX)
    assert opcode(request) == INIT
    (unique,) = struct.unpack_from("<Q", request, 8)
    answer = struct.pack("<IIIIHHII", 7, 31, 65_536, 0, 12, 9, 65_536, 1).ljust(64, b"\0")
    os.write(device, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
