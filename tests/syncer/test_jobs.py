"""Jobs: submission, claiming, what is wanted, schedules, cleaning. One file, several processes."""

from __future__ import annotations

import dataclasses
import re
import stat
import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from blockstore.errors import FormatTooNew
from syncer.job_states import JobState, Wanted
from syncer.jobs import Jobs
from syncer.jobs_errors import BadJob, JobsDamaged, LeaseLost, NoSuchJob, NotNow
from syncer.jobs_spec import decode_spec, encode_spec, spec_of
from syncer.options import JobSpec, Mode, Options, Verb, default_options
from syncer.steps import Step, StepKind, StepResult, StepState
from tests.syncer.jobs_host import Machine

SPEC = JobSpec(Verb.COPY, "/a", "/b")
DAY_S = 86_400


def spec(**more) -> JobSpec:
    return dataclasses.replace(SPEC, **more)


class World:
    """One jobs.db and the processes that have it open."""

    def __init__(self, path):
        self.machine = Machine()
        self.path = path
        self.opened: list[Jobs] = []

    def process(self) -> Jobs:
        jobs = Jobs.open(self.path, host=self.machine.process())
        self.opened.append(jobs)
        return jobs


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "state" / "jobs.db")
    yield made
    for jobs in made.opened:
        jobs.close()


@pytest.fixture
def jobs(world):
    return world.process()


# --- submission ---------------------------------------------------------------------------------


def test_the_file_is_private(world, jobs):
    assert stat.S_IMODE(world.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(world.path.parent.stat().st_mode) == 0o700
    jobs.submit(SPEC)
    for each in world.path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


def test_another_file_or_a_newer_one_is_refused(tmp_path):
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at\n" * 99)
    with pytest.raises(JobsDamaged, match="text"):
        Jobs.open(tmp_path / "text")
    jobs = Jobs.open(tmp_path / "jobs.db")
    with jobs._database.writing() as connection:
        connection.execute("UPDATE meta SET value = 99").fetchall()
    jobs.close()
    with pytest.raises(FormatTooNew):
        Jobs.open(tmp_path / "jobs.db")


def test_a_job_is_there_for_others_as_it_was_submitted(world, jobs):
    full = spec(
        options=Options(mode=Mode.MIRROR, filters=("+ a", "- *"), delete_max=3, tags=("x",)),
        priority=-2,
    )
    number = jobs.submit(full)
    found = world.process().get(number)
    assert found.spec == full
    assert (found.state, found.wanted, found.priority) == (JobState.QUEUED, Wanted.RUN, -2)
    with pytest.raises(NoSuchJob):
        jobs.get(number + 1)


_texts = st.text(max_size=5)
_options = st.builds(
    Options,
    filters=st.lists(_texts, max_size=3).map(tuple),
    mode=st.sampled_from(Mode),
    delete_max=st.one_of(st.none(), st.floats(0, 1e9)),
    checksum=st.booleans(),
    parallel=st.integers(0, 99),
    bandwidth=_texts,
)


@given(
    st.builds(
        JobSpec,
        st.sampled_from(Verb),
        _texts,
        _texts,
        _options,
        st.integers(-9, 9),
        st.lists(st.integers(1, 99)).map(tuple),
        _texts,
    )
)
def test_specs_come_back_from_json(value):
    assert decode_spec(encode_spec(value)) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "object"),
        ({"verb": "copy"}, "lacks source"),
        ({"verb": "fly", "source": "/a"}, "verb"),
        ({"verb": "copy", "source": "/a", "speed": 1}, "speed"),
        ({"verb": "copy", "source": 1}, "source"),
        ({"verb": "copy", "source": "/a", "options": {"checksum": 1}}, "options.checksum"),
        ({"verb": "copy", "source": "/a", "options": {"filters": "+ a"}}, "options.filters"),
        ({"verb": "copy", "source": "/a", "options": {"parallel": True}}, "options.parallel"),
        ({"verb": "copy", "source": "/a", "options": {"options": {}}}, "options.options"),
        ({"verb": "copy", "source": "/a", "options": 3}, "options"),
    ],
)
def test_specs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(BadJob, match=message):
        spec_of(fields)


@pytest.mark.parametrize("verb", Verb)
def test_what_is_not_said_is_as_the_verb_usually_is(verb):
    usual = default_options(verb)
    said = spec_of({"verb": str(verb), "source": "/a"})
    assert said == JobSpec(verb, "/a", options=usual)
    assert (said.options.modes, said.options.times) == ((verb is not Verb.VERIFY,) * 2)
    assert (said.options.owners, said.options.xattrs) == ((verb is Verb.RESTORE,) * 2)
    # Whatever it is, it comes back from the database as it was.
    for options in (usual, Options(), Options(modes=False, owners=True, verify=True)):
        spec = JobSpec(verb, "/a", options=options)
        assert decode_spec(encode_spec(spec)) == spec


# --- dependencies -------------------------------------------------------------------------------


def test_unknown_dependencies_and_circles_are_refused_and_nothing_is_queued(jobs):
    with pytest.raises(BadJob, match="job 7"):
        jobs.submit(spec(after=(7,)))
    first = jobs.submit(SPEC)
    second = jobs.submit(spec(after=(first,)))
    third = jobs.submit(spec(after=(second,)))
    with pytest.raises(BadJob, match=f"{first} → {third} → {second} → {first}"):
        jobs.change(first, after=[third])
    with pytest.raises(BadJob, match=f"{second} → {second}"):
        jobs.change(second, after=[second])
    with pytest.raises(BadJob, match="schedule"):
        jobs.submit(spec(after=(jobs.submit(spec(schedule="@daily")),)))
    assert [job.number for job in jobs.list()] == [third + 1, third, second, first]
    assert jobs.get(first).after == ()


def test_a_change_is_made_whole_or_not_at_all(jobs):
    first, second = jobs.submit(SPEC), jobs.submit(SPEC)
    with pytest.raises(BadJob, match="job 9"):
        jobs.change(second, bandwidth="5M", priority=7, after=[first, 9])
    with pytest.raises(BadJob, match="no rate"):
        jobs.change(second, bandwidth="fast", priority=7, after=[first])
    unchanged = jobs.get(second)
    assert (unchanged.spec, unchanged.priority, unchanged.after) == (SPEC, SPEC.priority, ())
    assert jobs.change(second, priority=7, after=[first]).after == (first,)
    held = jobs.claim()
    assert held.number == first
    with pytest.raises(NotNow, match="running"):
        jobs.change(first, after=[second])


def test_a_job_waits_until_what_it_needs_is_done(jobs):
    first = jobs.submit(SPEC)
    second = jobs.submit(spec(after=(first,), priority=9))
    held = jobs.claim()
    assert held.number == first
    assert jobs.claim() is None
    assert jobs.claim(second) is None
    held.finish(JobState.DONE, {})
    assert jobs.claim().number == second


@pytest.mark.parametrize("how", [JobState.FAILED, JobState.PARTLY, JobState.CANCELLED])
def test_what_needs_a_job_that_is_not_done_fails_and_is_retried_with_it(jobs, how):
    first = jobs.submit(SPEC)
    second = jobs.submit(spec(after=(first,)))
    third = jobs.submit(spec(after=(second,)))
    jobs.want(third, Wanted.PAUSE)
    jobs.claim().finish(how, {})
    assert jobs.get(second).state is jobs.get(third).state is JobState.FAILED
    assert f"job {first}" in jobs.get(second).reason
    with pytest.raises(BadJob, match=f"job {second} failed"):
        jobs.submit(spec(after=(second,)))
    with pytest.raises(NotNow, match=f"job {first}"):
        jobs.retry(second)
    jobs.retry(first)
    assert [job.state for job in jobs.list()] == [JobState.QUEUED] * 3
    for number in (first, second, third):
        held = jobs.claim()
        assert held.number == number
        held.finish(JobState.DONE, {})


# --- claiming -----------------------------------------------------------------------------------


def test_the_highest_priority_comes_first_and_then_the_oldest(jobs):
    low, one, two, high = (jobs.submit(spec(priority=p)) for p in (-1, 0, 0, 5))
    jobs.change(low, priority=3)
    assert [jobs.claim().number for _ in range(4)] == [high, low, one, two]
    assert jobs.claim() is None


def test_a_job_that_is_begun_at_once_is_nobody_elses(world, jobs):
    other = world.process()
    held = jobs.begin(SPEC)
    assert other.claim() is None
    with pytest.raises(NotNow, match="running"):
        other.claim(held.number)
    with pytest.raises(BadJob):
        jobs.begin(spec(after=(held.number,)))
    with pytest.raises(BadJob):
        jobs.begin(spec(schedule="@daily"))
    assert [job.number for job in jobs.list()] == [held.number]


def test_a_dead_process_loses_its_job_at_once_and_a_silent_one_after_its_lease(world, jobs):
    other, third = world.process(), world.process()
    number = jobs.submit(SPEC)
    first = jobs.claim()
    assert other.claim() is None
    world.machine.pass_s(29)
    first.renew()
    world.machine.pass_s(29)
    assert other.next_due_s() is None
    assert other.claim() is None
    world.machine.pass_s(2)
    assert other.next_due_s() == 0
    second = other.claim()
    assert (second.number, second.attempt) == (number, 2)
    other._host.die()
    assert third.claim().attempt == 3


@pytest.mark.parametrize(
    ("wanted", "state"),
    [(Wanted.PAUSE, JobState.PAUSED), (Wanted.CANCEL, JobState.CANCELLED)],
)
def test_what_is_wanted_of_a_dead_process_happens(world, jobs, wanted, state):
    other = world.process()
    number = jobs.submit(SPEC)
    jobs.claim()
    assert other.want(number, wanted).state is JobState.RUNNING
    jobs._host.die()
    assert other.claim() is None
    assert other.get(number).state is state
    # And at once where the process is dead already.
    number = other.submit(SPEC)
    other.claim()
    other._host.die()
    assert world.process().want(number, wanted).state is state


# --- what is wanted -----------------------------------------------------------------------------


def test_waiting_jobs_are_paused_resumed_and_cancelled_at_once(jobs):
    number = jobs.submit(SPEC)
    assert jobs.want(number, Wanted.PAUSE).state is JobState.PAUSED
    with pytest.raises(NotNow, match="paused"):
        jobs.claim(number)
    assert jobs.claim() is None
    assert jobs.want(number, Wanted.RUN).state is JobState.QUEUED
    assert jobs.want(number, Wanted.CANCEL).state is JobState.CANCELLED
    for call in (
        lambda: jobs.want(number, Wanted.RUN),
        lambda: jobs.change(number, priority=1),
        lambda: jobs.change(number, after=[number]),
        lambda: jobs.claim(number),
    ):
        with pytest.raises(NotNow, match="cancelled"):
            call()


def test_a_held_job_becomes_what_is_wanted_when_it_is_given_back(jobs):
    number = jobs.submit(SPEC)
    for wanted, state in (
        (Wanted.PAUSE, JobState.PAUSED),
        (Wanted.RUN, JobState.QUEUED),
        (Wanted.CANCEL, JobState.CANCELLED),
    ):
        if jobs.get(number).state is JobState.PAUSED:
            jobs.want(number, Wanted.RUN)
        held = jobs.claim(number)
        assert jobs.want(number, wanted).state is JobState.RUNNING
        assert held.wanted() is wanted
        assert held.release() is state
        assert jobs.get(number).state is state


async def test_tending_tells_what_is_wanted_and_writes_what_was_recorded(world, jobs):
    other = world.process()
    held = jobs.begin(SPEC)
    held.add_steps([Step(StepKind.COPY, b"a")])
    (taken,) = held.next_steps([StepKind.COPY], limit=1)
    told: list[Wanted] = []
    heard = trio.Event()

    def obey(wanted: Wanted) -> None:
        told.append(wanted)
        if len(told) == 1:
            held.show({"bytes": 3})
            held.record([StepResult(taken.number, StepState.DONE)])
            world.machine.pass_s(6)
            other.want(held.number, Wanted.RUN)
        else:
            heard.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.tend, obey)
        other.want(held.number, Wanted.PAUSE)
        with trio.fail_after(30):
            await heard.wait()
        nursery.cancel_scope.cancel()
    assert told == [Wanted.PAUSE, Wanted.RUN]
    job = other.get(held.number)
    assert job.progress == {"bytes": 3}
    assert job.lease_ns == world.machine.boot + 30 * 10**9  # renewed
    with other._database.reading() as connection:
        assert connection.execute("SELECT state FROM steps").fetchall() == [(StepState.DONE,)]


async def test_tending_ends_when_the_job_is_lost(world, jobs):
    held = jobs.begin(SPEC)
    world.machine.pass_s(31)
    assert world.process().claim() is not None
    with pytest.raises(LeaseLost), trio.fail_after(30):
        await held.tend(lambda wanted: None)


# --- log, report, changes -----------------------------------------------------------------------


def test_the_log_is_paged_by_number_and_survives(world, jobs):
    held = jobs.begin(SPEC)
    for number in range(5):
        held.tell({"event": "file.copied", "n": number})
    held.finish(JobState.PARTLY, {"failed": 1, "path": "\udcff"}, "1 file failed")
    other = world.process()
    events = other.events(held.number)
    assert [each.sequence for each in events] == list(range(1, len(events) + 1))
    words = [each.event["event"] for each in events]
    assert words == ["job.queued", "job.running", *["file.copied"] * 5, "job.partly"]
    assert events[-1].event["message"] == "1 file failed"
    assert other.events(held.number, after=3, limit=2) == events[3:5]
    job = other.get(held.number)
    assert job.report == {"failed": 1, "path": "\udcff"}
    assert job.reason == "1 file failed"
    assert job.ended_ns == world.machine.wall


def test_the_log_is_bounded_and_counts_what_went(jobs, monkeypatch):
    monkeypatch.setattr("syncer.jobs_held.EVENTS_KEPT", 20)
    monkeypatch.setattr("syncer.jobs_rows.EVENTS_KEPT", 20)
    held = jobs.begin(SPEC)
    for number in range(50):  # more than is kept, before any is written
        held.tell({"n": number})
    held.flush()
    for number in range(50, 60):
        held.tell({"n": number})
        held.flush()
    events = jobs.events(held.number)
    assert [each.event["n"] for each in events] == list(range(40, 60))
    # Two changes of state came before.
    assert [each.sequence for each in events] == list(range(43, 63))


def test_the_version_tells_of_changes_by_anyone(world, jobs):
    other = world.process()
    before = jobs.version()
    assert jobs.version() == before
    other.submit(SPEC)
    after = jobs.version()
    assert after != before
    jobs.submit(SPEC)
    assert jobs.version() != after


# --- schedules ----------------------------------------------------------------------------------


def runs_of(jobs: Jobs, number: int) -> list[int]:
    return sorted(job.number for job in jobs.list() if job.schedule == number)


def test_a_schedule_queues_a_run_at_each_of_its_times(world, jobs):
    number = jobs.submit(spec(schedule="0 3 * * *", priority=4))
    assert jobs.get(number).state is JobState.SCHEDULED
    assert jobs.next_due_s() == 3 * 3_600
    assert jobs.claim() is None
    with pytest.raises(NotNow, match="scheduled"):
        jobs.claim(number)
    for day in range(1, 4):
        world.machine.pass_s(3 * 3_600 if day == 1 else DAY_S)
        assert jobs.next_due_s() == 0
        held = jobs.claim()
        assert held.spec == spec(priority=4)
        assert jobs.claim() is None
        held.finish(JobState.DONE, {})
        assert jobs.next_due_s() == DAY_S
        assert len(runs_of(jobs, number)) == day


def test_the_snapshots_of_a_schedule_have_names_of_their_own(world, jobs):
    jobs.submit(spec(schedule="@daily", options=Options(name="nightly")))
    names = []
    for _ in range(2):
        world.machine.pass_s(DAY_S)
        held = jobs.claim()
        names.append(held.spec.options.name)
        held.finish(JobState.DONE, {})
    assert all(re.fullmatch(r"nightly-\d{8}-\d{6}", name) for name in names)
    assert len(set(names)) == 2


def test_missed_runs_are_one_run(world, jobs):
    number = jobs.submit(spec(schedule="@daily"))
    world.machine.pass_s(10.5 * DAY_S)
    held = jobs.claim()
    assert held is not None
    assert jobs.claim() is None
    assert runs_of(jobs, number) == [held.number]
    assert jobs.next_due_s() == DAY_S / 2


def test_a_run_that_still_goes_on_is_not_joined_by_another(world, jobs):
    number = jobs.submit(spec(schedule="every 1h"))
    world.machine.pass_s(3_600)
    held = jobs.claim()
    for _ in range(5):
        world.machine.pass_s(3_600)
        held.renew()
        assert jobs.claim() is None
    assert runs_of(jobs, number) == [held.number]
    assert "left out" in jobs.events(number)[-1].event["message"]
    held.finish(JobState.FAILED, {})
    assert jobs.claim() is None  # the next time is the next run
    world.machine.pass_s(3_600)
    assert jobs.claim() is not None


def test_a_paused_schedule_does_not_run_nor_catch_up(world, jobs):
    number = jobs.submit(spec(schedule="every 1h"))
    jobs.want(number, Wanted.PAUSE)
    world.machine.pass_s(3.5 * 3_600)
    assert jobs.claim() is None
    assert jobs.next_due_s() is None
    assert jobs.want(number, Wanted.RUN).state is JobState.SCHEDULED
    assert jobs.claim() is None
    assert jobs.next_due_s() == 1_800
    jobs.want(number, Wanted.CANCEL)
    assert jobs.next_due_s() is None
    assert jobs.retry(number).state is JobState.SCHEDULED
    jobs.remove(number)
    with pytest.raises(NoSuchJob):
        jobs.get(number)


def test_a_scheduled_run_waits_for_what_the_schedule_needs(world, jobs):
    first = jobs.submit(SPEC)
    number = jobs.submit(spec(schedule="every 1h", after=(first,)))
    world.machine.pass_s(3_600)
    held = jobs.claim()
    assert held.number == first
    assert jobs.claim() is None
    (run,) = runs_of(jobs, number)
    held.finish(JobState.FAILED, {})
    assert jobs.get(run).state is JobState.FAILED
    assert jobs.get(number).state is JobState.SCHEDULED
    world.machine.pass_s(3_600)
    assert jobs.claim() is None
    later = runs_of(jobs, number)[-1]
    assert later != run
    assert jobs.get(later).state is JobState.FAILED


def test_bad_schedules_are_refused(jobs):
    with pytest.raises(BadJob, match="five fields"):
        jobs.submit(spec(schedule="sometimes"))
    assert jobs.list() == []


# --- cleaning -----------------------------------------------------------------------------------


def _ended(jobs: Jobs, state: JobState) -> int:
    held = jobs.begin(SPEC)
    held.add_steps([Step(StepKind.COPY, b"a"), Step(StepKind.COPY, b"b")])
    held.end_plan()
    one, two = held.next_steps([StepKind.COPY], limit=2)
    held.record([StepResult(one.number, StepState.DONE)])
    held.record([StepResult(two.number, StepState.FAILED, error="no")])
    held.finish(state, {"n": held.number})
    return held.number


def _rows(jobs: Jobs, number: int) -> int:
    with jobs._database.reading() as connection:
        return sum(
            connection.execute(query, (number,)).fetchall()[0][0]
            for query in (
                "SELECT count(*) FROM steps WHERE job = ?",
                "SELECT count(*) FROM events WHERE job = ?",
                "SELECT count(*) FROM tallies WHERE job = ?",
                "SELECT count(*) FROM attempts WHERE step >> 32 = ?",
            )
        )


def test_old_jobs_lose_their_steps_and_keep_their_reports(world, jobs):
    old = _ended(jobs, JobState.PARTLY)
    world.machine.pass_s(40 * DAY_S)
    some = [_ended(jobs, JobState.DONE) for _ in range(3)]
    assert jobs.clean(days=30, jobs_max=2) == 2
    assert jobs.clean(days=30, jobs_max=2) == 0
    for number, kept in ((old, False), (some[0], False), (some[1], True), (some[2], True)):
        assert bool(_rows(jobs, number)) == kept
        assert jobs.get(number).report == {"n": number}
    jobs.retry(old)
    held = jobs.claim()
    assert not held.planned  # it plans anew


def test_a_removed_job_leaves_nothing(jobs):
    number = jobs.submit(SPEC)
    with pytest.raises(NotNow, match="cancel it first"):
        jobs.remove(number)
    jobs.want(number, Wanted.CANCEL)
    jobs.remove(number)
    number = _ended(jobs, JobState.DONE)
    waiting = jobs.submit(spec(after=(number,)))
    jobs.remove(number)
    assert _rows(jobs, number) == 0
    assert jobs.get(waiting).after == ()
    assert jobs.claim().number == waiting
    assert jobs.submit(SPEC) > waiting  # numbers do not come again


def test_threads_share_one_connection(jobs):
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(jobs.submit(SPEC) for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == sorted(job.number for job in jobs.list())
    assert len(set(numbers)) == 20
