"""When a scheduled job is due. Pure: the clock and the time zone are given.

A schedule is five cron fields (minute, hour, day of month, month, day of week; in the given zone),
one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually, or `every N` with s, m, h
or d. Daylight saving is treated as in Debian's cron: a fixed time that is skipped comes right after
the gap, one that comes twice is taken the first time, and `*` in the minutes or hours goes by what
really passes.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from cronsim import CronSim, CronSimError

_NAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_EVERY: Final = re.compile(r"every ([0-9]{1,9}) ?([smhd])", re.ASCII)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_INTERVAL_S_MAX: Final = 366 * 86_400
_S: Final = 10**9  # nanoseconds


class BadSchedule(ValueError):
    """The schedule makes no sense, or is never due; the message is for the user."""


def _interval_ns(schedule: str) -> int | None:
    found = _EVERY.fullmatch(schedule)
    if found is None:
        return None
    seconds = int(found[1]) * _UNIT_S[found[2]]
    if not 1 <= seconds <= _INTERVAL_S_MAX:
        raise BadSchedule(f"{schedule!r}: an interval is from 1 s to 366 d")
    return seconds * _S


def next_due(schedule: str, after_ns: int, zone: dt.tzinfo, *, anchor_ns: int | None = None) -> int:
    """Return the first time after `after_ns` that the schedule names; nanoseconds since 1970.

    `anchor_ns`: an earlier one, from which `every` counts; None: `after_ns`. Raises BadSchedule.
    """
    schedule = " ".join(schedule.split())
    interval = _interval_ns(schedule)
    if interval is not None:
        anchor = after_ns if anchor_ns is None else anchor_ns
        return anchor + max(1, (after_ns - anchor) // interval + 1) * interval
    expression = _NAMES.get(schedule.lower(), schedule)
    if len(expression.split()) != 5:
        raise BadSchedule(
            f"{schedule!r} is no schedule: five fields as in cron (0 3 * * *), @hourly, @daily, "
            "@weekly, @monthly, @yearly, or every N s, m, h or d"
        )
    try:
        # Moved on until it lies behind: at the end of summer time a time of day comes twice, and
        # what is found from the second one may be the first.
        for due in CronSim(expression, dt.datetime.fromtimestamp(after_ns // _S, zone)):
            found = int(due.timestamp()) * _S
            if found > after_ns:
                return found
    except CronSimError as error:
        raise BadSchedule(f"{schedule!r}: {error}") from error
    except OverflowError as error:
        raise BadSchedule(f"{schedule!r} is never due before the calendar ends") from error
    raise BadSchedule(f"{schedule!r} is never due")
