"""What a job can be, and what it can become. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable
from typing import Final


class JobState(enum.StrEnum):
    """Where a job stands."""

    SCHEDULED = "scheduled"  # never runs itself: at each of its times a job of its own is queued
    QUEUED = "queued"  # waits for its turn or for other jobs
    RUNNING = "running"  # somebody holds its lease
    PAUSED = "paused"
    DONE = "done"
    PARTLY = "partly"  # ran to its end, but some steps failed
    FAILED = "failed"
    CANCELLED = "cancelled"


class Wanted(enum.StrEnum):
    """What people want of a job. Whoever holds it obeys; without a holder it happens at once."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


ENDED: Final = frozenset(
    {JobState.DONE, JobState.PARTLY, JobState.FAILED, JobState.CANCELLED},
)

STEPS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.SCHEDULED: frozenset({JobState.PAUSED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset(
        # FAILED: a job that this one waits for did not get done.
        {JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED},
    ),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.PAUSED}) | ENDED,
    JobState.PAUSED: frozenset(
        {JobState.QUEUED, JobState.SCHEDULED, JobState.CANCELLED, JobState.FAILED},
    ),
    JobState.DONE: frozenset(),
    # Tried again.
    JobState.PARTLY: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED, JobState.SCHEDULED}),
}

RETRIABLE: Final = ENDED - {JobState.DONE}


def may_step(old: JobState, new: JobState) -> bool:
    """Whether a job may go from one state to the other."""
    return new in STEPS[old]


def obey(state: JobState, wanted: Wanted, *, scheduled: bool = False) -> JobState:
    """Return the state that a job which nobody holds takes when this is wanted of it.

    RUNNING stands for a job whose holder is dead. `scheduled`: it has times of its own. The same
    state means that there is nothing to change.
    """
    if state in ENDED:
        return state
    if wanted is Wanted.CANCEL:
        return JobState.CANCELLED
    if wanted is Wanted.PAUSE:
        return JobState.PAUSED
    return JobState.SCHEDULED if scheduled else JobState.QUEUED


def cycle(job: int, after: Iterable[int], needs: Callable[[int], Collection[int]]) -> list[int]:
    """Return the jobs of a circle that `after` would close, beginning and ending with `job`.

    `needs` gives what a job waits for already. Empty: there is no circle.
    """
    came_from: dict[int, int] = {}
    todo = []
    for needed in after:
        if needed == job:
            return [job, job]
        came_from[needed] = job
        todo.append(needed)
    while todo:
        at = todo.pop()
        for needed in needs(at):
            if needed == job:
                back = [job, at]
                while back[-1] != job:
                    back.append(came_from[back[-1]])
                return back[::-1]
            if needed not in came_from:
                came_from[needed] = at
                todo.append(needed)
    return []
