"""Snapshots: their records, how users name them, and the folder that holds them.

One small file a snapshot, called by its name: two of one name cannot be. The record checks itself;
one that is damaged is told apart from one that is not there, because a collection that took it for
absent would remove its chunks.

Order of durability: everything a snapshot names is in the store and `store.sync()` has returned
before `add` is called; `remove` is durable before a collection begins.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import trio
from blake3 import blake3

from blockstore.disk import Disk
from blockstore.errors import FormatTooNew
from blockstore.ids import ID_BYTES, ChunkId
from syncer.recipes import TreeDamaged
from syncer.remotes.errors import Exists, Missing, RemoteError
from syncer.remotes.held import Held
from syncer.remotes.remote import Entry, Kind, Remote, Version
from syncer.tree_objects import Sums

FORMAT: Final = 1
SUFFIX: Final = ".snapshot"
LATEST: Final = "latest"
RECORD_BYTES_MAX: Final = 1 << 20
_NAME_BYTES_MAX: Final = 200
_ID_PREFIX_MIN: Final = 4  # hexadecimal digits
_READS_AT_ONCE: Final = 8
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')  # somewhere, or as `NAME:PATH`


class BadName(RemoteError):
    """A snapshot cannot be called that."""


@dataclass(frozen=True)
class Snapshot:
    """A named root. Immutable; its id is the hash of everything below."""

    name: str
    time_ns: int  # nanoseconds since 1970
    root: ChunkId
    sums: Sums  # what lies below the root
    host: str = ""
    source: str = ""  # the tree's label, no secrets
    tags: tuple[str, ...] = ()
    expires_ns: int | None = None
    tokens: ChunkId | None = None  # the root's token object
    failed: int = 0  # nodes that could not be read and are not in it

    @cached_property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return blake3(self._content()).hexdigest()

    def _content(self) -> bytes:
        record = {
            "format": FORMAT,
            "name": self.name,
            "time_ns": self.time_ns,
            "root": self.root.hex(),
            "tokens": None if self.tokens is None else self.tokens.hex(),
            "nodes": self.sums.nodes,
            "files": self.sums.files,
            "bytes": self.sums.bytes,
            "host": self.host,
            "source": self.source,
            "tags": list(self.tags),
            "expires_ns": self.expires_ns,
            "failed": self.failed,
        }
        return json.dumps(record, separators=(",", ":")).encode("ascii")

    def encode(self) -> bytes:
        """Return the record: one line of JSON, one with its hash."""
        content = self._content()
        return content + b"\n" + blake3(content).hexdigest().encode("ascii") + b"\n"


def decode_snapshot(data: bytes) -> Snapshot:
    """Read a record. Raises TreeDamaged, FormatTooNew."""
    content, _, check = data.partition(b"\n")
    if check != blake3(content).hexdigest().encode("ascii") + b"\n":
        raise TreeDamaged("the record of a snapshot is damaged")
    try:
        record = json.loads(content)
        found = record["format"]
        if isinstance(found, int) and found > FORMAT:
            raise FormatTooNew("the record of a snapshot", found, FORMAT)
        snapshot = _snapshot(record)
    except (ValueError, KeyError, TypeError, RecursionError, BadName) as error:
        raise TreeDamaged(f"the record of a snapshot makes no sense: {error!r}") from error
    if snapshot.encode() != data:
        raise TreeDamaged("the record of a snapshot is not in the form it is written in")
    return snapshot


def _snapshot(record: dict[str, Any]) -> Snapshot:
    tokens = record["tokens"]
    return Snapshot(
        name=check_name(record["name"]),
        time_ns=_number(record["time_ns"]),
        root=_chunk_id(record["root"]),
        sums=Sums(_number(record["nodes"]), _number(record["files"]), _number(record["bytes"])),
        host=_text(record["host"]),
        source=_text(record["source"]),
        tags=tuple(_text(tag) for tag in record["tags"]),
        expires_ns=None if record["expires_ns"] is None else _number(record["expires_ns"]),
        tokens=None if tokens is None else _chunk_id(tokens),
        failed=_number(record["failed"]),
    )


def _number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"{value!r} is no number")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no text")


def _chunk_id(value: object) -> ChunkId:
    name = bytes.fromhex(_text(value))
    if len(name) != ID_BYTES:
        raise ValueError("an id has 32 bytes")
    return ChunkId(name)


# ---- names ----


def check_name(name: object) -> str:
    """Return the name if a snapshot can have it. Raises BadName."""
    if not isinstance(name, str) or not name or name in {".", "..", LATEST}:
        raise BadName(f"{name!r} cannot be the name of a snapshot")
    if _FORBIDDEN.search(name) or name[0] in "-. " or name[-1] in ". ":
        raise BadName(
            f"{name!r} cannot be the name of a snapshot: no control characters, none of "
            '/ \\ : * ? " < > |, no "-" or "." first, no "." or blank last'
        )
    if len(name.encode()) > _NAME_BYTES_MAX:
        raise BadName(f"the name of a snapshot has at most {_NAME_BYTES_MAX} bytes")
    return name


def choose_name(source: str, time_ns: int, taken: Collection[str]) -> str:
    """Return `source-YYYYMMDD-HHMMSS` (UTC) with a number behind it if that is taken.

    `source` is a tree's label; its last component counts.
    """
    last = source.rstrip("/").rpartition("/")[2]
    stem = re.sub(r"[^\w.+@-]+", "-", last, flags=re.ASCII).strip("-.")[:100] or "snapshot"
    when = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    name = f"{stem}-{when:%Y%m%d-%H%M%S}"
    if stem == LATEST or name in taken:
        number = 2
        while f"{name}-{number}" in taken:
            number += 1
        name = f"{name}-{number}"
    return name


def select(snapshots: Iterable[Snapshot], selector: str) -> Snapshot:
    """Return the snapshot that a name, the beginning of an id, `latest` or `latest:TAG` means.

    Raises Missing, also where it could mean several.
    """
    known = sorted(snapshots, key=lambda each: (each.time_ns, each.name))
    if selector == LATEST or selector.startswith(f"{LATEST}:"):
        tag = selector.removeprefix(LATEST).removeprefix(":")
        tagged = [each for each in known if not tag or tag in each.tags]
        if not tagged:
            raise Missing(f"there is no snapshot{f' with the tag {tag!r}' if tag else ''}")
        return tagged[-1]
    for each in known:
        if each.name == selector:
            return each
    if len(selector) >= _ID_PREFIX_MIN:
        found = [each for each in known if each.id.startswith(selector.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(each.name for each in found[:5])
            raise Missing(f"{selector!r} could be {names}: give more of the id, or the name")
    raise Missing(f"there is no snapshot {selector!r}: `snapshot list` shows them")


# ---- catalogues ----


class Listing(NamedTuple):
    """All that a catalogue holds, oldest first."""

    snapshots: list[Snapshot]
    damaged: list[str]  # records that cannot be read: no collection while there are any


class Catalogue(Protocol):
    """All snapshots of one store. For the trio loop."""

    async def list(self) -> Listing:
        """Return all. Raises RemoteError, StorageFailed; FormatTooNew."""

    async def add(self, snapshot: Snapshot) -> None:
        """Record a snapshot, durably and whole; all it names is durable. Raises Exists."""

    async def remove(self, snapshot: Snapshot) -> None:
        """Forget a snapshot, durably. Raises Missing."""


def _listing(records: Iterable[tuple[str, bytes]]) -> Listing:
    result = Listing([], [])
    for name, data in records:
        try:
            snapshot = decode_snapshot(data)
        except TreeDamaged:
            result.damaged.append(name)
            continue
        if snapshot.name + SUFFIX != name:
            result.damaged.append(name)  # renamed by hand: its name is not unique any more
        else:
            result.snapshots.append(snapshot)
    result.snapshots.sort(key=lambda each: (each.time_ns, each.name))
    return result


class SnapshotFolder:
    """The records in a local folder. Blocks: for worker threads, several at once."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        """The folder is made when something is added."""
        self._folder = folder
        self._disk = disk
        self._lock = threading.Lock()

    def list(self) -> Listing:
        """See Catalogue."""
        if not self._disk.exists(self._folder):
            return Listing([], [])
        records = []
        for name in self._disk.listdir(self._folder):
            if name.endswith(SUFFIX):
                try:
                    file = self._disk.open(self._folder / name)
                except FileNotFoundError:  # removed meanwhile
                    continue
                try:
                    records.append((name, file.pread(RECORD_BYTES_MAX, 0)))
                finally:
                    file.close()
        return _listing(records)

    def names(self) -> set[str]:
        """Return the names of the records, damaged ones included; cheaper than `list`."""
        if not self._disk.exists(self._folder):
            return set()
        found = self._disk.listdir(self._folder)
        return {name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)}

    def add(self, snapshot: Snapshot) -> None:
        """See Catalogue."""
        path = self._folder / (check_name(snapshot.name) + SUFFIX)
        temporary = path.with_name("new.tmp")
        with self._lock:
            if not self._disk.exists(self._folder):
                self._disk.mkdir(self._folder)
                self._disk.fsync_dir(self._folder.parent)
            if self._disk.exists(path):
                raise Exists(f"there is a snapshot {snapshot.name!r} already: choose another name")
            if self._disk.exists(temporary):
                self._disk.unlink(temporary)
            file = self._disk.open(temporary, create=True)
            try:
                file.pwritev([snapshot.encode()], 0)
                file.fdatasync()
            finally:
                file.close()
            self._disk.rename(temporary, path)
            self._disk.fsync_dir(self._folder)

    def remove(self, snapshot: Snapshot) -> None:
        """See Catalogue."""
        with self._lock:
            try:
                self._disk.unlink(self._folder / (check_name(snapshot.name) + SUFFIX))
            except FileNotFoundError:
                raise Missing(f"there is no snapshot {snapshot.name!r} any more") from None
            self._disk.fsync_dir(self._folder)


class FolderCatalogue:
    """A catalogue in a local folder: the daemon's, and that of local repositories."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.records = SnapshotFolder(folder, disk)  # for threads

    async def list(self) -> Listing:
        """See Catalogue."""
        return await trio.to_thread.run_sync(self.records.list)

    async def add(self, snapshot: Snapshot) -> None:
        """See Catalogue."""
        await trio.to_thread.run_sync(self.records.add, snapshot)

    async def remove(self, snapshot: Snapshot) -> None:
        """See Catalogue."""
        await trio.to_thread.run_sync(self.records.remove, snapshot)


class RemoteCatalogue:
    """A catalogue on a remote: that of remote repositories.

    `replace=False` of the remote is what keeps names unique among machines.
    """

    def __init__(self, remote: Remote, folder: bytes = b"snapshots/") -> None:
        """`folder` is the key of a directory: it ends in `/`, or is empty."""
        self._remote = remote
        self._folder = folder
        self._read: dict[bytes, tuple[Version, bytes]] = {}  # records are never changed in place

    async def list(self) -> Listing:
        """See Catalogue."""
        entries: list[Entry] = []

        async def take(page: Iterable[Entry]) -> None:
            entries.extend(
                each
                for each in page
                if each.kind is Kind.FILE and each.name.endswith(SUFFIX.encode())
            )
            await trio.lowlevel.checkpoint()

        try:
            await self._remote.list(self._folder, take)
        except Missing:
            return Listing([], [])
        found: dict[bytes, bytes] = {}
        limit = trio.CapacityLimiter(_READS_AT_ONCE)

        async def read(entry: Entry) -> None:
            async with limit:
                known = self._read.get(entry.key)
                if known is not None and known[0] == entry.version:
                    found[entry.name] = known[1]
                    return
                try:
                    now, data = await self._remote.read_whole(entry.key, RECORD_BYTES_MAX)
                except Missing:  # removed meanwhile
                    return
                self._read[entry.key] = (now.version, data)
                found[entry.name] = data

        await _all_at_once(read, entries)
        self._read = {e.key: self._read[e.key] for e in entries if e.key in self._read}
        return _listing((name.decode("utf-8", "replace"), data) for name, data in found.items())

    def _key(self, snapshot: Snapshot) -> bytes:
        return self._folder + (check_name(snapshot.name) + SUFFIX).encode()

    async def add(self, snapshot: Snapshot) -> None:
        """See Catalogue."""
        try:
            await self._remote.write(self._key(snapshot), Held(snapshot.encode()), replace=False)
        except Exists:
            raise Exists(
                f"there is a snapshot {snapshot.name!r} already: choose another name"
            ) from None

    async def remove(self, snapshot: Snapshot) -> None:
        """See Catalogue."""
        await self._remote.delete(self._key(snapshot))


async def _all_at_once(do: Callable[[Entry], Any], entries: Iterable[Entry]) -> None:
    """Run `do` for each entry in a task of its own; raise the first error alone."""
    errors: list[RemoteError] = []

    async def guarded(entry: Entry) -> None:
        try:
            await do(entry)
        except RemoteError as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for entry in entries:
            nursery.start_soon(guarded, entry)
    if errors:
        raise errors[0]
