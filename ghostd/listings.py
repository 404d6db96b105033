"""Remote directories in the namespace: listed on first use, kept with their age, listed again.

One flight for each directory. Entries come in pages and are made into inodes as they arrive, so
that `readdir` shows the beginning of a large directory while its end is still on the way. What
differs from the last listing is replaced by a new inode: an inode is one version of a remote file,
and who has the old one open goes on reading that version or is told ESTALE. Entries vanish only
after a complete listing that lacks them; names that were changed here (FLAG_LOCAL) are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from blockstore.errors import OrbitError
from ghostd.inodes import FLAG_LOCAL, Inode, LookupCounts
from ghostd.listed_entries import ListedEntries
from ghostd.projection import Projection
from ghostd.remote_names import local_name
from ghostd.remote_rows import DirRow
from ghostd.tree import Tree
from ghostd.writeback import Writeback
from syncer.remotes.errors import Missing, RemoteError, Unreachable, Unsupported
from syncer.remotes.remote import Entry, Kind, Page

log = structlog.get_logger(__name__)

_SLICE = 50  # entries between two looks at the loop: about 2 ms
_DIRTY_ROWS_MAX = 20_000  # of a listing under way; then it waits for a commit
_ALONE_MAX = 2  # names of a directory asked for one by one before it is listed whole
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
        self._entries = ListedEntries(tree, invalidate, remove)
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
        return ino in self._flights and not self._entries.is_listed(ino)

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
            if self.age_left_s(directory) <= 0 and self._entries.is_listed(ino):
                await self.fresh(directory)
            return
        asked = self._alone.get(ino, 0)
        if self._entries.is_listed(ino) or ino in self._flights or asked >= _ALONE_MAX:
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
        seen = LookupCounts()
        name = local_name(entry.name, False, ())
        assert name is not None, "nothing was taken"
        if (found := self._tree.find(ino, name)) is not None:
            # `a` and `a/` of an object store: shown both, so the name alone does not tell.
            other = local_name(entry.name, False, (name,))
            if other is not None and self._tree.find(ino, other) is not None:
                seen.add(found[1])
                name = other
        if not self._entries.apply(directory, projection, (entry,), seen):
            self.expire(directory)
        found = self._tree.find(ino, name)
        under_way = self._flights.get(ino)
        if under_way is not None and found is not None:
            under_way.seen.add(found[1])  # newer than what it may still say

    def _is_remote(self, directory: Inode) -> bool:
        """The directory is there, and has not become one of ours while the remote was asked."""
        return directory.nlink > 0 and self._tree.remote.dirs.get(directory.ino) is not None

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
                part = page[at : at + _SLICE]
                if not self._entries.apply(directory, projection, part, flight.seen):
                    flight.again = True
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
            await self._entries.remove_unseen(directory, flight.seen)
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
