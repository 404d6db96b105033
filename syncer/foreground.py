"""A job in the user's own process, seen in `jobs.db` once it turns out to be worth it.

Most commands end within two seconds: they open no database. A longer one is begun there, so that
`orbit jobs` shows it, others can pause or cancel it, and it goes on after a crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from blockstore.errors import OrbitError
from syncer.context import Context
from syncer.engine import Control, run_job
from syncer.events import Event, Progress, Report, Tell
from syncer.job_link import CLEAN_DAYS, CLEAN_JOBS_MAX, JobTell, adopt, end, obey
from syncer.linux import few_heaps
from syncer.options import JobSpec

if TYPE_CHECKING:
    from syncer.jobs import Jobs
    from syncer.jobs_held import HeldJob
    from syncer.transfer_ledger import Ledger

BEGIN_AFTER_S: Final = 2.0


def jobs_path(context: Context) -> Path:
    """Where the jobs of this user are."""
    return context.state / "jobs.db"


def open_jobs(context: Context) -> Jobs:
    """The user's jobs. Blocks. Raises OrbitError."""
    from syncer.jobs import Jobs

    context.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Jobs.open(jobs_path(context))


class _Both:
    """Tells whoever watches, and the job's log once there is one."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._early: list[Event] = []
        self._log: Tell | None = None
        self.files = tell.files

    def begin(self, log: Tell) -> None:
        for event in self._early:
            log.event(event)
        self._early.clear()
        self._log = log

    def event(self, event: Event) -> None:
        self._tell.event(event)
        if event.event.startswith(("job.", "notice", "file.failed", "difference")):
            if self._log is not None:
                self._log.event(event)
            elif len(self._early) < 1_000:
                self._early.append(event)

    def progress(self, progress: Progress) -> None:
        self._tell.progress(progress)
        if self._log is not None:
            self._log.progress(progress)


class Foreground:
    """One job of this process."""

    def __init__(
        self, spec: JobSpec, context: Context, tell: Tell, *, dry_run: bool = False
    ) -> None:
        self.control = Control()
        self._spec = spec
        self._context = context
        self._tell = _Both(tell)
        self._dry_run = dry_run
        self._jobs: Jobs | None = None
        self.held: HeldJob | None = None

    @property
    def number(self) -> int:
        """In `jobs.db`; 0: it is not there yet."""
        return self.held.number if self.held is not None else 0

    def begin(self) -> HeldJob:
        """Have it in `jobs.db`. Blocks for some milliseconds. Raises OrbitError."""
        if self.held is None:
            self._jobs = open_jobs(self._context)
            self.held = self._jobs.begin(self._spec)
            self._tell.begin(JobTell(self.held))
        return self.held

    def _overflow(self) -> Ledger:
        return self.begin()

    async def run(self, begun: Callable[[int], None] | None = None) -> Report:
        """From beginning to end. `begun` is given its number when it has one."""
        few_heaps()
        async with trio.open_nursery() as nursery:

            async def tend() -> None:
                await trio.sleep(BEGIN_AFTER_S)
                held = self.begin()
                if begun is not None:
                    begun(held.number)
                await held.tend(partial(obey, self.control), partial(adopt, self.control))

            if not self._dry_run:
                nursery.start_soon(tend)
            report = await run_job(
                self._spec,
                self._context,
                self._tell,
                overflow=self._overflow,
                control=self.control,
                dry_run=self._dry_run,
            )
            nursery.cancel_scope.cancel()
        if self.held is not None and report.outcome != "detached":
            held = self.held
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(end, held, report)
                await trio.to_thread.run_sync(self._clean)
        return report

    def _clean(self) -> None:
        """Forget the steps of old jobs: no worker may ever do it. Blocks."""
        if self._jobs is not None:
            with contextlib.suppress(OrbitError):  # the next one will
                self._jobs.clean(days=CLEAN_DAYS, jobs_max=CLEAN_JOBS_MAX)

    def close(self) -> None:
        """Let go of `jobs.db`."""
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
