"""What every Tree is asked, and how a kind of tree joins: `test_tree_conformance` runs it.

To register a kind, put a file `tree_kind_<name>.py` beside this one, with a class derived from
`TreeKind` and `KIND = ThatClass()` in it. Nothing else is needed:

- `name`, and `empty(folder)`: an async context manager that gives an empty tree to write to. The
  folder is the test's own.
- A tree that cannot be written overrides `filled(folder, samples)` instead and sets
  `writable = False`: it gives a tree in which the samples are. Only the reading tests run then.
- `holds(name)`: whether a file can have this name, where not every one that Unix has will do.

What a tree keeps it says in its Features, and is held to; what it lacks must raise Unsupported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from syncer.remotes.held import Held
from syncer.tree import Metadata, Node, NodeKind, Tree

MTIME_NS = 1_600_000_000_123_456_789


class Failing(Held):
    """A Content whose source breaks after some bytes."""

    class Broken(Exception):
        """What it raises."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self.good = good

    async def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.good:
            raise self.Broken
        return await super().read(offset, length)


class Endless(Held):
    """A Content that says when it is read, and never answers."""

    def __init__(self, size: int) -> None:
        super().__init__(bytes(size))
        self.asked = trio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        self.asked.set()
        await trio.sleep_forever()
        raise AssertionError


@dataclass(frozen=True, slots=True)
class Sample:
    """Something to be in a tree."""

    path: bytes
    kind: NodeKind = NodeKind.FILE
    data: bytes = b""
    target: bytes = b""
    metadata: Metadata = field(default_factory=Metadata)


async def put(tree: Tree, sample: Sample) -> None:
    """Make a sample by means of the tree itself."""
    match sample.kind:
        case NodeKind.FILE:
            await tree.write(sample.path, Held(sample.data), sample.metadata)
        case NodeKind.DIRECTORY:
            await tree.mkdir(sample.path, sample.metadata)
        case NodeKind.SYMLINK:
            await tree.symlink(sample.path, sample.target, sample.metadata)
        case _:
            await tree.special(sample.path, Node(b"", sample.kind), sample.metadata)


async def listed(tree: Tree, path: bytes) -> dict[bytes, Node]:
    """A directory's nodes by name; each is there once."""
    found: dict[bytes, Node] = {}

    async def sink(page: Sequence[Node]) -> None:
        await trio.lowlevel.checkpoint()
        assert page, "no page is empty"
        for node in page:
            assert node.name not in found
            found[node.name] = node

    await tree.list(path, sink)
    return found


class TreeKind:
    """One kind of tree."""

    name = ""
    writable = True

    def empty(self, folder: Path) -> AbstractAsyncContextManager[Tree]:
        """A new empty tree, whose root is there."""
        raise NotImplementedError

    @asynccontextmanager
    async def filled(self, folder: Path, samples: Sequence[Sample]) -> AsyncIterator[Tree]:
        """A tree with these in it, parents before what is in them."""
        async with self.empty(folder) as tree:
            for sample in samples:
                await put(tree, sample)
            yield tree

    def holds(self, name: bytes) -> bool:
        """Whether a file can have this name."""
        return True


def find_kinds() -> list[TreeKind]:
    """All of them, by the files beside this one."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(module.name for module in found if module.name.startswith("tree_kind_"))
    return [importlib.import_module(f"{__package__}.{name}").KIND for name in names]
