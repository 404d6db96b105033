"""The pipeline for bulk data: as many identical workers as asked for, no hop per chunk.

Each worker takes the read lock to fill a pooled buffer and cut it, then hashes, looks up,
compresses and appends without it. One buffer a worker: fresh memory costs more than the read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from blockstore.chunker import Chunker
from blockstore.ids import Buffer, ChunkId

_BUFFER_BYTES = 4 << 20

Put = Callable[[Sequence[Buffer]], list[ChunkId]]


class _Source:
    """A stream, cut into buffers of whole chunks."""

    def __init__(self, stream: BinaryIO, chunker: Chunker) -> None:
        self._stream = stream
        self._chunker = chunker
        self._lock = threading.Lock()
        self._rest = b""  # read, but not cut yet
        self._turn = 0
        self._ended = False

    def fill(self, buffer: bytearray) -> tuple[int, list[int]] | None:
        """Fill `buffer`; return its turn and its chunks' lengths, None at the end."""
        with self._lock:
            if self._ended:
                return None
            size = len(self._rest)
            buffer[:size] = self._rest
            with memoryview(buffer) as view:
                while size < len(buffer):
                    got = _read_into(self._stream, view[size:])
                    if not got:
                        self._ended = True
                        break
                    size += got
                lengths = self._chunker.cut(view[:size])
                if not self._ended:
                    lengths.pop()  # it may only end here because the buffer does
                cut = sum(lengths)
                self._rest = bytes(view[cut:size])
            turn, self._turn = self._turn, self._turn + 1
            return turn, lengths

    def stop(self) -> None:
        """Let no worker begin another buffer."""
        with self._lock:
            self._ended = True


def _read_into(stream: BinaryIO, view: memoryview) -> int:
    readinto = getattr(stream, "readinto", None)
    if readinto is not None:
        return int(readinto(view) or 0)
    data = stream.read(len(view))
    view[: len(data)] = data
    return len(data)


def ingest(
    stream: BinaryIO, chunker: Chunker, put: Put, *, workers: int
) -> list[tuple[ChunkId, int]]:
    """Store a stream; return its chunks' ids and lengths in order. Raises what `put` raises."""
    source = _Source(stream, chunker)
    parts: dict[int, list[tuple[ChunkId, int]]] = {}

    def work() -> None:
        buffer = bytearray(_BUFFER_BYTES)
        try:
            while (filled := source.fill(buffer)) is not None:
                turn, lengths = filled
                chunks: list[Buffer] = []
                start = 0
                with memoryview(buffer) as view:
                    for length in lengths:
                        chunks.append(view[start : start + length])
                        start += length
                    parts[turn] = list(zip(put(chunks), lengths, strict=True))
                    chunks.clear()
        except BaseException:
            source.stop()
            raise

    with ThreadPoolExecutor(workers, thread_name_prefix="ingest") as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    return [pair for turn in sorted(parts) for pair in parts[turn]]
