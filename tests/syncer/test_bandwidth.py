"""Rates, timetables, and the bucket."""

from __future__ import annotations

import itertools
import math
import random
from datetime import UTC, datetime, timedelta

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from syncer.bandwidth import (
    BadRate,
    Bandwidth,
    Timetable,
    follow,
    parse_rate,
    parse_timetable,
    rate_at,
)
from syncer.metered import default_interface, says_metered

MIB = 1 << 20
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


def at(day: int, clock: str) -> datetime:
    hour, minute = clock.split(":")
    return MONDAY + timedelta(days=day, hours=int(hour), minutes=int(minute))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50M", 50 * MIB), ("50MB/s", 50 * MIB), ("50 MiB/s", 50 * MIB), ("1.5k", 1536),
        ("400Mbit", 50e6), ("8kbps", 1000), ("100", 100), ("1G", 1 << 30), ("off", None),
    ],
)  # fmt: skip
def test_rates(text: str, rate: float | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "5 M 6", "-5M", "0", "0.1", "1Mbyte", "5M/m"])
def test_rates_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadRate):
        parse_rate(text)


@pytest.mark.parametrize(
    "text",
    [
        "5M,", "08:00-18:00", "8-18 5M", "25:00-26:00 5M", "08:60-09:00 5M", "24:00-08:00 5M",
        "Mon-Fry 5M", "on metered", "5M on", "Mon,Tue 5M", "5M 08:00-18:00",
    ],
)  # fmt: skip
def test_timetables_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadRate):
        parse_timetable(text)


def test_the_first_entry_that_fits_decides() -> None:
    table = parse_timetable("Mon-Fri 08:00-18:00 5M, 20M")
    for day, clock, rate in (
        (0, "07:59", 20), (0, "08:00", 5), (4, "17:59", 5), (4, "18:00", 20), (5, "12:00", 20),
    ):  # fmt: skip
        assert rate_at(table, at(day, clock)) == rate * MIB
    assert rate_at(parse_timetable("Sat/Sun off, 10M"), at(6, "12:00")) is None
    assert rate_at(parse_timetable("Sat/Sun off, 10M"), at(0, "12:00")) == 10 * MIB
    assert rate_at(parse_timetable("08:00-18:00 5M"), at(0, "20:00")) is None
    assert rate_at(parse_timetable(""), at(0, "20:00")) is None


def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    table = parse_timetable("Fri 22:00-06:00 50M, 1M")
    for day, clock, rate in (
        (4, "21:59", 1), (4, "22:00", 50), (5, "05:59", 50), (5, "06:00", 1), (5, "22:00", 1),
        (4, "03:00", 1),
    ):  # fmt: skip
        assert rate_at(table, at(day, clock)) == rate * MIB
    week = parse_timetable("Sun 22:00-06:00 2M")
    assert rate_at(week, at(0, "03:00")) == 2 * MIB  # Monday morning
    assert rate_at(parse_timetable("Sat-Mon 3M"), at(0, "00:00")) == 3 * MIB
    assert rate_at(parse_timetable("08:00-24:00 3M"), at(0, "23:59")) == 3 * MIB


def test_a_metered_line_makes_it_slower_never_faster() -> None:
    table = parse_timetable("08:00-18:00 5M, 2M on metered")
    assert rate_at(table, at(0, "12:00")) == 5 * MIB
    assert rate_at(table, at(0, "12:00"), metered=True) == 2 * MIB
    assert rate_at(table, at(0, "20:00")) is None
    assert rate_at(table, at(0, "20:00"), metered=True) == 2 * MIB
    slow = parse_timetable("1M, 2M on metered")
    assert rate_at(slow, at(0, "12:00"), metered=True) == 1 * MIB
    assert table.asks_metered
    assert not slow.fixed
    assert parse_timetable("5M").fixed
    assert not parse_timetable("Mon 5M").fixed
    assert not parse_timetable("5M").asks_metered


spans = st.tuples(st.integers(0, 1439), st.integers(0, 1440)).map(
    lambda span: "{:02}:{:02}-{:02}:{:02}".format(*divmod(span[0], 60), *divmod(span[1], 60))
)
entries = st.tuples(
    st.sampled_from(("", "Mon ", "Tue-Thu ", "Sat/Sun ", "Fri-Mon ")),
    st.just("") | spans.map(lambda span: span + " "),
    st.integers(1, 9).map(lambda rate: f"{rate}M") | st.just("off"),
    st.sampled_from(("", "", " on metered")),
).map("".join)


@settings(deadline=None)
@given(
    texts=st.lists(entries, min_size=1, max_size=5),
    minutes=st.integers(0, 7 * 1440 - 1),
    metered=st.booleans(),
)
def test_the_rate_at_a_moment_is_one_of_the_table_or_none(
    texts: list[str], minutes: int, metered: bool
) -> None:
    table = parse_timetable(", ".join(texts))
    moment = MONDAY + timedelta(minutes=minutes)
    rate = rate_at(table, moment, metered=metered)
    assert rate is None or rate in {entry.rate for entry in table.entries}
    # It repeats every week, and is never faster on a metered line.
    assert rate_at(table, moment + timedelta(days=7), metered=metered) == rate
    free = rate_at(table, moment)
    assert (rate or math.inf) <= (free or math.inf)
    # One that always holds, at the front, decides for the unmetered line.
    front = parse_timetable(", ".join(["7M", *texts]))
    assert rate_at(front, moment) == 7 * MIB


# The bucket.


@settings(max_examples=40, deadline=None)
@given(
    rate=st.integers(1_000, 10**8),
    own_share=st.sampled_from((None, 0.3, 2.0)),
    asks=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 3 * 10**6)), min_size=1, max_size=12),
    change=st.none() | st.tuples(st.floats(0.1, 3), st.sampled_from((0.25, 4.0))),
)
def test_no_stretch_of_time_sees_more_than_the_rate(
    rate: int,
    own_share: float | None,
    asks: list[tuple[float, int]],
    change: tuple[float, float] | None,
) -> None:
    """`asks` and the change of the rate come from tasks of their own, at their times."""
    went: list[tuple[float, int]] = []
    changed: list[float] = []

    class Seen(Bandwidth):
        """The bucket of all, which notes what it lets through."""

        async def take(self, count: int) -> None:
            await super().take(count)
            went.append((trio.current_time(), count))

    async def main() -> None:
        top = Seen(float(rate))
        job = Bandwidth(None if own_share is None else rate * own_share, parent=top)

        async def ask(after_s: float, count: int) -> None:
            await trio.sleep(after_s)
            # In pieces that no bucket here cuts further, so that all it lets through is seen.
            left = min(count, rate)
            while left:
                piece = min(left, int(rate * 0.06))
                await job.take(piece)
                left -= piece

        async with trio.open_nursery() as nursery:
            for after_s, count in asks:
                nursery.start_soon(ask, after_s, count)
            if change is not None:
                await trio.sleep(change[0])
                top.set_rate(rate * change[1])
                changed.append(trio.current_time())

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sum(count for _, count in went) == sum(min(count, rate) for _, count in asks)
    change_at = changed[0] if changed else math.inf
    factor = change[1] if change else 1.0
    highest = rate * max(1.0, factor if changed else 1.0)
    for first, last in itertools.combinations_with_replacement(range(len(went)), 2):
        begin, end = went[first][0], went[last][0]
        before_s = max(0.0, min(end, change_at) - begin)
        after_s = max(0.0, end - max(begin, change_at))
        allowed = rate * before_s + rate * factor * after_s if changed else rate * (end - begin)
        moved = sum(count for _, count in went[first : last + 1])
        assert moved <= allowed + highest * 0.25 + 1 + 1e-6 * moved


async def test_the_rate_is_used_up(autojump_clock: MockClock) -> None:
    bandwidth = Bandwidth(1000.0)
    began = trio.current_time()
    for _ in range(100):
        await bandwidth.take(1000)
    # No drift, however many slices it took.
    assert trio.current_time() - began == pytest.approx(100, rel=1e-6)


async def test_waiters_share_alike(autojump_clock: MockClock) -> None:
    top = Bandwidth(1000.0)
    jobs = [Bandwidth(None, parent=top) for _ in range(3)]
    moved = [0, 0, 0]

    async def go(number: int, piece: int) -> None:
        while True:
            await jobs[number].take(piece)
            moved[number] += piece

    with trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            # One asks for much at once, one for little.
            for number, piece in enumerate((5000, 250, 500)):
                nursery.start_soon(go, number, piece)
    # What a task has under way when it ends does not count: up to 5,000.
    assert sum(moved) == pytest.approx(100_000, abs=6000)
    for one in moved:
        assert one == pytest.approx(100_000 / 3, abs=5500)


async def test_a_new_rate_holds_at_once_for_those_who_wait(autojump_clock: MockClock) -> None:
    bandwidth = Bandwidth(1.0)
    done = trio.Event()

    async def ask() -> None:
        await bandwidth.take(10**9)
        done.set()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert not done.is_set()
        bandwidth.set_rate(None)
        await done.wait()
    assert trio.current_time() - began == 0
    assert not bandwidth.limited
    await bandwidth.take(10**12)
    bandwidth.set_rate(1000.0)
    assert bandwidth.rate == 1000.0
    began = trio.current_time()
    await bandwidth.take(2000)
    assert trio.current_time() - began == pytest.approx(2, abs=0.3)


async def test_who_gives_up_takes_nothing_along(autojump_clock: MockClock) -> None:
    bandwidth = Bandwidth(100.0)
    began = trio.current_time()
    for _ in range(20):
        with trio.move_on_after(0.01) as scope:
            await bandwidth.take(25)
        assert scope.cancelled_caught
    await bandwidth.take(25)
    assert trio.current_time() - began == pytest.approx(0.25)


async def test_the_bucket_follows_its_timetable(autojump_clock: MockClock) -> None:
    bandwidth = Bandwidth()
    began = trio.current_time()
    seen: list[tuple[float, float | None]] = []
    dear = False
    asked = 0

    async def metered() -> bool:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        return dear

    def clock() -> datetime:
        return at(0, "07:59") + timedelta(seconds=trio.current_time() - began)

    table = parse_timetable("08:00-18:00 5M, 20M, 1M on metered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: follow(bandwidth, lambda: table, metered=metered, clock=clock))
        for after_s in (1, 59, 75, 100, 130):
            await trio.sleep_until(began + after_s)
            if after_s == 100:
                dear = True
            seen.append((after_s, bandwidth.rate))
        table = Timetable()
        asked_before = asked
        await trio.sleep(31)
        assert bandwidth.rate is None
        assert asked == asked_before  # nobody needs to know
        nursery.cancel_scope.cancel()
    assert seen == [(1, 20 * MIB), (59, 20 * MIB), (75, 5 * MIB), (100, 5 * MIB), (130, MIB)]


# The line.


def test_the_interface_of_the_default_route() -> None:
    routes = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\n"
        "down0\t00000000\t0101A8C0\t0002\t0\t0\t1\t00000000\n"
        "eth1\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
    )
    assert default_interface(routes) == "eth0"
    assert default_interface(routes.splitlines()[0]) == ""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("yes\n", True), ("yes (guessed)\n", True), ("no (guessed)\n", False), ("unknown", False),
     ("", False)],
)  # fmt: skip
def test_what_network_manager_says(answer: str, expected: bool) -> None:
    assert says_metered(answer) is expected


def test_seeded_many_small_takes_add_up() -> None:
    """Thousands of odd pieces over hours: the sum of them stays on the line of the rate."""
    rng = random.Random(7)

    async def main() -> None:
        bandwidth = Bandwidth(12_345.0)
        began, moved = trio.current_time(), 0
        for _ in range(2000):
            count = rng.randint(1, 9000)
            await bandwidth.take(count)
            moved += count
        assert moved / (trio.current_time() - began) == pytest.approx(12_345, rel=1e-4)

    trio.run(main, clock=MockClock(autojump_threshold=0))
