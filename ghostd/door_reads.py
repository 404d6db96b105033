"""Many small files of the namespace, whole, with one answer.

What each shows is looked up in the filesystem's loop, which is one state of it; the chunks of all
are then fetched together, in the order of the packs, by the thread of the connection. What would
hold up the others is Busy and read alone: blocks that a remote still has, chunks that are damaged
or were moved meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import trio

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import Buffer, ChunkId
from blockstore.store import BlockStore
from ghostd.door_paths import Paths, check_same, shown, translated
from ghostd.filemap import Extent
from ghostd.filesystem import Filesystem
from ghostd.reader import assemble
from syncer.door_protocol import Head, data, error_head, xattrs_to_wire
from syncer.remotes.errors import Busy, RemoteError

BYTES_MAX: Final = 8 << 20  # in one answer
_FILES_AT_ONCE: Final = 8  # are looked up before others have their turn: 0.25 ms


class Look(NamedTuple):
    """A file at one instant."""

    path: bytes
    size: int
    extents: list[Extent]  # what none of them shows is a hole
    xattrs: Mapping[bytes, bytes] | None  # None: not asked for

    @property
    def unstored(self) -> bool:
        """Whether some of it is in memory only."""
        return not all(isinstance(source, bytes) for _, _, source, _ in self.extents)


class Looks:
    """Looks files up. Owned by the filesystem's loop."""

    def __init__(self, filesystem: Filesystem, paths: Paths) -> None:
        self._fs = filesystem
        self._paths = paths

    async def all(
        self,
        files: Sequence[tuple[str, Sequence[int] | None]],
        *,
        xattrs: bool,
        bytes_max: int,
    ) -> list[Look | RemoteError]:
        """Files by their paths and tokens, in the same order; Busy: one too many."""
        found: list[Look | RemoteError] = []
        known: dict[bytes, int] = {}
        room = bytes_max
        for number, (name, token) in enumerate(files):
            if number % _FILES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            path = data(name)
            try:
                look = await self._one(path, token, known, room, xattrs=xattrs)
            except OrbitError as error:
                found.append(translated(error, path))
                continue
            room -= look.size
            found.append(look)
        return found

    async def _one(
        self,
        path: bytes,
        token: Sequence[int] | None,
        known: dict[bytes, int],
        room: int,
        *,
        xattrs: bool,
    ) -> Look:
        inode = await self._paths.seen(path, token, known)
        if inode.size > room:
            raise Busy(f"/{shown(path)}: is too much for one request")
        attributes = dict(self._fs.tree.xattrs(inode)) if xattrs else None
        size = inode.size
        extents = await self._fs.reader.at_hand(inode, 0, size)
        check_same(inode, token, path)
        if extents is None:
            raise Busy(f"/{shown(path)}: is not here yet")
        return Look(path, size, extents, attributes)


def content_of(
    store: BlockStore, looks: Sequence[Look | RemoteError]
) -> tuple[list[Head], list[Buffer]]:
    """For an answer: of each file its length and attributes, or an error; and the bytes. Blocks."""
    chunks = _chunks_of(store, looks)
    heads: list[Head] = []
    parts: list[Buffer] = []
    for each in looks:
        if isinstance(each, RemoteError):
            heads.append(error_head(each))
            continue
        try:
            parts.append(assemble(each.extents, chunks, 0, each.size))
        except KeyError:
            heads.append(error_head(Busy(f"/{shown(each.path)}: a part of it is to be found")))
            continue
        xattrs = None if each.xattrs is None else xattrs_to_wire(each.xattrs)
        heads.append({"length": each.size, "xattrs": xattrs})
    return heads, parts


def _chunks_of(store: BlockStore, looks: Sequence[Look | RemoteError]) -> dict[bytes, bytes]:
    """The chunks of all of them; where one cannot be had, those of the others."""
    wanted = [_names_of(each) for each in looks if isinstance(each, Look)]
    found: dict[bytes, bytes] = {}
    try:
        found.update(store.fetch([name for names in wanted for name in names]).items())
    except (ChunkMissing, ChunkDamaged):
        for names in wanted:
            try:
                found.update(store.fetch(names).items())
            except (ChunkMissing, ChunkDamaged):
                continue  # who reads it alone finds out why, and may have it fetched again
    return found


def _names_of(look: Look) -> list[ChunkId]:
    return [ChunkId(source) for _, _, source, _ in look.extents if isinstance(source, bytes)]
