"""Real processes: one file, several that claim, and some that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from syncer.job_states import JobState
from syncer.jobs import Jobs
from syncer.jobs_holder import Host
from syncer.options import JobSpec, Verb
from syncer.steps import Step, StepKind, StepState

SPEC = JobSpec(Verb.COPY, "/a", "/b")

_CLAIMER = """
import sys
from pathlib import Path
from syncer.job_states import JobState
from syncer.jobs import Jobs
jobs = Jobs.open(Path(sys.argv[1]))
while held := jobs.claim():
    print(held.number, flush=True)
    held.finish(JobState.DONE, {})
jobs.close()
"""

# Carries out steps, and says which results are durable.
_WORKER = """
import sys
from pathlib import Path
from syncer.job_states import JobState
from syncer.jobs import Jobs
from syncer.steps import StepKind, StepResult, StepState
jobs = Jobs.open(Path(sys.argv[1]))
held = jobs.claim()
print("holds", held.attempt, flush=True)
while taken := held.next_steps([StepKind.COPY], limit=7):
    held.record([StepResult(each.number, StepState.DONE, bytes_moved=1) for each in taken])
    held.flush()
    print(*[each.step.path.decode() for each in taken], flush=True)
held.finish(JobState.DONE, {})
print("done", flush=True)
"""


def start(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )


def test_each_job_is_claimed_by_one_of_many_processes(tmp_path):
    path = tmp_path / "jobs.db"
    jobs = Jobs.open(path)
    numbers = [jobs.submit(SPEC) for _ in range(60)]
    claimers = [start(_CLAIMER, path) for _ in range(4)]
    claimed: list[int] = []
    for claimer in claimers:
        out, _ = claimer.communicate(timeout=60)
        assert claimer.returncode == 0
        claimed += map(int, out.split())
    assert sorted(claimed) == numbers
    assert {job.state for job in jobs.list()} == {JobState.DONE}
    assert {job.attempt for job in jobs.list()} == {1}
    jobs.close()


def _killed_until_done(path: Path, count: int, rng: random.Random) -> None:
    jobs = Jobs.open(path)
    number = jobs.submit(SPEC)
    held = jobs.claim()
    assert held is not None
    held.add_steps(Step(StepKind.COPY, b"%d" % n, size=n) for n in range(count))
    held.end_plan()
    held.release()
    durable: list[str] = []
    lives = 0
    while jobs.get(number).state is not JobState.DONE:
        lives += 1
        worker = start(_WORKER, path)
        assert worker.stdout is not None
        assert worker.stdout.readline() == f"holds {lives + 1}\n"  # at once, the other is dead
        for _ in range(rng.randint(1, 8)):
            line = worker.stdout.readline()
            if line == "done\n":
                break
            durable += line.split()
        os.kill(worker.pid, signal.SIGKILL)
        # What it had said before it died.
        durable += [name for name in worker.communicate()[0].split() if name != "done"]
        assert jobs.next_due_s() == (None if jobs.get(number).state is JobState.DONE else 0)
    # Nothing that was reported was given out again; the rest at most once more in each life.
    assert len(set(durable)) == len(durable)
    assert lives > 1
    with jobs._database.reading() as connection:
        states = connection.execute("SELECT DISTINCT state FROM steps").fetchall()
        moved = connection.execute("SELECT bytes_moved FROM jobs").fetchall()
    assert states == [(StepState.DONE,)]
    assert moved == [(count,)]
    jobs.close()


def test_a_killed_worker_loses_no_step_and_its_job_is_taken_over_at_once(tmp_path):
    _killed_until_done(tmp_path / "jobs.db", 150, random.Random(3))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_killed_workers_often(tmp_path, seed):
    _killed_until_done(tmp_path / "jobs.db", 2_000, random.Random(seed))


def test_processes_are_told_apart(tmp_path):
    host = Host()
    holder = host.new_holder()
    assert not host.gone(holder)
    boot, namespace, pid, started, token = holder.split(":")
    assert host.gone(f"another-boot:{namespace}:{pid}:{started}:{token}")
    # The number has come again: another process, started later.
    assert host.gone(":".join([boot, namespace, pid, str(int(started) + 1), token]))
    # In another namespace its number says nothing; only its lease does.
    assert not host.gone(":".join([boot, "1", pid, str(int(started) + 1), token]))
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet waited for
    assert host.gone(":".join([boot, namespace, str(process.pid), started, token]))
    process.wait()
    assert host.gone(":".join([boot, namespace, str(process.pid), started, token]))


@pytest.mark.parametrize(
    ("zone", "hours"), [("Asia/Tokyo", 9), (":Asia/Tokyo", 9), ("No/Where", 0), ("../etc/x", 0)]
)
def test_the_zone_is_that_of_the_environment(monkeypatch, zone, hours):
    import datetime as dt

    monkeypatch.setenv("TZ", zone)
    found = dt.datetime(2026, 1, 1, tzinfo=Host().zone()).utcoffset()
    assert found == dt.timedelta(hours=hours)
