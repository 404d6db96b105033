"""Remotes with real servers, as trees; each server is started once a process."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from syncer.remote_tree import RemoteTree
from syncer.remotes.bridge import Bridge
from syncer.tree import Tree
from tests.remotes.kinds import Kind, Server
from tests.syncer.tree_conformance import Sample, TreeKind, put

_running: dict[str, Server] = {}
_stack = contextlib.ExitStack()
atexit.register(_stack.close)


def server_of(kind: Kind) -> Server:
    """The kind's server, started when it is first asked for."""
    if kind.name not in _running:
        folder = _stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        _running[kind.name] = _stack.enter_context(kind.serve(Path(folder)))
    return _running[kind.name]


@asynccontextmanager
async def empty_tree(kind: Kind) -> AsyncIterator[RemoteTree]:
    """A tree of its own on the kind's server."""
    bridge = Bridge()
    bridge.start()
    try:
        tree = RemoteTree(await server_of(kind).place(bridge).open())
        try:
            yield tree
        finally:
            await tree.close()
    finally:
        bridge.stop()


class RemoteKind(TreeKind):
    """A kind of remote that the suite of remotes knows as `kind_<name>`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def kind(self) -> Kind:
        """What the suite of remotes knows of it."""
        found: Kind = importlib.import_module(f"tests.remotes.kind_{self.name}").KIND
        return found

    @asynccontextmanager
    async def empty(self, folder: Path) -> AsyncIterator[Tree]:
        async with empty_tree(self.kind) as tree:
            yield tree

    @asynccontextmanager
    async def filled(self, folder: Path, samples: Sequence[Sample]) -> AsyncIterator[Tree]:
        async with self.empty(folder) as tree:
            limiter = trio.CapacityLimiter(16)

            async def add(sample: Sample) -> None:
                async with limiter:
                    await put(tree, sample)

            async with trio.open_nursery() as nursery:
                for sample in samples:
                    nursery.start_soon(add, sample)
            yield tree

    def holds(self, name: bytes) -> bool:
        return self.kind.holds(name)
