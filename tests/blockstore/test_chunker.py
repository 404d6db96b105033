"""Chunking: pinned cuts, and how far an insertion reaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.chunker import Chunker, ChunkerParams
from tests.bench.shift_resilience import INSERTED_BYTES, random_data, real_data, shared_part
from tests.blockstore.conftest import blob

PARAMS = ChunkerParams()
SMALL = ChunkerParams(256, 1024, 4096)
# fmt: off
PINNED = [
    33111, 88854, 79662, 37084, 70928, 52694, 58700, 39777, 20633, 35152, 83661, 70293, 101260,
    33871, 85462, 83731, 72863, 840,
]
# fmt: on


def test_the_librarys_cuts_are_pinned() -> None:
    """A library that cuts elsewhere would silently end deduplication against older data."""
    data = blob(20_240_501, 1 << 20)
    assert Chunker(PARAMS).cut(data) == PINNED


def test_empty_and_short_data() -> None:
    assert Chunker(PARAMS).cut(b"") == []
    assert Chunker(PARAMS).cut(b"x") == [1]


@given(st.binary(max_size=1 << 16), st.integers(1, 9))
def test_cuts_cover_the_data_within_the_limits(data: bytes, repeat: int) -> None:
    data *= repeat
    lengths = Chunker(SMALL).cut(data)
    assert sum(lengths) == len(data)
    assert all(SMALL.min_bytes <= n <= SMALL.max_bytes for n in lengths[:-1])


@pytest.mark.parametrize("make", [random_data, real_data])
@pytest.mark.parametrize("inserted", INSERTED_BYTES)
def test_shift_resilience(make, inserted: int) -> None:
    """After one insertion, all but a few chunks around it are the same (docs/benchmarks.md)."""
    data = make(16 << 20)
    shares = [shared_part(data, inserted, seed=seed) for seed in range(6)]
    # An insertion changes the chunk it falls into and, rarely, those until the cuts meet again:
    # 16 MiB hold about 240 chunks, so 1 % is two to three of them.
    assert sum(shares) / len(shares) > 0.985, shares
    assert min(shares) > 0.96, shares
