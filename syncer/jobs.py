"""`jobs.db`: the jobs of a daemon or a user, shared by all processes that work on them.

`Jobs` is for whoever submits, watches and steers jobs; `claim` gives a `HeldJob` (jobs_held.py) to
whoever carries one out. All methods may be called from any thread and block on the disk: commits
wait for an fsync. Docs: docs/jobs.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockstore.disk import Disk
from syncer.job_states import JobState, Wanted
from syncer.jobs_held import HeldJob
from syncer.options import JobSpec


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands."""

    number: int
    spec: JobSpec
    state: JobState
    wanted: Wanted
    reason: str  # why it is in this state, for people: "waits for job 3", an error, …
    priority: int  # higher first
    after: tuple[int, ...]  # jobs it waits for, those that are done included
    schedule: int  # the scheduled job that this is a run of; 0: none
    attempt: int  # how often it was begun
    submitted_ns: int  # nanoseconds since 1970; likewise below
    started_ns: int  # of the last attempt; 0: never
    ended_ns: int  # 0: not yet
    due_ns: int  # scheduled jobs: the next run; 0: none
    progress: Mapping[str, Any]  # as its holder told last
    report: Mapping[str, Any]  # as it ended; empty: not yet


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's log."""

    job: int
    sequence: int  # from 1 in each job, without gaps; the oldest go first
    at_ns: int
    event: Mapping[str, Any]


class Jobs:
    """The open `jobs.db`."""

    @classmethod
    def open(cls, path: Path, disk: Disk | None = None) -> Jobs:
        """Open the file, or make it (mode 0600).

        Raises FormatTooNew, JobsDamaged, StorageFull, StorageFailed.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close it. Held jobs stay held until their process ends or their lease runs out."""
        raise NotImplementedError

    # --- submitting and steering -------------------------------------------------------------

    def submit(self, spec: JobSpec) -> int:
        """Queue a job, or schedule it; return its number. Durable. Raises BadJob."""
        raise NotImplementedError

    def add_dependencies(self, number: int, after: Sequence[int]) -> None:
        """Let a job that has not begun wait for others too. Raises NoSuchJob, BadJob, NotNow."""
        raise NotImplementedError

    def want(self, number: int, wanted: Wanted) -> Job:
        """Run (again), pause or cancel; return the job as it stands then. Durable.

        What nobody holds changes at once; a holder sees it within half a second. Raises NoSuchJob,
        NotNow when the job has ended.
        """
        raise NotImplementedError

    def set_priority(self, number: int, priority: int) -> None:
        """Change when its turn comes. Raises NoSuchJob, NotNow when the job has ended."""
        raise NotImplementedError

    def retry(self, number: int) -> Job:
        """Queue a failed, partly done or cancelled job again: its failed steps, and what is left.

        Jobs that failed because this one did are queued with it. Raises NoSuchJob, NotNow.
        """
        raise NotImplementedError

    def remove(self, number: int) -> None:
        """Forget a job that has ended, or a schedule. Raises NoSuchJob, NotNow."""
        raise NotImplementedError

    def clean(self, *, days: float, jobs_max: int) -> int:
        """Forget the steps and logs of jobs that ended more than `days` ago or are not among the
        last `jobs_max`; their reports stay. Return how many jobs were cleaned.
        """
        raise NotImplementedError

    # --- watching -------------------------------------------------------------------------------

    def get(self, number: int) -> Job:
        """One job. Raises NoSuchJob."""
        raise NotImplementedError

    def list(
        self, states: Sequence[JobState] = (), *, before: int = 0, limit: int = 1_000
    ) -> list[Job]:
        """Jobs, newest first; `states` empty: all. `before`: page on from this number."""
        raise NotImplementedError

    def events(self, number: int, after: int = 0, limit: int = 1_000) -> list[JobEvent]:
        """Events with a sequence number above `after`, oldest first. Raises NoSuchJob."""
        raise NotImplementedError

    def failures(self, number: int, after: int = 0, limit: int = 1_000) -> list[Any]:
        """Failed steps (`jobs_held.FailedStep`) above the step number `after`, in order."""
        raise NotImplementedError

    def version(self) -> int:
        """A number that is another one when the file may have changed. Costs microseconds."""
        raise NotImplementedError

    # --- working ----------------------------------------------------------------------------------

    def claim(self, number: int = 0) -> HeldJob | None:
        """Take the job whose turn it is, or this one; None: there is nothing to do now.

        Due schedules are looked at first. The caller must `tend` it until it is given back.
        Raises NotNow for a `number` that cannot be claimed (ended, paused, held by another).
        """
        raise NotImplementedError

    def next_due_s(self) -> float | None:
        """Seconds until the next schedule is due (0: a job waits already); None: nothing is."""
        raise NotImplementedError
