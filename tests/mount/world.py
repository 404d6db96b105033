"""A small tree and every operation on it, to be applied alike to the mount and to a folder of the
machine.

Each operation is a method that returns what can be compared: a value or the name of an errno.
Handles stay open in numbered slots. `seen` is everything that two filesystems must agree on.
"""

from __future__ import annotations

import mmap
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mount.posix import outcome, renameat2

NAMES = ("d", "e", "d/f", "x", "y", "d/x", "d/y", "e/x", "d/f/x", "d/f/y", "e/\udcff\udcfe")
TARGETS = ("x", "d", "../x", "nowhere", "d/f", "y")
MODES = (0o644, 0o600, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o400, 0)
OFFSETS = (0, 1, 4_095, 4_096, 70_000, 300_000, (4 << 20) - 5, (4 << 20) + 100)
LENGTHS = (1, 100, 4_096, 10_000, 70_000)
OWNERS = (0, 1, 65_533)
ATTRIBUTES = ("user.a", "user.b", "trusted.c")
SLOTS = (0, 1, 2)
FLAGS = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_TRUNC,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_NOFOLLOW,
)
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
LISTS = tuple(
    struct.pack("<I", 2)
    + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 7, -1 & 0xFFFFFFFF), (2, user, 65_533), (4, 5, -1 & 0xFFFFFFFF))
    )
    + struct.pack("<HHI", 16, mask, 0xFFFFFFFF)
    + struct.pack("<HHI", 32, 4, 0xFFFFFFFF)
    for user, mask in ((7, 7), (4, 5), (6, 0))
)

# operation → what its arguments are drawn from
OPERATIONS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "create": (NAMES, MODES),
    "mkdir": (NAMES, MODES),
    "mkfifo": (NAMES, MODES),
    "symlink": (TARGETS, NAMES),
    "link": (NAMES, NAMES),
    "unlink": (NAMES,),
    "rmdir": (NAMES,),
    "rename": (NAMES, NAMES, (0, 0, 0, 1, 2)),
    "chmod": (NAMES, MODES),
    "chown": (NAMES, OWNERS, OWNERS),
    "utime": (NAMES, (1, 123_456_789_123, 10**17 + 1)),
    "truncate": (NAMES, OFFSETS),
    "write": (NAMES, OFFSETS, LENGTHS, (1, 2)),
    "append": (NAMES, LENGTHS, (1, 2)),
    "read": (NAMES, OFFSETS, LENGTHS),
    "readlink": (NAMES,),
    "listdir": (NAMES,),
    "set_attribute": (NAMES, ATTRIBUTES, (b"", b"v", b"w" * 1_000), (0, 1, 2)),
    "remove_attribute": (NAMES, (*ATTRIBUTES, _ACCESS, _DEFAULT)),
    "set_list": (NAMES, (_ACCESS, _DEFAULT), LISTS),
    "open": (SLOTS, NAMES, FLAGS),
    "close": (SLOTS,),
    "handle_write": (SLOTS, OFFSETS, LENGTHS, (1, 2)),
    "handle_read": (SLOTS, OFFSETS, LENGTHS),
    "handle_truncate": (SLOTS, OFFSETS),
    "handle_sync": (SLOTS,),
    "handle_chmod": (SLOTS, MODES),
    "handle_map": (SLOTS, (0, 5_000, 65_000)),
}


class World:
    """The tree below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.handles: dict[int, int] = {}

    def apply(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        """Carry out one of OPERATIONS; what came of it, comparable."""
        method: Callable[..., Any] = getattr(self, operation)
        return outcome(method, *arguments)

    def close_all(self) -> None:
        """Close every handle."""
        for slot in list(self.handles):
            self.close(slot)

    def _at(self, name: str) -> Path:
        return self.root / name

    # --- names -----------------------------------------------------------------------------------

    def create(self, name, mode):
        os.close(os.open(self._at(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def mkdir(self, name, mode):
        os.mkdir(self._at(name), mode)

    def mkfifo(self, name, mode):
        os.mkfifo(self._at(name), mode)

    def symlink(self, target, name):
        os.symlink(target, self._at(name))

    def link(self, name, new):
        os.link(self._at(name), self._at(new), follow_symlinks=False)

    def unlink(self, name):
        os.unlink(self._at(name))

    def rmdir(self, name):
        os.rmdir(self._at(name))

    def rename(self, name, new, flags):
        renameat2(self._at(name), self._at(new), flags)

    def listdir(self, name):
        return sorted(os.listdir(self._at(name)))

    def readlink(self, name):
        return os.readlink(self._at(name))

    # --- attributes ------------------------------------------------------------------------------

    def chmod(self, name, mode):
        os.chmod(self._at(name), mode)

    def chown(self, name, uid, gid):
        os.lchown(self._at(name), uid, gid)

    def utime(self, name, time_ns):
        os.utime(self._at(name), ns=(time_ns, time_ns), follow_symlinks=False)

    def set_attribute(self, name, attribute, value, flags):
        os.setxattr(self._at(name), attribute, value, flags, follow_symlinks=False)

    def remove_attribute(self, name, attribute):
        os.removexattr(self._at(name), attribute, follow_symlinks=False)

    def set_list(self, name, attribute, value):
        os.setxattr(self._at(name), attribute, value)

    # --- content ---------------------------------------------------------------------------------

    def truncate(self, name, size):
        self._no_fifo(name)
        info = self._at(name).stat()
        # To the size it has: FUSE moves no times then, others do.
        if info.st_size != size or not stat.S_ISREG(info.st_mode):
            os.truncate(self._at(name), size)

    def write(self, name, offset, length, seed):
        fd = os.open(self._at(name), os.O_WRONLY | os.O_NONBLOCK)
        try:
            return os.pwrite(fd, _data(length, seed), offset)
        finally:
            os.close(fd)

    def append(self, name, length, seed):
        fd = os.open(self._at(name), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            return os.write(fd, _data(length, seed))
        finally:
            os.close(fd)

    def read(self, name, offset, length):
        fd = os.open(self._at(name), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def _no_fifo(self, name):
        if stat.S_ISFIFO(self._at(name).stat().st_mode):
            raise OSError(22, "opening a fifo would wait")

    # --- handles ---------------------------------------------------------------------------------

    def open(self, slot, name, flags):
        if slot in self.handles:
            return "taken"
        self.handles[slot] = os.open(self._at(name), flags | os.O_NONBLOCK, 0o644)
        return None

    def close(self, slot):
        if slot not in self.handles:
            return "free"
        os.close(self.handles.pop(slot))
        return None

    def handle_write(self, slot, offset, length, seed):
        return slot in self.handles and os.pwrite(self.handles[slot], _data(length, seed), offset)

    def handle_read(self, slot, offset, length):
        return slot in self.handles and os.pread(self.handles[slot], length, offset)

    def handle_truncate(self, slot, size):
        if slot not in self.handles:
            return
        info = os.fstat(self.handles[slot])
        if info.st_size != size or not stat.S_ISREG(info.st_mode):
            os.ftruncate(self.handles[slot], size)

    def handle_sync(self, slot):
        if slot in self.handles and stat.S_ISREG(os.fstat(self.handles[slot]).st_mode):
            os.fsync(self.handles[slot])

    def handle_chmod(self, slot, mode):
        return slot in self.handles and os.fchmod(self.handles[slot], mode)

    def handle_map(self, slot, offset):
        """Write through a shared map, inside the file."""
        if slot not in self.handles:
            return
        size = os.fstat(self.handles[slot]).st_size
        if size <= offset or not stat.S_ISREG(os.fstat(self.handles[slot]).st_mode):
            return
        with mmap.mmap(self.handles[slot], size) as mapped:
            mapped[offset : offset + 3] = b"map"[: size - offset]
        return

    # --- everything ------------------------------------------------------------------------------

    def seen(self) -> dict[str, Any]:
        """All that can be seen of the tree, without what filesystems may differ in."""
        found: dict[str, Any] = {}
        inodes: dict[int, str] = {}
        for name in ["", *sorted(self._walk(""))]:
            found[name] = self._look(name, inodes)
        for slot, fd in self.handles.items():
            info = os.fstat(fd)
            size = None if stat.S_ISDIR(info.st_mode) else info.st_size
            found[f"handle {slot}"] = (oct(info.st_mode), info.st_nlink, info.st_uid, size)
        return found

    def _walk(self, folder: str) -> list[str]:
        found = []
        for entry in os.scandir(self.root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            found.append(name)
            if entry.is_dir(follow_symlinks=False):
                found += self._walk(name)
        return found

    def _look(self, name: str, inodes: dict[int, str]) -> tuple[Any, ...]:
        path = self._at(name)
        info = path.lstat()
        is_dir, is_file = stat.S_ISDIR(info.st_mode), stat.S_ISREG(info.st_mode)
        return (
            oct(info.st_mode),
            (info.st_uid, info.st_gid),
            info.st_nlink,
            None if is_dir else info.st_size,
            info.st_mtime_ns if info.st_mtime_ns < 10**18 else "now",
            None if is_dir else inodes.setdefault(info.st_ino, name),
            os.readlink(path) if stat.S_ISLNK(info.st_mode) else None,
            path.read_bytes() if is_file else None,
            {
                attribute: os.getxattr(path, attribute, follow_symlinks=False)
                for attribute in sorted(os.listxattr(path, follow_symlinks=False))
            },
        )


def _data(length: int, seed: int) -> bytes:
    return random.Random(seed * 1_000_003 + length).randbytes(length)
