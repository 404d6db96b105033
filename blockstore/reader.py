"""Reading records: open packs, coalesced reads, verification, and the decoded-chunk cache."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from blockstore.disk import DIRECT_ALIGN, Disk, DiskFile
from blockstore.errors import StorageFailed
from blockstore.ids import ChunkId, Location, PackId, pack_name
from blockstore.packfile import (
    MEMBERS_BYTES_MAX,
    RECORD_BYTES,
    Entry,
    decode_record_header,
    open_chunks,
    pack_salt,
    read_seal,
    record_entries,
)

GAP_BYTES_MAX = 64 << 10  # reading this much for nothing costs less than another request
RUN_BYTES_MAX = 2 << 20
_CACHED_BYTES = 204  # of memory for a chunk in the cache, besides its content


class Want(NamedTuple):
    """One record to read."""

    offset: int
    length: int  # bytes of payload
    ids: tuple[ChunkId, ...]  # what is wanted of it


@dataclass(frozen=True, slots=True)
class ReadRun:
    """Records of one pack that one read brings."""

    pack: PackId
    offset: int
    length: int
    wants: tuple[Want, ...]


def plan_reads(
    wanted: Iterable[tuple[ChunkId, Location]], run_bytes_max: int = RUN_BYTES_MAX
) -> list[ReadRun]:
    """Coalesce records into reads: neighbours at most GAP_BYTES_MAX apart, so long at most."""
    runs: list[ReadRun] = []
    wants: list[Want] = []
    current: PackId | None = None
    end = 0

    def close() -> None:
        if wants and current is not None:
            start = wants[0].offset
            runs.append(ReadRun(current, start, end - start, tuple(wants)))
            wants.clear()

    order = sorted(wanted, key=lambda item: item[1])
    for (pack, offset, length), group in groupby(order, key=lambda item: item[1][:3]):
        stop = offset + RECORD_BYTES + length
        if wants and (
            pack != current
            or offset - end > GAP_BYTES_MAX
            or stop - wants[0].offset > run_bytes_max
        ):
            close()
        if not wants:
            current, end = pack, stop
        wants.append(Want(offset, length, tuple(name for name, _ in group)))
        end = max(end, stop)
    close()
    return runs


class _Handle:
    __slots__ = ("closing", "file", "users")

    def __init__(self, file: DiskFile) -> None:
        self.file = file
        self.users = 0
        self.closing = False


class PackFiles:
    """Open packs for reading, least recently used first out."""

    def __init__(self, disk: Disk, folder: Path, store_uuid: bytes, *, open_max: int) -> None:
        self._disk = disk
        self._folder = folder
        self._store_uuid = store_uuid
        self._open_max = open_max
        self._lock = threading.Lock()
        self._handles: OrderedDict[PackId, _Handle] = OrderedDict()
        self._salts: dict[PackId, int] = {}

    def salt(self, pack: PackId) -> int:
        """Return the CRC salt of a pack."""
        salt = self._salts.get(pack)
        if salt is None:
            if len(self._salts) > 4096:
                self._salts.clear()
            salt = self._salts[pack] = pack_salt(self._store_uuid, pack)
        return salt

    @contextlib.contextmanager
    def using(self, pack: PackId) -> Iterator[DiskFile]:
        """Lend the open file of a pack. Raises FileNotFoundError when it was collected."""
        handle = self._acquire(pack)
        try:
            yield handle.file
        finally:
            self._release(handle)

    def _acquire(self, pack: PackId) -> _Handle:
        with self._lock:
            handle = self._handles.get(pack)
            if handle is not None:
                handle.users += 1
                self._handles.move_to_end(pack)
                return handle
        # Opened without the lock: a slow disk must not stop readers of other packs.
        fresh = _Handle(self._disk.open(self._folder / pack_name(pack)))
        idle: list[_Handle] = []
        with self._lock:
            handle = self._handles.get(pack)
            if handle is None:
                handle = self._handles[pack] = fresh
            else:
                idle.append(fresh)
            handle.users += 1
            self._handles.move_to_end(pack)
            while len(self._handles) > self._open_max:
                _, oldest = self._handles.popitem(last=False)
                oldest.closing = True
                if not oldest.users:
                    idle.append(oldest)
        for unused in idle:
            unused.file.close()
        return handle

    def _release(self, handle: _Handle) -> None:
        with self._lock:
            handle.users -= 1
            done = handle.closing and not handle.users
        if done:
            handle.file.close()

    def forget(self, pack: PackId) -> None:
        """Close a pack that was removed, as soon as nobody reads it."""
        with self._lock:
            handle = self._handles.pop(pack, None)
            if handle is None:
                return
            handle.closing = True
            done = not handle.users
        if done:
            handle.file.close()

    def close(self) -> None:
        """Close all packs."""
        for pack in list(self._handles):
            self.forget(pack)


class Outcome(NamedTuple):
    """What reading found."""

    chunks: dict[ChunkId, bytes]  # also those that were not asked for but came along
    damaged: dict[ChunkId, PackId]
    gone: list[ChunkId]  # their pack was removed in between: ask the index again


class Reader:
    """Reads and verifies records of up to `run_bytes_max`, headers included."""

    def __init__(self, files: PackFiles, run_bytes_max: int = RUN_BYTES_MAX) -> None:
        self._files = files
        self._run_bytes_max = run_bytes_max
        # One buffer a thread, used again: fresh memory costs page faults, about as much as hashing.
        self._buffers = threading.local()

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "view", None)
        if buffer is None:
            size = self._run_bytes_max + 2 * DIRECT_ALIGN
            buffer = self._buffers.view = memoryview(mmap.mmap(-1, size))
        return buffer

    def read(self, wanted: Iterable[tuple[ChunkId, Location]]) -> Outcome:
        """Read chunks. Raises StorageFailed when the disk refuses."""
        outcome = Outcome({}, {}, [])
        buffer = self._buffer()
        for run in plan_reads(wanted, self._run_bytes_max):
            try:
                with self._files.using(run.pack) as file:
                    data = file.pread_run(buffer, run.length, run.offset)
            except FileNotFoundError:
                outcome.gone.extend(name for want in run.wants for name in want.ids)
                continue
            salt = self._files.salt(run.pack)
            for want in run.wants:
                start = want.offset - run.offset
                content = open_record(
                    data[start : start + RECORD_BYTES + want.length], want.offset, salt
                )
                outcome.chunks.update(content)
                outcome.damaged.update((name, run.pack) for name in want.ids if name not in content)
        return outcome

    def read_nowait(self, location: Location) -> dict[ChunkId, bytes]:
        """Read one record from the page cache; empty when it is not there (or damaged)."""
        try:
            with self._files.using(location.pack) as file:
                data = file.pread_nowait(RECORD_BYTES + location.length, location.offset)
        except FileNotFoundError:
            return {}
        if data is None:
            return {}
        return open_record(memoryview(data), location.offset, self._files.salt(location.pack))

    def listed(self, file: DiskFile, pack: PackId) -> list[Entry]:
        """Return the table of a sealed pack; nothing when it is not intact."""
        return read_seal(file.pread, file.size(), self._files.salt(pack)) or []

    def sharing(self, location: Location) -> set[ChunkId]:
        """Return the chunks of a group, as far as that is known when its record is damaged."""
        try:
            with self._files.using(location.pack) as file:
                listed = self.listed(file, location.pack)
                found = {entry.id for entry in listed if entry.offset == location.offset}
                return found or self.holds(file, location)
        except (FileNotFoundError, StorageFailed):
            return set()

    def holds(self, file: DiskFile, location: Location) -> set[ChunkId]:
        """Return what the record at a place in its open pack says it holds, its data unread."""
        length = min(location.length, MEMBERS_BYTES_MAX) if location.share else 0
        data = memoryview(file.pread(RECORD_BYTES + length, location.offset))
        salt = self._files.salt(location.pack)
        header = decode_record_header(data[:RECORD_BYTES], location.offset, salt)
        if header is None:
            return set()
        listed = record_entries(header, data[RECORD_BYTES:], location.offset)
        return {entry.id for entry in listed or ()}


def open_record(data: memoryview, offset: int, salt: int) -> dict[ChunkId, bytes]:
    """Return the verified chunks of the record in `data`; none when it is not intact."""
    header = decode_record_header(data[:RECORD_BYTES], offset, salt)
    payload = data[RECORD_BYTES:]
    if header is None or len(payload) != header.stored_length:
        return {}
    return open_chunks(header, payload) or {}


class ChunkCache:
    """Decoded chunks, least recently used first out, bounded in bytes of memory."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, name: ChunkId) -> bytes | None:
        """Return a chunk's bytes when they are here."""
        with self._lock:
            data = self._chunks.get(name)
            if data is None:
                self.misses += 1
                return None
            self._chunks.move_to_end(name)
            self.hits += 1
            return data

    def add(self, name: ChunkId, data: bytes) -> None:
        """Keep a chunk."""
        with self._lock:
            if name in self._chunks or len(data) > self._bytes_max:
                return
            self._chunks[name] = data
            self._bytes += len(data)
            while self._bytes + _CACHED_BYTES * len(self._chunks) > self._bytes_max:
                self._bytes -= len(self._chunks.popitem(last=False)[1])

    def discard(self, names: Iterable[ChunkId]) -> None:
        """Keep these no longer."""
        with self._lock:
            for name in names:
                data = self._chunks.pop(name, None)
                if data is not None:
                    self._bytes -= len(data)

    @property
    def bytes(self) -> int:
        """Bytes of content kept."""
        return self._bytes
