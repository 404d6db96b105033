"""How fast a job may go: rates and timetables (pure), and the bucket that everybody takes from.

A timetable is a list of entries with commas between them, `[DAYS] [HH:MM-HH:MM] RATE [on metered]`:

    50M                                  always 50 MiB a second
    08:00-18:00 5M, 2M on metered        slow in working hours, and slower still on a dear line
    Mon-Fri 08:00-18:00 5M, 20M          the first entry that fits decides
    Sat/Sun off, 10M                     off: as fast as it goes

Entries `on metered` hold besides the others: the slower one of the two counts. Where no entry fits
there is no limit. Times are those of the machine's clock on the wall.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import trio

from syncer.remotes.errors import RemoteError

_BURST_S: Final = 0.25  # seconds' worth that can be saved up, and is taken at once at most
_LOOK_EVERY_S: Final = 15.0  # at the timetable and the line

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
_RATE = re.compile(
    r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)(i?b|bits?|bps|)(?:/s)?", re.IGNORECASE | re.ASCII
)
_UNITS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SPAN = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)", re.ASCII)


class BadRate(RemoteError):
    """The rate or timetable makes no sense; the message says what would."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a timetable."""

    rate: float | None  # bytes a second; None: no limit
    days: frozenset[int] = frozenset(range(7))  # on which it begins; Monday is 0
    begin: int = 0  # minutes since midnight
    end: int = _DAY_MINUTES  # not itself in it; not after `begin`: on the next day
    metered: bool = False  # holds on metered lines only, besides the others

    def fits(self, day: int, minute: int) -> bool:
        """Whether it holds at this minute of this day."""
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        # Over midnight: it belongs to the day on which it begins.
        return (minute >= self.begin and day in self.days) or (
            minute < self.end and (day - 1) % 7 in self.days
        )


@dataclass(frozen=True, slots=True)
class Timetable:
    """Rates by time and line."""

    entries: tuple[Entry, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the rate never changes."""
        always = Entry(None)
        return all(
            (entry.days, entry.begin, entry.end, entry.metered)
            == (always.days, always.begin, always.end, always.metered)
            for entry in self.entries
        )

    @property
    def asks_metered(self) -> bool:
        """Whether it matters what the line costs."""
        return any(entry.metered for entry in self.entries)


def parse_rate(text: str) -> float | None:
    """Return bytes a second; None for `off`. Raises BadRate.

    `50M` and `50 MiB/s` are 50 MiB; `400Mbit` is 400,000,000 bits.
    """
    text = text.strip()
    if text.lower() in {"off", "unlimited"}:
        return None
    found = _RATE.fullmatch(text)
    if found is None:
        raise BadRate(f"{text!r} is no rate: write 5M (MiB a second), 400Mbit, or off")
    power, unit = _UNITS[found[2].lower()], found[3].lower()
    bits = unit in {"bit", "bits", "bps"}
    rate = float(found[1]) * (1000.0**power / 8 if bits else 1024.0**power)
    if rate < 1:
        raise BadRate(f"{text!r} moves nothing: write off for no limit, or pause the job")
    return rate


def _days(word: str) -> frozenset[int] | None:
    """Days of the week; None: the word is something else."""
    found: set[int] = set()
    for part in word.lower().split("/"):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            return None
        begin = _DAYS.index(first)
        count = (_DAYS.index(last) - begin) % 7 + 1 if dash else 1
        found.update((begin + number) % 7 for number in range(count))
    return frozenset(found)


def _entry(text: str) -> Entry:
    words = text.split()
    metered = [word.lower() for word in words[-2:]] == ["on", "metered"]
    if metered:
        words = words[:-2]
    days, begin, end = frozenset(range(7)), 0, _DAY_MINUTES
    if words and (found := _days(words[0])) is not None:
        days = found
        words = words[1:]
    if words and (span := _SPAN.fullmatch(words[0])):
        begin, end = int(span[1]) * 60 + int(span[2]), int(span[3]) * 60 + int(span[4])
        if begin >= _DAY_MINUTES or end > _DAY_MINUTES or max(span[2], span[4]) > "59":
            raise BadRate(f"{span[0]!r} is no span of a day: write 08:00-18:00")
        words = words[1:]
    if not words:
        raise BadRate(f"{text.strip()!r}: a rate is missing, as in `08:00-18:00 5M`")
    return Entry(parse_rate(" ".join(words)), days, begin, end, metered)


def parse_timetable(text: str) -> Timetable:
    """Read a rate or timetable; "" and `off` are no limit. Raises BadRate."""
    if not text.strip():
        return Timetable()
    return Timetable(tuple(_entry(part) for part in text.split(",")))


def rate_at(timetable: Timetable, moment: datetime, *, metered: bool = False) -> float | None:
    """Return the bytes a second that hold at a moment of the wall clock; None: no limit."""
    day, minute = moment.weekday(), moment.hour * 60 + moment.minute
    rates = []
    for kind in (False, True) if metered else (False,):
        for entry in timetable.entries:
            if entry.metered is kind and entry.fits(day, minute):
                rates.append(entry.rate)
                break
    return min((rate for rate in rates if rate is not None), default=None)


class Bandwidth:
    """A token bucket: bytes that may be moved. One for each job, below the daemon's.

    In any stretch of t seconds at most `rate * (t + 0.25)` bytes go. Who asks for many gets them
    in slices, in turn with the others. The rate can be changed at any time, also for those who
    wait.
    """

    def __init__(self, rate: float | None = None, parent: Bandwidth | None = None) -> None:
        """`rate`: bytes a second; None: no limit of its own."""
        self._rate = rate
        self._parent = parent
        self._turn = trio.Lock()  # first come, first served
        self._changed = trio.Event()
        # When it was made nothing was saved up: short jobs keep to the rate, too.
        self._level = 0.0
        self._at: float | None = None

    @property
    def rate(self) -> float | None:
        """Bytes a second; None: no limit of its own."""
        return self._rate

    @property
    def limited(self) -> bool:
        """Whether anybody ever waits, here or above."""
        return self._rate is not None or (self._parent is not None and self._parent.limited)

    def set_rate(self, rate: float | None) -> None:
        """Change the rate from now on."""
        if rate == self._rate:
            return
        self._refill()
        self._rate = rate
        self._level = min(self._level, self._burst)
        self._changed.set()
        self._changed = trio.Event()

    @property
    def _burst(self) -> float:
        return max(1.0, (self._rate or 0.0) * _BURST_S)

    def _refill(self) -> None:
        now = trio.current_time()
        if self._rate is not None and self._at is not None:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now

    async def _saved_up(self, count: int) -> int:
        """Wait for a slice of `count` bytes, and return how large it may be."""
        while True:
            self._refill()
            if self._rate is None:
                return count
            piece = min(count, max(1, int(self._burst)))
            if self._level >= piece - 1e-6:  # the clock's rounding
                return piece
            with trio.move_on_after((piece - self._level) / self._rate):
                await self._changed.wait()

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may be moved. Cancelled: what it waited for is not used up."""
        await trio.lowlevel.checkpoint()
        while count > 0 and self.limited:
            async with self._turn:
                piece = await self._saved_up(count)
                if self._parent is not None:
                    await self._parent.take(piece)
                # Only now, so that what waits above is not counted as moved.
                self._refill()
                if self._rate is not None:
                    self._level -= piece
            count -= piece


def _wall_clock() -> datetime:
    return datetime.now().astimezone()


async def follow(
    bandwidth: Bandwidth,
    timetable: Callable[[], Timetable],
    *,
    metered: Callable[[], Awaitable[bool]],
    clock: Callable[[], datetime] = _wall_clock,
) -> None:
    """Keep a bucket at what its timetable says, until cancelled. `timetable` may change."""
    while True:
        table = timetable()
        on_metered = await metered() if table.asks_metered else False
        bandwidth.set_rate(rate_at(table, clock(), metered=on_metered))
        await trio.sleep(_LOOK_EVERY_S)
