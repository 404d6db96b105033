"""The format of a pack, byte by byte (docs/format.md): pure functions over bytes.

A pack is a 64-byte file header and records; a sealed pack ends in a table record and a trailer.
A record holds one chunk, or a group: several chunks compressed together, which a table at the
beginning of its payload names.
Every header's CRC starts from the pack's salt (store and pack number) and covers the record's own
offset, so that a record is valid only where it was written: a pack stored as data inside another
pack, or a misdirected write, is never taken for a record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import NamedTuple

from blockstore.chunker import ChunkerParams
from blockstore.codec import Codec, DecodeError, decode
from blockstore.errors import FormatTooNew
from blockstore.ids import MAX_BLOCK, Buffer, ChunkId, Location, PackId, chunk_id

FORMAT_VERSION = 1
PACK_MAGIC = b"ORBITPK\x00"
RECORD_MAGIC = b"ORec"
TORN_MAGIC = b"Torn"  # written over the magic of a record that a crash left incomplete
TRAILER_MAGIC = b"ORBITEND"

SERIES_OWN = 0  # data that exists nowhere else
SERIES_FETCHED = 1  # blocks that can be fetched again

_PACK_HEADER = struct.Struct("<8sHH16sQIIIBB10xI")
_RECORD_HEADER = struct.Struct("<4sBBBxII32s8sII")
_ENTRY = struct.Struct("<32sIIIBB2x")
_COUNT = struct.Struct("<I")
_MEMBER = struct.Struct("<32sI")
_TRAILER = struct.Struct("<8sHHIQ4xI")
_SALT = struct.Struct("<16sQ")
_CRC = struct.Struct("<I")

HEADER_BYTES = _PACK_HEADER.size
RECORD_BYTES = _RECORD_HEADER.size
ENTRY_BYTES = _ENTRY.size
TRAILER_BYTES = _TRAILER.size
assert (HEADER_BYTES, RECORD_BYTES, ENTRY_BYTES, TRAILER_BYTES) == (64, 64, 48, 32)

PAYLOAD_MAX = MAX_BLOCK + 4096  # a payload never grows: what does not shrink is stored raw
PACK_ENTRIES_MAX = 1 << 17  # a table of 6 MiB
GROUP_CHUNKS_MAX = 64
MEMBERS_BYTES_MAX = _COUNT.size + GROUP_CHUNKS_MAX * _MEMBER.size
_WINDOW_BYTES = 4 << 20


class Kind(IntEnum):
    """What a record holds; numbers are never reused."""

    CHUNK = 1
    ROOT = 2
    TREE = 3  # reserved for directory listings of snapshots
    TABLE = 4
    GROUP = 5


class PackHeader(NamedTuple):
    """The first 64 bytes of a pack."""

    store_uuid: bytes
    pack: PackId
    series: int
    chunker: ChunkerParams


class RecordHeader(NamedTuple):
    """The 64 bytes before each payload."""

    kind: int
    codec: int
    raw_length: int  # bytes of content
    stored_length: int  # bytes of payload
    id: ChunkId
    check: bytes  # first 8 bytes of the payload's BLAKE3


class Entry(NamedTuple):
    """One chunk or root as the table lists it; the chunks of a group share a record."""

    id: ChunkId
    offset: int  # of the record
    stored_length: int  # bytes of the record's payload
    raw_length: int  # bytes of this content
    kind: int
    codec: int
    share: int = 0  # see Location

    @property
    def end(self) -> int:
        """Offset of the byte after the record."""
        return self.offset + RECORD_BYTES + self.stored_length

    @property
    def is_chunk(self) -> bool:
        """Whether this is a chunk, in a record of its own or in a group."""
        return self.kind in {Kind.CHUNK, Kind.GROUP}

    def location(self, pack: PackId) -> Location:
        """Return where the content lies."""
        return Location(pack, self.offset, self.stored_length, self.share)


class Member(NamedTuple):
    """One chunk of a group."""

    id: ChunkId
    length: int


class FormatError(Exception):
    """These bytes are not what they should be; callers turn this into a named error."""


def pack_salt(store_uuid: bytes, pack: PackId) -> int:
    """Return the start value of all CRCs in a pack."""
    return zlib.crc32(_SALT.pack(store_uuid, pack))


def encode_pack_header(header: PackHeader) -> bytes:
    """Return the 64 bytes a pack begins with."""
    p = header.chunker
    raw = _PACK_HEADER.pack(
        PACK_MAGIC, FORMAT_VERSION, header.series, header.store_uuid, header.pack,
        p.min_bytes, p.average_bytes, p.max_bytes, p.normalization, p.algorithm, 0,
    )  # fmt: skip
    return raw[:-4] + _CRC.pack(zlib.crc32(raw[:-4]))


def decode_pack_header(data: Buffer, path: str) -> PackHeader:
    """Return the header; raises FormatTooNew, FormatError. `path` is for the message."""
    if len(data) < HEADER_BYTES:
        raise FormatError("the pack is shorter than its header")
    raw = bytes(data[:HEADER_BYTES])
    magic, version, series, uuid, pack, low, average, high, level, algorithm, crc = (
        _PACK_HEADER.unpack(raw)
    )
    if magic != PACK_MAGIC:
        raise FormatError("this is not a pack")
    if version > FORMAT_VERSION:  # before the CRC: a later version may place it elsewhere
        raise FormatTooNew(path, version, FORMAT_VERSION)
    if crc != zlib.crc32(raw[:-4]):
        raise FormatError("the pack's header is damaged")
    return PackHeader(
        uuid, PackId(pack), series, ChunkerParams(low, average, high, level, algorithm)
    )


def payload_check(payload: Buffer) -> bytes:
    """Return the 8 bytes that guard a payload as stored."""
    return chunk_id(payload)[:8]


def encode_record_header(header: RecordHeader, offset: int, salt: int) -> bytes:
    """Return the 64 bytes before a payload, valid only at `offset` of the salt's pack."""
    kind, codec, raw_length, stored_length, name, check = header
    raw = _RECORD_HEADER.pack(
        RECORD_MAGIC, FORMAT_VERSION, kind, codec, raw_length, stored_length, name, check, offset, 0
    )[:-4]
    return raw + _CRC.pack(zlib.crc32(raw, salt))


def decode_record_header(data: Buffer, offset: int, salt: int) -> RecordHeader | None:
    """Return the header, or None when these bytes are no valid header at this place."""
    if len(data) < RECORD_BYTES:
        return None
    raw = bytes(data[:RECORD_BYTES])
    magic, version, kind, codec, raw_length, stored_length, name, check, own_offset, crc = (
        _RECORD_HEADER.unpack(raw)
    )
    if (
        magic != RECORD_MAGIC
        or crc != zlib.crc32(raw[:-4], salt)
        or own_offset != offset
        or version > FORMAT_VERSION
    ):
        return None
    return RecordHeader(kind, codec, raw_length, stored_length, ChunkId(name), check)


def payload_intact(header: RecordHeader, payload: Buffer) -> bool:
    """Tell whether the payload is the one that was stored, without decoding it."""
    return len(payload) == header.stored_length and payload_check(payload) == header.check


def open_payload(header: RecordHeader, payload: Buffer) -> bytes | None:
    """Return the verified content, or None when the payload is damaged."""
    if header.codec == Codec.NONE:
        # The content is what the id names; hashing it once is enough.
        whole = len(payload) == header.raw_length and chunk_id(payload) == header.id
        return bytes(payload) if whole else None
    try:
        data = decode(header.codec, payload, header.raw_length)
    except DecodeError:
        return None
    return data if chunk_id(data) == header.id else None


# ---- groups ----


def encode_members(members: Sequence[Member]) -> bytes:
    """Return the table at the beginning of a group's payload; its hash is the record's id."""
    return _COUNT.pack(len(members)) + b"".join(_MEMBER.pack(*member) for member in members)


def decode_members(header: RecordHeader, payload: Buffer) -> list[Member] | None:
    """Return the chunks of a group, given (the beginning of) its payload; None when damaged."""
    if len(payload) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(payload)
    size = _COUNT.size + count * _MEMBER.size
    if not 0 < count <= GROUP_CHUNKS_MAX or size > len(payload):
        return None
    table = memoryview(payload)[:size]
    if chunk_id(table) != header.id:
        return None
    return [
        Member(ChunkId(name), length) for name, length in _MEMBER.iter_unpack(table[_COUNT.size :])
    ]


def open_group(header: RecordHeader, payload: Buffer) -> dict[ChunkId, bytes] | None:
    """Return the verified chunks of a group, or None when any of it is damaged."""
    members = decode_members(header, payload)
    if members is None:
        return None
    frame = memoryview(payload)[_COUNT.size + len(members) * _MEMBER.size :]
    try:
        data = decode(header.codec, frame, header.raw_length)
    except DecodeError:
        return None
    chunks: dict[ChunkId, bytes] = {}
    position = 0
    for name, length in members:
        chunk = data[position : position + length]
        position += length
        if chunk_id(chunk) != name:
            return None
        chunks[name] = chunk
    return chunks if position == len(data) else None


def open_chunks(header: RecordHeader, payload: Buffer) -> dict[ChunkId, bytes] | None:
    """Return everything a record holds, by id and verified; None when it is damaged."""
    if header.kind == Kind.GROUP:
        return open_group(header, payload)
    content = open_payload(header, payload)
    return None if content is None else {header.id: content}


def record_entries(header: RecordHeader, payload: Buffer, offset: int) -> list[Entry] | None:
    """Return how a pack's table lists the record at `offset`, None when a group is damaged.

    The beginning of a group's payload is enough.
    """
    if header.kind != Kind.GROUP:
        return [
            Entry(header.id, offset, header.stored_length, header.raw_length, header.kind,
                  header.codec)
        ]  # fmt: skip
    members = decode_members(header, payload)
    if members is None:
        return None
    return _with_shares(
        [
            Entry(name, offset, header.stored_length, length, Kind.GROUP, header.codec)
            for name, length in members
        ]
    )


def _with_shares(entries: Sequence[Entry]) -> list[Entry]:
    """Divide the bytes of a record among the chunks of its group by their lengths, rounded up."""
    total = max(1, sum(entry.raw_length for entry in entries))
    size = RECORD_BYTES + entries[0].stored_length
    return [entry._replace(share=-(-size * entry.raw_length // total)) for entry in entries]


# ---- the end of a sealed pack ----


def encode_seal(entries: Sequence[Entry], offset: int, salt: int) -> bytes:
    """Return table record and trailer for a pack whose records end at `offset`."""
    table = b"".join(_ENTRY.pack(*entry[:-1]) for entry in entries)
    name = chunk_id(table)
    header = RecordHeader(Kind.TABLE, Codec.NONE, len(table), len(table), name, name[:8])
    trailer = _TRAILER.pack(TRAILER_MAGIC, FORMAT_VERSION, 0, len(entries), offset, 0)[:-4]
    return b"".join(
        (
            encode_record_header(header, offset, salt),
            table,
            trailer,
            _CRC.pack(zlib.crc32(trailer, salt)),
        )
    )


ReadAt = Callable[[int, int], bytes]
"""Reads (length, offset) of a pack; short only at its end."""


def read_seal(read: ReadAt, size: int, salt: int) -> list[Entry] | None:
    """Return the table of a sealed pack of `size` bytes, None when it is not sealed whole."""
    if size < HEADER_BYTES + RECORD_BYTES + TRAILER_BYTES:
        return None
    raw = read(TRAILER_BYTES, size - TRAILER_BYTES)
    if len(raw) != TRAILER_BYTES:
        return None
    magic, version, _, count, offset, crc = _TRAILER.unpack(raw)
    if magic != TRAILER_MAGIC or crc != zlib.crc32(raw[:-4], salt) or version > FORMAT_VERSION:
        return None
    length = count * ENTRY_BYTES
    if offset + RECORD_BYTES + length + TRAILER_BYTES != size:
        return None
    data = read(RECORD_BYTES + length, offset)
    header = decode_record_header(data, offset, salt)
    table = memoryview(data)[RECORD_BYTES:]
    if header is None or header.kind != Kind.TABLE or not payload_intact(header, table):
        return None
    entries: list[Entry] = []
    listed = (Entry(ChunkId(name), *rest) for name, *rest in _ENTRY.iter_unpack(table))
    for _, group in groupby(listed, key=lambda entry: entry.offset):
        record = list(group)
        entries += _with_shares(record) if record[0].kind == Kind.GROUP else record
    return entries


@dataclass(frozen=True, slots=True)
class Scanned:
    """One record found by scanning."""

    offset: int
    end: int
    header: RecordHeader
    entries: tuple[Entry, ...]  # none when not intact: the header is valid, the payload is not

    @property
    def intact(self) -> bool:
        """Whether its payload is, too, as far as it was looked at."""
        return bool(self.entries)


def scan(
    read: ReadAt, size: int, salt: int, *, start: int = HEADER_BYTES, verify_from: int = 0
) -> Iterator[Scanned]:
    """Yield the records of a pack in order, tables left out.

    Payloads are decoded and hashed from offset `verify_from` on, before it only the tables of
    groups. After bytes that are no record the
    scan goes on at the next valid header: what a crash tore, or what was damaged, hides nothing
    that follows it. The caller cuts the file after the last intact record.
    """
    window = _Window(read, size)
    offset = start
    while offset + RECORD_BYTES <= size:
        header = decode_record_header(window.view(offset, RECORD_BYTES), offset, salt)
        if header is None or not _plausible(header):
            offset = _next_header(window, offset + 1, size, salt)
            continue
        end = offset + RECORD_BYTES + header.stored_length
        if end > size:
            offset = _next_header(window, offset + 1, size, salt)
            continue
        if header.kind != Kind.TABLE:
            verify = offset >= verify_from
            payload: Buffer = b""
            if verify or header.kind == Kind.GROUP:
                length = header.stored_length if verify else MEMBERS_BYTES_MAX
                payload = window.view(offset + RECORD_BYTES, min(length, header.stored_length))
            entries = None
            if not verify or open_chunks(header, payload) is not None:
                entries = record_entries(header, payload, offset)
            yield Scanned(offset, end, header, tuple(entries or ()))
            if not entries:
                # The length is guarded by the CRC, but a torn write may have left newer bytes.
                offset = _next_header(window, offset + 1, size, salt)
                continue
        offset = end


def _plausible(header: RecordHeader) -> bool:
    if header.kind == Kind.TABLE:
        return header.stored_length <= PACK_ENTRIES_MAX * ENTRY_BYTES
    return header.stored_length <= PAYLOAD_MAX and header.raw_length <= PAYLOAD_MAX


def _next_header(window: _Window, offset: int, size: int, salt: int) -> int:
    """Return the offset of the next valid record header, `size` when there is none."""
    while offset + RECORD_BYTES <= size:
        block = bytes(window.view(offset, min(_WINDOW_BYTES // 2, size - offset)))
        found = block.find(RECORD_MAGIC)
        while found >= 0:
            raw = block[found : found + RECORD_BYTES]
            if len(raw) < RECORD_BYTES:  # it may go on in the next block
                break
            if decode_record_header(raw, offset + found, salt) is not None:
                return offset + found
            found = block.find(RECORD_MAGIC, found + 1)
        offset += max(1, len(block) - RECORD_BYTES + 1)
    return size


class _Window:
    """Buffered reading of a file that is mostly walked forwards."""

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._size = size
        self._start = 0
        self._data = b""

    def view(self, offset: int, length: int) -> memoryview:
        """Return the bytes at `offset`; short at the end of the file."""
        end = min(offset + length, self._size)
        if offset < self._start or end > self._start + len(self._data):
            self._data = self._read(max(_WINDOW_BYTES, length), offset)
            self._start = offset
        return memoryview(self._data)[offset - self._start : end - self._start]
