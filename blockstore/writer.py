"""Appending records to packs, and making them durable.

Life of a pack here: open (taking records) → full (no more records) → sealed (table and trailer
durable). A pack whose sync failed becomes suspect: the kernel may have dropped its unsynced pages
and marked them clean, so a second fdatasync proves nothing; its unsynced records are read back,
verified and appended to another pack before a sync may succeed again.

Locks, taken in this order:
  `_sync_lock`    one sync, seal, salvage or index batch at a time; held during fdatasync
  `_append_lock`  the open pack's end, `pending`, and the lists of packs; held during pwritev
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from blockstore.disk import Disk, DiskFile
from blockstore.errors import OrbitError, StorageFailed, StorageFull
from blockstore.ids import Buffer, ChunkId, Location, PackId, chunk_id, pack_name
from blockstore.index import Index, PackRow, PackState, RootRow
from blockstore.packfile import (
    GROUP_CHUNKS_MAX,
    HEADER_BYTES,
    PACK_ENTRIES_MAX,
    RECORD_BYTES,
    Entry,
    Kind,
    PackHeader,
    RecordHeader,
    decode_record_header,
    encode_pack_header,
    encode_record_header,
    encode_seal,
    pack_salt,
    payload_check,
    payload_intact,
    record_entries,
)

# Full packs that wait for a sync before appending has to wait for one: two let the disk work
# on one while the next fills.
_UNSEALED_PACKS_MAX = 3

# An open pack of so many entries is sealed at closing: going on in it means reading the header of
# each record at the next opening (60,000 chunks of 1 kB: 0.5 s). Packs of fewer are gone on with.
_ENTRIES_WORTH_SEALING = 4_096

_ENTRIES_FULL = PACK_ENTRIES_MAX - GROUP_CHUNKS_MAX  # one more record always fits


class Record(NamedTuple):
    """A record to append."""

    header: RecordHeader
    payload: Buffer


def chunk_record(name: ChunkId, raw_length: int, codec: int, payload: Buffer) -> Record:
    """Return the record of a chunk."""
    # Stored as it is, the payload's hash is the chunk's id: no second hash.
    check = name[:8] if codec == 0 else payload_check(payload)
    return Record(RecordHeader(Kind.CHUNK, codec, raw_length, len(payload), name, check), payload)


def root_record(raw: bytes) -> Record:
    """Return the record of a root; `raw` begins with its sequence number."""
    name = chunk_id(raw)
    return Record(RecordHeader(Kind.ROOT, 0, len(raw), len(raw), name, name[:8]), raw)


ROOT_SEQ_BYTES = 8


class WritePack:
    """A pack that is not sealed yet. Fields are guarded by the writer's locks."""

    def __init__(self, number: PackId, file: DiskFile, salt: int) -> None:
        self.number = number
        self.file = file
        self.salt = salt
        self.end = HEADER_BYTES  # where the next record goes
        self.entries: list[Entry] = []
        self.roots: list[RootRow] = []  # not durable yet
        self.synced_end = HEADER_BYTES
        self.synced_entries = 0
        self.ragged = False  # bytes of a failed write may lie beyond `end`
        self.listed = False  # its directory entry is durable


class Writer:
    """The only one that writes packs. Safe to use from several threads."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        header: PackHeader,
        index: Index,
        *,
        pack_bytes_max: int,
        pending_max: int,
        next_pack: PackId,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._header = header
        self._index = index
        self._pack_bytes_max = pack_bytes_max
        self._pending_max = pending_max
        self._next_pack = next_pack
        self._sync_lock = threading.Lock()
        self._append_lock = threading.Lock()
        self._open: WritePack | None = None
        self._full: list[WritePack] = []
        self._suspect: list[WritePack] = []
        self._lost: set[ChunkId] = set()
        # Files, and up to where they count (0: not at all), that are still to be cut to that.
        self._rubbish: dict[Path, int] = {}
        # Durable, waiting to be told to the index in one batch.
        self._ready: dict[ChunkId, Location] = {}
        self._ready_roots: list[RootRow] = []
        self._ready_packs: dict[PackId, PackRow] = {}
        # Records the index does not know yet: readers look here first.
        self.pending: dict[ChunkId, Location] = {}
        self.pending_roots: dict[int, RootRow] = {}
        self._seal_error: OrbitError | None = None
        self.index_error: OrbitError | None = None
        self.on_batch: Callable[[], None] = lambda: None
        self.appended_raw_bytes = 0
        self.appended_stored_bytes = 0

    # ---- appending ----

    def adopt(self, pack: WritePack) -> None:
        """Go on with an unsealed pack found at opening (all of it durable and indexed)."""
        self._open = pack

    @property
    def next_pack(self) -> PackId:
        """Number the next pack will get."""
        return self._next_pack

    def sizes(self) -> dict[PackId, int]:
        """Bytes of the packs of which the index knows less yet, or nothing; waits for nobody."""
        sizes = {row.number: row.bytes for row in list(self._ready_packs.values())}
        for pack in (*self._full, *self._suspect, self._open):
            if pack is not None:
                sizes[pack.number] = pack.end
        return sizes

    def append(self, records: Sequence[Record], *, again: bool = False) -> int:
        """Append records that are not pending already; return how many were written.

        With `again`, write them even so. On an error some of them may have been written; those
        are whole, and nothing was promised for the others.
        """
        if len(self._full) + len(self._suspect) >= _UNSEALED_PACKS_MAX or (
            len(self.pending) > 2 * self._pending_max
        ):
            self.sync()
            if len(self.pending) > 8 * self._pending_max and self.index_error is not None:
                raise self.index_error
            if len(self._full) >= _UNSEALED_PACKS_MAX and self._seal_error is not None:
                raise self._seal_error
        with self._append_lock:
            return self._append(records, again)

    def _append(self, records: Sequence[Record], again: bool) -> int:
        pending = self.pending
        written = 0
        position = 0
        while position < len(records):
            pack = self._room()
            offset = pack.end
            buffers: list[Buffer] = []
            entries: list[Entry] = []
            roots: list[RootRow] = []
            limit = self._pack_bytes_max
            budget = _ENTRIES_FULL - len(pack.entries)
            stored = 0
            batch: set[ChunkId] = set()
            while position < len(records) and offset < limit and len(entries) < budget:
                header, payload = records[position]
                position += 1
                listed = record_entries(header, payload, offset)
                assert listed is not None
                if header.kind == Kind.ROOT:
                    seq = int.from_bytes(memoryview(payload)[:ROOT_SEQ_BYTES], "little")
                    roots.append(RootRow(seq, listed[0].location(pack.number)))
                elif all(e.id in batch or (e.id in pending and not again) for e in listed):
                    continue  # another thread stored the same bytes a moment ago
                batch.update(entry.id for entry in listed)
                buffers.append(encode_record_header(header, offset, pack.salt))
                buffers.append(payload)
                entries += listed
                stored += header.stored_length
                offset = listed[0].end
            if not entries:
                continue
            self._write(pack, buffers, pack.end)
            pack.end = offset
            pack.entries += entries
            pack.roots += roots
            for root in roots:
                self.pending_roots[root.seq] = root
            number = pack.number
            for entry in entries:
                if entry.is_chunk:
                    pending[entry.id] = entry.location(number)
                    self.appended_raw_bytes += entry.raw_length
            self.appended_stored_bytes += stored
            if self._lost:
                self._lost.difference_update(entry.id for entry in entries)
            written += len(entries)
        return written

    def _room(self) -> WritePack:
        """Return an open pack with room for a record."""
        pack = self._open
        if pack is not None and (
            pack.end >= self._pack_bytes_max or len(pack.entries) >= _ENTRIES_FULL
        ):
            self._full.append(pack)
            self._open = pack = None
        if pack is None:
            pack = self._open = self._create()
        return pack

    def _create(self) -> WritePack:
        number = self._next_pack
        path = self._folder / pack_name(number)
        # Counted before the attempt: a name that failed half-way is never used again.
        self._next_pack = PackId(number + 1)
        file = self._disk.open(path, create=True)
        pack = WritePack(number, file, pack_salt(self._header.store_uuid, number))
        try:
            file.pwritev([encode_pack_header(self._header._replace(pack=number))], 0)
        except OrbitError:
            file.close()
            self._rubbish[path] = 0
            self._clear_rubbish()
            raise
        return pack

    def _clear_rubbish(self) -> None:
        """Cut or remove what failures have left in files, as far as the disk does it now."""
        for path, end in list(self._rubbish.items()):
            with contextlib.suppress(OrbitError):
                with contextlib.suppress(FileNotFoundError):
                    self._cut(path, end)
                self._rubbish.pop(path, None)

    def _cut(self, path: Path, end: int) -> None:
        if not end:
            self._disk.unlink(path)
            return
        file = self._disk.open(path, writable=True)
        try:
            file.truncate(end)
        finally:
            file.close()

    def _write(self, pack: WritePack, buffers: Sequence[Buffer], offset: int) -> None:
        """Write at the pack's end, or leave the pack as it was."""
        if pack.ragged:
            pack.file.truncate(pack.end)
            pack.ragged = False
        try:
            pack.file.pwritev(buffers, offset)
        except OrbitError:
            pack.ragged = True
            with contextlib.suppress(OrbitError):
                pack.file.truncate(pack.end)
                pack.ragged = False
            raise

    # ---- making durable ----

    @property
    def seal_error(self) -> OrbitError | None:
        """Why the last sync could not write the table of a full pack; None if it could."""
        return self._seal_error

    @property
    def unsynced(self) -> bool:
        """Whether sync() has anything to do."""
        with self._append_lock:
            opened = self._open
            return bool(
                self._full
                or self._suspect
                or self._lost
                or (opened is not None and opened.synced_end < opened.end)
            )

    def sync(self) -> None:
        """Make all records appended before the call durable.

        Raises StorageFull or StorageFailed; the records stay readable and the next call tries
        again. Callers that come while another one is syncing share the next sync.
        """
        if not self.unsynced:
            return
        with self._sync_lock:
            self._sync()
            if len(self._ready) >= self._pending_max:
                self._tell_index_leniently()

    def _sync(self) -> None:
        """Make everything durable; `_sync_lock` is held."""
        if not self.unsynced:
            return
        if self._suspect:
            self._salvage()
        with self._append_lock:
            if self._lost:
                some = next(iter(self._lost)).hex()
                raise StorageFailed(
                    f"the disk lost {len(self._lost)} chunks before they were durable "
                    f"(one of them is {some}): write the data again"
                )
            full = list(self._full)
            opened = self._open
            work = [*full]
            if opened is not None and opened.synced_end < opened.end:
                work.append(opened)
            marks = [(pack, pack.end, len(pack.entries), len(pack.roots)) for pack in work]
        for pack, end, count, roots in marks:
            try:
                pack.file.fdatasync()
                if not pack.listed:
                    self._disk.fsync_dir(self._folder)
                    pack.listed = True
            except OrbitError:
                self._give_up_on(pack)
                raise
            self._settle(pack, end, count, roots)
        self._seal_error = None
        for pack in full:
            try:
                self._seal(pack)
            except (StorageFull, StorageFailed) as error:
                self._seal_error = error  # the records are durable: sync has kept its promise

    def _settle(self, pack: WritePack, end: int, count: int, roots: int) -> None:
        """Note that a pack is durable up to `end`."""
        with self._append_lock:
            for entry in pack.entries[pack.synced_entries : count]:
                if entry.is_chunk:
                    self._ready[entry.id] = entry.location(pack.number)
            self._ready_roots += pack.roots[:roots]
            del pack.roots[:roots]
            pack.synced_end = end
            pack.synced_entries = count
            self._ready_packs[pack.number] = PackRow(pack.number, end, count, PackState.OPEN)

    def _seal(self, pack: WritePack) -> None:
        """Write a full pack's table. Its records are durable, so a valid table vouches for them.

        Without room for the table the pack stays unsealed and whole, and is tried again later.
        """
        seal = encode_seal(pack.entries, pack.end, pack.salt)
        size = pack.end + len(seal)
        self._write(pack, [seal], pack.end)
        try:
            pack.file.fdatasync()
        except OrbitError:
            # The records were durable before; only the table is in doubt. It is written anew.
            pack.ragged = True
            raise
        with self._append_lock:
            self._full.remove(pack)
            self._ready_packs[pack.number] = PackRow(
                pack.number, size, len(pack.entries), PackState.SEALED
            )
        pack.file.close()

    def _give_up_on(self, pack: WritePack) -> None:
        with self._append_lock:
            if pack in self._full:
                self._full.remove(pack)
            elif self._open is pack:
                self._open = None
            self._suspect.append(pack)

    def _salvage(self) -> None:
        """Append the unsynced records of suspect packs to a fresh one."""
        while self._suspect:
            pack = self._suspect[0]
            records = []
            lost: set[ChunkId] = set()
            lost_roots: set[int] = set()
            with self._append_lock:
                unsynced: dict[int, list[Entry]] = {}  # by record
                for entry in pack.entries[pack.synced_entries :]:
                    place = entry.location(pack.number)
                    if entry.kind == Kind.ROOT or self.pending.get(entry.id) == place:
                        unsynced.setdefault(entry.offset, []).append(entry)
            for offset, entries in unsynced.items():
                record = self._read_back(pack, entries[0])
                if record is not None:
                    records.append(record)
                elif entries[0].is_chunk:
                    lost.update(entry.id for entry in entries)
                else:
                    lost_roots.add(offset)
            with self._append_lock:
                # One at a time: memory was bounded by the pack that is being copied.
                self._append(records, again=True)
                for name in lost:
                    self.pending.pop(name, None)
                self._lost |= lost
                for root in pack.roots:
                    if root.location.offset in lost_roots:
                        self.pending_roots.pop(root.seq, None)
                self._suspect.pop(0)
            # Without this the next start would find records that may never have reached the
            # disk in the page cache, and believe them.
            keep = pack.synced_end if pack.synced_entries else 0
            self._rubbish[self._folder / pack_name(pack.number)] = keep
            self._clear_rubbish()
            pack.file.close()
            if lost_roots:
                raise StorageFailed(
                    "the disk lost a root record before it was durable: add it again"
                )

    @staticmethod
    def _read_back(pack: WritePack, entry: Entry) -> Record | None:
        try:
            data = pack.file.pread(RECORD_BYTES + entry.stored_length, entry.offset)
        except OrbitError:
            return None
        header = decode_record_header(data, entry.offset, pack.salt)
        payload = memoryview(data)[RECORD_BYTES:]
        if header is None or not payload_intact(header, payload):
            return None
        listed = record_entries(header, payload, entry.offset)
        return Record(header, payload) if listed is not None and entry in listed else None

    # ---- telling the index ----

    def flush(self, *, seal: bool = False) -> PackId:
        """Sync, then tell the index all there is; with `seal`, end the open pack first.

        Returns a number: the index knows all records of packs below it, if `seal` is given.
        """
        with self._sync_lock:
            with self._append_lock:
                if seal and self._open is not None and self._open.entries:
                    self._full.append(self._open)
                    self._open = None
                border = self._next_pack
            self._sync()
            self._clear_rubbish()
            self._tell_index()
            return border

    def _tell_index_leniently(self) -> None:
        # What was asked for is durable; a full disk under the index only delays the batch.
        try:
            self._tell_index()
            self.index_error = None
        except (StorageFull, StorageFailed) as error:
            self.index_error = error

    def _tell_index(self) -> None:
        if not (self._ready or self._ready_roots or self._ready_packs):
            return
        self._index.add(self._ready, self._ready_packs.values(), self._ready_roots)
        told, self._ready = self._ready, {}
        roots, self._ready_roots = self._ready_roots, []
        self._ready_packs = {}
        with self._append_lock:
            for name, location in told.items():
                if self.pending.get(name) == location:
                    del self.pending[name]
            for root in roots:
                self.pending_roots.pop(root.seq, None)
        self.on_batch()

    def close(self) -> None:
        """Flush and close; an open pack of few entries is continued at the next opening."""
        opened = self._open
        try:
            self.flush(seal=opened is not None and len(opened.entries) >= _ENTRIES_WORTH_SEALING)
        finally:
            for pack in (*self._full, *self._suspect, *([self._open] if self._open else [])):
                with contextlib.suppress(OrbitError):
                    pack.file.close()
