"""The steps of a job that is held: who has taken which, what was recorded and is not yet written.

What is running exists in memory alone: in the database a step waits until its result is there, so
that after a crash it waits again. All methods are for any thread.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import apsw

from syncer.jobs_database import JobsDatabase, run, run_many
from syncer.step_rows import decode_step, encode_step, kind_of, turns_of
from syncer.steps import Step, StepKind, StepResult, StepState, TakenStep

NUMBER_SHIFT: Final = 32  # a step's number: the job's, shifted, plus 1, 2, …
CHECKPOINT_BYTES_MAX: Final = 64 << 10
_PLAN: Final = 0  # the kind of the plan's own checkpoint
_DROP_ROWS: Final = 20_000  # in one transaction
_BEFORE_ALL: Final = (-1, -1)

Changing = Callable[[bool], AbstractContextManager[apsw.Connection]]
Place = tuple[int, bytes]  # kind and path of a step
Sums = dict[tuple[int, int], tuple[int, int]]  # (kind, state): steps and bytes, more or less


class FailedStep(NamedTuple):
    """A step that failed."""

    number: int
    kind: StepKind
    path: bytes
    attempts: int
    transient: bool  # the last attempt's error may pass
    error: str
    at_ns: int  # nanoseconds since 1970


class Tally(NamedTuple):
    """A sum over steps."""

    steps: int = 0
    bytes: int = 0  # sizes, as planned


class _Taken(NamedTuple):
    kind: StepKind
    path: bytes
    size: int
    key: tuple[int, int]  # turn and number


@dataclass(slots=True)
class StepBatch:
    """What is to be written at once."""

    results: list[StepResult] = field(default_factory=list)
    checkpoints: dict[Place, bytes | None] = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)
    bytes_moved: int = 0
    bytes_saved: int = 0

    def __bool__(self) -> bool:
        return bool(self.results or self.checkpoints)


class StepBook:
    """The steps of one held job.

    `changing` begins a transaction that writes, durable or not, once the lease was looked at.
    """

    def __init__(self, database: JobsDatabase, job: int, changing: Changing) -> None:
        self._database = database
        self._job = job
        self._changing = changing
        self._lock = threading.Lock()  # guards all below; never held while something is written
        self._taken: dict[int, _Taken] = {}  # running, or recorded and not yet written
        self._cursors: dict[StepKind, tuple[int, int]] = {}  # all before is taken or not waiting
        self._batch = StepBatch()
        with database.reading() as connection:
            self._totals = {
                (StepKind(kind), StepState(state)): Tally(steps, size)
                for kind, state, steps, size in connection.execute(
                    "SELECT kind, state, steps, bytes FROM tallies WHERE job = ?", (job,)
                )
            }
            self._checkpoints: dict[Place, bytes] = {
                (kind, path): data
                for kind, path, data in connection.execute(
                    "SELECT kind, path, data FROM checkpoints WHERE job = ?", (job,)
                )
            }
            moved: tuple[int, int] = run(
                connection, "SELECT bytes_moved, bytes_saved FROM jobs WHERE number = ?", (job,)
            )[0]
            self.bytes_moved, self.bytes_saved = moved
            self._last = self._last_number(connection)

    def _last_number(self, connection: apsw.Connection) -> int:
        base = self._job << NUMBER_SHIFT
        (last,) = run(
            connection,
            "SELECT max(number) FROM steps WHERE number > ? AND number < ?",
            (base, (self._job + 1) << NUMBER_SHIFT),
        )[0]
        return int(last) if last is not None else base

    # --- the plan -------------------------------------------------------------------------------

    def add(self, steps: Iterable[Step]) -> None:
        """See HeldJob.add_steps."""
        encoded = []
        sums: Sums = {}
        kind = -1
        count = size = 0
        for step in steps:
            if step.kind != kind:  # a plan has few changes of kind
                _add(sums, kind, StepState.WAITING, count, size)
                kind = int(step.kind)
                count = size = 0
            count += 1
            size += step.size
            encoded.append(encode_step(step))
        if not encoded:
            return
        _add(sums, kind, StepState.WAITING, count, size)
        # Neighbours in the index are then written at once.
        encoded.sort()
        job = self._job
        with self._changing(False) as connection:
            start = self._last
            run_many(
                connection,
                "INSERT INTO steps(number, job, turn, path, checksum, detail) "
                "VALUES(?, ?, ?, ?, ?, ?)",
                ((number, job, *row) for number, row in enumerate(encoded, start + 1)),
            )
            _add_tallies(connection, job, sums)
            self._last = start + len(encoded)
        with self._lock:
            self._count(sums)
            for known, cursor in self._cursors.items():
                low, high = turns_of(known)
                at = bisect.bisect_left(encoded, (low,))
                if at < len(encoded) and encoded[at][0] <= min(high, cursor[0]):
                    self._cursors[known] = (encoded[at][0], -1)

    def drop_waiting(self) -> None:
        """See HeldJob.drop_plan. Nothing may be taken, everything is written.

        In portions; if a crash cuts it short, the plan is incomplete and dropped again, and the
        sums are right after that.
        """
        while True:
            with self._changing(False) as connection:
                rows = run(
                    connection,
                    "SELECT number FROM steps WHERE job = ?1 AND state = 0 "
                    "UNION ALL SELECT number FROM steps WHERE job = ?1 AND state = 3 LIMIT ?2",
                    (self._job, _DROP_ROWS),
                )
                run_many(connection, "DELETE FROM attempts WHERE step = ?", rows)
                run_many(connection, "DELETE FROM steps WHERE number = ?", rows)
                if not rows:
                    run(
                        connection,
                        "DELETE FROM tallies WHERE job = ? AND state IN (0, 3)",
                        (self._job,),
                    )
                    break
        with self._lock:
            self._cursors.clear()
            self._totals = {
                key: tally
                for key, tally in self._totals.items()
                if key[1] not in {StepState.WAITING, StepState.FAILED}
            }

    # --- taking ---------------------------------------------------------------------------------

    def take(
        self, kinds: Sequence[StepKind], *, limit: int, bytes_max: int | None
    ) -> list[TakenStep]:
        """See HeldJob.next_steps."""
        found: list[TakenStep] = []
        budget = bytes_max
        # The lock over the query: what it still shows as waiting cannot stop being taken meanwhile.
        with self._lock, self._database.reading() as connection:
            for kind in kinds:
                while len(found) < limit:
                    rows = self._waiting(connection, kind, limit - len(found))
                    if not rows:
                        break
                    for number, turn, path, checksum, detail, attempts in rows:
                        if number in self._taken:
                            self._cursors[kind] = (turn, number)
                            continue
                        step = decode_step(turn, path, checksum, detail)
                        if budget is not None:
                            if found and step.size > budget:
                                return found
                            budget -= step.size
                        self._cursors[kind] = (turn, number)
                        self._taken[number] = _Taken(kind, path, step.size, (turn, number))
                        saved = self._checkpoints.get((kind, path)) if self._checkpoints else None
                        found.append(TakenStep(number, step, attempts, saved))
        return found

    def _waiting(
        self, connection: apsw.Connection, kind: StepKind, limit: int
    ) -> list[tuple[int, int, bytes, int, bytes, int]]:
        low, high = turns_of(kind)
        turn, number = self._cursors.get(kind, (low, -1))
        return run(
            connection,
            "SELECT number, turn, path, checksum, detail, attempts FROM steps "
            "WHERE job = ? AND state = 0 AND turn <= ? AND (turn, number) > (?, ?) "
            "ORDER BY turn, number LIMIT ?",
            (self._job, high, turn, number, limit),
        )

    def give_back(self, numbers: Iterable[int]) -> None:
        """See HeldJob.give_back."""
        with self._lock:
            for number in numbers:
                taken = self._taken.pop(number)
                self._rewind(taken.kind, taken.key)

    def _rewind(self, kind: StepKind, key: tuple[int, int]) -> None:
        cursor = self._cursors.get(kind, _BEFORE_ALL)
        if key <= cursor:
            self._cursors[kind] = (key[0], key[1] - 1)

    # --- results --------------------------------------------------------------------------------

    def record(self, results: Iterable[StepResult]) -> int:
        """Note results; return how many have not been written yet."""
        sums: Sums = {}
        with self._lock:
            batch = self._batch
            for result in results:
                taken = self._taken[result.number]
                state = result.state
                assert state >= StepState.DONE, result
                batch.results.append(result)
                batch.bytes_moved += result.bytes_moved
                batch.bytes_saved += result.bytes_saved
                self.bytes_moved += result.bytes_moved
                self.bytes_saved += result.bytes_saved
                _add(sums, taken.kind, StepState.WAITING, -1, -taken.size)
                _add(sums, taken.kind, state, 1, taken.size)
                if self._checkpoints and state != StepState.FAILED:
                    place = (taken.kind, taken.path)
                    if self._checkpoints.pop(place, None) is not None:
                        batch.checkpoints[place] = None
            _add_all(batch.sums, sums)
            self._count(sums)
            return len(batch.results)

    def save_checkpoint(self, number: int, data: bytes | None) -> None:
        """See HeldJob.save_checkpoint."""
        if data is not None and len(data) > CHECKPOINT_BYTES_MAX:
            raise ValueError(f"a checkpoint of {len(data)} bytes")
        with self._lock:
            place = self._place(number)
            if data is None:
                self._checkpoints.pop(place, None)
            else:
                self._checkpoints[place] = data
            self._batch.checkpoints[place] = data

    def checkpoint(self, number: int) -> bytes | None:
        """See HeldJob.checkpoint."""
        with self._lock:
            return self._checkpoints.get(self._place(number))

    def _place(self, number: int) -> Place:
        if not number:
            return _PLAN, b""
        taken = self._taken[number]
        return taken.kind, taken.path

    def tallies(self) -> dict[tuple[StepKind, StepState], Tally]:
        """See HeldJob.tallies."""
        with self._lock:
            return {key: tally for key, tally in self._totals.items() if tally.steps}

    def _count(self, sums: Sums) -> None:
        for (kind, state), (steps, size) in sums.items():
            key = StepKind(kind), StepState(state)
            known = self._totals.get(key, Tally())
            self._totals[key] = Tally(known.steps + steps, known.bytes + size)

    # --- writing --------------------------------------------------------------------------------

    def begin(self) -> StepBatch:
        """Take out what is to be written; `written` or `put_back` follows. One at a time."""
        with self._lock:
            batch, self._batch = self._batch, StepBatch()
            return batch

    def write(self, connection: apsw.Connection, batch: StepBatch, now_ns: int) -> None:
        """Write a batch within a transaction."""
        failed = [result for result in batch.results if result.state is StepState.FAILED]
        run_many(
            connection,
            "UPDATE steps SET state = ? WHERE number = ?",
            [
                (int(result.state), result.number)
                for result in sorted(batch.results)  # by number: neighbours at once
                if result.state is not StepState.FAILED
            ],
        )
        run_many(
            connection,
            "UPDATE steps SET state = 3, attempts = attempts + 1 WHERE number = ?",
            [(result.number,) for result in failed],
        )
        run_many(
            connection,
            "INSERT INTO attempts SELECT number, attempts, ?, ?, ? FROM steps WHERE number = ?",
            [(now_ns, int(result.transient), result.error, result.number) for result in failed],
        )
        for (kind, path), data in batch.checkpoints.items():
            if data is None:
                run(
                    connection,
                    "DELETE FROM checkpoints WHERE job = ? AND kind = ? AND path = ?",
                    (self._job, int(kind), path),
                )
            else:
                run(
                    connection,
                    "REPLACE INTO checkpoints VALUES(?, ?, ?, ?)",
                    (self._job, int(kind), path, data),
                )
        _add_tallies(connection, self._job, batch.sums)
        if batch.bytes_moved or batch.bytes_saved:
            run(
                connection,
                "UPDATE jobs SET bytes_moved = bytes_moved + ?, bytes_saved = bytes_saved + ? "
                "WHERE number = ?",
                (batch.bytes_moved, batch.bytes_saved, self._job),
            )

    def written(self, batch: StepBatch) -> None:
        """Note that the transaction was committed: the steps are not ours any more."""
        with self._lock:
            for result in batch.results:
                del self._taken[result.number]

    def put_back(self, batch: StepBatch) -> None:
        """Note that it was not."""
        with self._lock:
            newer = self._batch
            batch.results += newer.results
            batch.checkpoints |= newer.checkpoints
            _add_all(batch.sums, newer.sums)
            batch.bytes_moved += newer.bytes_moved
            batch.bytes_saved += newer.bytes_saved
            self._batch = batch

    # --- failures -------------------------------------------------------------------------------

    def retry_failed(self, *, attempts_max: int, transient_only: bool) -> int:
        """See HeldJob.retry_failed. Everything is written."""
        with self._changing(False) as connection:
            rows = run(
                connection,
                "SELECT number, turn, path, checksum, detail FROM steps s WHERE job = ? "
                "AND state = 3 AND attempts < ? AND (NOT ? OR (SELECT transient FROM attempts "
                "WHERE step = s.number AND attempt = s.attempts))",
                (self._job, attempts_max, transient_only),
            )
            sums: Sums = {}
            keys = []
            for number, turn, path, checksum, detail in rows:
                step = decode_step(turn, path, checksum, detail)
                _add(sums, step.kind, StepState.FAILED, -1, -step.size)
                _add(sums, step.kind, StepState.WAITING, 1, step.size)
                keys.append((step.kind, (turn, number)))
            run_many(
                connection,
                "UPDATE steps SET state = 0 WHERE number = ?",
                [(row[0],) for row in rows],
            )
            _add_tallies(connection, self._job, sums)
        with self._lock:
            self._count(sums)
            for kind, key in keys:
                self._rewind(kind, key)
        return len(rows)


def failed_steps(connection: apsw.Connection, job: int, after: int, limit: int) -> list[FailedStep]:
    """Failed steps of a job above the number `after`, in order."""
    rows = run(
        connection,
        "SELECT s.number, turn, path, attempts, transient, error, at_ns FROM steps s "
        "JOIN attempts a ON a.step = s.number AND a.attempt = s.attempts "
        "WHERE job = ? AND state = 3 AND s.number > ? ORDER BY s.number LIMIT ?",
        (job, after, limit),
    )
    return [
        FailedStep(number, kind_of(turn), path, attempts, bool(transient), error, at_ns)
        for number, turn, path, attempts, transient, error, at_ns in rows
    ]


def _add(sums: Sums, kind: int, state: int, steps: int, size: int) -> None:
    if steps:
        known = sums.get((kind, state), (0, 0))
        sums[kind, state] = (known[0] + steps, known[1] + size)


def _add_all(sums: Sums, more: Sums) -> None:
    for (kind, state), (steps, size) in more.items():
        _add(sums, kind, state, steps, size)


def _add_tallies(connection: apsw.Connection, job: int, sums: Sums) -> None:
    run_many(
        connection,
        "INSERT INTO tallies VALUES(?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
        "SET steps = steps + excluded.steps, bytes = bytes + excluded.bytes",
        [
            (job, int(kind), int(state), steps, size)
            for (kind, state), (steps, size) in sums.items()
        ],
    )
