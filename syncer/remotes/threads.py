"""Threads of one remote, for libraries that block: limited in number, woken when cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads:
    """Runs blocking calls of one remote.

    A cancelled call is left behind at once and told to end. Its place is free again only when it
    has ended, so that a dead server cannot gather threads.
    """

    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._limiter = trio.CapacityLimiter(threads_max)

    @property
    def running(self) -> int:
        """Calls whose thread has not ended, those left behind too."""
        return self._limiter.borrowed_tokens

    async def run(self, function: Callable[[*Ts], T], *args: *Ts, abort: Callable[[], None]) -> T:
        """The result of `function(*args)` in a thread.

        `abort` is called in the trio thread when the call is cancelled; it must not block, and
        must make `function` end soon. What `function` holds it must give up by itself.
        """
        try:
            return await trio.to_thread.run_sync(
                function,
                *args,
                thread_name=self._name,
                abandon_on_cancel=True,
                limiter=self._limiter,
            )
        except trio.Cancelled:
            abort()
            raise

    async def drain(self, limit_s: float) -> bool:
        """Wait until no call runs; False if some did not end in time."""
        places = [object() for _ in range(int(self._limiter.total_tokens))]
        taken = 0
        try:
            with trio.move_on_after(limit_s, shield=True):
                for place in places:
                    await self._limiter.acquire_on_behalf_of(place)
                    taken += 1
        finally:
            for place in places[:taken]:
                self._limiter.release_on_behalf_of(place)
        return taken == len(places)
