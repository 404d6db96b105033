"""The reference remote, as a tree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from syncer.remote_tree import RemoteTree
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.tree import Tree
from tests.syncer.tree_conformance import TreeKind


class MemoryKind(TreeKind):
    name = "memory"

    @asynccontextmanager
    async def empty(self, folder: Path) -> AsyncIterator[Tree]:
        tree = RemoteTree(MemoryRemote(MemoryServer()))
        yield tree
        await tree.close()


KIND = MemoryKind()
