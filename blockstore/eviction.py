"""Eviction from the fetched series: a clock hand over its packs, oldest first.

A pack goes as a whole: blocks that were used since the hand last passed, and pinned ones, are
copied forward to the open pack, its rows are dropped, its file is unlinked. A pack that would
mostly be copied stays, and its blocks have to be used again until the hand comes back. A round that
frees nothing is followed by one in which use does not count; if that frees nothing either, all is
pinned.

A crash at any point leaves a pack with its rows, or neither, or rows without a pack: those read as
missing blocks, and the next start drops them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from blockstore.disk import Disk
from blockstore.errors import OrbitError, StorageFailed, StorageFull
from blockstore.fetched_index import FetchedIndex
from blockstore.fetched_writer import FetchedWriter
from blockstore.ids import ChunkId, Location, PackId, pack_name
from blockstore.index import PackRow
from blockstore.options import FetchedOptions
from blockstore.packfile import (
    RECORD_BYTES,
    Entry,
    decode_record_header,
    open_chunks,
    read_seal,
    scan,
)
from blockstore.reader import PackFiles, plan_reads
from blockstore.writer import Record

_SLOTS = 1_024  # of a pack, for which use is noted: of 64 KiB, most blocks are larger
_KEEP_MAX = 0.75  # of a pack's bytes: copying more than that frees too little
_SQUEEZE_KEEP_MAX = 0.95  # when nothing else is left
_FORGET_AT = 16  # packs: one sync of their folder for so many
_VOID_MAX = 0.5  # of a pack's blocks: beyond, its space is claimed without the hand

Pinned = Callable[[Sequence[ChunkId]], Collection[ChunkId]]
"""Returns those of some blocks that must stay; called from any thread that stores."""


class EvictStep(NamedTuple):
    """What one step of the hand did."""

    freed_bytes: int  # of files; what was copied forward is not deducted
    more: bool  # there is more to evict, and a chance that another step does it


class BlockUse(NamedTuple):
    """One live block of a pack under the hand."""

    bytes: int  # of its record
    used: bool  # since the hand last passed
    pinned: bool


class Keep(NamedTuple):
    """What to do with a pack: copy these blocks and drop it, or leave it where it is."""

    leave: bool
    blocks: tuple[int, ...]  # positions in what was given


def plan_pack(blocks: Sequence[BlockUse], pack_bytes: int, *, squeeze: bool) -> Keep:
    """Decide on a pack of `pack_bytes`; with `squeeze` nothing but pins keeps a block."""
    kept = tuple(
        position
        for position, block in enumerate(blocks)
        if block.pinned or (block.used and not squeeze)
    )
    limit = pack_bytes * (_SQUEEZE_KEEP_MAX if squeeze else _KEEP_MAX)
    return Keep(sum(blocks[position].bytes for position in kept) > limit, kept)


def _keep_all(blocks: Sequence[BlockUse]) -> Keep:
    return Keep(False, tuple(range(len(blocks))))


class Used:
    """Which blocks were used since the hand last passed: a bit a slot, lost with the process."""

    def __init__(self, pack_bytes: int) -> None:
        self._slot_bytes = max(1, pack_bytes // _SLOTS)
        self._lock = threading.Lock()
        self._bits: dict[PackId, int] = {}

    def mark(self, places: Iterable[Location]) -> None:
        """Note that blocks were used."""
        with self._lock:
            for place in places:
                bit = 1 << (place.offset // self._slot_bytes)
                self._bits[place.pack] = self._bits.get(place.pack, 0) | bit

    def take(self, pack: PackId) -> Callable[[int], bool]:
        """Return which offsets of a pack were used, and begin anew."""
        with self._lock:
            bits = self._bits.pop(pack, 0)
        return lambda offset: bool(bits >> (offset // self._slot_bytes) & 1)

    def give_back(self, pack: PackId) -> None:
        """Forget a pack that is gone, whoever has read it meanwhile."""
        with self._lock:
            self._bits.pop(pack, None)


class SeriesFiles(Protocol):
    """What the hand needs of the open series."""

    folder: Path
    index: FetchedIndex
    writer: FetchedWriter
    files: PackFiles

    def locate(self, ids: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Return where resident blocks should lie."""


@dataclass(slots=True)
class HandCounts:
    """Counters of this run; blocks, unless they say otherwise."""

    evicted: int = 0
    carried: int = 0
    damaged: int = 0  # found while copying


class Hand:
    """Evicts pack by pack. One step at a time, whoever asks for it."""

    def __init__(
        self,
        disk: Disk,
        series: SeriesFiles,
        options: FetchedOptions,
        owned: Callable[[Iterable[ChunkId]], Collection[ChunkId]],
    ) -> None:
        self._disk = disk
        self._series = series
        self._options = options
        self._owned = owned
        self._at = PackId(0)  # the pack it passed last
        self._end = PackId(0)  # the last one of this round: newer packs have their time
        self._freed_in_round = False
        self._squeeze = False
        self.stuck = False  # a whole round has found nothing that may go
        self._removed: list[PackId] = []  # their rows are still to be forgotten
        self.used = Used(options.pack_bytes)
        self.lock = threading.Lock()
        self.counts = HandCounts()

    def lacks_room(self, need: int) -> bool:
        """Whether `need` bytes are more than may be stored now."""
        options, size = self._options, self._series.writer.bytes
        free = self._disk.free_bytes(self._series.folder)
        return (
            size + need > options.bytes_max + options.slack_bytes
            or need > free - options.free_bytes_floor
        )

    def _excessive(self, need: int) -> bool:
        return self._series.writer.bytes > self._options.bytes_max or self.lacks_room(need)

    def step(self, pinned: Pinned, need: int = 0) -> EvictStep:
        """Deal with one pack at most. Raises what `pinned` raises."""
        with self.lock:
            row = self._mostly_void()
            if row is not None:
                freed = self._pass(row, _keep_all, pinned, force=True)
                if freed:
                    return EvictStep(freed, True)
            if not self._excessive(need):
                self._squeeze = self.stuck = False
                return EvictStep(0, False)
            row = self._next()
            if row is None:
                return EvictStep(0, not self.stuck)
            squeeze, size = self._squeeze, row.bytes
            freed = self._pass(
                row, lambda b: plan_pack(b, size, squeeze=squeeze), pinned, force=squeeze
            )
            if freed:
                self._freed_in_round, self.stuck = True, False
            return EvictStep(freed, not self.stuck and self._excessive(need))

    # ---- which pack ----

    def _mostly_void(self) -> PackRow | None:
        packs = None
        for number, count in self._series.index.void_counts().items():
            packs = packs if packs is not None else self._packs()
            row = packs.get(number)
            if row is not None and count >= _VOID_MAX * row.records:
                return row
        return None

    def _next(self) -> PackRow | None:
        """Return the pack the hand comes to, None at the end of a round."""
        packs = self._packs()
        number = min((n for n in packs if self._at < n <= self._end), default=None)
        if number is not None:
            self._at = number
            return packs[number]
        if self._squeeze or not packs:
            self._series.writer.end_open()  # the open pack may be all there is
        if self._end:
            self.stuck = self._squeeze and not self._freed_in_round
            self._squeeze = not self._freed_in_round
        self._freed_in_round = False
        self._at = PackId(0)
        self._end = max(self._packs(), default=PackId(0))
        if not self._end:
            self.stuck = True
        return None

    def _packs(self) -> dict[PackId, PackRow]:
        """All packs that take no more blocks, whether the index knows them yet or not."""
        # Asked first: a pack leaves the writer only after the index has it.
        ready = self._series.writer.ready_packs()
        return {**self._series.index.packs, **ready}

    # ---- what becomes of it ----

    def _pass(
        self,
        row: PackRow,
        plan: Callable[[Sequence[BlockUse]], Keep],
        pinned: Pinned,
        *,
        force: bool,
    ) -> int:
        """Drop or leave a pack; return the bytes freed. `force`: also one that is unreadable."""
        pack = row.number
        used = self.used.take(pack)
        try:
            entries = self._entries(pack)
        except FileNotFoundError:
            entries = []
        except StorageFailed:
            if not force:
                return 0
            entries = []
        places = {entry.id: entry.location(pack) for entry in entries}
        current = self._series.locate(places)
        owned = self._owned(places)
        live = [n for n, place in places.items() if current.get(n) == place and n not in owned]
        stay = set(pinned(live)) if live else set()
        blocks = [
            BlockUse(RECORD_BYTES + places[n].length, used(places[n].offset), n in stay)
            for n in live
        ]
        keep = plan(blocks)
        if keep.leave:
            return 0
        kept = [live[position] for position in keep.blocks]
        try:
            self._carry(pack, {name: places[name] for name in kept}, stay)
        except (OrbitError, FileNotFoundError) as error:
            # The disk takes no copies. Used blocks can be had again; pinned ones stay here.
            if stay or not isinstance(error, StorageFull):
                return 0
            kept = []
        self._remove(row)
        self.counts.carried += len(kept)
        self.counts.evicted += len(live) - len(kept)
        return row.bytes

    def _entries(self, pack: PackId) -> list[Entry]:
        files = self._series.files
        with files.using(pack) as file:
            size, salt = file.size(), files.salt(pack)
            table = read_seal(file.pread, size, salt)
            if table is not None:
                return table
            return [entry for item in scan(file.pread, size, salt) for entry in item.entries]

    def _carry(self, pack: PackId, kept: dict[ChunkId, Location], pinned: set[ChunkId]) -> None:
        """Copy blocks to the open pack; pinned ones, which may be needed offline, durably."""
        written: set[PackId] = set()
        for records in self._records(pack, kept):
            packs = self._series.writer.append(records)
            if any(record.header.id in pinned for record in records):
                written |= packs
        for number in written:
            path = self._series.folder / pack_name(number)
            file = self._disk.open(path, writable=True)
            try:
                file.fdatasync()
            finally:
                file.close()
        if written:
            self._disk.fsync_dir(self._series.folder)

    def _records(self, pack: PackId, kept: dict[ChunkId, Location]) -> Iterator[list[Record]]:
        """Yield the records of blocks as they are stored; damaged ones are left behind."""
        salt = self._series.files.salt(pack)
        with self._series.files.using(pack) as file:
            for run in plan_reads(kept.items()):
                data = memoryview(file.pread(run.length, run.offset))
                records = []
                for want in run.wants:
                    start = want.offset - run.offset
                    raw = data[start : start + RECORD_BYTES + want.length]
                    header = decode_record_header(raw[:RECORD_BYTES], want.offset, salt)
                    content = None if header is None else open_chunks(header, raw[RECORD_BYTES:])
                    if header is None or content is None or content.keys() != set(want.ids):
                        self.counts.damaged += 1
                        continue
                    records.append(Record(header, raw[RECORD_BYTES:]))
                yield records

    def _remove(self, row: PackRow) -> None:
        series, pack = self._series, row.number
        series.writer.forget(pack)
        # A full disk takes no rows either. Readers know at once; the next start sees the rest.
        with contextlib.suppress(OrbitError):
            series.index.retire([pack])
        with contextlib.suppress(FileNotFoundError, StorageFailed):
            self._disk.unlink(series.folder / pack_name(pack))
        series.files.forget(pack)
        series.writer.unlinked(row.bytes)
        self.used.give_back(pack)
        self._removed.append(pack)
        if len(self._removed) >= _FORGET_AT:
            # Rows of packs whose files might come back must not be forgotten: see retire().
            with contextlib.suppress(OrbitError):
                self._disk.fsync_dir(series.folder)
                series.index.forget(self._removed)
                self._removed = []
