"""A repository: a store and a catalogue in one folder, local or on any remote, for `orbit`.

    repository.json     what this is: format, uuid, how chunks are cut
    packs/              as in any store; never changed once they are sealed
    snapshots/          the catalogue
    locks/              a small file for each process that uses the repository (repository_lock)
    store.json, chunks.db, lock      local repositories only: the store's own

On a remote, packs are uploaded whole when they are sealed; the pack that is being written and the
index, which is a cache of the packs, lie in a local folder (remote_disk). Who only reads a local
repository does it in the same way: it may lie on a read-only disk, or be written meanwhile.

What a snapshot names lies in sealed packs, in the repository: `store.sync()` sees to it, and it is
called before a snapshot is recorded. So a repository can be moved and copied as a folder, and
whatever dies at any time leaves snapshots that are whole.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote_from_bytes

import trio

from blockstore.chunker import ChunkerParams
from blockstore.disk import DiskFile, OsDisk
from blockstore.errors import FormatTooNew, OrbitError, StorageFailed, StoreLocked
from blockstore.ids import Buffer, ChunkId
from blockstore.opening import PACKS_FOLDER, STORE_FILE, Identity, write_identity
from blockstore.options import StoreOptions
from blockstore.store import BlockStore
from syncer.catalogue import Catalogue, FolderCatalogue, RemoteCatalogue
from syncer.context import Context
from syncer.ends import make_folder
from syncer.portal import Portal, open_portal
from syncer.remote_disk import open_remote_disk
from syncer.remotes.errors import Exists
from syncer.remotes.remote import Remote
from syncer.repository_lock import (
    LOCKS_FOLDER,
    Access,
    Lock,
    LockInfo,
    RepositoryLocked,
    hold_lock,
    remove_locks,
)
from syncer.small_files import LocalFiles, RemoteFiles, SmallFiles

__all__ = ["Access", "Repository", "RepositoryInvalid", "RepositoryLocked"]

FORMAT = 1
FORMAT_FILE = "repository.json"
SNAPSHOTS_FOLDER = "snapshots"
_OURS = {PACKS_FOLDER, SNAPSHOTS_FOLDER, LOCKS_FOLDER, STORE_FILE, f"{STORE_FILE}.part", "lock"}
_REMOTE_PACK_BYTES = 32 << 20  # a sealed pack waits for its upload: half of a local one's
_CACHE_BYTES = 16 << 20  # of decoded chunks: backups and restores need few of them twice
_SLOTS_MAX = 16  # processes of this machine that use one repository at a time


class RepositoryInvalid(OrbitError):
    """There is no repository here, or one that cannot be used as asked."""


@dataclass(frozen=True, slots=True)
class RepositoryFormat:
    """What `repository.json` says."""

    uuid: bytes
    chunker: ChunkerParams
    created: str  # when, for people

    def encode(self) -> bytes:
        """The file's content."""
        fields = {
            "orbit": "repository",
            "format": FORMAT,
            "uuid": self.uuid.hex(),
            "chunker": asdict(self.chunker),
            "created": self.created,
        }
        return json.dumps(fields, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, where: str) -> RepositoryFormat:
        """Raises RepositoryInvalid, FormatTooNew; `where` is for the message."""
        try:
            fields = json.loads(data)
            ours = fields["orbit"] == "repository"
            version = int(fields["format"])
        except (ValueError, KeyError, TypeError, RecursionError):
            ours, version, fields = False, 0, {}
        if version > FORMAT:
            raise FormatTooNew(where, version, FORMAT)
        try:
            uuid = bytes.fromhex(fields["uuid"])
            chunker = ChunkerParams(**fields["chunker"])
        except (ValueError, KeyError, TypeError):
            ours, uuid = False, b""
        if not ours or len(uuid) != 16:
            raise RepositoryInvalid(
                f"{where} is damaged: bring {FORMAT_FILE} back from a copy of the repository"
            )
        return cls(uuid, chunker, str(fields.get("created", "")))


class RepositoryStore:
    """The chunks of a repository. See ChunkStore; for threads."""

    def __init__(self, blocks: BlockStore, portal: Portal, lock: Lock | None) -> None:
        self.blocks = blocks
        self._portal = portal
        self._lock = lock
        self.cut = blocks.cut
        self.fetch = blocks.fetch

    def put(self, chunks: Sequence[Buffer]) -> list[ChunkId]:
        """See ChunkStore."""
        return self.blocks.put(chunks)

    def contains(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """See ChunkStore."""
        return self.blocks.contains(ids)

    def sync(self) -> None:
        """Return when all that was put lies in the repository, in sealed packs.

        Raises StorageFull and StorageFailed: what was put stays, and may be synced again.
        RepositoryLocked when the lock was taken away meanwhile: nothing may be recorded then.
        """
        self.blocks.seal()
        if self._lock is not None:
            self._portal.call(self._lock.confirm)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a repository lies."""

    location: str
    context: Context
    label: str
    files: SmallFiles
    remote: Remote
    folder: Path | None  # if it is a folder of this machine

    @property
    def catalogue(self) -> Catalogue:
        if self.folder is not None:
            return FolderCatalogue(self.folder / SNAPSHOTS_FOLDER, OsDisk())
        return RemoteCatalogue(self.remote, f"{SNAPSHOTS_FOLDER}/".encode())


@asynccontextmanager
async def _place(location: str, context: Context) -> AsyncIterator[_Place]:
    local = location.startswith("/")
    url = f"file://{quote_from_bytes(os.fsencode(location))}" if local else location
    remote = await context.open_remote(url)
    try:
        if local:
            folder = Path(location)
            yield _Place(location, context, location, LocalFiles(folder), remote, folder)
        else:
            yield _Place(location, context, remote.url, RemoteFiles(remote), remote, None)
    finally:
        with trio.move_on_after(10.0, shield=True):
            await remote.close()


async def _format(place: _Place) -> RepositoryFormat | None:
    data = await place.files.read(FORMAT_FILE)
    return None if data is None else RepositoryFormat.decode(data, f"{place.label}/{FORMAT_FILE}")


async def _init(place: _Place, options: StoreOptions) -> RepositoryFormat:
    """Make one. Raises RepositoryInvalid where there is something else, or one already."""
    names = set(await place.files.names(""))
    if FORMAT_FILE in names:
        raise RepositoryInvalid(f"{place.label} is a repository already")
    others = sorted(names - _OURS)
    if others:
        raise RepositoryInvalid(
            f"{place.label} is no repository and holds other files ({others[0]}): "
            "choose an empty folder"
        )
    if place.folder is None:
        await make_folder(place.location, place.context)
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    made = RepositoryFormat(os.urandom(16), options.chunker, created)
    try:
        await place.files.write(FORMAT_FILE, made.encode(), replace=False)
    except Exists:
        raise RepositoryInvalid(f"{place.label}: somebody else makes a repository here") from None
    return made


async def init_repository(
    location: str, context: Context, options: StoreOptions | None = None
) -> RepositoryFormat:
    """Make a repository in a folder that is empty or not there.

    `location` is a URL or an absolute local path. Raises RepositoryInvalid, RemoteError.
    """
    async with _place(location, context) as place:
        return await _init(place, options if options is not None else StoreOptions())


async def unlock(location: str, context: Context, *, force: bool = False) -> list[LockInfo]:
    """Remove the locks of processes that are gone or silent for long, with `force` all of them.

    Returns those removed. Raises RepositoryInvalid, RemoteError.
    """
    async with _place(location, context) as place:
        await _known(place)
        return await remove_locks(place.files, force=force)


async def _known(place: _Place) -> RepositoryFormat:
    found = await _format(place)
    if found is None:
        raise RepositoryInvalid(
            f"{place.label} is no repository: {FORMAT_FILE} is missing; `orbit init` makes one"
        )
    return found


class Repository:
    """An open repository. Made by `Repository.open`."""

    def __init__(
        self,
        label: str,
        found: RepositoryFormat,
        access: Access,
        store: RepositoryStore,
        catalogue: Catalogue,
    ) -> None:
        """Not to be called: use open()."""
        self.label = label  # where it is, for people: no secrets
        self.format = found
        self.access = access
        self.store = store
        self.catalogue = catalogue

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        location: str,
        context: Context,
        access: Access = Access.WRITE,
        *,
        create: bool = False,
        options: StoreOptions | None = None,
    ) -> AsyncIterator[Repository]:
        """Open the repository at a URL or absolute local path; `create`: make it if none is there.

        For `async with`, in whose body threads may use the store. How chunks are cut is the
        repository's own affair, whatever `options` say. Raises RepositoryInvalid,
        RepositoryLocked, FormatTooNew, RemoteError, StorageFull, StorageFailed.
        """
        wanted = options if options is not None else StoreOptions()
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(_place(location, context))
            found = await _format(place)
            if found is None:
                found = await _init(place, wanted) if create else await _known(place)
            wanted = replace(
                wanted,
                chunker=found.chunker,
                cache_bytes_max=min(wanted.cache_bytes_max, _CACHE_BYTES),
            )
            lock = await stack.enter_async_context(hold_lock(place.files, access, place.label))
            portal = await stack.enter_async_context(open_portal())
            if lock is not None:
                portal.begin(lock.renew)
            if place.folder is not None and access is not Access.READ:
                blocks = await _open_local(place.folder, found, wanted)
            else:
                slot, held = await trio.to_thread.run_sync(_take_slot, context.cache, found)
                stack.callback(held.close)
                blocks = await _open_cached(place, portal, slot, found, wanted, access)
            stack.push_async_callback(_close, blocks)
            store = RepositoryStore(blocks, portal, lock)
            yield cls(place.label, found, access, store, place.catalogue)


async def _close(blocks: BlockStore) -> None:
    """What is not synced is nobody's: that it could not be written is no error of the body's."""
    with trio.CancelScope(shield=True), contextlib.suppress(OrbitError):
        await trio.to_thread.run_sync(blocks.close)


async def _open_local(folder: Path, found: RepositoryFormat, options: StoreOptions) -> BlockStore:
    def open_() -> BlockStore:
        _identify(folder, found)
        return BlockStore.open(folder, options)

    try:
        return await trio.to_thread.run_sync(open_)
    except StoreLocked as error:
        raise RepositoryLocked(f"{folder} is in use by another process: wait for it") from error


def _identify(folder: Path, found: RepositoryFormat) -> None:
    """Have the store in `folder` be the repository's. Blocks."""
    disk = OsDisk()
    disk.mkdir(folder)
    if not disk.exists(folder / STORE_FILE):
        write_identity(disk, folder, Identity(found.uuid, found.chunker))


def _take_slot(cache: Path, found: RepositoryFormat) -> tuple[Path, DiskFile]:
    """A cache folder that no other process uses, and its lock. Blocks."""
    disk = OsDisk()
    for number in range(_SLOTS_MAX):
        folder = cache / "repositories" / (found.uuid.hex() + (f"-{number}" if number else ""))
        disk.mkdir(folder)
        with contextlib.suppress(StoreLocked):
            return folder, disk.lock(folder / "in-use")
    raise RepositoryLocked(
        f"{_SLOTS_MAX} processes of this machine use the repository: wait for one to end"
    )


async def _open_cached(
    place: _Place,
    portal: Portal,
    folder: Path,
    found: RepositoryFormat,
    options: StoreOptions,
    access: Access,
) -> BlockStore:
    """Open the store whose index lies in `folder` and whose packs lie in the repository."""
    await trio.to_thread.run_sync(_identify, folder, found)
    disk = await open_remote_disk(
        place.remote,
        portal,
        folder,
        found.uuid,
        writable=access is not Access.READ,
        local=place.folder,
    )
    options = replace(options, pack_bytes_max=min(options.pack_bytes_max, _REMOTE_PACK_BYTES))

    def open_() -> BlockStore:
        try:
            blocks = BlockStore.open(folder, options, disk)
        except FileNotFoundError as error:
            raise StorageFailed(f"{place.label} was changed meanwhile: {error}") from error
        disk.forget_notes()
        return blocks

    return await trio.to_thread.run_sync(open_)
