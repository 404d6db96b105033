"""Collection: which packs to rewrite (pure), and rewriting them while reads and writes go on.

A condemned pack's live records are copied as they are stored (what is live of a group is compressed
anew when the rest is dead), made durable and told to the index; then the pack is marked condemned,
durably, and unlinked. A crash before the mark leaves a pack with copies elsewhere; a crash after it
leaves a file that the next opening removes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blockstore.codec import Encoder
from blockstore.disk import Disk
from blockstore.errors import StorageFailed, StorageFull
from blockstore.grouping import records_of
from blockstore.ids import ChunkId, Location, PackId, pack_name
from blockstore.index import Index, PackRow, PackState
from blockstore.marks import Marks
from blockstore.packfile import (
    ENTRY_BYTES,
    HEADER_BYTES,
    RECORD_BYTES,
    TRAILER_BYTES,
    Entry,
    RecordHeader,
    decode_record_header,
    open_chunks,
    payload_intact,
    read_seal,
    record_entries,
    scan,
)
from blockstore.reader import PackFiles, plan_reads
from blockstore.writer import Record, Writer

SMALL_PART = 4  # packs below 1/4 of the full size are put together


@dataclass(frozen=True, slots=True)
class PackUse:
    """How much of a sealed pack is live. Bytes of records, headers included."""

    pack: PackId
    bytes_total: int
    bytes_live: int


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What a collection would do."""

    condemned: tuple[PackId, ...]  # emptiest first: space is freed before it is needed
    bytes_to_copy: int
    bytes_to_free: int  # net


@dataclass(slots=True)
class CollectReport:
    """What a collection did, or with dry_run would do."""

    plan: CollectionPlan
    dry_run: bool
    live_chunks: int
    packs_removed: int = 0
    records_copied: int = 0
    bytes_copied: int = 0  # records, headers included
    bytes_freed: int = 0  # size of the files removed, less what was copied
    spared: dict[str, str] = field(default_factory=dict)  # packs kept, and why


def plan_collection(
    uses: Iterable[PackUse], *, waste_max: float, small_bytes: int = 0
) -> CollectionPlan:
    """Choose the packs to rewrite.

    Condemned are packs whose dead part exceeds `waste_max` (0 to 1) of their records, and packs
    smaller than `small_bytes` when there are at least two to put together.
    """
    condemned = []
    small = []
    for use in uses:
        dead = use.bytes_total - use.bytes_live
        if use.bytes_live <= 0 or dead > waste_max * use.bytes_total:
            condemned.append(use)
        elif use.bytes_total < small_bytes:
            small.append(use)
    if len(small) >= 2:
        condemned += small
    condemned.sort(key=lambda use: (use.bytes_live, use.pack))
    return CollectionPlan(
        tuple(use.pack for use in condemned),
        sum(use.bytes_live for use in condemned),
        sum(use.bytes_total - use.bytes_live for use in condemned),
    )


def record_bytes(row: PackRow) -> int:
    """Return the bytes of records in a sealed pack."""
    seal = RECORD_BYTES + row.records * ENTRY_BYTES + TRAILER_BYTES
    return row.bytes - HEADER_BYTES - seal


def pack_uses(
    index: Index, marks: Marks, kept_roots: Sequence[Location], *, before: PackId
) -> list[PackUse]:
    """Measure all sealed packs numbered below `before`."""
    live = marks.live_bytes()
    for root in kept_roots:
        live[root.pack] = live.get(root.pack, 0) + RECORD_BYTES + root.length
    uses = []
    for number, row in sorted(index.packs.items()):
        if row.state is PackState.SEALED and number < before:
            total = record_bytes(row)
            uses.append(PackUse(number, total, min(total, live.get(number, 0))))
    return uses


class _Unreadable(Exception):
    """A live record cannot be copied; its pack has to stay."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Carries out a plan."""

    disk: Disk
    folder: Path
    index: Index
    writer: Writer
    files: PackFiles
    encoder: Encoder  # for what is left of groups
    marks: Marks
    touched: set[ChunkId]  # live although the roots may not name them
    kept_roots: set[Location]
    secure: Callable[[], object]  # makes copies durable, so that the originals may go

    def run(self, plan: CollectionPlan, report: CollectReport, *, batch_bytes: int) -> None:
        """Rewrite the condemned packs; remove them whenever `batch_bytes` were copied."""
        done: list[PackId] = []
        copied = 0
        for pack in plan.condemned:
            try:
                try:
                    copied += self._copy_live(pack, report)
                except StorageFull:
                    if not done:
                        raise
                    # The emptiest packs come first: what they free may be what this one needs.
                    self._remove(done, report)
                    done = []
                    copied = self._copy_live(pack, report)
            except _Unreadable as error:
                report.spared[pack_name(pack)] = str(error)
                continue
            done.append(pack)
            if copied >= batch_bytes:
                self._remove(done, report)
                done, copied = [], 0
        self._remove(done, report)
        report.bytes_freed -= report.bytes_copied

    def _copy_live(self, pack: PackId, report: CollectReport) -> int:
        """Copy what is live in a pack; return the bytes copied."""
        entries = self._entries(pack)
        chunks = [entry.id for entry in entries if entry.is_chunk]
        live = self.marks.holds(chunks) | self.touched.intersection(chunks)
        current = self.index.lookup(live)
        wanted: dict[int, list[Entry]] = {}  # by record
        for entry in entries:
            place = entry.location(pack)
            if entry.is_chunk:
                # An id the index places elsewhere has a newer record there.
                needed = entry.id in live and current.get(entry.id, place) == place
            else:
                needed = place in self.kept_roots
            if needed:
                wanted.setdefault(entry.offset, []).append(entry)
        size = 0
        for records in self._records(pack, wanted):
            report.records_copied += self.writer.append(records)
            size += sum(RECORD_BYTES + record.header.stored_length for record in records)
        report.bytes_copied += size
        return size

    def _entries(self, pack: PackId) -> list[Entry]:
        salt = self.files.salt(pack)
        try:
            with self.files.using(pack) as file:
                size = file.size()
                entries = read_seal(file.pread, size, salt)
                if entries is None:  # its table is damaged; the records speak for themselves
                    scanned = scan(file.pread, size, salt, verify_from=size)
                    entries = [entry for item in scanned for entry in item.entries]
                return entries
        except (FileNotFoundError, StorageFailed) as error:
            raise _Unreadable(str(error)) from error

    def _records(self, pack: PackId, wanted: dict[int, list[Entry]]) -> Iterator[list[Record]]:
        salt = self.files.salt(pack)
        places = [
            (entry.id, entry.location(pack)) for entries in wanted.values() for entry in entries
        ]
        for run in plan_reads(places):
            try:
                with self.files.using(pack) as file:
                    data = memoryview(file.pread(run.length, run.offset))
            except (FileNotFoundError, StorageFailed) as error:
                raise _Unreadable(str(error)) from error
            records: list[Record] = []
            for want in run.wants:
                start = want.offset - run.offset
                header = decode_record_header(data[start : start + RECORD_BYTES], want.offset, salt)
                payload = data[start + RECORD_BYTES : start + RECORD_BYTES + want.length]
                copies = None if header is None else self._copies(header, payload, want.ids)
                if copies is None:
                    raise _Unreadable(f"chunk {want.ids[0].hex()} in it is damaged and needed")
                records += copies
            yield records

    def _copies(
        self, header: RecordHeader, payload: memoryview, live: Sequence[ChunkId]
    ) -> list[Record] | None:
        """Return records of the live chunks of a record, None when they are not in it, intact."""
        listed = record_entries(header, payload, 0)
        if listed is None or not {entry.id for entry in listed}.issuperset(live):
            return None
        if len(live) == len(listed):
            return [Record(header, payload)] if payload_intact(header, payload) else None
        chunks = open_chunks(header, payload)
        if chunks is None:
            return None
        return list(records_of([(name, chunks[name]) for name in live], self.encoder))

    def _remove(self, packs: list[PackId], report: CollectReport) -> None:
        if not packs:
            return
        sizes = sum(self.index.packs[pack].bytes for pack in packs)
        self.secure()  # copies durable, rows point to them
        self.index.condemn(packs)
        for pack in packs:
            self.files.forget(pack)
            with contextlib.suppress(FileNotFoundError):
                self.disk.unlink(self.folder / pack_name(pack))
        self.disk.fsync_dir(self.folder)
        self.index.forget(packs)
        report.packs_removed += len(packs)
        report.bytes_freed += sizes
