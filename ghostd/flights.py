"""Blocking calls of the daemon, made from the API's loop: in threads, shared, and never in the way.

A call that runs for minutes (a check, a collection) is one flight: whoever asks for the same thing
while it is in the air waits for the same result, and a client that goes away leaves the flight to
the others and to the next one who asks. No client holds a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import trio

from blockstore.errors import OrbitError

T = TypeVar("T")


class Busy(OrbitError):
    """Another call of this kind, with other arguments, is running."""


class Flight(Generic[T]):
    """One call in a thread of its own, and those who wait for it."""

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self._landed = trio.Event()
        self._values: list[T] = []  # one value, or none when the work raised
        self._error: Exception | None = None

    async def fly(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> None:
        """Do the work in a thread; its result, or what it raised, goes to everyone who waits."""
        try:
            # Abandoned when the API stops: the work ends with the daemon, not with the API.
            value = await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
            self._values.append(value)
        except Exception as error:  # noqa: BLE001  raised again by those who wait
            self._error = error
        self._landed.set()

    async def wait(self) -> T:
        """Return the work's result, or raise what it raised."""
        await self._landed.wait()
        if self._error is not None:
            raise self._error
        return self._values[0]


class SingleFlight(Generic[T]):
    """Lets one call of a kind run at a time; equal calls share it, different ones are refused."""

    def __init__(self, name: str, nursery: trio.Nursery) -> None:
        self._name = name
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(1)
        self._flight: Flight[T] | None = None

    async def call(self, key: Hashable, work: Callable[[], T], timeout_s: float) -> T:
        """Run `work` in a thread, or join the run of the same key.

        Raises Busy when a run of another key is in the air, TimeoutError when `timeout_s` passes
        first (the run goes on), and whatever the work raises.
        """
        # No await between the look and the start: two equal calls must not start two runs.
        flight = self._flight
        if flight is None:
            flight = self._flight = Flight(key)
            self._nursery.start_soon(self._fly, flight, work)
        elif flight.key != key:
            raise Busy(f"another {self._name} is running; wait for it, then ask again")
        with trio.move_on_after(timeout_s):
            return await flight.wait()
        raise TimeoutError(
            f"the {self._name} has not ended within {timeout_s:g} s; it goes on, and the same"
            " call waits for its result"
        )

    async def _fly(self, flight: Flight[T], work: Callable[[], T]) -> None:
        await flight.fly(work, self._limiter)
        self._flight = None
