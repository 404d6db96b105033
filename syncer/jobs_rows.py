"""The table of jobs: what its rows are, and the steps between states.

Functions take a connection within a transaction of the caller's; nothing here begins or ends one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from syncer.events import Event, event_fields
from syncer.job_states import ENDED, JobState, Wanted, may_step
from syncer.jobs_database import run, run_many
from syncer.jobs_errors import JobsDamaged, NoSuchJob
from syncer.jobs_spec import decode_spec, spec_fields
from syncer.options import JobSpec

EVENTS_KEPT: Final = 10_000  # of a job's log
_COLUMNS: Final = (
    "number, spec, state, wanted, reason, priority, schedule, attempt, submitted_ns, started_ns, "
    "ended_ns, due_ns, report, holder, lease_ns, planned"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands."""

    number: int
    spec: JobSpec
    state: JobState
    wanted: Wanted
    reason: str  # why it is in this state, for people: an error, "job 3 failed", …
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
    holder: str  # who has its lease; "": nobody
    lease_ns: int  # until when, by the clock of this boot
    planned: bool  # all its steps are known

    @property
    def scheduled(self) -> bool:
        """Whether it has times of its own, and never runs itself."""
        return self.due_ns > 0


def job_fields(job: Job) -> dict[str, Any]:
    """What users are told of a job, as JSON takes it; nothing of who holds it."""
    return {
        "number": job.number,
        "spec": spec_fields(job.spec),
        "state": job.state.value,
        "wanted": job.wanted.value,
        "reason": job.reason,
        "priority": job.priority,
        "after": job.after,
        "schedule": job.schedule,
        "attempt": job.attempt,
        "submitted_ns": job.submitted_ns,
        "started_ns": job.started_ns,
        "ended_ns": job.ended_ns,
        "due_ns": job.due_ns,
        "progress": dict(job.progress),
        "report": dict(job.report),
    }


def find_jobs(connection: apsw.Connection, where: str, values: Sequence[Any]) -> list[Job]:
    """Return the jobs of a condition, an order and a limit."""
    query = f"SELECT {_COLUMNS} FROM jobs WHERE {where}"  # noqa: S608  callers write it
    return [_job(connection, row) for row in run(connection, query, values)]


def get_job(connection: apsw.Connection, number: int) -> Job:
    """Return one job. Raises NoSuchJob."""
    found = find_jobs(connection, "number = ?", (number,))
    if not found:
        raise NoSuchJob(f"there is no job {number}")
    return found[0]


def _job(connection: apsw.Connection, row: Sequence[Any]) -> Job:
    (number, spec, state, wanted, reason, priority, schedule, attempt) = row[:8]
    (submitted_ns, started_ns, ended_ns, due_ns, report, holder, lease_ns, planned) = row[8:]
    after = run(
        connection, "SELECT needs FROM dependencies WHERE job = ? ORDER BY needs", (number,)
    )
    progress = connection.execute("SELECT data FROM progress WHERE job = ?", (number,)).fetchone()
    try:
        return Job(
            number,
            decode_spec(spec),
            JobState(state),
            Wanted(wanted),
            reason,
            priority,
            tuple(needs for (needs,) in after),
            schedule,
            attempt,
            submitted_ns,
            started_ns,
            ended_ns,
            due_ns,
            json.loads(progress[0]) if progress else {},
            json.loads(report),
            holder,
            lease_ns,
            bool(planned),
        )
    except ValueError as error:
        raise JobsDamaged(f"job {number} in the database of jobs is damaged: {error}") from error


def insert_job(
    connection: apsw.Connection, spec_json: str, priority: int, now_ns: int, *, schedule: int = 0
) -> int:
    """Insert a queued job; return its number."""
    run(
        connection,
        "INSERT INTO jobs(spec, state, wanted, priority, schedule, submitted_ns) "
        "VALUES(?, ?, ?, ?, ?, ?)",
        (spec_json, JobState.QUEUED.value, Wanted.RUN.value, priority, schedule, now_ns),
    )
    number = connection.last_insert_rowid()
    log_state(connection, number, JobState.QUEUED, "", now_ns)
    return number


def set_state(
    connection: apsw.Connection, job: Job, state: JobState, reason: str, now_ns: int
) -> None:
    """Take a job that has no holder, or is its holder's to end, from its state to another one.

    What waits for a job that ended otherwise than done fails.
    """
    assert may_step(job.state, state), (job.number, job.state, state)
    ended = now_ns if state in ENDED else 0
    run(
        connection,
        "UPDATE jobs SET state = ?, reason = ?, ended_ns = ?, holder = '', lease_ns = 0, "
        "blocked_by = 0 WHERE number = ?",
        (state.value, reason, ended, job.number),
    )
    log_state(connection, job.number, state, reason, now_ns)
    if state in ENDED and state is not JobState.DONE:
        _fail_dependents(connection, job.number, state, now_ns)


def _fail_dependents(
    connection: apsw.Connection, number: int, state: JobState, now_ns: int
) -> None:
    todo = [(number, state)]
    while todo:
        needs, how = todo.pop()
        reason = f"job {needs}, for which this one waited, {outcome(how)}"
        rows = run(
            connection,
            "SELECT number FROM jobs JOIN dependencies ON job = number "
            "WHERE needs = ? AND state IN ('queued', 'paused') AND due_ns = 0",
            (needs,),
        )
        for (job,) in rows:
            run(
                connection,
                "UPDATE jobs SET state = ?, reason = ?, ended_ns = ?, blocked_by = ? "
                "WHERE number = ?",
                (JobState.FAILED.value, reason, now_ns, needs, job),
            )
            log_state(connection, job, JobState.FAILED, reason, now_ns)
            todo.append((job, JobState.FAILED))


def outcome(state: JobState) -> str:
    """The state as the end of a sentence."""
    return {
        JobState.PARTLY: "was done only partly",
        JobState.FAILED: "failed",
        JobState.CANCELLED: "was cancelled",
    }.get(state, f"is {state}")


def unfinished_need(connection: apsw.Connection, number: int) -> tuple[int, JobState] | None:
    """Return a job that this one waits for in vain, and how that one ended."""
    row = connection.execute(
        "SELECT n.number, n.state FROM dependencies d JOIN jobs n ON n.number = d.needs "
        "WHERE d.job = ? AND n.state IN ('partly', 'failed', 'cancelled') LIMIT 1",
        (number,),
    ).fetchone()
    return (row[0], JobState(row[1])) if row else None


def blocked_jobs(connection: apsw.Connection, number: int) -> Iterator[int]:
    """Yield the jobs that failed because this one did, and because those did, and so on."""
    todo = [number]
    while todo:
        rows = run(
            connection,
            "SELECT number FROM jobs WHERE blocked_by = ? AND state = 'failed'",
            (todo.pop(),),
        )
        for (job,) in rows:
            yield job
            todo.append(job)


def log_state(
    connection: apsw.Connection, number: int, state: JobState, reason: str, now_ns: int
) -> None:
    """Note a change of state in the job's log."""
    event = event_fields(Event(f"job.{state}", now_ns, message=reason))
    append_events(connection, number, [(now_ns, json.dumps(event))])


def append_events(
    connection: apsw.Connection, number: int, events: Sequence[tuple[int, str]], left_out: int = 0
) -> None:
    """Append to a job's log, and let the oldest go.

    `left_out`: events before these that were too many to be kept, but are counted.
    """
    (last,) = run(connection, "SELECT last_event FROM jobs WHERE number = ?", (number,))[0]
    first = last + left_out + 1
    run_many(
        connection,
        "INSERT INTO events VALUES(?, ?, ?, ?)",
        [
            (number, sequence, at_ns, event)
            for sequence, (at_ns, event) in enumerate(events, start=first)
        ],
    )
    last = first + len(events) - 1
    run(connection, "UPDATE jobs SET last_event = ? WHERE number = ?", (last, number))
    run(
        connection,
        "DELETE FROM events WHERE job = ? AND sequence <= ?",
        (number, last - EVENTS_KEPT),
    )
