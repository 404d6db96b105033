"""How much of the data stays the same chunks after bytes are inserted at a random place.

Run as a script it prints the table for docs/benchmarks.md:

    python -m tests.bench.shift_resilience
"""

from __future__ import annotations

import random
import sysconfig
from functools import lru_cache
from pathlib import Path

from blockstore.chunker import Chunker, ChunkerParams
from blockstore.ids import chunk_id

INSERTED_BYTES = (1, 1000, 4096, 65536)
_CHUNKER = Chunker(ChunkerParams())


@lru_cache(maxsize=2)
def random_data(size: int) -> bytes:
    """Return incompressible bytes, the same each time."""
    return random.Random(size).randbytes(size)


@lru_cache(maxsize=2)
def real_data(size: int) -> bytes:
    """Return the sources of Python's standard library, one after the other."""
    parts = []
    length = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        parts.append(path.read_bytes())
        length += len(parts[-1])
        if length >= size:
            break
    return b"".join(parts)[:size]


def chunks_of(data: bytes) -> dict[bytes, int]:
    """Return id → length of all chunks."""
    found = {}
    start = 0
    for length in _CHUNKER.cut(data):
        found[chunk_id(data[start : start + length])] = length
        start += length
    return found


@lru_cache(maxsize=4)
def _chunks_before(data: bytes) -> dict[bytes, int]:
    return chunks_of(data)


def shared_part(data: bytes, inserted: int, *, seed: int, places: int = 1) -> float:
    """Return the part of the changed data's bytes that lie in chunks known before.

    The inserted bytes themselves are new and not counted.
    """
    rng = random.Random(seed)
    before = _chunks_before(data)
    after = data
    for _ in range(places):
        where = rng.randrange(len(after))
        after = after[:where] + rng.randbytes(inserted) + after[where:]
    known = sum(length for name, length in chunks_of(after).items() if name in before)
    return known / sum(before.values())


def main() -> None:
    """Print the table."""
    print("| data | inserted | places | bytes in known chunks, mean | worst of 20 |")
    print("|---|---|---|---|---|")
    sources = (("random", random_data(64 << 20)), ("stdlib sources", real_data(64 << 20)))
    for label, data in sources:
        for places in (1, 8):
            for inserted in INSERTED_BYTES:
                shares = [
                    shared_part(data, inserted, seed=seed, places=places) for seed in range(20)
                ]
                print(
                    f"| {label} ({len(data) >> 20} MiB) | {inserted} B | {places} "
                    f"| {sum(shares) / len(shares):.2%} | {min(shares):.2%} |"
                )


if __name__ == "__main__":
    main()
