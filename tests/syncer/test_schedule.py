"""When schedules are due: the calendar, daylight saving, intervals."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.schedule import BadSchedule, next_due

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")  # +1, in summer +2; changes at 01:00 UTC
S = 10**9


def ns(text: str, zone: dt.tzinfo = dt.UTC, fold: int = 0) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()) * S


def runs(schedule: str, after: int, count: int, zone: dt.tzinfo = BERLIN) -> list[str]:
    found = []
    for _ in range(count):
        after = next_due(schedule, after, zone)
        found.append(dt.datetime.fromtimestamp(after // S, zone).isoformat())
    return found


@pytest.mark.parametrize(
    ("schedule", "after", "due"),
    [
        ("0 3 * * *", "2026-01-01 02:59:59", "2026-01-01 03:00"),
        ("0 3 * * *", "2026-01-01 03:00", "2026-01-02 03:00"),
        ("*/15 * * * *", "2026-01-01 00:01", "2026-01-01 00:15"),
        ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
        ("30 8 * * mon-fri", "2026-01-02 09:00", "2026-01-05 08:30"),
        ("@hourly", "2026-01-01 00:30", "2026-01-01 01:00"),
        ("@daily", "2026-01-01 00:00", "2026-01-02 00:00"),
        ("@weekly", "2026-01-01 00:00", "2026-01-04 00:00"),
        ("@Monthly", "2026-01-01 00:00", "2026-02-01 00:00"),
        ("@yearly", "2026-01-01 00:00", "2027-01-01 00:00"),
        ("every 90 s", "2026-01-01 00:00", "2026-01-01 00:01:30"),
        ("every  6h", "2026-01-01 00:00", "2026-01-01 06:00"),
    ],
)
def test_due_times(schedule, after, due):
    assert next_due(schedule, ns(after), dt.UTC) == ns(due)


def test_fixed_times_that_are_skipped_come_right_after_the_gap():
    # 2026-03-29, 02:00 to 03:00 does not exist.
    assert runs("30 2 * * *", ns("2026-03-28 00:00", BERLIN), 3) == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_fixed_times_that_come_twice_are_taken_once():
    # 2026-10-25, 02:00 to 03:00 comes twice.
    assert runs("30 2 * * *", ns("2026-10-24 12:00", BERLIN), 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    # Also for who asks in the second of the two hours, before and after the half.
    for text in ("2026-10-25 02:10", "2026-10-25 02:50"):
        after = ns(text, BERLIN, fold=1)
        assert runs("30 2 * * *", after, 1) == ["2026-10-26T02:30:00+01:00"]


def test_what_runs_each_half_hour_goes_on_through_both_changes():
    for day in ("2026-03-29", "2026-10-25"):
        start = ns(f"{day} 00:00", BERLIN)
        after = start
        for number in range(1, 13):
            after = next_due("*/30 * * * *", after, BERLIN)
            assert after == start + number * 1_800 * S


@given(st.integers(0, 4 * 10**9), st.sampled_from(["30 2 * * *", "15 1,2,3 * * 0", "@daily"]))
def test_due_times_lie_ahead_and_none_is_between(after_s, schedule):
    after = after_s * S
    due = next_due(schedule, after, BERLIN)
    assert due > after
    # Whoever asks a second before gets the same time, unless that itself is due.
    assert next_due(schedule, due - S, BERLIN) == due


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(0, 10**12))
def test_intervals_count_from_their_anchor(anchor, seconds, passed):
    after = anchor + passed
    due = next_due(f"every {seconds}s", after, dt.UTC, anchor_ns=anchor)
    assert due > after
    assert (due - anchor) % (seconds * S) == 0
    assert due - seconds * S <= after


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("", "five fields"),
        ("every day", "five fields"),
        ("* * * *", "five fields"),
        ("0 0 0 * * *", "five fields"),  # seconds are not offered
        ("61 * * * *", "minute"),
        ("0 25 * * *", "hour"),
        ("0 0 31 2 *", "day"),
        ("every 0s", "interval"),
        ("every 400d", "interval"),
        ("@never", "five fields"),
    ],
)
def test_what_makes_no_sense_is_refused(schedule, message):
    with pytest.raises(BadSchedule, match=message):
        next_due(schedule, 0, dt.UTC)


def test_what_is_never_due_is_refused():
    with pytest.raises(BadSchedule, match="never"):
        next_due("* * */20 * 1L", ns("2020-01-01 00:00"), dt.UTC)
