"""Which snapshots stay. Pure.

Snapshots of different hosts or sources do not compete. In each group, the newest snapshot of an
hour, day, week (from Monday), month or year stands for it, and as many of these as asked for stay,
newest first. A snapshot with an expiry stays until then and goes afterwards, whatever the rules
say, and takes no place of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple

from syncer.catalogue import Snapshot

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class KeepRules:
    """How many stay; nothing set: all of those without an expiry."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    tags: tuple[str, ...] = ()  # each snapshot with one of these stays

    def __post_init__(self) -> None:
        """Raise ValueError for negative numbers."""
        if min(self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly) < 0:
            raise ValueError("as many snapshots as are to be kept: 0 or more")

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        return self != KeepRules()


class Verdict(NamedTuple):
    """What becomes of one snapshot."""

    snapshot: Snapshot
    reasons: tuple[str, ...]  # why it stays; empty: it goes
    why_not: str = ""  # why it goes

    @property
    def stays(self) -> bool:
        """Whether it is kept."""
        return bool(self.reasons)


def _hour(when: datetime) -> tuple[int, ...]:
    return (when.year, when.month, when.day, when.hour)


def _day(when: datetime) -> tuple[int, ...]:
    return (when.year, when.month, when.day)


def _week(when: datetime) -> tuple[int, ...]:
    return when.isocalendar()[:2]


def _month(when: datetime) -> tuple[int, ...]:
    return (when.year, when.month)


def _year(when: datetime) -> tuple[int, ...]:
    return (when.year,)


_PERIODS: Final[tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...]] = (
    ("hourly", _hour),
    ("daily", _day),
    ("weekly", _week),
    ("monthly", _month),
    ("yearly", _year),
)


def plan_retention(
    snapshots: Iterable[Snapshot], rules: KeepRules, *, now_ns: int, zone: tzinfo = UTC
) -> list[Verdict]:
    """Say of each snapshot whether it stays, and why; newest first.

    `now_ns`: nanoseconds since 1970, for expiries. `zone`: where days begin.
    """
    known = sorted(snapshots, key=lambda each: (each.time_ns, each.name), reverse=True)
    groups: dict[tuple[str, str], list[Snapshot]] = {}
    for each in known:
        if each.expires_ns is None:
            groups.setdefault((each.host, each.source), []).append(each)
    reasons: dict[str, list[str]] = {}
    for group in groups.values():
        _keep(group, rules, zone, reasons)
    return [_verdict(each, reasons.get(each.name, []), rules, now_ns) for each in known]


def _keep(
    group: list[Snapshot], rules: KeepRules, zone: tzinfo, reasons: dict[str, list[str]]
) -> None:
    """Note why snapshots of one group, newest first, stay."""
    for number, each in enumerate(group[: rules.last], start=1):
        reasons.setdefault(each.name, []).append(f"last {number} of {rules.last}")
    for name, period_of in _PERIODS:
        wanted: int = getattr(rules, name)
        seen: set[tuple[int, ...]] = set()
        for each in group:
            if len(seen) == wanted:
                break
            period = period_of(datetime.fromtimestamp(each.time_ns // _NS, zone))
            if period not in seen:
                seen.add(period)
                reasons.setdefault(each.name, []).append(f"{name} {len(seen)} of {wanted}")
    for each in group:
        tagged = [tag for tag in rules.tags if tag in each.tags]
        reasons.setdefault(each.name, []).extend(f"tag {tag}" for tag in tagged)


def _verdict(snapshot: Snapshot, reasons: list[str], rules: KeepRules, now_ns: int) -> Verdict:
    if snapshot.expires_ns is not None:
        if snapshot.expires_ns <= now_ns:
            return Verdict(snapshot, (), "it has expired")
        return Verdict(snapshot, ("it has not expired",))
    if not rules.any:
        return Verdict(snapshot, ("there is no rule",))
    if reasons:
        return Verdict(snapshot, tuple(reasons))
    return Verdict(snapshot, (), "no rule keeps it")
