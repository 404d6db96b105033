"""Durations and sizes as people type them. Pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Return the seconds that `90`, `60s`, `5m`, `2h` or `1d` mean. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r}: write a duration like 60s, 5m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2].lower()]


def parse_bytes(text: str) -> int:
    """Return the bytes that `1M`, `128K` or `1 MiB` mean; powers of 1,024. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r}: write a size like 1M or 128K")
    return int(found[1]) * _BYTES[found[2].lower()]


def parse_moment(text: str) -> int:
    """Return the nanoseconds since 1970 of a local date or time. Raises ValueError."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: write 2026-01-31 or 2026-01-31T12:00") from error
    return int(moment.astimezone().timestamp() * 10**9)
