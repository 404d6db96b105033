"""What the control API may ask of jobs, over a real `jobs.db`."""

import json

import pytest

from ghostd.jobs_facade import JobControl
from syncer.jobs import Jobs
from syncer.jobs_errors import BadJob, NoSuchJob, NotNow


@pytest.fixture
def control(tmp_path):
    jobs = Jobs.open(tmp_path / "jobs.db")
    yield JobControl(jobs, lambda: None, tmp_path / "audit")
    jobs.close()


def test_the_log_of_a_job_that_has_ended_is_whole(control, monkeypatch):
    """Whoever watches stops at the state, and has seen all: also when it ends at that moment."""
    number = control.submit({"verb": "copy", "source": "/a", "destination": "/b"}).number
    jobs = control._jobs

    def ends_after(call):
        def called(*arguments):
            found = call(*arguments)
            if jobs.get(number).state == "queued":
                control.want(number, "cancel")
            return found

        return called

    monkeypatch.setattr(jobs, "events", ends_after(jobs.events))
    answer = control.log(number, 0, 100)
    told = [json.dumps(each) for each in answer.events]
    assert any("job.queued" in each for each in told)
    ended = answer.job.state == "cancelled"
    assert ended == any("job.cancelled" in each for each in told)


def test_a_job_is_changed_until_it_has_ended(control):
    spec = {"verb": "copy", "source": "/a", "destination": "/b"}
    number = control.submit(spec).number
    changed = control.change(number, "08:00-18:00 5M", 7, ())
    assert (changed.spec["options"], changed.priority) == ({"bandwidth": "08:00-18:00 5M"}, 7)
    assert control.change(number, None, 8, ()).spec == changed.spec
    with pytest.raises(BadJob):
        control.change(number, "fast", None, ())
    with pytest.raises(NoSuchJob):
        control.change(number + 1, "5M", None, ())
    other = control.submit(spec).number
    assert control.change(other, None, None, (number,)).after == (number,)
    control.want(number, "cancel")
    with pytest.raises(NotNow):
        control.change(number, "5M", None, ())
