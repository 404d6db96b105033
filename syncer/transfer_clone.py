"""Copies into the namespace of what the daemon's store has: their extents, and no byte is moved.

Out of the namespace itself, or of a snapshot in the same store. What cannot be cloned (a file whose
bytes a remote still has, one that changes or is damaged) is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final, Protocol

import trio

from syncer.door import DoorTree
from syncer.door_files import CloneFile, Outcomes
from syncer.options import Options
from syncer.recipes import Extent
from syncer.remotes.errors import Changed, RemoteError
from syncer.snapshot_tree import SnapshotTree
from syncer.steps import StepResult, StepState, TakenStep
from syncer.transfer import Mover
from syncer.transfer_meter import Meter
from syncer.transfer_steps import wanted_metadata
from syncer.tree import Features, Node

SMALL_BYTES_MAX: Final = 4 << 20  # larger ones are cloned part by part
WAY: Final = "clone"  # in the report


class Cloner(Protocol):
    """Gives files what others have. Raises RemoteError; Busy, Changed: copy it."""

    async def small(self, files: Sequence[CloneFile], *, xattrs: bool) -> Outcomes:
        """Some hundred of them; each one succeeds or fails alone."""

    async def large(self, file: CloneFile, *, xattrs: bool) -> Node:
        """One of any size."""


class NamespaceCloner:
    """Files of the namespace. See Cloner."""

    def __init__(self, source: DoorTree, target: DoorTree) -> None:
        assert source.is_of(target)
        self._source = source
        self._target = target

    async def small(self, files: Sequence[CloneFile], *, xattrs: bool) -> Outcomes:
        """See Cloner."""
        return await self._target.clone_many(self._source, files, xattrs=xattrs)

    async def large(self, file: CloneFile, *, xattrs: bool) -> Node:
        """See Cloner."""
        if xattrs:
            kept = await self._source.xattrs(file.source_path)
            file = file._replace(metadata=file.metadata._replace(xattrs=kept))
        return await self._target.clone_large(self._source, file)


class SnapshotCloner:
    """Files of a snapshot in the daemon's store. See Cloner."""

    def __init__(self, source: SnapshotTree, target: DoorTree) -> None:
        self._source = source
        self._target = target

    async def small(self, files: Sequence[CloneFile], *, xattrs: bool) -> Outcomes:
        """See Cloner."""
        found = await trio.to_thread.run_sync(
            self._look, files, xattrs, abandon_on_cancel=True, limiter=self._source.limiter
        )
        written = iter(await self._target.name_many([each for each in found if each is not None]))
        gone = Changed("the snapshot shows something else now")
        return [gone if each is None else next(written) for each in found]

    def _look(
        self, files: Sequence[CloneFile], xattrs: bool
    ) -> list[tuple[CloneFile, list[Extent]] | None]:
        """Blocks."""
        found: list[tuple[CloneFile, list[Extent]] | None] = []
        for file in files:
            try:
                file, batches = self._open(file, xattrs)  # noqa: PLW2901
                found.append((file, list(chain.from_iterable(batches))))
            except RemoteError:
                found.append(None)
        return found

    def _open(self, file: CloneFile, xattrs: bool) -> tuple[CloneFile, Iterator[list[Extent]]]:
        """With its attributes, and what it shows. Blocks."""
        entry = self._source.pinned(file.source_path, file.node)
        if xattrs:
            kept = self._source.reader.xattrs(entry)
            file = file._replace(metadata=file.metadata._replace(xattrs=kept))
        return file, self._source.reader.extents(entry)

    async def large(self, file: CloneFile, *, xattrs: bool) -> Node:
        """See Cloner."""
        limiter = self._source.limiter
        file, batches = await trio.to_thread.run_sync(
            self._open, file, xattrs, abandon_on_cancel=True, limiter=limiter
        )

        async def more() -> list[Extent] | None:
            return await trio.to_thread.run_sync(
                next, batches, None, abandon_on_cancel=True, limiter=limiter
            )

        return await self._target.name_large(file, more)


class CloneMover:
    """See Mover."""

    steps_max = 500
    bytes_max = 256 << 20  # of small files, of which the daemon looks at every extent at once

    def __init__(
        self,
        cloner: Cloner,
        keeps: Features,
        options: Options,
        meter: Meter,
        cloned: Callable[[int], None],
        rest: Mover,
    ) -> None:
        """`keeps`: what the destination can; `cloned` counts files; `rest` moves the others."""
        self._cloner = cloner
        self._keeps = keeps
        self._options = options
        self._meter = meter
        self._cloned = cloned
        self._rest = rest

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover. What is to be verified is copied, so that there is something to verify."""
        results: list[StepResult | None] = [None] * len(taken)
        small: list[int] = []
        for place, each in enumerate(taken):
            if not self._fits(each):
                continue
            if each.step.size <= SMALL_BYTES_MAX:
                small.append(place)
            else:
                results[place] = await self._large(each)
        if small:
            await self._small(taken, small, results)
        await self._copy(taken, results)
        return results

    def _fits(self, taken: TakenStep) -> bool:
        step, node = taken.step, taken.step.node
        if node is None or not node.exact or taken.attempts or self._options.verify:
            return False
        return step.old is None or not self._options.trash

    def _file(self, taken: TakenStep) -> CloneFile:
        step, node = taken.step, taken.step.node
        assert node is not None
        metadata = wanted_metadata(node, self._options, self._keeps)
        return CloneFile(
            step.source_path, node, step.path, metadata, step.old, replace=step.old is not None
        )

    async def _small(
        self, taken: Sequence[TakenStep], places: Sequence[int], results: list[StepResult | None]
    ) -> None:
        began = time.monotonic()
        files = [self._file(taken[place]) for place in places]
        try:
            outcomes = await self._cloner.small(files, xattrs=self._options.xattrs)
        except RemoteError:
            return
        seconds = (time.monotonic() - began) / len(files)
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Node):
                results[place] = self._done(taken[place], seconds)

    async def _large(self, taken: TakenStep) -> StepResult | None:
        began = time.monotonic()
        try:
            await self._cloner.large(self._file(taken), xattrs=self._options.xattrs)
        except RemoteError:
            return None
        return self._done(taken, time.monotonic() - began)

    def _done(self, taken: TakenStep, seconds: float) -> StepResult:
        size = taken.step.size
        self._cloned(1)
        self._meter.bytes_done += size
        return StepResult(taken.number, StepState.DONE, bytes_saved=size, seconds=seconds)

    async def _copy(self, taken: Sequence[TakenStep], results: list[StepResult | None]) -> None:
        """What is left, in batches that fit into memory."""
        places: list[int] = []
        size = 0
        for place, each in enumerate(taken):
            if results[place] is not None:
                continue
            if places and size + each.step.size > self._rest.bytes_max:
                await self._copy_some(taken, places, results)
                places, size = [], 0
            places.append(place)
            size += each.step.size
        if places:
            await self._copy_some(taken, places, results)
        await trio.lowlevel.checkpoint()

    async def _copy_some(
        self, taken: Sequence[TakenStep], places: Sequence[int], results: list[StepResult | None]
    ) -> None:
        moved = await self._rest.move([taken[place] for place in places])
        for place, result in zip(places, moved, strict=True):
            results[place] = result
