"""A circuit breaker: a host that keeps failing is left alone for a while.

The state of a circuit steps through a table; the functions that step it are pure. Every admitted
call holds a ticket. What it reports is heeded only while the circuit has not moved on since, so
that answers from before a failure neither close the circuit nor end somebody else's probe.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import trio

from syncer.remotes.errors import TRANSIENT, Busy, RemoteError, Unreachable
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import Remote
from syncer.remotes.wrapper import Call, Wrapper

T = TypeVar("T")


class NotTried(Unreachable):
    """The host has failed too often lately, so nothing was sent."""

    def __init__(self, message: str, retry_in_s: float | None = None) -> None:
        """`retry_in_s`: when the next call may go; None: while a probe is under way."""
        super().__init__(message)
        self.retry_in_s = retry_in_s


class State(enum.Enum):
    """Of a circuit."""

    CLOSED = "closed"  # calls go through
    OPEN = "open"  # none does
    HALF_OPEN = "half-open"  # one is under way, to see


STEPS: dict[State, frozenset[State]] = {
    State.CLOSED: frozenset({State.OPEN}),
    State.OPEN: frozenset({State.HALF_OPEN}),
    State.HALF_OPEN: frozenset({State.OPEN, State.CLOSED}),
}


@dataclass(frozen=True, slots=True)
class Circuit:
    """One host's; times are seconds of the loop's clock."""

    state: State = State.CLOSED
    number: int = 0  # of the steps taken
    failures: int = 0  # in a row, while closed
    since: float = 0.0  # when the first of them was asked; kept while not closed again
    until: float = 0.0  # open: when the next probe may go
    pause_s: float = 0.0  # the last one, if no probe has succeeded since


@dataclass(frozen=True, slots=True)
class Ticket:
    """For one admitted call."""

    number: int
    asked_at: float


def _step(circuit: Circuit, state: State, **changes: Any) -> Circuit:
    assert state in STEPS[circuit.state]
    return replace(circuit, state=state, number=circuit.number + 1, **changes)


def admits(circuit: Circuit, now: float) -> bool:
    """Whether a call may go now."""
    if circuit.state is State.OPEN:
        return now >= circuit.until
    return circuit.state is State.CLOSED


def admit(circuit: Circuit, now: float) -> tuple[Circuit, Ticket]:
    """Let a call go that `admits` allows; in an open circuit it is the probe."""
    assert admits(circuit, now)
    if circuit.state is State.OPEN:
        circuit = _step(circuit, State.HALF_OPEN)
    return circuit, Ticket(circuit.number, now)


def succeeded(circuit: Circuit, ticket: Ticket) -> Circuit:
    """Step on: the host has answered."""
    if ticket.number != circuit.number:
        return circuit
    if circuit.state is State.HALF_OPEN:
        return _step(circuit, State.CLOSED, failures=0, pause_s=0.0)
    return replace(circuit, failures=0) if circuit.failures else circuit


def failed(
    circuit: Circuit, ticket: Ticket, now: float, policy: RemotePolicy, wait_s: float = 0.0
) -> Circuit:
    """Step on: the host has not answered, or has asked to be left alone for `wait_s`."""
    if ticket.number != circuit.number:
        return circuit
    if circuit.state is State.CLOSED:
        since = min(circuit.since, ticket.asked_at) if circuit.failures else ticket.asked_at
        circuit = replace(circuit, failures=circuit.failures + 1, since=since)
        lasting = now - since >= policy.breaker_after_s
        if circuit.failures < policy.breaker_failures or not lasting:
            return circuit
        pause_s = policy.breaker_pause_s
    else:
        pause_s = min(2 * circuit.pause_s, policy.breaker_pause_max_s)
    until = now + max(pause_s, min(wait_s, policy.breaker_pause_max_s))
    return _step(circuit, State.OPEN, until=until, pause_s=pause_s)


def abandoned(circuit: Circuit, ticket: Ticket, now: float) -> Circuit:
    """Step on: the call was cancelled, so that nothing is known; the next may be the probe."""
    if ticket.number == circuit.number and circuit.state is State.HALF_OPEN:
        return _step(circuit, State.OPEN, until=now)
    return circuit


class Breaker:
    """One host's circuit, for all its remotes."""

    def __init__(self) -> None:
        self.circuit = Circuit()
        self.last_failure = ""

    def refuse(self, url: str) -> None:
        """Raise NotTried unless a call may go now."""
        now = trio.current_time()
        circuit = self.circuit
        if admits(circuit, now):
            return
        retry_in_s = None if circuit.state is State.HALF_OPEN else circuit.until - now
        if retry_in_s is None:
            then = "a probe is under way"
        else:
            then = f"the next try is in {retry_in_s:.1f} s"
        raise NotTried(
            f"{url}: failing since {now - circuit.since:.0f} s ago, so not asked; {then}; "
            f"the last failure: {self.last_failure}",
            retry_in_s,
        )

    def admit(self, url: str) -> Ticket:
        """Let a call go. Raises NotTried."""
        self.refuse(url)
        self.circuit, ticket = admit(self.circuit, trio.current_time())
        return ticket

    def succeed(self, ticket: Ticket) -> None:
        """Take note that the host has answered."""
        self.circuit = succeeded(self.circuit, ticket)

    def heed(self, ticket: Ticket, error: BaseException | None, policy: RemotePolicy) -> None:
        """Take note of what a call has raised; None: something that is not the host's."""
        now = trio.current_time()
        if isinstance(error, TRANSIENT):
            wait_s = error.retry_after_s if isinstance(error, Busy) else None
            self.last_failure = str(error)
            self.circuit = failed(self.circuit, ticket, now, policy, wait_s or 0.0)
        elif isinstance(error, RemoteError):
            self.circuit = succeeded(self.circuit, ticket)
        else:
            self.circuit = abandoned(self.circuit, ticket, now)


class Gate(Wrapper):
    """Stands before the queues: who would be refused behind them need not stand in line."""

    def __init__(self, inner: Remote, breaker: Breaker) -> None:
        super().__init__(inner)
        self._breaker = breaker

    async def _call(self, call: Call[T]) -> T:
        self._breaker.refuse(self.url)
        return await call.go()


class _Aside:
    """Notes errors of the caller's own code, which say nothing about the host."""

    def __init__(self) -> None:
        self.failed = False

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        # Cancelling is no failure: a driver may cancel one read of a source when a part fails.
        self.failed |= kind is not None and issubclass(kind, Exception)


class CircuitBreaker(Wrapper):
    """Asks the breaker before every call, and tells it what came of it."""

    def __init__(self, inner: Remote, policy: RemotePolicy, breaker: Breaker) -> None:
        super().__init__(inner)
        self._policy = policy
        self._breaker = breaker

    async def _call(self, call: Call[T]) -> T:
        ticket = self._breaker.admit(self.url)
        call.aside = aside = _Aside()
        try:
            result = await call.go()
        except BaseException as error:
            self._breaker.heed(ticket, None if aside.failed else error, self._policy)
            raise
        self._breaker.succeed(ticket)
        return result
