"""Large files out of a snapshot: some at a time, each by several threads, or from its old copy."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar, TypeVarTuple

import trio

from blockstore.ids import ID_BYTES, ChunkId
from syncer import linux
from syncer.local_delta import Chunk, Cutter, build, chunks_of, plan_runs
from syncer.local_draft import Draft
from syncer.local_root import Directories
from syncer.recipes import Extent
from syncer.remotes.errors import RemoteError
from syncer.restore_bytes import past_the_cache, write_extents
from syncer.restore_source import RestoreSource
from syncer.steps import Step, StepResult, StepState, TakenStep
from syncer.transfer_content import LATER, Pass
from syncer.transfer_meter import Meter
from syncer.tree import Metadata, Node, NodeKind
from syncer.tree_objects import Entry

PART_BYTES: Final = 8 << 20  # of content in memory of each thread
AT_ONCE: Final = 2  # files: one is written while the other is brought to the disk
DELTA_FROM_BYTES: Final = 1 << 20  # smaller old copies cost more to cut than to write anew

_NO_CHUNK: Final = ChunkId(bytes(ID_BYTES))  # which no old copy has: a slice is read anew

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Parts:
    """The extents of a file in parts, for several threads."""

    def __init__(self, extents: Iterator[Extent]) -> None:
        self._extents = extents
        self._lock = threading.Lock()

    def next(self) -> list[Extent]:
        """The next part, PART_BYTES of content; empty at the end."""
        part: list[Extent] = []
        size = 0
        with self._lock:
            for extent in self._extents:
                part.append(extent)
                size += extent.length
                if size >= PART_BYTES:
                    break
        return part


async def _together(work: Callable[[], Awaitable[None]], count: int) -> None:
    """Run `count` of it; raise the first error alone."""
    errors: list[RemoteError] = []

    async def guarded() -> None:
        try:
            await work()
        except RemoteError as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(guarded)
    if errors:
        raise errors[0]


class _Counted:
    """The bytes of one file in the progress of all."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.bytes = 0

    def add(self, count: int) -> None:
        """So many more."""
        self.bytes += count
        self._meter.bytes_done += count

    def take_back(self) -> None:
        """The file did not work out."""
        self.add(-self.bytes)


class LargeFiles:
    """Restores files, AT_ONCE of them at a time."""

    def __init__(
        self,
        source: RestoreSource,
        meter: Meter,
        *,
        threads: int,
        cut: Cutter | None,
        take: Pass | None,
    ) -> None:
        """See RestoreMover."""
        self._source = source
        self._target = source.target
        self._meter = meter
        self._threads = threads
        self._limiter = trio.CapacityLimiter(threads)
        self._cut = cut
        self._take = take

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover."""
        results: list[StepResult | None] = [None] * len(taken)
        todo = iter(range(len(taken)))

        async def work() -> None:
            for place in todo:
                results[place] = await self._one(taken[place])

        async with trio.open_nursery() as nursery:
            for _ in range(min(AT_ONCE, len(taken))):
                nursery.start_soon(work)
        return results

    async def _one(self, taken: TakenStep) -> StepResult | None:
        """One file; None: the way of single steps is to try it, and to say why not."""
        began = time.monotonic()
        size = taken.step.size
        counted = _Counted(self._meter)
        try:
            entry = await self._run(self._source.entry, taken.step.source_path)
            moved = await self._restore(taken.step, entry, counted)
            digest: bytes | None = b""
            if self._source.options.verify:
                digest = await self._run(self._read_back, taken.step.path, entry)
        except LATER:
            digest = None
        except RemoteError as error:
            return StepResult(taken.number, StepState.FAILED, error=str(error))
        if digest is None:
            counted.take_back()
            return None
        return StepResult(
            taken.number,
            StepState.DONE,
            bytes_moved=moved,
            bytes_saved=size - moved,
            checksum=f"blake3:{digest.hex()}" if digest else "",
            seconds=time.monotonic() - began,
        )

    async def _restore(self, step: Step, entry: Entry, counted: _Counted) -> int:
        """Bytes that were fetched; of the others there was no need."""
        assert step.node is not None
        old = step.old
        metadata = await self._run(self._source.metadata, step.node, entry)
        if (
            self._cut is not None
            and old is not None
            and old.kind is NodeKind.FILE
            and old.size >= DELTA_FROM_BYTES
        ):
            moved = await self._delta(step.path, old, entry, metadata, self._cut)
        else:
            moved = await self._whole(step.path, old, entry, metadata, counted)
        counted.add(entry.size - counted.bytes)
        return moved

    async def _whole(
        self, path: bytes, old: Node | None, entry: Entry, metadata: Metadata, counted: _Counted
    ) -> int:
        draft = self._target.draft(path)
        parts = _Parts(self._source.extents(entry))

        async def work() -> None:
            while part := await self._run(parts.next):
                size = sum(extent.length for extent in part)
                if self._take is not None:
                    await self._take(size)
                await self._run(self._write_part, draft, part)
                counted.add(size)

        try:
            await _together(work, self._threads)
            publish = partial(draft.publish, replace=False, durable=self._source.durable)
            await self._target.wait(publish, entry.size, metadata, old)
        finally:
            await self._target.finish(draft.close)
        return counted.bytes

    def _write_part(self, draft: Draft, part: Sequence[Extent]) -> None:
        chunks = self._source.fetch(part)  # not while others wait for the file
        with draft.mine() as handle:
            if not self._source.durable:
                write_extents(handle, part, chunks)
                return
            with past_the_cache(handle) as direct:
                write_extents(handle, part, chunks, direct)
            start, last = part[0].start, part[-1]
            linux.start_writing(handle, start, last.start + last.length - start)

    async def _delta(
        self, path: bytes, old: Node, entry: Entry, metadata: Metadata, cut: Cutter
    ) -> int:
        """From the old copy's chunks, and those that it lacks."""
        had = await chunks_of(self._target, path, old, cut)
        extents = await self._run(lambda: list(self._source.extents(entry)))
        whole = [Chunk(e.start, e.length, e.id) for e in extents if not e.offset]
        sliced = [Chunk(e.start, e.length, _NO_CHUNK) for e in extents if e.offset]
        runs = plan_runs(sorted(whole + sliced), had)

        async def read(offset: int, length: int) -> bytes:
            if self._take is not None:
                await self._take(length)
            return await self._run(self._source.read, entry, offset, length)

        built = await build(self._target, path, runs, entry.size, read, metadata, old=old)
        return built.written

    def _read_back(self, path: bytes, entry: Entry) -> bytes | None:
        """BLAKE3 of what is there now, if it is what it should be; else it is removed."""
        with contextlib.closing(Directories(self._target.root)) as directories:
            return self._source.read_back(directories, path, entry)

    async def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(
            function, *args, abandon_on_cancel=True, limiter=self._limiter
        )
