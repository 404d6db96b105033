"""The daemon's side of the worker process: what is known of one that fails."""

import trio

from ghostd.job_worker import JobWorker, WorkerOptions
from ghostd.threads import WorkerThreads
from syncer.job_states import ENDED
from syncer.jobs import Jobs
from syncer.options import JobSpec, Verb
from tests.ghostd.test_door import opened


async def test_a_worker_that_cannot_begin_is_told_of_until_one_can(tmp_path, capfd):
    jobs = Jobs.open(tmp_path / "jobs.db")
    number = jobs.submit(JobSpec(Verb.COPY, str(tmp_path / "nothing"), str(tmp_path / "target")))
    state = tmp_path / "state"
    state.mkdir()
    seen_by_workers = state / "jobs.db"
    seen_by_workers.write_text("no database" * 1_000)
    threads = WorkerThreads()
    try:
        async with opened(tmp_path / "daemon") as doors, trio.open_nursery() as nursery:
            worker = JobWorker(
                jobs, state, tmp_path / "mnt", doors.server, threads, WorkerOptions()
            )
            assert worker.trouble == ""
            nursery.start_soon(worker.run)
            while not worker.trouble:  # noqa: ASYNC110  a process begins and ends
                await trio.sleep(0.01)
            assert "failed with code 2" in worker.trouble
            told = capfd.readouterr().err
            assert f"no jobs are carried out: {seen_by_workers}" in told
            assert "Traceback" not in told
            seen_by_workers.unlink()
            seen_by_workers.symlink_to(tmp_path / "jobs.db")
            while worker.trouble:  # noqa: ASYNC110  another one does its work
                await trio.sleep(0.01)
            assert jobs.get(number).state in ENDED
            nursery.cancel_scope.cancel()
    finally:
        threads.close()
        jobs.close()
