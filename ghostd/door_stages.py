"""Large files on their way into the namespace: they get their extents in stages.

Until it is whole a file has no name, like one that was unlinked while it is open: nobody sees it,
it goes when its worker does, and the next start of the daemon removes what a crash left. Owned by
the filesystem's loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from ghostd.errors import FileTooLarge
from ghostd.filemap import SIZE_MAX
from ghostd.filesystem import Filesystem
from ghostd.inodes import Inode
from ghostd.tree import Tree
from syncer.door_protocol import Extent
from syncer.remotes import errors

_AT_ONCE: Final = 1_000  # extents that are shown before others have their turn: about 1 ms
_UNCOMMITTED_MAX: Final = 32_768  # extents in memory, of each file: about 10 MB


class Source(NamedTuple):
    """A file that another one is cloned from, open until that has its name."""

    inode: Inode
    size: int
    changes: int  # of its content, when it was opened


class Stages:
    """The files under way, by the inode's number."""

    def __init__(self, fs: Filesystem, tree: Tree) -> None:
        self._fs = fs
        self._tree = tree
        self._under_way: dict[int, tuple[int, Inode]] = {}  # with whose visit it is
        self._uncommitted: dict[int, int] = {}  # extents since the last commit
        self._sources: dict[int, Source] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    async def extend(self, visit: int, ino: int, extents: Sequence[Extent]) -> int:
        """Show more of a file, behind what it shows; `ino` 0: begin one. Its number."""
        await self._fs.writeback.room(0)
        if ino:
            inode = self._of(visit, ino)
        else:
            inode = self._fs.nameless()
            self._under_way[inode.ino] = visit, inode
            self._uncommitted[inode.ino] = 0
        rest = iter(extents)
        while some := list(itertools.islice(rest, _AT_ONCE)):
            self.show(inode, some)
            await trio.lowlevel.checkpoint()
        self._uncommitted[inode.ino] += len(extents)
        if self._uncommitted[inode.ino] > _UNCOMMITTED_MAX:
            self._uncommitted[inode.ino] = 0
            await self._fs.sync()  # what is in the database can leave the memory
        return inode.ino

    def show(self, inode: Inode, extents: Sequence[Extent]) -> None:
        """Show stored extents, ascending, behind what the file shows. Raises FileTooLarge."""
        if not extents:
            return
        content = self._tree.content(inode)
        end = max(at + length for at, length, _, _ in extents)
        if end > SIZE_MAX:
            raise FileTooLarge
        inode.allocated += content.show(
            (at, at + length, chunk, offset) for at, length, offset, chunk in extents
        )
        inode.size = max(inode.size, end)
        self._tree.touch(inode)
        self._tree.touch_content(inode, content.unstored)

    def _of(self, visit: int, ino: int) -> Inode:
        owner, inode = self._under_way.get(ino, (-1, None))
        if inode is None or owner != visit:
            raise errors.Busy("what had been stored of the file is gone: it is stored again")
        return inode

    def take(self, visit: int, ino: int) -> Inode:
        """The file, which gets its name now; `done` with it afterwards. Raises Busy."""
        return self._of(visit, ino)

    def source(self, ino: int) -> Source | None:
        """What the file is cloned from."""
        return self._sources.get(ino)

    def follow(self, ino: int, inode: Inode) -> Source:
        """The file is cloned from this one, as it is now."""
        self._fs.open(inode.ino)
        source = Source(inode, inode.size, self._tree.content(inode).changes)
        self._sources[ino] = source
        return source

    def done(self, ino: int) -> None:
        """It has its name, or is not wanted any more."""
        source = self._sources.pop(ino, None)
        if source is not None:
            self._fs.release(source.inode.ino)
        if self._under_way.pop(ino, None) is not None:
            del self._uncommitted[ino]
            self._fs.release(ino)

    def leave(self, visit: int) -> None:
        """A worker has ended, and with it what it had begun."""
        for ino in [ino for ino, (owner, _) in self._under_way.items() if owner == visit]:
            self.done(ino)
