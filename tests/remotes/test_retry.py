"""Retries end as if nothing had gone wrong, do nothing twice, and give up in time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from syncer.remotes import errors
from syncer.remotes.breaker import NotTried, State
from syncer.remotes.errors import Busy, Exists, Garbled, Missing, RemoteError, Unreachable
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import ROOT, Entry, Kind, Page, Remote
from syncer.remotes.retry import Retrying, backoff_s, next_wait_s
from syncer.remotes.wrapper import Verb
from syncer.remotes.wrappers import Hosts, wrapped
from tests.remotes.unreliable import FAULTS, Fate, Unreliable

POLICY = RemotePolicy()
JITTER = st.floats(0.0, 1.0, exclude_max=True)


# The pure part.


@given(attempt=st.integers(1, 10_000), jitter=JITTER)
def test_backoff_doubles_up_to_its_limit(attempt: int, jitter: float) -> None:
    wait_s = backoff_s(attempt, jitter, POLICY)
    assert POLICY.backoff_s / 2 <= wait_s <= POLICY.backoff_max_s
    later = backoff_s(attempt + 1, jitter, POLICY)
    assert later == pytest.approx(min(2 * wait_s, POLICY.backoff_max_s * (0.5 + jitter / 2)))


@given(attempt=st.integers(1, 30), one=JITTER, other=JITTER)
def test_backoff_spreads_over_half_of_its_range(attempt: int, one: float, other: float) -> None:
    whole = backoff_s(attempt, 0.0, POLICY) * 2
    waits = [backoff_s(attempt, jitter, POLICY) for jitter in (one, other)]
    assert waits[0] - waits[1] == pytest.approx((one - other) * whole / 2)


ERRORS = [getattr(errors, name) for name in vars(errors) if name[0].isupper()]
KINDS = [kind for kind in ERRORS if isinstance(kind, type) and issubclass(kind, RemoteError)]


@given(
    kind=st.sampled_from(KINDS),
    retry_after_s=st.none() | st.floats(0, 100),
    attempt=st.integers(1, 20),
    garbled=st.integers(1, 20),
    left_s=st.floats(-1, 100),
    jitter=JITTER,
)
def test_what_is_tried_again_and_when(
    kind: type[RemoteError],
    retry_after_s: float | None,
    attempt: int,
    garbled: int,
    left_s: float,
    jitter: float,
) -> None:
    error = Busy("x", retry_after_s) if kind is Busy else kind("x")
    garbled = min(garbled, attempt)
    wait_s = next_wait_s(error, attempt, garbled, left_s, jitter, POLICY)
    least_s = max(backoff_s(attempt, jitter, POLICY), (kind is Busy and retry_after_s) or 0.0)
    hopeless = {
        Garbled: garbled >= POLICY.garbled_max,
        Busy: False,
        Unreachable: False,
    }
    if attempt >= POLICY.attempts_max or hopeless.get(kind, True):
        assert wait_s is None
    elif wait_s is None:
        assert least_s * 1.1 >= left_s
    else:
        assert least_s <= wait_s <= least_s * 1.1
        assert wait_s < left_s


@given(
    retry_in_s=st.none() | st.floats(0, 100),
    attempt=st.integers(0, 20),
    left_s=st.floats(-1, 100),
    jitter=JITTER,
)
def test_a_pause_of_the_breaker_is_waited_out_by_who_was_sent_before(
    retry_in_s: float | None, attempt: int, left_s: float, jitter: float
) -> None:
    wait_s = next_wait_s(NotTried("x", retry_in_s), attempt, 0, left_s, jitter, POLICY)
    pause_s = backoff_s(attempt, jitter, POLICY) if retry_in_s is None else retry_in_s
    if wait_s is None:
        assert attempt == 0 or pause_s + 0.1 >= left_s
    else:
        assert attempt > 0
        assert pause_s < wait_s < left_s


# One remote, one file, scripted failures.


class World:
    def __init__(self, *script: Fate, policy: RemotePolicy = POLICY) -> None:
        self.server = MemoryServer()
        self.direct = MemoryRemote(self.server)
        self.unreliable = Unreliable(MemoryRemote(self.server))
        self.remote = wrapped(self.unreliable, policy, Hosts())
        self.script = script

    async def begin(self) -> World:
        await self.direct.write(b"f", Held(b"content"))
        self.unreliable.script.extend(self.script)
        return self


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("fate", [Fate.LOST, Fate.ANSWER_LOST, Fate.BUSY])
async def test_a_read_survives_failures(fate: Fate, count: int, autojump_clock: MockClock) -> None:
    world = await World(*[fate] * count).begin()
    entry = await world.direct.stat(b"f")
    began = trio.current_time()
    assert await world.remote.read(b"f", entry.version, 1, 3) == b"ont"
    assert world.remote.retries == count
    waited_s = sum(backoff_s(attempt, 0.0, POLICY) for attempt in range(1, count + 1))
    assert waited_s <= trio.current_time() - began <= 2 * waited_s


async def test_a_read_outlives_a_restart_of_the_server(autojump_clock: MockClock) -> None:
    """Even one that the breaker notices; who comes while it is open is told at once."""
    world = await World().begin()
    world.unreliable.down = Unreachable("connection refused")

    async def latecomer() -> None:
        while world.remote.host.breaker.circuit.state is not State.OPEN:  # noqa: ASYNC110
            await trio.sleep(0.1)  # of the mock clock
        began = trio.current_time()
        with pytest.raises(NotTried):
            await world.remote.stat(b"f")
        assert trio.current_time() == began
        await trio.sleep(1)
        world.unreliable.down = None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(latecomer)
        assert (await world.remote.stat(b"f")).size == 7


async def test_garbled_is_asked_for_once_more(autojump_clock: MockClock) -> None:
    world = await World(Fate.GARBLED).begin()
    assert (await world.remote.stat(b"f")).size == 7
    world.unreliable.script.extend([Fate.GARBLED] * 2)
    with pytest.raises(Garbled):
        await world.remote.stat(b"f")
    assert world.unreliable.asked == [Verb.STAT] * 4


async def test_what_the_remote_says_is_not_asked_again(autojump_clock: MockClock) -> None:
    world = await World().begin()
    with pytest.raises(Missing):
        await world.remote.stat(b"nothing")
    assert world.unreliable.asked == [Verb.STAT]


async def test_a_black_hole_ends_with_the_deadline(autojump_clock: MockClock) -> None:
    world = await World(*[Fate.SWALLOWED] * 100).begin()
    began = trio.current_time()
    with pytest.raises(Unreachable, match=r"memory:///.*stat.*no answer"):
        await world.remote.stat(b"f")
    assert trio.current_time() - began == pytest.approx(POLICY.deadline_s)
    assert world.unreliable.asked == [Verb.STAT] * 2


async def test_patience_that_is_asked_for_is_had(autojump_clock: MockClock) -> None:
    world = await World(Fate.BUSY).begin()
    world.unreliable.retry_after_s = 12.0
    began = trio.current_time()
    await world.remote.stat(b"f")
    assert 12.0 <= trio.current_time() - began <= 13.2
    world.unreliable.retry_after_s = 60.0  # longer than anybody waits: said at once
    world.unreliable.script.append(Fate.BUSY)
    began = trio.current_time()
    with pytest.raises(Busy):
        await world.remote.stat(b"f")
    assert trio.current_time() == began


async def test_a_listing_is_tried_again_only_before_its_first_page(
    autojump_clock: MockClock,
) -> None:
    world = await World(Fate.LOST).begin()
    pages: list[Page] = []

    async def sink(page: Page) -> None:
        await trio.lowlevel.checkpoint()
        pages.append(page)

    await world.remote.list(ROOT, sink)
    assert [[entry.key for entry in page] for page in pages] == [[b"f"]]
    pages.clear()
    world.unreliable.script.append(Fate.ANSWER_LOST)  # after all pages
    with pytest.raises(Unreachable):
        await world.remote.list(ROOT, sink)
    assert len(pages) == 1
    assert world.unreliable.asked == [Verb.LIST] * 3


async def test_a_listing_takes_as_long_as_its_pages_and_its_sink(
    autojump_clock: MockClock,
) -> None:
    server = MemoryServer()
    remote = MemoryRemote(server)
    for number in range(5000):
        await remote.write(b"%d" % number, Held(b""))

    async def slowly(_: str, __: bytes) -> None:
        await trio.sleep(POLICY.attempt_timeout_s * 0.9)

    server.before_request = slowly
    pages = 0

    async def sink(_: Page) -> None:
        nonlocal pages
        pages += 1
        await trio.sleep(1000)

    await wrapped(remote, POLICY, Hosts()).list(ROOT, sink)
    assert pages == 5


async def test_a_write_takes_as_long_as_its_source_and_is_bounded_after_it(
    autojump_clock: MockClock,
) -> None:
    class Slow(Held):
        async def read(self, offset: int, length: int) -> bytes:
            await trio.sleep(1000)
            return await super().read(offset, length)

    world = await World().begin()
    await world.remote.write(b"g", Slow(bytes(4 << 20)))
    world.unreliable.script.extend([Fate.SWALLOWED_ANSWER] * 100)
    began = trio.current_time()
    with pytest.raises(Unreachable):
        await world.remote.write(b"h", Held(b"x"))
    assert trio.current_time() - began <= 2 * POLICY.write_timeout_s + POLICY.deadline_s


async def test_a_conditional_write_of_somebody_else_is_not_taken_for_ours(
    autojump_clock: MockClock,
) -> None:
    """The answer was lost, and then another client wrote the same number of bytes."""
    world = await World().begin()
    entry = await world.direct.stat(b"f")
    await world.direct.write(b"f", Held(b"theirs!"))
    world.unreliable.script.append(Fate.LOST)
    with pytest.raises(errors.Changed):
        await world.remote.write(b"f", Held(b"ours!!!"), if_version=entry.version)
    world.unreliable.script.append(Fate.LOST)
    with pytest.raises(Exists):
        await world.remote.write(b"f", Held(b"ours!!!"), replace=False)
    assert (await world.direct.read_whole(b"f", 100))[1] == b"theirs!"


async def test_what_arrives_late_is_not_taken_for_a_failure(autojump_clock: MockClock) -> None:
    """The first attempt was cut off, and is carried out just before the second."""
    world = await World(Fate.LOST).begin()

    async def late(method: str, _: bytes) -> None:
        if method == "rename":
            world.server.before_request = None
            await world.direct.rename(b"f", b"g")

    world.server.before_request = late
    await world.remote.rename(b"f", b"g")
    assert (await world.direct.stat(b"g")).size == 7


async def test_cancelling_leaves_no_attempt(autojump_clock: MockClock) -> None:
    world = await World(*[Fate.SWALLOWED] * 10).begin()
    with trio.move_on_after(1) as scope:
        await world.remote.stat(b"f")
    assert scope.cancelled_caught
    assert world.remote.statistics.under_way == 0
    await world.remote.close()


# Histories: with failures as without.

NAMES = [b"a", b"b", b"c"]
name = st.sampled_from(NAMES)
content = st.binary(max_size=3)
fates = st.lists(st.sampled_from(Fate), max_size=6).filter(
    lambda script: script.count(Fate.GARBLED) < POLICY.garbled_max
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), name, content, fates),
        st.tuples(st.just("create"), name, content, fates),
        st.tuples(st.just("update"), name, content, fates),
        st.tuples(st.just("rename"), name, name, fates),
        st.tuples(st.just("rename_new"), name, name, fates),
        st.tuples(st.just("delete"), name, st.none(), fates),
        st.tuples(st.just("mkdir"), name, st.none(), fates),
        st.tuples(st.just("symlink"), name, content, fates),
        st.tuples(st.just("read_whole"), name, st.none(), fates),
    ),
    max_size=12,
)
# Within the deadline whatever the script says: what is given up is another test's.
PATIENT = RemotePolicy(deadline_s=10_000.0, breaker_failures=1000)


async def act(remote: Remote, verb: str, key: bytes, extra: Any) -> object:
    """Do it; what it answered, or the name of its error."""
    acts: dict[str, Callable[[], Awaitable[Any]]] = {
        "write": lambda: remote.write(key, Held(extra)),
        "create": lambda: remote.write(key, Held(extra), replace=False),
        "rename": lambda: remote.rename(key, extra),
        "rename_new": lambda: remote.rename(key, extra, replace=False),
        "delete": lambda: remote.delete(key),
        "mkdir": lambda: remote.mkdir(key + b"/"),
        "symlink": lambda: remote.symlink(key, extra),
        "read_whole": lambda: remote.read_whole(key, 100),
    }
    try:
        if verb == "update":
            before = await remote.stat(key)
            acts[verb] = lambda: remote.write(key, Held(extra), if_version=before.version)
        answer = await acts[verb]()
    except RemoteError as error:
        return type(error).__name__
    if isinstance(answer, Entry):
        return (answer.key, answer.kind, answer.size)
    return answer[1] if isinstance(answer, tuple) else answer


async def tree(remote: Remote) -> dict[bytes, object]:
    found: dict[bytes, object] = {}

    async def sink(page: Page) -> None:
        for entry in page:
            is_file = entry.kind is Kind.FILE
            data = (await remote.read_whole(entry.key, 100))[1] if is_file else entry.target
            found[entry.key] = (entry.kind, data)

    await remote.list(ROOT, sink)
    return found


@settings(max_examples=300, deadline=None)
@given(history=steps, seed=st.integers(0, 9))
def test_histories_with_failures_are_those_without(history: list[Any], seed: int) -> None:
    async def main() -> None:
        reference = MemoryRemote(MemoryServer())
        server = MemoryServer()
        unreliable = Unreliable(MemoryRemote(server))
        remote = wrapped(unreliable, PATIENT, Hosts())
        remote._jitter = random.Random(seed).random
        for verb, key, extra, script in history:
            expected = await act(reference, verb, key, extra)
            unreliable.script.extend(script)
            got = await act(remote, verb, key, extra)
            # What looks done after a cut is taken for done: with failures, a wish that was
            # fulfilled already may be granted where it would have been refused.
            granted = set(script) & (set(FAULTS) - {Fate.BUSY}) and not isinstance(got, str)
            assert got == expected or (granted and expected in {"Missing", "Exists", "Changed"})
            unreliable.script.clear()
            assert await tree(MemoryRemote(server)) == await tree(reference)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_retrying_alone_needs_no_other_wrapper(autojump_clock: MockClock) -> None:
    unreliable = Unreliable(MemoryRemote(MemoryServer()), [Fate.LOST, Fate.ANSWER_LOST])
    remote = Retrying(unreliable, POLICY, jitter=lambda: 0.0)
    await remote.mkdir(b"d/")
    assert (
        unreliable.asked == [Verb.MKDIR, Verb.STAT, Verb.MKDIR, Verb.STAT][: len(unreliable.asked)]
    )
    assert (await remote.stat(b"d/")).kind is Kind.DIRECTORY
