"""A remote folder as the disk of a block store: sealed packs there, all else in a local folder.

The pack that is being written lies in the local folder. When it is sealed it is uploaded whole, in
the background and at most a few at a time; writing on waits for those. Its local file is removed
when it is there. Packs at the remote are read by ranges, through a cache of blocks. The index
(`chunks.db`) is a local cache of the packs, wherever it was written.

Several machines may have written at the remote, one after the other. Numbers of packs there never
come back: whoever removes packs has made one with a higher number before. A number that only a
local pack has, because this machine died, may be taken by another machine meanwhile. So:

- an upload never replaces anything;
- `uploaded` in the local folder notes what was uploaded, number and size, until the index is known
  to know it: what the index says of an unsealed pack can be told from what it says of another's;
- a local pack whose number was taken is dropped (no snapshot names anything in it, for a snapshot
  is recorded when its packs are there), and an index that knew it is made anew from the tables.

Threads: all methods are called by the block store's, and may block. `_lock` guards the state and
is never held during I/O.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import trio

from blockstore.disk import DiskFile, OsDisk
from blockstore.errors import OrbitError, StorageFailed, StorageFull
from blockstore.ids import Buffer, PackId, pack_name, pack_number
from blockstore.index import PackRow, PackState
from blockstore.opening import PACKS_FOLDER
from blockstore.packfile import pack_salt, read_seal
from syncer.portal import Portal
from syncer.remote_blocks import Blocks
from syncer.remotes.errors import Changed, Exists, Full, Missing, RemoteError
from syncer.remotes.remote import Entry, Kind, Page, Remote, Version

PACKS_KEY = b"packs/"
UPLOADED_FILE = "uploaded"

UPLOADS_MAX = 4  # packs that are sealed and not there yet, before writing has to wait
_TAIL_BYTES = 256 << 10  # of a pack: the tables of most fit
_COMING_AT_ONCE = 16
_COMPARED_BYTES = 64 << 10  # of two packs' ends, which hold their tables


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Raise what remotes raise as what a disk raises; the remote's error is the cause."""
    try:
        yield
    except (Missing, Changed) as error:
        raise FileNotFoundError(str(error)) from error
    except Full as error:
        raise StorageFull(str(error)) from error
    except RemoteError as error:
        raise StorageFailed(str(error)) from error


def pack_key(pack: PackId) -> bytes:
    """Where a pack lies at the remote."""
    return PACKS_KEY + pack_name(pack).encode()


class _LocalFile:
    """The bytes of a file for `Remote.write`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    async def read(self, offset: int, length: int) -> bytes:
        """See ByteSource."""
        return await trio.to_thread.run_sync(self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)


class _RemotePack:
    """A sealed pack at the remote, open for reading."""

    def __init__(self, pack: PackId, version: Version, blocks: Blocks, tail: bytes) -> None:
        self._pack = pack
        self._version = version
        self._blocks = blocks
        self._tail = tail  # the last bytes, if they were brought

    def pread(self, length: int, offset: int) -> bytes:
        """See DiskFile."""
        begin = self._version.size - len(self._tail)
        if self._tail and offset >= begin:
            return self._tail[offset - begin : offset - begin + length]
        with storage_errors():
            return self._blocks.read(self._pack, self._version, length, offset)

    def pread_run(self, buffer: memoryview, length: int, offset: int) -> memoryview:
        """See DiskFile."""
        data = self.pread(length, offset)
        buffer[: len(data)] = data
        return buffer[: len(data)]

    def pread_nowait(self, _length: int, _offset: int) -> bytes | None:
        """See DiskFile: there is always a wire to wait for."""
        return None

    def pwritev(self, _buffers: Sequence[Buffer], _offset: int) -> None:
        """See DiskFile: never called, packs at the remote are sealed."""
        raise AssertionError("a sealed pack is never written")

    def fdatasync(self) -> None:
        """See DiskFile: it is durable."""

    def truncate(self, _size: int) -> None:
        """See DiskFile: never called."""
        raise AssertionError("a sealed pack is never cut")

    def size(self) -> int:
        """See DiskFile."""
        return self._version.size

    def close(self) -> None:
        """See DiskFile."""


class _WrittenPack:
    """A local pack that may be sealed when it is closed."""

    def __init__(self, file: DiskFile, closed: Callable[[DiskFile], None]) -> None:
        self._file = file
        self._closed: Callable[[DiskFile], None] | None = closed
        self.pread = file.pread
        self.pread_run = file.pread_run
        self.pread_nowait = file.pread_nowait
        self.pwritev = file.pwritev
        self.fdatasync = file.fdatasync
        self.truncate = file.truncate
        self.size = file.size

    def close(self) -> None:
        """See DiskFile."""
        closed, self._closed = self._closed, None
        try:
            if closed is not None:
                closed(self._file)
        finally:
            self._file.close()


async def open_remote_disk(
    remote: Remote,
    portal: Portal,
    folder: Path,
    uuid: bytes,
    *,
    writable: bool,
    local: Path | None = None,
) -> RemoteDisk:
    """List the packs, and settle what the last run has left in `folder`.

    `folder` is the store's, `uuid` its; `local` is where the remote lies if it is a folder of this
    machine: then its packs are read as files. Raises RemoteError.
    """
    listed: dict[PackId, Entry] = {}

    async def sink(page: Page) -> None:
        await trio.lowlevel.checkpoint()
        for entry in page:
            number = pack_number(entry.name.decode("ascii", "replace"))
            if number is not None and entry.kind is Kind.FILE:
                listed[number] = entry

    with contextlib.suppress(Missing):
        await remote.list(PACKS_KEY, sink)
    disk = RemoteDisk(remote, portal, folder, uuid, listed, writable=writable, local=local)
    await trio.to_thread.run_sync(disk.settle_last_run)
    return disk


class RemoteDisk:
    """See the module. A `Disk` with `SharedPacks`."""

    sqlite_vfs: str | None = None

    def __init__(
        self,
        remote: Remote,
        portal: Portal,
        folder: Path,
        uuid: bytes,
        listed: Mapping[PackId, Entry],
        *,
        writable: bool,
        local: Path | None,
    ) -> None:
        """See `open_remote_disk`; `listed` are all packs at the remote."""
        self._local_packs = local / PACKS_FOLDER if local is not None else None
        self._os = OsDisk()
        self._remote = remote
        self._portal = portal
        self._folder = folder
        self._packs = folder / PACKS_FOLDER
        self._uuid = uuid
        self._writable = writable
        self._blocks = Blocks(remote, portal, pack_key)
        self._lock = threading.Condition()
        self._there = dict(listed)
        self._on_the_way: set[PackId] = set()
        self._failed: dict[PackId, OrbitError] = {}
        self._tails: dict[PackId, bytes] = {}
        self._noted = self._read_noted()
        self._taken: set[PackId] = set()  # numbers of local packs that others have used
        self.uploaded_bytes = 0
        self.uploaded_packs = 0

    # ---- what the last run has left ----

    def _read_noted(self) -> set[tuple[PackId, int]]:
        try:
            text = (self._folder / UPLOADED_FILE).read_text("ascii", errors="replace")
        except FileNotFoundError:
            return set()
        pairs = (line.split() for line in text.splitlines())
        return {
            (PackId(int(number)), int(size))
            for number, size in (pair for pair in pairs if len(pair) == 2)
            if number.isdigit() and size.isdigit()
        }

    def _note(self, pack: PackId, size: int) -> None:
        self._noted.add((pack, size))
        with (self._folder / UPLOADED_FILE).open("a") as file:
            file.write(f"{pack} {size}\n")

    def forget_notes(self) -> None:
        """The index knows all packs: to be called when the store is open."""
        self._noted.clear()
        (self._folder / UPLOADED_FILE).unlink(missing_ok=True)

    def _local(self) -> list[PackId]:
        with contextlib.suppress(FileNotFoundError):
            numbers = (pack_number(name) for name in self._os.listdir(self._packs))
            return sorted(number for number in numbers if number is not None)
        return []

    def settle_last_run(self) -> None:
        """Drop what is at the remote, upload what is sealed; before the store is opened."""
        for pack in self._local():
            path = self._packs / pack_name(pack)
            if pack in self._there:
                size = self._there[pack].size
                if (pack, size) not in self._noted:
                    if self._same(pack, path):
                        self._note(pack, size)
                    else:
                        self._taken.add(pack)
                path.unlink()
            elif self._writable:
                file = self._os.open(path)
                try:
                    self._upload_if_sealed(pack, file)
                finally:
                    file.close()

    def _same(self, pack: PackId, path: Path) -> bool:
        """Whether a local pack is the one at the remote: both end in a table with a hash."""
        entry = self._there[pack]
        if path.stat().st_size != entry.size:
            return False
        length = min(_COMPARED_BYTES, entry.size)
        offset = entry.size - length
        with storage_errors():
            theirs = self._portal.call(
                self._remote.read, pack_key(pack), entry.version, offset, length
            )
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset) == theirs

    # ---- SharedPacks ----

    @property
    def near(self) -> bool:
        """See SharedPacks."""
        return self._local_packs is not None

    def shares(self, pack: PackId) -> bool:
        """See SharedPacks."""
        return pack in self._there

    def vouches(self, row: PackRow) -> bool:
        """See SharedPacks."""
        number = row.number
        if row.state is PackState.CONDEMNED:
            return True
        if number in self._taken:
            return False
        entry = self._there.get(number)
        if entry is None:
            if (self._packs / pack_name(number)).exists():
                return True
            # Removed by another machine, or it never was there and its number may come back.
            return row.state is PackState.SEALED and number < max(self._there, default=0)
        if row.state is PackState.SEALED:
            return row.bytes == entry.size
        return (number, entry.size) in self._noted

    def coming(self, packs: Sequence[PackId]) -> None:
        """See SharedPacks."""
        if self._local_packs is None:
            self._tails = self._portal.call(self._bring_tails, list(packs))

    async def _bring_tails(self, packs: list[PackId]) -> dict[PackId, bytes]:
        tails: dict[PackId, bytes] = {}
        limiter = trio.CapacityLimiter(_COMING_AT_ONCE)

        async def bring(pack: PackId) -> None:
            entry = self._there[pack]
            length = min(_TAIL_BYTES, entry.size)
            async with limiter:
                # What fails here is asked for again by who needs it, who will tell.
                with contextlib.suppress(RemoteError):
                    tail = await self._remote.read(
                        pack_key(pack), entry.version, entry.size - length, length
                    )
                    tails[pack] = bytes(tail)

        async with trio.open_nursery() as nursery:
            for pack in packs:
                nursery.start_soon(bring, pack)
        return tails

    def settle(self) -> None:
        """See SharedPacks."""
        with self._lock:
            for pack in list(self._failed):
                self._begin_upload(pack)
            while self._on_the_way:
                self._lock.wait()
            for error in self._failed.values():
                raise error

    # ---- uploading ----

    def _upload_if_sealed(self, pack: PackId, file: DiskFile) -> None:
        if not self._writable:
            return
        size = file.size()
        if read_seal(file.pread, size, pack_salt(self._uuid, pack)) is None:
            return
        with self._lock:
            if pack not in self._there and pack not in self._on_the_way:
                self._begin_upload(pack)

    def _begin_upload(self, pack: PackId) -> None:
        """Under the lock."""
        self._failed.pop(pack, None)
        self._on_the_way.add(pack)
        self._portal.begin(self._upload, pack).add_done_callback(
            lambda future: self._uploaded(pack, future.exception())
        )

    def _uploaded(self, pack: PackId, error: BaseException | None) -> None:
        with self._lock:
            self._on_the_way.discard(pack)
            if isinstance(error, Full):
                self._failed[pack] = StorageFull(str(error))
            elif isinstance(error, OrbitError):
                self._failed[pack] = StorageFailed(str(error))
            elif error is not None:
                self._failed[pack] = StorageFailed(f"uploading {pack_name(pack)}: {error!r}")
            if error is not None:
                self._failed[pack].__cause__ = error
            self._lock.notify_all()

    async def _upload(self, pack: PackId) -> None:
        path = self._packs / pack_name(pack)
        source = _LocalFile(path)
        try:
            entry = await self._remote.write(pack_key(pack), source, replace=False)
        except Exists:
            entry = await self._remote.stat(pack_key(pack))
            with self._lock:
                self._there[pack] = entry
            same = await trio.to_thread.run_sync(self._same, pack, path)
            if not same:
                with self._lock:
                    del self._there[pack]
                raise StorageFailed(
                    f"{self._remote.url}: somebody else has written {pack_name(pack)}: "
                    "two processes write to this repository; run the backup again"
                ) from None
        if entry.size != source.size:
            raise StorageFailed(
                f"{self._remote.url}: {pack_name(pack)} has {entry.size} bytes there instead of "
                f"{source.size}"
            )
        await trio.to_thread.run_sync(self._is_there, pack, entry)

    def _is_there(self, pack: PackId, entry: Entry) -> None:
        self._note(pack, entry.size)
        with self._lock:
            self._there[pack] = entry
            self.uploaded_bytes += entry.size
            self.uploaded_packs += 1
        # Who has it open reads on in the file that has no name any more.
        self._os.unlink(self._packs / pack_name(pack))

    def _wait_for_room(self) -> None:
        """Return when another pack may be begun. Raises why those before it cannot be uploaded."""
        with self._lock:
            for pack in list(self._failed):
                self._begin_upload(pack)
            while len(self._on_the_way) >= UPLOADS_MAX:
                self._lock.wait()
                for error in self._failed.values():
                    raise error

    # ---- Disk ----

    def _number(self, path: Path) -> PackId | None:
        return pack_number(path.name) if path.parent == self._packs else None

    def open(self, path: Path, *, create: bool = False, writable: bool = False) -> DiskFile:
        """See Disk."""
        pack = self._number(path)
        if pack is None:
            return self._os.open(path, create=create, writable=writable)
        if create:
            self._wait_for_room()
        elif pack in self._there:
            return self._open_remote(pack)
        try:
            file: DiskFile = self._os.open(path, create=create, writable=writable)
        except FileNotFoundError:
            if pack not in self._there:  # it has got there in this moment
                raise
            return self._open_remote(pack)
        if not (create or writable):
            return file
        return _WrittenPack(file, lambda file: self._upload_if_sealed(pack, file))

    def _open_remote(self, pack: PackId) -> DiskFile:
        if self._local_packs is not None:
            return self._os.open(self._local_packs / pack_name(pack))
        tail = self._tails.pop(pack, b"")
        return _RemotePack(pack, self._there[pack].version, self._blocks, tail)

    def listdir(self, path: Path) -> list[str]:
        """See Disk."""
        names = self._os.listdir(path)
        if path == self._packs:
            names = sorted({*names, *(pack_name(pack) for pack in self._there)})
        return names

    def exists(self, path: Path) -> bool:
        """See Disk."""
        pack = self._number(path)
        return (pack is not None and pack in self._there) or self._os.exists(path)

    def unlink(self, path: Path) -> None:
        """See Disk. Without the right to write, packs at the remote stay: another run sees them."""
        pack = self._number(path)
        if pack is None or pack not in self._there:
            self._os.unlink(path)
        elif self._writable:
            with storage_errors():
                self._portal.call(self._remote.delete, pack_key(pack))
            self._there.pop(pack, None)
            self._blocks.forget(pack)

    def lock(self, path: Path) -> DiskFile:
        """See Disk: of the local folder."""
        return self._os.lock(path)

    def mkdir(self, path: Path) -> None:
        """See Disk: in the local folder."""
        self._os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """See Disk: in the local folder."""
        self._os.rename(source, target)

    def fsync_dir(self, path: Path) -> None:
        """See Disk: of the local folder."""
        self._os.fsync_dir(path)

    def free_bytes(self, path: Path) -> int:
        """See Disk: of the local folder; what the remote takes it does not say."""
        return self._os.free_bytes(path)

    def total_bytes(self, path: Path) -> int:
        """See Disk: of the local folder."""
        return self._os.total_bytes(path)
