"""The table of states, and circles of dependencies."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.job_states import ENDED, RETRIABLE, STEPS, JobState, Wanted, cycle, may_step, obey

UNHELD = [state for state in JobState if state not in ENDED]


def test_every_state_has_its_steps_and_is_reached():
    assert set(STEPS) == set(JobState)
    reached = {new for steps in STEPS.values() for new in steps}
    # A job begins queued and is scheduled at once, by being submitted.
    assert reached == set(JobState)
    assert all(not STEPS[state] for state in ENDED - RETRIABLE)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("wanted", Wanted)
def test_what_is_wanted_is_a_legal_step_or_none(state, wanted):
    # A paused job may be either.
    for scheduled in {state is JobState.SCHEDULED, state in {JobState.SCHEDULED, JobState.PAUSED}}:
        new = obey(state, wanted, scheduled=scheduled)
        assert new is state or may_step(state, new)
        assert (new is state) == (
            state in ENDED
            or (wanted is Wanted.PAUSE and state is JobState.PAUSED)
            or (
                wanted is Wanted.RUN
                and state is (JobState.SCHEDULED if scheduled else JobState.QUEUED)
            )
        )


@pytest.mark.parametrize("state", UNHELD)
def test_cancelling_ends_whatever_has_not_ended(state):
    assert obey(state, Wanted.CANCEL) is JobState.CANCELLED


_graphs = st.dictionaries(
    st.integers(1, 7), st.sets(st.integers(1, 7), max_size=3), min_size=1, max_size=7
)


def _reaches(needs: dict[int, set[int]], start: int, end: int) -> bool:
    seen: set[int] = set()
    todo = [start]
    while todo:
        at = todo.pop()
        if at == end:
            return True
        if at not in seen:
            seen.add(at)
            todo += needs.get(at, ())
    return False


@given(_graphs, st.integers(1, 7), st.lists(st.integers(1, 7), max_size=4))
def test_a_circle_is_found_exactly_when_there_is_one(needs, job, after):
    found = cycle(job, after, lambda each: needs.get(each, ()))
    assert bool(found) == any(_reaches(needs, needed, job) for needed in after)
    if found:
        assert found[0] == found[-1] == job
        assert found[1] in after
        assert all(b in needs[a] for a, b in itertools.pairwise(found[1:]))
