"""Where paths really are: mounts, bind mounts, and what should be mounted but is not. Pure.

The formats are those of proc_pid_mountinfo(5) and fstab(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_OCTAL = re.compile(rb"\\([0-7]{3})")
_NO_FOLDER: Final = frozenset({b"none", b"swap", b"/"})


def _plain(field: bytes) -> bytes:
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field)


def is_within(path: bytes, folder: bytes) -> bool:
    """Whether a clean absolute path is the folder, or below it."""
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    device: bytes  # major:minor
    root: bytes  # the folder of the file system that is mounted
    point: bytes  # where
    type: str
    source: bytes
    read_only: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path is on its file system, whatever it is mounted as."""

    device: bytes
    path: bytes


class Mounts:
    """All mounts of this process."""

    def __init__(self, mountinfo: bytes) -> None:
        # Of several at one point the last one is seen.
        self._by_point: Mapping[bytes, Mount] = {
            mount.point: mount for mount in map(_mount, mountinfo.splitlines()) if mount
        }

    def of(self, path: bytes) -> Mount | None:
        """The mount that a path is on. `path`: real, see os.path.realpath."""
        while True:
            if path in self._by_point:
                return self._by_point[path]
            if path in {b"/", b""}:
                return None
            path = os.path.dirname(path)  # noqa: PTH120 - a path of bytes

    def place(self, path: bytes) -> Place | None:
        """Where a real path is; two paths are the same folder when their places are equal."""
        mount = self.of(path)
        if mount is None:
            return None
        rest = path[len(mount.point) :].lstrip(b"/") if mount.point != b"/" else path[1:]
        return Place(mount.device, mount.root.rstrip(b"/") + b"/" + rest if rest else mount.root)

    @property
    def all(self) -> Iterable[Mount]:
        """Those that can be seen."""
        return self._by_point.values()

    def is_point(self, path: bytes) -> bool:
        """Whether something is mounted exactly here."""
        return path in self._by_point


def _mount(line: bytes) -> Mount | None:
    before, _, after = line.partition(b" - ")
    left, right = before.split(b" "), after.split(b" ")
    if len(left) < 6 or len(right) < 2:
        return None
    return Mount(
        device=left[2],
        root=_plain(left[3]),
        point=_plain(left[4]),
        type=right[0].decode("ascii", "replace"),
        source=_plain(right[1]),
        read_only=b"ro" in left[5].split(b","),
    )


def absent_mount(path: bytes, fstab: bytes, mounts: Mounts) -> bytes | None:
    """Return the folder at or above `path` on which fstab wants a disk that is not mounted."""
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith(b"#") or fields[1] in _NO_FOLDER:
            continue
        point = _plain(fields[1])
        point = point.rstrip(b"/") or point
        if is_within(path, point) and not mounts.is_point(point):
            return point
    return None
