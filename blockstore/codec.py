"""How bytes are packed: zstd, lz4 or as they are, chosen for each record."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Literal, NamedTuple

import lz4.block
import zstandard

from blockstore.ids import Buffer

CompressionName = Literal["zstd", "lz4", "none"]

KEEP_RAW_ABOVE = 0.97  # what saves less than 3 % is not worth decoding
_SAMPLE_BYTES = 4096
_SAMPLE_FROM_BYTES = 16 << 10  # below this, compressing costs no more than the test


class Codec(IntEnum):
    """Codec numbers of the format; never reused."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2


class Encoded(NamedTuple):
    """Content as it will be stored."""

    codec: Codec
    payload: Buffer


class DecodeError(Exception):
    """The payload is not what its header says; readers turn this into ChunkDamaged."""


class Encoder:
    """Encodes chunks; safe to use from several threads (each has a compressor of its own)."""

    def __init__(self, compression: CompressionName, level: int) -> None:
        self.codec = Codec[compression.upper()]
        self._level = level
        self._local = threading.local()

    def hopeless(self, chunk: Buffer) -> bool:
        """Tell cheaply that encode() would not shrink a chunk; small ones are not worth asking.

        Three samples (start, middle, end) all fail to shrink.
        """
        if self.codec is Codec.NONE:
            return True
        if len(chunk) < _SAMPLE_FROM_BYTES:
            return False
        view = memoryview(chunk)
        last = len(view) - _SAMPLE_BYTES
        return all(
            len(self._compress(view[start : start + _SAMPLE_BYTES]))
            > _SAMPLE_BYTES * KEEP_RAW_ABOVE
            for start in (last // 2, 0, last)
        )

    def encode(self, data: Buffer) -> Encoded:
        """Return `data` encoded, or the very same buffer when it would hardly shrink."""
        if self.codec is Codec.NONE:
            return Encoded(Codec.NONE, data)
        payload = self._compress(data)
        if len(payload) > len(data) * KEEP_RAW_ABOVE:
            return Encoded(Codec.NONE, data)
        return Encoded(self.codec, payload)

    def _compress(self, data: Buffer) -> bytes:
        if self.codec is Codec.LZ4:
            packed: bytes = lz4.block.compress(data, store_size=False)
            return packed
        compressor = getattr(self._local, "zstd", None)
        if compressor is None:
            compressor = self._local.zstd = zstandard.ZstdCompressor(level=self._level)
        result: bytes = compressor.compress(data)
        return result


_decoders = threading.local()


def decode(codec: int, payload: Buffer, raw_length: int) -> bytes:
    """Return the chunk's bytes; `raw_length` is what the record's header promises.

    Raises DecodeError, never anything else, whatever the payload holds; never allocates more than
    `raw_length` allows.
    """
    try:
        if codec == Codec.NONE:
            data = bytes(payload)
        elif codec == Codec.ZSTD:
            decoder = getattr(_decoders, "zstd", None)
            if decoder is None:
                decoder = _decoders.zstd = zstandard.ZstdDecompressor()
            if zstandard.frame_content_size(payload) != raw_length:
                raise DecodeError("the zstd frame has another length than its record")
            data = decoder.decompress(payload, max_output_size=raw_length)
        elif codec == Codec.LZ4:
            data = lz4.block.decompress(payload, uncompressed_size=raw_length)
        else:
            raise DecodeError(f"unknown codec {codec}")
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as error:
        raise DecodeError(str(error)) from error
    if len(data) != raw_length:
        raise DecodeError("the decoded length is not the one in the record")
    return data
