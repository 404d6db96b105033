"""Files of the namespace that get what others have: their extents, and no byte is moved.

Small ones are looked up together, each at one instant. Of a large one the extents come in parts,
between which others have their turn; it counts how often the content was changed, so that all parts
are of one state. What is not in the store yet is brought there first. What cannot be cloned is left
to be copied: files whose bytes a remote still has, or those that never rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from blockstore.errors import OrbitError
from ghostd.door_paths import Paths, shown, translated
from ghostd.door_reads import Look, Looks
from ghostd.door_stages import Source, Stages
from ghostd.filemap import SEGMENT_BYTES, Extent
from ghostd.filesystem import Filesystem
from syncer.door_protocol import Extent as WireExtent
from syncer.door_protocol import data
from syncer.remotes.errors import Busy, Changed, RemoteError

_SMALL_BYTES_MAX: Final = 256 << 20  # of all files of a request
_PART_EXTENTS: Final = 4_096  # of a large file at once, about: 256 MiB of dense content
_WINDOW_BYTES: Final = 8 * SEGMENT_BYTES  # looked at before others have their turn: 1 ms
_TRIES: Final = 3  # to meet a file whose content is stored


class Clones:
    """Looks up what is to be cloned. Owned by the filesystem's loop."""

    def __init__(self, filesystem: Filesystem, paths: Paths, looks: Looks, stages: Stages) -> None:
        self._fs = filesystem
        self._paths = paths
        self._looks = looks
        self._stages = stages

    async def all(
        self, files: Sequence[tuple[str, Sequence[int] | None]], *, xattrs: bool
    ) -> list[Look | RemoteError]:
        """Small files by their paths and tokens, stored."""
        found = await self._looks.all(files, xattrs=xattrs, bytes_max=_SMALL_BYTES_MAX)
        if any(isinstance(each, Look) and each.unstored for each in found):
            await self._fs.sync()
            found = await self._looks.all(files, xattrs=xattrs, bytes_max=_SMALL_BYTES_MAX)
        return [
            Busy(f"/{shown(each.path)}: is being written")
            if isinstance(each, Look) and each.unstored
            else each
            for each in found
        ]

    async def part(self, visit: int, head: Mapping[str, Any]) -> tuple[list[WireExtent], int]:
        """What a large file shows from an offset on, and up to where; its end: that is all.

        Raises Changed, Busy, RemoteError.
        """
        path = data(head["from"])
        try:
            stage = self._stages.take(visit, head["stage"]).ino
            source = self._stages.source(stage)
            if source is None:
                inode = await self._paths.seen(path, head["token"])
                source = self._stages.follow(stage, inode)
            return await self._part(source, path, head["at"])
        except OrbitError as error:
            raise translated(error, path) from error

    async def _part(self, source: Source, path: bytes, at: int) -> tuple[list[WireExtent], int]:
        found: list[WireExtent] = []
        while at < source.size and len(found) < _PART_EXTENTS:
            at = self._behind_hole(source, at)
            end = min(at + _WINDOW_BYTES, source.size)
            found += wire_extents(await self._stored(source, path, at, end))
            at = end
            await trio.lowlevel.checkpoint()
        return found, at

    def _behind_hole(self, source: Source, at: int) -> int:
        """Where the next segment with data begins, if it is not this one."""
        inode = source.inode
        if inode.base_end > at:
            return at
        numbers = self._fs.tree.content(inode).numbers(at // SEGMENT_BYTES, 1)
        return max(at, min(numbers[0] * SEGMENT_BYTES, source.size)) if numbers else source.size

    async def _stored(self, source: Source, path: bytes, start: int, end: int) -> list[Extent]:
        inode = source.inode
        content = self._fs.tree.content(inode)
        for _ in range(_TRIES):
            extents = await self._fs.reader.at_hand(inode, start, end)
            if content.changes != source.changes:
                raise Changed(f"/{shown(path)}: was changed while it was copied")
            if extents is None:
                raise Busy(f"/{shown(path)}: is not here yet")
            if all(isinstance(each[2], bytes) for each in extents):
                return extents
            await self._fs.sync()
        raise Busy(f"/{shown(path)}: is being written")


def wire_extents(extents: Sequence[Extent]) -> list[WireExtent]:
    """Stored extents as they go through the door."""
    return [
        (start, end - start, offset, source)
        for start, end, source, offset in extents
        if isinstance(source, bytes)
    ]
