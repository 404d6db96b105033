"""The routes of jobs, version 1. Imported in the API's thread only (FastAPI is slow)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

import trio
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from ghostd import jobs_facade as facade
from ghostd.errors import FilesystemError
from ghostd.facade import Control
from syncer.job_states import JobState

PAGE_MAX: Final = 5_000
_THREADS_MAX: Final = 4
_LIMIT_S: Final = 30.0

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]


class JobsAbsent(FilesystemError):
    """The daemon runs without jobs."""


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SubmitCall(_Call):
    """A job to be queued."""

    spec: Annotated[dict[str, Any], Field(max_length=100)]


class WantCall(_Call):
    """What is wanted of a job."""

    wanted: Literal["run", "pause", "cancel"]


class SetCall(_Call):
    """What is changed of a job."""

    bandwidth: Annotated[str, Field(max_length=10_000)] | None = None  # a rate or timetable
    priority: int | None = None
    after: Annotated[
        tuple[int, ...], Field(max_length=1_000)
    ] = ()  # jobs that it waits for as well


def add_jobs(app: FastAPI, control: Control) -> None:
    """Add the routes."""
    threads = trio.CapacityLimiter(_THREADS_MAX)

    async def call(work: Callable[[facade.JobControl], T]) -> T:
        jobs = control.jobs
        if jobs is None:
            raise JobsAbsent("this daemon runs without jobs")
        with trio.move_on_after(_LIMIT_S):
            return await trio.to_thread.run_sync(
                work, jobs, abandon_on_cancel=True, limiter=threads
            )
        raise TimeoutError(f"no answer within {_LIMIT_S:g} s: the disk is slow or stuck")

    @app.post("/v1/jobs", operation_id="submit_job", status_code=201)
    async def submit(body: SubmitCall) -> facade.JobInfo:
        """Queue a job, or schedule it."""
        return await call(lambda jobs: jobs.submit(body.spec))

    @app.get("/v1/jobs", operation_id="jobs")
    async def jobs(
        state: Annotated[list[JobState] | None, Query()] = None, before: int = 0, limit: Limit = 100
    ) -> facade.JobList:
        """List jobs, newest first."""
        return await call(lambda jobs: jobs.jobs(tuple(state or ()), before, limit))

    @app.get("/v1/jobs/{number}", operation_id="job")
    async def job(number: int) -> facade.JobInfo:
        """Show a job."""
        return await call(lambda jobs: jobs.job(number))

    @app.get("/v1/jobs/{number}/log", operation_id="job_log")
    async def log(number: int, after: int = 0, limit: Limit = 1_000) -> facade.JobLog:
        """Give what a job told, behind a line of its log."""
        return await call(lambda jobs: jobs.log(number, after, limit))

    @app.get("/v1/jobs/{number}/failures", operation_id="job_failures")
    async def failures(number: int, after: int = 0, limit: Limit = 1_000) -> facade.JobFailures:
        """Give what a job could not do."""
        return await call(lambda jobs: jobs.failures(number, after, limit))

    @app.post("/v1/jobs/{number}/want", operation_id="want_job")
    async def want(number: int, body: WantCall) -> facade.JobInfo:
        """Let a job run, pause or end."""
        return await call(lambda jobs: jobs.want(number, body.wanted))

    @app.post("/v1/jobs/{number}/set", operation_id="set_job")
    async def set_(number: int, body: SetCall) -> facade.JobInfo:
        """Change a job that has not ended: how fast it may go, when its turn comes."""
        return await call(
            lambda jobs: jobs.change(number, body.bandwidth, body.priority, body.after)
        )

    @app.post("/v1/jobs/{number}/retry", operation_id="retry_job")
    async def retry(number: int) -> facade.JobInfo:
        """Queue a job again that has failed, was cancelled or did not do all."""
        return await call(lambda jobs: jobs.retry(number))

    @app.delete("/v1/jobs/{number}", operation_id="remove_job")
    async def remove(number: int) -> facade.JobInfo:
        """Forget a job that has ended, or a schedule."""
        return await call(lambda jobs: jobs.remove(number))
