"""Names of things in the store, and where they lie."""

from __future__ import annotations

from typing import NamedTuple, NewType

from blake3 import blake3

ChunkId = NewType("ChunkId", bytes)
"""BLAKE3-256 of a chunk's bytes: 32 bytes."""

PackId = NewType("PackId", int)
"""Number of a pack; grows by one for each pack and is never used again."""

Buffer = bytes | bytearray | memoryview

ID_BYTES = 32
MAX_CHUNK = 1 << 20  # bytes
MAX_BLOCK = 4 << 20  # bytes; the blocks of remote files may be larger than other chunks


class Location(NamedTuple):
    """Where the record of a chunk lies."""

    pack: PackId
    offset: int  # bytes from the start of the pack to the record's header
    length: int  # bytes of payload as stored, without the header
    share: int = 0  # bytes of a group's record, header included, that count as this chunk's; 0: all


def chunk_id(data: Buffer) -> ChunkId:
    """Return the BLAKE3-256 of `data`.

    One thread: the library's own threads are three times slower at the size of a chunk.
    """
    return ChunkId(blake3(data, max_threads=1).digest())


def pack_name(pack: PackId) -> str:
    """Return the file name of a pack."""
    return f"{pack:010d}.pack"


def pack_number(name: str) -> PackId | None:
    """Return the number of the pack called `name`, None when it is not a pack's name."""
    stem, dot, suffix = name.partition(".")
    if dot and suffix == "pack" and len(stem) >= 10 and stem.isascii() and stem.isdigit():
        number = PackId(int(stem))
        return number if pack_name(number) == name else None
    return None
