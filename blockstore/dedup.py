"""Which chunks need no second record.

New data binds only to a record whose header this run has seen intact, or to one in the intact table
of a sealed pack, which is written after all records before it are durable; never to an index row
alone: a power cut or a bad sector may have taken the record since the row was written. What was
seen is remembered, bounded: data that comes again in the order it was stored in finds its chunks in
memory after the first few of a pack. While a collection runs (`begin_touch`) every chunk that new
data binds to is noted, so that it counts as live; once packs are condemned, nothing binds to them
any more. A put() that began before `begin_touch` may have bound to anything: all it returns is
noted when it ends, and `condemn` waits for it.

Locks: `_lock` makes "bind or not" and "condemn" one step each; it is never held during I/O.
`_quiet` is a condition on it: "no put() of an earlier generation is under way".
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from blockstore.errors import CollectionAbandoned, StorageFailed
from blockstore.ids import ChunkId, Location, PackId
from blockstore.index import Index, PackState
from blockstore.reader import PackFiles, Reader

_SEEN_MAX = 65_536  # a generation; two of them are kept, about 20 MB when full
# Its table is read instead of its records' headers once so many of them are asked for.
_TABLE_FROM = 4


class Dedup:
    """Decides which chunks are known."""

    def __init__(self, index: Index, files: PackFiles, *, touch_max: int) -> None:
        self._index = index
        self._files = files
        self._reader = Reader(files)
        self._touch_max = touch_max
        self._lock = threading.Lock()
        self._young: dict[ChunkId, PackId] = {}
        self._old: dict[ChunkId, PackId] = {}
        self._condemned: frozenset[PackId] = frozenset()
        self._touched: set[ChunkId] | None = None
        self._overflowed = False
        self._generation = 0  # counts begin_touch
        self._under_way: dict[int, int] = {}  # generation → put() calls
        self._quiet = threading.Condition(self._lock)
        self.damaged: dict[ChunkId, PackId] = {}  # found damaged in this run

    @contextlib.contextmanager
    def putting(self, ids: Sequence[ChunkId]) -> Iterator[None]:
        """Surround one put() from before it looks anything up until it has its result."""
        with self._lock:
            generation = self._generation
            self._under_way[generation] = self._under_way.get(generation, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                if generation < self._generation:
                    self._touch(ids)
                self._under_way[generation] -= 1
                if not self._under_way[generation]:
                    del self._under_way[generation]
                    self._quiet.notify_all()

    def known(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Return those of `ids` that an intact record in a lasting pack holds."""
        places: dict[ChunkId, PackId] = {}
        unseen = []
        young, old = self._young, self._old
        asked = set(ids)
        for name in asked:
            pack = young.get(name)
            if pack is None:
                pack = old.get(name)
            if pack is None:
                unseen.append(name)
            else:
                places[name] = pack
        if unseen:
            found = self._index.lookup(unseen)
            if found:
                places.update(self._check(found))
        if not places:
            return set()
        with self._lock:
            condemned, damaged, packs = self._condemned, self.damaged, self._index.packs
            bound = {
                name: pack
                for name, pack in places.items()
                if pack in packs and pack not in condemned and name not in damaged
            }
            self._remember(bound)
            bound = {name: pack for name, pack in bound.items() if name in asked}
            self._touch(bound)
        return set(bound)

    def _check(self, found: dict[ChunkId, Location]) -> dict[ChunkId, PackId]:
        """Return those whose record is there, and what else was seen on the way."""
        intact: dict[ChunkId, PackId] = {}
        rows = self._index.packs
        order = sorted(found.items(), key=lambda item: item[1])
        for pack, group in groupby(order, key=lambda item: item[1].pack):
            places = list(group)
            row = rows.get(pack)
            try:
                with self._files.using(pack) as file:
                    if len(places) >= _TABLE_FROM and row and row.state is PackState.SEALED:
                        listed = self._reader.listed(file, pack)
                        intact.update((entry.id, pack) for entry in listed if entry.is_chunk)
                    for name, location in places:
                        if name not in intact and name in self._reader.holds(file, location):
                            intact[name] = pack
            except (FileNotFoundError, StorageFailed):
                pass  # what cannot be seen is written anew
        return intact

    def _remember(self, places: dict[ChunkId, PackId]) -> None:
        self._young.update(places)
        if len(self._young) >= _SEEN_MAX:
            self._old, self._young = self._young, {}

    def _touch(self, ids: Iterable[ChunkId]) -> None:
        touched = self._touched
        if touched is None or self._overflowed:
            return
        touched.update(ids)
        if len(touched) > self._touch_max:
            touched.clear()
            self._overflowed = True

    # ---- damage ----

    def report_damaged(self, found: dict[ChunkId, PackId]) -> None:
        """Never bind to these again until their bytes are stored anew."""
        with self._lock:
            self.damaged.update(found)

    def repaired(self, ids: Sequence[ChunkId]) -> None:
        """New records of these chunks were written."""
        if self.damaged:
            with self._lock:
                for name in ids:
                    self.damaged.pop(name, None)
                    self._young.pop(name, None)
                    self._old.pop(name, None)

    # ---- collection ----

    def touch(self, ids: Iterable[ChunkId]) -> None:
        """Count ids as live in the collection under way, if there is one."""
        with self._lock:
            self._touch(ids)

    @property
    def touching(self) -> bool:
        """Whether begin_touch was called and end_touch was not."""
        return self._touched is not None

    def begin_touch(self) -> None:
        """Start to note what new data binds to."""
        with self._lock:
            self._generation += 1
            self._touched = set()
            self._overflowed = False

    def condemn(self, packs: Iterable[PackId]) -> set[ChunkId]:
        """From now on nothing binds to `packs`; return what was bound to since begin_touch.

        Raises CollectionAbandoned when that was too much to note.
        """
        with self._quiet:
            generation = self._generation
            self._quiet.wait_for(lambda: all(g >= generation for g in self._under_way))
            if self._touched is None or self._overflowed:
                raise CollectionAbandoned(
                    f"more than {self._touch_max} known chunks were stored again while the "
                    "collection was marking; nothing was removed: try again when less is written"
                )
            self._condemned = frozenset(packs)
            self._young = {n: p for n, p in self._young.items() if p not in self._condemned}
            self._old = {n: p for n, p in self._old.items() if p not in self._condemned}
            return set(self._touched)

    def end_touch(self) -> None:
        """Stop noting; condemned packs are either gone or spared."""
        with self._lock:
            self._touched = None
            self._overflowed = False
            self._condemned = frozenset()
