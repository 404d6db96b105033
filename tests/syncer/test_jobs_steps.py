"""Steps of a held job: order, results, retries, restarts; against a model in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.errors import StorageFull
from syncer.job_states import JobState
from syncer.jobs import Jobs
from syncer.jobs_errors import JobsDamaged, LeaseLost
from syncer.jobs_held import HeldJob
from syncer.options import JobSpec, Verb
from syncer.step_rows import turn_of
from syncer.steps import Step, StepKind, StepResult, StepState
from syncer.tree import Node, NodeKind
from tests.simdisk import SimDisk
from tests.syncer.jobs_host import Machine

SPEC = JobSpec(Verb.COPY, "/a", "/b")
FILES = [StepKind.COPY, StepKind.SYMLINK]


def copy(name: str, size: int = 0, rank: int = 0) -> Step:
    node = Node(name.encode(), NodeKind.FILE, size=size, token=(1, 2))
    return Step(StepKind.COPY, name.encode(), "new", rank, size, b"src/" + name.encode(), node)


@pytest.fixture
def jobs(tmp_path):
    opened = Jobs.open(tmp_path / "jobs.db", host=Machine().process())
    yield opened
    opened.close()


def names(taken) -> list[str]:
    return [each.step.path.decode() for each in taken]


def done(taken, state: StepState = StepState.DONE, **more) -> list[StepResult]:
    return [StepResult(each.number, state, **more) for each in taken]


def again(jobs: Jobs, held: HeldJob) -> HeldJob:
    """Give the job back, and take it once more."""
    held.release()
    found = jobs.claim(held.number)
    assert found is not None
    return found


def test_steps_come_in_order_once_and_as_they_were(jobs):
    held = jobs.begin(SPEC)
    big, small = copy("big", 9_000, rank=1), copy("small", 10, rank=1)
    critical = copy("critical", 99_999)
    link = Step(StepKind.SYMLINK, b"link")
    held.add_steps([link, big, small, critical])
    taken = held.next_steps(FILES, limit=10)
    assert [each.step for each in taken] == [critical, small, big, link]
    assert held.next_steps(FILES, limit=10) == []
    held.give_back([taken[1].number])
    assert held.next_steps(FILES, limit=10) == [taken[1]]


def test_deeper_directories_are_deleted_first_and_made_last(jobs):
    held = jobs.begin(SPEC)
    paths = [b"a/b/c", b"", b"a", b"a/b", b"z/z"]
    held.add_steps([Step(StepKind.MKDIR, path) for path in paths])
    held.add_steps([Step(StepKind.DELETE, path) for path in paths])
    up = [each.step.path.count(b"/") for each in held.next_steps([StepKind.MKDIR], limit=9)]
    down = [each.step.path.count(b"/") for each in held.next_steps([StepKind.DELETE], limit=9)]
    assert up == [0, 0, 1, 1, 2]
    assert down == [2, 1, 1, 0, 0]


def test_bytes_limit_what_is_taken_but_never_to_nothing(jobs):
    held = jobs.begin(SPEC)
    held.add_steps([copy("a", 10), copy("b", 20), copy("c", 70), copy("d", 500)])
    assert names(held.next_steps(FILES, limit=9, bytes_max=99)) == ["a", "b"]
    assert names(held.next_steps(FILES, limit=9, bytes_max=99)) == ["c"]
    assert names(held.next_steps(FILES, limit=9, bytes_max=99)) == ["d"]


def test_what_is_done_is_not_given_again_after_a_restart_and_what_is_not_is(jobs):
    held = jobs.begin(SPEC)
    held.add_steps([copy(name) for name in "abcd"])
    taken = {each.step.path: each for each in held.next_steps(FILES, limit=9)}
    held.record([StepResult(taken[b"a"].number, StepState.DONE, bytes_moved=7, bytes_saved=2)])
    held.record([StepResult(taken[b"b"].number, StepState.SKIPPED)])
    held.record([StepResult(taken[b"c"].number, StepState.FAILED, error="no", transient=True)])
    before = held.tallies()
    held = again(jobs, held)
    assert held.attempt == 2
    assert names(held.next_steps(FILES, limit=9)) == ["d"]
    assert held.tallies() == before
    assert {state: tally.steps for (_, state), tally in before.items()} == {
        StepState.DONE: 1,
        StepState.SKIPPED: 1,
        StepState.FAILED: 1,
        StepState.WAITING: 1,
    }
    assert (held.bytes_moved, held.bytes_saved) == (7, 2)


def test_failed_steps_keep_reason_and_attempts_and_are_retried(jobs):
    held = jobs.begin(SPEC)
    held.add_steps([copy("busy"), copy("denied")])
    for attempt in (1, 2, 3):
        for each in held.next_steps(FILES, limit=9):
            assert each.attempts == attempt - 1
            transient = each.step.path == b"busy"
            error = f"attempt {attempt}"
            held.record(done([each], StepState.FAILED, error=error, transient=transient))
        assert held.retry_failed(attempts_max=3) == (1 if attempt < 3 else 0)
    found = {each.path: each for each in held.failures()}
    assert (found[b"busy"].attempts, found[b"busy"].error) == (3, "attempt 3")
    assert (found[b"denied"].attempts, found[b"denied"].error) == (1, "attempt 1")
    assert (found[b"busy"].transient, found[b"denied"].transient) == (True, False)
    assert held.failures(after=found[b"busy"].number, limit=1) == [found[b"denied"]]
    assert held.retry_failed(attempts_max=9, transient_only=False) == 2
    assert held.failures() == []


def test_a_retried_job_gives_failed_steps_again(jobs):
    held = jobs.begin(SPEC)
    held.add_steps([copy("a", 5), copy("b", 5)])
    held.end_plan()
    a, b = held.next_steps(FILES, limit=9)
    held.record([*done([a]), *done([b], StepState.FAILED, error="no")])
    held.finish(JobState.PARTLY, {"failed": 1})
    jobs.retry(held.number)
    held = jobs.claim()
    assert held.planned
    assert [each.step for each in held.next_steps(FILES, limit=9)] == [b.step]
    assert held.tallies() == {
        (StepKind.COPY, StepState.DONE): (1, 5),
        (StepKind.COPY, StepState.WAITING): (1, 5),
    }


def test_a_plan_that_was_interrupted_is_made_anew_and_keeps_checkpoints(jobs):
    held = jobs.begin(SPEC)
    held.add_steps([copy("done"), copy("failed"), copy("large", 10**12)])
    one, two, large = held.next_steps(FILES, limit=9)
    held.record([*done([one]), *done([two], StepState.FAILED, error="no")])
    held.save_checkpoint(large.number, b"half")
    held.save_checkpoint(0, b"walked to x")
    held = again(jobs, held)
    assert not held.planned
    assert held.checkpoint(0) == b"walked to x"
    held.drop_plan()
    assert held.next_steps(FILES, limit=9) == []
    assert held.tallies() == {(StepKind.COPY, StepState.DONE): (1, 0)}
    held.add_steps([copy("large", 10**12)])
    held.end_plan()
    (taken,) = held.next_steps(FILES, limit=9)
    assert taken.checkpoint == b"half"
    held.record(done([taken]))
    held = again(jobs, held)
    assert held.planned
    held.drop_plan()
    held.add_steps([copy("large", 10**12)])
    assert held.next_steps(FILES, limit=9)[0].checkpoint is None  # a step that is done forgets it


def test_a_result_that_could_not_be_written_is_written_later():
    disk = SimDisk()
    folder = Path("/state")
    disk.mkdir(folder)
    machine = Machine()
    jobs = Jobs.open(folder / "jobs.db", disk, machine.process())
    held = jobs.begin(SPEC)
    held.add_steps([copy(name) for name in "abc"])
    taken = held.next_steps(FILES, limit=2)
    held.flush()
    held.record(done(taken, bytes_moved=1))
    held.tell({"event": "one"})
    disk.fail_at(1, StorageFull("full"), times=40)
    with pytest.raises(StorageFull):
        held.flush()
    disk.heal()
    held.record(done(held.next_steps(FILES, limit=2), bytes_moved=1))
    held.tell({"event": "two"})
    held = again(jobs, held)
    assert held.next_steps(FILES, limit=9) == []
    assert held.bytes_moved == 3
    logged = [each.event["event"] for each in jobs.events(held.number)]
    assert [each for each in logged if each in {"one", "two"}] == ["one", "two"]
    jobs.close()


def test_a_damaged_row_is_named(jobs, tmp_path):
    held = jobs.begin(SPEC)
    held.add_steps([copy("a")])
    with jobs._database.writing() as connection:
        connection.execute("UPDATE steps SET detail = substr(detail, 2)").fetchall()
    with pytest.raises(JobsDamaged, match="'a'"):
        held.next_steps(FILES, limit=1)


_sizes = st.integers(0, 3)


@st.composite
def _actions(draw):
    return draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("add"), st.lists(_sizes, min_size=1, max_size=5)),
                st.tuples(st.just("take"), st.integers(1, 4)),
                st.tuples(st.sampled_from(["done", "failed", "back"]), st.integers(0, 5)),
                st.tuples(st.sampled_from(["flush", "retry", "restart"]), st.none()),
            ),
            max_size=25,
        )
    )


@settings(max_examples=40, deadline=None)
@given(actions=_actions())
def test_any_sequence_gives_each_step_in_order_until_it_is_done(tmp_path_factory, actions):
    jobs = Jobs.open(tmp_path_factory.mktemp("jobs") / "jobs.db", host=Machine().process())
    held = jobs.begin(SPEC)
    waiting: dict[bytes, Step] = {}
    failed: dict[bytes, Step] = {}
    taken: dict[bytes, int] = {}
    finished = count = 0
    steps: dict[bytes, Step] = {}
    for action, value in actions:
        if action == "add":
            batch = [copy(f"{count + each}", size) for each, size in enumerate(value)]
            count += len(batch)
            steps |= {step.path: step for step in batch}
            waiting |= {step.path: step for step in batch}
            held.add_steps(batch)
        elif action == "take":
            found = held.next_steps(FILES, limit=value)
            turns = sorted(turn_of(step) for step in waiting.values())
            assert [turn_of(each.step) for each in found] == turns[:value]
            for each in found:
                assert waiting.pop(each.step.path) == each.step
                taken[each.step.path] = each.number
        elif action in {"done", "failed", "back"} and taken:
            path = sorted(taken)[value % len(taken)]
            number = taken.pop(path)
            if action == "back":
                held.give_back([number])
                waiting[path] = steps[path]
            elif action == "done":
                held.record([StepResult(number, StepState.DONE)])
                finished += 1
            else:
                held.record([StepResult(number, StepState.FAILED, error="x", transient=True)])
                failed[path] = steps[path]
        elif action == "flush":
            held.flush()
        elif action == "retry":
            assert held.retry_failed(attempts_max=99) == len(failed)
            waiting |= failed
            failed.clear()
        elif action == "restart":
            held = again(jobs, held)
            waiting |= {path: steps[path] for path in taken}
            taken.clear()
        tallies = held.tallies()
        expected = {
            StepState.WAITING: len(waiting) + len(taken),
            StepState.DONE: finished,
            StepState.FAILED: len(failed),
        }
        assert {state: tally.steps for (_, state), tally in tallies.items()} == {
            state: number for state, number in expected.items() if number
        }
    jobs.close()


def test_whoever_has_lost_the_job_is_refused(tmp_path):
    machine = Machine()
    first = Jobs.open(tmp_path / "jobs.db", host=machine.process())
    second = Jobs.open(tmp_path / "jobs.db", host=machine.process())
    held = first.begin(SPEC)
    held.add_steps([copy("a"), copy("b")])
    (taken,) = held.next_steps(FILES, limit=1)
    machine.pass_s(31)  # it was stopped, or hung
    other = second.claim()
    assert other is not None
    held.record(done([taken]))
    for call in (
        held.flush,
        held.renew,
        held.wanted,
        held.end_plan,
        held.release,
        lambda: held.add_steps([copy("c")]),
        lambda: held.retry_failed(attempts_max=1),
        lambda: held.finish(JobState.DONE, {}),
    ):
        with pytest.raises(LeaseLost):
            call()
    assert names(other.next_steps(FILES, limit=9)) == ["a", "b"]
    first.close()
    second.close()


def _run_through(path: Path, count: int) -> int:
    """Plan and carry out so many steps; return the peak of memory in bytes."""
    jobs = Jobs.open(path, host=Machine().process())
    held = jobs.begin(SPEC)
    tracemalloc.start()
    for start in range(0, count, 2_000):
        held.add_steps([copy(f"d/{n}", n % 977) for n in range(start, start + 2_000)])
    seen = 0
    while taken := held.next_steps(FILES, limit=500):
        seen += len(taken)
        held.record(done(taken, bytes_moved=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held.finish(JobState.DONE, {})
    assert seen == count == held.bytes_moved
    jobs.close()
    return peak


def test_memory_does_not_grow_with_the_steps(tmp_path):
    few = _run_through(tmp_path / "few.db", 2_000)
    many = _run_through(tmp_path / "many.db", 10_000)
    assert many < 1.3 * few


@pytest.mark.soak
def test_memory_does_not_grow_with_a_million_steps(tmp_path):
    few = _run_through(tmp_path / "few.db", 10_000)
    many = _run_through(tmp_path / "many.db", 1_000_000)
    assert many < 1.3 * few
