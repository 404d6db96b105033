"""The block store: the only door into this package.

Concurrency. All public methods may be called from any thread; none calls back into the caller,
but for what set_pinned() was given.
Locks are taken in this order; none of ours is taken while one of the last line is held:

  collect lock        one collection or check at a time                        (store)
  sync lock           one fdatasync / seal / index batch at a time             (writer)
  append lock         end of the open pack, pending records                    (writer)
  index write lock    the writing SQLite connection                            (database)
  tables lock         one table of a pack read at a time                       (seen)
  dedup, cache, pack files: short critical sections without I/O

put() holds the append lock only during one pwritev; hashing, looking up and compressing run in
parallel. sync() holds the sync lock during fdatasync, so put() and fetch() go on meanwhile.
fetch() takes no lock during I/O: if a pack is removed under it, it asks the index again.

Order of durability: pack bytes (fdatasync), then the index rows that name them; a root record after
everything put before it. Collection goes the other way round: copies durable, rows point to the
copies and the pack is condemned (durable), then the pack is unlinked.

Blocks that can be fetched again are kept apart from all this (fetched): nothing of them is ever
durable, and no own data is ever bound to them. A lookup asks for own data first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from blockstore.check import Checker, CheckResult
from blockstore.chunker import Chunker
from blockstore.codec import Encoder
from blockstore.collect import SMALL_PART, Collection, CollectReport, pack_uses, plan_collection
from blockstore.dedup import Dedup
from blockstore.disk import Disk, DiskFile, OsDisk
from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError, StorageFull
from blockstore.eviction import EvictStep, Pinned
from blockstore.fetched import Fetched
from blockstore.grouping import records_of
from blockstore.ids import (
    MAX_BLOCK,
    MAX_CHUNK,
    Buffer,
    ChunkId,
    Location,
    PackId,
    chunk_id,
    pack_name,
)
from blockstore.ingest import ingest
from blockstore.marks import Marks
from blockstore.merging import Merger
from blockstore.opening import (
    LOCK_FILE,
    PACKS_FOLDER,
    IndexStale,
    OpenReport,
    Recovered,
    Recovery,
    SharedPacks,
    load_identity,
    open_index,
    remove_index,
)
from blockstore.options import StoreOptions, StoreStats
from blockstore.reader import ChunkCache, PackFiles, Reader
from blockstore.roots import ROOT_BYTES_MAX, ROOTS_KEPT, RootRecord, Roots
from blockstore.seen import Seen
from blockstore.writer import Writer

__all__ = ["ROOTS_KEPT", "BlockStore", "RootRecord", "StoreOptions", "StoreStats"]

_ASKED_MAX = 1_024
_T = TypeVar("_T")


class BlockStore:
    """A content-addressed store of chunks in one folder. Made by `BlockStore.open`."""

    opened: OpenReport

    def __init__(self, folder: Path, options: StoreOptions, disk: Disk, lock: DiskFile) -> None:
        """Not to be called: use open()."""
        self.folder = folder
        self.options = options
        self.disk = disk
        self._lock_file = lock
        self._packs_folder = folder / PACKS_FOLDER
        self.opened = OpenReport()
        self._identity = identity = load_identity(disk, folder, options.chunker, self.opened)
        self._index = open_index(disk, folder, identity, self.opened)
        try:
            recovered = self._recover()
            self._fetched = Fetched(disk, folder, identity, options.fetched, self._owned)
        except BaseException:
            with contextlib.suppress(OrbitError):
                self._index.close()
            raise
        self._writer = Writer(
            disk,
            self._packs_folder,
            identity.header(PackId(0)),
            self._index,
            pack_bytes_max=options.pack_bytes_max,
            pending_max=options.pending_chunks_max,
            next_pack=recovered.next_pack,
        )
        if recovered.adopted is not None:
            self._writer.adopt(recovered.adopted)
        self._merger = Merger(self._index)
        self._writer.on_batch = self._merger.start
        self._files = PackFiles(
            disk, self._packs_folder, identity.uuid, open_max=options.open_packs_max
        )
        self._reader = Reader(self._files)
        self._roots = Roots(self._writer, self._index, self._files, recovered.root_seq)
        self._asked: dict[ChunkId, Location] = {}  # places found by fetch_nowait() for fetch()
        self._cache = ChunkCache(options.cache_bytes_max)
        shared = self._shared
        self._seen = Seen(
            self._files,
            self._reader,
            lambda: self._index.packs,
            shared.shares if shared is not None and not shared.near else None,
        )
        self._dedup = Dedup(self._index, self._seen, touch_max=options.touch_chunks_max)
        self._chunker = Chunker(options.chunker)
        self._encoder = Encoder(options.compression, options.level)
        self._counts_lock = threading.Lock()
        self._put_chunks = 0
        self._put_bytes = 0
        self._new_chunks = 0
        self._dedup_hits = 0
        self._collect_lock = threading.Lock()
        self._closed = False
        self._barrier = PackId(0)  # packs below it may be collected

    @classmethod
    def open(
        cls, folder: Path, options: StoreOptions | None = None, disk: Disk | None = None
    ) -> BlockStore:
        """Open the store in `folder`, making it on first use; `opened` tells what was done.

        Torn ends of packs are cut, and a missing or damaged index is rebuilt from the packs.
        Raises StoreLocked, StoreInvalid, FormatTooNew, StorageFull, StorageFailed.
        """
        return cls._locked(folder, options, disk, rebuild=False)

    @classmethod
    def rebuild(
        cls, folder: Path, options: StoreOptions | None = None, disk: Disk | None = None
    ) -> BlockStore:
        """Like open(), but throw chunks.db away first and make it anew from the packs alone."""
        return cls._locked(folder, options, disk, rebuild=True)

    @classmethod
    def _locked(
        cls, folder: Path, options: StoreOptions | None, disk: Disk | None, *, rebuild: bool
    ) -> BlockStore:
        disk = disk if disk is not None else OsDisk()
        disk.mkdir(folder / PACKS_FOLDER)
        lock = disk.lock(folder / LOCK_FILE)
        try:
            if rebuild:
                remove_index(disk, folder)
            return cls(folder, options if options is not None else StoreOptions(), disk, lock)
        except BaseException:
            lock.close()
            raise

    @property
    def _shared(self) -> SharedPacks | None:
        return self.disk if isinstance(self.disk, SharedPacks) else None

    def _recover(self) -> Recovered:
        """Bring index and packs together; an index about other packs is made anew."""

        def recovery() -> Recovery:
            return Recovery(
                disk=self.disk,
                folder=self._packs_folder,
                identity=self._identity,
                index=self._index,
                report=self.opened,
                pack_bytes_max=self.options.pack_bytes_max,
            )

        try:
            return recovery().run()
        except IndexStale:
            self._index.close()
            remove_index(self.disk, self.folder)
            self._index = open_index(self.disk, self.folder, self._identity, self.opened)
            return recovery().run()

    # ---- storing ----

    def cut(self, data: Buffer) -> list[int]:
        """Return the lengths of all chunks of `data`, in bytes.

        The last one may not be a true cut: its end is just the end of the data.
        """
        return self._chunker.cut(data)

    def put(self, chunks: Sequence[Buffer]) -> list[ChunkId]:
        """Store chunks of 1 byte to MAX_CHUNK; return their ids. Not durable before sync().

        Chunks whose bytes the store has are not written again. Raises StorageFull and
        StorageFailed; the store stays usable and the call may be repeated.
        """
        ids = []
        total = 0
        for chunk in chunks:
            size = len(chunk)
            if not 0 < size <= MAX_CHUNK:
                raise ValueError(f"a chunk has 1 to {MAX_CHUNK} bytes, not {size}")
            total += size
            ids.append(chunk_id(chunk))
        with self._dedup.putting(ids):
            new = self._making_room(lambda: self._store_new(ids, chunks))
        with self._counts_lock:
            self._put_chunks += len(ids)
            self._put_bytes += total
            self._new_chunks += new
            self._dedup_hits += len(ids) - new
        return ids

    def _store_new(self, ids: Sequence[ChunkId], chunks: Sequence[Buffer]) -> int:
        """Append those chunks that no record holds; return how many."""
        pending = self._writer.pending
        damaged = self._dedup.damaged
        ask = {
            name: chunk
            for name, chunk in zip(ids, chunks, strict=True)
            if name not in pending or name in damaged
        }
        new = 0
        if ask:
            known = self._dedup.known(ask)
            fresh = [item for item in ask.items() if item[0] not in known]
            again = [item for item in fresh if item[0] in damaged]
            if again:
                fresh = [item for item in fresh if item[0] not in damaged]
                new += self._writer.append(list(records_of(again, self._encoder)), again=True)
                self._dedup.repaired([name for name, _ in again])
            if fresh:
                new += self._writer.append(list(records_of(fresh, self._encoder)))
        return new

    @contextlib.contextmanager
    def binding(self, ids: Sequence[ChunkId]) -> Iterator[set[ChunkId]]:
        """Those of `ids` that new data may name, as if their bytes had been put.

        What is named before the end of the context counts as live in a collection that has begun
        meanwhile, as with put().
        """
        with self._dedup.putting(ids):
            pending = self._writer.pending
            damaged = self._dedup.damaged
            fresh = {name for name in ids if name in pending and name not in damaged}
            yield fresh | self._dedup.known(name for name in ids if name not in fresh)

    def sync(self) -> None:
        """Make everything put() so far durable; free when nothing is unsynced.

        Raises StorageFull or StorageFailed, and keeps failing until all is durable.
        """
        self._making_room(self._writer.sync)

    def seal(self) -> None:
        """Like sync(), and end the open pack: all that was put lies in sealed packs then.

        On a disk with SharedPacks they are where others use them. Raises StorageFull and
        StorageFailed; what was put stays, and the next call tries again.
        """
        self._making_room(self._seal)

    def _seal(self) -> None:
        self._writer.flush(seal=True)
        if self._writer.seal_error is not None:
            raise self._writer.seal_error
        shared = self._shared
        if shared is not None:
            shared.settle()

    def ingest(self, stream: BinaryIO, workers: int = 2) -> list[tuple[ChunkId, int]]:
        """Cut and store a stream; return its chunks' ids and lengths in order. Not yet durable."""
        return ingest(stream, self._chunker, self.put, workers=workers)

    # ---- blocks that can be had again ----

    def put_fetched(self, blocks: Sequence[Buffer]) -> list[ChunkId]:
        """Keep blocks of 1 byte to MAX_BLOCK that can be fetched again; return their ids.

        See keep_fetched.
        """
        ids = [chunk_id(block) for block in blocks]
        self.keep_fetched(dict(zip(ids, blocks, strict=True)))
        return ids

    def keep_fetched(self, named: Mapping[ChunkId, Buffer], *, owned: bool = False) -> None:
        """Keep blocks of 1 byte to MAX_BLOCK that can be fetched again, under their chunk_id().

        For worker threads. Bytes that own data has are not stored a second time, unless `owned`
        (it is about to be let go of), and repair it where it was found damaged. Never durable: a
        power cut costs a fetch. Raises StorageFull where the limits of the cache leave no room, and
        StorageFailed: go on without keeping them.
        """
        for block in named.values():
            if not 0 < len(block) <= MAX_BLOCK:
                raise ValueError(f"a block has 1 to {MAX_BLOCK} bytes, not {len(block)}")
        damaged = [named[name] for name in self._dedup.damaged.keys() & named.keys()]
        if damaged:
            self.put(damaged)
        known = () if owned else self._owned(named)
        self._fetched.put({name: data for name, data in named.items() if name not in known})

    def _owned(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Return what own data has, as far as is known."""
        return self.locate(ids).keys() - self._dedup.damaged.keys()

    def remember(self, chunk_id: ChunkId, data: bytes) -> None:
        """Keep verified bytes in the cache of decoded chunks: they are about to be read."""
        self._cache.add(chunk_id, data)

    def resident(self, ids: Sequence[ChunkId]) -> list[bool]:
        """Tell for each id whether the store has it, own or fetched. Reads no pack.

        A block that is told to be resident may be evicted, or prove damaged, before it is read.
        """
        owned = self._owned(ids)
        fetched = self._fetched.resident(name for name in ids if name not in owned)
        return [name in owned or name in fetched for name in ids]

    def set_pinned(self, pinned: Pinned) -> None:
        """Have eviction ask `pinned` which blocks of a pack must stay.

        It is called in whatever thread makes room: that of evict_step(), put_fetched(), put() or
        sync(), some hundred ids at a time.
        """
        self._fetched.pinned = pinned

    def evict(self, ids: Sequence[ChunkId]) -> int:
        """Forget fetched blocks, pinned or not; return how many there were. For worker threads.

        They are not resident from now on. Raises StorageFull and StorageFailed when that could not
        be noted for the next start.
        """
        owned = self._owned(ids)
        self._cache.discard(name for name in ids if name not in owned)
        return self._fetched.evict(ids)

    def evict_step(self) -> EvictStep:
        """Let the cache shrink to its limits by one pack; for a worker thread, while `more`."""
        return self._fetched.evict_step()

    def _making_room(self, do: Callable[[], _T]) -> _T:
        """Repeat what the disk has no room for as long as the cache can give way."""
        while True:
            try:
                return do()
            except StorageFull:
                if not self._fetched.give_way():
                    raise

    # ---- reading ----

    def cached(self, chunk_id: ChunkId) -> bytes | None:
        """Return a chunk from the cache of decoded chunks, None when it is not there."""
        return self._cache.get(chunk_id)

    def fetch(self, ids: Sequence[ChunkId]) -> dict[ChunkId, bytes]:
        """Return the bytes of chunks, verified. Blocks on the disk.

        Raises ChunkMissing, ChunkDamaged (both name the first such chunk), StorageFailed.
        """
        result: dict[ChunkId, bytes] = {}
        wanted: list[ChunkId] = []
        for name in dict.fromkeys(ids):
            data = self._cache.get(name)
            if data is None:
                wanted.append(name)
            else:
                result[name] = data
        tried: dict[ChunkId, Location] = {}
        places = self._known_places(wanted)
        while wanted:
            unknown = [name for name in wanted if name not in places]
            if unknown:
                found = self.locate(unknown)
                self._seen.look(found, headers=False)
                places.update(found)
            # The same place twice: its pack is gone, and nothing says where the chunk went.
            absent = [n for n in wanted if n not in places or tried.get(n) == places[n]]
            self._read_fetched(absent, result)
            for name in absent:
                if name not in result:
                    raise ChunkMissing(name)
                places.pop(name, None)
            outcome = self._reader.read(places.items())
            for name, data in outcome.chunks.items():
                self._cache.add(name, data)
            result.update((name, outcome.chunks[name]) for name in wanted if name in outcome.chunks)
            wanted = outcome.gone
            if outcome.damaged:
                wanted += self._rescue(outcome.damaged, places, result)
            tried, places = places, {}
        return result

    def _rescue(
        self,
        damaged: dict[ChunkId, PackId],
        places: dict[ChunkId, Location],
        result: dict[ChunkId, bytes],
    ) -> list[ChunkId]:
        """Return those of `damaged` that have moved, and add what the cache has of the others.

        Records of a pack whose sync failed move to another one; those are not damaged. Raises
        ChunkDamaged for what is neither.
        """
        now = self.locate(damaged)
        moved = [name for name in damaged if now.get(name) != places[name]]
        lost = {name: pack for name, pack in damaged.items() if now.get(name) == places[name]}
        if lost:
            self._dedup.report_damaged(lost)
            self._report_neighbours(places[name] for name in lost)
            self._read_fetched(list(lost), result)
            for name, pack in lost.items():
                if name not in result:
                    raise ChunkDamaged(name, pack_name(pack))
        return moved

    def _read_fetched(self, names: Sequence[ChunkId], result: dict[ChunkId, bytes]) -> None:
        """Add to `result` those of `names` that the fetched series has."""
        found = self._fetched.read(names)
        for name, data in found.items():
            self._cache.add(name, data)
        result.update(found)

    def _known_places(self, names: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Places that need no lookup. They may be out of date."""
        places = {}
        asked, seen = self._asked, self._seen
        for name in names:
            place = asked.pop(name, None) or seen.get(name)
            if place is not None:
                places[name] = place
        return places

    def _report_neighbours(self, places: Iterable[Location]) -> None:
        """Let nothing bind to what shares these damaged records."""
        for place in {place[:3]: place for place in places if place.share}.values():
            names = self._reader.sharing(place)
            names |= {n for n, p in self._writer.pending.copy().items() if p[:2] == place[:2]}
            lost = {name for name, found in self.locate(names).items() if found[:2] == place[:2]}
            self._dedup.report_damaged(dict.fromkeys(lost, place.pack))

    def fetch_nowait(self, chunk_id: ChunkId) -> bytes | None:
        """Return a chunk without waiting for the disk, or None; verified like fetch()."""
        data = self._cache.get(chunk_id)
        if data is not None:
            return data
        place = self._seen.get(chunk_id) or self.locate([chunk_id]).get(chunk_id)
        if place is None:
            data = self._fetched.read_nowait(chunk_id)
            if data is not None:
                self._cache.add(chunk_id, data)
            return data
        chunks = self._reader.read_nowait(place)
        for name, content in chunks.items():
            self._cache.add(name, content)
        data = chunks.get(chunk_id)
        if data is None:
            if len(self._asked) >= _ASKED_MAX:
                self._asked.clear()
            self._asked[chunk_id] = place
        return data

    def locate(self, ids: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Return where the records of chunks lie; unknown ones are left out."""
        found = {}
        rest = []
        pending = self._writer.pending
        for name in ids:
            place = pending.get(name)
            if place is None:
                rest.append(name)
            else:
                found[name] = place
        if rest:
            # Looked up second: a record leaves `pending` only after the index has it.
            found.update(self._index.lookup(rest))
        return found

    def contains(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Return those of `ids` that the store has a record of."""
        return set(self.locate(ids))

    def damaged(self) -> dict[ChunkId, str]:
        """Return the chunks found damaged in this run and the names of their packs."""
        return {name: pack_name(pack) for name, pack in self._dedup.damaged.copy().items()}

    # ---- roots ----

    def append_root(self, payload: bytes) -> None:
        """Append a root record; it becomes durable with the next sync().

        Everything put before is made durable first, so that a root never outlives what it names.
        """
        if len(payload) > ROOT_BYTES_MAX:
            raise ValueError(f"a root record has at most {ROOT_BYTES_MAX} bytes")
        self.sync()
        self._making_room(lambda: self._roots.append(payload))

    def roots(self) -> list[RootRecord]:
        """Return the newest root records (ROOTS_KEPT at most), newest last.

        Raises ChunkDamaged when one of them cannot be read back whole.
        """
        return self._roots.newest()

    # ---- collection and checks ----

    def begin_touch(self) -> None:
        """Prepare a collection: from now on ids that put() returns count as live.

        Also those of put() calls that are under way. Ids that were returned earlier must be named
        by the roots that collect() is given, or by touch().
        """
        self._barrier = self._writer.flush(seal=True)
        self._dedup.begin_touch()

    def touch(self, ids: Iterable[ChunkId]) -> None:
        """Count ids as live in the collection that begin_touch() prepared."""
        self._dedup.touch(ids)

    def end_touch(self) -> None:
        """Undo begin_touch() when no collection follows; collect() does it by itself."""
        self._dedup.end_touch()

    def collect(
        self,
        roots: Iterable[Sequence[ChunkId]] | Callable[[], Iterable[Sequence[ChunkId]]],
        *,
        dry_run: bool = False,
        waste_max: float = 0.25,
        seal: bool = False,
    ) -> CollectReport:
        """Remove what `roots` do not name, where it is more than `waste_max` of a pack.

        `roots` yields groups of live ids, duplicates welcome; it is run through once, memory stays
        flat. Of the root records the newest ROOTS_KEPT stay; what they name must be in `roots`.
        put(), sync() and fetch() go on meanwhile. Calls begin_touch() if the caller has not.
        `seal`: copies lie in sealed packs before what they are copies of is removed.

        Raises CollectionAbandoned when too many known chunks were put meanwhile, StorageFull and
        StorageFailed; nothing live is lost then.
        """
        with self._collect_lock:
            try:
                if not self._dedup.touching:
                    self.begin_touch()
                with Marks.scratch(self._index) as marks:
                    marks.add(roots() if callable(roots) else roots)
                    marks.settle()
                    return self._collect(marks, dry_run=dry_run, waste_max=waste_max, seal=seal)
            finally:
                self._dedup.end_touch()

    def _collect(
        self, marks: Marks, *, dry_run: bool, waste_max: float, seal: bool
    ) -> CollectReport:
        kept = self._roots.kept()
        size = self.options.pack_bytes_max
        plan = plan_collection(
            pack_uses(self._index, marks, kept, before=self._barrier),
            waste_max=waste_max,
            small_bytes=size // SMALL_PART,
        )
        report = CollectReport(plan, dry_run, marks.count)
        if dry_run or not plan.condemned:
            return report
        touched = self._dedup.condemn(plan.condemned)
        Collection(
            disk=self.disk,
            folder=self._packs_folder,
            index=self._index,
            writer=self._writer,
            files=self._files,
            encoder=self._encoder,
            marks=marks,
            touched=touched,
            kept_roots=set(kept),
            secure=self._seal if seal else self._writer.flush,
        ).run(plan, report, batch_bytes=size)
        return report

    def check(self, *, data: bool = False) -> list[CheckResult]:
        """Check every promise of the store; with `data` read every record back.

        Chunks found damaged are known as such from now on: damaged() names them, and putting their
        bytes again repairs them.
        """
        with self._collect_lock:
            border = self._writer.flush()
            with self._index.still():
                results = Checker(
                    disk=self.disk,
                    folder=self._packs_folder,
                    identity=self._identity,
                    index=self._index,
                    border=border,
                    data=data,
                ).run()
        names = [ChunkId(name) for result in results for name in result.damaged]
        places = self._index.lookup(names)
        self._dedup.report_damaged({name: place.pack for name, place in places.items()})
        return [*results, *self._fetched.check(data=data)]

    # ---- state ----

    def stats(self) -> StoreStats:
        """Return counters; costs no I/O."""
        written = self._writer.sizes()
        sizes = {row.number: row.bytes for row in self._index.packs.values()} | written
        with self._counts_lock:
            return StoreStats(
                chunks=self._index.rows + len(self._writer.pending),
                packs=len(sizes),
                pack_bytes=sum(sizes.values()),
                pending_chunks=len(self._writer.pending),
                index_runs=self._index.run_count,
                put_chunks=self._put_chunks,
                put_bytes=self._put_bytes,
                new_chunks=self._new_chunks,
                new_raw_bytes=self._writer.appended_raw_bytes,
                new_stored_bytes=self._writer.appended_stored_bytes,
                dedup_hits=self._dedup_hits,
                cache_hits=self._cache.hits,
                cache_misses=self._cache.misses,
                cache_bytes=self._cache.bytes,
                damaged_chunks=len(self._dedup.damaged),
                fetched=self._fetched.stats(),
            )

    def free_bytes(self) -> int:
        """Return the bytes that may still be written to the store's disk."""
        return self.disk.free_bytes(self.folder)

    def total_bytes(self) -> int:
        """Return the size of the store's disk in bytes."""
        return self.disk.total_bytes(self.folder)

    def close(self) -> None:
        """Make everything durable, tell the index, release the folder. Idempotent.

        Raises StorageFull or StorageFailed when that failed; the store is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as steps:  # run from the last to the first, whatever fails
            steps.callback(self._lock_file.close)
            steps.callback(self._files.close)
            steps.callback(self._merger.join)
            steps.callback(self._index.close)
            steps.callback(self._fetched.close)
            steps.callback(self._writer.close)
