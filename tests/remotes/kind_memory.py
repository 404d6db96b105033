"""The reference remote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes.bridge import Bridge
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import Remote
from tests.remotes.kinds import Kind, Place, RemotePlace, Server


class _Server(Server):
    def __init__(self) -> None:
        self._servers: list[MemoryServer] = []

    def place(self, bridge: Bridge) -> Place:
        server = MemoryServer()
        self._servers.append(server)

        async def opener() -> Remote:
            return MemoryRemote(server)

        return RemotePlace(opener, directories=True)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        for server in self._servers:
            server.reachable = False
        yield
        for server in self._servers:
            server.reachable = True


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    yield _Server()


KIND = Kind("memory", _serve)
