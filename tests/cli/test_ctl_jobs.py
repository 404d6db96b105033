"""`orbit-ctl jobs` against the real API and a real `jobs.db`."""

import json

from syncer.options import JobSpec, Verb

SPEC = JobSpec(Verb.COPY, "/a", "/b")


def test_a_job_is_changed(jobs, orbit_ctl, socket_path):
    first, second = jobs.submit(SPEC), jobs.submit(SPEC)

    def change(number, *words):
        return orbit_ctl("--socket", socket_path, "--json", "jobs", "set", number, *words)

    ran = change(second, "--after", first, "--priority", "-3", "--bwlimit", "5M")
    assert ran.returncode == 0, ran.stderr
    job = json.loads(ran.stdout)
    assert (job["after"], job["priority"]) == ([first], -3)
    assert jobs.get(second).spec.options.bandwidth == "5M"
    assert "wait for each other" in change(first, "--after", second).stdout
    assert "set what" in change(first).stderr
    assert jobs.get(first).after == ()
