"""Names changed since the last commit, laid over the database's. Pure.

A directory's delta keeps its names in the order of their cookies, so that `readdir` merges it with
a page of the database by bisection. Every name carries the epoch of its last change: when an epoch
is committed, the names that have not changed since are dropped, and the database shows the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

# cookie, inode number, epoch; inode number 0: the name is gone
Entry = tuple[int, int, int]
# parent, name, cookie, inode number; inode number 0: the name is gone
NameChange = tuple[int, bytes, int, int]

GONE = 0


class DirectoryDelta:
    """The changed names of one directory."""

    __slots__ = ("_by_cookie", "_cookies", "_stale", "names")

    def __init__(self) -> None:
        self.names: dict[bytes, Entry] = {}
        self._by_cookie: dict[int, bytes] = {}
        self._cookies: list[int] = []  # ascending; may hold cookies that are gone
        self._stale = 0

    def set(self, name: bytes, entry: Entry) -> None:
        """Show `entry` under `name`."""
        self._unlist(name)
        self.names[name] = entry
        cookie, ino, _ = entry
        if ino == GONE:
            return
        self._by_cookie[cookie] = name
        if not self._cookies or cookie > self._cookies[-1]:
            self._cookies.append(cookie)
            return
        at = bisect_right(self._cookies, cookie)  # a replaced name keeps its older cookie
        if self._cookies[at - 1] == cookie and at:
            self._stale -= 1
        else:
            self._cookies.insert(at, cookie)

    def drop(self, name: bytes) -> None:
        """Say nothing about `name` any more."""
        self._unlist(name)
        del self.names[name]

    def _unlist(self, name: bytes) -> None:
        old = self.names.get(name)
        if old is None or old[1] == GONE:
            return
        del self._by_cookie[old[0]]
        self._stale += 1
        if self._stale > 64 and self._stale > len(self._by_cookie):
            self._cookies = sorted(self._by_cookie)
            self._stale = 0

    def after(self, cookie: int) -> Iterator[tuple[int, bytes, int]]:
        """(cookie, name, inode number) of the names shown behind `cookie`, in order."""
        cookies = self._cookies
        for index in range(bisect_right(cookies, cookie), len(cookies)):
            at = cookies[index]
            name = self._by_cookie.get(at)
            if name is not None:
                yield at, name, self.names[name][1]


class Overlay:
    """All directories' deltas, and which names each epoch changed."""

    def __init__(self) -> None:
        self.directories: dict[int, DirectoryDelta] = {}
        self._changed: dict[tuple[int, bytes], None] = {}  # in the current epoch

    def __len__(self) -> int:
        """How many names the current epoch has changed."""
        return len(self._changed)

    def get(self, parent: int, name: bytes) -> Entry | None:
        """The entry, one with inode number GONE, or None where the database decides."""
        delta = self.directories.get(parent)
        return None if delta is None else delta.names.get(name)

    def set(self, parent: int, name: bytes, cookie: int, ino: int, epoch: int) -> None:
        """`name` now leads to `ino` (GONE: to nothing)."""
        delta = self.directories.get(parent)
        if delta is None:
            delta = self.directories[parent] = DirectoryDelta()
        delta.set(name, (cookie, ino, epoch))
        self._changed[parent, name] = None

    def freeze(self) -> list[NameChange]:
        """The barrier: what the current epoch changed, and a new epoch begins."""
        changes = []
        for parent, name in self._changed:
            cookie, ino, _ = self.directories[parent].names[name]
            changes.append((parent, name, cookie, ino))
        self._changed = {}
        return changes

    def committed(self, changes: list[NameChange], epoch: int) -> None:
        """The database shows `changes`, the state at the end of `epoch`."""
        for parent, name, _, _ in changes:
            delta = self.directories.get(parent)
            if delta is None:
                continue
            entry = delta.names.get(name)
            if entry is not None and entry[2] <= epoch:
                delta.drop(name)
                if not delta.names:
                    del self.directories[parent]

    def thaw(self, changes: list[NameChange]) -> None:
        """The commit failed: its names are to be committed with the current epoch."""
        for parent, name, _, _ in changes:
            self._changed[parent, name] = None
