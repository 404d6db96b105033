"""The reference remote with every wrapper around it: they change nothing of what it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes.bridge import Bridge
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.remote import Remote
from syncer.remotes.wrappers import Hosts, wrapped
from tests.remotes.kinds import Kind, Place, RemotePlace, Server

# Real time: what is unreachable is to be so soon.
POLICY = RemotePolicy(
    deadline_s=2.0, backoff_s=0.001, attempts_max=3, requests_per_s=1e6, read_bytes_per_s=1e9
)


class _Server(Server):
    def __init__(self) -> None:
        self._servers: list[MemoryServer] = []

    def place(self, bridge: Bridge) -> Place:
        server = MemoryServer()
        self._servers.append(server)
        hosts = Hosts()

        async def opener() -> Remote:
            return wrapped(MemoryRemote(server), POLICY, hosts)

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


KIND = Kind("wrapped", _serve)
