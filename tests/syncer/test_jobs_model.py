"""Random histories of submitting, claiming, steering, dying: against a model of what must hold."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from syncer.job_states import ENDED, RETRIABLE, JobState, Wanted
from syncer.jobs import Jobs
from syncer.jobs_errors import BadJob, LeaseLost, NotNow
from syncer.jobs_held import LEASE_S, HeldJob
from syncer.options import JobSpec, Verb
from tests.syncer.jobs_host import Machine

SPEC = JobSpec(Verb.COPY, "/a", "/b")
PROCESSES = 3


@dataclass
class ModelJob:
    priority: int
    after: set[int]
    state: JobState = JobState.QUEUED
    wanted: Wanted = Wanted.RUN
    process: int = -1  # that holds it
    until: float = 0.0
    blocked_by: int = 0
    attempt: int = 0


@dataclass
class Model:
    """What the jobs should be."""

    jobs: dict[int, ModelJob] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    now: float = 0.0

    def end(self, number: int, state: JobState) -> None:
        job = self.jobs[number]
        job.state, job.process = state, -1
        if state in RETRIABLE:
            for other, each in self.jobs.items():
                if number in each.after and each.state in {JobState.QUEUED, JobState.PAUSED}:
                    self.end(other, JobState.FAILED)
                    each.blocked_by = number

    def lost(self, job: ModelJob) -> bool:
        return job.state is JobState.RUNNING and (job.process in self.dead or self.now > job.until)

    def settle(self, number: int) -> None:
        """Nobody holds it: what is wanted of it happens."""
        job = self.jobs[number]
        if job.wanted is Wanted.CANCEL:
            self.end(number, JobState.CANCELLED)
        else:
            job.state = JobState.PAUSED if job.wanted is Wanted.PAUSE else JobState.QUEUED
            job.process = -1

    def next(self) -> int | None:
        for number in list(self.jobs):
            if self.lost(self.jobs[number]):
                self.settle(number)
        ready = [
            (-job.priority, number)
            for number, job in self.jobs.items()
            if job.state is JobState.QUEUED
            and all(self.jobs[each].state is JobState.DONE for each in job.after)
        ]
        return min(ready)[1] if ready else None


class JobHistories(RuleBasedStateMachine):
    """Several processes work on one file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.machine = Machine()
        self.model = Model()
        self.processes: list[Jobs] = [self._open() for _ in range(PROCESSES)]
        self.held: dict[int, tuple[int, HeldJob]] = {}  # who believes to hold what
        self.lost: list[HeldJob] = []

    def _open(self) -> Jobs:
        return Jobs.open(self.folder / "jobs.db", host=self.machine.process())

    def teardown(self) -> None:
        for jobs in self.processes:
            jobs.close()
        shutil.rmtree(self.folder)

    def _pick(self, pick: int) -> int:
        return sorted(self.model.jobs)[pick % len(self.model.jobs)]

    def _any(self) -> Jobs:
        return self.processes[len(self.model.jobs) % PROCESSES]

    @rule(priority=st.integers(-2, 2), picks=st.lists(st.integers(0, 9), max_size=2))
    def submit(self, priority, picks):
        after = {self._pick(pick) for pick in picks} if self.model.jobs else set()
        spec = dataclasses.replace(SPEC, priority=priority, after=tuple(after))
        if any(self.model.jobs[each].state in RETRIABLE for each in after):
            with pytest.raises(BadJob):
                self._any().submit(spec)
        else:
            self.model.jobs[self._any().submit(spec)] = ModelJob(priority, after)

    @rule(process=st.integers(0, PROCESSES - 1))
    def claim(self, process):
        expected = self.model.next()
        held = self.processes[process].claim()
        if expected is None:
            assert held is None
            return
        assert held is not None
        assert held.number == expected
        if expected in self.held:
            self.lost.append(self.held.pop(expected)[1])
        self.held[expected] = (process, held)
        job = self.model.jobs[expected]
        job.state, job.process, job.until = JobState.RUNNING, process, self.model.now + LEASE_S
        job.blocked_by = 0
        job.attempt += 1
        assert held.attempt == job.attempt

    def _mine(self, pick: int) -> tuple[int, HeldJob] | None:
        """A job that somebody believes to hold, if that is so."""
        number = sorted(self.held)[pick % len(self.held)]
        process, held = self.held[number]
        job = self.model.jobs[number]
        if job.state is JobState.RUNNING and job.process == process:
            return number, held
        del self.held[number]
        with pytest.raises(LeaseLost):
            held.renew()
        return None

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 9), how=st.sampled_from(sorted(ENDED)))
    def finish(self, pick, how):
        if mine := self._mine(pick):
            number, held = mine
            held.finish(how, {})
            self.model.jobs[number].wanted = Wanted.RUN
            self.model.end(number, how)
            del self.held[number]

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 9))
    def release(self, pick):
        if mine := self._mine(pick):
            number, held = mine
            self.model.settle(number)
            assert held.release() is self.model.jobs[number].state
            del self.held[number]

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 9))
    def renew(self, pick):
        if mine := self._mine(pick):
            number, held = mine
            held.renew()
            self.model.jobs[number].until = self.model.now + LEASE_S
            assert held.wanted() is self.model.jobs[number].wanted

    @precondition(lambda self: self.model.jobs)
    @rule(pick=st.integers(0, 9), wanted=st.sampled_from(Wanted))
    def want(self, pick, wanted):
        number = self._pick(pick)
        job = self.model.jobs[number]
        if job.state in ENDED:
            with pytest.raises(NotNow):
                self._any().want(number, wanted)
            return
        self._any().want(number, wanted)
        job.wanted = wanted
        if job.state is not JobState.RUNNING or self.model.lost(job):
            self.model.settle(number)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=st.integers(0, 9))
    def retry(self, pick):
        number = self._pick(pick)
        jobs = self.model.jobs
        job = jobs[number]
        if job.state not in RETRIABLE or any(jobs[each].state in RETRIABLE for each in job.after):
            with pytest.raises(NotNow):
                self._any().retry(number)
            return
        self._any().retry(number)
        todo = [number]
        while todo:
            again = todo.pop()
            jobs[again].state, jobs[again].wanted = JobState.QUEUED, Wanted.RUN
            jobs[again].blocked_by = 0
            todo += [
                each
                for each, other in jobs.items()
                if other.blocked_by == again and other.state is JobState.FAILED
            ]

    @rule(process=st.integers(0, PROCESSES - 1))
    def die(self, process):
        jobs = self.processes[process]
        jobs._host.die()
        jobs.close()
        for job in self.model.jobs.values():
            if job.process == process:
                job.process = 1_000 + process  # whoever comes next is another one
        self.model.dead.add(1_000 + process)
        self.held = {n: each for n, each in self.held.items() if each[0] != process}
        self.processes[process] = self._open()

    @rule(seconds=st.sampled_from([1, 20, 31]))
    def time_passes(self, seconds):
        self.machine.pass_s(seconds)
        self.model.now += seconds

    @invariant()
    def all_is_as_the_model_says(self):
        found = {job.number: job for job in self._any().list()}
        assert set(found) == set(self.model.jobs)
        for number, job in self.model.jobs.items():
            assert (found[number].state, found[number].attempt) == (job.state, job.attempt)
            assert bool(found[number].holder) == (job.state is JobState.RUNNING)

    @invariant()
    def who_has_lost_a_job_cannot_touch_it(self):
        while self.lost:
            held = self.lost.pop()
            with pytest.raises(LeaseLost):
                held.finish(JobState.DONE, {})


TestJobHistories = JobHistories.TestCase
TestJobHistories.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


@pytest.mark.soak
def test_many_histories():
    run_state_machine_as_test(
        JobHistories, settings=settings(max_examples=1_000, stateful_step_count=60, deadline=None)
    )
