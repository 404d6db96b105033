"""Content-defined chunking: FastCDC with two masks (normalised), through pyfastcdc.

Where a cut falls depends only on the bytes since the cut before it, at most `max_bytes` of them, so
that an insertion moves the cuts next to it and no others. `tests/blockstore/test_chunker.py` pins
the library's cuts with a vector.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pyfastcdc import FastCDC

from blockstore.ids import Buffer

ALGORITHM_FASTCDC = 1


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
