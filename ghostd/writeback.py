"""Makes changes durable: streaming ingest, group commits, back-pressure.

One task commits, on request or when the interval has passed; everybody who waits shares the next
commit. Another kind of task, one a file, ingests long runs of pieces while they are being written.
Both place chunks into a file's map only where it still shows the pieces they were made from, so
writers never wait for them.

Lock order: a file's ingest (`_busy`) → worker threads. A commit waits for a file's ingest before it
stores the file's rest; an ingest never starts on a file whose map is frozen.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from blockstore.errors import OrbitError, StorageFull
from blockstore.store import BlockStore
from ghostd.errors import NoSpaceLeft
from ghostd.filemap import (
    FRAGMENTS_MIN,
    Extent,
    FileMap,
    encode_segment,
    fragmented,
    origin,
)
from ghostd.inodes import Inode
from ghostd.namespace import Namespace
from ghostd.storing import (
    BATCH_BYTES,
    CutRun,
    Run,
    Stored,
    cut_run,
    put_spans,
    rechunk,
    split,
    store_runs,
)
from ghostd.threads import Threads
from ghostd.tree import FrozenEpoch, Tree

_INGEST_BYTES = BATCH_BYTES  # so much unstored in one file starts its ingest
_INGEST_RUN_MIN = 1 << 20  # shorter runs wait for the commit
_TAILS_MAX = 64  # files whose tails are remembered: at most 16 MiB
_WAL_BYTES_MAX = 32 << 20  # beyond, the log is moved into the database file
_OP_BYTES = 1 << 10  # what a changed row may cost on the disk, generously
_GROUP_RUNS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class WritebackOptions:
    """Limits of what may be lost, held in memory, and left free."""

    commit_interval_s: float = 1.0
    dirty_bytes_max: int = 128 << 20
    dirty_ops_max: int = 100_000
    reserve_bytes: int = 64 << 20


@dataclass(slots=True)
class CommitStats:
    """What the commits of this run did; times in seconds."""

    commits: int = 0
    failures: int = 0
    rows: int = 0
    seconds: float = 0.0
    last_s: float = 0.0
    last_at: float = 0.0  # time.time()
    running_since: float = 0.0  # time.monotonic(); 0: none runs
    last_error: str = ""
    ingested_bytes: int = 0


class _Waiter:
    """Somebody who waits until an epoch is durable."""

    __slots__ = ("done", "epoch", "error")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.done = trio.Event()
        self.error: OrbitError | None = None


class Writeback:
    """The way from memory to the disk."""

    def __init__(
        self,
        tree: Tree,
        store: BlockStore,
        namespace: Namespace,
        threads: Threads,
        options: WritebackOptions,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tree = tree
        self.store = store
        self.namespace = namespace
        self.threads = threads
        self.options = options
        self.stats = CommitStats()
        self._monotonic = monotonic
        self._waiters: list[_Waiter] = []
        self._wanted = trio.Event()
        self._asked = trio.Event()  # set when somebody waits for a commit
        self._failure: OrbitError | None = None  # of the last commit that failed
        self._freed = trio.Event()
        self._busy: dict[int, trio.Event] = {}  # inode → set when its ingest has ended
        self._tails: OrderedDict[int, FileMap] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self._commit_lock = trio.Lock()  # commits, checkpoints and namespace copies take turns
        self._space_checked_at = -1.0
        self._space_left = 0
        self._in_flight_epoch = 0
        self.checkpoints_held = False  # a copy of the database file is being read
        self._wal_bytes = 0

    # --- the commit task -------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    with trio.move_on_after(self.options.commit_interval_s):
                        await self._wanted.wait()
                    self._wanted = trio.Event()
                    if self._waiters or self.tree.changed:
                        await self._commit_and_tell()
            finally:
                self._nursery = None

    async def commit(self) -> None:
        """Wait until everything done so far is durable. Raises StorageFull, StorageFailed."""
        if self.tree.changed:
            epoch = self.tree.epoch
        elif self._in_flight_epoch > self.tree.committed_epoch:
            epoch = self._in_flight_epoch
        else:
            return
        waiter = _Waiter(epoch)
        self._waiters.append(waiter)
        self._wanted.set()
        self._asked.set()
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error

    async def _commit_and_tell(self) -> None:
        error: OrbitError | None = None
        with trio.CancelScope(shield=True):
            try:
                epoch = await self.commit_once()
            except* OrbitError as failures:
                error = self._failure = first_error(failures)
                epoch = self.tree.epoch - 1
                self.stats.failures += 1
                self.stats.last_error = str(error)
        told = [w for w in self._waiters if w.epoch <= epoch]
        self._waiters = [w for w in self._waiters if w.epoch > epoch]
        if self._waiters:
            self._wanted.set()
        for waiter in told:
            waiter.error = error
            waiter.done.set()
        self.freed()
        if error is not None and not self._waiters:
            # Do not spin on a failing disk: only who waits for the answer has it asked at once.
            self._asked = trio.Event()
            with trio.move_on_after(self.options.commit_interval_s):
                await self._asked.wait()

    async def commit_once(self) -> int:
        """One commit of everything up to now; its epoch.

        On failure the changes stay for the next one.
        """
        async with self._commit_lock:
            if not self.tree.changed:
                return self.tree.epoch - 1
            began = self.stats.running_since = self._monotonic()
            frozen = self.tree.freeze()
            self._in_flight_epoch = frozen.epoch
            try:
                await self._store_frozen(frozen)
                await self._encode(frozen)
                await self.threads.run("commit", self.store.sync)
                await self.threads.run("commit", self.namespace.apply, frozen.changes())
            except BaseException:
                self.tree.thaw(frozen)
                raise
            finally:
                self.stats.running_since = 0.0
            self.tree.committed(frozen)
            took = self._monotonic() - began
            stats = self.stats
            stats.commits += 1
            stats.rows += len(frozen.rows) + len(frozen.names) + len(frozen.segments)
            stats.seconds += took
            stats.last_s = took
            stats.last_at = time.time()
            stats.last_error = ""
            await self._checkpoint(frozen)
            return frozen.epoch

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No commit and no checkpoint runs inside; changes go on in memory."""
        async with self._commit_lock:
            yield

    async def _checkpoint(self, frozen: FrozenEpoch) -> None:
        # An estimate of what the log has grown by: exact enough to decide when to move it.
        self._wal_bytes += 4_096 * (len(frozen.rows) + 2 * len(frozen.names) + len(frozen.segments))
        if self._wal_bytes > _WAL_BYTES_MAX and not self.checkpoints_held:
            self._wal_bytes = 0
            await self.threads.run("commit", self.namespace.checkpoint)

    # --- storing what a barrier has frozen -------------------------------------------------------

    async def _store_frozen(self, frozen: FrozenEpoch) -> None:
        pending: list[tuple[Inode, FileMap]] = []
        for inode in frozen.contents:
            content = inode.content
            assert content is not None
            busy = self._busy.get(inode.ino)
            if busy is not None:
                await busy.wait()
            pending.append((inode, content))
        async with trio.open_nursery() as nursery:
            group: list[tuple[Inode, FileMap, Run]] = []
            size = 0
            for inode, content in pending:
                runs = list(content.frozen_runs())
                for parts in runs:
                    want_tail = parts is runs[-1] and inode.opens > 0
                    length = parts[-1][1] - parts[0][0]
                    if length > 2 * BATCH_BYTES:
                        # What ingest would do, only to the end.
                        nursery.start_soon(self._store_long, inode, content, parts, want_tail)
                        continue
                    run = self._run(content, parts, final=True, want_tail=want_tail)
                    group.append((inode, content, run))
                    size += length
                    if size >= BATCH_BYTES or len(group) >= _GROUP_RUNS_MAX:
                        nursery.start_soon(self._store_group, group)
                        group, size = [], 0
                        await trio.lowlevel.checkpoint()
            if group:
                nursery.start_soon(self._store_group, group)
        for _, content in pending:
            await self._defragment(content)

    @staticmethod
    def _run(content: FileMap, parts: list[Extent], *, final: bool, want_tail: bool = False) -> Run:
        start = parts[0][0]
        tail = content.tail
        if tail is not None and tail.end == start:
            replaced = content.extents(tail.cut, start)
            return Run(parts, tail.data, tail.cut, replaced, final, want_tail)
        return Run(parts, b"", start, [], final, want_tail)

    async def _store_group(self, group: list[tuple[Inode, FileMap, Run]]) -> None:
        results = await self.threads.run(
            "encode", store_runs, self.store, [run for _, _, run in group]
        )
        for (inode, content, run), stored in zip(group, results, strict=True):
            self._place(inode, content, run, stored)
        self.freed()

    def _place(self, inode: Inode, content: FileMap, run: Run, stored: Stored) -> None:
        if stored.extents:
            before = content.unstored
            content.place(stored.extents, run.origins())
            self._placed(inode, content, before)
        # It holds as long as nothing before its end has been changed since the barrier.
        if stored.tail is not None and stored.tail.end <= content.touched_from:
            content.tail = stored.tail
            self._tails[inode.ino] = content
            self._tails.move_to_end(inode.ino)
            if len(self._tails) > _TAILS_MAX:
                self._tails.popitem(last=False)[1].tail = None

    def _placed(self, inode: Inode, content: FileMap, unstored_before: int) -> None:
        if inode.dead:
            content.unstored = 0
            return
        self.tree.unstored += content.unstored - unstored_before
        content.passed_over = min(content.passed_over, content.unstored)
        if content.dirty:
            self.tree.touch_content(inode, content.unstored)

    async def _store_long(
        self, inode: Inode, content: FileMap, parts: list[Extent], want_tail: bool
    ) -> None:
        """Store a frozen run batch by batch, each going on from the last cut of the one before."""
        rest = parts
        async with trio.open_nursery() as nursery:
            while rest:
                portion = next(split(rest, BATCH_BYTES))
                last = len(portion) == len(rest)
                run = self._run(content, portion, final=last, want_tail=want_tail and last)
                pieces = await self.threads.run("encode", cut_run, self.store, run)
                nursery.start_soon(self._put, inode, content, run, pieces)
                rest = [] if last else _from(rest, pieces.cut)

    async def _put(
        self,
        inode: Inode,
        content: FileMap,
        run: Run,
        pieces: CutRun,
    ) -> None:
        if pieces.spans:
            extents = await self.threads.run(
                "encode", put_spans, self.store, pieces.data, run.base, pieces.spans
            )
            self._place(inode, content, run, Stored(extents, pieces.tail))
            self.freed()

    async def _defragment(self, content: FileMap) -> None:
        """Chunk anew the stretches of the frozen segments that have fallen into small pieces."""
        for extents in list((content.frozen or {}).values()):
            if len(extents) < FRAGMENTS_MIN:
                continue
            for first, last in fragmented(extents):
                stretch = extents[first:last]
                try:
                    new = await self.threads.run("encode", rechunk, self.store, stretch)
                except StorageFull:
                    raise
                except OrbitError:
                    break  # a damaged chunk: leave it as it is, reading it says so
                content.place(new, {origin(extent) for extent in stretch})
                break  # indexes have moved; the next commit that touches the segment goes on

    async def _encode(self, frozen: FrozenEpoch) -> None:
        """Rows of the changed segments.

        Before the sync, so that whatever is placed until here is covered by it.
        """
        rows = frozen.segments
        for count, inode in enumerate(frozen.contents):
            content = inode.content
            assert content is not None
            assert content.frozen is not None
            if content.frozen_cut is not None:
                frozen.cuts.append((inode.ino, content.frozen_cut))
            for number, extents in content.frozen.items():
                length = sum(end - start for start, end, _, _ in extents)
                rows.append((inode.ino, number, length, encode_segment(number, extents)))
            content.encoded = True
            if count % 256 == 255:
                await trio.lowlevel.checkpoint()

    # --- ingest while data streams in ------------------------------------------------------------

    def written(self, inode: Inode, content: FileMap) -> None:
        """Data has been written: start what has become due."""
        if (
            content.unstored - content.passed_over >= _INGEST_BYTES
            and not content.storing
            and inode.ino not in self._busy
            and self._nursery is not None
        ):
            self._busy[inode.ino] = trio.Event()
            self._nursery.start_soon(self._ingest, inode, content)
        if (
            # While an ingest drains it, a commit would only add syncs.
            (self.tree.unstored > self.options.dirty_bytes_max // 2 and not self._busy)
            or self.tree.dirty_ops > self.options.dirty_ops_max // 2
        ):
            self._wanted.set()

    async def _ingest(self, inode: Inode, content: FileMap) -> None:
        """Store the long runs of a file up to their last cut; go on while more comes in."""
        try:
            async with trio.open_nursery() as nursery:
                position = 0
                while not content.storing and not inode.dead:
                    parts = self._long_run(content, position)
                    if parts is None:
                        break
                    portion = next(split(parts, BATCH_BYTES))
                    run = self._run(content, portion, final=False)
                    pieces = await self.threads.run("encode", cut_run, self.store, run)
                    nursery.start_soon(self._put, inode, content, run, pieces)
                    self.stats.ingested_bytes += sum(b - a for a, b in pieces.spans)
                    position = pieces.cut
                    if not pieces.spans:
                        break
        except* OrbitError:
            pass  # the pieces are still there; the commit tries again and tells who waits
        finally:
            content.passed_over = content.unstored
            self._busy.pop(inode.ino).set()

    @staticmethod
    def _long_run(content: FileMap, position: int) -> list[Extent] | None:
        for run in content.live_runs(position):
            parts = _from(run, position)
            if parts and parts[-1][1] - parts[0][0] >= _INGEST_RUN_MIN:
                return parts
        return None

    # --- limits --------------------------------------------------------------------------------

    def freed(self) -> None:
        """Something has become clean or went away: let those who wait look again."""
        if not self._freed.is_set():
            self._freed.set()
            self._freed = trio.Event()

    async def room(self, length: int) -> None:
        """Wait until `length` more bytes may be dirty.

        Raises NoSpaceLeft where the disk could not take them, StorageFailed where it does not work.
        """
        self.check_space(length)
        while self._over():
            failures = self.stats.failures
            self._wanted.set()
            await self._freed.wait()
            if self.stats.failures != failures and self._over():
                assert self._failure is not None
                if isinstance(self._failure, StorageFull):
                    raise NoSpaceLeft(str(self._failure))
                raise self._failure
            self.check_space(length)

    def _over(self) -> bool:
        return (
            self.tree.unstored > self.options.dirty_bytes_max
            or self.tree.dirty_ops > self.options.dirty_ops_max
        )

    def check_space(self, length: int) -> None:
        """Refuse what the disk could not take, with what is dirty already and the reserve.

        Raises NoSpaceLeft.
        """
        now = self._monotonic()
        self._space_left -= length + _OP_BYTES
        if self._space_left <= 0 or now - self._space_checked_at > 0.2:
            self._space_checked_at = now
            self._space_left = self.space_left() - length
        if self._space_left < 0:
            raise NoSpaceLeft("the disk of the state folder is full")

    def space_left(self) -> int:
        """Bytes that may still be written before the reserve is touched; may be negative."""
        free, total = self.store.free_bytes(), self.store.total_bytes()
        reserve = min(self.options.reserve_bytes, total // 20)
        return free - reserve - self.tree.unstored - self.tree.dirty_ops * _OP_BYTES


def first_error(group: BaseExceptionGroup[OrbitError]) -> OrbitError:
    """One of the errors that a nursery gathered."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OrbitError)
    return error


def _from(run: list[Extent], position: int) -> list[Extent]:
    """The part of a run from `position` on."""
    out = []
    for start, end, source, offset in run:
        if end <= position:
            continue
        if start < position:
            out.append((position, end, source, offset + position - start))
        else:
            out.append((start, end, source, offset))
    return out
