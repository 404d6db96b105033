"""The chunk index at growing sizes: inserts, bytes written for each, lookups, memory.

    python -m tests.bench.index_scale [FOLDER] [ROWS...]

FOLDER is where the database is made (default: a temporary folder). Bytes written are what the
process made the kernel write to the disk (`write_bytes` of /proc/self/io): WAL, database, merges.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from blockstore.ids import ChunkId, Location, PackId
from blockstore.index import Index, PackRow, PackState
from blockstore.runs import LEVEL0_ROWS

_LOOKUPS = 20_000
_PACK_ROWS = 1000


def written_bytes() -> int:
    """Return the bytes this process has caused to be written."""
    fields = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines()
    )
    return int(fields["write_bytes"])


def resident_mib() -> float:
    """Return the resident memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


class Growing:
    """An index that grows in batches, as the writer feeds it."""

    def __init__(self, folder: Path) -> None:
        self.index = Index.create(folder / "chunks.db", None, bytes(16))
        self.rng = random.Random(1)
        self.rows = 0
        self.sample: list[ChunkId] = []
        self.longest_add_s = 0.0

    def grow(self, rows: int) -> None:
        """Add batches until there are `rows`."""
        while self.rows < rows:
            count = min(LEVEL0_ROWS, rows - self.rows)
            raw = self.rng.randbytes(32 * count)
            batch = {}
            packs = []
            for number in range(count):
                pack = PackId(1 + (self.rows + number) // _PACK_ROWS)
                if not packs or packs[-1].number != pack:
                    packs.append(PackRow(pack, 64 << 20, _PACK_ROWS, PackState.SEALED))
                name = ChunkId(raw[32 * number : 32 * number + 32])
                batch[name] = Location(pack, number % _PACK_ROWS * 65536, 60000)
            # As many distinct ids at each size as are looked up: fewer would stay in the cache.
            self.sample += self.rng.sample(list(batch), min(count, 640))
            started = time.perf_counter()
            self.index.add(batch, packs)
            self.longest_add_s = max(self.longest_add_s, time.perf_counter() - started)
            self.index.merge()
            self.rows += count

    def lookups_per_s(self, *, known: bool) -> float:
        """Return the rate of lookups in groups of 64, as put() makes them."""
        ids = [ChunkId(os.urandom(32)) for _ in range(_LOOKUPS)]
        if known:
            ids = self.rng.choices(self.sample, k=_LOOKUPS)
        started = time.perf_counter()
        found = sum(
            len(self.index.lookup(ids[start : start + 64])) for start in range(0, len(ids), 64)
        )
        elapsed = time.perf_counter() - started
        assert (found > 0) == known
        return _LOOKUPS / elapsed


def main() -> None:
    """Print one row a size."""
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as folder:
        growing = Growing(Path(folder))
        print(
            "| chunks | inserts/s | bytes written per insert | known lookups/s | new lookups/s "
            "| runs | chunks.db MiB | resident MiB | reopening s |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for rows in [int(float(text)) for text in arguments[1:]] or [100_000, 1_000_000]:
            before, before_rows = written_bytes(), growing.rows
            started = time.perf_counter()
            growing.grow(rows)
            elapsed = time.perf_counter() - started
            written = written_bytes() - before
            known = growing.lookups_per_s(known=True)
            new = growing.lookups_per_s(known=False)
            resident = resident_mib()
            growing.index.close()
            path = Path(folder) / "chunks.db"
            started = time.perf_counter()
            growing.index = Index.load(path, None, bytes(16))
            reopening = time.perf_counter() - started
            added = rows - before_rows
            print(
                f"| {rows:,} | {added / elapsed:,.0f} | {written / added:,.0f} | {known:,.0f} "
                f"| {new:,.0f} | {growing.index.run_count} | {path.stat().st_size >> 20} "
                f"| {resident:.0f} | {reopening:.3f} |",
                flush=True,
            )
        growing.index.close()


if __name__ == "__main__":
    main()
