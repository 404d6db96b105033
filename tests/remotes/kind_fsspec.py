"""fsspec: its filesystem in memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import trio
from fsspec.implementations.memory import MemoryFileSystem

from syncer.remotes.bridge import Bridge
from syncer.remotes.fsspec_remote import open_remote
from syncer.remotes.remote import Remote
from tests.remotes.kinds import FILLED_AT_NS, Kind, Place, Server, machinery


class _MemoryPlace(Place):
    def __init__(self, root: str, bridge: Bridge, home: Path) -> None:
        self._root = root
        self._machinery = machinery(bridge, home)
        self._files = MemoryFileSystem()

    def _path(self, key: bytes) -> str:
        return f"{self._root}/{key.decode('utf-8', 'surrogateescape')}"

    async def open(self) -> Remote:
        return await open_remote(f"fsspec+memory:/{self._root}", {}, self._machinery)

    async def fill(self, files: Mapping[bytes, bytes], mtime_ns: int = FILLED_AT_NS) -> None:
        await trio.lowlevel.checkpoint()
        for key, data in files.items():
            self._files.pipe_file(self._path(key), data)  # each time is of now

    async def remove(self, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._files.rm_file(self._path(key))

    async def mkdir(self, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._files.mkdir(self._path(key))

    async def symlink(self, key: bytes, target: bytes) -> None:
        raise NotImplementedError


class _Server(Server):
    def __init__(self, folder: Path) -> None:
        self._home = folder
        self._numbers = itertools.count()

    def place(self, bridge: Bridge) -> Place:
        root = f"/conformance/{next(self._numbers)}"
        MemoryFileSystem().mkdir(root)
        return _MemoryPlace(root, bridge, self._home)


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    yield _Server(folder)
    MemoryFileSystem().rm("/conformance", recursive=True)


KIND = Kind("fsspec", _serve, goes_away=False)
