"""The pack format: round trips, and what is found in packs that were cut or garbled anywhere."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.chunker import ChunkerParams
from blockstore.codec import Codec, Encoder
from blockstore.errors import FormatTooNew
from blockstore.grouping import records_of
from blockstore.ids import ChunkId, PackId, chunk_id
from blockstore.packfile import (
    GROUP_CHUNKS_MAX,
    HEADER_BYTES,
    RECORD_BYTES,
    Entry,
    FormatError,
    Kind,
    PackHeader,
    RecordHeader,
    decode_pack_header,
    decode_record_header,
    encode_pack_header,
    encode_record_header,
    encode_seal,
    open_chunks,
    pack_salt,
    payload_intact,
    read_seal,
    record_entries,
    scan,
)
from blockstore.writer import chunk_record
from tests.blockstore.conftest import blob

UUID = bytes(range(16))
PACK = PackId(3)
SALT = pack_salt(UUID, PACK)
HEADER = PackHeader(UUID, PACK, 0, ChunkerParams())
CONTENTS = [b"alpha" * 20, bytes(range(256)) * 2, b"z", b"last record " * 9]
BATCHES = [CONTENTS, [blob(1, 20_000), b"one " * 9, b"two " * 9], [b"three " * 20]]


def make_pack(batches: list[list[bytes]], pack: PackId = PACK) -> tuple[bytes, list[Entry]]:
    """Return an unsealed pack and its entries; the chunks of a batch may share records."""
    encoder = Encoder("zstd", 1)
    salt = pack_salt(UUID, pack)
    data = bytearray(encode_pack_header(HEADER._replace(pack=pack)))
    entries: list[Entry] = []
    for batch in batches:
        for record in records_of([(chunk_id(content), content) for content in batch], encoder):
            entries += record_entries(record.header, record.payload, len(data)) or []
            data += encode_record_header(record.header, len(data), salt) + bytes(record.payload)
    return bytes(data), entries


def reader(data: bytes):
    return lambda length, offset: data[offset : offset + length]


def found(data: bytes, salt: int = SALT) -> list[Entry]:
    return [entry for item in scan(reader(data), len(data), salt) for entry in item.entries]


uints = st.integers(0, 2**32 - 1)
headers = st.builds(
    RecordHeader,
    st.sampled_from(Kind),
    st.integers(0, 255),
    uints,
    uints,
    st.binary(min_size=32, max_size=32).map(ChunkId),
    st.binary(min_size=8, max_size=8),
)


@given(headers, uints, uints)
def test_record_header_round_trip(header: RecordHeader, offset: int, salt: int) -> None:
    raw = encode_record_header(header, offset, salt)
    assert len(raw) == RECORD_BYTES
    assert decode_record_header(raw, offset, salt) == header


@given(headers, st.integers(0, RECORD_BYTES * 8 - 1))
def test_record_header_is_valid_only_whole_and_in_its_place(header: RecordHeader, bit: int) -> None:
    raw = bytearray(encode_record_header(header, 4096, SALT))
    assert decode_record_header(raw, 4097, SALT) is None
    assert decode_record_header(raw, 4096, SALT ^ 1) is None
    raw[bit // 8] ^= 1 << bit % 8
    assert decode_record_header(raw, 4096, SALT) is None


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**63),
    st.builds(ChunkerParams, uints, uints, uints, st.integers(0, 3), st.integers(0, 255)),
)
def test_pack_header_round_trip(uuid: bytes, number: int, chunker: ChunkerParams) -> None:
    header = PackHeader(uuid, PackId(number), 1, chunker)
    raw = encode_pack_header(header)
    assert len(raw) == HEADER_BYTES
    assert decode_pack_header(raw, "x") == header


def test_every_flipped_byte_of_a_pack_header_is_seen() -> None:
    raw = encode_pack_header(HEADER)
    for position in range(HEADER_BYTES):
        bad = bytearray(raw)
        bad[position] ^= 0x40
        with pytest.raises((FormatError, FormatTooNew)):
            decode_pack_header(bad, "x")


def test_newer_pack_is_refused_with_file_and_versions() -> None:
    raw = bytearray(encode_pack_header(HEADER))
    raw[8] = 9
    with pytest.raises(FormatTooNew, match=r"some/000\.pack has format version 9.*knows 1"):
        decode_pack_header(raw, "some/000.pack")


def test_the_format_on_disk_does_not_drift() -> None:
    """The exact bytes of a record and a pack header, as docs/format.md describes them."""
    header = RecordHeader(Kind.CHUNK, Codec.NONE, 3, 3, chunk_id(b"abc"), chunk_id(b"abc")[:8])
    assert (
        encode_record_header(header, 64, SALT).hex()
        == (
            "4f52656301010000"
            "0300000003000000"
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
            "6437b3ac38465133"
            "40000000"
        )
        + encode_record_header(header, 64, SALT)[-4:].hex()
    )
    assert encode_pack_header(HEADER)[:-4].hex() == (
        "4f52424954504b00"
        "01000000"
        "000102030405060708090a0b0c0d0e0f"
        "0300000000000000"
        "002000000000010000000400"
        "0201"
        "00000000000000000000"
    )


chunks = st.binary(min_size=1, max_size=400) | st.binary(min_size=1, max_size=9).map(
    lambda part: part * 40
)


@given(st.lists(st.lists(chunks, max_size=8, unique=True), max_size=4))
def test_scan_finds_what_was_written(batches: list[list[bytes]]) -> None:
    data, entries = make_pack(batches)
    assert found(data) == entries
    unread = scan(reader(data), len(data), SALT, verify_from=len(data))
    assert [entry for item in unread for entry in item.entries] == entries
    contents: list[bytes] = []
    for item in scan(reader(data), len(data), SALT):
        payload = data[item.offset + RECORD_BYTES : item.end]
        assert payload_intact(item.header, payload)
        opened = open_chunks(item.header, payload)
        assert opened is not None
        contents += opened.values()
    assert sorted(contents) == sorted(content for batch in batches for content in batch)


@given(st.lists(chunks, min_size=2, max_size=90, unique=True))
def test_the_shares_of_a_group_add_up_to_its_record(contents: list[bytes]) -> None:
    _, entries = make_pack([contents])
    for _, group in groupby(entries, key=lambda entry: entry.offset):
        record = list(group)
        size = record[0].end - record[0].offset
        if record[0].kind == Kind.GROUP:
            assert 2 <= len(record) <= GROUP_CHUNKS_MAX
            assert size <= sum(entry.share for entry in record) < size + len(record)
        else:
            assert [entry.share for entry in record] == [0]


def test_truncated_at_every_byte_keeps_all_whole_records() -> None:
    data, entries = make_pack(BATCHES)
    for size in range(HEADER_BYTES, len(data) + 1):
        assert found(data[:size]) == [entry for entry in entries if entry.end <= size]


def test_garbled_at_every_byte_loses_only_that_record() -> None:
    data, entries = make_pack(BATCHES)
    for position in range(HEADER_BYTES, len(data)):
        bad = bytearray(data)
        bad[position] ^= 0xFF
        expected = [entry for entry in entries if not entry.offset <= position < entry.end]
        assert found(bytes(bad)) == expected, position


def test_records_of_a_pack_stored_as_data_are_not_records() -> None:
    inner, _ = make_pack([[b"inner one" * 30], [b"inner two"]], PackId(7))
    shifted, _ = make_pack([[b"inner one" * 30]])  # of this very pack, but elsewhere in it
    for nested in (inner, shifted):
        record = chunk_record(chunk_id(nested), len(nested), Codec.NONE, nested)
        data = bytearray(encode_pack_header(HEADER))
        data += encode_record_header(record.header, HEADER_BYTES, SALT) + nested
        data[HEADER_BYTES] ^= 1  # the outer record's header is damaged
        assert found(bytes(data)) == []


def test_seal_round_trip_and_every_flipped_byte() -> None:
    data, entries = make_pack(BATCHES)
    seal = encode_seal(entries, len(data), SALT)
    sealed = data + seal
    assert read_seal(reader(sealed), len(sealed), SALT) == entries
    assert found(sealed) == entries
    for position in range(len(data), len(sealed)):
        bad = bytearray(sealed)
        bad[position] ^= 0x01
        assert read_seal(reader(bytes(bad)), len(bad), SALT) is None, position
    for size in range(len(sealed)):
        assert read_seal(reader(sealed[:size]), size, SALT) is None


@given(st.binary(max_size=3000))
def test_scanning_anything_ends(data: bytes) -> None:
    assert found(b"\0" * HEADER_BYTES + data) == []
