"""What can be wrong with jobs, named by what the caller can do."""

from __future__ import annotations

from blockstore.errors import OrbitError


class JobError(OrbitError):
    """Root of the errors below."""


class NoSuchJob(JobError):
    """There is no job of this number."""


class BadJob(JobError):
    """The job cannot be submitted: unknown dependencies, a circle of them, a bad schedule."""


class NotNow(JobError):
    """The job's state does not allow it; the message says what would."""


class LeaseLost(JobError):
    """Another process has taken the job over, or removed it: stop working on it."""


class JobsDamaged(JobError):
    """`jobs.db`, or a row of it, cannot be read."""
