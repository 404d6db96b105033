"""Opening a store: its identity, and bringing packs and index together after a crash.

What is done here depends only on what the last run left open: packs that the index knows as sealed
are not touched. All other packs are either sealed on disk (their table is read) or scanned; torn
ends are cut, and what is found is made durable before the index is told.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from blockstore.chunker import ChunkerParams
from blockstore.database import SCRATCH_FILE
from blockstore.disk import Disk, write_again
from blockstore.errors import FormatTooNew, StoreInvalid
from blockstore.ids import ChunkId, Location, PackId, pack_name, pack_number
from blockstore.index import Index, IndexDamaged, PackRow, PackState, RootRow
from blockstore.packfile import (
    FORMAT_VERSION,
    HEADER_BYTES,
    RECORD_BYTES,
    TORN_MAGIC,
    Entry,
    FormatError,
    Kind,
    PackHeader,
    ReadAt,
    decode_pack_header,
    encode_pack_header,
    encode_seal,
    pack_salt,
    read_seal,
    scan,
)
from blockstore.writer import ROOT_SEQ_BYTES, WritePack

STORE_FILE = "store.json"
INDEX_FILE = "chunks.db"
PACKS_FOLDER = "packs"
LOCK_FILE = "lock"
_REBUILD_BATCH_ROWS = 262_144
_INDEX_SUFFIXES = ("", "-wal", "-shm", "-journal")
_COMING_MAX = 64  # packs whose tables are brought at a time: some 10 MB


class IndexStale(Exception):
    """The index is about other packs than those that are there; it has to be rebuilt from them."""


@runtime_checkable
class SharedPacks(Protocol):
    """A disk whose sealed packs lie where other machines read and write, too.

    There they are whole, durable and never changed. Packs that are not sealed, and those on their
    way, are files like any other.
    """

    @property
    def near(self) -> bool:
        """Whether reading one costs no round trip."""

    def shares(self, pack: PackId) -> bool:
        """Whether this pack is one of those."""

    def vouches(self, row: PackRow) -> bool:
        """Whether a row of the index is about the pack of that number that is there now."""

    def coming(self, packs: Sequence[PackId]) -> None:
        """The tables of these are about to be read: bring them, several at a time."""

    def settle(self) -> None:
        """Return when all sealed packs are where others use them.

        Raises StorageFull, StorageFailed; the next call tries again.
        """


@dataclass(slots=True)
class OpenReport:
    """What opening a store had to do."""

    created: bool = False
    rebuilt: bool = False
    rebuild_reason: str = ""
    packs_read: int = 0  # packs that the index did not know whole
    records_found: int = 0  # records in them that the index did not know
    records_torn: int = 0  # half-written records with whole ones after them
    bytes_cut: int = 0  # torn ends of packs
    packs_missing: tuple[PackId, ...] = ()  # in the index, not on the disk


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a store this store."""

    uuid: bytes
    chunker: ChunkerParams

    def header(self, pack: PackId) -> PackHeader:
        """Return the header of one of its packs."""
        return PackHeader(self.uuid, pack, 0, self.chunker)


def load_identity(disk: Disk, folder: Path, wanted: ChunkerParams, report: OpenReport) -> Identity:
    """Read store.json; write it for a new store, or from a pack's header when it is missing.

    Raises StoreInvalid when the store was cut with other parameters, FormatTooNew.
    """
    path = folder / STORE_FILE
    identity = None
    if disk.exists(path):
        identity = _read_identity(disk, path)
    if identity is None:
        identity = _identity_from_packs(disk, folder / PACKS_FOLDER)
        if identity is None:
            identity = Identity(os.urandom(16), wanted)
            report.created = True
        write_identity(disk, folder, identity)
    if identity.chunker != wanted:
        raise StoreInvalid(
            f"{folder} is cut with {identity.chunker}, not with {wanted}: "
            "open it with the parameters it was made with"
        )
    return identity


def _read_identity(disk: Disk, path: Path) -> Identity | None:
    file = disk.open(path)
    try:
        raw = file.pread(65536, 0)
    finally:
        file.close()
    try:
        fields = json.loads(raw)
        version = int(fields["format"])
        if version > FORMAT_VERSION:
            raise FormatTooNew(str(path), version, FORMAT_VERSION)
        return Identity(bytes.fromhex(fields["uuid"]), ChunkerParams(**fields["chunker"]))
    except (ValueError, KeyError, TypeError):
        return None  # damaged: the packs know the same


def _identity_from_packs(disk: Disk, packs: Path) -> Identity | None:
    names = disk.listdir(packs)
    unreadable = False
    for name in sorted(names):
        if pack_number(name) is None:
            continue
        file = disk.open(packs / name)
        try:
            header = decode_pack_header(file.pread(HEADER_BYTES, 0), str(packs / name))
            return Identity(header.store_uuid, header.chunker)
        except FormatError:
            unreadable = unreadable or file.size() > HEADER_BYTES
        finally:
            file.close()
    if unreadable:
        raise StoreInvalid(
            f"{packs.parent / STORE_FILE} is missing or damaged and no pack has a whole header: "
            "restore that file from a backup"
        )
    return None


def write_identity(disk: Disk, folder: Path, identity: Identity) -> None:
    """Write store.json, durably."""
    fields = {
        "format": FORMAT_VERSION,
        "uuid": identity.uuid.hex(),
        "chunker": asdict(identity.chunker),
    }
    target = folder / STORE_FILE
    part = folder / f"{STORE_FILE}.part"
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(part)
    file = disk.open(part, create=True)
    try:
        file.pwritev([json.dumps(fields, indent=1).encode() + b"\n"], 0)
        file.fdatasync()
    finally:
        file.close()
    disk.rename(part, target)
    disk.fsync_dir(folder)


def open_index(disk: Disk, folder: Path, identity: Identity, report: OpenReport) -> Index:
    """Open chunks.db; start an empty one in place of one that is missing or damaged."""
    path = folder / INDEX_FILE
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(folder / SCRATCH_FILE)
    if disk.exists(path):
        try:
            return Index.load(path, disk, identity.uuid)
        except IndexDamaged as error:
            report.rebuild_reason = f"{INDEX_FILE} was damaged: {error}"
    elif not report.created:
        report.rebuild_reason = f"{INDEX_FILE} was missing"
    remove_index(disk, folder)
    report.rebuilt = bool(report.rebuild_reason)
    return Index.create(path, disk, identity.uuid)


def remove_index(disk: Disk, folder: Path, name: str = INDEX_FILE) -> None:
    """Remove an index, so that the next opening rebuilds it from its packs."""
    for suffix in _INDEX_SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(folder / f"{name}{suffix}")


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where the writer goes on."""

    next_pack: PackId
    adopted: WritePack | None  # the newest pack, when it is not sealed
    root_seq: int  # highest sequence number of a root


@dataclass(frozen=True, slots=True)
class Recovery:
    """Brings index and packs together; finishes removals that a crash interrupted."""

    disk: Disk
    folder: Path  # of the packs
    identity: Identity
    index: Index
    report: OpenReport
    pack_bytes_max: int

    def run(self) -> Recovered:
        """Do it. Costs what the last run left open, and what others have added meanwhile.

        Raises IndexStale, before anything is changed.
        """
        shared = self.disk if isinstance(self.disk, SharedPacks) else None
        known = self.index.packs
        if shared is not None and not all(shared.vouches(row) for row in known.values()):
            raise IndexStale
        names = self.disk.listdir(self.folder)
        present = {number for name in names if (number := pack_number(name)) is not None}
        condemned = self._finish_removals()
        highest = max([self.index.next_pack() - 1, *present, *self.index.packs, *condemned])
        present.difference_update(condemned)
        known = self.index.packs
        self.report.packs_missing = tuple(sorted(set(known) - present))
        if shared is not None and self.report.packs_missing:
            # Another machine has removed them; their numbers never come back: see `vouches`.
            self.index.forget(self.report.packs_missing)
        unsure = sorted(
            n for n in present if n not in known or known[n].state is not PackState.SEALED
        )
        if unsure:
            # Before the index names them: their directory entries may not be durable yet.
            self.disk.fsync_dir(self.folder)
        batch = _Batch(self.index)
        adopted: WritePack | None = None
        for start in range(0, len(unsure), _COMING_MAX):
            part = unsure[start : start + _COMING_MAX]
            if shared is not None:
                shared.coming([number for number in part if shared.shares(number)])
            for number in part:
                if shared is not None and shared.shares(number):
                    self._read_shared(number, batch, newest=number == max(present))
                else:
                    if adopted is not None:
                        self._seal(adopted, batch)
                    adopted = self._recover_pack(number, batch)
                batch.write_when_large()
                self.report.packs_read += 1
        if adopted is not None and adopted.end >= self.pack_bytes_max:
            self._seal(adopted, batch)
            adopted = None
        batch.write()
        if self.report.rebuilt:
            self.index.merge()
        seqs = [root.seq for root in self.index.roots()]
        return Recovered(PackId(highest + 1), adopted, max(seqs, default=0))

    def _finish_removals(self) -> list[PackId]:
        condemned = [n for n, row in self.index.packs.items() if row.state is PackState.CONDEMNED]
        if condemned:
            for number in condemned:
                with contextlib.suppress(FileNotFoundError):
                    self.disk.unlink(self.folder / pack_name(number))
            self.disk.fsync_dir(self.folder)
            self.index.forget(condemned)
        return condemned

    def _read_shared(self, number: PackId, batch: _Batch, *, newest: bool) -> None:
        """Read the table of a pack that others may use, too; nothing is repaired in it.

        The newest pack may have none: somebody writes it, or died over it. Only those that have
        sealed it count on it.
        """
        path = self.folder / pack_name(number)
        salt = pack_salt(self.identity.uuid, number)
        file = self.disk.open(path)
        try:
            size = file.size()
            entries = read_seal(file.pread, size, salt)
            if entries is None and newest:
                return
            if entries is None:
                # Damaged. Once: from now on the index knows what is in it.
                self._own_header(file.pread(HEADER_BYTES, 0), path)
                entries = [entry for item in scan(file.pread, size, salt) for entry in item.entries]
            self._take(number, entries, file.pread, batch)
            batch.packs.append(PackRow(number, size, len(entries), PackState.SEALED))
        finally:
            file.close()

    def _recover_pack(self, number: PackId, batch: _Batch) -> WritePack | None:
        """Read one pack into the batch; return it for writing when it is not sealed."""
        path = self.folder / pack_name(number)
        salt = pack_salt(self.identity.uuid, number)
        file = self.disk.open(path, writable=True)
        keep = False
        try:
            size = file.size()
            header_whole = self._own_header(file.pread(HEADER_BYTES, 0), path)
            table = read_seal(file.pread, size, salt)
            if table is not None:
                # The records were durable before the table was written.
                write_again(file, max([HEADER_BYTES, *(entry.end for entry in table)]), size)
                self._take(number, table, file.pread, batch)
                batch.packs.append(PackRow(number, size, len(table), PackState.SEALED))
                return None
            row = self.index.packs.get(number)
            indexed = row.bytes if row is not None else HEADER_BYTES
            found = list(scan(file.pread, size, salt, verify_from=indexed))
            entries = [entry for item in found for entry in item.entries]
            # Bytes that the index vouches for are never cut, whatever they look like now.
            end = max([indexed, *(entry.end for entry in entries)])
            if not header_whole:
                file.pwritev([encode_pack_header(self.identity.header(number))], 0)
            if size > end:
                file.truncate(end)
                self.report.bytes_cut += size - end
            for item in found:
                if not item.intact and item.end <= end:
                    # Torn, with whole records after it (they reached the disk in another order).
                    # Its header must not count as a record's once the index covers this place.
                    file.pwritev([TORN_MAGIC], item.offset)
                    self.report.records_torn += 1
            # What the index does not vouch for may be in the page cache only.
            write_again(file, 0 if row is None else indexed, end)
            self._take(number, entries, file.pread, batch)
            batch.packs.append(PackRow(number, end, len(entries), PackState.OPEN))
            pack = WritePack(number, file, salt)
            pack.entries = entries
            pack.end = pack.synced_end = end
            pack.synced_entries = len(entries)
            pack.listed = True
            keep = True
            return pack
        finally:
            if not keep:
                file.close()

    def _own_header(self, raw: bytes, path: Path) -> bool:
        """Tell whether the header is whole; raises StoreInvalid when it is another store's."""
        try:
            header = decode_pack_header(raw, str(path))
        except FormatError:
            return False  # torn or damaged: the records vouch for themselves
        if header.store_uuid != self.identity.uuid:
            raise StoreInvalid(f"{path} belongs to another store: move it away")
        return True

    def _take(self, number: PackId, entries: Iterable[Entry], read: ReadAt, batch: _Batch) -> None:
        row = self.index.packs.get(number)
        indexed = row.bytes if row is not None else HEADER_BYTES
        for entry in entries:
            location = entry.location(number)
            if entry.is_chunk and entry.offset >= indexed:
                batch.rows[entry.id] = location
                self.report.records_found += 1
            elif entry.kind == Kind.ROOT:
                raw = read(ROOT_SEQ_BYTES, entry.offset + RECORD_BYTES)
                batch.roots.append(RootRow(int.from_bytes(raw, "little"), location))

    @staticmethod
    def _seal(pack: WritePack, batch: _Batch) -> None:
        """Seal a pack that will not be continued; all its records are durable."""
        seal = encode_seal(pack.entries, pack.end, pack.salt)
        pack.file.pwritev([seal], pack.end)
        pack.file.fdatasync()
        pack.file.close()
        size = pack.end + len(seal)
        batch.packs.append(PackRow(pack.number, size, len(pack.entries), PackState.SEALED))


class _Batch:
    """Rows on their way into the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.rows: dict[ChunkId, Location] = {}
        self.packs: list[PackRow] = []
        self.roots: list[RootRow] = []

    def write(self) -> None:
        if self.rows or self.packs or self.roots:
            self._index.add(self.rows, self.packs, self.roots)
        self.rows, self.packs, self.roots = {}, [], []

    def write_when_large(self) -> None:
        if len(self.rows) >= _REBUILD_BATCH_ROWS:
            self.write()
