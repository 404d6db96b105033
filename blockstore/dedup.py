"""Which chunks need no second record.

New data binds only to what this run has seen (`Seen`), never to an index row alone: a power cut or
a bad sector may have taken the record since the row was written. While a collection runs
(`begin_touch`) every chunk that new data binds to is noted, so that it counts as live; once packs
are condemned, nothing binds to them any more. A put() that began before `begin_touch` may have
bound to anything: all it returns is noted when it ends, and `condemn` waits for it.

Locks: `_lock` makes "bind or not" and "condemn" one step each; it is never held during I/O.
`_quiet` is a condition on it: "no put() of an earlier generation is under way".
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence

from blockstore.errors import CollectionAbandoned
from blockstore.ids import ChunkId, Location, PackId
from blockstore.index import Index
from blockstore.seen import Seen


class Dedup:
    """Decides which chunks are known."""

    def __init__(self, index: Index, seen: Seen, *, touch_max: int) -> None:
        self._index = index
        self._seen = seen
        self._touch_max = touch_max
        self._lock = threading.Lock()
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
        places: dict[ChunkId, Location] = {}
        unseen = []
        for name in ids:
            place = self._seen.get(name)
            if place is None:
                unseen.append(name)
            else:
                places[name] = place
        if unseen:
            found = self._index.lookup(unseen)
            if found:
                places.update(self._seen.look(found, headers=True))
        if not places:
            return set()
        with self._lock:
            condemned, damaged, packs = self._condemned, self.damaged, self._index.packs
            bound = {
                name
                for name, place in places.items()
                if place.pack in packs and place.pack not in condemned and name not in damaged
            }
            self._touch(bound)
        return bound

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
            self._seen.forget(ids)
            with self._lock:
                for name in ids:
                    self.damaged.pop(name, None)

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
            return set(self._touched)

    def end_touch(self) -> None:
        """Stop noting; condemned packs are either gone or spared."""
        with self._lock:
            self._touched = None
            self._overflowed = False
            self._condemned = frozenset()
