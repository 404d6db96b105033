"""Where blocking work runs: worker threads behind named limiters, or inline in a simulation."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final, Protocol, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads(Protocol):
    """Runs blocking functions by kind of work: "encode", "commit", "read" or "maintenance"."""

    async def run(self, kind: str, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """The result of function(*args); its exceptions pass through."""


class WorkerThreads:
    """trio's worker threads, so many at a time for each kind of work.

    Two encoders and four readers: with two cores more do not help (measured), and readers mostly
    wait for the disk.
    """

    LIMITS: Final = MappingProxyType({"encode": 2, "commit": 1, "read": 4, "maintenance": 1})

    def __init__(self) -> None:
        self._limiters = {kind: trio.CapacityLimiter(n) for kind, n in self.LIMITS.items()}

    async def run(self, kind: str, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """See Threads."""
        # A read may be given up at its deadline: its thread ends when the disk answers, and holds
        # its place until then.
        return await trio.to_thread.run_sync(
            function, *args, limiter=self._limiters[kind], abandon_on_cancel=kind == "read"
        )


class Inline:
    """Runs everything at once in the calling task: deterministic, for simulations."""

    async def run(
        self,
        kind: str,  # noqa: ARG002  one kind is like the other here
        function: Callable[[*Ts], T],
        *args: *Ts,
    ) -> T:
        """See Threads."""
        await trio.lowlevel.checkpoint()
        return function(*args)
