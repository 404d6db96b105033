"""Which chunks share a record.

A chunk of 64 KiB compressed by itself starts with an empty window: it then takes 2 to 10 % more
room than in pieces of 256 KiB, and small files far more. So neighbours that compress are put
into one record; what does not compress keeps a record of its own, and is read without the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blockstore.codec import Codec, Encoder
from blockstore.ids import Buffer, ChunkId, chunk_id
from blockstore.packfile import (
    GROUP_CHUNKS_MAX,
    Kind,
    Member,
    RecordHeader,
    encode_members,
    payload_check,
)
from blockstore.writer import Record, chunk_record

# Who wants one chunk has to decode its group: a third of a millisecond. 1 MiB would save 2 to 4 %
# more (docs/adr/0005-groups.md).
GROUP_BYTES = 256 << 10


def records_of(chunks: Iterable[tuple[ChunkId, Buffer]], encoder: Encoder) -> Iterator[Record]:
    """Yield the records of chunks; those in groups stay in order."""
    members: list[Member] = []
    parts: list[Buffer] = []
    size = 0
    for name, chunk in chunks:
        if encoder.hopeless(chunk):
            yield chunk_record(name, len(chunk), Codec.NONE, chunk)
            continue
        members.append(Member(name, len(chunk)))
        parts.append(chunk)
        size += len(chunk)
        if size >= GROUP_BYTES or len(members) == GROUP_CHUNKS_MAX:
            yield from _records(members, parts, encoder)
            members, parts, size = [], [], 0
    if members:
        yield from _records(members, parts, encoder)


def _records(members: list[Member], parts: list[Buffer], encoder: Encoder) -> Iterator[Record]:
    """One record for all, or one for each when they would hardly shrink."""
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    codec, payload = encoder.encode(content)
    if codec is Codec.NONE or len(members) == 1:
        for (name, length), part in zip(members, parts, strict=True):
            yield chunk_record(name, length, codec, payload if len(members) == 1 else part)
        return
    table = encode_members(members)
    payload = b"".join((table, payload))
    header = RecordHeader(
        Kind.GROUP, codec, len(content), len(payload), chunk_id(table), payload_check(payload)
    )
    yield Record(header, payload)
