"""Retention against a model that goes through all times one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.ids import ChunkId
from syncer.catalogue import Snapshot
from syncer.retention import KeepRules, plan_retention
from syncer.tree_objects import Sums

HOUR = 3_600_000_000_000
START = 1_700_000_000_000_000_000


@st.composite
def snapshot_lists(draw: st.DrawFn) -> list[Snapshot]:
    found = []
    for number in range(draw(st.integers(0, 25))):
        time_ns = START + draw(st.integers(0, 3 * 365 * 24)) * HOUR // 2
        found.append(
            Snapshot(
                f"s{number}",
                time_ns,
                ChunkId(bytes(32)),
                Sums(),
                host=draw(st.sampled_from(("one", "two"))),
                tags=draw(st.sampled_from(((), (), ("gold",), ("a", "b")))),
                expires_ns=draw(st.sampled_from((None, None, None, START, START + 9**20))),
            )
        )
    return found


few = st.integers(0, 4)
rules = st.builds(
    KeepRules, few, few, few, few, few, few, st.sampled_from(((), ("gold",), ("b", "x")))
)
zones = st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-7))])
FORMATS = {
    "hourly": "%Y%m%d%H",
    "daily": "%Y%m%d",
    "weekly": "%G%V",
    "monthly": "%Y%m",
    "yearly": "%Y",
}


def stays_by_model(
    snapshot: Snapshot, among: list[Snapshot], wanted: KeepRules, now_ns: int, zone: tzinfo
) -> bool:
    if snapshot.expires_ns is not None:
        return snapshot.expires_ns > now_ns
    if wanted == KeepRules() or set(wanted.tags) & set(snapshot.tags):
        return True
    rivals = [s for s in among if s.host == snapshot.host and s.expires_ns is None]
    newer = [s for s in rivals if (s.time_ns, s.name) > (snapshot.time_ns, snapshot.name)]
    if len(newer) < wanted.last:
        return True

    def period(of: Snapshot, form: str) -> str:
        return datetime.fromtimestamp(of.time_ns // 10**9, zone).strftime(form)

    for name, form in FORMATS.items():
        newer_periods = {period(s, form) for s in newer}
        mine = period(snapshot, form)
        if mine not in newer_periods and len(newer_periods) < getattr(wanted, name):
            return True
    return False


@given(snapshot_lists(), rules, zones)
def test_against_the_model(drawn: list[Snapshot], wanted: KeepRules, zone: tzinfo) -> None:
    now_ns = START + 10
    verdicts = plan_retention(drawn, wanted, now_ns=now_ns, zone=zone)
    assert sorted(v.snapshot.name for v in verdicts) == sorted(s.name for s in drawn)
    for verdict in verdicts:
        expected = stays_by_model(verdict.snapshot, drawn, wanted, now_ns, zone)
        assert verdict.stays == expected, verdict
        assert bool(verdict.why_not) != expected


@given(snapshot_lists(), rules)
def test_a_second_run_removes_nothing(drawn: list[Snapshot], wanted: KeepRules) -> None:
    kept = [v.snapshot for v in plan_retention(drawn, wanted, now_ns=START) if v.stays]
    assert all(v.stays for v in plan_retention(kept, wanted, now_ns=START))


@given(snapshot_lists(), rules, rules)
def test_more_rules_keep_more(drawn: list[Snapshot], one: KeepRules, more: KeepRules) -> None:
    both = KeepRules(
        *[max(getattr(one, n), getattr(more, n)) for n in ("last", *FORMATS)],
        tags=one.tags + more.tags,
    )
    if one.any:
        kept = {v.snapshot.name for v in plan_retention(drawn, one, now_ns=START) if v.stays}
        assert kept <= {
            v.snapshot.name for v in plan_retention(drawn, both, now_ns=START) if v.stays
        }


def test_reasons_are_told() -> None:
    days = [Snapshot(f"d{n}", START - n * 24 * HOUR, ChunkId(bytes(32)), Sums()) for n in range(4)]
    verdicts = plan_retention(days, KeepRules(last=1, daily=2), now_ns=START)
    assert [v.reasons for v in verdicts] == [
        ("last 1 of 1", "daily 1 of 2"),
        ("daily 2 of 2",),
        (),
        (),
    ]
    assert {v.why_not for v in verdicts[2:]} == {"no rule keeps it"}


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        KeepRules(daily=-1)
