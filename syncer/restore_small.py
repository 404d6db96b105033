"""Small files out of a snapshot, in batches: one sync of the file system, then all their names.

Some threads fetch chunks, in the order in which they lie in the packs. One at a time writes files,
as `local_copy` does: the lock of the interpreter would go from thread to thread at every call of
the system. Only where the file system makes it wait, all of them write.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import trio

from blockstore.disk import DIRECT_WRITE_FROM
from blockstore.ids import ChunkId
from syncer.local_batch import Batch, CopyOutcome, NewFiles, Place
from syncer.local_bytes import Method
from syncer.local_draft import umask
from syncer.local_nodes import apply
from syncer.local_root import Directories
from syncer.recipes import Extent
from syncer.remotes.errors import RemoteError
from syncer.restore_bytes import past_the_cache, write_extents
from syncer.restore_large import PART_BYTES
from syncer.restore_source import RestoreSource
from syncer.steps import StepResult, StepState, TakenStep
from syncer.transfer_content import LATER, Pass
from syncer.transfer_meter import Meter
from syncer.tree import Node
from syncer.tree_objects import Entry

GROUP_BYTES: Final = PART_BYTES  # of content in memory of each thread
GROUP_FILES: Final = 512
_WAITS_MAX: Final = 2.0  # a file, of a thread that does not wait for a disk but for the lock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _File(NamedTuple):
    """A file that is to be restored."""

    place: int  # in the batch
    path: bytes
    entry: Entry
    node: Node
    extents: Sequence[Extent]


_Fetched = Sequence[tuple[_File, Mapping[ChunkId, bytes]]]


class SmallFiles:
    """Restores files that fit into memory, some of them at a time."""

    def __init__(
        self, source: RestoreSource, meter: Meter, *, threads: int, take: Pass | None
    ) -> None:
        """See RestoreMover."""
        self._source = source
        self._target = source.target
        self._meter = meter
        self._threads = threads
        self._limiter = trio.CapacityLimiter(threads)
        self._take = take
        self._mask = umask()
        self._waits = False  # writing does, for a disk or a server
        self._new = NewFiles(source.options)  # of one batch

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover."""
        if not taken:
            return []
        began = time.monotonic()
        self._new = NewFiles(self._source.options)
        places = [Place(each.step.path, each.step.old, replace=False) for each in taken]
        batch = Batch(self._target, places, durable=self._source.durable)
        # As a backup has stored them, so that a group lies in few places.
        order = sorted(enumerate(taken), key=lambda item: item[1].step.source_path)
        groups = groups_of(order)
        digests: list[bytes | None] = [b""] * len(taken)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._threads):
                    nursery.start_soon(self._groups, batch, groups)
            outcomes = await self._target.wait(batch.publish)
            if self._source.options.verify:
                digests = await self._run(self._read_back, taken, outcomes)
        finally:
            batch.stop()
            await self._target.finish(batch.close)
        seconds = (time.monotonic() - began) / len(taken)
        return [
            self._result(each, outcome, digest, seconds)
            for each, outcome, digest in zip(taken, outcomes, digests, strict=True)
        ]

    def _result(
        self, taken: TakenStep, outcome: CopyOutcome, digest: bytes | None, seconds: float
    ) -> StepResult | None:
        if outcome.error is not None:
            if isinstance(outcome.error, LATER):
                return None
            return StepResult(taken.number, StepState.FAILED, error=str(outcome.error))
        if digest is None:
            return None  # it was removed: once more, alone
        self._meter.bytes_done += taken.step.size
        return StepResult(
            taken.number,
            StepState.DONE,
            bytes_moved=outcome.bytes_copied,
            bytes_saved=max(0, taken.step.size - outcome.bytes_copied),
            checksum=f"blake3:{digest.hex()}" if digest else "",
            seconds=seconds,
        )

    # ---- groups ----

    async def _groups(self, batch: Batch, groups: Iterator[list[tuple[int, TakenStep]]]) -> None:
        for group in groups:
            if self._take is not None:
                await self._take(sum(each.step.size for _, each in group))
            fetched = await self._run(self._fetch, batch, group)
            if self._waits:
                await self._run(self._write_group, batch, fetched)
            else:
                async with self._target.turns:
                    await self._run(self._write_group, batch, fetched)

    def _fetch(self, batch: Batch, group: Sequence[tuple[int, TakenStep]]) -> _Fetched:
        """Files of a group with their chunks; the batch is told of those that cannot be had."""
        files: list[_File] = []
        entries = self._source.entries([each.step.source_path for _, each in group])
        for (number, each), entry in zip(group, entries, strict=True):
            step = each.step
            assert step.node is not None
            if isinstance(entry, RemoteError):
                batch.fail(number, entry)
                continue
            try:
                extents = list(self._source.extents(entry))
            except RemoteError as error:
                batch.fail(number, error)
            else:
                files.append(_File(number, step.path, entry, step.node, extents))
        try:
            chunks = self._source.fetch(chain.from_iterable(file.extents for file in files))
        except RemoteError:
            return self._fetch_one_by_one(batch, files)
        return [(file, chunks) for file in files]

    def _fetch_one_by_one(self, batch: Batch, files: Sequence[_File]) -> _Fetched:
        """A chunk that is damaged or out of reach costs the files that have it, no other."""
        found = []
        for file in files:
            try:
                found.append((file, self._source.fetch(file.extents)))
            except RemoteError as error:
                batch.fail(file.place, error)
        return found

    # ---- writing ----

    def _write_group(self, batch: Batch, fetched: _Fetched) -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        with batch.writing() as directories:
            for file, chunks in fetched:
                if batch.stopped:
                    return
                mode = self._new.mode(file.path, file.node)
                fill = partial(self._write, file, chunks, mode)
                batch.write(directories, file.place, fill, mode)
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        self._waits = waits > _WAITS_MAX * len(fetched)

    def _write(
        self, file: _File, chunks: Mapping[ChunkId, bytes], mode: int, handle: int
    ) -> CopyOutcome:
        new = self._new.made(file.path, mode, handle)
        if self._source.durable and file.entry.size >= DIRECT_WRITE_FROM:
            with past_the_cache(handle) as direct:
                written = write_extents(handle, file.extents, chunks, direct)
        else:
            written = write_extents(handle, file.extents, chunks)
        if file.entry.size > (sum(file.extents[-1][:2]) if file.extents else 0):
            os.ftruncate(handle, file.entry.size)  # a hole at the end
        metadata = self._source.metadata(file.node, file.entry)
        if metadata.mode is None:
            metadata = metadata._replace(mode=0o666 & ~self._mask)
        apply(handle, metadata, old=new.found, bare=new.bare)
        return CopyOutcome(None, Method.BUFFERED, written)

    # ---- verifying ----

    def _read_back(
        self, taken: Sequence[TakenStep], outcomes: Sequence[CopyOutcome]
    ) -> list[bytes | None]:
        """The digests of those that are what they should be; the others were removed."""
        digests: list[bytes | None] = []
        entries = self._source.entries([each.step.source_path for each in taken])
        with closing(Directories(self._target.root)) as directories:
            for each, entry, outcome in zip(taken, entries, outcomes, strict=True):
                digest = None
                if outcome.error is None and not isinstance(entry, RemoteError):
                    trio.from_thread.check_cancelled()
                    digest = self._source.read_back(directories, each.step.path, entry)
                digests.append(digest)
        return digests

    async def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(
            function, *args, abandon_on_cancel=True, limiter=self._limiter
        )


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
