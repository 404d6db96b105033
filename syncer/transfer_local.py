"""Small files between two local folders: batches in which no byte goes through Python.

What a batch cannot do (a file that changed, a disk that asks for patience) is left to the way of
single steps, which tries again and says what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from syncer.jobs_held import TakenStep
from syncer.local_copy import CopyItem, CopyOutcome, Method, copy_files
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import TRANSIENT, Changed, Exists, Full
from syncer.steps import StepResult, StepState
from syncer.transfer_meter import Meter

# One sync of the file system and one hop for so many; cancelling waits for one file of them.
STEPS_MAX: Final = 4_000
BYTES_MAX: Final = 256 << 20
SMALL_BYTES_MAX: Final = 8 << 20  # larger ones have a progress of their own

_LATER: Final = (*TRANSIENT, Changed, Exists, Full)


class LocalMover:
    """See Mover."""

    steps_max = STEPS_MAX
    bytes_max = BYTES_MAX

    def __init__(
        self,
        source: LocalTree,
        target: LocalTree,
        options: Options,
        meter: Meter,
        how: Callable[[Method], None],
    ) -> None:
        """`how` counts files by the way they were copied."""
        self._source = source
        self._target = target
        self._options = options
        self._meter = meter
        self._how = how

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover."""
        results: list[StepResult | None] = [None] * len(taken)
        items: list[CopyItem] = []
        places: list[int] = []
        for place, each in enumerate(taken):
            step = each.step
            if step.size <= SMALL_BYTES_MAX and step.node is not None and not each.attempts:
                items.append(CopyItem(step.source_path, step.path, step.node, step.old))
                places.append(place)
        if not items:
            return results
        began = time.monotonic()
        outcomes = await copy_files(self._source, self._target, items, self._options)
        seconds = (time.monotonic() - began) / len(items)
        for place, outcome in zip(places, outcomes, strict=True):
            results[place] = self._result(taken[place], outcome, seconds)
        return results

    def _result(self, taken: TakenStep, outcome: CopyOutcome, seconds: float) -> StepResult | None:
        error = outcome.error
        if error is not None:
            if isinstance(error, _LATER):
                return None
            return StepResult(taken.number, StepState.FAILED, error=str(error))
        self._how(outcome.method)
        self._meter.bytes_done += taken.step.size
        copied = 0 if outcome.method is Method.REFLINK else outcome.bytes_copied
        return StepResult(
            taken.number,
            StepState.DONE,
            bytes_moved=copied,
            bytes_saved=taken.step.size - copied,
            seconds=seconds,
        )
