"""One asyncio loop in one thread, for the libraries that know no other loop.

A call from trio runs as one asyncio task. Cancelling the call cancels the task and waits until it
has unwound, so that nothing goes on behind a caller's back. Never fork after `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple, cast

import outcome
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STOPPED = "the asyncio side has been stopped"
_STOP_S = 5.0  # for what is still running when the bridge stops


class Bridge:
    """The asyncio side; `run` calls into it."""

    def __init__(self, name: str = "bridge") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._started = False
        self._lock = threading.Lock()
        self._stopped = False  # under the lock: nothing begins any more
        self.running = 0  # calls in flight

    def start(self) -> None:
        """Start the thread; once."""
        self._started = True
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            with self._lock:
                self._stopped = True
            # What was handed over before that begins in the loop's next turn, and is seen below.
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._unwind())
            self._loop.close()

    async def _unwind(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_S)
        await self._loop.shutdown_asyncgens()

    def stop(self) -> None:
        """Cancel what is left and end the thread; blocks for some seconds at most."""
        if not self._started:
            self._stopped = True
            self._loop.close()
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2 * _STOP_S)

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """The result of `await function(*args)` in the asyncio loop; its exceptions pass through.

        For the trio loop only. Raises RuntimeError when the bridge has been stopped.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        token = trio.lowlevel.current_trio_token()
        caller = trio.lowlevel.current_task()
        tasks: list[asyncio.Task[T]] = []
        cancelled: list[Callable[[], Any]] = []  # what trio raises once the task has unwound

        def deliver(result: outcome.Outcome[T]) -> None:
            self.running -= 1
            trio.lowlevel.reschedule(caller, result)

        def done(task: asyncio.Task[T]) -> None:
            result: outcome.Outcome[T]
            if task.cancelled():
                if cancelled:
                    result = outcome.capture(cancelled[0])
                else:
                    result = outcome.Error(RuntimeError(_STOPPED))
            elif (error := task.exception()) is not None:
                result = outcome.Error(error)
            else:
                result = outcome.Value(task.result())
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left to hear it
                token.run_sync_soon(deliver, result)

        async def main() -> T:
            return await function(*args)

        def begin() -> None:
            task = self._loop.create_task(main())
            tasks.append(task)
            task.add_done_callback(done)

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            cancelled.append(raise_cancel)
            with self._lock:
                if not self._stopped:  # else the task is being cancelled as all are
                    # Behind `begin` in the queue: the task is there.
                    self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # noqa: PLW0108
            return trio.lowlevel.Abort.FAILED

        with self._lock:
            if self._stopped:
                raise RuntimeError(_STOPPED)
            self._loop.call_soon_threadsafe(begin)
        self.running += 1
        return cast("T", await trio.lowlevel.wait_task_rescheduled(abort))
