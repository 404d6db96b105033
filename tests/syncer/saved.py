"""Puts local folders into a store as trees by the tree writer alone, for tests of reading."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from blockstore.ids import ChunkId
from syncer.catalogue import Snapshot
from syncer.chunks import ChunkStore
from syncer.recipes import Extent
from syncer.tree import KIND_OF_FORMAT, NodeKind
from syncer.tree_objects import Entry, Sums
from syncer.tree_writer import TreeWriter


def _file(writer: TreeWriter, store: ChunkStore, path: str) -> tuple[int, list[Extent]]:
    extents: list[Extent] = []
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            while start < at:
                data = os.pread(file.fileno(), min(4 << 20, at - start), start)
                lengths = store.cut(data)
                parts, offset = [], 0
                for length in lengths:
                    parts.append(data[offset : offset + length])
                    offset += length
                for part, name in zip(parts, store.put(parts), strict=True):
                    extents.append(Extent(start, len(part), 0, name))
                    start += len(part)
    return size, extents


def _entry(writer: TreeWriter, store: ChunkStore, path: str, name: bytes) -> Entry:
    found = os.lstat(path)
    kind = KIND_OF_FORMAT[stat.S_IFMT(found.st_mode)]
    entry = Entry(
        name,
        kind,
        mtime_ns=found.st_mtime_ns,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev if kind in {NodeKind.BLOCK, NodeKind.CHARACTER} else 0,
    )
    if kind is NodeKind.FILE:
        size, extents = _file(writer, store, path)
        entry = entry._replace(size=size, recipe=writer.recipe(extents, size))
    elif kind is NodeKind.SYMLINK:
        return entry._replace(target=os.fsencode(os.readlink(path)))
    elif kind is NodeKind.DIRECTORY:
        directory = writer.directory()
        for below in sorted(os.listdir(os.fsencode(path))):
            where = os.path.join(path, os.fsdecode(below))
            directory.add(_entry(writer, store, where, below))
        done = directory.finish()
        entry = entry._replace(
            child=done.id, nodes=done.sums.nodes, files=done.sums.files, size=done.sums.bytes
        )
    xattrs = {os.fsencode(each): os.getxattr(path, each) for each in os.listxattr(path)}
    return writer.with_xattrs(entry, xattrs)


def save(store: ChunkStore, folder: Path) -> ChunkId:
    """Store a folder; return the root. Durable. Blocks."""
    writer = TreeWriter(store)
    root = writer.root(_entry(writer, store, str(folder), b""))
    writer.flush()
    store.sync()
    return root


def snapshot(name: str, root: ChunkId, time_ns: int = 1) -> Snapshot:
    """A record of it."""
    return Snapshot(name, time_ns, root, Sums(1, 0, 0))
