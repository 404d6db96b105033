"""Appending to the packs of the fetched series. Nothing is ever synced on the way.

A block lost to a power cut costs a fetch, and what a cut leaves is verified when it is read. So a
full pack gets its table at once, the index is told of sealed packs only, in batches, and an
unsealed pack is scanned at the next start. Of the guarantees of `writer` one is kept: what was
appended is readable at once, through `pending`, until the index has it.

Locks, in this order: `_telling` (one batch for the index at a time), `_lock` (the open pack's end,
`pending`; held during pwritev).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from blockstore.disk import Disk, DiskFile
from blockstore.errors import OrbitError
from blockstore.fetched_index import FetchedIndex
from blockstore.ids import Buffer, ChunkId, Location, PackId, pack_name
from blockstore.index import PackRow, PackState
from blockstore.packfile import (
    HEADER_BYTES,
    Entry,
    PackHeader,
    encode_pack_header,
    encode_record_header,
    encode_seal,
    pack_salt,
    record_entries,
)
from blockstore.writer import Record

# Blocks that shrink to nothing would fill a pack with a table of megabytes; whoever evicts it
# works through them all.
_ENTRIES_MAX = 4_096
_READY_PACKS_MAX = 64  # the next start after a kill reads their tables
_BEHIND = 4  # times the usual number of pending blocks, when the index takes none


class OpenPack:
    """The pack that takes blocks."""

    def __init__(self, number: PackId, file: DiskFile, salt: int) -> None:
        self.number = number
        self.file = file
        self.salt = salt
        self.end = HEADER_BYTES  # where the next record goes
        self.entries: list[Entry] = []
        self.ragged = False  # bytes of a failed write may lie beyond `end`


class FetchedWriter:
    """The only one that writes packs of this series. Safe to use from several threads."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        header: PackHeader,
        index: FetchedIndex,
        *,
        pack_bytes: int,
        pending_max: int,
        next_pack: PackId,
        adopted: OpenPack | None,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._header = header
        self._index = index
        self._pack_bytes = pack_bytes
        self._pending_max = pending_max
        self._next_pack = next_pack
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._open = adopted
        self._ready: dict[ChunkId, Location] = {}  # in sealed packs, not told to the index
        self._ready_packs: list[PackRow] = []
        self._tell_error: OrbitError | None = None
        self.pending: dict[ChunkId, Location] = {}  # readers look here first
        if adopted is not None:
            self.pending = {entry.id: entry.location(adopted.number) for entry in adopted.entries}
        self._bytes = adopted.end if adopted is not None else 0
        self._bytes += sum(row.bytes for row in index.packs.values())
        self.on_batch: Callable[[], None] = lambda: None
        self.appended_blocks = 0
        self.appended_bytes = 0

    @property
    def bytes(self) -> int:
        """Size of all packs of the series."""
        return self._bytes

    @property
    def next_pack(self) -> PackId:
        """Number the next pack will get."""
        return self._next_pack

    @property
    def open_pack(self) -> PackId | None:
        """Number of the pack that takes blocks."""
        opened = self._open
        return None if opened is None else opened.number

    def ready_packs(self) -> dict[PackId, PackRow]:
        """Return the packs that take no more blocks and that the index does not know yet."""
        with self._lock:
            return {row.number: row for row in self._ready_packs}

    def forget(self, pack: PackId) -> None:
        """Never tell the index of a pack that is about to be removed."""
        with self._telling, self._lock:
            rest = [row for row in self._ready_packs if row.number != pack]
            if len(rest) < len(self._ready_packs):
                self._ready_packs = rest
                for names in (self._ready, self.pending):
                    for name in [name for name, place in names.items() if place.pack == pack]:
                        del names[name]

    def end_open(self) -> None:
        """Let the open pack take no more blocks, without a table if the disk has no room for it."""
        with self._lock:
            pack = self._open
            if pack is not None and pack.entries:
                try:
                    self._seal(pack)
                except OrbitError:
                    self._end(pack, pack.end)  # whoever needs the table scans the pack instead

    def unlinked(self, size: int) -> None:
        """Note that a pack is gone."""
        with self._lock:
            self._bytes -= size

    def counts(self) -> tuple[int, int]:
        """Return how many packs and blocks there are that the index does not know."""
        with self._lock:
            opened = 0 if self._open is None else len(self._open.entries)
            packs = len(self._ready_packs) + (self._open is not None)
            return packs, opened + sum(row.records for row in self._ready_packs)

    # ---- appending ----

    def append(self, records: Sequence[Record]) -> set[PackId]:
        """Append records that are not pending already; return the packs they went to.

        Raises StorageFull and StorageFailed; some of them may have been written then.
        """
        packs: set[PackId] = set()
        with self._lock:
            behind = len(self.pending) > _BEHIND * self._pending_max + _ENTRIES_MAX
            if behind and self._tell_error is not None:
                raise self._tell_error
            position = 0
            while position < len(records):
                position = self._append_some(records, position, packs)
            full = self._batch_is_full()
        if full:
            # The blocks are kept whether the index has room for its rows now or later.
            with contextlib.suppress(OrbitError):
                self.tell()
        return packs

    def _append_some(self, records: Sequence[Record], position: int, packs: set[PackId]) -> int:
        """Append from `position` on what one pack has room for; return how far that is."""
        pack = self._room()
        offset = pack.end
        buffers: list[Buffer] = []
        entries: list[Entry] = []
        batch: set[ChunkId] = set()
        budget = _ENTRIES_MAX - len(pack.entries)
        while position < len(records) and offset < self._pack_bytes and len(entries) < budget:
            header, payload = records[position]
            position += 1
            name = header.id
            place = self.pending.get(name)
            if name in batch or (place is not None and not self._index.is_void(place)):
                continue  # another thread stored the same bytes a moment ago
            listed = record_entries(header, payload, offset)
            assert listed is not None
            batch.add(name)
            buffers += (encode_record_header(header, offset, pack.salt), payload)
            entries += listed
            offset = listed[0].end
        if entries:
            self._write(pack, buffers)
            grown = offset - pack.end
            pack.end = offset
            pack.entries += entries
            packs.add(pack.number)
            for entry in entries:
                self.pending[entry.id] = entry.location(pack.number)
            self._bytes += grown
            self.appended_bytes += grown
            self.appended_blocks += len(entries)
        return position

    def _room(self) -> OpenPack:
        pack = self._open
        if pack is not None and (pack.end >= self._pack_bytes or len(pack.entries) >= _ENTRIES_MAX):
            self._seal(pack)
            pack = None
        if pack is None:
            pack = self._open = self._create()
        return pack

    def _create(self) -> OpenPack:
        number = self._next_pack
        path = self._folder / pack_name(number)
        # Counted before the attempt: a name that failed half-way is never used again.
        self._next_pack = PackId(number + 1)
        file = self._disk.open(path, create=True)
        try:
            file.pwritev([encode_pack_header(self._header._replace(pack=number))], 0)
        except BaseException:
            file.close()
            with contextlib.suppress(OrbitError, FileNotFoundError):
                self._disk.unlink(path)
            raise
        self._bytes += HEADER_BYTES
        return OpenPack(number, file, pack_salt(self._header.store_uuid, number))

    @staticmethod
    def _write(pack: OpenPack, buffers: Sequence[Buffer]) -> None:
        """Write at the pack's end, or leave the pack as it was."""
        if pack.ragged:
            pack.file.truncate(pack.end)
            pack.ragged = False
        try:
            pack.file.pwritev(buffers, pack.end)
        except OrbitError:
            pack.ragged = True
            with contextlib.suppress(OrbitError):
                pack.file.truncate(pack.end)
                pack.ragged = False
            raise

    def _seal(self, pack: OpenPack) -> None:
        """Write a full pack's table; on an error the pack stays open and is tried again later."""
        seal = encode_seal(pack.entries, pack.end, pack.salt)
        self._write(pack, [seal])
        self._bytes += len(seal)
        self._end(pack, pack.end + len(seal))

    def _end(self, pack: OpenPack, size: int) -> None:
        self._open = None
        self._ready.update((entry.id, entry.location(pack.number)) for entry in pack.entries)
        self._ready_packs.append(PackRow(pack.number, size, len(pack.entries), PackState.SEALED))
        with contextlib.suppress(OrbitError):
            pack.file.close()

    # ---- telling the index ----

    def _batch_is_full(self) -> bool:
        return len(self._ready) >= self._pending_max or len(self._ready_packs) >= _READY_PACKS_MAX

    def tell(self, *, seal: bool = False) -> None:
        """Tell the index of all sealed packs; with `seal`, end the open pack first.

        Raises StorageFull and StorageFailed; the blocks stay readable, and the next call tries
        again.
        """
        with self._telling:
            with self._lock:
                pack = self._open
                if seal and pack is not None and pack.entries:
                    self._seal(pack)
                rows, packs = dict(self._ready), list(self._ready_packs)
            if not packs:
                return
            try:
                self._index.add(rows, packs)
            except OrbitError as error:
                self._tell_error = error
                raise
            with self._lock:
                self._tell_error = None
                del self._ready_packs[: len(packs)]
                for name, place in rows.items():
                    if self._ready.get(name) == place:
                        del self._ready[name]
                    if self.pending.get(name) == place:
                        del self.pending[name]
        self.on_batch()

    def close(self) -> None:
        """Seal what is open, so that the next start reads nothing, and tell the index."""
        try:
            self.tell(seal=True)
        finally:
            if self._open is not None:
                with contextlib.suppress(OrbitError):
                    self._open.file.close()
