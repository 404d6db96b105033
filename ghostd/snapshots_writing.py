"""Writes a directory of the namespace as a tree, as it is at one moment, while it goes on changing.

What must hold:

1. The tree is one state of the namespace: all reads come from one snapshot of the database, taken
   right after a commit while no other could begin.
2. Only directories that have changed since they were written last, and those above them, are
   written (see `snapshots_rows`). No chunk of a file is read.
3. Objects are durable before they are remembered, and before whoever asked is told.
4. No collection runs meanwhile: who calls holds the keeper's lock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import apsw

from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.errors import FilesystemError, NotADirectory
from ghostd.facade import printable_path
from ghostd.namespace import Namespace, translated
from ghostd.snapshots_encode import Encoder
from ghostd.snapshots_rows import StoredTree, begin_tracking, remember, settle
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.tree_walk import find_path
from ghostd.writeback import Writeback
from syncer.tree_objects import Sums

_REMEMBERED_AT_ONCE = 5_000  # directories: about 20 ms of the commit thread


class SnapshotRefused(FilesystemError):
    """What was asked for makes no sense; the message says what would."""


@dataclass(frozen=True, slots=True)
class WrittenTree:
    """A tree in the store, durable."""

    path: bytes  # in the namespace, begins with /
    root: ChunkId
    sums: Sums
    time_ns: int  # of the state that it shows
    written: int  # directories that had changed
    left_out: tuple[bytes, ...]  # projections below, by their paths in the namespace
    paused_s: float  # how long no commit could run


class TreeTaker:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        store: BlockStore,
        namespace: Namespace,
        threads: Threads,
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._store = store
        self._namespace = namespace
        self._threads = threads

    async def write(self, path: bytes) -> WrittenTree:
        """Write the directory at `path`. The caller holds the keeper's lock.

        Raises NotFound, NotADirectory, SnapshotRefused, StorageFull, StorageFailed.
        """
        top = find_path(self._tree, path)
        if not top.is_dir:
            raise NotADirectory(f"{printable_path(top.path)} is no directory: name the one above")
        if top.projection:
            raise SnapshotRefused(
                f"{printable_path(top.path)} lies in a projection: its remote has it, and"
                " `orbit-ctl backup` stores it as a snapshot"
            )
        namespace, threads, writeback = self._namespace, self._threads, self._writeback
        await writeback.commit()
        await threads.run("commit", namespace.write, begin_tracking)
        # Most of it while commits go on; what they change meanwhile is little.
        while await threads.run("commit", namespace.write, settle):
            pass
        async with writeback.paused():
            began = time.monotonic()
            while await threads.run("commit", namespace.write, settle):
                pass
            connection = await threads.run("maintenance", namespace.snapshot)
            taken_ns = time.time_ns()
            paused_s = time.monotonic() - began
            try:
                encoder = Encoder(connection, self._store, top.ino)
                if namespace.shared:  # the snapshot is the connection that commits write to
                    await self._encode(encoder)
            except BaseException:
                namespace.end_snapshot(connection)
                raise
        try:
            if not namespace.shared:
                await self._encode(encoder)
        finally:
            namespace.end_snapshot(connection)
        assert encoder.root is not None
        base = top.path.rstrip(b"/")
        return WrittenTree(
            path=top.path,
            root=encoder.root,
            sums=encoder.sums,
            time_ns=taken_ns,
            written=encoder.written,
            left_out=tuple(base + each for each in encoder.left_out),
            paused_s=paused_s,
        )

    async def _encode(self, encoder: Encoder) -> None:
        threads = self._threads
        while await threads.run("maintenance", self._step, encoder):
            if encoder.unremembered >= _REMEMBERED_AT_ONCE:
                await self._remember(encoder)
        await self._remember(encoder)

    def _step(self, encoder: Encoder) -> bool:
        try:
            return encoder.step()
        except apsw.Error as error:
            raise translated(error, self._namespace.path) from error

    async def _remember(self, encoder: Encoder) -> None:
        trees: list[StoredTree] = await self._threads.run("maintenance", self._durable, encoder)
        for at in range(0, len(trees), _REMEMBERED_AT_ONCE):
            some = trees[at : at + _REMEMBERED_AT_ONCE]
            await self._threads.run(
                "commit", self._namespace.write, lambda c, s=some: remember(c, s)
            )

    def _durable(self, encoder: Encoder) -> list[StoredTree]:
        trees = encoder.take_trees()
        self._store.sync()
        return trees
