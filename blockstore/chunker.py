"""Content-defined chunking: FastCDC with two masks (normalised), through pyfastcdc.

Where a cut falls depends only on the bytes since the cut before it, at most `max_bytes` of them, so
that an insertion moves the cuts next to it and no others. `tests/blockstore/test_chunker.py` pins
the library's cuts with a vector.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from pyfastcdc import FastCDC

from blockstore.ids import Buffer

ALGORITHM_FASTCDC = 1

# The uncut rest (up to max_bytes) is scanned again with the next batch; 16 times its size keeps the
# double work near 2 % (the rest is 36 KiB on average) and memory at 4 MiB.
_BATCH_PER_MAX = 16


@dataclass(frozen=True, slots=True)
class ChunkerParams:
    """Parameters of the cut, fixed for the life of a store. Sizes in bytes."""

    min_bytes: int = 8 << 10
    average_bytes: int = 64 << 10
    max_bytes: int = 256 << 10
    normalization: int = 2  # stores 5 to 7 % less than level 1
    algorithm: int = ALGORITHM_FASTCDC


class Chunker:
    """Cuts buffers; safe to use from several threads."""

    def __init__(self, params: ChunkerParams) -> None:
        self.params = params
        self._local = threading.local()  # a FastCDC object must not be used concurrently

    def cut(self, data: Buffer) -> list[int]:
        """Return the lengths of all chunks of `data`, in bytes.

        The last one may end only because the data does.
        """
        cdc = getattr(self._local, "cdc", None)
        if cdc is None:
            p = self.params
            cdc = self._local.cdc = FastCDC(
                p.average_bytes,
                min_size=p.min_bytes,
                max_size=p.max_bytes,
                normalized_chunking=p.normalization,  # type: ignore[arg-type]
            )
        return [chunk.length for chunk in cdc.cut_buf(data)] if len(data) else []


class StreamChunker:
    """Cuts a stream; the chunks do not depend on the sizes in which its bytes arrive."""

    def __init__(self, chunker: Chunker) -> None:
        self._chunker = chunker
        self._batch_bytes = chunker.params.max_bytes * _BATCH_PER_MAX
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> Iterator[bytes]:
        """Take the next bytes and yield the chunks that are certain by now.

        Work is done only while the result is iterated.
        """
        view = memoryview(data)
        while view:
            room = self._batch_bytes - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == self._batch_bytes:
                yield from self._take(self._chunker.cut(self._buffer)[:-1])

    def finish(self) -> Iterator[bytes]:
        """Yield what is left, the end of the data being the last cut."""
        yield from self._take(self._chunker.cut(self._buffer))

    def _take(self, lengths: list[int]) -> list[bytes]:
        chunks = []
        start = 0
        with memoryview(self._buffer) as view:
            for length in lengths:
                chunks.append(bytes(view[start : start + length]))
                start += length
        del self._buffer[:start]
        return chunks
