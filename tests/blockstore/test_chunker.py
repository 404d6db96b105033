"""Chunking: pinned cuts, streams, and how far an insertion reaches."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.chunker import Chunker, ChunkerParams, StreamChunker
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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 300_000), st.sampled_from([1, 7, 1000, 65536, 10**6]))
def test_stream_cuts_do_not_depend_on_the_sizes_of_writes(seed: int, size: int, most: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(size)
    stream = StreamChunker(Chunker(SMALL))
    chunks = []
    position = 0
    while position < size:
        step = rng.randint(1, most) if most > 1 or size < 5000 else 997
        chunks += list(stream.feed(data[position : position + step]))
        position += step
    chunks += list(stream.finish())
    assert b"".join(chunks) == data
    assert [len(chunk) for chunk in chunks] == Chunker(SMALL).cut(data)


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
