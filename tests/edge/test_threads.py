"""Worker threads: results, errors, limits and cancellation come through."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from ghostd.threads import WorkerThreads


@pytest.fixture
def threads():
    made = WorkerThreads()
    yield made
    made.close()


async def test_results_and_errors_come_back(threads):
    assert await threads.run("read", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run("commit", divmod, 1, 0)


async def test_so_many_at_a_time_and_then_the_rest(threads):
    started = []
    gate = threading.Event()
    both = trio.lowlevel.current_trio_token()
    two_run = trio.Event()

    def work(number):
        started.append(number)
        if len(started) == 2:
            both.run_sync_soon(two_run.set)
        gate.wait()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(threads.run, "encode", work, number)
            await trio.testing.wait_all_tasks_blocked()
        await two_run.wait()
        assert sorted(started) == [0, 1]
        gate.set()
    assert sorted(started) == [0, 1, 2, 3, 4, 5]


async def test_a_read_is_given_up_at_once_and_its_result_dropped(threads):
    gate = threading.Event()
    with trio.move_on_after(0.01) as scope:
        await threads.run("read", gate.wait)
    assert scope.cancelled_caught
    gate.set()
    assert await threads.run("read", lambda: "next") == "next"


async def test_anything_else_is_finished_before_a_cancellation_shows(threads):
    done = []
    with trio.CancelScope() as scope:
        scope.cancel()
        with trio.CancelScope(shield=True) as shield:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(threads.run, "commit", done.append, 1)
                shield.shield = False
    assert done in ([], [1])  # not begun, or done: never abandoned in between
    gate = threading.Event()
    token = trio.lowlevel.current_trio_token()
    running = trio.Event()

    def work():
        token.run_sync_soon(running.set)
        gate.wait()
        done.append(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, "commit", work)
        await running.wait()
        nursery.cancel_scope.cancel()
        gate.set()
    assert done[-1] == 2
