"""Calls from other threads into the filesystem's loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import trio

from blockstore.errors import OrbitError

T = TypeVar("T")


class DaemonGone(OrbitError):
    """The filesystem's loop has ended."""


class InLoop:
    """The way into the loop that it was made in."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def soon(self, call: Callable[[], object]) -> None:
        """Have the loop make a call; nothing happens where it has ended."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)

    def wait(self, call: Callable[[], Awaitable[T]], timeout_s: float = float("inf")) -> T:
        """Make a call in the loop and wait for its result.

        Raises TimeoutError, DaemonGone, and what the call raises. A timeout cancels the call.
        """

        async def bounded() -> T:
            with trio.fail_after(timeout_s):
                return await call()

        try:
            return trio.from_thread.run(bounded, trio_token=self._token)
        except trio.TooSlowError:
            raise TimeoutError(
                f"not done within {timeout_s:g} s; it goes on in the daemon"
            ) from None
        except (trio.RunFinishedError, trio.Cancelled):
            # Cancelled: the loop's end overtook the call, which waited for one of its tasks.
            raise DaemonGone("the daemon is stopping") from None
