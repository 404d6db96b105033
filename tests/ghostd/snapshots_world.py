"""Snapshots over a whole filesystem without a mount, and trees as plain values to compare."""

from __future__ import annotations

import stat

from blockstore.store import BlockStore
from ghostd.filesystem import Caller
from ghostd.inodes import Inode
from ghostd.snapshots import Snapshots
from ghostd.snapshots_writing import TreeTaker
from syncer.catalogue import Snapshot
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import FORMAT_OF_KIND, NodeKind
from syncer.tree_objects import Entry
from tests.ghostd.world import World

ME = Caller(uid=0, gid=0, pid=0, umask=0)
Image = dict[bytes, tuple[object, ...]]


def snapshots_of(world: World, **options: object) -> Snapshots:
    """The service over a world, as the daemon makes it."""
    taker = TreeTaker(world.tree, world.writeback, world.store, world.namespace, world.threads)
    return Snapshots(
        world.keeper,
        world.keeper.records,
        taker,
        world.threads,
        mount=b"/mnt/orbit",
        **options,  # type: ignore[arg-type]
    )


async def live_image(world: World, top: int = 1) -> Image:
    """Everything that the mount would show below a directory."""
    image: Image = {}
    links: dict[int, bytes] = {}
    todo = [(b"", world.tree.inode(top))]
    while todo:
        path, inode = todo.pop()
        content: object = None
        if inode.is_file:
            content = bytes(await world.fs.read(inode.ino, 0, inode.size)) if inode.size else b""
        first = links.setdefault(inode.ino, path) if inode.nlink > 1 and not inode.is_dir else None
        image[path] = (*_attributes(inode), content, first, dict(world.tree.xattrs(inode)))
        if inode.is_dir:
            todo += sorted(
                (
                    (path + b"/" + name, world.tree.inode(ino))
                    for name, ino in world.listing(inode.ino)
                ),
                reverse=True,
                key=lambda each: each[0],
            )
    return image


def _attributes(inode: Inode) -> tuple[object, ...]:
    times = (inode.mtime_ns, inode.ctime_ns, inode.btime_ns)
    return (inode.mode, inode.uid, inode.gid, *times, inode.rdev, inode.target)


def stored_image(store: BlockStore, snapshot: Snapshot) -> Image:
    """The same of a snapshot, read from its objects alone."""
    reader = SnapshotReader(store, snapshot.root)
    image: Image = {}
    links: dict[int, bytes] = {}
    todo: list[tuple[bytes, Entry]] = [(b"", reader.top)]
    while todo:
        path, entry = todo.pop()
        content = reader.read(entry, 0, entry.size) if entry.kind is NodeKind.FILE else None
        first = links.setdefault(entry.link, path) if entry.link else None
        assert entry.mode is not None
        image[path] = (
            FORMAT_OF_KIND[entry.kind] | stat.S_IMODE(entry.mode),
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            entry.ctime_ns,
            entry.btime_ns,
            entry.rdev,
            entry.target,
            content,
            first,
            reader.xattrs(entry),
        )
        if entry.kind is NodeKind.DIRECTORY:
            children = [each for page in reader.pages(entry) for each in page]
            todo += [(path + b"/" + each.name, each) for each in reversed(children)]
    return image
