"""Azure: Azurite, which checks signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes import azure
from syncer.remotes.bridge import Bridge
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace, ObjectServer
from tests.remotes.kinds import Kind, Place, utf8_name
from tests.servers.azurite import ACCOUNT, Azurite, azurite
from tests.servers.proxy import Proxy


class AzureServer(ObjectServer):
    """Azurite behind a proxy."""

    driver = staticmethod(azure.open_remote)

    def __init__(self, folder: Path, server: Azurite, proxy: Proxy) -> None:
        way = {"AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{proxy.port}/{ACCOUNT}"}
        super().__init__(folder, proxy, server.environment, way)
        self.server = server

    def _container(self) -> str:
        container = f"place-{next(self._numbers)}"
        self.server.make_container(container)
        return container

    def place(self, bridge: Bridge) -> Place:
        container = self._container()

        async def opener() -> Remote:
            return await self.open(bridge, f"az://{container}")

        store = self.server.store(container)

        def put(key: str, data: bytes) -> None:
            try:
                store.put(key, data)
            except ValueError:  # obstore knows no such keys
                self.server.put(container, key, data)

        return ObjectPlace(opener, put)

    def address(self, bridge: Bridge) -> tuple[str, Machinery]:
        return f"az://{self._container()}/a b", self.machinery(bridge)


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[AzureServer]:
    with azurite() as server, Proxy(server.port) as proxy:
        yield AzureServer(folder, server, proxy)


def _holds(name: bytes) -> bool:
    # Azurite takes a backslash for a slash, and cannot list what XML cannot hold.
    spaces = b"\t\n\r"
    return utf8_name(name) and not any(c == 92 or (c < 32 and c not in spaces) for c in name)


KIND = Kind("azure", _serve, holds=_holds)
