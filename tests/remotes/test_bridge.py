"""The bridge: results and errors come back, nothing is left running."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator

import pytest
import trio

from syncer.remotes.bridge import Bridge


class Work:
    """Counts the asyncio side's tasks from the inside."""

    def __init__(self) -> None:
        self.begun = 0
        self.unwound = 0
        self.done = 0

    async def wait(self, turns: int | None, result: int) -> int:
        """Goes on for so many turns of the loop, or for ever."""
        self.begun += 1
        try:
            if turns is None:
                await asyncio.Event().wait()
            for _ in range(turns or 0):
                await asyncio.sleep(0)
            self.done += 1
            return result
        finally:
            try:
                await asyncio.sleep(0)  # unwinding may take its time
            finally:
                self.unwound += 1


async def others() -> int:
    """Tasks of the asyncio side but for this one."""
    return len(asyncio.all_tasks()) - 1


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    bridge.start()
    yield bridge
    bridge.stop()
    assert not bridge._thread.is_alive()


async def test_results_come_back(bridge: Bridge) -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    assert await bridge.run(add, 2, 3) == 5
    assert bridge.running == 0


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("x"), KeyError(1), Odd(), StopAsyncIteration()])
async def test_exceptions_pass_through(bridge: Bridge, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await bridge.run(fail)
    assert caught.value is error
    assert bridge.running == 0


async def test_an_exception_before_the_first_await_passes_through(bridge: Bridge) -> None:
    def no_coroutine() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await bridge.run(no_coroutine)  # type: ignore[arg-type]


async def test_a_task_that_cancels_itself_is_an_error_not_a_hang(bridge: Bridge) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError):
        await bridge.run(give_up)


async def test_thousands_of_calls_half_of_them_cancelled_leave_no_task(bridge: Bridge) -> None:
    random_ = random.Random(5)
    work = Work()
    calls = 4000
    came_back = cancelled = 0
    limiter = trio.CapacityLimiter(200)

    async def call(number: int) -> None:
        nonlocal came_back, cancelled
        endless = number % 2 == 0
        with trio.CancelScope() as scope:
            async with limiter, trio.open_nursery() as nursery:
                if endless:  # at any moment: before it has begun, or deep in it

                    async def cancel() -> None:
                        for _ in range(random_.randrange(30)):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel)
                turns = None if endless else random_.randrange(5)
                assert await bridge.run(work.wait, turns, number) == number
                came_back += 1
        cancelled += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for number in range(calls):
            nursery.start_soon(call, number)
    assert (came_back, cancelled) == (calls // 2, calls // 2)
    assert work.done == calls // 2
    assert work.begun == work.unwound  # every cancelled call has been waited for
    assert bridge.running == 0
    assert await bridge.run(others) == 0


async def test_a_cancelled_call_waits_until_the_task_has_unwound(bridge: Bridge) -> None:
    order: list[str] = []
    begun = threading.Event()

    async def slow_to_end() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(100):
                await asyncio.sleep(0)
            order.append("unwound")

    async with trio.open_nursery() as nursery:

        async def call() -> None:
            try:
                await bridge.run(slow_to_end)
            finally:
                order.append("back")

        nursery.start_soon(call)
        assert await trio.to_thread.run_sync(begun.wait, 20)
        nursery.cancel_scope.cancel()
    assert order == ["unwound", "back"]


async def test_a_result_that_wins_against_the_cancellation_is_given(bridge: Bridge) -> None:
    begun = threading.Event()

    async def stubborn() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 7
        return 0

    results: list[int] = []
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            results.append(await bridge.run(stubborn))

        nursery.start_soon(call)
        assert await trio.to_thread.run_sync(begun.wait, 20)
        nursery.cancel_scope.cancel()
    assert results == [7]


async def test_an_error_while_unwinding_comes_back(bridge: Bridge) -> None:
    begun = threading.Event()

    async def breaks() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while unwinding")

    with pytest.RaisesGroup(ValueError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, breaks)
            assert await trio.to_thread.run_sync(begun.wait, 20)
            nursery.cancel_scope.cancel()


async def test_stop_ends_what_is_running_and_whoever_waits_for_it() -> None:
    bridge = Bridge()
    bridge.start()
    work = Work()
    failed = 0

    async def call() -> None:
        nonlocal failed
        with pytest.raises(RuntimeError, match="stopped"):
            await bridge.run(work.wait, None, 0)
        failed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(call)
        while await bridge.run(others) < 100:
            await trio.lowlevel.checkpoint()
        await trio.to_thread.run_sync(bridge.stop)
    assert failed == 100
    assert work.begun == work.unwound == 100
    assert bridge.running == 0
    assert not bridge._thread.is_alive()


async def test_calls_that_meet_the_stop_do_not_hang() -> None:
    """Whatever a call and the stop do to each other: a result or an error, soon."""
    for _ in range(50):
        bridge = Bridge()
        bridge.start()
        work = Work()

        async def call(bridge: Bridge = bridge, work: Work = work) -> None:
            while True:
                try:
                    await bridge.run(work.wait, 1, 0)
                except RuntimeError:
                    return

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(call)
                await bridge.run(work.wait, 3, 0)
                await trio.to_thread.run_sync(bridge.stop)
        assert bridge.running == 0
        assert work.begun == work.unwound


async def test_a_call_that_is_cancelled_when_its_bridge_has_just_stopped() -> None:
    bridge = Bridge()
    bridge.start()
    work = Work()

    async def call() -> None:
        with pytest.raises(RuntimeError, match="stopped"):
            await bridge.run(work.wait, None, 0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        while await bridge.run(others) < 1:
            await trio.lowlevel.checkpoint()
        bridge.stop()  # in the trio thread: its news has not been heard yet
        nursery.cancel_scope.cancel()
    assert bridge.running == 0


async def test_a_stopped_bridge_says_so() -> None:
    bridge = Bridge()
    bridge.start()
    bridge.stop()
    with pytest.raises(RuntimeError):
        await bridge.run(others)
    assert bridge.running == 0


def test_a_bridge_that_was_never_started_stops() -> None:
    bridge = Bridge()
    bridge.stop()
    assert bridge._loop.is_closed()
