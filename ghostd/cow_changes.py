"""What was changed here in a cow projection, as against its remote: `orbit-ctl diff`.

Changes are read from a snapshot of the namespace by a maintenance thread, a page at a time: entries
marked as local, and hidden names. Where something came from is told by its key, which it keeps:
an entry whose key is not the one of its place was moved there.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self, cast

import apsw

from ghostd.errors import InvalidArgument
from ghostd.inodes import FLAG_LOCAL
from ghostd.remote_names import local_name, remote_name

_PAGE: Final = 500  # rows asked for at once

_ENTRIES = f"""
    SELECT d.cookie, d.name, i.ino, i.mode, i.nlink, i.size, i.allocated, i.flags, i.base,
           i.base_end, v.key, v.size, r.key,
           EXISTS(SELECT 1 FROM hidden h WHERE h.parent = d.parent AND h.name = d.name)
    FROM dirents d JOIN inodes i ON i.ino = d.ino
    LEFT JOIN versions v ON v.id = i.base AND i.base <> 0
    LEFT JOIN remote_dirs r ON r.ino = i.ino
    WHERE d.parent = ? AND d.cookie > ? AND i.projection = ?
    AND (i.flags & {FLAG_LOCAL} OR (i.mode & 61440) = 16384)
    ORDER BY d.cookie LIMIT ?"""  # noqa: S608  a constant

_HIDDEN = """
    SELECT h.name FROM hidden h WHERE h.parent = ? AND h.name > ?
    AND NOT EXISTS(SELECT 1 FROM dirents d WHERE d.parent = h.parent AND d.name = h.name)
    ORDER BY h.name LIMIT ?"""

_MOVED_KEYS = f"""
    SELECT v.key FROM inodes i JOIN versions v ON v.id = i.base
    WHERE i.projection = ?1 AND i.flags & {FLAG_LOCAL} AND i.nlink > 0
    UNION ALL SELECT r.key FROM inodes i JOIN remote_dirs r USING(ino)
    WHERE i.projection = ?1 AND i.flags & {FLAG_LOCAL} AND i.nlink > 0"""  # noqa: S608


class LocalChange(NamedTuple):
    """One change, with what is needed to take it back."""

    kind: str  # added, modified, deleted, renamed, attributes
    path: bytes
    parent: int  # inode of the directory
    name: bytes
    ino: int  # 0: deleted
    is_dir: bool | None  # None: not known
    size: int | None  # bytes
    key: bytes | None  # at the remote; None: it has none
    written: bool  # its content was written here


@dataclass(frozen=True, slots=True)
class Frame:
    """A directory that is being looked through."""

    ino: int
    path: bytes
    key: bytes | None  # of the remote directory; None: it was made here
    after: int = 0  # cookie of the entry looked at last
    hidden: bytes | None = b""  # name looked at last; None: all


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: entries that lead down to its directory, and what is next in it."""

    cookies: tuple[int, ...]  # the last one: of the entry looked at last
    hidden: bytes | None

    def text(self) -> str:
        """For the API."""
        rest = "-" if self.hidden is None else self.hidden.hex()
        return ".".join(map(str, self.cookies)) + ":" + rest

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `text`. Raises InvalidArgument."""
        cookies, colon, rest = text.partition(":")
        try:
            assert colon
            numbers = tuple(int(cookie) for cookie in cookies.split("."))
            return cls(numbers, None if rest == "-" else bytes.fromhex(rest))
        except (AssertionError, ValueError):
            raise InvalidArgument(f"{text!r} is no cursor of an earlier answer") from None


class ChangeScan:
    """Looks through everything below a directory of one projection."""

    def __init__(self, connection: apsw.Connection, projection: int, top: Frame) -> None:
        self._connection = connection
        self._projection = projection
        self._stack = [top]
        self._moved: set[bytes] | None = None

    def page(self, cursor: Cursor | None, limit: int) -> tuple[list[LocalChange], Cursor | None]:
        """Some `limit` changes behind a cursor, and the next cursor (None: no more)."""
        if cursor is not None:
            self._resume(cursor)
        found: list[LocalChange] = []
        while self._stack and len(found) < limit:
            frame = self._stack.pop()
            if frame.hidden is not None:
                found += self._deleted(frame, limit - len(found))
            else:
                found += self._entries(frame, limit - len(found))
        return found, self._cursor() if self._stack else None

    def _cursor(self) -> Cursor:
        return Cursor(tuple(frame.after for frame in self._stack), self._stack[-1].hidden)

    def _resume(self, cursor: Cursor) -> None:
        """Open the directories again that lead to where the last page ended."""
        for depth, cookie in enumerate(cursor.cookies):
            last = depth == len(cursor.cookies) - 1
            frame = self._stack[-1] = replace(self._stack[-1], after=cookie, hidden=None)
            if last:
                self._stack[-1] = replace(frame, hidden=cursor.hidden)
                return
            row = self._connection.execute(
                "SELECT d.name, d.ino, r.key FROM dirents d LEFT JOIN remote_dirs r USING(ino)"
                " WHERE d.parent = ? AND d.cookie = ?",
                (frame.ino, cookie),
            ).fetchone()
            if row is None:
                return  # it has gone since: go on behind it
            self._stack.append(Frame(row[1], frame.path.rstrip(b"/") + b"/" + row[0], row[2]))

    # --- one directory -------------------------------------------------------------------------

    def _deleted(self, frame: Frame, limit: int) -> list[LocalChange]:
        """Names that the remote has and that were taken away here."""
        assert frame.hidden is not None
        rows = self._connection.execute(
            _HIDDEN, (frame.ino, frame.hidden, min(limit, _PAGE))
        ).fetchall()
        names = [cast("bytes", name) for (name,) in rows]
        self._stack.append(replace(frame, hidden=names[-1] if names else None))
        base = frame.path.rstrip(b"/") + b"/"
        return [
            deleted(base + name, frame.ino, name)
            for name in names
            if frame.key is None or not self._is_source(frame.key, name)
        ]

    def _is_source(self, directory: bytes, name: bytes) -> bool:
        """Whether what the remote has under this name is shown elsewhere: it was moved."""
        if self._moved is None:
            rows = self._connection.execute(_MOVED_KEYS, (self._projection,))
            self._moved = {key.removesuffix(b"/") for (key,) in rows}
        if not self._moved:
            return False
        named = remote_name(name)
        return named is not None and directory + named.name in self._moved

    def _entries(self, frame: Frame, limit: int) -> list[LocalChange]:
        rows = self._connection.execute(
            _ENTRIES, (frame.ino, frame.after, self._projection, min(limit, _PAGE))
        )
        found = []
        behind = frame.after
        for row in rows:
            frame = replace(frame, after=row[0])
            path = frame.path.rstrip(b"/") + b"/" + row[1]
            if row[7] & FLAG_LOCAL:
                found.append(classified(frame, path, row))
            if stat.S_ISDIR(row[3]):
                # What is in it comes next; here it goes on behind it.
                self._stack += [frame, Frame(row[2], path, row[12])]
                return found
        if frame.after != behind:
            self._stack.append(frame)
        return found


def deleted(path: bytes, parent: int, name: bytes) -> LocalChange:
    """The change that a hidden name without an entry is."""
    return LocalChange("deleted", path, parent, name, 0, None, None, None, written=False)


def entry_row(connection: apsw.Connection, projection: int, parent: int, cookie: int) -> tuple:  # type: ignore[type-arg]
    """The row of one entry, as `classified` takes it; empty where it is unchanged."""
    row = connection.execute(_ENTRIES, (parent, cookie - 1, projection, 1)).fetchone()
    return row if row is not None and row[0] == cookie else ()


def classified(frame: Frame, path: bytes, row: tuple) -> LocalChange:  # type: ignore[type-arg]
    """What kind of change an entry marked as local is; `row` is one of `_ENTRIES`."""
    _, name, ino, mode, nlink, size, allocated, _, base, base_end, key, had, dir_key, hid = row
    is_dir = stat.S_ISDIR(mode)
    written = bool(allocated) or not base or size != had or base_end != had
    if is_dir:
        key, written = dir_key, False
    if key is None:
        # Of what has no key it is not known whether the remote had it, unless its name was hidden.
        kind = "modified" if hid and not is_dir else "added"
    elif in_place(frame.key, name, key):
        kind = "modified" if written else "attributes"
    elif not is_dir and nlink > 1:
        kind = "added"  # one more name of something that may still have its own
    else:
        kind = "renamed"
    return LocalChange(kind, path, frame.ino, name, ino, is_dir, size, key, written)


def in_place(directory: bytes | None, name: bytes, key: bytes) -> bool:
    """Whether `name` in a directory with that key is where `key` belongs."""
    is_dir = key.endswith(b"/")
    above, slash, last = key.removesuffix(b"/").rpartition(b"/")
    if directory is None or above + slash != directory:
        return False
    return name in {local_name(last, is_dir, ()), local_name(last, is_dir, (last,))}
