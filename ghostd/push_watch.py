"""Notices changes in projections: whether a file was changed since, and which are to be pushed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ghostd.inodes import Inode

_WATCHED_MAX: Final = 100_000  # files that are being pushed; beyond, the oldest count as changed
_MARKED_MAX: Final = 1_000_000  # what moved with its directory; others are settled by themselves


@dataclass(slots=True)
class Touched:
    """Since when a projection has changes that nobody has begun to push; seconds, monotonic."""

    first_s: float
    last_s: float


class PushWatch:
    """Owned by the filesystem's loop, which tells it of every change before it is made."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._serial = 0
        self._watched: OrderedDict[int, int] = OrderedDict()  # inode → serial of its last change
        self._marked: set[int] = set()  # inodes that moved with their directory, else unchanged
        self.touched: dict[int, Touched] = {}  # by projection
        self.news = trio.Event()  # something was touched; renewed by who waits for it

    def changed(self, inode: Inode) -> None:
        """An inode of a projection, or the name that leads to it, is about to change."""
        self._serial += 1
        if inode.ino in self._watched:
            self._watched[inode.ino] = self._serial
        self._marked.discard(inode.ino)
        self.touch(inode.projection)

    def closed(self, inode: Inode) -> None:
        """Nobody has a changed file open any more."""
        if inode.projection:
            self.touch(inode.projection)

    def touch(self, projection: int) -> None:
        """There is something to be pushed."""
        now = self._monotonic()
        touched = self.touched.get(projection)
        if touched is None:
            self.touched[projection] = Touched(now, now)
            self.news.set()
        else:
            touched.last_s = now

    def mark(self, ino: int) -> None:
        """It counts as changed from now on for the sake of the directory above it only."""
        if len(self._marked) < _MARKED_MAX:
            self._marked.add(ino)

    def unmark(self, ino: int) -> bool:
        """Whether nothing else has happened to it since `mark`."""
        known = ino in self._marked
        self._marked.discard(ino)
        return known

    def begin(self, ino: int) -> int:
        """Watch an inode; the token of its state now."""
        token = self._watched.get(ino)
        if token is None:
            # Later than all that happened so far, and than anything forgotten.
            self._serial += 1
            token = self._watched[ino] = self._serial
            if len(self._watched) > _WATCHED_MAX:
                self._watched.popitem(last=False)
        return token

    def unchanged(self, ino: int, token: int) -> bool:
        """Whether nothing has happened to it since `begin`."""
        return self._watched.get(ino) == token

    def end(self, ino: int) -> None:
        """Nobody asks any more."""
        self._watched.pop(ino, None)
