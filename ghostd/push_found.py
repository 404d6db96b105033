"""What was changed in a projection: found for a push, and described.

What is listed is as of the last commit, and looked at again in the live tree. Owned by the
filesystem's loop.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Any, Final

import trio

from ghostd.cow_changes import in_place
from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.push_directories import goal_of
from ghostd.push_gone import Standing, is_needed, key_of, standing
from ghostd.remote_rows import GoneRow
from ghostd.tree import Tree
from ghostd.tree_walk import joined
from ghostd.writeback import Writeback
from syncer.door_protocol import Head, data, text
from syncer.push_changes import Change, Gone, change_to_wire, gone_to_wire
from syncer.tree import KIND_OF_FORMAT, NodeKind

_SLICE: Final = 50  # inodes between two looks at the loop

_CHANGED: Final = (
    "SELECT ino FROM inodes WHERE projection = ? AND flags & 2 AND ino > ? ORDER BY ino LIMIT ?"
)
_GONE: Final = (
    "SELECT key FROM gone WHERE projection = ?1 AND key >= ?2 AND (?3 IS NULL OR key < ?3)"
    " ORDER BY key DESC LIMIT ?4"
)


class _Above:
    """A directory of a projection."""

    __slots__ = ("chain", "key", "path", "settled")

    def __init__(
        self, path: bytes, key: bytes | None, chain: frozenset[int], *, settled: bool
    ) -> None:
        self.path = path  # from the projection's root
        self.key = key  # where it is, or is to be; None: no remote takes its name
        self.chain = chain  # itself and what is above it
        self.settled = settled  # it is there


class LocalChanges:
    """Finds what was made, changed, moved or taken away here."""

    def __init__(self, tree: Tree, writeback: Writeback) -> None:
        self._tree = tree
        self._writeback = writeback

    # --- directories, and names in them --------------------------------------------------------

    def _above(self, projection: int, ino: int, known: dict[int, _Above | None]) -> _Above | None:
        """A directory; None: no name leads to it as of the last commit."""
        if ino not in known:
            known[ino] = self._look_above(projection, ino, known)
        return known[ino]

    def _look_above(
        self, projection: int, ino: int, known: dict[int, _Above | None]
    ) -> _Above | None:
        tree = self._tree
        row = tree.remote.dirs.get(ino)
        if ino == projection:
            return None if row is None else _Above(b"", row.key, frozenset((ino,)), settled=True)
        parent = tree.parent_of(ino)
        above = self._above(projection, parent, known)
        place = tree.namespace.query(
            "SELECT name FROM dirents WHERE ino = ? AND parent = ?", (ino, parent)
        )
        if above is None or not place:
            return None
        name = place[0][0]
        if (tree.find(parent, name) or (0, 0))[1] != ino:
            return None
        there = row is not None and in_place(above.key, name, row.key)
        key = row.key if row is not None and there else goal_of(above.key, name, is_dir=True)
        path = joined(above.path, name).lstrip(b"/")
        return _Above(path, key, above.chain | {ino}, settled=above.settled and there)

    def _change(
        self, projection: int, ino: int, parent: int, name: bytes, known: dict[int, _Above | None]
    ) -> tuple[Change, frozenset[int]] | None:
        """What has to be done about a name, and the directories above; None: nothing."""
        tree = self._tree
        try:
            inode = tree.inode(ino)
        except StaleHandle:
            return None
        if inode.projection != projection or not inode.flags & FLAG_LOCAL or not inode.nlink:
            return None
        if ino == projection:
            if inode.is_dir:
                return None  # the attributes of a root are ours
            return self._root(inode), frozenset((ino,))
        if (tree.find(parent, name) or (0, 0))[1] != ino:
            return None
        above = self._above(projection, parent, known)
        if above is None:
            return None
        key = key_of(tree, tree.inode(parent), name, inode)
        goal = goal_of(above.key, name, is_dir=inode.is_dir)
        if key is not None and in_place(above.key, name, key):
            goal = key
        path = joined(above.path, name).lstrip(b"/")
        change = self._described(inode, parent, name)._replace(
            path=path, key=key, goal=goal, settled=above.settled
        )
        if goal is not None and key != goal:
            change = self._with_replaced(projection, change, goal)
        return change, above.chain

    def _root(self, inode: Inode) -> Change:
        return self._described(inode, 0, b"")._replace(key=b"", goal=b"", settled=True)

    def _described(self, inode: Inode, parent: int, name: bytes) -> Change:
        row = self._tree.remote.versions.get(inode.base) if inode.base else None
        written = bool(inode.allocated) or row is None
        written = written or not inode.size == inode.base_end == (row.size if row else -1)
        return Change(
            projection=inode.projection,
            ino=inode.ino,
            parent=parent,
            name=name,
            path=b"",
            kind=KIND_OF_FORMAT[stat.S_IFMT(inode.mode)],
            size=inode.size,
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            mtime_ns=inode.mtime_ns,
            atime_ns=inode.atime_ns,
            target=inode.target,
            version=None if row is None else row.version,
            written=written,
            open=inode.opens > 0,
            names=1 if inode.is_dir else inode.nlink,
            empty=inode.is_dir and not inode.children,
        )

    def _with_replaced(self, projection: int, change: Change, goal: bytes) -> Change:
        bare = goal.removesuffix(b"/")
        gone = self._tree.remote.gone
        same, other = (
            (bare + b"/", bare) if change.kind is NodeKind.DIRECTORY else (bare, bare + b"/")
        )
        row = gone.get((projection, same))
        return change._replace(
            replaces=None if row is None else Gone(same, row.version, row.target),
            blocked=gone.get((projection, other)) is not None,
        )

    # --- pages ---------------------------------------------------------------------------------

    async def changes(self, head: Mapping[str, Any]) -> Head:
        """A page of what is to be pushed, as `push_changes` asks for it."""
        projection, top, what = head["projection"], head["top"], head["what"]
        tree = self._tree
        after, limit = head["after"], head["limit"]
        if not after:
            await self._writeback.commit()
        over = self._chain(projection, top)
        found: list[Head] = []
        while len(found) < limit:
            rows = tree.namespace.query(_CHANGED, (projection, after, _SLICE))
            known: dict[int, _Above | None] = {}
            for (ino,) in rows:
                after = ino
                for parent, name in self._names(projection, ino):
                    change = self._change(projection, ino, parent, name, known)
                    if change is None or not _wanted(what, change[0]):
                        continue
                    inside = top in change[1] or ino == top
                    if inside or (what == "directories" and ino in over):
                        found.append(change_to_wire(change[0]))
            if len(rows) < _SLICE:
                after = 0
                break
            await trio.lowlevel.checkpoint()
        return {"changes": found, "after": after}

    def _chain(self, projection: int, top: int) -> frozenset[int]:
        """The directories that lead to an inode."""
        if self._tree.inode(top).is_dir:
            above = self._above(projection, top, {})
        else:
            parents = [parent for parent, _ in self._names(projection, top) if parent]
            above = self._above(projection, parents[0], {}) if parents else None
        return frozenset() if above is None else above.chain

    def _names(self, projection: int, ino: int) -> list[tuple[int, bytes]]:
        if ino == projection:
            return [(0, b"")]
        rows = self._tree.namespace.query("SELECT parent, name FROM dirents WHERE ino = ?", (ino,))
        return [(parent, name) for parent, name in rows]

    async def gone(self, head: Mapping[str, Any]) -> Head:
        """A page of what was taken away, as `push_gone` asks for it."""
        projection, tree = head["projection"], self._tree
        prefix = b"" if head["prefix"] is None else data(head["prefix"])
        before = None if head["before"] is None else data(head["before"])
        if before is None:
            await self._writeback.commit()
            if head["prefix"] is None:
                return {"gone": [], "before": None}  # nothing of a path that was made here
            if prefix:
                before = prefix.removesuffix(b"/") + b"0"  # behind everything below it
        rows = tree.namespace.query(_GONE, (projection, prefix, before, head["limit"]))
        found = []
        known: dict[int, _Above | None] = {}
        for number, (key,) in enumerate(rows):
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
                known.clear()
            row = tree.remote.gone.get((projection, key))
            if row is None or not _is_below(key, prefix):
                continue
            described = self._described_gone(projection, key, row, known)
            if is_needed(tree, projection, key):
                found.append(gone_to_wire(described._replace(needed=True)))
                continue
            match standing(tree, projection, key):
                case Standing.BACK:
                    tree.remote.gone.set((projection, key), None)
                case Standing.GONE:
                    found.append(gone_to_wire(described))
                case Standing.TAKEN:
                    pass  # settled with what is there now
        last = text(rows[-1][0]) if len(rows) == head["limit"] else None
        return {"gone": found, "before": last}

    def _described_gone(
        self, projection: int, key: bytes, row: GoneRow, known: dict[int, _Above | None]
    ) -> Gone:
        try:
            above = self._above(projection, row.parent, known)
        except StaleHandle:
            above = None
        path = None if above is None else joined(above.path, row.name).lstrip(b"/")
        return Gone(key, row.version, row.target, path)

    def as_it_is(self, ino: int, parent: int, name: bytes) -> tuple[Change, frozenset[int]] | None:
        """The change of a name now, and the directories above it; None: there is none."""
        try:
            return self._change(self._tree.inode(ino).projection, ino, parent, name, {})
        except StaleHandle:
            return None


def _is_below(key: bytes, prefix: bytes) -> bool:
    return not prefix or key == prefix or key.startswith(prefix.removesuffix(b"/") + b"/")


def _wanted(what: str, change: Change) -> bool:
    is_dir = change.kind is NodeKind.DIRECTORY
    if what == "directories":
        return is_dir
    return not is_dir and (what == "files" or (change.moved and change.kind is NodeKind.FILE))
