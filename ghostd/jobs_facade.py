"""What the control API may ask of jobs. Thread-neutral; methods block on the disk for a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncer.job_states import JobState, Wanted
from syncer.jobs import Job, Jobs
from syncer.jobs_rows import job_fields
from syncer.jobs_spec import spec_of


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the API shows it. Times in nanoseconds since 1970, 0: never."""

    number: int
    spec: Mapping[str, Any]
    state: str
    wanted: str
    reason: str
    priority: int
    after: tuple[int, ...]
    schedule: int
    attempt: int
    submitted_ns: int
    started_ns: int
    ended_ns: int
    due_ns: int
    progress: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs, newest first."""

    jobs: tuple[JobInfo, ...]


@dataclass(frozen=True, slots=True)
class JobLog:
    """Lines of a job's log, and the job as it stands."""

    job: JobInfo
    events: tuple[Mapping[str, Any], ...]
    after: int  # ask for what comes behind it


@dataclass(frozen=True, slots=True)
class JobFailures:
    """What a job could not do."""

    failures: tuple[Mapping[str, Any], ...]
    after: int


def _info(job: Job) -> JobInfo:
    return JobInfo(**job_fields(job))


class JobControl:
    """The daemon's jobs."""

    def __init__(
        self,
        jobs: Jobs,
        wake: Callable[[], None],
        audit_folder: Path,
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        """`audit_folder`: where the worker keeps the audit trail; `trouble`: see JobWorker."""
        self.trouble = trouble
        self.audit_folder = audit_folder
        self._jobs = jobs
        self._wake = wake

    def submit(self, spec: Mapping[str, Any]) -> JobInfo:
        """Queue or schedule a job. Raises BadJob."""
        number = self._jobs.submit(spec_of(spec))
        self._wake()
        return _info(self._jobs.get(number))

    def jobs(self, states: tuple[str, ...], before: int, limit: int) -> JobList:
        """Jobs, newest first."""
        wanted = [JobState(state) for state in states]
        found = self._jobs.list(wanted, before=before, limit=limit)
        return JobList(tuple(_info(job) for job in found))

    def job(self, number: int) -> JobInfo:
        """One job. Raises NoSuchJob."""
        return _info(self._jobs.get(number))

    def log(self, number: int, after: int, limit: int) -> JobLog:
        """Its log behind a line. Raises NoSuchJob."""
        job = self._jobs.get(number)  # first: of a job that has ended, the log is whole
        events = self._jobs.events(number, after, limit)
        last = events[-1].sequence if events else after
        lines = tuple({"sequence": each.sequence, **each.event} for each in events)
        return JobLog(_info(job), lines, last)

    def failures(self, number: int, after: int, limit: int) -> JobFailures:
        """What failed in it."""
        found = self._jobs.failures(number, after, limit)
        lines = tuple(
            {
                "path": each.path.decode(errors="backslashreplace"),
                "error": each.error,
                "attempts": each.attempts,
                "transient": each.transient,
            }
            for each in found
        )
        return JobFailures(lines, found[-1].number if found else after)

    def want(self, number: int, wanted: str) -> JobInfo:
        """Run, pause or cancel. Raises NoSuchJob, NotNow."""
        job = self._jobs.want(number, Wanted(wanted))
        self._wake()
        return _info(job)

    def change(
        self,
        number: int,
        bandwidth: str | None,
        priority: int | None,
        after: tuple[int, ...],
    ) -> JobInfo:
        """Change what is given. Raises NoSuchJob, BadJob, NotNow."""
        changed = self._jobs.change(number, bandwidth=bandwidth, priority=priority, after=after)
        return _info(changed)

    def retry(self, number: int) -> JobInfo:
        """Queue it again. Raises NoSuchJob, NotNow."""
        job = self._jobs.retry(number)
        self._wake()
        return _info(job)

    def remove(self, number: int) -> JobInfo:
        """Forget it. Raises NoSuchJob, NotNow."""
        job = self._jobs.get(number)
        self._jobs.remove(number)
        return _info(job)
