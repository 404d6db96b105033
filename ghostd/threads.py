"""Where blocking work runs: worker threads by kind of work, or inline in a simulation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, cast

import outcome
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads(Protocol):
    """Runs blocking functions by kind of work; the kinds are those of WorkerThreads.LIMITS."""

    async def run(self, kind: str, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """The result of function(*args); its exceptions pass through."""


class _Job:
    """One call on its way to a thread and back."""

    __slots__ = ("abandoned", "args", "function", "task")

    def __init__(
        self, function: Callable[..., object], args: tuple[object, ...], task: trio.lowlevel.Task
    ) -> None:
        self.function = function
        self.args = args
        self.task = task
        self.abandoned = False

    def deliver(self, result: outcome.Outcome[object]) -> None:
        """In the loop: wake the caller, unless it has given up."""
        if not self.abandoned:
            trio.lowlevel.reschedule(self.task, result)


class _Pool:
    """Threads of one kind; they start when they are first needed and live as long as the pool."""

    def __init__(self, name: str, threads_max: int, landed: Callable[[bool], None]) -> None:
        self._name = name
        self._landed = landed
        self._threads_max = threads_max
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending = 0  # jobs handed in and not delivered; changed by the loop and by threads
        self._lock = threading.Lock()

    def submit(self, job: _Job, token: trio.lowlevel.TrioToken) -> None:
        with self._lock:
            self._pending += 1
            short = self._pending > len(self._threads) < self._threads_max
        if short:
            thread = threading.Thread(
                target=self._work,
                args=(token,),
                name=f"{self._name}-{len(self._threads)}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        while (job := self._jobs.get()) is not None:
            # Given up before its turn: a disk that comes back has better things to do.
            result = None if job.abandoned else outcome.capture(job.function, *job.args)
            with self._lock:
                self._pending -= 1
            if result is None:
                continue
            self._landed(True)
            try:
                token.run_sync_soon(self._deliver, job, result)
            except trio.RunFinishedError:
                return

    def _deliver(self, job: _Job, result: outcome.Outcome[object]) -> None:
        self._landed(False)
        job.deliver(result)

    def close(self) -> None:
        """Let idle threads end; one that is stuck in the disk does not keep the process alive."""
        for _ in self._threads:
            self._jobs.put(None)


class WorkerThreads:
    """Threads of our own, so many for each kind of work; for one run of trio.

    `trio.to_thread` takes 65 µs for a call, these take 22 (measured), and a random read waits for
    one. Two encoders and four readers: with two cores more do not help, and readers mostly wait for
    the disk. Readers of streams mostly hash and take the GIL from each other: two bring a tenth
    more than four.
    """

    LIMITS: Final = MappingProxyType(
        {"encode": 2, "commit": 1, "read": 4, "stream": 2, "fetch": 2, "keep": 2, "maintenance": 1}
    )

    def __init__(self) -> None:
        self._pools = {kind: _Pool(kind, limit, self._land) for kind, limit in self.LIMITS.items()}
        self.landed = False  # a result waits for the loop, which has not looked yet

    async def run(self, kind: str, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """See Threads.

        A read may be given up, at its deadline: its thread ends when the disk answers, and holds
        its place until then. Everything else is waited for, cancelled or not.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(function, args, trio.lowlevel.current_task())

        def abort(_: Any) -> trio.lowlevel.Abort:
            if kind not in {"read", "stream"}:
                return trio.lowlevel.Abort.FAILED
            job.abandoned = True
            return trio.lowlevel.Abort.SUCCEEDED

        self._pools[kind].submit(job, trio.lowlevel.current_trio_token())
        return cast("T", await trio.lowlevel.wait_task_rescheduled(abort))

    def _land(self, landed: bool) -> None:
        self.landed = landed

    def close(self) -> None:
        """End the idle threads."""
        for pool in self._pools.values():
            pool.close()


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
