"""A job in the hands of the process that carries it out.

Everything here is refused with LeaseLost once another process has taken the job over: each
transaction that writes looks at the lease first. Methods are for any thread; those that say so wait
for an fsync, the others for short transactions at most.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import apsw
import trio

from syncer.job_states import ENDED, JobState, Wanted, obey
from syncer.jobs_database import JobsDatabase, run
from syncer.jobs_errors import LeaseLost
from syncer.jobs_holder import Host
from syncer.jobs_rows import EVENTS_KEPT, Job, append_events, find_jobs, set_state
from syncer.jobs_spec import decode_spec
from syncer.jobs_steps import FailedStep, StepBook, Tally, failed_steps
from syncer.options import JobSpec
from syncer.steps import Step, StepKind, StepResult, StepState, TakenStep

__all__ = ["LEASE_S", "FailedStep", "HeldJob", "Tally"]

LEASE_S: Final = 30.0  # a holder that is silent for longer has lost the job
RENEW_S: Final = 5.0
_BEAT_S: Final = 0.25  # between two looks at what is wanted; results are durable by the second one
_RESULTS_MAX: Final = 1_000  # that wait to be written


class HeldJob:
    """The holder's side of one job. `Jobs.claim` makes it."""

    def __init__(self, database: JobsDatabase, host: Host, job: Job) -> None:
        self.number = job.number
        self.spec: JobSpec = job.spec
        self._spec_text = ""  # as it was last seen
        self._changed: JobSpec | None = None  # what somebody has made of it
        self.attempt = job.attempt  # 1: it was never begun before
        self._holder = job.holder
        self._database = database
        self._host = host
        self._planned = job.planned
        self._renewed_ns = host.boot_ns()
        self._flushing = threading.Lock()  # one flush at a time
        self._telling = threading.Lock()  # guards the three below
        self._events: deque[tuple[int, str]] = deque()
        self._left_out = 0  # events too many to be kept, before those
        self._progress: str | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._steps = StepBook(database, job.number, self._changing)

    @contextlib.contextmanager
    def _changing(self, durable: bool) -> Iterator[apsw.Connection]:
        with self._database.writing(durable=durable) as connection:
            self._look(connection)
            yield connection

    def _look(self, connection: apsw.Connection) -> Wanted:
        row = connection.execute(
            "SELECT holder, wanted FROM jobs WHERE number = ?", (self.number,)
        ).fetchone()
        if row is None or row[0] != self._holder:
            raise LeaseLost(f"job {self.number} is not held by this process any more")
        return Wanted(row[1])

    # --- the lease ------------------------------------------------------------------------------

    def wanted(self) -> Wanted:
        """What people want of it now. Raises LeaseLost."""
        with self._database.reading() as connection:
            return self._look(connection)

    def renew(self) -> None:
        """Hold it for LEASE_S seconds from now."""
        now_ns = self._host.boot_ns()
        with self._changing(False) as connection:
            run(
                connection,
                "UPDATE jobs SET lease_ns = ? WHERE number = ?",
                (now_ns + int(LEASE_S * 1e9), self.number),
            )
        self._renewed_ns = now_ns

    async def tend(
        self,
        obey: Callable[[Wanted], None],
        adopt: Callable[[JobSpec], None] | None = None,
    ) -> None:
        """Run beside the work until cancelled: keep the lease and write what was recorded.

        `obey` is called when something else than RUN is wanted, and at each change after that;
        `adopt` when somebody has changed the job itself. Raises LeaseLost, StorageFull,
        StorageFailed.
        """
        told = Wanted.RUN
        while True:
            wanted = await trio.to_thread.run_sync(self._beat, limiter=self._limiter)
            if wanted is not told:
                told = wanted
                obey(wanted)
            if self._changed is not None:
                self.spec, self._changed = self._changed, None
                if adopt is not None:
                    adopt(self.spec)
            await trio.sleep(_BEAT_S)

    def _beat(self) -> Wanted:
        self.flush()
        if self._host.boot_ns() - self._renewed_ns >= RENEW_S * 1e9:
            self.renew()
        with self._database.reading() as connection:
            wanted = self._look(connection)
            ((text,),) = run(connection, "SELECT spec FROM jobs WHERE number = ?", (self.number,))
        if text != self._spec_text:
            spec = decode_spec(text)
            self._changed = spec if spec != self.spec else None
            self._spec_text = text
        return wanted

    # --- the plan -------------------------------------------------------------------------------

    def add_steps(self, steps: Iterable[Step]) -> None:
        """Append to the plan; batches of 1,000 to 10,000 are fastest. Not durable by itself.

        Raises TypeError for a node whose token or link is not made of None, numbers, text, bytes,
        `Version` and tuples of these.
        """
        self._steps.add(steps)

    @property
    def planned(self) -> bool:
        """Whether the plan is complete."""
        return self._planned

    def end_plan(self) -> None:
        """Note durably that the plan is complete. Waits for the disk."""
        with self._changing(True) as connection:
            run(connection, "UPDATE jobs SET planned = 1 WHERE number = ?", (self.number,))
        self._planned = True

    def drop_plan(self) -> None:
        """Forget the steps that wait or failed, before planning anew what a crash interrupted.

        None may be taken. Checkpoints of files stay: they belong to paths.
        """
        self.flush()
        with self._changing(False) as connection:
            run(connection, "UPDATE jobs SET planned = 0 WHERE number = ?", (self.number,))
        self._planned = False
        self._steps.drop_waiting()

    # --- the steps ------------------------------------------------------------------------------

    def next_steps(
        self, kinds: Sequence[StepKind], *, limit: int, bytes_max: int | None = None
    ) -> list[TakenStep]:
        """Take steps that wait, of these kinds, in order; empty: none waits now.

        In the order of `kinds`; then by rank and size (files), deepest first (metadata of
        directories, deletions) or shallowest first (making directories). `bytes_max`: stop before
        the sum of sizes exceeds it, but give at least one. Nobody else gets them until they are
        recorded or given back. Raises StepUnreadable.
        """
        return self._steps.take(kinds, limit=limit, bytes_max=bytes_max)

    def give_back(self, numbers: Iterable[int]) -> None:
        """Let steps that were taken but not carried out wait again."""
        self._steps.give_back(numbers)

    def record(self, results: Iterable[StepResult]) -> None:
        """Note what became of steps that were taken.

        Durable with the next flush: within half a second by `tend`, or here when 1,000 have
        gathered (which waits for the disk).
        """
        if self._steps.record(results) >= _RESULTS_MAX:
            self.flush()

    def retry_failed(self, *, attempts_max: int, transient_only: bool = True) -> int:
        """Let failed steps with fewer failed attempts wait again; return how many."""
        self.flush()
        return self._steps.retry_failed(attempts_max=attempts_max, transient_only=transient_only)

    def failures(self, after: int = 0, limit: int = 1_000) -> list[FailedStep]:
        """Failed steps above the number `after`, in order."""
        self.flush()
        with self._database.reading() as connection:
            return failed_steps(connection, self.number, after, limit)

    def tallies(self) -> dict[tuple[StepKind, StepState], Tally]:
        """How many steps of each kind are in each state; what was recorded counts.

        Running ones are WAITING.
        """
        return self._steps.tallies()

    @property
    def bytes_moved(self) -> int:
        """Over all steps and attempts of the job."""
        return self._steps.bytes_moved

    @property
    def bytes_saved(self) -> int:
        """Likewise."""
        return self._steps.bytes_saved

    def save_checkpoint(self, number: int, data: bytes | None) -> None:
        """Keep up to 64 KiB for a taken step (0: for the plan) over restarts; None: forget it.

        Durable with the next flush. A step that is done or skipped forgets its own.
        """
        self._steps.save_checkpoint(number, data)

    def checkpoint(self, number: int) -> bytes | None:
        """What was saved."""
        return self._steps.checkpoint(number)

    # --- what it tells --------------------------------------------------------------------------

    def tell(self, event: Mapping[str, Any]) -> None:
        """Append a line to its log, a JSON object; written with the next flush.

        The log keeps the last 10,000.
        """
        line = json.dumps(event, ensure_ascii=True)
        with self._telling:
            self._events.append((self._host.wall_ns(), line))
            if len(self._events) > EVENTS_KEPT:
                self._events.popleft()
                self._left_out += 1

    def show(self, progress: Mapping[str, Any]) -> None:
        """Replace its progress, a small JSON object; written with the next flush."""
        data = json.dumps(progress, ensure_ascii=True)
        with self._telling:
            self._progress = data

    # --- writing --------------------------------------------------------------------------------

    def flush(self) -> None:
        """Return when everything recorded and told so far survives a power cut."""
        self._flush(None)

    def _flush(self, then: Callable[[apsw.Connection], None] | None) -> None:
        """Write all that gathered, and do `then` in the same transaction."""
        with self._flushing:
            batch = self._steps.begin()
            with self._telling:
                events, self._events = self._events, deque()
                left_out, self._left_out = self._left_out, 0
                progress, self._progress = self._progress, None
            # Progress alone needs no fsync.
            durable = bool(batch or events or then)
            if not durable and progress is None:
                return
            try:
                with self._changing(durable) as connection:
                    self._steps.write(connection, batch, self._host.wall_ns())
                    if events:
                        append_events(connection, self.number, list(events), left_out)
                    if progress is not None:
                        run(
                            connection,
                            "REPLACE INTO progress VALUES(?, ?)",
                            (self.number, progress),
                        )
                    if then is not None:
                        then(connection)
            except BaseException:
                self._steps.put_back(batch)
                with self._telling:
                    self._events.extendleft(reversed(events))
                    self._left_out += left_out
                    if self._progress is None:
                        self._progress = progress
                raise
            self._steps.written(batch)

    # --- the end --------------------------------------------------------------------------------

    def finish(self, state: JobState, report: Mapping[str, Any], reason: str = "") -> None:
        """End the job: DONE, PARTLY, FAILED or CANCELLED. Durable, with all that was recorded."""
        assert state in ENDED, state
        text = json.dumps(report, ensure_ascii=True)

        def end(connection: apsw.Connection) -> None:
            run(
                connection,
                "UPDATE jobs SET report = ?, wanted = 'run' WHERE number = ?",
                (text, self.number),
            )
            set_state(connection, self._row(connection), state, reason, self._host.wall_ns())

        self._flush(end)

    def release(self, reason: str = "") -> JobState:
        """Give it back unfinished; return what it is then: queued, or what is wanted of it.

        Durable, with all that was recorded.
        """
        states: list[JobState] = []

        def give_back(connection: apsw.Connection) -> None:
            row = self._row(connection)
            states.append(obey(row.state, row.wanted))
            set_state(connection, row, states[-1], reason, self._host.wall_ns())

        self._flush(give_back)
        return states[-1]

    def _row(self, connection: apsw.Connection) -> Job:
        return find_jobs(connection, "number = ?", (self.number,))[0]
