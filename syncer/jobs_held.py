"""A job in the hands of the process that carries it out.

Everything here is refused with LeaseLost once another process has taken the job over: each
transaction that writes looks at the lease. Methods are for any thread; those marked so wait for
an fsync, the others for short transactions at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from syncer.job_states import JobState, Wanted
from syncer.options import JobSpec
from syncer.steps import Step, StepKind, StepResult, StepState


class TakenStep(NamedTuple):
    """A step to be carried out; its StepResult names its number."""

    number: int
    step: Step
    attempts: int  # that have failed before
    checkpoint: bytes | None  # what was saved for it


class FailedStep(NamedTuple):
    """A step that failed."""

    number: int
    kind: StepKind
    path: bytes
    attempts: int
    transient: bool  # the last attempt's error may pass
    error: str
    at_ns: int  # nanoseconds since 1970


class Tally(NamedTuple):
    """A sum over steps."""

    steps: int = 0
    bytes: int = 0  # sizes, as planned


class HeldJob:
    """The holder's side of one job."""

    number: int
    spec: JobSpec
    attempt: int  # 1: it was never begun before

    # --- the lease ------------------------------------------------------------------------------

    def wanted(self) -> Wanted:
        """What people want of it now. Raises LeaseLost."""
        raise NotImplementedError

    async def tend(self, obey: Callable[[Wanted], None]) -> None:
        """Run beside the work until cancelled: renew the lease, write behind what was recorded, and
        call `obey` when something else than RUN is wanted (at once, and at each change).

        Raises LeaseLost, StorageFull, StorageFailed.
        """
        raise NotImplementedError

    # --- the plan -------------------------------------------------------------------------------

    def add_steps(self, steps: Iterable[Step]) -> None:
        """Append to the plan; batches of 1,000 to 10,000 are fastest. Not durable by itself."""
        raise NotImplementedError

    @property
    def planned(self) -> bool:
        """Whether the plan is complete."""
        raise NotImplementedError

    def end_plan(self) -> None:
        """Note durably that the plan is complete. Waits for the disk."""
        raise NotImplementedError

    def drop_plan(self) -> None:
        """Forget the steps that wait, before planning anew what a crash has interrupted."""
        raise NotImplementedError

    # --- the steps ------------------------------------------------------------------------------

    def next_steps(
        self, kinds: Sequence[StepKind], *, limit: int, bytes_max: int | None = None
    ) -> list[TakenStep]:
        """Take steps that wait, of these kinds, in order; empty: none waits now.

        In the order of `kinds`; then by rank and size (files), deepest first (metadata of
        directories, deletions) or shallowest first (making directories). `bytes_max`: stop before
        the sum of sizes exceeds it, but give at least one. Nobody else gets them until they are
        recorded or given back.
        """
        raise NotImplementedError

    def give_back(self, numbers: Iterable[int]) -> None:
        """Let steps that were taken but not carried out wait again."""
        raise NotImplementedError

    def record(self, results: Iterable[StepResult]) -> None:
        """Note what became of steps. Durable with the next flush: within half a second by `tend`,
        or here when 1,000 have gathered (which waits for the disk).
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Return when everything recorded and told so far survives a power cut."""
        raise NotImplementedError

    def retry_failed(self, *, attempts_max: int, transient_only: bool = True) -> int:
        """Let failed steps with fewer failed attempts wait again; return how many."""
        raise NotImplementedError

    def failures(self, after: int = 0, limit: int = 1_000) -> list[FailedStep]:
        """Failed steps above the number `after`, in order."""
        raise NotImplementedError

    def tallies(self) -> dict[tuple[StepKind, StepState], Tally]:
        """How many steps of each kind are in each state; what was recorded counts."""
        raise NotImplementedError

    @property
    def bytes_moved(self) -> int:
        """Over all steps and attempts of the job."""
        raise NotImplementedError

    @property
    def bytes_saved(self) -> int:
        """Likewise."""
        raise NotImplementedError

    def save_checkpoint(self, number: int, data: bytes | None) -> None:
        """Keep up to 64 KiB for a step (0: for the plan) over restarts; None: forget it.

        Durable with the next flush. A step that is done forgets its own.
        """
        raise NotImplementedError

    def checkpoint(self, number: int) -> bytes | None:
        """What was saved."""
        raise NotImplementedError

    # --- what it tells --------------------------------------------------------------------------

    def tell(self, event: Mapping[str, Any]) -> None:
        """Append a line to its log, a JSON object; written with the next flush."""
        raise NotImplementedError

    def show(self, progress: Mapping[str, Any]) -> None:
        """Replace its progress, a small JSON object; written at most four times a second."""
        raise NotImplementedError

    # --- the end --------------------------------------------------------------------------------

    def finish(self, state: JobState, report: Mapping[str, Any], reason: str = "") -> None:
        """End the job: DONE, PARTLY, FAILED or CANCELLED. Durable, with all that was recorded."""
        raise NotImplementedError

    def release(self, state: JobState, reason: str = "") -> None:
        """Give it back unfinished: PAUSED or QUEUED. Durable, with all that was recorded."""
        raise NotImplementedError
