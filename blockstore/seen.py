"""Places of chunks that this run has seen with its own eyes: in records, or in packs' tables.

Chunks that are stored together are asked for together. Once a few chunks of a sealed pack were
asked for, its table is read, and the next ones are found here: no lookup, no look at a header. The
table is written after all records before it are durable, so an intact one vouches for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

from blockstore.errors import StorageFailed
from blockstore.ids import ChunkId, Location, PackId
from blockstore.index import PackRow, PackState
from blockstore.reader import PackFiles, Reader

_PLACES_MAX = 32_768  # a generation; two of them are kept, about 20 MB when full
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
                    listed: dict[ChunkId, Location] = {}
                    if by_table:
                        listed = {
                            entry.id: entry.location(pack)
                            for entry in self._reader.listed(file, pack)
                            if entry.is_chunk
                        }
                        self._remember(listed)
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

    def _remember(self, places: Mapping[ChunkId, Location]) -> None:
        with self._lock:
            self._young.update(places)
            if len(self._young) >= _PLACES_MAX:
                self._old, self._young = self._young, {}

    def forget(self, names: Iterable[ChunkId]) -> None:
        """Have these looked at again."""
        with self._lock:
            for name in names:
                self._young.pop(name, None)
                self._old.pop(name, None)
