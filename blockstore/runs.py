"""The index's runs: their Bloom filters, and which of them to merge (pure).

A B-tree under random keys writes a whole page for nearly every row (measured: docs/blockstore.md).
So rows are gathered in memory, written once as a sorted run, and runs of like size are merged: each
row is written about once a level, always in sequence. A filter for each run tells which runs can
hold an id at all.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

FILTER_BITS_PER_KEY = 12  # measured false positives: 1.1 %
MERGE_AT = 4  # runs of one level
LEVEL0_ROWS = 32_768

# The bit each byte value stands for; four bytes of an id choose up to four bits of one word.
_BIT = tuple(1 << (value & 63) for value in range(256))


class Probe(NamedTuple):
    """What a filter needs to know of an id."""

    hash: int
    mask: int


def probe(key: bytes) -> Probe:
    """Return the probe of an id; ids are hashes already, so their bytes are used as they are."""
    return Probe(
        int.from_bytes(key[:8], "little"),
        _BIT[key[8]] | _BIT[key[9]] | _BIT[key[10]] | _BIT[key[11]],
    )


class Filter:
    """A Bloom filter with all bits of a key in one 64-bit word: one look tells."""

    def __init__(self, words: array[int]) -> None:
        self.words = words
        self.count = len(words)

    @classmethod
    def sized(cls, rows: int) -> Filter:
        """Return an empty filter for `rows` ids."""
        return cls(array("Q", bytes(8 * max(1, -(-rows * FILTER_BITS_PER_KEY // 64)))))

    @classmethod
    def load(cls, blob: bytes) -> Filter:
        """Return the filter stored as `blob`."""
        words = array("Q", blob)
        if sys.byteorder == "big":
            words.byteswap()
        return cls(words)

    def dump(self) -> bytes:
        """Return the words, little-endian."""
        words = self.words
        if sys.byteorder == "big":
            words = array("Q", words)
            words.byteswap()
        return words.tobytes()

    def add(self, keys: Iterable[bytes]) -> None:
        """Take ids in."""
        words, count = self.words, self.count
        for key in keys:
            hashed, mask = probe(key)
            words[hashed % count] |= mask


@dataclass(frozen=True, slots=True)
class Run:
    """One sorted run."""

    number: int
    newest: int
    rows: int
    filter: Filter

    @property
    def table(self) -> str:
        """Name of the run's table."""
        return f"run_{self.number}"


def level(rows: int) -> int:
    """Return the level of a run: each level is MERGE_AT times as large as the one below."""
    found = 0
    while rows > LEVEL0_ROWS:
        rows //= MERGE_AT
        found += 1
    return found


def plan_merge(rows: Sequence[int]) -> slice | None:
    """Choose neighbouring runs to merge, given their sizes from newest to oldest.

    Returns the newest MERGE_AT or more neighbours that are all on one level or below it, or None.
    """
    start = 0
    while start < len(rows):
        top = level(rows[start])
        end = start
        # A smaller run between larger ones is swept along: age order allows neighbours only.
        while end < len(rows) and level(rows[end]) <= top:
            end += 1
        if end - start >= MERGE_AT:
            return slice(start, end)
        start = end
    return None
