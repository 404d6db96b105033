"""Reading the files of a backup into the store: what small and large ones have in common.

Each reader has a buffer of its own. Small files are read one after the other into it, cut, and put
together; a large file is offered to all readers: whoever has its lock fills a buffer and cuts it,
then hashes and compresses without the lock. A file is stored as it was at one moment, or not at
all: what changes while it is read is read again, three times at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blockstore.ids import Buffer, ChunkId
from syncer.backup_previous import Known, token_now
from syncer.chunks import ChunkStore
from syncer.local_nodes import is_root
from syncer.local_root import Directories, Spot
from syncer.local_tree import LocalTree
from syncer.recipes import Extent, Recipe
from syncer.remotes.errors import RemoteError
from syncer.tree import Node, NodeKind, Tree
from syncer.tree_objects import NO_TOKEN, Entry, entry_of
from syncer.tree_writer import TreeWriter

BUFFER_BYTES: Final = 4 << 20  # 8 MiB is no faster, and 1 MiB a tenth slower
LARGE_BYTES: Final = BUFFER_BYTES  # files from here on are streamed
BATCH_FILES: Final = 256
AT_ONCE: Final = 8  # files, or parts of one, of trees that are not local


@dataclass(slots=True, eq=False)
class Slot:
    """A node whose entry is being made. Written by one reader, read when `done`."""

    path: bytes
    node: Node
    known: Known | None
    link: int = 0  # see Entry
    names: Hashable = None  # what the tree says of its names, see Node.link
    content: bool = True  # the file has to be read; else only what stands beside it
    entry: Entry | None = None
    token: int = NO_TOKEN
    error: RemoteError | None = None
    read_bytes: int = 0
    done: bool = False

    @property
    def size(self) -> int:
        """Bytes that have to be read."""
        return self.node.size if self.content and self.node.kind is NodeKind.FILE else 0


class Reader:
    """What the readers of one backup have in common."""

    def __init__(
        self, tree: Tree, store: ChunkStore, writer: TreeWriter, *, xattrs: bool, checksum: bool
    ) -> None:
        self.tree = tree
        self.store = store
        self.writer = writer
        self.xattrs = xattrs and tree.features.xattrs
        self.checksum = checksum
        self.local = tree if isinstance(tree, LocalTree) else None
        self._root = is_root()

    def has_xattrs(self, node: Node) -> bool:
        """Whether a node may have attributes that are kept; of local symlinks only root's."""
        return self.xattrs and (
            node.kind is not NodeKind.SYMLINK or self.local is None or self._root
        )

    def finish(
        self, slot: Slot, node: Node, recipe: Recipe | None, xattrs: Mapping[bytes, bytes]
    ) -> None:
        """Make the entry. Blocks: large attributes are stored."""
        slot.node = node
        slot.token = token_now(node)
        entry = entry_of(node, recipe, link=slot.link)
        slot.entry = self.writer.with_xattrs(entry, xattrs)

    def kept_recipe(self, slot: Slot) -> Recipe | None:
        """The recipe of a file that need not be read."""
        return slot.known.entry.recipe if slot.known is not None else None


def extents_of(ids: Sequence[ChunkId], chunks: Sequence[Buffer], start: int) -> list[Extent]:
    """The extents of chunks that follow each other from `start` in the file."""
    extents = []
    for name, chunk in zip(ids, chunks, strict=True):
        extents.append(Extent(start, len(chunk), 0, name))
        start += len(chunk)
    return extents


@contextlib.contextmanager
def spot_of(tree: LocalTree, directories: Directories, path: bytes) -> Iterator[Spot]:
    """Where a file is; the tree itself may be one."""
    if path:
        yield directories.spot(path)
    else:
        with tree.root.spot([]) as spot:
            yield spot
