"""Snapshots: read-only, filled by a backup of a local folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from syncer.backup import backup
from syncer.local_tree import LocalTree
from syncer.snapshot_tree import SnapshotTree
from syncer.tree import Tree
from tests.syncer.stored import MemoryStore
from tests.syncer.tree_conformance import Sample, TreeKind, put


class SnapshotKind(TreeKind):
    name = "snapshot"
    writable = False

    @asynccontextmanager
    async def filled(self, folder: Path, samples: Sequence[Sample]) -> AsyncIterator[Tree]:
        source = folder / "source"
        source.mkdir()
        local = await LocalTree.open(os.fsencode(source))
        for sample in samples:
            await put(local, sample)
        store = MemoryStore()
        made = await backup(local, store)
        await local.close()
        tree = SnapshotTree(store, made.root)
        yield tree
        await tree.close()


KIND = SnapshotKind()
