"""A snapshot as a tree: read-only, and never another one than it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import trio

from blockstore.ids import ChunkId
from syncer.chunks import ChunkStore
from syncer.remotes.errors import Changed, Garbled, Missing, Unsupported
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import ROOT, Content, Features, Metadata, Node, PageSink
from syncer.tree_objects import Entry, node_of

_THREADS: Final = 8  # reads at a time
_PAGE: Final = 1_000


class SnapshotTree:
    """The tree below a root object, or below a path in it. Fulfils `Tree`."""

    def __init__(
        self,
        store: ChunkStore,
        root: ChunkId,
        *,
        label: str = "snapshot",
        at: bytes = ROOT,
        round_trip_s: float = 0.0,
    ) -> None:
        """`at`: the path that is the root here. `round_trip_s`: to the store, if it is away."""
        self.store = store
        self.reader = SnapshotReader(store, root)
        self._at = at
        self._round_trip_s = round_trip_s
        self._label = label
        self.limiter = trio.CapacityLimiter(_THREADS)

    @property
    def label(self) -> str:
        """See Tree."""
        return self._label

    @property
    def features(self) -> Features:
        """See Tree."""
        return Features(
            why_not="a snapshot never changes",
            symlinks=True,
            hard_links=True,
            specials=True,
            mode=True,
            owner=True,
            xattrs=True,
            holes=True,
            local=not self._round_trip_s,
            chunked=True,
            round_trip_s=self._round_trip_s,
        )

    def _path(self, path: bytes) -> bytes:
        return b"/".join(part for part in (self._at, path) if part)

    def entry(self, path: bytes) -> Entry:
        """What is at a path. Blocks: for threads. Raises Missing."""
        entry = self.reader.resolve(self._path(path))
        return entry if path else entry._replace(name=b"")

    async def resolve(self, path: bytes) -> Entry:
        """The entry at a path, with its recipe or the id of its object. Raises Missing."""
        return await trio.to_thread.run_sync(self.entry, path, limiter=self.limiter)

    async def list(self, path: bytes, sink: PageSink) -> None:
        """See Tree."""
        directory: Entry | None = None
        last = b""

        def begin() -> list[Node] | None:
            nonlocal directory
            directory = self.entry(path)
            return more()

        def more() -> list[Node] | None:
            assert directory is not None
            page = next(iter(self.reader.pages(directory, last)), None)
            return None if page is None else [node_of(entry) for entry in page[:_PAGE]]

        page = await trio.to_thread.run_sync(begin, limiter=self.limiter)
        while page is not None:
            last = page[-1].name
            await sink(page)
            page = await trio.to_thread.run_sync(more, limiter=self.limiter)

    async def stat(self, path: bytes) -> Node:
        """See Tree."""
        return node_of(await self.resolve(path))

    def pinned(self, path: bytes, node: Node) -> Entry:
        """The entry at a path, if it is what `node` was seen to be. Blocks. Raises Changed."""
        try:
            entry = self.entry(path)
        except Missing as error:
            raise Changed(str(error)) from None
        if node.content is not None and node_of(entry).content != node.content:
            raise Changed(f"{path!r} is another file in this snapshot")
        return entry

    async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        """See Tree."""

        def read() -> bytes:
            return self.reader.read(self.pinned(path, node), offset, length)

        data = await trio.to_thread.run_sync(read, limiter=self.limiter)
        if len(data) != length:
            raise Garbled(f"{path!r} gave {len(data)} of {length} bytes at {offset}")
        return data

    async def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """See Tree."""

        def xattrs() -> dict[bytes, bytes]:
            return self.reader.xattrs(self.entry(path))

        return await trio.to_thread.run_sync(xattrs, limiter=self.limiter)

    async def data_ranges(self, path: bytes, node: Node) -> Sequence[tuple[int, int]] | None:
        """See Tree."""

        def ranges() -> Sequence[tuple[int, int]]:
            return self.reader.data_ranges(self.pinned(path, node))

        return await trio.to_thread.run_sync(ranges, limiter=self.limiter)

    async def _refuse(self) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise Unsupported(f"{self._label} cannot be written: a snapshot never changes")

    async def write(
        self,
        path: bytes,  # noqa: ARG002
        content: Content,  # noqa: ARG002
        metadata: Metadata,  # noqa: ARG002
        *,
        ranges: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002
        old: Node | None = None,  # noqa: ARG002
        replace: bool = True,  # noqa: ARG002
    ) -> Node:
        """Raise Unsupported."""
        await self._refuse()

    async def mkdir(self, path: bytes, metadata: Metadata) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def symlink(self, path: bytes, target: bytes, metadata: Metadata) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def hard_link(self, path: bytes, existing: bytes) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def special(self, path: bytes, node: Node, metadata: Metadata) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def set_metadata(self, path: bytes, metadata: Metadata) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def delete(self, path: bytes, node: Node) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def rename(self, path: bytes, new_path: bytes) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse()

    async def sync(self) -> None:
        """Nothing is ever waiting."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """The store is its owner's."""
        await trio.lowlevel.checkpoint()
