"""Files of a snapshot into a local folder, as fast as store and disk go. See `transfer.Mover`.

Threads fetch the chunks of some files at once, in the order in which they lie in the packs, and
write them into temporary files; small files get their names together, after one sync of the file
system. A large file is written by several threads at a time. Where an older copy of it is there,
only the chunks that this one lacks are fetched, the rest is taken from it.

What is interrupted is run again: files that are there are equal, and skipped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import trio

from blockstore.ids import ID_BYTES, ChunkId
from syncer import linux
from syncer.local_batch import Batch, CopyOutcome, Place
from syncer.local_bytes import Method, write_all
from syncer.local_delta import Chunk, build, chunks_of, plan_runs
from syncer.local_draft import Draft, umask
from syncer.local_nodes import apply
from syncer.local_root import Directories
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.recipes import Extent, TreeDamaged
from syncer.remotes.errors import TRANSIENT, Changed, Exists, Full, Missing, RemoteError
from syncer.snapshot_tree import SnapshotTree
from syncer.steps import StepResult, StepState, TakenStep
from syncer.transfer_content import Pass
from syncer.transfer_meter import Meter
from syncer.transfer_steps import wanted_metadata
from syncer.tree import Metadata, Node, NodeKind
from syncer.tree_objects import Entry

SMALL_BYTES_MAX: Final = 4 << 20
GROUP_BYTES: Final = 8 << 20  # of content in memory of each thread
GROUP_FILES: Final = 512
THREADS: Final = 3  # one waits for the disk while two decode
THREADS_AWAY: Final = 8  # of a store that is away: 64 MiB of content at most
DELTA_FROM_BYTES: Final = 1 << 20  # smaller old copies cost more to cut than to write anew
_BUFFERS_MAX: Final = 512  # of one pwritev; the system takes 1,024

_LATER: Final[tuple[type[RemoteError], ...]] = (*TRANSIENT, Changed, Exists, Full)

_NO_CHUNK: Final = ChunkId(bytes(ID_BYTES))  # which no old copy has: a slice is read anew

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Cutter = Callable[[memoryview], list[int]]


class _File(NamedTuple):
    """One small file that is to be restored."""

    place: int  # in the batch
    entry: Entry
    node: Node
    extents: tuple[Extent, ...]


class RestoreMover:
    """See Mover: COPY steps from a snapshot to a local folder."""

    steps_max = 10_000  # one sync of the file system for all
    bytes_max = 256 << 20

    def __init__(
        self,
        source: SnapshotTree,
        target: LocalTree,
        options: Options,
        meter: Meter,
        *,
        cut: Cutter | None = None,
        take: Pass | None = None,
    ) -> None:
        """`cut` is the store's, for files that have an older copy; `take` waits for bandwidth."""
        self._source = source
        self._target = target
        self._options = options
        self._meter = meter
        self._cut = cut
        self._take = take
        self._threads = THREADS if source.features.local else THREADS_AWAY
        self._limiter = trio.CapacityLimiter(self._threads)
        self._mask = umask()
        self._durable = options.durable and target.durable

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover. What is to be verified is left to the way of single steps, which does it."""
        results: list[StepResult | None] = [None] * len(taken)
        if self._options.verify:
            await trio.lowlevel.checkpoint()
            return results
        small: list[int] = []
        for place, each in enumerate(taken):
            if each.step.node is None or each.attempts:
                continue
            if each.step.size <= SMALL_BYTES_MAX:
                small.append(place)
            else:
                results[place] = await self._large(each)
        if small:
            await self._small(taken, small, results)
        return results

    # ---- small files ----

    async def _small(
        self, taken: Sequence[TakenStep], places: Sequence[int], results: list[StepResult | None]
    ) -> None:
        began = time.monotonic()
        batch = Batch(
            self._target,
            [
                Place(step.path, step.old, replace=False)
                for step in (taken[place].step for place in places)
            ],
            durable=self._durable,
        )
        numbered = [(number, taken[place]) for number, place in enumerate(places)]
        # As a backup has stored them, so that a group lies in few places.
        numbered.sort(key=lambda item: item[1].step.source_path)
        groups = groups_of(numbered)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._threads):
                    nursery.start_soon(self._groups, batch, groups)
            outcomes = await self._target.wait(batch.publish)
        finally:
            batch.stop()
            await self._target.finish(batch.close)
        seconds = (time.monotonic() - began) / len(places)
        for place, outcome in zip(places, outcomes, strict=True):
            results[place] = self._result(taken[place], outcome, seconds)

    async def _groups(self, batch: Batch, groups: Iterator[list[tuple[int, TakenStep]]]) -> None:
        for group in groups:
            if self._take is not None:
                await self._take(sum(each.step.size for _, each in group))
            await trio.to_thread.run_sync(
                self._write_group, batch, group, abandon_on_cancel=True, limiter=self._limiter
            )

    def _write_group(self, batch: Batch, group: Sequence[tuple[int, TakenStep]]) -> None:
        """Fetch and write some files. In a thread."""
        files: list[_File] = []
        for number, each in group:
            try:
                files.append(self._look_up(number, each))
            except RemoteError as error:
                batch.fail(number, error)
        with batch.writing() as directories:
            try:
                chunks = self._fetch(chain.from_iterable(file.extents for file in files))
            except RemoteError:
                self._write_one_by_one(batch, directories, files)
                return
            for file in files:
                if batch.stopped:
                    return
                batch.write(directories, file.place, partial(self._write, file, chunks))

    def _write_one_by_one(
        self, batch: Batch, directories: Directories, files: Sequence[_File]
    ) -> None:
        """A chunk that is damaged or out of reach costs the files that have it, no other."""
        for file in files:
            if batch.stopped:
                return
            try:
                chunks = self._fetch(file.extents)
            except RemoteError as error:
                batch.fail(file.place, error)
                continue
            batch.write(directories, file.place, partial(self._write, file, chunks))

    def _look_up(self, number: int, taken: TakenStep) -> _File:
        step = taken.step
        assert step.node is not None
        entry = self._entry(step.source_path)
        return _File(number, entry, step.node, tuple(self._extents(entry)))

    def _entry(self, path: bytes) -> Entry:
        try:
            entry = self._source.entry(path)
        except Missing as error:
            raise Changed(str(error)) from None
        if entry.kind is not NodeKind.FILE:
            raise Changed(f"{path!r} is no file in this snapshot")
        return entry

    def _extents(self, entry: Entry) -> Iterator[Extent]:
        recipe = entry.recipe
        if recipe is not None and recipe.root is None:
            return iter(recipe.extents)
        return chain.from_iterable(self._source.reader.extents(entry))

    def _fetch(self, extents: Iterable[Extent]) -> dict[ChunkId, bytes]:
        return self._source.reader.chunks(list({extent.id: None for extent in extents}))

    def _write(self, file: _File, chunks: Mapping[ChunkId, bytes], handle: int) -> CopyOutcome:
        written = write_extents(handle, file.extents, chunks)
        if file.entry.size > (sum(file.extents[-1][:2]) if file.extents else 0):
            os.ftruncate(handle, file.entry.size)  # a hole at the end
        metadata = self._metadata(file.node, file.entry)
        if metadata.mode is None:
            metadata = metadata._replace(mode=0o666 & ~self._mask)
        apply(handle, metadata)
        return CopyOutcome(None, Method.BUFFERED, written)

    def _metadata(self, node: Node, entry: Entry) -> Metadata:
        keeps = self._target.features
        xattrs = None
        if self._options.xattrs and keeps.xattrs:
            xattrs = self._source.reader.xattrs(entry)
        return wanted_metadata(node, self._options, keeps, xattrs)

    def _result(self, taken: TakenStep, outcome: CopyOutcome, seconds: float) -> StepResult | None:
        if outcome.error is not None:
            if isinstance(outcome.error, _LATER):
                return None
            return StepResult(taken.number, StepState.FAILED, error=str(outcome.error))
        self._meter.bytes_done += taken.step.size
        return StepResult(
            taken.number,
            StepState.DONE,
            bytes_moved=outcome.bytes_copied,
            bytes_saved=max(0, taken.step.size - outcome.bytes_copied),
            seconds=seconds,
        )

    # ---- large files ----

    async def _large(self, taken: TakenStep) -> StepResult | None:
        """One file by itself; None: the way of single steps is to try it, and to say why not."""
        began = time.monotonic()
        before = self._meter.bytes_done
        try:
            moved, saved = await self._restore(taken)
        except _LATER:
            self._meter.bytes_done = min(self._meter.bytes_done, before)
            return None
        except RemoteError as error:
            return StepResult(taken.number, StepState.FAILED, error=str(error))
        return StepResult(
            taken.number,
            StepState.DONE,
            bytes_moved=moved,
            bytes_saved=saved,
            seconds=time.monotonic() - began,
        )

    async def _restore(self, taken: TakenStep) -> tuple[int, int]:
        """Bytes that were fetched, and bytes that were not."""
        step = taken.step
        assert step.node is not None
        entry = await self._run(self._entry, step.source_path)
        metadata = await self._run(self._metadata, step.node, entry)
        old = step.old
        if (
            self._cut is not None
            and old is not None
            and old.kind is NodeKind.FILE
            and old.size >= DELTA_FROM_BYTES
        ):
            return await self._delta(step.path, old, entry, metadata, self._cut)
        return await self._whole(step.path, old, entry, metadata)

    async def _whole(
        self, path: bytes, old: Node | None, entry: Entry, metadata: Metadata
    ) -> tuple[int, int]:
        draft = self._target.draft(path)
        parts = _Parts(self._extents(entry))
        moved = 0

        async def work() -> None:
            nonlocal moved
            while part := await self._run(parts.next):
                size = sum(extent.length for extent in part)
                if self._take is not None:
                    await self._take(size)
                await self._run(self._write_part, draft, part)
                moved += size
                self._meter.bytes_done += size

        try:
            await _together(work, self._threads)
            publish = partial(draft.publish, replace=False, durable=self._durable)
            await self._target.wait(publish, entry.size, metadata, old)
        finally:
            await self._target.finish(draft.close)
        self._meter.bytes_done += entry.size - moved
        return moved, entry.size - moved

    def _write_part(self, draft: Draft, part: Sequence[Extent]) -> None:
        chunks = self._fetch(part)  # not while others wait for the file
        with draft.mine() as handle:
            write_extents(handle, part, chunks)
            if self._durable:
                start, last = part[0].start, part[-1]
                linux.start_writing(handle, start, last.start + last.length - start)

    async def _delta(
        self,
        path: bytes,
        old: Node,
        entry: Entry,
        metadata: Metadata,
        cut: Cutter,
    ) -> tuple[int, int]:
        """From the old copy's chunks, and those that it lacks."""
        had = await chunks_of(self._target, path, old, cut)
        extents = await self._run(lambda: list(self._extents(entry)))
        whole = [Chunk(e.start, e.length, e.id) for e in extents if not e.offset]
        sliced = [Chunk(e.start, e.length, _NO_CHUNK) for e in extents if e.offset]
        runs = plan_runs(sorted(whole + sliced), had)

        async def read(offset: int, length: int) -> bytes:
            if self._take is not None:
                await self._take(length)
            return await self._run(self._source.reader.read, entry, offset, length)

        built = await build(self._target, path, runs, entry.size, read, metadata, old=old)
        self._meter.bytes_done += entry.size
        return built.written, entry.size - built.written

    async def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(
            function, *args, abandon_on_cancel=True, limiter=self._limiter
        )


class _Parts:
    """The extents of a file in parts, for several threads."""

    def __init__(self, extents: Iterator[Extent]) -> None:
        self._extents = extents
        self._lock = threading.Lock()

    def next(self) -> list[Extent]:
        """The next part, GROUP_BYTES of content; empty at the end."""
        part: list[Extent] = []
        size = 0
        with self._lock:
            for extent in self._extents:
                part.append(extent)
                size += extent.length
                if size >= GROUP_BYTES:
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


class PackOrder:
    """Ranks that keep the order of a walk, roughly: a backup has stored files in that order.

    By size alone, the smallest first, each batch would be read from all packs there are.
    """

    def __init__(self) -> None:
        self._files = 0

    def next(self) -> int:
        """The rank of the next file."""
        self._files += 1
        return self._files // RestoreMover.steps_max


def groups_of(
    steps: Iterable[tuple[int, TakenStep]],
) -> Iterator[list[tuple[int, TakenStep]]]:
    """Divide a batch among threads: what one of them has in memory at a time. Pure."""
    group: list[tuple[int, TakenStep]] = []
    size = 0
    for item in steps:
        group.append(item)
        size += item[1].step.size
        if size >= GROUP_BYTES or len(group) >= GROUP_FILES:
            yield group
            group, size = [], 0
    if group:
        yield group


def write_extents(handle: int, extents: Sequence[Extent], chunks: Mapping[ChunkId, bytes]) -> int:
    """Write what extents name where they say; return the bytes. Raises TreeDamaged, OSError."""
    written = 0
    at = end = 0
    run: list[bytes | memoryview] = []
    for extent in extents:
        chunk: bytes | memoryview = chunks[extent.id]
        if extent.offset + extent.length > len(chunk):
            raise TreeDamaged("a recipe names more of a chunk than there is")
        if extent.length != len(chunk):
            chunk = memoryview(chunk)[extent.offset : extent.offset + extent.length]
        if extent.start != end or len(run) >= _BUFFERS_MAX:
            _write_run(handle, run, at)
            run, at = [], extent.start
        run.append(chunk)
        end = extent.start + extent.length
        written += extent.length
    _write_run(handle, run, at)
    return written


def _write_run(handle: int, run: Sequence[bytes | memoryview], at: int) -> None:
    if not run:
        return
    total = sum(len(each) for each in run)
    done = os.pwritev(handle, run, at)
    if done < total:  # a nearly full disk, or a signal
        write_all(handle, memoryview(b"".join(run))[done:], at + done)
