"""What a transfer asks of whoever keeps its steps, and a keeper in memory.

`jobs.db` keeps the steps of jobs that outlive a process (`HeldJob` is a `Ledger`). Most commands
end within a second or two: for them the memory will do, until there are too many steps for it.
Then `MemoryLedger` hands them to the one that `overflow` opens, and passes everything on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from syncer.steps import Step, StepKind, StepResult, StepState, TakenStep

STEPS_MAX: Final = 50_000  # in memory: 40 MB


# 1: shallowest first, -1: deepest first.
_BY_DEPTH: Final = {StepKind.MKDIR: 1, StepKind.DELETE: -1, StepKind.DIRECTORY_METADATA: -1}


def depth(path: bytes) -> int:
    """How many names a path has."""
    return path.count(b"/") + 1 if path else 0


class Ledger(Protocol):
    """The steps of one job; see `HeldJob`, which says more."""

    def add_steps(self, steps: Iterable[Step]) -> None:
        """Append to the plan."""

    def next_steps(
        self, kinds: Sequence[StepKind], *, limit: int, bytes_max: int | None = None
    ) -> list[TakenStep]:
        """Take steps that wait, in order; empty: none waits now."""

    def give_back(self, numbers: Iterable[int]) -> None:
        """Let steps that were taken but not carried out wait again."""

    def record(self, results: Iterable[StepResult]) -> None:
        """Note what became of steps."""

    def retry_failed(self, *, attempts_max: int, transient_only: bool = True) -> int:
        """Let failed steps with fewer failed attempts wait again; return how many."""

    def save_checkpoint(self, number: int, data: bytes | None) -> None:
        """Keep something for a step; None: forget it."""


class MemoryLedger:
    """A ledger that dies with its process."""

    def __init__(
        self, overflow: Callable[[], Ledger] | None = None, steps_max: int = STEPS_MAX
    ) -> None:
        self._overflow = overflow
        self._steps_max = steps_max
        self._next: Ledger | None = None
        self._count = 0
        self._waiting: dict[StepKind, list[tuple[int, int, int]]] = {kind: [] for kind in StepKind}
        self._steps: dict[int, Step] = {}  # that wait, run or failed
        self._attempts: dict[int, int] = {}
        self._failed: dict[int, bool] = {}  # whether it was transient
        self._checkpoints: dict[int, bytes] = {}

    @property
    def overflowed(self) -> bool:
        """Whether steps are kept elsewhere now."""
        return self._next is not None

    def _push(self, number: int, step: Step) -> None:
        sign = _BY_DEPTH.get(step.kind)
        if sign is None:
            order = (step.rank, step.size, -number)
        else:
            order = (sign * depth(step.path), 0, -number)
        heapq.heappush(self._waiting[step.kind], order)

    def add_steps(self, steps: Iterable[Step]) -> None:
        """See Ledger."""
        if self._next is not None:
            self._next.add_steps(steps)
            return
        for step in steps:
            self._count += 1
            number = -self._count  # those of jobs.db are positive
            self._steps[number] = step
            self._push(number, step)
        if self._overflow is not None and len(self._steps) > self._steps_max:
            self._spill(self._overflow)

    def _spill(self, overflow: Callable[[], Ledger]) -> None:
        """Hand over what waits; what runs or has failed stays here until it is recorded."""
        following = overflow()
        for heap in self._waiting.values():
            numbers = [-order for *_, order in sorted(heap)]
            following.add_steps(self._steps.pop(number) for number in numbers)
            heap.clear()
        self._next = following

    def next_steps(
        self, kinds: Sequence[StepKind], *, limit: int, bytes_max: int | None = None
    ) -> list[TakenStep]:
        """See Ledger."""
        taken: list[TakenStep] = []
        sum_bytes = 0
        for kind in kinds:
            heap = self._waiting[kind]
            while heap and len(taken) < limit:
                number = -heap[0][2]
                step = self._steps[number]
                if taken and bytes_max is not None and sum_bytes + step.size > bytes_max:
                    return taken
                heapq.heappop(heap)
                sum_bytes += step.size
                attempts = self._attempts.get(number, 0)
                taken.append(TakenStep(number, step, attempts, self._checkpoints.get(number)))
        if taken or self._next is None:
            return taken
        return self._next.next_steps(kinds, limit=limit, bytes_max=bytes_max)

    def give_back(self, numbers: Iterable[int]) -> None:
        """See Ledger."""
        theirs = []
        for number in numbers:
            if number > 0:
                theirs.append(number)
            else:
                self._push(number, self._steps[number])
        if theirs and self._next is not None:
            self._next.give_back(theirs)

    def record(self, results: Iterable[StepResult]) -> None:
        """See Ledger."""
        theirs = []
        for result in results:
            number = result.number
            if number > 0:
                theirs.append(result)
            elif result.state is StepState.FAILED:
                self._attempts[number] = self._attempts.get(number, 0) + 1
                self._failed[number] = result.transient
            else:
                self._steps.pop(number, None)
                self._attempts.pop(number, None)
                self._checkpoints.pop(number, None)
        if theirs and self._next is not None:
            self._next.record(theirs)

    def retry_failed(self, *, attempts_max: int, transient_only: bool = True) -> int:
        """See Ledger."""
        again = [
            number
            for number, transient in self._failed.items()
            if self._attempts[number] < attempts_max and (transient or not transient_only)
        ]
        for number in again:
            del self._failed[number]
            self._push(number, self._steps[number])
        more = 0
        if self._next is not None:
            more = self._next.retry_failed(attempts_max=attempts_max, transient_only=transient_only)
        return len(again) + more

    def save_checkpoint(self, number: int, data: bytes | None) -> None:
        """See Ledger."""
        if number > 0 and self._next is not None:
            self._next.save_checkpoint(number, data)
        elif data is None:
            self._checkpoints.pop(number, None)
        else:
            self._checkpoints[number] = data
