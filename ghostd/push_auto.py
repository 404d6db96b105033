"""Pushes projections of mode `rw` by themselves, once their files are closed.

Each push is a job like those that users start, but for one thing: what somebody has open waits for
another time. Nothing is remembered here that the namespace does not know: after a crash what was
not pushed is found and pushed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from blockstore.errors import OrbitError
from ghostd.attached_paths import AttachedPaths
from ghostd.job_service import JobService
from ghostd.projection import Projection
from ghostd.projections import Projections
from ghostd.push_watch import PushWatch
from syncer.job_states import ENDED, JobState
from syncer.jobs import Job
from syncer.jobs_errors import JobError
from syncer.options import JobSpec, Options, Verb

log = structlog.get_logger(__name__)

AUTO_MODE: Final = "rw"
_GROUPED: Final = 10  # who changes things all the time is pushed after so many delays
_LOOK_S: Final = 0.2  # at a job that runs
_RETRY_S: Final = 5.0  # a remote that was away; doubles
_RETRY_MAX_S: Final = 120.0
_RUNNING: Final = (JobState.QUEUED, JobState.RUNNING)


@dataclass(slots=True)
class Pushing:
    """How the pushes of one projection are going."""

    error: str = ""  # of the last push; "": it has sent everything
    retry_s: float = 0.0  # until the next try; 0: none is due before something changes
    pushed_at: float = 0.0  # seconds since 1970, when the last one ended; 0: never
    running: bool = False
    waiting: bool = False  # something was changed since the last push began

    @property
    def busy(self) -> bool:
        """There is, or may be, something to push."""
        return self.running or self.waiting


class AutoPush:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        jobs: JobService,
        watch: PushWatch,
        projections: Projections,
        paths: AttachedPaths,
        mount: Path,
        delay_s: float,
    ) -> None:
        """`delay_s`: from a change to its push, so that changes go together."""
        self._jobs = jobs
        self._watch = watch
        self._projections = projections
        self._paths = paths
        self._mount = mount
        self._delay_s = delay_s
        self._states: dict[int, Pushing] = {}
        self._failed: dict[int, int] = {}  # projection → its job that failed last, kept to be seen
        self._ended = trio.Event()

    def state(self, projection: int) -> Pushing:
        """How it is going."""
        known = self._projections.get(projection)
        if known is None or known.row.mode != AUTO_MODE:
            return Pushing()
        state = self._states.setdefault(projection, Pushing())
        state.waiting = projection in self._watch.touched
        return state

    def _all(self) -> list[Projection]:
        return [each for each in self._projections.all() if each.row.mode == AUTO_MODE]

    async def run(self) -> None:
        """Push what is due, until cancelled."""
        for projection in self._all():
            if self._projections.changes(projection.row.id):
                self._watch.touch(projection.row.id)
        async with trio.open_nursery() as nursery:
            while True:
                wait_s = self._start_due(nursery)
                with trio.move_on_after(wait_s):
                    await self._watch.news.wait()
                self._watch.news = trio.Event()

    def _start_due(self, nursery: trio.Nursery) -> float:
        """Start the pushes that are due; seconds until the next one."""
        now = time.monotonic()
        next_s = 3_600.0
        known = {each.row.id for each in self._all()}
        for number, touched in list(self._watch.touched.items()):
            if number not in known:
                del self._watch.touched[number]  # of mode cow, or gone
                continue
            state = self._states.setdefault(number, Pushing())
            if state.running:
                continue  # looked at again when it has ended
            due = min(touched.last_s + self._delay_s, touched.first_s + _GROUPED * self._delay_s)
            if due > now:
                next_s = min(next_s, due - now)
                continue
            del self._watch.touched[number]
            state.running = True
            nursery.start_soon(self._push, number, state)
        return next_s

    async def _push(self, number: int, state: Pushing) -> None:
        try:
            job = await self._job(number)
            if job is not None:
                await self._note(number, state, job)
        finally:
            state.running = False
            self._ended.set()
            self._ended = trio.Event()
            self._watch.news.set()
        if state.retry_s:
            await trio.sleep(state.retry_s)
            self._watch.touch(number)
            self._watch.news.set()

    async def _job(self, number: int) -> Job | None:
        """Push, and wait for the end of it; None: the projection is gone."""
        path = await self._paths.path_of(number)
        if self._projections.get(number) is None or path == b"?":
            return None
        spec = JobSpec(
            Verb.PUSH,
            os.fsdecode(os.fsencode(self._mount) + path),
            options=Options(closed_only=True),
        )
        jobs = self._jobs.jobs
        try:
            earlier = await trio.to_thread.run_sync(lambda: jobs.list(_RUNNING, limit=100))
            mine = next((job.number for job in earlier if job.spec == spec), 0)
            if not mine:  # none goes on from before the daemon was stopped
                mine = await trio.to_thread.run_sync(jobs.submit, spec)
                self._jobs.worker.wake()
            while True:
                job = await trio.to_thread.run_sync(jobs.get, mine)
                if job.state in ENDED:
                    return job
                await trio.sleep(_LOOK_S)
        except OrbitError as error:
            log.warning(
                "a projection could not be pushed", path=os.fsdecode(path), error=str(error)
            )
            return None

    async def _note(self, number: int, state: Pushing, job: Job) -> None:
        state.pushed_at = time.time()
        report: Mapping[str, Any] = job.report
        state.error = "" if job.state is JobState.DONE else job.reason or f"job {job.number} failed"
        transient = any(each.get("transient") for each in report.get("failures", ()))
        if state.error and (transient or not report):
            state.retry_s = min(_RETRY_MAX_S, max(_RETRY_S, 2 * state.retry_s))
        else:
            state.retry_s = 0.0
        if state.error:
            log.warning("not everything was pushed", job=job.number, reason=state.error)
        done = [self._failed.pop(number, 0)]
        if state.error:
            self._failed[number] = job.number
        else:
            done.append(job.number)
        for each in filter(None, done):
            try:
                await trio.to_thread.run_sync(self._jobs.jobs.remove, each)
            except JobError:
                continue  # the user was faster

    async def drain(self, limit_s: float) -> None:
        """Push what is closed now, for so long at most; the rest goes after the next start."""
        with trio.move_on_after(limit_s):
            for number, touched in self._watch.touched.items():
                del number
                touched.first_s = touched.last_s = 0.0
            self._watch.news.set()
            while self._watch.touched or any(each.running for each in self._states.values()):
                await self._ended.wait()
