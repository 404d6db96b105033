"""The worker's side of the door: the daemon's store as a `ChunkStore`, its namespace as a `Tree`.

What is written into the namespace is cut and hashed here; only chunks that the daemon has not got
go through the door, and a file appears there under its name with all of its bytes or not at all.
"""

from __future__ import annotations

import queue
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any, Final

import trio

from blockstore.chunker import ChunkerParams
from blockstore.ids import Buffer
from syncer.door_files import (
    CloneFile,
    Outcomes,
    SmallFile,
    Wholes,
    item_of,
    outcomes_of,
    portions,
    wholes_of,
)
from syncer.door_protocol import (
    DoorClosed,
    Extent,
    Head,
    Message,
    error_of,
    metadata_to_wire,
    node_from_wire,
    receive,
    send,
    split,
    text,
    xattrs_from_wire,
)
from syncer.door_store import DoorCatalogue, DoorStore
from syncer.door_upload import STAGE_EXTENTS, Extents, Upload, packed
from syncer.ranges import Ranges
from syncer.remotes.errors import Busy, RemoteError
from syncer.remotes.held import Held
from syncer.tree import Content, Features, Metadata, Node, NodeKind, PageSink, Whole

_PAGE = 2_000
_TRIES: Final = 3  # to store a file whose chunks a collection removed meanwhile


Items = list[tuple[Head, Extents]]
Buffers = list[Buffer]


class Door:
    """Calls to the daemon. Methods block; any thread may call them."""

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        """As many calls at a time as there are connections."""
        self._all = tuple(connections)
        self._free: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        for connection in connections:
            self._free.put(connection)
        self.limiter = trio.CapacityLimiter(len(self._all))
        hello = self.call({"op": "hello"}).head
        self.mount: str = hello["mount"]
        self.chunker = ChunkerParams(**hello["chunker"])

    def call(self, head: Head, body: Sequence[Buffer] = ()) -> Message:
        """One request. Raises RemoteError: what the daemon answers, or DoorClosed."""
        connection = self._free.get()
        try:
            send(connection, head, body)
            answer = receive(connection)
        finally:
            self._free.put(connection)
        if answer is None:
            raise DoorClosed("the daemon has ended; the job goes on when it is back")
        error = error_of(answer.head)
        if error is not None:
            raise error
        return answer

    async def ask(self, head: Head, body: Sequence[Buffer] = ()) -> Message:
        """The same from the loop. A call that is given up ends by itself."""
        return await trio.to_thread.run_sync(
            self.call, head, body, abandon_on_cancel=True, limiter=self.limiter
        )

    @property
    def store(self) -> DoorStore:
        """The daemon's chunks."""
        return DoorStore(self)

    @property
    def catalogue(self) -> DoorCatalogue:
        """The daemon's snapshots."""
        return DoorCatalogue(self)

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Until the end of the body the daemon removes no chunk that nothing names yet."""
        await self.ask({"op": "hold"})
        try:
            yield
        finally:
            with trio.CancelScope(shield=True), suppress(DoorClosed):
                await self.ask({"op": "release"})

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()


class DoorTree:
    """A directory of the daemon's namespace. See Tree, ManyReader and ManyWriter."""

    steps_max = 500
    bytes_max = 8 << 20

    def __init__(self, door: Door, root: bytes) -> None:
        """`root`: from the root of the mount, without a leading slash."""
        self._door = door
        self._store = DoorStore(door)
        self._root = root.strip(b"/")
        self.stage_extents = STAGE_EXTENTS
        self._features = Features(
            write=True,
            symlinks=True,
            hard_links=True,
            specials=True,
            mode=True,
            owner=True,
            xattrs=True,
            holes=True,
            rename=True,
            conditional=True,
            local=True,
            tells_all=True,
            chunked=True,
        )

    def is_of(self, other: DoorTree) -> bool:
        """Whether both are of one namespace."""
        return self._door is other._door

    def has(self, store: object) -> bool:
        """Whether the namespace is made of a store's chunks."""
        return isinstance(store, DoorStore) and store.is_of(self._door)

    @property
    def label(self) -> str:
        """See Tree."""
        shown = self._root.decode(errors="backslashreplace")
        return f"{self._door.mount}/{shown}" if shown else self._door.mount

    @property
    def features(self) -> Features:
        """See Tree."""
        return self._features

    def _path(self, path: bytes) -> str:
        return text(b"/".join(part for part in (self._root, path) if part))

    async def _ask(self, op: str, path: bytes, **values: Any) -> Message:
        return await self._door.ask({"op": op, "path": self._path(path), **values})

    # --- reading -------------------------------------------------------------------------------

    async def list(self, path: bytes, sink: PageSink) -> None:
        """See Tree."""
        after = 0
        while True:
            head = (await self._ask("list", path, after=after, limit=_PAGE)).head
            if head["nodes"]:
                await sink([node_from_wire(values) for values in head["nodes"]])
            after = head["after"]
            if not after:
                return

    async def stat(self, path: bytes) -> Node:
        """See Tree."""
        return node_from_wire((await self._ask("stat", path)).head["node"])

    async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        """See Tree."""
        answer = await self._ask("read", path, token=node.token, offset=offset, length=length)
        return bytes(answer.body)

    async def read_many(
        self, files: Sequence[tuple[bytes, Node]], *, xattrs: bool
    ) -> Sequence[Whole | RemoteError]:
        """See ManyReader. One call brings some MiB."""
        found: Wholes = []
        for some in portions(files):
            wanted = [(self._path(path), node.token) for path, node in some]
            head = {"op": "read_many", "files": wanted, "xattrs": xattrs}
            found += wholes_of(await self._door.ask(head))
        return found

    async def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """See Tree."""
        return xattrs_from_wire((await self._ask("xattrs", path)).head["xattrs"])

    async def data_ranges(self, path: bytes, node: Node) -> Sequence[tuple[int, int]] | None:
        """See Tree."""
        answer = await self._ask("ranges", path, token=node.token)
        return Ranges.from_bytes(answer.body) if answer.head["known"] else None

    # --- writing -------------------------------------------------------------------------------

    async def write(
        self,
        path: bytes,
        content: Content,
        metadata: Metadata,
        *,
        ranges: Sequence[tuple[int, int]] | None = None,
        old: Node | None = None,
        replace: bool = True,
    ) -> Node:
        """See Tree."""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._upload(path, content, metadata, ranges, old, replace=replace)
            except Busy:
                if attempt == _TRIES:
                    raise
        raise AssertionError

    async def _upload(
        self,
        path: bytes,
        content: Content,
        metadata: Metadata,
        ranges: Sequence[tuple[int, int]] | None,
        old: Node | None,
        *,
        replace: bool,
    ) -> Node:
        where = self._path(path)
        async with Upload(
            self._door, self._store, where, content, stage_extents=self.stage_extents
        ) as upload:
            await upload.run(ranges)
            item = item_of(where, content.size, metadata, old, replace=replace)
            return await self._finish(upload, item)

    async def write_many(self, files: Sequence[SmallFile]) -> Outcomes:
        """Write small files at once; each one succeeds or fails alone."""

        def store() -> Items:
            pieces: Buffers = []
            cuts = []
            for file in files:
                lengths = self._store.cut(file.data) if file.data else []
                cuts.append(lengths)
                pieces += split(file.data, lengths)
            ids = iter(self._store.put(pieces))
            items = []
            for file, lengths in zip(files, cuts, strict=True):
                extents: Extents = []
                at = 0
                for length in lengths:
                    extents.append((at, length, 0, next(ids)))
                    at += length
                item = item_of(
                    self._path(file.path), at, file.metadata, file.old, replace=file.replace
                )
                items.append((item, extents))
            return items

        items = await trio.to_thread.run_sync(store, limiter=self._door.limiter)
        outcomes = await self._write(items)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Busy):  # rare: a collection ran meanwhile
                file = files[index]
                try:
                    outcomes[index] = await self.write(
                        file.path,
                        Held(file.data),
                        file.metadata,
                        old=file.old,
                        replace=file.replace,
                    )
                except RemoteError as error:
                    outcomes[index] = error
        return outcomes

    async def clone_many(
        self, source: DoorTree, files: Sequence[CloneFile], *, xattrs: bool
    ) -> Outcomes:
        """Give small files what files of `source` have; each one succeeds or fails alone.

        Busy, Changed: copy it. Raises RemoteError.
        """
        items = [self._clone_item(source, file) for file in files]
        head = {"op": "clone", "files": items, "xattrs": xattrs}
        return outcomes_of(await self._door.ask(head))

    async def clone_large(self, source: DoorTree, file: CloneFile) -> Node:
        """Give a file what another one of `source` has, part by part. Raises RemoteError."""
        item = self._clone_item(source, file)
        where = item["path"]
        async with Upload(self._door, self._store, where, Held(b"")) as upload:
            await upload.begin()
            head = {**item, "op": "clone_part", "stage": upload.stage, "at": 0}
            while head["at"] < file.node.size:
                head["at"] = (await self._door.ask(head)).head["at"]
            return await self._finish(upload, item)

    async def name_many(self, files: Sequence[tuple[CloneFile, Sequence[Extent]]]) -> Outcomes:
        """Give small files what the store has; each one succeeds or fails alone.

        Busy: a chunk of it is not there. Raises RemoteError.
        """
        return await self._write([(self._item(file), extents) for file, extents in files])

    async def name_large(
        self, file: CloneFile, more: Callable[[], Awaitable[Sequence[Extent] | None]]
    ) -> Node:
        """Give a file what the store has, ascending; None ends it. Raises RemoteError."""
        item, nothing = self._item(file), Held(b"")
        async with Upload(
            self._door, self._store, item["path"], nothing, stage_extents=self.stage_extents
        ) as upload:
            while (some := await more()) is not None:
                await upload.add(some)
            return await self._finish(upload, item)

    async def _finish(self, upload: Upload, item: Head) -> Node:
        item["stage"] = upload.stage
        outcome = (await self._write([(item, upload.extents)]))[0]
        if isinstance(outcome, RemoteError):
            raise outcome
        upload.named()
        return outcome

    def _item(self, file: CloneFile) -> Head:
        path, size = self._path(file.path), file.node.size
        return item_of(path, size, file.metadata, file.old, replace=file.replace)

    def _clone_item(self, source: DoorTree, file: CloneFile) -> Head:
        item = self._item(file)
        item["from"] = source._path(file.source_path)
        item["token"] = file.node.token
        return item

    async def _write(self, items: Sequence[tuple[Head, Sequence[Extent]]]) -> Outcomes:
        for item, extents in items:
            item["extents"] = len(extents)
        body = packed(chain.from_iterable(extents for _, extents in items))
        head = {"op": "write", "files": [item for item, _ in items]}
        return outcomes_of(await self._door.ask(head, [body]))

    async def mkdir(self, path: bytes, metadata: Metadata) -> None:
        """See Tree."""
        await self._ask("mkdir", path, metadata=metadata_to_wire(metadata))

    async def symlink(self, path: bytes, target: bytes, metadata: Metadata) -> None:
        """See Tree."""
        await self._ask("symlink", path, target=text(target), metadata=metadata_to_wire(metadata))

    async def hard_link(self, path: bytes, existing: bytes) -> None:
        """See Tree."""
        await self._ask("link", path, existing=self._path(existing))

    async def special(self, path: bytes, node: Node, metadata: Metadata) -> None:
        """See Tree."""
        await self._ask(
            "special",
            path,
            kind=node.kind.value,
            rdev=node.rdev,
            metadata=metadata_to_wire(metadata),
        )

    async def set_metadata(self, path: bytes, metadata: Metadata) -> None:
        """See Tree."""
        await self._ask("set_metadata", path, metadata=metadata_to_wire(metadata))

    async def delete(self, path: bytes, node: Node) -> None:
        """See Tree."""
        await self._ask("delete", path, directory=node.kind is NodeKind.DIRECTORY)

    async def rename(self, path: bytes, new_path: bytes) -> None:
        """See Tree."""
        await self._ask("rename", path, new_path=self._path(new_path))

    async def sync(self) -> None:
        """See Tree."""
        await self._door.ask({"op": "flush"})

    async def close(self) -> None:
        """See Tree. The door stays open: it has other users."""
        await trio.lowlevel.checkpoint()
