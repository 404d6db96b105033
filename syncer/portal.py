"""Lets threads call into trio: their calls are tasks of one nursery, which ends them all.

A thread that waits here is woken when the nursery is cancelled, whatever the remote does. So code
that blocks and knows nothing of trio (the block store) can use remotes, and a job that is cancelled
ends at once.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from syncer.remotes.errors import Unreachable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_OVER = "given up: the job was cancelled or is over"


class Portal:
    """The way from threads into a nursery. Made by `open_portal`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._trio_thread = threading.get_ident()

    def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run in the nursery and wait for the result; never from the trio thread.

        Raises what `function` raises, and Unreachable when everything was cancelled.
        """
        assert threading.get_ident() != self._trio_thread, "who waits here stops the loop"
        return self.begin(function, *args).result()

    def begin(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> Future[T]:
        """Likewise, without waiting; from any thread."""
        future: Future[T] = Future()
        try:
            self._token.run_sync_soon(self._start, partial(function, *args), future)
        except trio.RunFinishedError:
            future.set_exception(Unreachable(_OVER))
        return future

    def _start(self, function: Callable[[], Awaitable[T]], future: Future[T]) -> None:
        try:
            self._nursery.start_soon(self._run, function, future)
        except RuntimeError:  # the nursery is closed
            future.set_exception(Unreachable(_OVER))

    @staticmethod
    async def _run(function: Callable[[], Awaitable[T]], future: Future[T]) -> None:
        try:
            result = await function()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the caller's)
            future.set_exception(error)
        except BaseException:
            future.set_exception(Unreachable(_OVER))
            raise
        else:
            future.set_result(result)


@asynccontextmanager
async def open_portal() -> AsyncIterator[Portal]:
    """A portal for the body; calls that are under way at its end are cancelled."""
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield Portal(nursery)
        except Exception as error:  # noqa: BLE001 (raised below)
            failed = error  # let through as it is, not in a group
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
