"""Azure: Azurite, which checks signatures."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from syncer.remotes import azure
from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace
from tests.remotes.kinds import Kind, Place, Server, machinery, utf8_name
from tests.servers.azurite import ACCOUNT, Azurite, azurite
from tests.servers.proxy import Proxy


class AzureServer(Server):
    """Azurite behind a proxy."""

    def __init__(self, folder: Path, server: Azurite, proxy: Proxy) -> None:
        self._folder = folder
        self.server = server
        self.proxy = proxy
        self._names = itertools.count()

    async def open(
        self,
        bridge: Bridge,
        url: str,
        options: Mapping[str, str] = {},
        environment: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Remote:
        """A remote that goes through the proxy."""
        if environment is None:
            environment = self.server.environment
        way = {"AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{self.proxy.port}/{ACCOUNT}"}
        given = machinery(bridge, self._folder, environment={**environment, **way}, **changes)
        return await azure.open_remote(url, options, given)

    def place(self, bridge: Bridge) -> Place:
        container = f"place-{next(self._names)}"
        self.server.make_container(container)

        async def opener() -> Remote:
            return await self.open(bridge, f"az://{container}")

        store = self.server.store(container)

        def put(key: str, data: bytes) -> None:
            try:
                store.put(key, data)
            except ValueError:  # obstore knows no such keys
                self.server.put(container, key, data)

        return ObjectPlace(opener, put)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        # Its data is in its memory: the way to it is cut instead.
        self.proxy.change(refuse=True)
        self.proxy.reset_connections()
        yield
        self.proxy.heal()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[AzureServer]:
    with azurite() as server, Proxy(server.port) as proxy:
        yield AzureServer(folder, server, proxy)


def _holds(name: bytes) -> bool:
    # Azurite takes a backslash for a slash, and cannot list what XML cannot hold.
    spaces = b"\t\n\r"
    return utf8_name(name) and not any(c == 92 or (c < 32 and c not in spaces) for c in name)


KIND = Kind("azure", _serve, holds=_holds)
