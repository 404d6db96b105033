"""Small files in batches, into the daemon's namespace and out of it.

One by one, each would cost three calls through the door. What a batch cannot do (a file that
changed, that is there already, a disk that is full) is left to the way of single steps, which tries
again and says what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from syncer.door_files import SmallFile
from syncer.options import Options
from syncer.remotes.errors import Missing, RemoteError
from syncer.small_reads import Wanted, read_small
from syncer.steps import StepResult, StepState, TakenStep
from syncer.transfer_content import LATER, Pass
from syncer.transfer_meter import Meter
from syncer.transfer_steps import wanted_metadata
from syncer.tree import Features, Tree, Whole

SMALL_BYTES_MAX: Final = 1 << 20  # larger ones have a progress of their own
_LIMITED_STEPS: Final = 16  # in a batch that waits for bandwidth


class ManyWriter(Protocol):
    """A tree that takes many small files at once."""

    @property
    def features(self) -> Features:
        """See Tree."""

    @property
    def steps_max(self) -> int:
        """Files of a batch."""

    @property
    def bytes_max(self) -> int:
        """Of a batch; they are in memory, twice for each batch under way."""

    async def write_many(self, files: Sequence[SmallFile]) -> Sequence[object]:
        """Write them; a RemoteError in the place of each that failed."""


class _Read(NamedTuple):
    """A file of a batch with its bytes and attributes."""

    place: int  # in the batch
    file: SmallFile


class ManyMover:
    """See Mover."""

    def __init__(
        self,
        source: Tree,
        target: ManyWriter,
        options: Options,
        meter: Meter,
        *,
        take: Pass | None = None,
        limited: Callable[[], bool] = lambda: False,
    ) -> None:
        """`take` waits for bandwidth; `limited`: whether it does."""
        self._source = source
        self._target = target
        self._options = options
        self._meter = meter
        self._take = take
        self._limited = limited
        self.bytes_max = target.bytes_max

    @property
    def steps_max(self) -> int:
        """See Mover. What waits for bandwidth shows that it moves."""
        most = self._target.steps_max
        return min(_LIMITED_STEPS, most) if self._limited() else most

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover. What is to be verified is left to the way of single steps, which does it."""
        results: list[StepResult | None] = [None] * len(taken)
        places = [place for place, each in enumerate(taken) if self._fits(each)]
        if not places:
            await trio.lowlevel.checkpoint()
            return results
        began = time.monotonic()
        if self._take is not None:
            await self._take(sum(taken[place].step.size for place in places))
        read = await self._read(taken, places)
        if not read:
            return results
        try:
            outcomes = await self._target.write_many([each.file for each in read])
        except RemoteError:
            return results  # one by one, with the patience that each has
        seconds = (time.monotonic() - began) / len(read)
        for each, outcome in zip(read, outcomes, strict=True):
            results[each.place] = self._result(taken[each.place], outcome, seconds)
        return results

    def _fits(self, taken: TakenStep) -> bool:
        step, node = taken.step, taken.step.node
        if node is None or not node.exact or taken.attempts or self._options.verify:
            return False
        if step.size > SMALL_BYTES_MAX:
            return False
        holes = node.allocated is not None and node.allocated < step.size
        if holes and self._target.features.holes:
            return False  # it keeps them
        return step.old is None or not self._options.trash

    def _small(self, taken: TakenStep, place: int, whole: Whole) -> _Read:
        step = taken.step
        assert step.node is not None
        return _Read(
            place,
            SmallFile(
                step.path,
                whole.data,
                wanted_metadata(step.node, self._options, self._target.features, whole.xattrs),
                step.old,
                replace=step.old is not None,
            ),
        )

    @property
    def _with_xattrs(self) -> bool:
        return self._options.xattrs and self._target.features.xattrs

    async def _read(self, taken: Sequence[TakenStep], places: Sequence[int]) -> list[_Read]:
        """All that can be read as they were listed."""
        wanted: list[Wanted] = []
        for place in places:
            step = taken[place].step
            assert step.node is not None
            wanted.append((step.source_path, step.node))
        read = await read_small(self._source, wanted, xattrs=self._with_xattrs)
        return [
            self._small(taken[place], place, whole)
            for place, whole in zip(places, read, strict=True)
            if isinstance(whole, Whole)
        ]

    def _result(self, taken: TakenStep, outcome: object, seconds: float) -> StepResult | None:
        if isinstance(outcome, (*LATER, Missing)):
            return None
        if isinstance(outcome, RemoteError):
            return StepResult(taken.number, StepState.FAILED, error=str(outcome))
        self._meter.bytes_done += taken.step.size
        return StepResult(
            taken.number, StepState.DONE, bytes_moved=taken.step.size, seconds=seconds
        )
