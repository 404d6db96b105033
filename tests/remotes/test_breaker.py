"""The breaker: pure steps against their promises, then around a remote."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from syncer.remotes.breaker import (
    STEPS,
    Circuit,
    NotTried,
    State,
    Ticket,
    abandoned,
    admit,
    admits,
    failed,
    succeeded,
)
from syncer.remotes.errors import Changed, Denied, Garbled, Missing, RemoteError, Unreachable
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.wrapper import Verb
from syncer.remotes.wrappers import Hosts, Wrapped, wrapped
from tests.remotes.unreliable import Fate, Unreliable

POLICY = RemotePolicy(breaker_failures=3, breaker_after_s=10.0)
HASTY = RemotePolicy(breaker_failures=2, breaker_after_s=2.0)  # so that random events get there
ONE_TRY = RemotePolicy(breaker_failures=3, breaker_after_s=10.0, attempts_max=1)

events = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.sampled_from([0.5, 3.0, 20.0])),
        st.tuples(st.just("ask"), st.none()),
        st.tuples(st.just("ask"), st.none()),
        st.tuples(st.just("succeed"), st.integers(0, 5)),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("abandon"), st.integers(0, 5)),
    ),
    min_size=12,
    max_size=60,
)


@settings(max_examples=500)
@given(events)
def test_steps_keep_their_promises(history: list[tuple[str, Any]]) -> None:  # noqa: PLR0912
    circuit, now = Circuit(), 0.0
    tickets: list[Ticket] = []
    streak: list[float] = []  # when the failures in a row were asked, while closed
    for event, extra in history:
        before, heeded = circuit, False
        if event == "pass":
            now += extra
        elif event == "ask":
            allowed = admits(circuit, now)
            if circuit.state is State.OPEN:
                assert allowed == (now >= circuit.until)
            else:
                assert allowed == (circuit.state is State.CLOSED)
            if allowed:
                circuit, ticket = admit(circuit, now)
                tickets.append(ticket)
        elif tickets:
            ticket = tickets.pop(extra % len(tickets))
            current = ticket.number == circuit.number
            if event == "succeed":
                circuit = succeeded(circuit, ticket)
                streak = [] if current else streak
            elif event == "fail":
                circuit = failed(circuit, ticket, now, HASTY)
                streak = [*streak, ticket.asked_at] if current else streak
                heeded = current
            else:
                circuit = abandoned(circuit, ticket, now)
            assert current or circuit == before  # late news is no news
        if circuit.state is not before.state:
            assert circuit.state in STEPS[before.state]
            if before.state is State.CLOSED:
                assert len(streak) >= HASTY.breaker_failures
                assert now - min(streak) >= HASTY.breaker_after_s
            if circuit.state is not State.CLOSED:
                streak = []
        elif circuit.state is State.CLOSED and heeded:
            lasting = now - min(streak) >= HASTY.breaker_after_s
            assert len(streak) < HASTY.breaker_failures or not lasting
        if circuit.state is State.OPEN:
            assert circuit.until <= now + HASTY.breaker_pause_max_s
        probes = [ticket for ticket in tickets if ticket.number == circuit.number]
        if circuit.state is State.HALF_OPEN:
            assert len(probes) == 1  # and somebody will tell what came of it
    # Whatever has happened, a host that is well again is asked again.
    for ticket in tickets:
        circuit = succeeded(circuit, ticket)
    now += HASTY.breaker_pause_max_s
    assert admits(circuit, now)
    circuit, ticket = admit(circuit, now)
    assert succeeded(circuit, ticket).state is State.CLOSED


@given(wait_s=st.floats(0, 1000), probes=st.integers(1, 8))
def test_pauses_double_up_to_their_limit_and_honour_what_was_asked_for(
    wait_s: float, probes: int
) -> None:
    circuit, now = Circuit(failures=2, since=-100.0), 0.0
    for number in range(probes):
        circuit, ticket = admit(circuit, now)
        circuit = failed(circuit, ticket, now, POLICY, wait_s)
        assert circuit.state is State.OPEN
        pause_s = min(POLICY.breaker_pause_s * 2**number, POLICY.breaker_pause_max_s)
        assert circuit.until - now == pytest.approx(
            max(pause_s, min(wait_s, POLICY.breaker_pause_max_s))
        )
        now = circuit.until


# Around a remote.


@dataclass
class Setting:
    unreliable: Unreliable
    remote: Wrapped
    hosts: Hosts

    @property
    def state(self) -> State:
        (circuit,) = self.hosts.circuits.values()
        return circuit.state

    async def fail_until_open(self) -> None:
        self.unreliable.down = Unreachable("connection refused")
        while self.state is State.CLOSED:
            with pytest.raises(Unreachable):
                await self.remote.stat(b"f")
            await trio.sleep(3)


@pytest.fixture
async def setting() -> Setting:
    server = MemoryServer()
    await MemoryRemote(server).write(b"f", Held(b"content"))
    unreliable = Unreliable(MemoryRemote(server))
    hosts = Hosts()
    return Setting(unreliable, wrapped(unreliable, ONE_TRY, hosts), hosts)


async def test_an_open_circuit_answers_at_once_and_sends_nothing(
    setting: Setting, autojump_clock: MockClock
) -> None:
    await setting.fail_until_open()
    sent = len(setting.unreliable.asked)
    assert sent == 5  # at 0, 3, 6, 9, 12 s: five failures, over ten seconds
    (circuit,) = setting.hosts.circuits.values()
    setting.remote.host.breaker.circuit = Circuit(
        State.OPEN, since=trio.current_time() - 42, until=trio.current_time() + 7
    )
    with pytest.raises(NotTried, match=r"since 42 s ago.*in 7\.0 s.*connection refused"):
        await setting.remote.stat(b"f")
    setting.remote.host.breaker.circuit = circuit
    assert len(setting.unreliable.asked) == sent


async def test_one_probe_goes_then_all_do(setting: Setting, autojump_clock: MockClock) -> None:
    await setting.fail_until_open()
    sent = len(setting.unreliable.asked)
    setting.unreliable.down = None
    setting.unreliable.script.append(Fate.SWALLOWED)  # the first probe
    await trio.sleep(POLICY.breaker_pause_max_s)
    refused = 0

    async def ask() -> None:
        nonlocal refused
        try:
            await setting.remote.stat(b"f")
        except NotTried:
            refused += 1
        except Unreachable:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert refused == 9
    assert len(setting.unreliable.asked) == sent + 1
    assert setting.state is State.OPEN
    await trio.sleep(POLICY.breaker_pause_max_s)
    await setting.remote.stat(b"f")
    assert setting.state is State.CLOSED


async def test_a_cancelled_probe_makes_room_for_the_next(
    setting: Setting, autojump_clock: MockClock
) -> None:
    await setting.fail_until_open()
    setting.unreliable.down = None
    setting.unreliable.script.append(Fate.SWALLOWED)
    await trio.sleep(POLICY.breaker_pause_max_s)
    with trio.move_on_after(1):
        await setting.remote.stat(b"f")
    await setting.remote.stat(b"f")
    assert setting.state is State.CLOSED


@pytest.mark.parametrize("error", [Missing, Denied, Changed])
async def test_answers_are_no_failures_whatever_they_say(
    setting: Setting, error: type[RemoteError], autojump_clock: MockClock
) -> None:
    setting.unreliable.down = error("x")
    for _ in range(20):
        with pytest.raises(error):
            await setting.remote.stat(b"f")
        await trio.sleep(1)
    assert setting.state is State.CLOSED


@pytest.mark.parametrize("error", [Unreachable, Garbled])
async def test_a_success_in_between_starts_the_count_anew(
    setting: Setting, error: type[RemoteError], autojump_clock: MockClock
) -> None:
    for number in range(30):
        setting.unreliable.down = error("x") if number % 3 else None
        with contextlib.suppress(error):
            await setting.remote.stat(b"f")
        await trio.sleep(6)
    assert setting.state is State.CLOSED


async def test_many_failures_of_one_moment_do_not_open(
    setting: Setting, autojump_clock: MockClock
) -> None:
    """A server that restarts cuts all connections at once."""
    setting.unreliable.script.extend([Fate.LOST] * 10)

    async def ask() -> None:
        with pytest.raises(Unreachable):
            await setting.remote.stat(b"f")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert setting.state is State.CLOSED
    await setting.remote.stat(b"f")


async def test_a_black_hole_opens_when_its_first_calls_time_out(
    setting: Setting, autojump_clock: MockClock
) -> None:
    setting.unreliable.script.extend([Fate.SWALLOWED] * 100)

    async def ask() -> None:
        with pytest.raises(Unreachable):
            await setting.remote.stat(b"f")

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(POLICY.breaker_failures):
            nursery.start_soon(ask)
    assert trio.current_time() - began == pytest.approx(POLICY.attempt_timeout_s)
    assert setting.state is State.OPEN


async def test_the_callers_own_failures_are_not_the_hosts(
    setting: Setting, autojump_clock: MockClock
) -> None:
    class Broken(Held):
        async def read(self, offset: int, length: int) -> bytes:
            await trio.sleep(5)
            raise Unreachable("the source's host is down")

    async def sink(_: object) -> None:
        await trio.sleep(5)
        raise Unreachable("the sink's host is down")

    for _ in range(10):
        with pytest.raises(Unreachable, match="source"):
            await setting.remote.write(b"g", Broken(b"x"))
        with pytest.raises(Unreachable, match="sink"):
            await setting.remote.list(b"", sink)
    assert setting.state is State.CLOSED


async def test_a_host_is_shared_by_its_remotes_and_by_no_others(
    autojump_clock: MockClock,
) -> None:
    hosts = Hosts()

    def remote(url: str) -> tuple[Unreliable, Wrapped]:
        unreliable = Unreliable(MemoryRemote(MemoryServer(), url))
        return unreliable, wrapped(unreliable, ONE_TRY, hosts)

    down, failing = remote("sftp://anna@nas/one")
    sibling, same = remote("sftp://bob@nas:22/two")
    _, other = remote("sftp://nas:2222/")
    _, another = remote("smb://nas/one")
    assert set(hosts.circuits) == {"sftp://nas:22", "sftp://nas:2222", "smb://nas:445"}
    down.down = Unreachable("x")
    for _ in range(5):
        await trio.sleep(3)
        with pytest.raises(Unreachable):
            await failing.stat(b"")
    with pytest.raises(NotTried):
        await same.stat(b"")
    assert sibling.asked == []
    await other.stat(b"")
    await another.stat(b"")


async def test_whoever_has_no_host_is_alone(autojump_clock: MockClock) -> None:
    hosts = Hosts()
    for url in ("file:///one", "file:///two", "memory:one"):
        wrapped(MemoryRemote(MemoryServer(), url), POLICY, hosts)
    assert len(hosts.circuits) == 3


async def test_nobody_stands_in_line_to_be_refused(autojump_clock: MockClock) -> None:
    unreliable = Unreliable(MemoryRemote(MemoryServer()), [Fate.SWALLOWED])
    hosts = Hosts()
    remote = wrapped(unreliable, RemotePolicy(connections_max=1), hosts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.stat, b"")
        await wait_all_tasks_blocked()  # it has the only place
        now = trio.current_time()
        remote.host.breaker.circuit = Circuit(State.OPEN, until=now + 10)
        with pytest.raises(NotTried):
            await remote.stat(b"")
        assert trio.current_time() == now
        nursery.cancel_scope.cancel()


async def test_waiting_for_a_place_is_not_the_hosts_time(autojump_clock: MockClock) -> None:
    """A queue in front of a slow but living host opens nothing and times nobody out."""
    server = MemoryServer()

    async def slowly(_: str, __: bytes) -> None:
        await trio.sleep(6)

    server.before_request = slowly
    hosts = Hosts()
    policy = RemotePolicy(connections_max=1, attempt_timeout_s=7.0, deadline_s=100.0)
    remote = wrapped(MemoryRemote(server), policy, hosts)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(remote.stat, b"")
    assert remote.retries == 0
    assert remote.statistics.requests == {Verb.STAT: 10}
