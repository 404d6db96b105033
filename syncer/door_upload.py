"""One file on its way through the door: chunks in batches, extents in stages.

What is in memory does not grow with the file: the daemon keeps the extents of a stage with a file
that has no name yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import trio

from blockstore.ids import Buffer
from syncer.chunks import ChunkStore
from syncer.door_protocol import EXTENT, Extent, split
from syncer.remotes.errors import RemoteError
from syncer.tree import Content

if TYPE_CHECKING:
    from syncer.door import Door

BATCH_BYTES: Final = 8 << 20  # that are cut and stored at once
BATCH_PARTS: Final = 512  # runs between holes, likewise
STAGE_EXTENTS: Final = 8_192  # with one message; 512 MiB of dense content

Extents = list[Extent]


class _Part(NamedTuple):
    """A run of bytes that is to be cut."""

    start: int  # in the file
    data: bytes
    final: bool  # false: more of it follows


class Upload:
    """Stores a content and hands its extents over. Use it as a context."""

    def __init__(
        self,
        door: Door,
        store: ChunkStore,
        path: str,
        content: Content,
        *,
        stage_extents: int = STAGE_EXTENTS,
    ) -> None:
        """`path` is for messages. `stage_extents`: handed over when there are so many."""
        self._door = door
        self._store = store
        self._path = path
        self._content = content
        self._stage_extents = stage_extents
        self._parts: list[_Part] = []
        self._held = 0  # bytes of them
        self.stage = 0  # what the daemon calls the file; 0: it has nothing of it yet
        self.extents: Extents = []  # that it has not got

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, *_: object) -> None:
        """What got no name is not kept."""
        if self.stage:
            with trio.CancelScope(shield=True), suppress(RemoteError):
                head = {"op": "unstage", "path": self._path, "stage": self.stage}
                await self._door.ask(head)

    async def begin(self) -> None:
        """Make the file, which has no name yet. Raises RemoteError."""
        await self._hand_over()

    async def add(self, extents: Sequence[Extent]) -> None:
        """More of what the store has. Raises RemoteError."""
        self.extents += extents
        if len(self.extents) >= self._stage_extents:
            await self._hand_over()

    def named(self) -> None:
        """The file has its name."""
        self.stage = 0

    async def run(self, ranges: Iterable[tuple[int, int]] | None) -> None:
        """Cut and store what is not a hole. Raises RemoteError."""
        for start, length in [(0, self._content.size)] if ranges is None else ranges:
            rest = b""
            at, end = start, start + length
            while at < end:
                piece = await self._content.read(at, min(BATCH_BYTES - self._held, end - at))
                data = rest + piece if rest else piece
                at += len(piece)
                self._parts.append(_Part(at - len(data), data, at >= end))
                self._held += len(piece)
                rest = b""
                if self._held >= BATCH_BYTES or len(self._parts) >= BATCH_PARTS:
                    rest = await self._store_parts()
        await self._store_parts()

    async def _store_parts(self) -> bytes:
        """What was not cut yet of the last part."""
        parts, self._parts, self._held = self._parts, [], 0
        if not parts:
            return b""
        extents, rest = await trio.to_thread.run_sync(
            put_parts, self._store, parts, limiter=self._door.limiter
        )
        await self.add(extents)
        return rest

    async def _hand_over(self) -> None:
        extents, self.extents = self.extents, []
        head = {"op": "stage", "path": self._path, "stage": self.stage}
        head["files"] = [{"extents": len(extents)}]
        self.stage = (await self._door.ask(head, [packed(extents)])).head["stage"]


def packed(extents: Iterable[Extent]) -> bytes:
    """For a message."""
    pack: Callable[..., bytes] = EXTENT.pack
    return b"".join(pack(*extent) for extent in extents)


def put_parts(store: ChunkStore, parts: Sequence[_Part]) -> tuple[Extents, bytes]:
    """The extents of what was cut and stored, and what is left of the last part. Blocks."""
    pieces: list[Buffer] = []
    places: list[tuple[int, int]] = []
    rest = b""
    for part in parts:
        lengths = store.cut(part.data)
        if not part.final:
            lengths.pop()  # where it ends is no cut
        whole = sum(lengths)
        at = part.start
        pieces += split(memoryview(part.data)[:whole], lengths)
        for length in lengths:
            places.append((at, length))
            at += length
        rest = part.data[whole:]
    names = store.put(pieces)
    extents = [
        (at, length, 0, bytes(name)) for (at, length), name in zip(places, names, strict=True)
    ]
    return extents, rest
