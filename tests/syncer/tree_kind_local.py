"""Local folders."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from syncer.local_tree import LocalTree
from syncer.tree import Tree
from tests.syncer.tree_conformance import TreeKind


class LocalKind(TreeKind):
    name = "local"

    @asynccontextmanager
    async def empty(self, folder: Path) -> AsyncIterator[Tree]:
        root = folder / "odd % name? \udcff"
        root.mkdir()
        tree = await LocalTree.open(os.fsencode(root))
        yield tree
        await tree.close()


KIND = LocalKind()
