"""Brings blocks of remote files into the store: one flight for each, however many wait for it.

What is wanted goes into the plan (`fetch_plan`, pure), which says what to ask for next; each
request is a task. Bytes are received, hashed and stored in other threads. Who stops waiting leaves;
a request that nobody waits for any more and that nothing wants ahead is cancelled.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from blockstore.errors import OrbitError, StorageFailed, StorageFull
from blockstore.ids import ChunkId, chunk_id
from blockstore.store import BlockStore
from ghostd.directory_policy import DirectoryPattern, DirectoryPolicy
from ghostd.errors import RemoteVersionGone
from ghostd.fetch_plan import FetchPlan, Limits, Priority, Request, blocks_wanted
from ghostd.inodes import Inode
from ghostd.projection import Projection
from ghostd.read_policy import AccessRecord, EvidencePolicy, ReadPattern
from ghostd.remote_rows import RemoteRows, VersionRow
from ghostd.threads import Threads
from syncer.remotes.errors import Changed, Garbled, Missing, RemoteError
from syncer.remotes.remote import Data, Kind

log = structlog.get_logger(__name__)

_PATTERNS_MAX: Final = 1_024  # open files whose reads are remembered
_STORING_MAX: Final = 4  # requests whose blocks wait for the disk: 32 MiB
Block = tuple[ChunkId, bytes]


@dataclass(slots=True)
class FetchStats:
    """Counters of this run."""

    requests: int = 0
    blocks: int = 0
    bytes: int = 0
    failures: int = 0
    unkept: int = 0  # blocks that were passed on, because the cache had no room
    ahead_blocks: int = 0


class _Flight:
    """One block on its way."""

    __slots__ = ("block", "error", "landed", "request", "waiters", "wanted_ahead")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.waiters = 0
        self.wanted_ahead = False  # somebody will come for it: not cancelled
        self.request: _Running | None = None
        self.block: Block | None = None
        self.error: OrbitError | None = None


class _Pinning:
    """Finding out which version a file is of."""

    __slots__ = ("lock", "row", "users")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.row: VersionRow | None = None
        self.users = 0


class _Running:
    """A request that has been sent, and its flights by version and block."""

    __slots__ = ("flights", "scope")

    def __init__(self, flights: dict[tuple[int, int], _Flight]) -> None:
        self.flights = flights
        self.scope = trio.CancelScope()

    @property
    def unwanted(self) -> bool:
        return not any(f.waiters or f.wanted_ahead for f in self.flights.values())


class Fetcher:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        rows: RemoteRows,
        store: BlockStore,
        threads: Threads,
        *,
        changed: Callable[[Projection, VersionRow], None],
        limits: Limits,
        ahead_bytes_max: int,
        kernel_ahead_bytes: int,
        log_access: Callable[[AccessRecord], None] | None = None,
    ) -> None:
        self._rows = rows
        self._store = store
        self._threads = threads
        self._changed = changed
        self._log_access = log_access
        # Remotes are named by their projection, versions by their id.
        self._plan: FetchPlan[int, int] = FetchPlan(limits)
        self._sources: dict[int, tuple[Projection, VersionRow]] = {}  # of what is queued
        self._policy = EvidencePolicy(ahead_bytes_max, kernel_ahead_bytes)
        self._patterns: OrderedDict[int, ReadPattern] = OrderedDict()
        self._directory_policy = DirectoryPolicy()
        self._directories: OrderedDict[tuple[int, bytes], DirectoryPattern] = OrderedDict()
        self._flights: dict[tuple[int, int], _Flight] = {}
        self._counts: dict[int, int] = {}  # version → its flights
        self._pinning: dict[int, _Pinning] = {}
        self._storing = trio.Semaphore(_STORING_MAX)
        self._stored = trio.lowlevel.ParkingLot()
        self.unstored: dict[bytes, bytes] = {}  # blocks on their way to the disk
        self._nursery: trio.Nursery | None = None
        self.stats = FetchStats()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the requests until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- wanting -------------------------------------------------------------------------------

    async def demand(
        self,
        projection: Projection,
        version: int,
        row: VersionRow,
        numbers: Sequence[int],
        priority: Priority = Priority.DEMAND,
    ) -> dict[int, Block]:
        """These blocks of a version, fetched; whoever waits for the same ones shares the flight.

        Raises RemoteError, RemoteVersionGone.
        """
        self._drop_older(version, row)
        flights = {number: self._wanted(version, number) for number in numbers}
        for flight in flights.values():
            flight.waiters += 1
        try:
            waiting = [n for n, flight in flights.items() if flight.request is None]
            if waiting:
                self._offer(projection, version, row, waiting, priority)
            for flight in flights.values():
                await flight.landed.wait()
        finally:
            for flight in flights.values():
                flight.waiters -= 1
            self._leave(projection, version, flights)
        found = {}
        for number, flight in flights.items():
            if flight.error is not None:
                raise flight.error
            assert flight.block is not None, "a flight lands with a block or an error"
            found[number] = flight.block
        return found

    def ahead(
        self,
        projection: Projection,
        version: int,
        row: VersionRow,
        numbers: Sequence[int],
        priority: Priority = Priority.READ_AHEAD,
    ) -> int:
        """Fetch blocks that somebody will come for; how many of them were queued or under way."""
        self._drop_older(version, row)
        wanted = []
        for number in numbers:
            if self._rows.block(version, number) is None:
                flight = self._wanted(version, number)
                flight.wanted_ahead = True
                if flight.request is None:
                    wanted.append(number)
        if wanted:
            self.stats.ahead_blocks += len(wanted)
            return len(wanted) - self._offer(projection, version, row, wanted, priority)
        return 0

    def _wanted(self, version: int, number: int) -> _Flight:
        flight = self._flights.get((version, number))
        if flight is None:
            flight = self._flights[version, number] = _Flight()
            self._counts[version] = self._counts.get(version, 0) + 1
        return flight

    def _remove(self, version: int, number: int) -> _Flight:
        """The flight is under way no more, or to be asked for anew."""
        left = self._counts[version] - 1
        if left:
            self._counts[version] = left
        else:
            del self._counts[version]
            self._sources.pop(version, None)
        return self._flights.pop((version, number))

    def _offer(
        self,
        projection: Projection,
        version: int,
        row: VersionRow,
        numbers: Sequence[int],
        priority: Priority,
    ) -> int:
        """Queue blocks; how many were refused."""
        self._sources[version] = (projection, row)
        refused = self._plan.offer(
            projection.row.id,
            version,
            numbers,
            priority,
            trio.current_time(),
            projection.row.block_bytes,
        )
        for number in refused:
            self._remove(version, number).landed.set()
        self._pump()
        return len(refused)

    def _leave(self, projection: Projection, version: int, flights: dict[int, _Flight]) -> None:
        """Nobody of ours waits any more: take back what is queued, cancel what nobody wants."""
        unwanted = []
        for number, flight in flights.items():
            if flight.landed.is_set() or flight.waiters or flight.wanted_ahead:
                continue
            if flight.request is None:
                unwanted.append(number)
            elif flight.request.unwanted:
                self._cancel(flight.request)
        for number in self._plan.withdraw(projection.row.id, version, unwanted):
            self._remove(version, number)

    def _cancel(self, running: _Running) -> None:
        """Who comes from now on asks anew."""
        for key, flight in running.flights.items():
            if self._flights.get(key) is flight:
                self._remove(*key)
        running.scope.cancel()

    def forget(self, projection: Projection) -> None:
        """The projection is going: end what is under way for it."""
        self._drop({v for v, source in self._sources.items() if source[0] is projection})

    def _drop(self, versions: set[int]) -> None:
        """End what is under way for some versions."""
        for (version, number), flight in list(self._flights.items()):
            if version not in versions:
                continue
            if flight.request is not None:
                self._cancel(flight.request)
            elif self._plan.withdraw(self._sources[version][0].row.id, version, [number]):
                self._remove(version, number)
                flight.error = _gone()
                flight.landed.set()

    def _drop_older(self, version: int, row: VersionRow) -> None:
        """A projected file keeps its inode, and with it the id, when it gets a new version."""
        source = self._sources.get(version)
        if source is not None and not _same_version(source[1], row):
            self._drop({version})

    # --- requests ------------------------------------------------------------------------------

    def _pump(self) -> None:
        if self._nursery is None:
            return
        while (request := self._plan.next_request()) is not None:
            keys = [(request.version, number) for number in request.blocks]
            running = _Running({key: self._flights[key] for key in keys})
            for flight in running.flights.values():
                flight.request = running
            self._nursery.start_soon(self._fly, request, running, *self._sources[request.version])

    async def _fly(
        self, request: Request[int, int], running: _Running, projection: Projection, row: VersionRow
    ) -> None:
        error: OrbitError | None = None
        blocks: list[Block] = []
        finished = False
        try:
            with running.scope:
                data = await self._read(projection, row, request)
                self._plan.finished(request)
                finished = True
                self._pump()
                blocks = await self._keep(request, row, data, projection.row.block_bytes)
        except OrbitError as failure:
            error = self._explained(projection, row, failure)
        finally:
            if not finished:
                self._plan.finished(request)
            if not blocks and error is None:
                error = _gone()
            for index, (key, flight) in enumerate(running.flights.items()):
                flight.block = blocks[index] if blocks else None
                flight.error = error
                if self._flights.get(key) is flight:
                    self._remove(*key)
                flight.landed.set()
            self._pump()

    async def _read(
        self, projection: Projection, row: VersionRow, request: Request[int, int]
    ) -> Data:
        row = await self._pin(projection, request.version, row)
        size = projection.row.block_bytes
        offset = request.first * size
        length = min(request.count * size, row.size - offset)
        self.stats.requests += 1
        data = await projection.remote.read(row.key, row.version, offset, length)
        if len(data) != length:
            raise Garbled(f"{projection.url}: {len(data)} bytes came, {length} were asked for")
        projection.succeeded_reading()
        self.stats.blocks += request.count
        self.stats.bytes += length
        return data

    async def _pin(self, projection: Projection, version: int, row: VersionRow) -> VersionRow:
        """The version with what tells it from others, where the listing did not say enough.

        Asked for once: all blocks of an inode are of the version that its first one was. Raises
        RemoteError, Changed when the file has another size than was listed.
        """
        pinning = self._pinning.get(version)
        if pinning is None:
            if row.etag or row.mtime_ns:
                return row
            pinning = self._pinning[version] = _Pinning()
        pinning.users += 1
        try:
            async with pinning.lock:
                known = pinning.row or self._rows.versions.get(version) or row
                if not (known.etag or known.mtime_ns) and pinning.row is None:
                    entry = await projection.remote.stat(row.key)
                    if entry.kind is not Kind.FILE or entry.size != row.size:
                        raise Changed(f"{projection.url}: not what the listing said any more")
                    known = row._replace(etag=entry.etag, mtime_ns=entry.mtime_ns or 0)
                    if self._rows.versions.get(version) == row:
                        self._rows.versions.set(version, known)
                pinning.row = known
                return known
        finally:
            pinning.users -= 1
            if not pinning.users and self._pinning.get(version) is pinning:
                del self._pinning[version]

    async def _keep(
        self, request: Request[int, int], row: VersionRow, data: Data, block_bytes: int
    ) -> list[Block]:
        """The blocks, named; they are in memory, and on their way to the disk."""
        blocks = await self._threads.run("fetch", _named, self._store, data, block_bytes)
        now = self._rows.versions.get(request.version)
        if now is not None and _same_version(now, row):  # else the file has gone meanwhile
            for number, (block_id, _) in zip(request.blocks, blocks, strict=True):
                self._rows.set_block(request.version, number, block_id)
        # Readers do not wait for the disk, save when it is several requests behind.
        await self._storing.acquire()
        assert self._nursery is not None
        self.unstored.update(blocks)
        self._nursery.start_soon(self._store_blocks, request, blocks)
        return blocks

    async def _store_blocks(self, request: Request[int, int], blocks: list[Block]) -> None:
        try:
            with trio.CancelScope(shield=True):  # what has come is kept, also at the end
                await self._threads.run("keep", self._store.keep_fetched, dict(blocks))
        except (StorageFull, StorageFailed):
            self.stats.unkept += len(blocks)
            for number, (block_id, _) in zip(request.blocks, blocks, strict=True):
                if self._rows.block(request.version, number) == block_id:
                    self._rows.set_block(request.version, number, None)
        finally:
            for block_id, _ in blocks:
                self.unstored.pop(block_id, None)
            self._storing.release()
            self._stored.unpark_all()

    async def stored(self) -> None:
        """Wait until what has come so far is in the store."""
        while self.unstored:
            await self._stored.park()

    def _explained(self, projection: Projection, row: VersionRow, error: OrbitError) -> OrbitError:
        self.stats.failures += 1
        key = row.key.decode(errors="backslashreplace")
        if isinstance(error, Changed | Missing):
            self._changed(projection, row)
            return RemoteVersionGone(
                f"{projection.url}: {key!r} is another version now ({error}); open it again"
            )
        projection.failed(error)
        log.warning("blocks could not be fetched", remote=projection.url, key=key, error=str(error))
        return error

    # --- ahead of readers ------------------------------------------------------------------------

    def observe(
        self, projection: Projection, inode: Inode, row: VersionRow, start: int, end: int
    ) -> None:
        """[start, end) of a file is being read: fetch what its pattern suggests."""
        pattern = self._patterns.get(inode.ino)
        if pattern is None:
            pattern = self._policy.begin()
            self._observe_directory(projection, inode, row)
            if len(self._patterns) >= _PATTERNS_MAX:
                self._patterns.popitem(last=False)
        pattern, wanted = self._policy.observe(
            pattern, start, end - start, inode.base_end, time.monotonic()
        )
        self._patterns[inode.ino] = pattern
        self._patterns.move_to_end(inode.ino)
        size = projection.row.block_bytes
        if self._log_access is not None:
            blocks = range(start // size, (end - 1) // size + 1)
            hit = all(self._rows.block(inode.base, number) is not None for number in blocks)
            self._log_access(
                AccessRecord(time.time(), inode.base, start, end - start, hit, tuple(wanted))
            )
        for part in wanted:
            numbers = blocks_wanted(part.start, part.end, inode.base_end, size)
            self.ahead(projection, inode.base, row, numbers)

    def closed(self, ino: int) -> None:
        """Nobody has the file open any more."""
        self._patterns.pop(ino, None)

    def _observe_directory(self, projection: Projection, inode: Inode, row: VersionRow) -> None:
        """Inode numbers rise in the order of the listing: they are the places in it."""
        if inode.base != inode.ino:
            return
        above = row.key.rpartition(b"/")[0]
        key = (projection.row.id, above)
        pattern = self._directories.get(key)
        if pattern is None:
            pattern = DirectoryPattern()
            if self._directories:
                pattern = self._directory_policy.successor(
                    next(reversed(self._directories.values()))
                )
            if len(self._directories) >= _PATTERNS_MAX:
                self._directories.popitem(last=False)
            pattern = pattern._replace(last=inode.ino - 1)
        pattern, wanted = self._directory_policy.observe_open(pattern, inode.ino, row.size)
        self._directories[key] = pattern
        self._directories.move_to_end(key)
        for number in wanted:
            near = self._rows.versions.get(number)
            if (
                near is None
                or near.key.rpartition(b"/")[0] != above
                or not 0 < near.size <= projection.row.block_bytes
            ):
                continue
            self.ahead(projection, number, near, (0,))


def _named(store: BlockStore, data: Data, block_bytes: int) -> list[Block]:
    """In a thread: cut what was received into blocks, name them, keep them in memory.

    Each is a copy: one that stays keeps no others alive.
    """
    view = memoryview(data)
    parts = [
        data
        if isinstance(data, bytes) and len(data) <= block_bytes
        else bytes(view[at : at + block_bytes])
        for at in range(0, len(data), block_bytes)
    ]
    blocks = [(chunk_id(part), part) for part in parts]
    for block_id, part in blocks:
        store.remember(block_id, part)
    return blocks


def _same_version(one: VersionRow, other: VersionRow) -> bool:
    """Whether two rows are of one version, of which one may say more than the other."""
    tags, others = (one.etag, one.mtime_ns), (other.etag, other.mtime_ns)
    unpinned = ("", 0)
    return (one.key, one.size) == (other.key, other.size) and (
        tags == others or unpinned in {tags, others}
    )


def _gone() -> RemoteError:
    return RemoteError("the request was given up; try again")
