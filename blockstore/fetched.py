"""The fetched series: blocks that can be had again from where they came, as a cache.

Files of its own (`fetched/`, `fetched.db`), made when the first block is stored. Everything here
may be lost, by eviction, a power cut or damage, and then reads as a missing block. Nothing is
synced; each record is verified when it is read. A cache that cannot be opened is no reason not to
open the store: storing into it tries again and raises what is wrong.

Locks, in this order: `_evicting` (one step of the hand at a time), `_opening`, then those of
`fetched_writer` and of the index. Under them own data is looked up, which takes no lock of the
store but its index's; no lock of the store is held when one of these is taken.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from blockstore.check import CheckResult
from blockstore.codec import Codec, Encoder
from blockstore.disk import Disk
from blockstore.errors import OrbitError, StorageFailed, StorageFull
from blockstore.eviction import EvictStep, Hand, Pinned
from blockstore.fetched_check import check_fetched, damaged_blocks
from blockstore.fetched_index import FetchedIndex
from blockstore.fetched_opening import (
    FETCHED_FOLDER,
    FetchedRecovery,
    fetched_header,
    open_fetched_index,
)
from blockstore.fetched_writer import FetchedWriter
from blockstore.ids import MAX_BLOCK, Buffer, ChunkId, Location
from blockstore.merging import Merger
from blockstore.opening import Identity
from blockstore.options import FetchedOptions, FetchedStats
from blockstore.packfile import RECORD_BYTES
from blockstore.reader import PackFiles, Reader
from blockstore.writer import Record, chunk_record

RUN_BYTES_MAX = MAX_BLOCK + RECORD_BYTES
_STEPS_MAX = 64  # of the hand, before a caller who stores is told that there is no room

Owned = Callable[[Iterable[ChunkId]], Collection[ChunkId]]
"""Returns those of some blocks that own data has."""


class Series:
    """The open files of the series, and what needs nothing else."""

    def __init__(
        self, disk: Disk, folder: Path, identity: Identity, options: FetchedOptions
    ) -> None:
        header = fetched_header(identity)
        self.folder = folder / FETCHED_FOLDER
        disk.mkdir(self.folder)
        self.index: FetchedIndex = open_fetched_index(disk, folder, header.store_uuid)
        try:
            recovered = FetchedRecovery(
                disk, self.folder, header, self.index, options.pack_bytes
            ).run()
        except BaseException:
            with contextlib.suppress(OrbitError):
                self.index.close()
            raise
        self.writer = FetchedWriter(
            disk,
            self.folder,
            header,
            self.index,
            pack_bytes=options.pack_bytes,
            pending_max=options.pending_blocks_max,
            next_pack=recovered.next_pack,
            adopted=recovered.adopted,
        )
        self.merger = Merger(self.index)
        self.writer.on_batch = self.merger.start
        self.files = PackFiles(
            disk, self.folder, header.store_uuid, open_max=options.open_packs_max
        )
        self.reader = Reader(self.files, RUN_BYTES_MAX)

    def locate(self, ids: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Return where resident blocks should lie."""
        found: dict[ChunkId, Location] = {}
        rest = []
        pending = self.writer.pending
        for name in ids:
            place = pending.get(name)
            if place is None:
                rest.append(name)
            elif not self.index.is_void(place):
                found[name] = place
        if rest:
            # Looked up second: a block leaves `pending` only after the index has it.
            found.update(self.index.locate(rest))
        return found

    def close(self) -> None:
        """Seal, tell the index, and close. Raises StorageFull, StorageFailed; it is closed then."""
        with contextlib.ExitStack() as steps:  # run from the last to the first, whatever fails
            steps.callback(self.files.close)
            steps.callback(self.merger.join)
            steps.callback(self.index.close)
            steps.callback(self.writer.close)


class Fetched:
    """The cache. Safe to use from several threads."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        identity: Identity,
        options: FetchedOptions,
        owned: Owned,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._identity = identity
        self._options = options
        self._owned = owned
        self.pinned: Pinned = lambda _ids: ()
        self._encoder = Encoder(options.codec, 1)
        self._opening = threading.Lock()
        self._series: Series | None = None
        self._hand: Hand | None = None  # set before `_series`
        self._closed = False
        self._counts_lock = threading.Lock()
        self._put_blocks = 0
        self._hits = 0
        self._dropped = 0
        self._refused = 0
        self._voided = 0
        if disk.exists(folder / FETCHED_FOLDER):
            # Whatever is wrong is raised by the first put(): own data does not need the cache.
            with contextlib.suppress(OrbitError):
                self._open()

    def _open(self) -> Series:
        series = self._series
        if series is None:
            with self._opening:
                series = self._series
                if series is None:
                    if self._closed:
                        raise StorageFailed(f"the store in {self._folder} is closed")
                    series = Series(self._disk, self._folder, self._identity, self._options)
                    self._hand = Hand(self._disk, series, self._options, self._owned)
                    self._series = series
        return series

    # ---- storing ----

    def put(self, blocks: Mapping[ChunkId, Buffer]) -> None:
        """Keep blocks of up to MAX_BLOCK bytes; resident ones are not written again.

        Raises StorageFull where the cache's limits leave no room, and StorageFailed; some of the
        blocks may have been kept then.
        """
        series = self._open()
        with self._counts_lock:
            self._put_blocks += len(blocks)
        while True:
            known = series.locate(blocks)
            self._use(known.values())
            fresh = [(name, data) for name, data in blocks.items() if name not in known]
            if not fresh:
                return
            if not self._make_room(series, sum(len(data) + RECORD_BYTES for _, data in fresh)):
                break  # otherwise some that were known may have had to go
        series.writer.append([self._record(name, data) for name, data in fresh])

    def _record(self, name: ChunkId, data: Buffer) -> Record:
        codec, payload = Codec.NONE, data
        if not self._encoder.hopeless(data):
            codec, payload = self._encoder.encode(data)
        return chunk_record(name, len(data), codec, payload)

    def _make_room(self, series: Series, size: int) -> bool:
        """Evict where evict_step() is not called often enough; tell whether anything had to go.

        Raises StorageFull if that is futile.
        """
        hand = self._hand
        assert hand is not None
        evicted = False
        for _ in range(_STEPS_MAX if size <= self._options.bytes_max else 0):
            if not hand.lacks_room(size):
                return evicted
            if hand.step(self.pinned, size).freed_bytes:
                evicted = True
            elif hand.stuck:
                break
        with self._counts_lock:
            self._refused += 1
        raise StorageFull(
            f"{series.folder} is full and nothing in it can go: allow it more space, free some on "
            "that disk, or unpin something"
        )

    # ---- reading ----

    def resident(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Return those of `ids` that are here; cheap, and nothing is read to make sure."""
        series = self._series
        return set() if series is None else set(series.locate(ids))

    def read(self, ids: Sequence[ChunkId]) -> dict[ChunkId, bytes]:
        """Return the verified bytes of blocks; what is missing, damaged or unreadable is left out.

        Of damaged ones the record is dropped, so that the block can be stored again.
        """
        series = self._series
        if series is None or not ids:
            return {}
        found: dict[ChunkId, bytes] = {}
        tried: dict[ChunkId, Location] = {}
        wanted = list(ids)
        while wanted:
            places = series.locate(wanted)
            places = {name: at for name, at in places.items() if tried.get(name) != at}
            if not places:
                break
            chunks, damaged = self._read(series, places)
            found.update((name, chunks[name]) for name in places if name in chunks)
            self._use(place for name, place in places.items() if name in chunks)
            self._drop(series, damaged)
            # Their pack was evicted while we looked: they may have been carried forward.
            wanted = [name for name in places if name not in chunks and name not in damaged]
            tried = places
        with self._counts_lock:
            self._hits += len(found)
        return found

    @staticmethod
    def _read(
        series: Series, places: Mapping[ChunkId, Location]
    ) -> tuple[dict[ChunkId, bytes], dict[ChunkId, Location]]:
        """Return what could be read, and what is damaged; the packs of the others are gone."""
        try:
            outcome = series.reader.read(places.items())
        except StorageFailed:
            if len(places) > 1:  # one bad sector is no reason to lose the others
                chunks: dict[ChunkId, bytes] = {}
                damaged: dict[ChunkId, Location] = {}
                for name, place in places.items():
                    some, bad = Fetched._read(series, {name: place})
                    chunks.update(some)
                    damaged.update(bad)
                return chunks, damaged
            return {}, dict(places)
        return outcome.chunks, {name: places[name] for name in outcome.damaged}

    def read_nowait(self, name: ChunkId) -> bytes | None:
        """Return a block whose bytes are in the page cache, or None; verified like read()."""
        series = self._series
        if series is None:
            return None
        place = series.locate([name]).get(name)
        if place is None:
            return None
        data = series.reader.read_nowait(place).get(name)
        if data is not None:
            self._use([place])
            with self._counts_lock:
                self._hits += 1
        return data

    def _use(self, places: Iterable[Location]) -> None:
        if self._hand is not None:
            self._hand.used.mark(places)

    def _drop(self, series: Series, damaged: Mapping[ChunkId, Location]) -> None:
        if damaged:
            # Void in memory even if the index cannot be written now.
            with contextlib.suppress(OrbitError):
                series.index.void(damaged.values())
            with self._counts_lock:
                self._dropped += len(damaged)

    # ---- making room ----

    def evict(self, ids: Sequence[ChunkId]) -> int:
        """Forget blocks; return how many were here. Their space comes back with evict_step()."""
        series, hand = self._series, self._hand
        if series is None or hand is None:
            return 0
        with hand.lock:  # or a block that is being carried forward would come back
            count = series.index.void(series.locate(ids).values())
        hand.stuck = False
        with self._counts_lock:
            self._voided += count
        return count

    def evict_step(self) -> EvictStep:
        """Deal with one pack, if the limits are exceeded or a pack is mostly evicted blocks."""
        hand = self._hand
        return EvictStep(0, False) if hand is None else hand.step(self.pinned)

    def give_way(self) -> bool:
        """Free some space for own data, whatever the limits say; False when nothing may go."""
        series, hand = self._series, self._hand
        if series is None or hand is None:
            return False
        for _ in range(_STEPS_MAX):
            need = self._disk.free_bytes(series.folder) + 1
            if hand.step(self.pinned, need).freed_bytes:
                return True
            if hand.stuck:
                break
        return False

    # ---- state ----

    def check(self, *, data: bool) -> Iterator[CheckResult]:
        """Check the files of the cache; with `data` read all blocks and drop damaged ones."""
        series, hand = self._series, self._hand
        if series is None or hand is None:
            return
        with hand.lock:  # or its file may go meanwhile
            results = list(check_fetched(self._disk, series))
        yield from results
        if data:
            for pack in sorted(series.index.packs):
                with hand.lock:
                    self._drop(series, damaged_blocks(series, pack))

    def stats(self) -> FetchedStats:
        """Return counters; costs no I/O."""
        series, hand = self._series, self._hand
        if series is None or hand is None:
            return FetchedStats(refused=self._refused)
        packs, blocks = series.writer.counts()
        known = series.index.packs
        voids = sum(series.index.void_counts().values())
        with self._counts_lock:
            return FetchedStats(
                packs=len(known) + packs,
                bytes=series.writer.bytes,
                blocks=blocks + sum(row.records for row in known.values()) - voids,
                pending_blocks=len(series.writer.pending),
                put_blocks=self._put_blocks,
                new_blocks=series.writer.appended_blocks,
                new_bytes=series.writer.appended_bytes,
                hits=self._hits,
                dropped=self._dropped + hand.counts.damaged,
                evicted=self._voided + hand.counts.evicted,
                carried=hand.counts.carried,
                refused=self._refused,
            )

    def close(self) -> None:
        """Seal and close. Raises StorageFull, StorageFailed; everything is closed all the same."""
        with self._opening:
            self._closed = True
            series = self._series
        if series is not None:
            series.close()
