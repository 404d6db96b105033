"""`jobs.db`: the jobs of a daemon or a user, shared by all processes that work on them.

`Jobs` is for whoever submits, watches and steers jobs; `claim` gives a `HeldJob` (jobs_held.py) to
whoever carries one out. All methods may be called from any thread and block on the disk: commits
wait for an fsync. Docs: docs/jobs.md.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from blockstore.disk import Disk
from syncer.bandwidth import BadRate, parse_timetable
from syncer.job_states import ENDED, RETRIABLE, JobState, Wanted, cycle, obey
from syncer.jobs_database import JobsDatabase, run, run_many
from syncer.jobs_errors import BadJob, NoSuchJob, NotNow
from syncer.jobs_held import LEASE_S, HeldJob
from syncer.jobs_holder import Host
from syncer.jobs_rows import (
    Job,
    blocked_jobs,
    find_jobs,
    get_job,
    insert_job,
    log_state,
    outcome,
    set_state,
    unfinished_need,
)
from syncer.jobs_spec import encode_spec
from syncer.jobs_steps import NUMBER_SHIFT, FailedStep, failed_steps
from syncer.options import JobSpec
from syncer.schedule import BadSchedule, next_due

__all__ = ["Job", "JobEvent", "Jobs"]

_CLEAN_ROWS: Final = 20_000  # in one transaction, so that others get their turn
_NEVER_NS: Final = 1 << 62
_S: Final = 10**9
# A queued job that waits for nothing.
_READY: Final = (
    "state = 'queued' AND NOT EXISTS(SELECT 1 FROM dependencies d "
    "JOIN jobs n ON n.number = d.needs WHERE d.job = jobs.number AND n.state != 'done')"
)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's log."""

    job: int
    sequence: int  # from 1 in each job, without gaps; the oldest go first
    at_ns: int
    event: Mapping[str, Any]


class Jobs:
    """The open `jobs.db`."""

    def __init__(self, database: JobsDatabase, host: Host) -> None:
        self._database = database
        self._host = host

    @classmethod
    def open(cls, path: Path, disk: Disk | None = None, host: Host | None = None) -> Jobs:
        """Open the file, or make it (mode 0600).

        Raises FormatTooNew, JobsDamaged, StorageFull, StorageFailed.
        """
        return cls(JobsDatabase(path, disk), host or Host())

    def close(self) -> None:
        """Close it. Held jobs stay held until their process ends or their lease runs out."""
        self._database.close()

    # --- submitting and steering ----------------------------------------------------------------

    def submit(self, spec: JobSpec) -> int:
        """Queue a job, or schedule it; return its number. Durable. Raises BadJob."""
        with self._database.writing() as connection:
            return self._submit(connection, spec)

    def begin(self, spec: JobSpec) -> HeldJob:
        """Submit a job and claim it in one go, before anyone else can.

        Raises BadJob, also when it is scheduled or must wait for another job.
        """
        with self._database.writing() as connection:
            number = self._submit(connection, spec)
            if spec.schedule or not find_jobs(connection, f"number = ? AND {_READY}", (number,)):
                raise BadJob("a job that is begun now cannot wait for others or for its time")
            job = self._take(connection, number)
        return HeldJob(self._database, self._host, job)

    def _submit(self, connection: apsw.Connection, spec: JobSpec) -> int:
        now_ns = self._host.wall_ns()
        number = insert_job(connection, encode_spec(spec), spec.priority, now_ns)
        self._depend(connection, number, spec.after)
        if spec.schedule:
            try:
                due_ns = next_due(spec.schedule, now_ns, self._host.zone())
            except BadSchedule as error:
                raise BadJob(str(error)) from error
            run(
                connection,
                "UPDATE jobs SET state = 'scheduled', due_ns = ? WHERE number = ?",
                (due_ns, number),
            )
            log_state(connection, number, JobState.SCHEDULED, "", now_ns)
        return number

    def _depend(self, connection: apsw.Connection, number: int, after: Sequence[int]) -> None:
        for needed in after:
            try:
                needs = get_job(connection, needed)
            except NoSuchJob:
                raise BadJob(f"the job is to wait for job {needed}, which does not exist") from None
            if needs.scheduled:
                raise BadJob(
                    f"job {needed} is a schedule, which is never done: wait for a run of it"
                )
            if needs.state in RETRIABLE:
                raise BadJob(f"job {needed} {outcome(needs.state)}: retry it first")

        def needs_of(job: int) -> list[int]:
            rows = run(connection, "SELECT needs FROM dependencies WHERE job = ?", (job,))
            return [needed for (needed,) in rows]

        if circle := cycle(number, after, needs_of):
            raise BadJob("jobs would wait for each other: " + " → ".join(map(str, circle)))
        run_many(
            connection,
            "INSERT OR IGNORE INTO dependencies VALUES(?, ?)",
            [(number, needed) for needed in after],
        )

    def want(self, number: int, wanted: Wanted) -> Job:
        """Run (again), pause or cancel; return the job as it stands then. Durable.

        What nobody holds changes at once; a holder sees it within half a second. Raises NoSuchJob,
        NotNow when the job has ended.
        """
        with self._database.writing() as connection:
            job = get_job(connection, number)
            if job.state in ENDED:
                raise NotNow(f"job {number} has ended: it {outcome(job.state)}")
            run(connection, "UPDATE jobs SET wanted = ? WHERE number = ?", (wanted.value, number))
            if job.state is not JobState.RUNNING or self._abandoned(job):
                state = obey(job.state, wanted, scheduled=job.scheduled)
                if state is not job.state:
                    set_state(connection, job, state, "", self._host.wall_ns())
                if state is JobState.SCHEDULED:
                    self._set_due(connection, job)
            return get_job(connection, number)

    def _set_due(self, connection: apsw.Connection, job: Job) -> None:
        """Set when a schedule is due next; times that have passed are left out."""
        now_ns = self._host.wall_ns()
        try:
            due_ns = next_due(
                job.spec.schedule, max(now_ns, job.due_ns), self._host.zone(), anchor_ns=job.due_ns
            )
        except BadSchedule:
            due_ns = _NEVER_NS
        run(connection, "UPDATE jobs SET due_ns = ? WHERE number = ?", (due_ns, job.number))

    def change(
        self,
        number: int,
        *,
        bandwidth: str | None = None,
        priority: int | None = None,
        after: Sequence[int] = (),
    ) -> Job:
        """Change a job that has not ended, all that is given or nothing; return it. Durable.

        `bandwidth`: a rate or timetable, "" or "off" for no limit of its own; who holds the job
        goes by it within half a second. `after`: jobs that it waits for as well, before it has
        begun. Raises NoSuchJob, BadJob, NotNow.
        """
        try:
            parse_timetable(bandwidth or "")
        except BadRate as error:
            raise BadJob(str(error)) from error
        with self._database.writing() as connection:
            job = get_job(connection, number)
            if job.state in ENDED:
                raise NotNow(f"job {number} has ended: it {outcome(job.state)}")
            if after and job.state is JobState.RUNNING:
                raise NotNow(f"job {number} is running: it cannot wait for others any more")
            self._depend(connection, number, after)
            if priority is not None:
                run(connection, "UPDATE jobs SET priority = ? WHERE number = ?", (priority, number))
            if bandwidth is not None:
                options = dataclasses.replace(job.spec.options, bandwidth=bandwidth)
                spec = dataclasses.replace(job.spec, options=options)
                run(
                    connection,
                    "UPDATE jobs SET spec = ? WHERE number = ?",
                    (encode_spec(spec), number),
                )
            return get_job(connection, number)

    def retry(self, number: int) -> Job:
        """Queue a failed, partly done or cancelled job again: its failed steps, and what is left.

        Jobs that failed because this one did are queued with it. Raises NoSuchJob, NotNow.
        """
        with self._database.writing() as connection:
            job = get_job(connection, number)
            if job.state not in RETRIABLE:
                raise NotNow(f"job {number} is {job.state}: only what has failed can be retried")
            blocking = unfinished_need(connection, number)
            if blocking is not None:
                needs, state = blocking
                raise NotNow(
                    f"job {number} waits for job {needs}, which {outcome(state)}: retry it"
                )
            blocked = list(blocked_jobs(connection, number))
            for each in [job, *(get_job(connection, other) for other in blocked)]:
                self._requeue(connection, each)
            return get_job(connection, number)

    def _requeue(self, connection: apsw.Connection, job: Job) -> None:
        number = job.number
        state = JobState.SCHEDULED if job.scheduled else JobState.QUEUED
        set_state(connection, job, state, "tried again", self._host.wall_ns())
        run(
            connection,
            "UPDATE jobs SET wanted = 'run', cleaned = 0, report = '{}' WHERE number = ?",
            (number,),
        )
        if job.scheduled:
            self._set_due(connection, job)
        run(connection, "UPDATE steps SET state = 0 WHERE job = ? AND state = 3", (number,))
        run(
            connection,
            "INSERT INTO tallies SELECT job, kind, 0, steps, bytes FROM tallies "
            "WHERE job = ? AND state = 3 ON CONFLICT DO UPDATE "
            "SET steps = steps + excluded.steps, bytes = bytes + excluded.bytes",
            (number,),
        )
        run(connection, "DELETE FROM tallies WHERE job = ? AND state = 3", (number,))

    def remove(self, number: int) -> None:
        """Forget a job that has ended, or a schedule. Raises NoSuchJob, NotNow."""
        with self._database.writing() as connection:
            job = get_job(connection, number)
            if job.state not in ENDED and not job.scheduled:
                raise NotNow(f"job {number} is {job.state}: cancel it first")
            run(connection, "UPDATE jobs SET planned = 0 WHERE number = ?", (number,))
        self._forget_steps(number)
        with self._database.writing() as connection:
            job = get_job(connection, number)
            if job.state not in ENDED and not job.scheduled:
                raise NotNow(f"job {number} was started again meanwhile")
            for query in (
                "DELETE FROM dependencies WHERE ? IN (job, needs)",
                "DELETE FROM progress WHERE job = ?",
                "DELETE FROM events WHERE job = ?",
                "DELETE FROM jobs WHERE number = ?",
            ):
                run(connection, query, (number,))

    def clean(self, *, days: float, jobs_max: int) -> int:
        """Forget the steps and logs of jobs that ended long ago; their reports stay.

        Of those that ended more than `days` ago, and of those that are not among the last
        `jobs_max` to end. Return how many jobs were cleaned.
        """
        before_ns = self._host.wall_ns() - int(days * 86_400 * _S)
        with self._database.writing() as connection:
            rows = run(
                connection,
                "SELECT number FROM (SELECT number, ended_ns, cleaned, row_number() OVER "
                "(ORDER BY ended_ns DESC, number DESC) AS place FROM jobs WHERE ended_ns > 0) "
                "WHERE NOT cleaned AND (ended_ns < ? OR place > ?)",
                (before_ns, jobs_max),
            )
            # Whoever retries one of them from here on plans anew.
            run_many(connection, "UPDATE jobs SET cleaned = 1, planned = 0 WHERE number = ?", rows)
        for (number,) in rows:
            self._forget_steps(number)
            with self._database.writing() as connection:
                run(connection, "DELETE FROM events WHERE job = ?", (number,))
                run(connection, "DELETE FROM progress WHERE job = ?", (number,))
        return len(rows)

    def _forget_steps(self, number: int) -> None:
        """Remove the steps of a job that has ended, in portions; one that runs again keeps them."""
        low, high = number << NUMBER_SHIFT, (number + 1) << NUMBER_SHIFT
        more = True
        while more:
            with self._database.writing() as connection:
                if get_job(connection, number).state not in ENDED | {
                    JobState.SCHEDULED,
                    JobState.PAUSED,
                }:
                    return
                run(
                    connection,
                    "DELETE FROM steps WHERE number IN "
                    "(SELECT number FROM steps WHERE number > ? AND number < ? LIMIT ?)",
                    (low, high, _CLEAN_ROWS),
                )
                more = connection.changes() > 0
                if not more:
                    run(connection, "DELETE FROM attempts WHERE step > ? AND step < ?", (low, high))
                    run(connection, "DELETE FROM tallies WHERE job = ?", (number,))
                    run(connection, "DELETE FROM checkpoints WHERE job = ?", (number,))

    # --- watching -------------------------------------------------------------------------------

    def get(self, number: int) -> Job:
        """One job. Raises NoSuchJob."""
        with self._database.reading() as connection:
            return get_job(connection, number)

    def list(
        self, states: Sequence[JobState] = (), *, before: int = 0, limit: int = 1_000
    ) -> Sequence[Job]:
        """Jobs, newest first; `states` empty: all. `before`: page on from this number."""
        wanted = states or tuple(JobState)
        marks = ", ".join("?" * len(wanted))
        with self._database.reading() as connection:
            return find_jobs(
                connection,
                f"state IN ({marks}) AND number < ? ORDER BY number DESC LIMIT ?",
                (*(state.value for state in wanted), before or _NEVER_NS, limit),
            )

    def events(self, number: int, after: int = 0, limit: int = 1_000) -> Sequence[JobEvent]:
        """Events with a sequence number above `after`, oldest first. Raises NoSuchJob."""
        with self._database.reading() as connection:
            get_job(connection, number)
            rows = run(
                connection,
                "SELECT sequence, at_ns, event FROM events WHERE job = ? AND sequence > ? "
                "ORDER BY sequence LIMIT ?",
                (number, after, limit),
            )
        return [
            JobEvent(number, sequence, at_ns, json.loads(event)) for sequence, at_ns, event in rows
        ]

    def failures(self, number: int, after: int = 0, limit: int = 1_000) -> Sequence[FailedStep]:
        """Failed steps above the step number `after`, in order. Raises NoSuchJob."""
        with self._database.reading() as connection:
            get_job(connection, number)
            return failed_steps(connection, number, after, limit)

    def version(self) -> int:
        """Another number than before when anything was committed meanwhile. Microseconds."""
        return self._database.version()

    # --- working --------------------------------------------------------------------------------

    def claim(self, number: int = 0) -> HeldJob | None:
        """Take the job whose turn it is, or this one; None: there is nothing to do now.

        Due schedules and jobs whose holder is dead are looked at first. The caller must `tend` it
        until it is given back. Raises NoSuchJob, and NotNow for a `number` that cannot be claimed:
        it has ended, is paused, scheduled or held.
        """
        with self._database.reading() as connection:
            idle = not (self._dead(connection) or self._due(connection))
            ready = find_jobs(connection, f"{_READY} LIMIT 1", ())
        if idle and not ready and not number:
            return None
        with self._database.writing() as connection:
            self._take_back(connection)
            self._start_due(connection)
            if number:
                job = get_job(connection, number)
                if job.state is not JobState.QUEUED:
                    raise NotNow(f"job {number} is {job.state}")
            found = find_jobs(
                connection,
                f"{_READY} AND ? IN (0, number) ORDER BY priority DESC, number LIMIT 1",
                (number,),
            )
            if not found:
                return None
            job = self._take(connection, found[0].number)
        return HeldJob(self._database, self._host, job)

    def _take(self, connection: apsw.Connection, number: int) -> Job:
        now_ns = self._host.wall_ns()
        run(
            connection,
            "UPDATE jobs SET state = 'running', reason = '', attempt = attempt + 1, holder = ?, "
            "lease_ns = ?, started_ns = ? WHERE number = ?",
            (
                self._host.new_holder(),
                self._host.boot_ns() + int(LEASE_S * _S),
                now_ns,
                number,
            ),
        )
        log_state(connection, number, JobState.RUNNING, "", now_ns)
        return get_job(connection, number)

    def _abandoned(self, job: Job) -> bool:
        """Whether the holder of a running job is dead, or has been silent for too long."""
        return self._host.gone(job.holder) or self._host.boot_ns() > job.lease_ns

    def _dead(self, connection: apsw.Connection) -> Sequence[Job]:
        running = find_jobs(connection, "state = 'running'", ())
        return [job for job in running if self._abandoned(job)]

    def _take_back(self, connection: apsw.Connection) -> None:
        for job in self._dead(connection):
            state = obey(job.state, job.wanted)
            reason = "the process that ran it has ended or did not answer any more"
            set_state(connection, job, state, reason, self._host.wall_ns())

    def _due(self, connection: apsw.Connection) -> Sequence[Job]:
        return find_jobs(connection, "state = 'scheduled' AND due_ns <= ?", (self._host.wall_ns(),))

    def _start_due(self, connection: apsw.Connection) -> None:
        """Queue a run of each schedule that is due; one whose last run still goes on is left out.

        However many times were missed, it is one run.
        """
        now_ns = self._host.wall_ns()
        for job in self._due(connection):
            self._set_due(connection, job)
            busy = connection.execute(
                "SELECT number FROM jobs WHERE schedule = ? AND ended_ns = 0 LIMIT 1", (job.number,)
            ).fetchone()
            if busy is not None:
                reason = f"a run was left out: job {busy[0]} has not ended yet"
                log_state(connection, job.number, JobState.SCHEDULED, reason, now_ns)
                continue
            spec = dataclasses.replace(job.spec, schedule="", after=())
            if name := spec.options.name:  # of snapshots, each of which needs one of its own
                named = f"{name}-{dt.datetime.fromtimestamp(now_ns // 10**9, dt.UTC):%Y%m%d-%H%M%S}"
                spec = dataclasses.replace(
                    spec, options=dataclasses.replace(spec.options, name=named)
                )
            run = insert_job(
                connection, encode_spec(spec), job.priority, now_ns, schedule=job.number
            )
            run_many(
                connection,
                "INSERT INTO dependencies VALUES(?, ?)",
                [(run, needed) for needed in job.after],
            )
            blocking = unfinished_need(connection, run)
            if blocking is not None:
                needs, state = blocking
                reason = f"job {needs}, for which this one waited, {outcome(state)}"
                set_state(connection, get_job(connection, run), JobState.FAILED, reason, now_ns)

    def next_due_s(self) -> float | None:
        """Seconds until there is something to claim as far as is known; None: nothing is.

        0: now. What waits for other jobs, or was paused, does not count.
        """
        with self._database.reading() as connection:
            if self._dead(connection) or find_jobs(connection, f"{_READY} LIMIT 1", ()):
                return 0.0
            (due_ns,) = run(connection, "SELECT min(due_ns) FROM jobs WHERE state = 'scheduled'")[0]
        return None if due_ns is None else max(0.0, (due_ns - self._host.wall_ns()) / _S)
