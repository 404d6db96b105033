"""Sizes and durations as people type them in filters and limits. Pure."""

from __future__ import annotations

import re
from typing import Final

_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SECONDS: Final = {
    "": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 31_557_600,
}  # fmt: skip
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*([smhdwy]?)\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that `1G`, `1.5M` or `10 KiB` mean; powers of 1,024. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size: write 512, 10K, 1.5M or 2G")
    return int(float(found[1]) * _BYTES[found[2].lower()])


def parse_duration(text: str) -> float:
    """Return the seconds that `90`, `60s`, `5m`, `1d12h`, `2w` or `1y` mean. Raises ValueError."""
    text = text.strip()
    seconds, at = 0.0, 0
    while at < len(text):
        found = _PART.match(text, at)
        # Several parts need their units: `1 2` is a slip.
        if found is None or (not found[2] and found.end() - found.start() < len(text)):
            at = -1
            break
        seconds += float(found[1]) * _SECONDS[found[2].lower()]
        at = found.end()
    if at <= 0:
        raise ValueError(f"{text!r} is no duration: write 90s, 5m, 12h, 30d, 2w or 1d12h")
    return seconds


def format_bytes(count: int) -> str:
    """Return `1.5 GiB` and the like, for sentences."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"
