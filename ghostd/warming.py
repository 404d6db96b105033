"""Works that fetch ahead: everything below some paths, for `warm` and `pin`.

A work walks the paths, listing what is not listed yet, and asks the fetcher for the blocks that are
not here, a few windows of neighbouring blocks at a time. It never fails over one file; it gives up
when the remote has refused many in a row. Stopping cancels it: what is on its way is given up, what
has come stays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from blockstore.errors import OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.facade import printable_path
from ghostd.fetch_plan import Priority
from ghostd.fetcher import Fetcher
from ghostd.inodes import FLAG_PINNED
from ghostd.listing_walk import ListingWalk, look_up
from ghostd.listings import Listings
from ghostd.projection import Projection
from ghostd.projection_facade import WorkError, WorkList, WorkProgress
from ghostd.remote_rows import PART_BLOCKS, VersionRow
from ghostd.residency import part_blocks, shown_of_blocks
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, still_there
from ghostd.writeback import Writeback, first_error
from orbit_paths import path_to_text

KINDS: Final = ("warm", "pin")
RUNNING_MAX: Final = 8
REMEMBERED_MAX: Final = 20  # works that have ended
_FEW: Final = 8  # blocks that the store is asked for in the loop: cheaper than a thread
_WINDOW_BYTES: Final = 8 << 20  # of neighbouring blocks: one request
_WINDOWS_MAX: Final = 32  # of one work: keeps the slots of a remote busy, also with small files
_ERRORS_MAX: Final = 10  # that are remembered
_FAILURES_MAX: Final = 50  # in a row; then the rest would fail as well
_DIRTY_ROWS_MAX: Final = 20_000


class NoWork(OrbitError):
    """No work of that number is remembered."""


class TooManyWorks(OrbitError):
    """As many works run as may."""


class _GivesUp(OrbitError):
    """So many files have failed that the others are not tried."""


@dataclass(slots=True)
class _File:
    """A file of which some windows are on their way."""

    path: bytes
    windows: int = 1  # one stands for the search for others
    failed: bool = False


class Work:
    """One warm-up or pin, and how far it is."""

    def __init__(self, number: int, kind: str, paths: Sequence[bytes]) -> None:
        self.number = number
        self.kind = kind
        self.paths = tuple(path_to_text(path) for path in paths)
        self.priority = Priority.PIN if kind == "pin" else Priority.WARM_UP
        self.scope = trio.CancelScope()
        self.windows = trio.Semaphore(_WINDOWS_MAX)
        self.ended = trio.Event()
        self.state = "running"
        self.reason = ""
        self.listed = False
        self.files = self.files_done = 0
        self.bytes = self.bytes_done = self.bytes_fetched = 0
        self.errors = 0
        self.last_errors: deque[WorkError] = deque(maxlen=_ERRORS_MAX)
        self.failures_in_row = 0
        self.current = b""
        self._began = time.monotonic()
        self._seconds: float | None = None

    def end(self, state: str, reason: str = "") -> None:
        """It is over."""
        self.state, self.reason = state, reason
        self.current = b""
        self._seconds = time.monotonic() - self._began
        self.ended.set()

    def failed(self, path: bytes, error: OrbitError) -> None:
        """Something could not be fetched. Raises _GivesUp."""
        self.errors += 1
        self.last_errors.append(WorkError(path_to_text(path), str(error)))
        self.failures_in_row += 1
        if self.failures_in_row >= _FAILURES_MAX:
            raise _GivesUp(f"{self.failures_in_row} failures in a row, the last one: {error}")

    def progress(self) -> WorkProgress:
        """As of now; from any thread."""
        seconds = self._seconds
        return WorkProgress(
            id=self.number,
            kind=self.kind,
            paths=self.paths,
            state=self.state,
            listed=self.listed,
            files=self.files,
            files_done=self.files_done,
            bytes=self.bytes,
            bytes_done=self.bytes_done,
            bytes_fetched=self.bytes_fetched,
            errors=self.errors,
            last_errors=tuple(self.last_errors),
            current=path_to_text(self.current),
            reason=self.reason,
            seconds=time.monotonic() - self._began if seconds is None else seconds,
        )


class Works:
    """All works. Owned by the filesystem's loop; `all` and `get` are for any thread."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        store: BlockStore,
        threads: Threads,
        listings: Listings,
        fetcher: Fetcher,
        projection_of: Callable[[int], Projection | None],
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._store = store
        self._threads = threads
        self._listings = listings
        self._fetcher = fetcher
        self._projection_of = projection_of
        self._works: dict[int, Work] = {}  # in the order of their numbers
        self._last = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the works until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- steering ------------------------------------------------------------------------------

    async def start(self, kind: str, paths: Sequence[bytes]) -> Work:
        """Begin a work. Raises NotFound, NotADirectory, RemoteError, TooManyWorks."""
        assert kind in KINDS
        # A wrong path is told at once, not by a work that failed.
        tops = [await look_up(self._tree, self._listings, path) for path in paths]
        running = sum(work.state == "running" for work in self._works.values())
        if running >= RUNNING_MAX or self._nursery is None:
            raise TooManyWorks(f"{running} works are running: wait for one, or stop one")
        self._last += 1
        work = self._works[self._last] = Work(self._last, kind, paths)
        self._nursery.start_soon(self._do, work, tops)
        return work

    async def stop(self, number: int) -> Work:
        """End a work; what it has fetched stays. Raises NoWork."""
        work = self.get(number)
        work.scope.cancel()
        await work.ended.wait()
        return work

    def get(self, number: int) -> Work:
        """A work by its number. Raises NoWork."""
        work = self._works.get(number)
        if work is None:
            raise NoWork(f"there is no work {number}; see orbit-ctl works")
        return work

    def all(self) -> WorkList:
        """All that are remembered, newest first."""
        return WorkList(tuple(work.progress() for work in reversed([*self._works.values()])))

    def _forget_oldest(self) -> None:
        ended = [number for number, work in self._works.items() if work.state != "running"]
        for number in ended[: max(0, len(ended) - REMEMBERED_MAX)]:
            del self._works[number]

    # --- working -------------------------------------------------------------------------------

    async def _do(self, work: Work, tops: Sequence[Seen]) -> None:
        state, reason = "stopped", ""
        try:
            with work.scope:
                try:
                    await self._fetch_all(work, tops)
                    state = "done"
                except* OrbitError as group:
                    state, reason = "failed", str(first_error(group))
        finally:
            work.end(state, reason)
            self._forget_oldest()

    async def _fetch_all(self, work: Work, tops: Sequence[Seen]) -> None:
        async with trio.open_nursery() as nursery:

            async def visit(entry: Seen) -> None:
                try:
                    await self._fetch_file(work, entry, nursery)
                except OrbitError as error:  # it went away meanwhile, or the disk failed
                    work.failed(entry.path, error)

            walk = ListingWalk(
                self._tree,
                self._listings,
                visit=visit,
                failed=lambda directory, error: work.failed(directory.path, error),
                entered=lambda directory: self._pin_directory(work, directory),
            )
            await walk.run(tops)
            work.listed = True
        await self._fetcher.stored()
        if work.kind == "pin":
            await self._writeback.commit()

    async def _fetch_file(self, work: Work, entry: Seen, nursery: trio.Nursery) -> None:
        if not entry.is_file:
            return
        file = _File(entry.path)
        work.files += 1
        work.bytes += entry.size
        row = self._tree.remote.versions.get(entry.base) if entry.base else None
        projection = self._projection_of(entry.projection)
        here = projection is not None and projection.stored is not None
        if row is None or projection is None or here or not still_there(self._tree, entry):
            work.bytes_done += entry.size
            self._one_less(work, file)
            return
        if work.kind == "pin" and not row.pinned:
            # Before anything is fetched: eviction does not take it away again.
            row = row._replace(pinned=1)
            self._tree.remote.versions.set(entry.base, row)
            if self._tree.dirty_ops > _DIRTY_ROWS_MAX:
                await self._writeback.commit()
        work.bytes_done += entry.size - entry.base_end
        size = projection.row.block_bytes
        blocks = -(-entry.base_end // size)
        for part in range(-(-blocks // PART_BLOCKS)):
            numbers = range(part * PART_BLOCKS, min((part + 1) * PART_BLOCKS, blocks))
            missing = await self._missing(work, entry, part, numbers, size)
            for window in _windows(missing, max(1, _WINDOW_BYTES // size)):
                await work.windows.acquire()
                if file.failed:  # the rest of it would fail as well
                    work.windows.release()
                    self._one_less(work, file)
                    return
                file.windows += 1
                nursery.start_soon(self._fetch, work, file, projection, entry, row, window)
        self._one_less(work, file)

    def _pin_directory(self, work: Work, entry: Seen) -> None:
        """What comes into it from now on is pinned, too."""
        if work.kind == "pin" and entry.projection and still_there(self._tree, entry):
            inode = self._tree.inode(entry.ino)
            if not inode.flags & FLAG_PINNED:
                inode.flags |= FLAG_PINNED
                self._tree.touch(inode)

    async def _missing(
        self, work: Work, entry: Seen, part: int, numbers: range, size: int
    ) -> list[int]:
        """The blocks of a part that have to be fetched; the others are counted as done."""
        known = dict(part_blocks(self._tree, entry.base, part))
        names = list(known.values())
        if len(names) <= _FEW:
            resident = self._store.resident(names)
            await trio.lowlevel.checkpoint()
        else:
            resident = await self._threads.run("read", self._store.resident, names)
        if not names:
            here = set()
        elif not still_there(self._tree, entry):
            return []
        else:
            here = {number for number, is_here in zip(known, resident, strict=True) if is_here}
            for number in known.keys() - here:
                self._forget_block(entry.base, number, known[number])
        shown = shown_of_blocks(self._tree, entry, numbers, size)
        missing = [number for number, count in shown if count and number not in here]
        work.bytes_done += sum(self._length(entry, number, size) for number in numbers)
        work.bytes_done -= sum(self._length(entry, number, size) for number in missing)
        return missing

    def _forget_block(self, version: int, number: int, name: ChunkId) -> None:
        if self._tree.remote.block(version, number) == name:
            self._tree.remote.set_block(version, number, None)

    @staticmethod
    def _length(entry: Seen, number: int, size: int) -> int:
        return min(size, entry.base_end - number * size)

    async def _fetch(
        self,
        work: Work,
        file: _File,
        projection: Projection,
        entry: Seen,
        row: VersionRow,
        numbers: Sequence[int],
    ) -> None:
        work.current = entry.path
        try:
            await self._fetcher.demand(projection, entry.base, row, numbers, work.priority)
            self._check_kept(entry, numbers)
            count = sum(self._length(entry, n, projection.row.block_bytes) for n in numbers)
            work.bytes_done += count
            work.bytes_fetched += count
            work.failures_in_row = 0
        except _GivesUp:
            raise
        except OrbitError as error:
            if not file.failed:
                file.failed = True
                work.failed(entry.path, error)
        finally:
            work.windows.release()
            self._one_less(work, file)

    def _check_kept(self, entry: Seen, numbers: Sequence[int]) -> None:
        """Blocks that were fetched but not kept: nothing more would be."""
        if any(self._tree.remote.block(entry.base, number) is None for number in numbers):
            raise _GivesUp(
                f"{printable_path(entry.path)}: the cache has no room for it; evict or unpin"
                " something, or allow the cache more space"
            )

    @staticmethod
    def _one_less(work: Work, file: _File) -> None:
        file.windows -= 1
        if not file.windows and not file.failed:
            work.files_done += 1


def _windows(numbers: Sequence[int], most: int) -> list[list[int]]:
    """Runs of neighbouring blocks, of `most` at most."""
    found: list[list[int]] = []
    for number in numbers:
        if found and len(found[-1]) < most and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found
