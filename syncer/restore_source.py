"""What a restore takes from its snapshot, and compares its files with. Blocks: for threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain

import trio

from blockstore.ids import ChunkId
from syncer.local_root import Directories
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.recipes import Extent
from syncer.remotes.errors import Changed, Missing
from syncer.restore_bytes import read_back
from syncer.snapshot_tree import SnapshotTree
from syncer.transfer_steps import wanted_metadata
from syncer.tree import Metadata, Node, NodeKind
from syncer.tree_objects import Entry


class RestoreSource:
    """Files of a snapshot, as a folder is to have them."""

    def __init__(self, tree: SnapshotTree, options: Options, target: LocalTree) -> None:
        self._tree = tree
        self.options = options
        self.target = target
        self.durable = options.durable and target.durable

    def entries(self, paths: Iterable[bytes]) -> Iterator[Entry | Changed]:
        """Yield the entry of each file; neighbours are looked up together."""
        folder, above = None, b""
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            try:
                if not path:
                    entry: Entry | None = self._tree.entry(path)
                else:
                    if folder is None or parent != above:
                        folder, above = self._tree.entry(parent), parent
                    entry = self._tree.reader.child(folder, name)
            except Missing:
                entry = None
            if entry is None or entry.kind is not NodeKind.FILE:
                yield Changed(f"{path!r} is no file in this snapshot")
            else:
                yield entry

    def entry(self, path: bytes) -> Entry:
        """The entry of a file. Raises Changed where there is none."""
        found = next(self.entries([path]))
        if isinstance(found, Changed):
            raise found
        return found

    def extents(self, entry: Entry) -> Iterator[Extent]:
        """Where the bytes of a file are."""
        recipe = entry.recipe
        if recipe is not None and recipe.root is None:
            return iter(recipe.extents)
        return chain.from_iterable(self._tree.reader.extents(entry))

    def fetch(self, extents: Iterable[Extent]) -> dict[ChunkId, bytes]:
        """The chunks that extents name, verified. Raises RemoteErrors."""
        return self._tree.reader.chunks(list({extent.id: None for extent in extents}))

    def fetch_one(self, name: ChunkId) -> bytes:
        """One chunk, likewise."""
        return self._tree.reader.chunks([name])[name]

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """Bytes of a file."""
        return self._tree.reader.read(entry, offset, length)

    def metadata(self, node: Node, entry: Entry) -> Metadata:
        """What the restored file is to have; its mode may be left open."""
        xattrs = None
        keeps = self.target.features
        if self.options.xattrs and keeps.xattrs:
            xattrs = self._tree.reader.xattrs(entry)
        return wanted_metadata(node, self.options, keeps, xattrs)

    def read_back(self, directories: Directories, path: bytes, entry: Entry) -> bytes | None:
        """BLAKE3 of a file at the target that has the bytes of the snapshot's; else None.

        Then the file is removed: see `restore_bytes.read_back`. In a thread of trio's, where it
        ends when it is cancelled. Raises RemoteErrors of the snapshot.
        """
        digest = None
        try:
            handle = directories.open_file(path)
            try:
                extents = _until_cancelled(self.extents(entry))
                digest = read_back(handle, entry.size, extents, self.fetch_one)
            finally:
                os.close(handle)
            if digest is None:
                folder, name = directories.spot(path)
                os.unlink(name, dir_fd=folder)
        except OSError:
            digest = None
        return digest


def _until_cancelled(extents: Iterator[Extent]) -> Iterator[Extent]:
    for extent in extents:
        trio.from_thread.check_cancelled()
        yield extent
