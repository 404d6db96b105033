"""The index of the fetched series, `fetched.db`: runs and packs as in `chunks.db`, and voids.

It is a file of its own, so that nothing which asks the index of own data ever hears of a block that
may be evicted: deduplication, collection, checks. Its rows promise nothing. They may name blocks
that a power cut has taken or packs that are gone: such blocks are fetched again.

A *void* is a record that does not count any more although its pack is still there. Rows of runs
are never changed, so voids are kept beside them: sorted offsets, four bytes each, in memory too.
Packs of which half is void are rewritten, which bounds them.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from blockstore.disk import Disk
from blockstore.ids import ChunkId, Location, PackId
from blockstore.index import Index

_NONE: array[int] = array("I")


class FetchedIndex(Index):
    """The open index of the fetched series."""

    SCHEMAS: ClassVar[tuple[str, ...]] = ("schema.sql", "fetched.sql")

    def __init__(self, path: Path, disk: Disk | None) -> None:
        super().__init__(path, disk)
        self._voids: dict[PackId, array[int]] = {}  # the arrays are never changed, but replaced

    def _load(self, store_uuid: bytes) -> None:
        super()._load(store_uuid)
        found: list[Any] = self._writer.execute("SELECT pack, offsets FROM voids").fetchall()
        self._voids = {PackId(pack): _loaded(blob) for pack, blob in found}

    def next_pack(self) -> PackId:
        """See Index; voids of a lost pack must not meet another pack of its number either."""
        return PackId(max(super().next_pack(), max(self._voids, default=0) + 1))

    def locate(self, ids: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Return where resident blocks should lie."""
        return {name: at for name, at in self.lookup(ids).items() if not self.is_void(at)}

    def is_void(self, place: Location) -> bool:
        """Whether a record does not count any more."""
        offsets = self._voids.get(place.pack)
        if offsets is None:
            return False
        at = bisect_left(offsets, place.offset)
        return at < len(offsets) and offsets[at] == place.offset

    def void_counts(self) -> dict[PackId, int]:
        """Return how many records are void in each pack that has any."""
        return {pack: len(offsets) for pack, offsets in self._voids.copy().items()}

    def void(self, places: Iterable[Location]) -> int:
        """Let records count no more; return how many of them did before.

        Takes effect in memory at once, also when StorageFull or StorageFailed is raised.
        """
        added: dict[PackId, set[int]] = {}
        for place in places:
            added.setdefault(place.pack, set()).add(place.offset)
        if not added:
            return 0
        with self._db.lock:
            new = 0
            for pack, offsets in added.items():
                old = self._voids.get(pack, _NONE)
                merged = offsets.union(old)
                new += len(merged) - len(old)
                self._voids[pack] = array("I", sorted(merged))
            with self._db.changing():
                self._writer.executemany(
                    "INSERT OR REPLACE INTO voids VALUES (?, ?)",
                    [(pack, _dumped(self._voids[pack])) for pack in added],
                )
            return new

    def unvoid(self, pack: PackId, start: int) -> None:
        """Forget the voids from offset `start` on: other records will be written there.

        Raises StorageFull and StorageFailed, and has done nothing then.
        """
        with self._db.lock:
            old = self._voids.get(pack, _NONE)
            kept = old[: bisect_left(old, start)]
            if len(kept) == len(old):
                return
            with self._db.changing():
                self._writer.execute(
                    "INSERT OR REPLACE INTO voids VALUES (?, ?)", (pack, _dumped(kept))
                )
            self._voids[pack] = kept

    def retire(self, packs: Sequence[PackId]) -> None:
        """Let rows and voids of packs count no more, before their files are removed.

        Not durable: a power cut may bring back both rows and file, or the rows alone, which the
        next start drops. So does a kill, where StorageFull or StorageFailed is raised; readers see
        no row of theirs in any case. forget() is for when the removal of the files is durable:
        until then the next start has to know that a file is to go, for rows stay in their runs.
        """
        gone = set(packs)
        with self._db.lock:
            kept = {number: row for number, row in self._view.packs.items() if number not in gone}
            self._view = replace(self._view, packs=kept)
            for pack in packs:
                self._voids.pop(pack, None)
            with self._db.changing():
                self._writer.execute(
                    "UPDATE meta SET value = max(value, ?) WHERE key = 'next_pack'",
                    (max(packs) + 1,),
                )
                self._writer.executemany(
                    "UPDATE packs SET state = 2 WHERE number = ?", [(pack,) for pack in packs]
                )
                self._writer.executemany(
                    "DELETE FROM voids WHERE pack = ?", [(pack,) for pack in packs]
                )


def _dumped(offsets: array[int]) -> bytes:
    if sys.byteorder == "big":
        offsets = array("I", offsets)
        offsets.byteswap()
    return offsets.tobytes()


def _loaded(blob: bytes) -> array[int]:
    offsets = array("I", blob)
    if sys.byteorder == "big":
        offsets.byteswap()
    return offsets
