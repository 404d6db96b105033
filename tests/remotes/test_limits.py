"""Rates, places, time and counts."""

from __future__ import annotations

import itertools

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from syncer.remotes.errors import Missing, Unreachable
from syncer.remotes.held import Held
from syncer.remotes.limits import Bucket, Deadline, Limited, Rate, RateLimit, Rates, take
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import ROOT, Page
from syncer.remotes.wrapper import Verb, Wrapper
from syncer.remotes.wrappers import Hosts, wrapped


@given(
    rate=st.floats(0.5, 1000),
    burst=st.floats(1, 500),
    asks=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 2000)), min_size=1, max_size=30),
)
def test_no_stretch_of_time_sees_more_than_the_rate_allows(
    rate: float, burst: float, asks: list[tuple[float, float]]
) -> None:
    bucket, now = Bucket(rate, burst, burst, 0.0), 0.0
    went: list[tuple[float, float]] = []  # when, tokens
    owed_until = 0.0
    for passed_s, tokens in asks:
        now += passed_s
        bucket, wait_s = take(bucket, tokens, now)
        assert wait_s >= 0
        # No longer than what went before costs: the rate is used up, too.
        assert now + wait_s <= max(now, owed_until) + 1e-6
        owed_until = max(now, owed_until) + tokens / rate
        went.append((now + wait_s, tokens))
    for one, other in itertools.pairwise(went):
        assert one[0] <= other[0] + 1e-6  # nobody overtakes
    for first in range(len(went)):
        for last in range(first, len(went)):
            all_but_last = sum(tokens for _, tokens in went[first:last])
            stretch_s = went[last][0] - went[first][0]
            assert all_but_last <= burst + rate * stretch_s + 1e-6 * (1 + all_but_last)


async def test_tasks_go_in_order_at_the_rate(autojump_clock: MockClock) -> None:
    rate = Rate(10.0, burst_s=0.1)
    went: list[tuple[int, float]] = []
    began = trio.current_time()

    async def go(number: int) -> None:
        await rate.wait(1)
        went.append((number, trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(go, number)
            await wait_all_tasks_blocked()
    assert [number for number, _ in went] == list(range(20))
    assert went[-1][1] == pytest.approx(1.8)  # one saved up, one on credit


async def test_who_gives_up_gives_back(autojump_clock: MockClock) -> None:
    rate = Rate(1.0, burst_s=1.0)
    await rate.wait(101)
    with trio.move_on_after(1) as scope:
        await rate.wait(1000)
    assert scope.cancelled_caught
    began = trio.current_time()
    await rate.wait(0)
    assert trio.current_time() - began == pytest.approx(99)


async def test_without_a_rate_nobody_waits(autojump_clock: MockClock) -> None:
    rate = Rate(None, burst_s=1.0)
    began = trio.current_time()
    for _ in range(1000):
        await rate.wait(1e12)
    assert trio.current_time() == began


async def test_bytes_and_requests_of_a_host_share_its_rates(autojump_clock: MockClock) -> None:
    policy = RemotePolicy(
        requests_per_s=10.0, read_bytes_per_s=1000.0, write_bytes_per_s=500.0, burst_s=0.1
    )
    server = MemoryServer()
    rates = Rates(policy)
    one, two = (RateLimit(MemoryRemote(server), rates) for _ in range(2))

    async def seconds(*calls: object) -> float:
        began = trio.current_time()
        for call in calls:
            await call  # type: ignore[misc]
        return trio.current_time() - began

    # 3,000 bytes in three reads of the source; the last one is paid for by who comes next.
    data = bytes(1 << 20)
    await one.write(b"f", Held(data[:1000]))
    entry = await one.stat(b"f")
    assert await seconds(
        one.write(b"f", Held(data[:1000])), two.write(b"g", Held(b""))
    ) == pytest.approx(950 / 500)
    entry = await one.stat(b"f")
    await trio.sleep(100)
    took_s = await seconds(
        *[(one, two)[i % 2].read(b"f", entry.version, 0, 1000) for i in range(5)]
    )
    assert took_s == pytest.approx((4 * 1000 - 100) / 1000)
    await trio.sleep(100)
    took_s = await seconds(*[(one, two)[i % 2].stat(b"f") for i in range(21)])
    assert took_s == pytest.approx((20 - 1) / 10)
    await trio.sleep(100)
    took_s = await seconds(one.read_whole(b"f", 9999), two.read(b"f", entry.version, 0, 1))
    assert took_s == pytest.approx((1000 - 100) / 1000)


async def test_every_page_of_a_listing_is_a_request(autojump_clock: MockClock) -> None:
    server = MemoryServer()
    direct = MemoryRemote(server)
    for number in range(5000):
        await direct.write(b"%d" % number, Held(b""))
    remote = RateLimit(direct, Rates(RemotePolicy(requests_per_s=1.0, burst_s=1.0)))

    async def sink(_: Page) -> None:
        await trio.lowlevel.checkpoint()

    began = trio.current_time()
    await remote.list(ROOT, sink)
    assert trio.current_time() - began == pytest.approx(4)  # before pages 3 to 5, and after


class Crowd(Wrapper):
    """Notes how many are inside."""

    inside = most = 0

    async def _call(self, call):  # type: ignore[no-untyped-def]
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await trio.sleep(1)
            return await call.go()
        finally:
            self.inside -= 1


async def test_only_so_many_at_a_time_and_cancelled_ones_leave(
    autojump_clock: MockClock,
) -> None:
    crowd = Crowd(MemoryRemote(MemoryServer()))
    remote = Limited(crowd, 3)

    async def ask(number: int) -> None:
        with trio.move_on_after(5 if number % 3 else 0.5 * number):
            await remote.stat(b"")

    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(ask, number)
    assert crowd.most == 3
    assert remote.limiter.borrowed_tokens == 0


async def test_a_sink_may_use_the_remote_that_it_lists(autojump_clock: MockClock) -> None:
    server = MemoryServer()
    direct = MemoryRemote(server)
    for number in range(2500):
        await direct.write(b"%d" % number, Held(b"x"))
    remote = Limited(direct, 1)
    seen = 0

    async def sink(page: Page) -> None:
        nonlocal seen
        for entry in page:
            seen += (await remote.stat(entry.key)).size

    await remote.list(ROOT, sink)
    assert seen == 2500

    async def failing(_: Page) -> None:
        await remote.stat(b"0")
        raise ValueError

    with pytest.raises(ValueError):
        await remote.list(ROOT, failing)

    async def hanging(_: Page) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(1):
        await remote.list(ROOT, hanging)
    assert remote.limiter.borrowed_tokens == 0


async def test_an_attempt_is_bounded_and_says_which(autojump_clock: MockClock) -> None:
    server = MemoryServer()

    async def never(_: str, __: bytes) -> None:
        await trio.sleep_forever()

    server.before_request = never
    policy = RemotePolicy(attempt_timeout_s=7.0)
    remote = Deadline(MemoryRemote(server, "sftp://nas/"), policy)
    began = trio.current_time()
    with pytest.raises(Unreachable, match=r"sftp://nas/: no answer to stat of b'x' within 7 s"):
        await remote.stat(b"x")
    assert trio.current_time() - began == pytest.approx(7)
    with trio.move_on_after(1) as scope:  # the caller's own patience stays the caller's
        await remote.stat(b"x")
    assert scope.cancelled_caught


async def test_a_sink_that_fails_starts_the_clock_again(autojump_clock: MockClock) -> None:
    """A driver may hang while it cleans up after the caller's error."""

    class HangsAfter(Wrapper):
        async def list(self, key, sink):  # type: ignore[no-untyped-def]
            try:
                await self._inner.list(key, sink)
            except ValueError:
                await trio.sleep_forever()

    direct = MemoryRemote(MemoryServer())
    await direct.write(b"f", Held(b""))

    async def sink(_: Page) -> None:
        await trio.sleep(1000)
        raise ValueError

    with pytest.raises(Unreachable):
        await Deadline(HangsAfter(direct), RemotePolicy()).list(ROOT, sink)


async def test_closing_is_bounded(autojump_clock: MockClock) -> None:
    class Stuck(Wrapper):
        async def close(self) -> None:
            await trio.sleep_forever()

    policy = RemotePolicy()
    remote = wrapped(Stuck(MemoryRemote(MemoryServer())), policy, Hosts())
    began = trio.current_time()
    await remote.close()
    assert trio.current_time() - began == pytest.approx(policy.close_timeout_s)


async def test_counts(autojump_clock: MockClock) -> None:
    server = MemoryServer()

    async def slowly(_: str, __: bytes) -> None:
        await trio.sleep(0.25)

    server.before_request = slowly
    remote = wrapped(MemoryRemote(server), RemotePolicy(), Hosts())

    class Slow(Held):
        async def read(self, offset: int, length: int) -> bytes:
            await trio.sleep(100)
            return await super().read(offset, length)

    entry = await remote.write(b"f", Slow(b"12345"))
    await remote.read(b"f", entry.version, 1, 3)
    await remote.read_whole(b"f", 10)
    with pytest.raises(Missing):
        await remote.stat(b"g")

    async def sink(_: Page) -> None:
        assert remote.statistics.under_way == 1
        await trio.sleep(100)

    await remote.list(ROOT, sink)
    with trio.move_on_after(0.125):
        await remote.stat(b"f")
    found = remote.statistics
    assert found.requests == {
        Verb.WRITE: 1,
        Verb.READ: 1,
        Verb.READ_WHOLE: 1,
        Verb.STAT: 2,
        Verb.LIST: 1,
    }
    assert found.errors == {"Missing": 1, "Cancelled": 1}
    assert (found.bytes_read, found.bytes_written, found.pages, found.under_way) == (8, 5, 1, 0)
    assert found.seconds == pytest.approx(
        {
            Verb.WRITE: 0.25,
            Verb.READ: 0.25,
            Verb.READ_WHOLE: 0.25,
            Verb.STAT: 0.375,
            Verb.LIST: 0.25,
        }
    )
