"""Flushes on demand: what the kernel still holds comes in, then everything is committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from blockstore.errors import OrbitError


class _Round:
    """One flush, and those who wait for it."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: OrbitError | None = None


class Flusher:
    """One flush runs at a time; whoever comes meanwhile shares the next one.

    A flush belongs to the daemon, not to those who asked: it goes on when they have left.
    """

    def __init__(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """Each flush takes these steps, in order; they raise OrbitError."""
        self._steps = steps
        self._next = _Round()
        self._wanted = trio.Event()

    async def run(self) -> None:
        """Flush when asked, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            now, self._next = self._next, _Round()
            try:
                for step in self._steps:
                    await step()
            except OrbitError as error:
                now.error = error
            now.done.set()

    async def flush(self) -> None:
        """Wait until everything done so far is durable. Raises StorageFull, StorageFailed."""
        # Never the round that runs: it may have passed what the caller has just done.
        shared = self._next
        self._wanted.set()
        await shared.done.wait()
        if shared.error is not None:
            raise shared.error
