"""Places of chunks that this run has seen with its own eyes: in records, or in packs' tables.

Chunks that are stored together are asked for together. Once a few chunks of a sealed pack were
asked for, its table is read, and the next ones are found here: no lookup, no look at a header. The
table is written after all records before it are durable, so an intact one vouches for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from blockstore.disk import DiskFile
from blockstore.errors import StorageFailed
from blockstore.ids import ChunkId, Location, PackId
from blockstore.index import PackRow, PackState
from blockstore.reader import PackFiles, Reader

# A generation, unless one table has more; two of them are kept, about 20 MB when full (of packs
# of the smallest chunks 90).
_PLACES_MAX = 32_768
_TABLE_FROM = 4  # chunks of one pack asked for at once: then its table is read


class Seen:
    """Remembers places, bounded; safe to use from several threads."""

    def __init__(
        self,
        files: PackFiles,
        reader: Reader,
        packs: Callable[[], Mapping[PackId, PackRow]],
        trusted: Callable[[PackId], bool] | None = None,
    ) -> None:
        """`trusted` tells packs that need no look: they were listed whole when the run began."""
        self._files = files
        self._reader = reader
        self._packs = packs
        self._trusted = trusted if trusted is not None else lambda _pack: False
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # of one table at a time: one takes up to 100 MB
        self._young: dict[ChunkId, Location] = {}
        self._old: dict[ChunkId, Location] = {}

    def get(self, name: ChunkId) -> Location | None:
        """Return where a chunk was seen, if its pack is still there."""
        place = self._young.get(name) or self._old.get(name)
        return place if place is not None and place.pack in self._packs() else None

    def look(self, found: Mapping[ChunkId, Location], *, headers: bool) -> dict[ChunkId, Location]:
        """Look at the packs in which the index has found chunks; return those seen there.

        Reads the tables of sealed packs with several of them, and remembers all chunks in those.
        With `headers` the records of the others are looked at, too.
        """
        seen: dict[ChunkId, Location] = {}
        rows = self._packs()
        order = sorted(found.items(), key=lambda item: item[1])
        for pack, group in groupby(order, key=lambda item: item[1].pack):
            places = list(group)
            if self._trusted(pack):
                seen.update(places)
                continue
            row = rows.get(pack)
            sealed = row is not None and row.state is PackState.SEALED
            by_table = sealed and len(places) >= _TABLE_FROM
            if not (by_table or headers):
                continue
            try:
                with self._files.using(pack) as file:
                    listed = self._listed(file, pack, places) if by_table else {}
                    seen.update(
                        (name, place)
                        for name, place in places
                        if listed.get(name) == place
                        or (headers and name in self._reader.holds(file, place))
                    )
            except (FileNotFoundError, StorageFailed):
                pass  # what cannot be seen was not seen
        self._remember(seen)
        return seen

    def _listed(
        self, file: DiskFile, pack: PackId, places: Sequence[tuple[ChunkId, Location]]
    ) -> Mapping[ChunkId, Location]:
        """Those of a pack's chunks that its table names, at least of `places`; remembered."""
        with self._reading:  # who comes for the same pack meanwhile finds it read
            known = {name: self.get(name) for name, _ in places}
            found = {name: place for name, place in known.items() if place is not None}
            if len(found) < len(places):
                found = {
                    entry.id: entry.location(pack)
                    for entry in self._reader.listed(file, pack)
                    if entry.is_chunk
                }
                self._remember(found)
            return found

    def _remember(self, places: Mapping[ChunkId, Location]) -> None:
        with self._lock:
            if self._young and len(self._young) + len(places) > _PLACES_MAX:
                self._old, self._young = self._young, {}
            self._young.update(places)

    def forget(self, names: Iterable[ChunkId]) -> None:
        """Have these looked at again."""
        with self._lock:
            for name in names:
                self._young.pop(name, None)
                self._old.pop(name, None)
