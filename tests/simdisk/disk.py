"""The simulated disk's files.

Each file has two contents: what readers see, and what is durable. Changes since the last sync wait
in a list; a power cut applies a random part of that list, whole or torn. A directory's entries work
the same way, except that they reach the disk in order, as in a journalling filesystem. Making a
directory is durable at once (nothing under test depends on it).

A failed sync drops what was waiting and keeps showing it to readers: that is what Linux does.
"""

from __future__ import annotations

import copy
import itertools
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from blockstore.errors import OrbitError, StorageFailed, StorageFull, StoreLocked
from blockstore.ids import Buffer
from tests.simdisk.crash import SimulatedCrash
from tests.simdisk.vfs import SimVFS

_SECTOR_BYTES = 512
_numbers = itertools.count()


@dataclass
class _Write:
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        if len(content) < self.offset:
            content.extend(bytes(self.offset - len(content)))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass
class _Truncate:
    size: int

    def apply(self, content: bytearray) -> None:
        if len(content) > self.size:
            del content[self.size :]
        else:
            content.extend(bytes(self.size - len(content)))


@dataclass
class Inode:
    """A file's content."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    waiting: list[_Write | _Truncate] = field(default_factory=list)
    locked: bool = False

    def change(self, change: _Write | _Truncate) -> None:
        change.apply(self.content)
        self.waiting.append(change)

    def sync(self) -> None:
        for change in self.waiting:
            change.apply(self.durable)
        self.waiting.clear()

    def after_crash(self, rng: random.Random) -> Inode:
        """Return the file as the next start finds it."""
        content = bytearray(self.durable)
        mode = rng.choice(("none", "all", "prefix", "some", "torn"))
        waiting = self.waiting
        if mode == "none":
            waiting = []
        elif mode == "prefix":
            waiting = waiting[: rng.randint(0, len(waiting))]
        elif mode != "all":
            waiting = [change for change in waiting if rng.random() < 0.6]
        for change in waiting:
            if mode in ("torn", "prefix") and isinstance(change, _Write):
                for piece in _torn(change, rng, whole=change is not waiting[-1]):
                    piece.apply(content)
            else:
                change.apply(content)
        return Inode(content, bytearray(content))


def _torn(write: _Write, rng: random.Random, *, whole: bool) -> list[_Write]:
    """Return the parts of a write that reached the disk."""
    if whole and rng.random() < 0.7:
        return [write]
    if rng.random() < 0.5:  # cut at any byte
        return [_Write(write.offset, write.data[: rng.randint(0, len(write.data))])]
    pieces = []
    start = 0
    while start < len(write.data):
        end = start + _SECTOR_BYTES - (write.offset + start) % _SECTOR_BYTES
        if rng.random() < 0.5:
            pieces.append(_Write(write.offset + start, write.data[start:end]))
        start = end
    return pieces


class SimDisk:
    """A disk in memory. Thread-safe; the same calls with the same seed behave the same."""

    def __init__(self, seed: int = 0, *, size_bytes: int = 1 << 40) -> None:
        self.seed = seed
        self.size_bytes = size_bytes
        self.reads = 0
        self.operations = 0  # changes so far: writes, syncs, creations, renames, removals
        self.syncs: list[int] = []  # which of them were syncs of files
        self.crashed = False
        self._rng = random.Random(seed)
        self._lock = threading.RLock()
        self._folders: set[str] = {"/"}
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._waiting_names: list[tuple[str, Inode | None, str]] = []  # path, inode, folder
        self._crash_at: int | None = None
        self._failures: dict[int, OrbitError] = {}
        self._unreadable: dict[int, OrbitError] = {}  # by id of the inode
        self.sqlite_vfs: str = f"simdisk-{next(_numbers)}"
        self._vfs = SimVFS(self.sqlite_vfs, self)

    # ---- control ----

    def crash_at(self, operations: int) -> None:
        """Lose power at the n-th change from now (1 is the next one)."""
        self._crash_at = self.operations + operations

    def fail_at(self, operations: int, error: OrbitError, *, times: int = 1) -> None:
        """Let the n-th change from now and the `times` - 1 after it fail with `error`."""
        for number in range(operations, operations + times):
            self._failures[self.operations + number] = error

    def fail_reads(self, path: Path, error: OrbitError) -> None:
        """Let reads of a file fail from now on."""
        self._unreadable[id(self._inode(path))] = error

    def heal(self) -> None:
        """Forget failures and crashes that have not happened yet."""
        self._failures.clear()
        self._unreadable.clear()
        self._crash_at = None

    def crash(self) -> SimDisk:
        """Cut the power, if it is not cut yet; return the disk as found afterwards."""
        with self._lock:
            self.crashed = True
            after = SimDisk(self._rng.randrange(1 << 62), size_bytes=self.size_bytes)
            rng = after._rng
            after._folders = set(self._folders)
            names = dict(self._durable_names)
            for path, inode, _ in self._waiting_names[: rng.randint(0, len(self._waiting_names))]:
                _rename_entry(names, path, inode)
            survivors = {id(inode): inode.after_crash(rng) for inode in names.values()}
            after._names = {path: survivors[id(inode)] for path, inode in names.items()}
            after._durable_names = dict(after._names)
            return after

    def kill(self) -> SimDisk:
        """Kill the process; return the disk as the next one finds it: what readers saw is there.

        What the kernel has not written still waits, and what a failed sync dropped is still shown.
        """
        with self._lock:
            self.crashed = True  # the dead change nothing any more
            after = SimDisk(self._rng.randrange(1 << 62), size_bytes=self.size_bytes)
            after._folders = set(self._folders)
            after._names, after._durable_names, after._waiting_names = copy.deepcopy(
                (self._names, self._durable_names, self._waiting_names)
            )
            for inode in after._names.values():
                inode.locked = False
            return after

    def flip(self, path: Path, offset: int, mask: int = 0xFF) -> None:
        """Damage one byte of a file, for readers and on the disk."""
        inode = self._inode(path)
        inode.content[offset] ^= mask
        if offset < len(inode.durable):
            inode.durable[offset] ^= mask

    @property
    def used_bytes(self) -> int:
        """Bytes in all files."""
        return sum(len(inode.content) for inode in self._names.values())

    def _step(self, *, growing: int = 0) -> None:
        """Count a change; fail or crash when it is the chosen one."""
        self._alive()
        self.operations += 1
        if self.operations == self._crash_at:
            self.crashed = True
            raise SimulatedCrash
        error = self._failures.pop(self.operations, None)
        if error is not None:
            raise error
        if growing and self.used_bytes + growing > self.size_bytes:
            raise StorageFull("the simulated disk is full")

    def _alive(self) -> None:
        if self.crashed:
            raise SimulatedCrash

    def _inode(self, path: Path) -> Inode:
        inode = self._names.get(str(path))
        if inode is None:
            raise FileNotFoundError(str(path))
        return inode

    def _enter(self, path: Path, inode: Inode | None) -> None:
        _rename_entry(self._names, str(path), inode)
        self._waiting_names.append((str(path), inode, str(path.parent)))

    # ---- Disk ----

    def open(self, path: Path, *, create: bool = False, writable: bool = False) -> SimFile:
        """See Disk."""
        with self._lock:
            if create:
                if str(path) in self._names:
                    raise StorageFailed(f"{path} exists")
                if str(path.parent) not in self._folders:
                    raise FileNotFoundError(str(path))
                self._step()
                self._enter(path, Inode())
            self._alive()
            return SimFile(self, self._inode(path), writable=writable or create)

    def lock(self, path: Path) -> SimFile:
        """See Disk."""
        with self._lock:
            if str(path) not in self._names:
                self.open(path, create=True)
            inode = self._inode(path)
            if inode.locked:
                raise StoreLocked(f"{path} is locked")
            inode.locked = True
            return SimFile(self, inode, writable=False, locking=True)

    def listdir(self, path: Path) -> list[str]:
        """See Disk."""
        with self._lock:
            self._alive()
            prefix = f"{path}/"
            inside = [*self._names, *self._folders]
            names = {p[len(prefix) :].split("/")[0] for p in inside if p.startswith(prefix)}
            return sorted(names - {""})

    def mkdir(self, path: Path) -> None:
        """See Disk."""
        with self._lock:
            self._alive()
            self._folders.update(str(p) for p in (path, *path.parents))

    def exists(self, path: Path) -> bool:
        """See Disk."""
        with self._lock:
            self._alive()
            return str(path) in self._names or str(path) in self._folders

    def rename(self, source: Path, target: Path) -> None:
        """See Disk."""
        with self._lock:
            inode = self._inode(source)
            self._step()
            assert source.parent == target.parent, "one entry list would have to be two"
            # One step: after a crash the file has one of the names, never none.
            _rename_entry(self._names, str(source), None)
            _rename_entry(self._names, str(target), inode)
            self._waiting_names.append((f"{source}\0{target}", inode, str(target.parent)))

    def unlink(self, path: Path) -> None:
        """See Disk."""
        with self._lock:
            self._inode(path)
            self._step()
            self._enter(path, None)

    def fsync_dir(self, path: Path) -> None:
        """See Disk."""
        with self._lock:
            self._step()
            rest = []
            for entry in self._waiting_names:
                if entry[2] == str(path):
                    _rename_entry(self._durable_names, entry[0], entry[1])
                else:
                    rest.append(entry)
            self._waiting_names = rest

    def free_bytes(self, path: Path) -> int:
        """See Disk."""
        return max(0, self.size_bytes - self.used_bytes)

    def total_bytes(self, path: Path) -> int:
        """See Disk."""
        return self.size_bytes


def _rename_entry(names: dict[str, Inode], path: str, inode: Inode | None) -> None:
    """Apply one change of a directory: 'a' set or removed, 'a NUL b' renamed."""
    source, renamed, target = path.partition("\0")
    if renamed:
        names.pop(source, None)
        source = target
    if inode is None:
        names.pop(source, None)
    else:
        names[source] = inode


class SimFile:
    """An open file of a SimDisk."""

    def __init__(
        self, disk: SimDisk, inode: Inode, *, writable: bool, locking: bool = False
    ) -> None:
        self._disk = disk
        self._inode = inode
        self._writable = writable
        self._locking = locking

    def pread(self, length: int, offset: int) -> bytes:
        """See DiskFile."""
        with self._disk._lock:
            self._disk._alive()
            error = self._disk._unreadable.get(id(self._inode))
            if error is not None:
                raise error
            self._disk.reads += 1
            return bytes(self._inode.content[offset : offset + length])

    def pread_run(self, buffer: memoryview, length: int, offset: int) -> memoryview:
        """See DiskFile."""
        data = self.pread(length, offset)
        buffer[: len(data)] = data
        return buffer[: len(data)]

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        """See DiskFile."""
        data = self.pread(length, offset)
        return data if len(data) == length else None

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """See DiskFile. A failing or last write may have reached the file in part."""
        assert self._writable
        data = b"".join(buffers)
        with self._disk._lock:
            grown = max(0, offset + len(data) - len(self._inode.content))
            try:
                self._disk._step(growing=grown)
            except (SimulatedCrash, OrbitError):
                if self._disk.operations and not self._already_dead():
                    part = self._disk._rng.randint(0, len(data))
                    self._inode.change(_Write(offset, data[:part]))
                raise
            self._inode.change(_Write(offset, data))

    def _already_dead(self) -> bool:
        crash_at = self._disk._crash_at
        return self._disk.crashed and self._disk.operations != crash_at

    def fdatasync(self) -> None:
        """See DiskFile."""
        with self._disk._lock:
            self._disk.syncs.append(self._disk.operations + 1)
            try:
                self._disk._step()
            except OrbitError:
                self._inode.waiting.clear()  # marked clean, never written
                raise
            self._inode.sync()

    def truncate(self, size: int) -> None:
        """See DiskFile."""
        with self._disk._lock:
            self._disk._step()
            self._inode.change(_Truncate(size))

    def size(self) -> int:
        """See DiskFile."""
        with self._disk._lock:
            self._disk._alive()
            return len(self._inode.content)

    def close(self) -> None:
        """See DiskFile."""
        if self._locking:
            self._inode.locked = False


def unregister_all() -> None:
    """Drop the VFS of all disks; for long runs."""
    for vfs in apsw.vfs_names():
        if vfs.startswith("simdisk-"):
            apsw.unregister_vfs(vfs)
