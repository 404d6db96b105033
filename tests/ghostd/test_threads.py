"""The daemon's worker threads: how many, what comes back, and who may leave."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest
import trio

from ghostd.threads import Inline, Threads, WorkerThreads

WAIT_S = 20  # for what happens at once, unless something is broken


@pytest.fixture
async def threads() -> AsyncIterator[WorkerThreads]:
    threads = WorkerThreads()
    yield threads
    threads.close()


class Gate:
    """A function that blocks its thread until it is opened, and counts who is inside."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ran: list[object] = []
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, value: object = None) -> object:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.opened.wait(WAIT_S)
        with self._lock:
            self.inside -= 1
            self.ran.append(value)
        return value

    async def reached(self, count: int) -> None:
        """Wait until so many calls have begun."""
        for _ in range(count):
            assert await trio.to_thread.run_sync(self.entered.acquire, True, WAIT_S)


@pytest.mark.parametrize("make", [WorkerThreads, Inline])
async def test_results_and_errors_come_back(make: type[Threads]) -> None:
    threads = make()
    assert await threads.run("encode", divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        await threads.run("commit", divmod, 1, 0)
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await threads.run("read", pow, number, 2))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    assert sorted(results) == [number**2 for number in range(200)]
    if isinstance(threads, WorkerThreads):
        threads.close()


@pytest.mark.parametrize(("kind", "limit"), WorkerThreads.LIMITS.items())
async def test_each_kind_has_its_own_number_of_threads(
    threads: WorkerThreads, kind: str, limit: int
) -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(threads.run, kind, gate, number)
        await gate.reached(limit)
        for other in WorkerThreads.LIMITS:
            if other != kind:
                assert await threads.run(other, abs, -1) == 1, "other kinds do not wait"
        assert gate.inside == limit
        gate.opened.set()
    assert gate.most == limit
    assert sorted(gate.ran) == list(range(12))  # type: ignore[type-var]


async def test_a_read_can_be_given_up_and_one_that_has_not_begun_is_not_done(
    threads: WorkerThreads,
) -> None:
    gate = Gate()
    limit = WorkerThreads.LIMITS["read"]
    async with trio.open_nursery() as nursery:
        for number in range(limit + 3):
            nursery.start_soon(threads.run, "read", gate, number)
        await gate.reached(limit)
        nursery.cancel_scope.cancel()
    gate.opened.set()
    assert await threads.run("read", abs, -5) == 5, "the threads are free again"
    async with trio.open_nursery() as nursery:  # all of them: the last stuck one has ended
        everyone = threading.Barrier(limit)
        for _ in range(limit):
            nursery.start_soon(threads.run, "read", everyone.wait, WAIT_S)
    assert len(gate.ran) == limit


@pytest.mark.parametrize("kind", ["encode", "commit", "maintenance"])
async def test_everything_else_is_waited_for(threads: WorkerThreads, kind: str) -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, kind, gate, "done")
        await gate.reached(1)
        nursery.cancel_scope.cancel()
        gate.opened.set()
    assert gate.ran == ["done"]
