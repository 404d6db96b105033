"""Opening the fetched series: which packs are there, and what a crash has left of them.

Costs what the last run left open: packs the index knows are not looked at. What is unreadable is
thrown away, for it can be had again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from blockstore.disk import Disk, DiskFile
from blockstore.errors import FormatTooNew, OrbitError
from blockstore.fetched_index import FetchedIndex
from blockstore.fetched_writer import OpenPack
from blockstore.ids import ChunkId, Location, PackId, chunk_id, pack_name, pack_number
from blockstore.index import IndexDamaged, PackRow, PackState
from blockstore.opening import Identity, remove_index
from blockstore.packfile import (
    HEADER_BYTES,
    SERIES_FETCHED,
    FormatError,
    PackHeader,
    decode_pack_header,
    encode_seal,
    pack_salt,
    read_seal,
    scan,
)

FETCHED_FOLDER = "fetched"
FETCHED_INDEX = "fetched.db"
_BATCH_ROWS = 65_536


def fetched_header(identity: Identity) -> PackHeader:
    """Return the header of a store's fetched packs, without their number.

    They have a uuid of their own, made from the store's: no record of one series is ever valid in
    a pack of the other, and no fetched pack is taken for an own one, wherever it is moved.
    """
    uuid = chunk_id(b"orbit fetched " + identity.uuid)[:16]
    return PackHeader(uuid, PackId(0), SERIES_FETCHED, identity.chunker)


def open_fetched_index(disk: Disk, folder: Path, uuid: bytes) -> FetchedIndex:
    """Open fetched.db; start an empty one in place of one that is missing or damaged."""
    path = folder / FETCHED_INDEX
    if disk.exists(path):
        with contextlib.suppress(IndexDamaged):
            return FetchedIndex.load(path, disk, uuid)
    remove_index(disk, folder, FETCHED_INDEX)
    return FetchedIndex.create(path, disk, uuid)


@dataclass(frozen=True, slots=True)
class FetchedRecovered:
    """Where the writer goes on."""

    next_pack: PackId
    adopted: OpenPack | None  # the newest pack, when it is not sealed


@dataclass(frozen=True, slots=True)
class FetchedRecovery:
    """Brings index and packs of the fetched series together."""

    disk: Disk
    folder: Path  # of the packs
    header: PackHeader
    index: FetchedIndex
    pack_bytes: int

    def run(self) -> FetchedRecovered:
        """Do it. Raises StorageFull and StorageFailed when the index cannot be written."""
        names = self.disk.listdir(self.folder)
        present = {number for name in names if (number := pack_number(name)) is not None}
        rows_of = self.index.packs
        highest = max([self.index.next_pack() - 1, *present, *rows_of])
        for number in rows_of.keys() & present:
            if rows_of[number].state is PackState.CONDEMNED:
                self._remove(self.folder / pack_name(number))
                present.discard(number)
        gone = sorted((rows_of.keys() | self.index.void_counts().keys()) - present)
        if gone:
            self.index.retire(gone)
            self.disk.fsync_dir(self.folder)
            self.index.forget(gone)
        known = set(self.index.packs)
        rows: dict[ChunkId, Location] = {}
        packs: list[PackRow] = []
        adopted: OpenPack | None = None
        for number in sorted(present - known):
            if adopted is not None:
                self._seal(adopted, rows, packs)
            adopted = self._recover_pack(number, rows, packs)
            if len(rows) >= _BATCH_ROWS:
                self.index.add(rows, packs)
                rows, packs = {}, []
        if adopted is not None and adopted.end >= self.pack_bytes:
            self._seal(adopted, rows, packs)
            adopted = None
        if packs:
            self.index.add(rows, packs)
        if adopted is not None:
            self.index.unvoid(adopted.number, adopted.end)
        return FetchedRecovered(PackId(highest + 1), adopted)

    def _recover_pack(
        self, number: PackId, rows: dict[ChunkId, Location], packs: list[PackRow]
    ) -> OpenPack | None:
        """Read one pack; return it for writing when it is not sealed. A useless one is removed."""
        path = self.folder / pack_name(number)
        try:
            file = self.disk.open(path, writable=True)
        except FileNotFoundError:
            return None
        except OrbitError:
            self._remove(path)
            return None
        keep = False
        try:
            if self._foreign(file, path):
                return None
            salt = pack_salt(self.header.store_uuid, number)
            size = file.size()
            table = read_seal(file.pread, size, salt)
            if table is not None:
                rows.update((entry.id, entry.location(number)) for entry in table)
                packs.append(PackRow(number, size, len(table), PackState.SEALED))
                return None
            entries = [entry for item in scan(file.pread, size, salt) for entry in item.entries]
            pack = OpenPack(number, file, salt)
            pack.entries = entries
            pack.end = max([HEADER_BYTES, *(entry.end for entry in entries)])
            if entries:
                if size > pack.end:
                    file.truncate(pack.end)
                keep = True
                return pack
        except OrbitError:
            pass  # a disk that does not read or cut this pack may still have room for others
        finally:
            if not keep:
                with contextlib.suppress(OrbitError):
                    file.close()
        self._remove(path)
        return None

    def _foreign(self, file: DiskFile, path: Path) -> bool:
        """Tell whether the pack is of another store or series: not ours to read or remove."""
        try:
            header = decode_pack_header(file.pread(HEADER_BYTES, 0), str(path))
        except FormatError:
            return False  # torn: its records vouch for themselves
        except FormatTooNew:
            return True
        return header.store_uuid != self.header.store_uuid

    def _seal(self, pack: OpenPack, rows: dict[ChunkId, Location], packs: list[PackRow]) -> None:
        """Seal a pack that will not be continued."""
        seal = encode_seal(pack.entries, pack.end, pack.salt)
        try:
            pack.file.pwritev([seal], pack.end)
        except OrbitError:
            self._remove(self.folder / pack_name(pack.number))
            return
        finally:
            with contextlib.suppress(OrbitError):
                pack.file.close()
        rows.update((entry.id, entry.location(pack.number)) for entry in pack.entries)
        size = pack.end + len(seal)
        packs.append(PackRow(pack.number, size, len(pack.entries), PackState.SEALED))

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OrbitError, FileNotFoundError):
            self.disk.unlink(path)
