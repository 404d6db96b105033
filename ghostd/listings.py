"""Remote directories in the namespace: listed on first use, kept with their age, listed again.

One flight for each directory. Entries come in pages and are made into inodes as they arrive, so
that `readdir` shows the beginning of a large directory while its end is still on the way. What
differs from the last listing is replaced by a new inode: an inode is one version of a remote file,
and who has the old one open goes on reading that version or is told ESTALE. Entries vanish only
after a complete listing that lacks them; names that were changed here (FLAG_LOCAL) are left alone.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from blockstore.errors import OrbitError
from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, Inode, LookupCounts
from ghostd.projection import Projection, show_as_was
from ghostd.remote_names import local_name
from ghostd.remote_rows import DirRow, VersionRow
from ghostd.tree import Tree
from ghostd.writeback import Writeback
from syncer.remotes.errors import Missing, RemoteError, Unreachable, Unsupported
from syncer.remotes.remote import Entry, Kind, Page

log = structlog.get_logger(__name__)

_SLICE = 50  # entries between two looks at the loop: about 2 ms
_DIRTY_ROWS_MAX = 20_000  # of a listing under way; then it waits for a commit
_ALONE_MAX = 2  # names of a directory asked for one by one before it is listed whole
_DIRECTORY_MODE = 0o755  # where the remote knows none
_FILE_MODE = 0o644
_REMOVE_PAGE = 500
_MODES = {
    Kind.DIRECTORY: stat.S_IFDIR | _DIRECTORY_MODE,
    Kind.SYMLINK: stat.S_IFLNK | 0o777,
    Kind.FILE: stat.S_IFREG | _FILE_MODE,
}
_EXPIRED_NS = 1  # `listed_ns` of a directory that is to be listed again


@dataclass(frozen=True, slots=True)
class ListingOptions:
    """How long a listing is waited for."""

    deadline_s: float = 30.0  # without any progress
    stale_wait_s: float = 2.0  # then an old listing is shown


class _Flight:
    """One listing on its way, and the inodes that it has shown so far."""

    __slots__ = ("again", "done", "error", "late", "moving", "progress", "seen")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.progress = trio.Event()
        self.error: OrbitError | None = None
        self.seen = LookupCounts()
        self.moving = False  # entries have come
        self.late = False  # somebody has waited in vain: nobody else has to
        self.again = False  # something could not be shown yet: the listing is old at once

    def advance(self) -> None:
        """More entries are there: wake those who wait for some."""
        self.moving = True
        self.progress.set()
        self.progress = trio.Event()


class Listings:
    """Brings remote directories into the tree. Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        projection_of: Callable[[int], Projection | None],
        *,
        now_ns: Callable[[], int],
        invalidate: Callable[[int, bytes], None],
        remove: Callable[[Inode, Inode, bytes], None],
        options: ListingOptions,
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._projection_of = projection_of
        self._now_ns = now_ns
        self._invalidate = invalidate
        self._remove = remove  # (directory, inode, name): take a name away for good
        self._options = options
        self._flights: dict[int, _Flight] = {}
        self._alone: dict[int, int] = {}  # directory → names asked for one by one
        self._nursery: trio.Nursery | None = None
        self.listed = 0  # complete listings of this run
        self.listed_entries = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the listings until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- asking --------------------------------------------------------------------------------

    def age_left_s(self, directory: Inode) -> float:
        """How much longer the listing may be shown unasked; infinite outside of projections."""
        if not directory.projection:
            return math.inf
        row = self._tree.remote.dirs.get(directory.ino)
        projection = self._projection_of(directory.projection)
        if row is None or projection is None:
            return math.inf
        if not row.listed_ns:
            return 0.0
        age_s = (self._now_ns() - row.listed_ns) / 1e9
        if age_s < 0:  # the clock went back
            return 0.0
        return max(0.0, projection.ttl_s - age_s)

    def shown_s(self, directory: Inode) -> float:
        """How long the kernel may show a name that is in the directory.

        What has just come in a listing that has not ended is as fresh as it will be; what is old
        and cannot be renewed is not asked for with every step of a walk.
        """
        left_s = self.age_left_s(directory)
        projection = self._projection_of(directory.projection)
        if left_s > 0 or projection is None:
            return left_s
        return projection.ttl_s if self.under_way(directory.ino) else min(1.0, projection.ttl_s)

    def under_way(self, ino: int) -> bool:
        """A first listing of the directory is on its way.

        One that is to replace an older listing does not count: that one is shown whole meanwhile.
        """
        return ino in self._flights and not self._listed(ino)

    def awaited(self, ino: int) -> bool:
        """The directory is being listed: requests may wait for it."""
        return ino in self._flights

    async def fresh(self, directory: Inode, *, whole: bool = True, patient: bool = False) -> None:
        """Return when the directory may be looked into.

        With `whole` false, a first listing need not have ended: see `more`. Raises RemoteError
        where nothing is known of it and the remote does not tell; where something is known, only
        who is `patient` waits for longer than a moment, and is told.
        """
        if self.age_left_s(directory) > 0:
            return
        row = self._tree.remote.dirs.get(directory.ino)
        assert row is not None
        flight = self._start(directory)
        if row.listed_ns and not patient:
            if not flight.late:
                with trio.move_on_after(self._options.stale_wait_s) as waiting:
                    await flight.done.wait()
                flight.late = waiting.cancelled_caught
                if flight.late and not flight.moving:
                    self._silent(directory)
            return  # a failure is told by `status`; the old listing is shown
        if whole:
            while not flight.done.is_set():
                await self._progress(flight, directory)
        if flight.error is not None:
            raise flight.error

    async def more(self, directory: Inode) -> bool:
        """Wait until more entries than before are there; False when the listing is complete."""
        flight = self._flights.get(directory.ino)
        if flight is None:
            return False
        await self._progress(flight, directory)
        if flight.error is not None:
            raise flight.error
        return True

    async def _progress(self, flight: _Flight, directory: Inode) -> None:
        if flight.done.is_set():
            return
        with trio.move_on_after(self._options.deadline_s):
            await flight.progress.wait()
            return
        projection = self._projection_of(directory.projection)
        where = "the remote" if projection is None else projection.url
        error = Unreachable(
            f"{where} has not answered for {self._options.deadline_s:g} s; the listing goes on,"
            " try again"
        )
        if projection is not None:
            projection.failed(error)
        raise error

    def _silent(self, directory: Inode) -> None:
        """An old listing is shown although its renewal may yet succeed: `status` says so now."""
        projection = self._projection_of(directory.projection)
        if projection is not None and not projection.stale:
            projection.failed(
                Unreachable(
                    f"{projection.url} has not answered for {self._options.stale_wait_s:g} s;"
                    " it goes on being asked"
                ),
                stale=True,
            )

    def _start(self, directory: Inode) -> _Flight:
        flight = self._flights.get(directory.ino)
        if flight is None:
            assert self._nursery is not None
            flight = self._flights[directory.ino] = _Flight()
            directory.opens += 1  # it stays in memory meanwhile
            self._nursery.start_soon(self._fly, directory, flight)
        return flight

    def expire(self, directory: Inode) -> None:
        """The next look asks the remote again; what is known stays shown until it answers."""
        row = self._tree.remote.dirs.get(directory.ino)
        if row is not None and row.listed_ns:
            self._tree.remote.dirs.set(directory.ino, row._replace(listed_ns=_EXPIRED_NS))

    # --- one name ------------------------------------------------------------------------------

    async def find(self, directory: Inode, name: bytes) -> None:
        """Return when `name` may be looked up.

        The first names of a directory that was never listed are asked for one by one: who opens
        one file by its path need not wait for the listing of a large directory.
        """
        ino = directory.ino
        if self.age_left_s(directory) > 0 or self._tree.find(ino, name) is not None:
            if self.age_left_s(directory) <= 0 and self._listed(ino):
                await self.fresh(directory)
            return
        asked = self._alone.get(ino, 0)
        if self._listed(ino) or ino in self._flights or asked >= _ALONE_MAX:
            await self.fresh(directory)
            return
        projection = self._projection_of(directory.projection)
        row = self._tree.remote.dirs.get(ino)
        if local_name(name, False, ()) != name or projection is None or row is None:
            await self.fresh(directory)
            return
        self._alone[ino] = asked + 1
        try:
            with trio.fail_after(self._options.deadline_s):
                entry = await projection.remote.stat(row.key + name)
        except Missing:
            return
        except Unsupported:
            await self.fresh(directory)
            return
        except trio.TooSlowError:
            error = Unreachable(
                f"{projection.url} has not answered for {self._options.deadline_s:g} s; try again"
            )
            projection.failed(error)
            raise error from None
        except RemoteError as error:
            projection.failed(error)
            raise
        if entry.name == name and self._tree.find(ino, name) is None:
            self._apply_one(ino, projection, entry)

    async def renew(self, projection: Projection, key: bytes) -> None:
        """Look at one file again, which was found changed or gone."""
        parts = key.split(b"/")
        ino = projection.row.id
        for part in parts[:-1]:
            local = local_name(part, True, ())
            found = None if local is None else self._tree.find(ino, local)
            if found is None:
                return  # moved here: the version it shows is gone, and no name leads to a new one
            ino = found[1]
        directory = self._tree.inode(ino)
        row = self._tree.remote.dirs.get(ino)
        if row is None or row.key != b"".join(part + b"/" for part in parts[:-1]):
            return  # likewise: another directory is here under its name
        try:
            entry = await projection.remote.stat(key)
        except Missing:
            self.expire(directory)
            await self.fresh(directory)
            return
        if entry.key == key:
            self._apply_one(ino, projection, entry)
        else:  # a directory now
            directory = self._tree.inode(ino)
            self.expire(directory)
            await self.fresh(directory)

    def _apply_one(self, ino: int, projection: Projection, entry: Entry) -> None:
        """Bring one entry, asked for by itself, into the directory of this number."""
        directory = self._tree.inode(ino)  # it may have left memory meanwhile
        if not self._is_remote(directory):
            return
        alone = _Flight()
        name = local_name(entry.name, False, ())
        assert name is not None, "nothing was taken"
        if (found := self._tree.find(ino, name)) is not None:
            # `a` and `a/` of an object store: shown both, so the name alone does not tell.
            other = local_name(entry.name, False, (name,))
            if other is not None and self._tree.find(ino, other) is not None:
                alone.seen.add(found[1])
                name = other
        self._apply(directory, projection, (entry,), alone)
        if alone.again:
            self.expire(directory)
        found = self._tree.find(ino, name)
        under_way = self._flights.get(ino)
        if under_way is not None and found is not None:
            under_way.seen.add(found[1])  # newer than what it may still say

    def _is_remote(self, directory: Inode) -> bool:
        """The directory is there, and has not become one of ours while the remote was asked."""
        return directory.nlink > 0 and self._tree.remote.dirs.get(directory.ino) is not None

    def _listed(self, ino: int) -> bool:
        row = self._tree.remote.dirs.get(ino)
        return row is not None and row.listed_ns > 0

    # --- listing -------------------------------------------------------------------------------

    async def _fly(self, directory: Inode, flight: _Flight) -> None:
        projection = self._projection_of(directory.projection)
        try:
            if projection is not None:
                await self._list(directory, projection, flight)
                projection.succeeded()
        except OrbitError as error:
            flight.error = error
            assert projection is not None
            row = self._tree.remote.dirs.get(directory.ino)
            key = b"" if row is None else row.key
            projection.failed(error, stale=row is not None and row.listed_ns > 0)
            log.warning(
                "a directory could not be listed",
                remote=projection.url,
                key=key.decode(errors="backslashreplace"),
                error=str(error),
            )
        finally:
            directory.opens -= 1
            self._tree.reap(directory)
            del self._flights[directory.ino]
            self._alone.pop(directory.ino, None)
            flight.done.set()
            flight.advance()

    async def _list(self, directory: Inode, projection: Projection, flight: _Flight) -> None:
        row = self._tree.remote.dirs.get(directory.ino)
        if row is None:
            return  # it has become one of ours since it was asked for
        began = self._now_ns()
        known = directory.children > 0

        async def sink(page: Page) -> None:
            for at in range(0, len(page), _SLICE):
                if not self._is_remote(directory):
                    return
                self._apply(directory, projection, page[at : at + _SLICE], flight)
                await trio.lowlevel.checkpoint()
            self.listed_entries += len(page)
            flight.advance()
            if self._tree.dirty_ops > _DIRTY_ROWS_MAX:
                await self._writeback.commit()

        try:
            await projection.remote.list(row.key, sink)
        except (Missing, Unsupported):
            if not await self._left_alone(directory, projection, row.key):
                raise
            flight.seen = LookupCounts()
        if not self._is_remote(directory):
            return
        if known:
            await self._remove_unseen(directory, flight.seen)
        # Unless it was told to be listed again meanwhile.
        if self._tree.remote.dirs.get(directory.ino) == row:
            self._tree.remote.dirs.set(
                directory.ino, DirRow(row.key, _EXPIRED_NS if flight.again else began)
            )
        self.listed += 1

    @staticmethod
    async def _left_alone(directory: Inode, projection: Projection, key: bytes) -> bool:
        """Whether a directory lives on here only: moved or changed, and gone from the remote.

        What of it was not changed here is gone then. A root is a mistake of somebody's, or a disk
        that is not mounted over there: that removes nothing.
        """
        if not directory.flags & FLAG_LOCAL or directory.ino == projection.row.id:
            return False
        try:
            return (await projection.remote.stat(key)).kind is not Kind.DIRECTORY
        except Missing:
            return True

    def _apply(self, directory: Inode, projection: Projection, page: Page, flight: _Flight) -> None:
        """Bring some entries of a listing into the tree; no await inside."""
        tree = self._tree
        seen = flight.seen
        ino = directory.ino
        for entry in page:
            is_dir = entry.kind is Kind.DIRECTORY
            name = local_name(entry.name, is_dir, ())
            assert name is not None, "nothing was taken"
            found = tree.find(ino, name)
            linked = entry.as_was is not None and entry.as_was.link
            if found is not None and seen.get(found[1]) and not linked:
                # `a` and `a/` of an object store: the second one is shown by another name.
                name = local_name(entry.name, is_dir, (name,))
                found = None if name is None else tree.find(ino, name)
                if found is not None and seen.get(found[1]):
                    name = None
            shown = (entry.kind is not Kind.OTHER or entry.as_was is not None) and not (
                entry.kind is Kind.SYMLINK and entry.target is None
            )
            if name is None or not shown:
                projection.left_out += 1
                continue
            if projection.row.writable and tree.remote.hidden.get((ino, name)):
                continue
            if found is None:
                self._add(projection, directory, name, entry, flight)
                continue
            seen.add(found[1])
            inode = tree.inode(found[1])
            if inode.flags & FLAG_LOCAL:
                self._note_conflict(projection, inode, entry)
            elif self._same(inode, entry):
                self._renew(projection, inode, entry)
            elif inode.is_dir:
                self._remove(directory, inode, name)
                if tree.find(ino, name) is None:
                    self._add(projection, directory, name, entry, flight)
                else:
                    # What is below it goes first, in the background; until then it is shown.
                    flight.again = True
            else:
                seen.add(self._replace(projection, directory, name, found, inode, entry))

    def _add(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        entry: Entry,
        flight: _Flight,
    ) -> None:
        inode = self._linked(projection, entry) or self._make(projection, directory, entry)
        self._tree.set_name(directory.ino, name, inode.ino)
        directory.children += 1
        directory.nlink += inode.is_dir
        self._tree.touch(directory)
        flight.seen.add(inode.ino)
        if self._listed(directory.ino):  # else the kernel was never told that there is nothing
            self._invalidate(directory.ino, name)

    def _same(self, inode: Inode, entry: Entry) -> bool:
        if entry.kind is Kind.DIRECTORY:
            return inode.is_dir
        if entry.kind is Kind.SYMLINK:
            return inode.target == entry.target
        exact = entry.as_was
        if exact is not None:
            if (stat.S_IFMT(inode.mode), inode.rdev) != (exact.format, exact.rdev):
                return False
            if entry.kind is Kind.OTHER:
                return True
        row = self._tree.remote.versions.get(inode.base)
        linked = exact is not None and exact.link  # the key is that of another of its names
        if row is None or not inode.is_file or (row.key != entry.key and not linked):
            return False
        if not entry.exact:
            # The row may know more by now: compare with what was shown from the last listing.
            shown = inode.mtime_ns if entry.mtime_ns is None else entry.mtime_ns
            return (row.size, inode.mtime_ns) == (entry.size, shown)
        return row.version == entry.version

    def _make(self, projection: Projection, directory: Inode, entry: Entry) -> Inode:
        attributes = projection.attributes(entry)
        tree = self._tree
        exact = entry.as_was
        if entry.kind is Kind.OTHER:
            assert exact is not None, "other remotes' are not shown"
            kind = exact.format | _FILE_MODE
        else:
            kind = _MODES[entry.kind]
        mode = stat.S_IFMT(kind) | (stat.S_IMODE(kind) if entry.mode is None else entry.mode)
        is_dir = entry.kind is Kind.DIRECTORY
        inode = tree.new_inode(
            mode=mode,
            uid=attributes.uid,
            gid=attributes.gid,
            nlink=2 if is_dir else 1,
            rdev=0 if exact is None else exact.rdev,
            parent=directory.ino if is_dir else 0,
            target=entry.target if entry.kind is Kind.SYMLINK else None,
            now_ns=attributes.mtime_ns,
            projection=projection.row.id,
        )
        if exact is not None:
            show_as_was(tree, inode, exact)
        if entry.atime_ns is not None:
            inode.atime_ns = entry.atime_ns
        if is_dir:
            tree.remote.dirs.set(inode.ino, DirRow(entry.key, 0))
        elif entry.kind is Kind.FILE:
            inode.base = inode.ino
            inode.size = inode.base_end = entry.size
            tree.remote.versions.set(inode.ino, _version_row(entry))
        return inode

    def _linked(self, projection: Projection, entry: Entry) -> Inode | None:
        """The inode that another name of the same file has already."""
        exact = entry.as_was
        if exact is None or not exact.link or entry.kind is Kind.DIRECTORY:
            return None
        tree = self._tree
        ino = tree.remote.links.get((projection.row.id, exact.link))
        if ino is None:
            return None
        try:
            inode = tree.inode(ino)
        except StaleHandle:
            return None
        if not inode.nlink:
            return None
        inode.nlink += not exact.nlink
        tree.touch(inode)
        return inode

    def _renew(self, projection: Projection, inode: Inode, entry: Entry) -> None:
        attributes = projection.attributes(entry)
        mode = inode.mode
        if entry.mode is not None:
            mode = stat.S_IFMT(mode) | entry.mode
        new = (mode, attributes.uid, attributes.gid, attributes.mtime_ns)
        if new == (inode.mode, inode.uid, inode.gid, inode.mtime_ns):
            return
        inode.mode, inode.uid, inode.gid, inode.mtime_ns = new
        inode.ctime_ns = attributes.mtime_ns
        self._tree.touch(inode)

    def _replace(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        found: tuple[int, int],
        old: Inode,
        entry: Entry,
    ) -> int:
        """The remote has another version, or another kind of thing, under the name of a file."""
        inode = self._make(projection, directory, entry)
        if old.base:
            row = self._tree.remote.versions.get(old.base)
            new = self._tree.remote.versions.get(inode.base) if inode.base else None
            if row is not None and row.pinned and new is not None:
                self._tree.remote.versions.set(inode.base, new._replace(pinned=1))
        self._tree.set_name(directory.ino, name, inode.ino, found[0])
        directory.nlink += inode.is_dir
        self._tree.touch(directory)
        self._tree.unlinked(old)
        self._invalidate(directory.ino, name)
        return inode.ino

    def _note_conflict(self, projection: Projection, inode: Inode, entry: Entry) -> None:
        if not inode.base or entry.kind is not Kind.FILE:
            return
        row = self._tree.remote.versions.get(inode.base)
        if row is not None and row.key == entry.key and row.version != entry.version:
            projection.note_conflict(inode.ino)

    async def _remove_unseen(self, directory: Inode, seen: LookupCounts) -> None:
        """What a complete listing lacks is gone, unless it was made or changed here."""
        tree = self._tree
        after = 0
        while directory.nlink:
            page = list(tree.list_page(directory.ino, after, tree.next_cookie, _REMOVE_PAGE))
            if not page:
                return
            after = page[-1][0]
            for _, name, inode, row in page:
                number = inode.ino if inode is not None else row[2]  # type: ignore[index]
                if seen.get(number):  # type: ignore[arg-type]
                    continue
                found = tree.find(directory.ino, name)
                if found is None or found[1] != number:
                    continue
                gone = tree.inode(found[1])
                if not gone.flags & FLAG_LOCAL:
                    self._remove(directory, gone, name)
            await trio.lowlevel.checkpoint()


def _version_row(entry: Entry) -> VersionRow:
    version = entry.version
    return VersionRow(entry.key, version.size, version.etag, version.mtime_ns)
