"""Codecs: round trips, raw storage of what does not shrink, hostile payloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.codec import Codec, DecodeError, Encoder, decode
from tests.blockstore.conftest import blob

compressions = st.sampled_from(["zstd", "lz4", "none"])
TEXT = b"".join(b"line %d of a text that compresses\n" % i for i in range(3000))


@given(compressions, st.one_of(st.binary(min_size=1), st.binary(min_size=1).map(lambda b: b * 99)))
def test_round_trip(compression, data: bytes) -> None:
    codec, payload = Encoder(compression, 1).encode(data)
    assert len(payload) <= len(data)
    assert decode(codec, payload, len(data)) == data


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("length", [1000, 4096, 16 << 10, 64 << 10, 256 << 10])
def test_what_does_not_shrink_is_stored_as_it_is(compression, length: int) -> None:
    data = blob(length, length)
    codec, payload = Encoder(compression, 1).encode(data)
    assert codec is Codec.NONE
    assert payload is data


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_text_shrinks(compression) -> None:
    codec, payload = Encoder(compression, 1).encode(TEXT)
    assert codec is Codec[compression.upper()]
    assert len(payload) < len(TEXT) / 2


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_a_compressible_third_is_not_overlooked(compression, where: str) -> None:
    parts = {name: blob(i, 40_000) for i, name in enumerate(("start", "middle", "end"))}
    parts[where] = TEXT[:40_000]
    codec, payload = Encoder(compression, 1).encode(b"".join(parts.values()))
    assert codec is Codec[compression.upper()]
    assert len(payload) < 0.8 * 120_000


@given(st.integers(0, 5), st.binary(max_size=300), st.integers(0, 4000))
def test_hostile_payloads_raise_only_decode_errors(codec: int, payload: bytes, size: int) -> None:
    try:
        data = decode(codec, payload, size)
    except DecodeError:
        return
    assert len(data) == size


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_bomb_does_not_decode(compression) -> None:
    codec, payload = Encoder(compression, 1).encode(bytes(64 << 20))
    with pytest.raises(DecodeError):
        decode(codec, payload, 1 << 20)
