"""Power cuts while jobs.db is written: what was durable is there, and all fits together."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from blockstore.errors import OrbitError
from syncer.job_states import JobState
from syncer.jobs import Jobs
from syncer.options import JobSpec, Verb
from syncer.steps import Step, StepKind, StepResult, StepState
from tests.simdisk import SimDisk, SimulatedCrash, abandon
from tests.syncer.jobs_host import Machine

FOLDER = Path("/state")
SPEC = JobSpec(Verb.COPY, "/a", "/b")


class Promises:
    """What jobs.db has acknowledged."""

    def __init__(self) -> None:
        self.submitted = 0
        self.planned = 0  # steps, once the plan is complete
        self.done: set[bytes] = set()
        self.told = 0
        self.finished = False


def life(jobs: Jobs, rng: random.Random, promises: Promises) -> None:
    """One life of a process that works on a job."""
    if not promises.submitted:
        promises.submitted = jobs.submit(SPEC)
    held = jobs.claim()
    if held is None:
        return
    if not held.planned:
        held.drop_plan()
        count = rng.randint(5, 40)
        for start in range(0, count, 10):
            held.add_steps(
                Step(StepKind.COPY, b"%d" % n, size=n) for n in range(start, min(count, start + 10))
            )
        held.end_plan()
        promises.planned = count
    waiting: set[bytes] = set()
    while taken := held.next_steps([StepKind.COPY], limit=rng.randint(1, 9)):
        paths = {each.step.path for each in taken}
        assert not paths & promises.done  # never again
        held.record([StepResult(each.number, StepState.DONE, bytes_moved=1) for each in taken])
        held.save_checkpoint(0, b"%d" % len(promises.done))
        held.tell({"event": "taken"})
        waiting |= paths
        if rng.random() < 0.4:
            held.flush()
            promises.done |= waiting
    held.finish(JobState.DONE, {"planned": promises.planned})
    promises.done |= waiting
    promises.finished = True


def look(jobs: Jobs, promises: Promises) -> None:
    """Compare with what was promised, and the tables with each other."""
    with jobs._database.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT path, state FROM steps").fetchall()
        tallies = connection.execute("SELECT state, steps FROM tallies WHERE steps").fetchall()
        moved = connection.execute("SELECT bytes_moved FROM jobs").fetchall()
        (sequences,) = connection.execute("SELECT count(*), max(sequence) FROM events").fetchall()
    if promises.submitted:
        assert [job.number for job in jobs.list()] == [promises.submitted]
    done = {path for path, state in rows if state == StepState.DONE}
    assert promises.done <= done
    if promises.planned:
        assert len(rows) == promises.planned
        assert jobs.list()[0].planned
    counts = {state: sum(1 for _, each in rows if each == state) for _, state in rows}
    if promises.planned:
        assert dict(tallies) == counts
    else:  # dropping a plan, which is done in portions, may have been cut: it is dropped again
        assert all(dict(tallies).get(state, 0) >= count for state, count in counts.items())
        assert dict(tallies).get(StepState.DONE, 0) == counts.get(StepState.DONE, 0)
    if moved:
        assert moved == [(len(done),)]
    assert sequences[0] == (sequences[1] or 0)
    if promises.finished:
        assert jobs.list()[0].report == {"planned": promises.planned}


def run(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine()
    promises = Promises()
    disk = SimDisk(seed)
    disk.mkdir(FOLDER)
    for _ in range(4):
        jobs = None
        disk.crash_at(rng.randint(1, 120))
        process = machine.process()
        # Inside SQLite the crash is an I/O error.
        with contextlib.suppress(SimulatedCrash, OrbitError):
            jobs = Jobs.open(FOLDER / "jobs.db", disk, process)
            life(jobs, rng, promises)
        disk.crashed = True
        if jobs is not None:
            abandon(jobs.close)
        process.die()
        disk = disk.crash()
        jobs = Jobs.open(FOLDER / "jobs.db", disk, machine.process())
        look(jobs, promises)
        # Whether the last submission survived nobody was told.
        promises.submitted = max((job.number for job in jobs.list()), default=0)
        jobs.close()


@pytest.mark.parametrize("seed", range(40))
def test_power_cuts(seed):
    run(seed)


@pytest.mark.soak
@pytest.mark.parametrize("start", range(0, 4_000, 500))
def test_many_power_cuts(start):
    for seed in range(start, start + 500):
        run(seed)
