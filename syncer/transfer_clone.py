"""Within the daemon's namespace a copy gets what its source has: no byte is moved.

What cannot be cloned (a file whose bytes a remote still has, one that changes) is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from syncer.door import DoorTree
from syncer.door_files import CloneFile
from syncer.options import Options
from syncer.remotes.errors import RemoteError
from syncer.steps import StepResult, StepState, TakenStep
from syncer.transfer import Mover
from syncer.transfer_meter import Meter
from syncer.transfer_steps import wanted_metadata
from syncer.tree import Node

SMALL_BYTES_MAX: Final = 4 << 20  # larger ones are cloned part by part
WAY: Final = "clone"  # in the report


class CloneMover:
    """See Mover."""

    steps_max = 500
    bytes_max = 256 << 20  # of small files, of which the daemon looks at every extent at once

    def __init__(
        self,
        source: DoorTree,
        target: DoorTree,
        options: Options,
        meter: Meter,
        cloned: Callable[[int], None],
        rest: Mover,
    ) -> None:
        """`cloned` counts files; `rest` moves what cannot be cloned."""
        assert source.is_of(target)
        self._source = source
        self._target = target
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
        metadata = wanted_metadata(node, self._options, self._target.features)
        return CloneFile(
            step.source_path, node, step.path, metadata, step.old, replace=step.old is not None
        )

    async def _small(
        self, taken: Sequence[TakenStep], places: Sequence[int], results: list[StepResult | None]
    ) -> None:
        began = time.monotonic()
        files = [self._file(taken[place]) for place in places]
        try:
            outcomes = await self._target.clone_many(
                self._source, files, xattrs=self._options.xattrs
            )
        except RemoteError:
            return
        seconds = (time.monotonic() - began) / len(files)
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Node):
                results[place] = self._done(taken[place], seconds)

    async def _large(self, taken: TakenStep) -> StepResult | None:
        began = time.monotonic()
        file = self._file(taken)
        try:
            if self._options.xattrs:
                xattrs = await self._source.xattrs(file.source_path)
                file = file._replace(metadata=file.metadata._replace(xattrs=xattrs))
            await self._target.clone_large(self._source, file)
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
