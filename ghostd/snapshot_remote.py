"""Snapshots of this daemon's store as a remote: `snapshot:NAME[/path]`, or all of them by name.

Read-only. What makes it differ from other remotes: its files' chunks are in the store already, so
that nothing is fetched or stored a second time; `extents` says which chunks a read needs. A version
is the id of a file's content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes

import structlog
import trio

from blockstore.errors import OrbitError
from ghostd import snapshots_encode
from ghostd.filemap import Extent
from ghostd.threads import Threads
from syncer.catalogue import LATEST, Snapshot
from syncer.chunks import ChunkStore
from syncer.recipes import Recipe, recipe_id
from syncer.remotes.errors import BadUrl, Changed, Garbled, Missing, Unsupported
from syncer.remotes.read_only import ReadOnly
from syncer.remotes.remote import (
    ROOT,
    Capabilities,
    Entry,
    Exact,
    Kind,
    PageSink,
    Version,
)
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import FORMAT_OF_KIND, NodeKind
from syncer.tree_objects import Entry as TreeEntry

log = structlog.get_logger(__name__)

SCHEME: Final = "snapshot:"
_PAGE: Final = 500
_READERS: Final = 3  # snapshots whose objects are kept decoded: some 30 MB each when full
_WINDOW_BYTES: Final = 16 << 20  # of a file, whose extents are kept: some 256
_WINDOWS: Final = 256
_LINK_OWNER_BYTES: Final = 8  # of the snapshot's id
_FROZEN: Final = "a snapshot never changes: project it with --mode cow to write into a clone"

_CAPABILITIES: Final = Capabilities(
    symlinks=True,
    mode=True,
    owner=True,
    mtime_resolution_ns=1,
    etag=True,
    write_reason=_FROZEN,
)
_KINDS: Final = {
    NodeKind.FILE: Kind.FILE,
    NodeKind.DIRECTORY: Kind.DIRECTORY,
    NodeKind.SYMLINK: Kind.SYMLINK,
}


class Finder(Protocol):
    """Where snapshots are found. For the filesystem's loop."""

    async def all(self) -> list[Snapshot]:
        """All of them."""

    async def named(self, name: str) -> Snapshot | None:
        """The one of this name."""

    async def find(self, selector: str) -> Snapshot:
        """What else `latest` or `latest:TAG` means. Raises Missing."""


class SnapshotUrl(NamedTuple):
    """`snapshot:NAME[/path]`; with an empty name all snapshots, by name."""

    name: str
    path: bytes  # in the snapshot, without slashes around it

    def __str__(self) -> str:
        path = quote(b"/" + self.path) if self.path else ""
        return SCHEME + self.name + path

    @classmethod
    def parse(cls, text: str) -> SnapshotUrl:
        """Take a URL apart; the path is percent-encoded. Raises BadUrl."""
        name, slash, path = text.removeprefix(SCHEME).partition("/")
        decoded = unquote_to_bytes(path.encode("utf-8", "surrogateescape"))
        parts = [part for part in decoded.split(b"/") if part]
        if not text.startswith(SCHEME) or {b".", b".."} & set(parts) or b"\0" in decoded:
            raise BadUrl(f"{text!r}: expected snapshot:NAME or snapshot:NAME/path")
        if slash and not name:
            raise BadUrl(f"{text!r} names no snapshot: `orbit-ctl snapshot list` shows them")
        return cls(name, b"/".join(parts))


class _Place(NamedTuple):
    """Where a key lies."""

    snapshot: Snapshot
    reader: SnapshotReader
    path: bytes  # in the snapshot


class SnapshotRemote(ReadOnly):
    """One snapshot from a path on, or all of them. See Remote."""

    def __init__(
        self, url: SnapshotUrl, finder: Finder, store: ChunkStore, threads: Threads
    ) -> None:
        self._url = url
        self._finder = finder
        self._store = store
        self._threads = threads
        self._readers: OrderedDict[str, SnapshotReader] = OrderedDict()  # by the snapshot's id
        self._windows: OrderedDict[tuple[str, int], list[Extent]] = OrderedDict()

    @property
    def url(self) -> str:
        """See Remote."""
        return str(self._url)

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return _CAPABILITIES

    # --- finding -------------------------------------------------------------------------------

    async def _place(self, key: bytes) -> _Place:
        """Raises Missing."""
        name, path = self._url
        rest = key.removesuffix(b"/")
        if not name:
            first, _, rest = rest.partition(b"/")
            name = first.decode("utf-8", "surrogateescape")
        elif name == LATEST or name.startswith(f"{LATEST}:"):
            # What that is now, for good: a projection does not change under its users.
            name = (await self._finder.find(name)).name
            self._url = SnapshotUrl(name, path)
        snapshot = await self._finder.named(name)
        if snapshot is None:
            raise Missing(f"there is no snapshot {name!r}: it was removed, or never taken")
        reader = self._readers.get(snapshot.id)
        if reader is None:
            reader = self._readers[snapshot.id] = SnapshotReader(self._store, snapshot.root)
            if len(self._readers) > _READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(snapshot.id)
        return _Place(snapshot, reader, b"/".join(part for part in (path, rest) if part))

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        if not self._url.name and key == ROOT:
            found = await self._finder.all()
            for at in range(0, len(found), _PAGE):
                await sink(await self._threads.run("read", self._tops, found[at : at + _PAGE]))
            return
        place = await self._place(key)
        if key and not key.endswith(b"/"):
            key += b"/"
        last = b""
        while True:
            page = await self._threads.run("read", _page, place, key, last)
            if not page:
                return
            last = page[-1].name
            await sink(page)

    def _tops(self, snapshots: Sequence[Snapshot]) -> Sequence[Entry]:
        """In a thread. What cannot be read is left out: the others can."""
        found = []
        for each in snapshots:
            place = _Place(each, SnapshotReader(self._store, each.root), b"")
            try:
                top = place.reader.top
                if top.kind is NodeKind.DIRECTORY:
                    found.append(_entry(place, each.name.encode() + b"/", top))
            except OrbitError as error:
                log.warning("a snapshot cannot be shown", snapshot=each.name, error=str(error))
        return found

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        if not self._url.name and key == ROOT:
            return Entry(ROOT, Kind.DIRECTORY, mode=0o555)
        place = await self._place(key)
        return await self._threads.run("read", _stat, place, key)

    # --- content -------------------------------------------------------------------------------

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        place = await self._place(key)

        def read() -> bytes:
            return place.reader.read(_file(place, version), offset, length)

        data = await self._threads.run("read", read)
        if len(data) != length:
            raise Garbled(f"{self.url}: {len(data)} bytes came, {length} were asked for")
        return data

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        entry = await self.stat(key)
        if entry.kind is not Kind.FILE or entry.size > size_max:
            raise Unsupported(f"{self.url}: {key!r} is no file of at most {size_max} bytes")
        return entry, await self.read(key, entry.version, 0, entry.size)

    async def extents(self, key: bytes, version: Version, start: int, end: int) -> Sequence[Extent]:
        """The extents of a file that have bytes from `start` to before `end`, ascending, clipped.

        Raises Missing and Changed when the snapshot, or this file in it, is not there any more.
        """
        numbers = range(start // _WINDOW_BYTES, (end - 1) // _WINDOW_BYTES + 1)
        etag, windows = version.etag, self._windows
        have = {n: windows[etag, n] for n in numbers if (etag, n) in windows}
        missing = [n for n in numbers if n not in have]
        if missing:
            place = await self._place(key)
            # One more, so that who reads on in order, or ahead, does not wait for it.
            last = min(missing[-1] + 1, (version.size - 1) // _WINDOW_BYTES)
            wanted = range(missing[0], last + 1)
            loaded = await self._threads.run("read", _load_windows, place, version, wanted)
            have.update(loaded)
            windows.update(((etag, number), extents) for number, extents in loaded.items())
        for number in numbers:
            if (etag, number) in windows:
                windows.move_to_end((etag, number))
        while len(windows) > _WINDOWS:
            windows.popitem(last=False)
        return [e for number in numbers for e in _clipped(have[number], start, end)]

    def known_extents(self, version: Version, start: int, end: int) -> Sequence[Extent]:
        """Those of `extents` that are known without waiting."""
        return [
            extent
            for number in range(start // _WINDOW_BYTES, (end - 1) // _WINDOW_BYTES + 1)
            for extent in _clipped(self._windows.get((version.etag, number), ()), start, end)
        ]

    def forget(self, version: Version) -> None:
        """Ask again for the extents of a file: a chunk was not there."""
        for key in [key for key in self._windows if key[0] == version.etag]:
            del self._windows[key]

    # --- the rest ------------------------------------------------------------------------------

    def _refusal(self, key: bytes) -> str:  # noqa: ARG002  the same for all
        return f"{self.url}: {_FROZEN}"

    async def close(self) -> None:
        """See Remote."""
        self._readers.clear()
        self._windows.clear()
        await trio.lowlevel.checkpoint()


# --- in threads --------------------------------------------------------------------------------


def _page(place: _Place, key: bytes, after: bytes) -> list[Entry]:
    directory = place.reader.resolve(place.path)
    found = next(iter(place.reader.pages(directory, after)), ())
    return [_entry(place, _key(key, each), each) for each in found[:_PAGE]]


def _key(directory: bytes, entry: TreeEntry) -> bytes:
    return directory + entry.name + (b"/" if entry.kind is NodeKind.DIRECTORY else b"")


def _stat(place: _Place, key: bytes) -> Entry:
    entry = place.reader.resolve(place.path)
    bare = key.removesuffix(b"/")
    if entry.kind is NodeKind.DIRECTORY and bare:
        return _entry(place, bare + b"/", entry)
    if key.endswith(b"/"):
        raise Missing(f"{bare.decode(errors='backslashreplace')} is no directory in the snapshot")
    return _entry(place, bare, entry)


def _entry(place: _Place, key: bytes, entry: TreeEntry) -> Entry:
    kind = _KINDS.get(entry.kind, Kind.OTHER)
    etag = ""
    holes = 0
    if kind is Kind.FILE:
        recipe = entry.recipe if entry.recipe is not None else Recipe()
        etag = recipe_id(recipe, entry.size).hex()
        if recipe.root is None:
            holes = entry.size - sum(extent.length for extent in recipe.extents)
    link, nlink = b"", 0
    if entry.link:
        owner = bytes.fromhex(place.snapshot.id[: 2 * _LINK_OWNER_BYTES])
        link = owner + entry.link.to_bytes(8, "big")
        if entry.ctime_ns is not None:  # taken of a namespace: see `link_identity`
            nlink = snapshots_encode.link_count(entry.link)
    exact = Exact(
        FORMAT_OF_KIND[entry.kind],
        rdev=entry.rdev,
        ctime_ns=entry.ctime_ns,
        btime_ns=entry.btime_ns,
        holes=holes,
        link=link,
        nlink=nlink,
        xattrs=place.reader.xattrs(entry),
    )
    return Entry(
        key,
        kind,
        size=entry.size if kind is Kind.FILE else 0,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        target=entry.target,
        etag=etag,
        as_was=exact,
    )


def _file(place: _Place, version: Version) -> TreeEntry:
    """The file of this version. Raises Missing, Changed."""
    entry = place.reader.resolve(place.path)
    if entry.kind is NodeKind.FILE:
        recipe = entry.recipe if entry.recipe is not None else Recipe()
        if recipe_id(recipe, entry.size).hex() == version.etag:
            return entry
    raise Changed(f"snapshot {place.snapshot.name!r} is another one than it was")


def _load_windows(place: _Place, version: Version, numbers: range) -> dict[int, list[Extent]]:
    entry = _file(place, version)
    start, end = numbers.start * _WINDOW_BYTES, numbers.stop * _WINDOW_BYTES
    found: dict[int, list[Extent]] = {number: [] for number in numbers}
    for batch in place.reader.extents(entry, start, min(end, entry.size)):
        for at, length, offset, name in batch:
            first = max(numbers.start, at // _WINDOW_BYTES)
            last = min(numbers.stop - 1, (at + length - 1) // _WINDOW_BYTES)
            for number in range(first, last + 1):
                found[number].append((at, at + length, name, offset))
    return {
        number: list(_clipped(extents, number * _WINDOW_BYTES, (number + 1) * _WINDOW_BYTES))
        for number, extents in found.items()
    }


def _clipped(extents: Sequence[Extent], start: int, end: int) -> Iterator[Extent]:
    """The parts within [start, end)."""
    for low, high, source, offset in extents:
        if high > start and low < end:
            first = max(low, start)
            yield first, min(high, end), source, offset + first - low
