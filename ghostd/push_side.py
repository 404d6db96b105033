"""The namespace as a push sees it, through the door: what was changed here, and settling it.

What is listed is as of the last commit, and looked at again in the live tree; what is settled is
compared first. From comparing to changing nothing awaits. Owned by the filesystem's loop.
"""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import trio

from ghostd import errors as fs_errors
from ghostd.attached_paths import AttachedPaths
from ghostd.cow_changes import in_place
from ghostd.cow_revert import Reverter
from ghostd.entangler import gaps
from ghostd.errors import AlreadyExists, NotFound, StaleHandle
from ghostd.filesystem import RENAME_NOREPLACE, Filesystem
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.invalidator import Invalidator
from ghostd.listings import Listings
from ghostd.projection import OWN_OPTIONS, Projection
from ghostd.projections import Projections
from ghostd.push_directories import PushDirectories, goal_of, settle
from ghostd.push_gone import (
    Standing,
    adopt_hidden,
    forget_gone,
    is_needed,
    key_of,
    standing,
)
from ghostd.push_watch import PushWatch
from ghostd.remote_rows import UNKNOWN, GoneRow, VersionRow
from ghostd.tree_walk import find_path, joined
from syncer.door_protocol import Head, data, text
from syncer.push_changes import Change, Gone, change_to_wire, gone_to_wire, version_from_wire
from syncer.remotes import errors
from syncer.remotes.remote import Version
from syncer.tree import KIND_OF_FORMAT, NodeKind

_READ_BYTES: Final = 1 << 20
_SLICE: Final = 50  # inodes between two looks at the loop
_DIRTY_ROWS_MAX: Final = 20_000

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


class PushSide:
    """Answers the requests whose names begin with `push_`."""

    def __init__(
        self,
        filesystem: Filesystem,
        projections: Projections,
        listings: Listings,
        reverter: Reverter,
        watch: PushWatch,
        paths: AttachedPaths,
        invalidator: Invalidator,
        *,
        pushed: Callable[[int], None] = lambda _: None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`pushed` is told of a projection with a file that its remote has as it is here."""
        self._pushed = pushed
        self._fs = filesystem
        self._tree = filesystem.tree
        self._writeback = filesystem.writeback
        self._projections = projections
        self._listings = listings
        self._reverter = reverter
        self._watch = watch
        self._paths = paths
        self._invalidator = invalidator
        self._directories = PushDirectories(
            self._tree, self._writeback, listings, watch, now_ns=now_ns
        )
        # Files with several names: what has been pushed of each, until all have been.
        self._linked: dict[int, dict[tuple[int, bytes], int]] = {}

    async def answer(self, head: Mapping[str, Any]) -> tuple[Head, bytes]:
        """Do what a request asks for. Raises OrbitError."""
        match head["op"]:
            case "push_open":
                return await self._open(data(head["path"])), b""
            case "push_changes":
                return await self._changes(head), b""
            case "push_gone":
                return await self._gone(head), b""
            case "push_begin":
                return await self._begin(head), b""
            case "push_read":
                return await self._read(head)
            case "push_done":
                return {"clean": await self._done(head)}, b""
            case "push_made" | "push_renaming" | "push_renamed":
                return await self._answer_directory(head), b""
            case "push_forget":
                await self._forget(head["projection"], data(head["key"]))
            case "push_own":
                await self._own(head["ino"])
            case "push_aside":
                await self._aside(head)
                await self._invalidator.told()
            case "push_theirs":
                await self._theirs(head)
                await self._invalidator.told()
            case op:
                raise errors.Unsupported(f"the door knows no {op!r}")
        return {}, b""

    async def _answer_directory(self, head: Mapping[str, Any]) -> Head:
        where = head["ino"], head["parent"], data(head["name"])
        match head["op"]:
            case "push_made":
                await self._directories.made(*where, data(head["key"]), new=head["new"])
            case "push_renaming":
                return {"ready": await self._renaming(*where, head["top"])}
            case _:
                await self._directories.renamed(*where, data(head["key"]), data(head["goal"]))
        return {}

    def _projection(self, number: int) -> Projection:
        projection = self._projections.get(number)
        if projection is None:
            raise errors.Missing("the projection has been taken away")
        return projection

    # --- finding -------------------------------------------------------------------------------

    async def _open(self, path: bytes) -> Head:
        top = find_path(self._tree, path)
        projection = self._projections.get(top.projection)
        if projection is None:
            raise errors.Unsupported(f"/{_shown(path)} lies in no projection: push what does")
        if not projection.row.writable:
            raise errors.Unsupported(
                f"/{_shown(path)} lies in a read-only projection: nothing was changed in it"
            )
        await self._writeback.commit()
        await adopt_hidden(self._tree, top.projection)
        await self._writeback.commit()
        key = b"" if top.ino == top.projection else None
        if top.ino != top.projection:
            key = key_of(
                self._tree, self._tree.inode(top.parent), top.name, self._tree.inode(top.ino)
            )
        options = json.loads(projection.row.options)
        return {
            "projection": top.projection,
            "top": top.ino,
            "url": projection.row.url,
            "options": {name: each for name, each in options.items() if name not in OWN_OPTIONS},
            "prefix": None if key is None else text(key),
            "mode": projection.row.mode,
        }

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

    async def _changes(self, head: Mapping[str, Any]) -> Head:
        projection, top, what = head["projection"], head["top"], head["what"]
        self._projection(projection)
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

    async def _gone(self, head: Mapping[str, Any]) -> Head:
        projection, tree = head["projection"], self._tree
        self._projection(projection)
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

    # --- one file ------------------------------------------------------------------------------

    async def _begin(self, head: Mapping[str, Any]) -> Head:
        ino, parent, name = head["ino"], head["parent"], data(head["name"])
        found = self._as_it_is(ino, parent, name)
        if found is None:
            await self._writeback.commit()  # a directory above has got another name
            found = self._as_it_is(ino, parent, name)
        if found is None:
            return {"change": None}
        return {"change": change_to_wire(found[0]._replace(token=self._watch.begin(ino)))}

    def _as_it_is(self, ino: int, parent: int, name: bytes) -> tuple[Change, frozenset[int]] | None:
        try:
            return self._change(self._tree.inode(ino).projection, ino, parent, name, {})
        except StaleHandle:
            return None

    async def _renaming(self, ino: int, parent: int, name: bytes, top: int) -> bool:
        found = self._as_it_is(ino, parent, name)
        if found is None or not (top in found[1] or ino == top):
            return False  # of a directory above the one that is pushed only the way is made
        return await self._directories.renaming(found[0])

    async def _read(self, head: Mapping[str, Any]) -> tuple[Head, bytes]:
        ino, token = head["ino"], head["token"]
        if not self._watch.unchanged(ino, token):
            return {"changed": True}, b""
        inode = self._tree.inode(ino)
        inode.opens += 1  # it stays in memory; nobody is told that it was closed
        try:
            data = await self._fs.reader.read_long(inode, head["offset"], head["length"])
        except fs_errors.RemoteVersionGone:
            raise errors.Changed(
                "the version that the local change is based on is not at the remote any more, and"
                " not all of it is here: write the whole file, or drop the change"
            ) from None
        finally:
            inode.opens -= 1
            self._tree.reap(inode)
        if len(data) < head["length"] or not self._watch.unchanged(ino, token):
            return {"changed": True}, b""
        return {"changed": False}, data

    async def _done(self, head: Mapping[str, Any]) -> bool:
        tree = self._tree
        ino, parent, name, key = head["ino"], head["parent"], data(head["name"]), data(head["key"])
        await self._writeback.room(0)
        if parent:
            await self._directories.no_listing(parent)
        # From here on nothing awaits.
        number = head["projection"]
        projection = self._projection(number)
        version = version_from_wire(head["version"])
        row = None if version is None else VersionRow(key, *_columns(version))
        if parent and (tree.find(parent, name) or (0, 0))[1] != ino:
            self._left(number, parent, name, key, version)
        try:
            inode = tree.inode(ino)
        except StaleHandle:
            return False
        if not inode.is_file:
            row = None
        if parent and (tree.find(parent, name) or (0, 0))[1] != ino:
            if row is not None and inode.nlink == 1:
                self._rebase(inode, row)
                tree.touch(inode)
            return False
        settle(tree, number, key, parent, name)
        unchanged = self._watch.unchanged(ino, head["token"])
        clean = unchanged and self._all_names(inode, parent, name, key, row, head["token"])
        old = tree.remote.versions.get(inode.base) if inode.base else None
        if row is not None and (inode.nlink == 1 or old is None or old.key == key):
            self._rebase(inode, row)
        if clean:
            inode.flags &= ~FLAG_LOCAL
            projection.conflicts.discard(ino)
            self._watch.end(ino)
            if inode.allocated:
                self._pushed(number)
            mtime_ns = head["mtime_ns"]
            if mtime_ns is not None and mtime_ns != inode.mtime_ns and not inode.is_dir:
                inode.mtime_ns = mtime_ns  # what a listing would show
                if tree.lookups.get(ino):
                    self._invalidator.inode(ino)
        tree.touch(inode)
        return clean

    def _left(
        self, projection: int, parent: int, name: bytes, key: bytes, version: Version | None
    ) -> None:
        """It has lost the name under which it was pushed: the remote has one too many now."""
        tree = self._tree
        columns = (UNKNOWN, "", 0) if version is None else _columns(version)
        tree.remote.gone.set((projection, key), GoneRow(parent, name, 0, *columns, None))
        if tree.find(parent, name) is None and tree.remote.dirs.get(parent) is not None:
            tree.remote.hidden.set((parent, name), True)
        self._watch.touch(projection)

    def _all_names(
        self,
        inode: Inode,
        parent: int,
        name: bytes,
        key: bytes,
        row: VersionRow | None,
        token: int,
    ) -> bool:
        """Whether a file is at the remote under each of its names: an inode shows one key only."""
        if inode.is_dir or inode.nlink == 1:
            return True
        names = self._linked.setdefault(inode.ino, {})
        names[parent, name] = token
        if sum(each == token for each in names.values()) < inode.nlink:
            if row is not None:
                self._tree.remote.gone.set(
                    (inode.projection, key),
                    GoneRow(parent, name, 0, row.size, row.etag, row.mtime_ns, None),
                )
            return False
        del self._linked[inode.ino]
        for above, each in names:
            directory = self._tree.remote.dirs.get(above)
            goal = goal_of(None if directory is None else directory.key, each, is_dir=False)
            if goal is not None:
                settle(self._tree, inode.projection, goal, above, each)
        return True

    def _rebase(self, inode: Inode, row: VersionRow) -> None:
        """Let the file show what the remote has now, below what was written here.

        As far as the old base shows, the new version has the same bytes at the same place: nothing
        else has to be known, and no block to be forgotten. What was written here stays here.
        """
        remote = self._tree.remote
        old = remote.versions.get(inode.base) if inode.base else None
        if old is not None:
            row = row._replace(pinned=old.pinned)
        if inode.base != inode.ino:
            inode.base, inode.base_end, inode.base_holes = inode.ino, 0, 0
        remote.versions.set(inode.ino, row)

    # --- what was taken away, and conflicts ------------------------------------------------------

    async def _forget(self, projection: int, key: bytes) -> None:
        row = self._tree.remote.gone.get((projection, key))
        if row is None:
            return
        await self._writeback.room(0)
        await self._directories.no_listing(row.parent)
        self._tree.remote.gone.set((projection, key), None)
        if self._tree.remote.hidden.get((row.parent, row.name)):
            self._tree.remote.hidden.set((row.parent, row.name), None)

    async def _own(self, ino: int) -> None:
        """Read what shows of the base, and write it where it still does."""
        tree = self._tree
        inode = tree.inode(ino)
        inode.opens += 1
        try:
            for start in range(0, inode.base_end, _READ_BYTES):
                end = min(start + _READ_BYTES, inode.base_end)
                if end <= start or not any(True for _ in self._bare(inode, start, end)):
                    continue
                block = bytes(await self._fs.reader.read(inode, start, end - start))
                await self._writeback.room(len(block))
                self._show(inode, start, block)
            if not inode.dead:
                self._watch.changed(inode)
                inode.base = inode.base_end = inode.base_holes = 0
                tree.touch(inode)
        except fs_errors.RemoteVersionGone:
            raise errors.Changed("the version that it is based on is gone") from None
        finally:
            inode.opens -= 1
            tree.reap(inode)

    def _bare(self, inode: Inode, start: int, end: int) -> list[tuple[int, int]]:
        end = min(end, inode.base_end)
        if end <= start:
            return []
        return list(gaps(self._tree.content(inode).extents(start, end), start, end))

    def _show(self, inode: Inode, start: int, block: bytes) -> None:
        content = self._tree.content(inode)
        for low, high in self._bare(inode, start, start + len(block)):
            unstored = content.unstored
            inode.allocated += content.write(low, block[low - start : high - start])
            self._tree.touch(inode)
            self._tree.touch_content(inode, unstored)
            self._writeback.written(inode, content)

    async def _aside(self, head: Mapping[str, Any]) -> None:
        """The local file gets another name, and shows nothing of the remote's any more."""
        tree = self._tree
        parent, name, new_name = head["parent"], data(head["name"]), data(head["new_name"])
        inode = tree.inode(head["ino"])
        if inode.is_file and inode.base:
            await self._own(head["ino"])
        key = None
        row = tree.remote.dirs.get(parent)
        if row is not None:
            key = goal_of(row.key, name, is_dir=inode.is_dir)
        try:
            if (tree.find(parent, name) or (0, 0))[1] != head["ino"]:
                return
            self._fs.rename(parent, name, parent, new_name, RENAME_NOREPLACE)
        except AlreadyExists:
            raise errors.Exists(f"{_shown(new_name)} is there already") from None
        except NotFound:
            return
        if inode.is_dir:
            tree.remote.dirs.set(inode.ino, None)
        tree.remote.hidden.set((parent, name), None)
        if key is not None:
            forget_gone(tree, inode.projection, key)
        directory = tree.inode(parent)
        if tree.lookups.get(parent):
            for each in (name, new_name):
                self._invalidator.name(parent, each)
        self._listings.expire(directory)
        await self._writeback.commit()

    async def _theirs(self, head: Mapping[str, Any]) -> None:
        projection = self._projection(head["projection"])
        root = await self._paths.path_of(projection.row.id)
        with suppress(NotFound):
            await self._reverter.revert(joined(root, data(head["path"])))
        if head["key"] is not None:
            forget_gone(self._tree, head["projection"], data(head["key"]))
        await self._writeback.commit()


def _columns(version: Version) -> tuple[int, str, int]:
    return version.size, version.etag, version.mtime_ns


def _is_below(key: bytes, prefix: bytes) -> bool:
    return not prefix or key == prefix or key.startswith(prefix.removesuffix(b"/") + b"/")


def _wanted(what: str, change: Change) -> bool:
    is_dir = change.kind is NodeKind.DIRECTORY
    if what == "directories":
        return is_dir
    return not is_dir and (what == "files" or (change.moved and change.kind is NodeKind.FILE))


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
