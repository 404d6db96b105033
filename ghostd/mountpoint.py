"""The mount point.

What may become one, clearing a dead mount, and the kernel's knobs of a live one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from blockstore.errors import OrbitError, StorageFailed
from ghostd import handover

log = structlog.get_logger("ghostd.mount")

_LIBC = ctypes.CDLL(None, use_errno=True)  # releases the GIL: the mount must be able to answer
_MS_NOSUID, _MS_NODEV, _MS_POSIXACL = 2, 4, 1 << 16
_MNT_DETACH = 2
_PROBE_S = 5.0

FSTYPE = "fuse.orbit"


class MountRefused(OrbitError):
    """The mount point cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    path: Path
    device: str  # major:minor
    kind: str  # filesystem type


def mounted_at(path: Path) -> MountEntry | None:
    """The topmost mount at exactly this path. Never touches the mount itself, so it cannot hang."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        at = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if os.fsencode(at.encode("latin-1", "surrogateescape")) == os.fsencode(path):
            found = MountEntry(path, fields[2], fields[fields.index("-") + 1])
    return found


def prepare(mount: Path, state: Path) -> Path:
    """Check that `mount` can be mounted on and clear what a crashed daemon left. The resolved path.

    Raises MountRefused: no directory, not empty, in use, or one of the two lies inside the other.
    """
    mount = Path(os.path.abspath(mount))  # noqa: PTH100  resolve() would touch a dead mount
    entry = mounted_at(mount)
    if entry is not None and entry.kind == FSTYPE:
        if serves(mount):
            raise MountRefused(f"{mount} is mounted already; unmount it first: umount {mount}")
        log.warning("clearing a dead mount", mount=str(mount))
        unmount(mount, lazy=True)
    try:
        entries = os.listdir(mount)  # noqa: PTH208  names only
    except FileNotFoundError:
        raise MountRefused(f"{mount} does not exist; make it: mkdir -p {mount}") from None
    except NotADirectoryError:
        raise MountRefused(f"{mount} is not a directory; choose an empty one") from None
    except OSError as error:
        raise MountRefused(f"{mount} cannot be read: {error.strerror}") from error
    if entries:
        raise MountRefused(
            f"{mount} is not empty ({entries[0]!r} …); its files would be hidden: "
            "choose an empty directory"
        )
    mount, state = mount.resolve(), state.resolve()
    if state == mount or mount in state.parents:
        raise MountRefused(
            f"the state folder {state} lies inside the mount point {mount}; move one of them"
        )
    return mount


def serves(mount: Path) -> bool:
    """True if a GhostFS with a living daemon is mounted at exactly `mount`, be it stuck or not.

    Asks for the free space, which the kernel never answers from its caches; attributes it does, for
    as long as their timeout, also after the daemon's death. In a process of its own, since the
    answer of a stuck daemon never comes.
    """
    entry = mounted_at(mount)
    if entry is None or entry.kind != FSTYPE:
        return False
    probe = subprocess.Popen(
        ["stat", "-f", "--", mount],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return probe.wait(_PROBE_S) == 0
    except subprocess.TimeoutExpired:
        # A request that the daemon has taken cannot be given up: kill(2) works when it is answered.
        probe.kill()
        probe.returncode = -signal.SIGKILL  # not waited for on purpose; Popen would warn of that
        return True


def attach(mount: Path, *, allow_other: bool) -> str:
    """Mount, and what pyfuse3 is to be given as its mount point.

    For root this is a descriptor of the mounted /dev/fuse: mounting it ourselves lets us tell the
    kernel to leave the umask to us (MS_POSIXACL), without which default ACLs could not overrule it;
    pyfuse3 has no way to ask for that. Others mount through fusermount3, which libfuse runs.
    Raises MountRefused.
    """
    if os.geteuid() != 0:
        return str(mount)
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountRefused(
            f"/dev/fuse cannot be opened ({error.strerror}): load the module (modprobe fuse), or "
            "give the container the device"
        ) from error
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
    if allow_other:
        options += ",allow_other"
    flags = _MS_NOSUID | _MS_NODEV | _MS_POSIXACL
    if _LIBC.mount(
        b"orbit", os.fsencode(mount), FSTYPE.encode(), ctypes.c_ulong(flags), options.encode()
    ):
        reason = os.strerror(ctypes.get_errno())
        os.close(fd)
        raise MountRefused(f"{mount} could not be mounted: {reason}")
    return f"/dev/fd/{fd}"


def unmount(mount: Path, *, lazy: bool) -> bool:
    """Unmount; `lazy` detaches a busy mount and ends when its last file is closed.

    Whether it worked.
    """
    if os.geteuid() == 0:
        if _LIBC.umount2(os.fsencode(mount), _MNT_DETACH if lazy else 0) == 0:
            return True
        return ctypes.get_errno() == errno.EINVAL  # not mounted: somebody was faster
    tool = shutil.which("fusermount3")
    if tool is None:
        raise MountRefused("fusermount3 is missing; install the package fuse3")
    done = subprocess.run(
        [tool, "-u", *(["-z"] if lazy else []), str(mount)], capture_output=True, check=False
    )
    return done.returncode == 0


async def sync_kernel(mount: Path, open_files: Iterable[tuple[int, int]]) -> None:
    """Have the kernel hand over the dirty pages it holds for the mount. Raises StorageFailed.

    `open_files`: (inode number, generation) of those that may have some. A process of its own asks
    the kernel (`handover`). A thread of the daemon that waits for the daemon's own answer outlives
    SIGKILL, holds /dev/fuse open, and so keeps the connection from ending, which alone could wake
    it. The process holds nothing: the daemon's end ends it.
    """
    files = b"".join(b"%d %d\n" % file for file in open_files)
    if os.geteuid() == 0:
        command = [sys.executable, "-I", "-S", handover.__file__, str(mount)]
    else:  # what `handover` does beyond this is root's privilege
        command = ["sync", "-f", "--", str(mount)]
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise StorageFailed(
            f"what the kernel holds for {mount} was not written: {command[0]} could not be "
            f"started: {error.strerror}"
        ) from error
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        with contextlib.suppress(trio.BrokenResourceError):  # it has ended, and says why
            await process.stdin.send_all(files)
        await process.stdin.aclose()
        code = await process.wait()
        said = await process.stderr.receive_some()
        if code != 0:
            reason = said.decode(errors="replace").strip() or f"exit code {code}"
            raise StorageFailed(f"what the kernel holds for {mount} was not written: {reason}")
    finally:
        # Cancelled: not waited for, since what waits for a stuck mount cannot be killed.
        process.kill()
        await trio.aclose_forcefully(process.stdin)
        await trio.aclose_forcefully(process.stderr)


def tune(mount: Path, *, read_ahead_kib: int, max_background: int) -> None:
    """Raise the kernel's read-ahead and background requests, which only root may.

    Measured: buffered sequential reads go from 0.4 GB/s at the default 128 KiB to over 2 at 1 MiB.
    """
    entry = mounted_at(mount)
    if entry is None or os.geteuid() != 0:
        return
    minor = entry.device.split(":")[1]
    for knob, value in (
        (f"/sys/class/bdi/{entry.device}/read_ahead_kb", read_ahead_kib),
        (f"/sys/fs/fuse/connections/{minor}/max_background", max_background),
        (f"/sys/fs/fuse/connections/{minor}/congestion_threshold", max_background * 3 // 4),
    ):
        with contextlib.suppress(OSError):  # containers hide some of them; the mount works without
            Path(knob).write_text(str(value))
