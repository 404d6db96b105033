"""Azure: Azurite, which checks signatures."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes import azure
from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace
from tests.remotes.kinds import Kind, Place, Server, machinery, utf8_name
from tests.servers.azurite import ACCOUNT, Azurite, azurite
from tests.servers.proxy import Proxy


class _Server(Server):
    def __init__(self, folder: Path, server: Azurite, proxy: Proxy) -> None:
        self._folder = folder
        self._server = server
        self._proxy = proxy
        self._names = itertools.count()

    def place(self, bridge: Bridge) -> Place:
        container = f"place-{next(self._names)}"
        self._server.make_container(container)
        environment = {
            **self._server.environment,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{self._proxy.port}/{ACCOUNT}",
        }
        given = machinery(bridge, self._folder, environment=environment)

        async def opener() -> Remote:
            return await azure.open_remote(f"az://{container}", {}, given)

        store = self._server.store(container)

        def put(key: str, data: bytes) -> None:
            try:
                store.put(key, data)
            except ValueError:  # obstore knows no such keys
                self._server.put(container, key, data)

        return ObjectPlace(opener, put)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        # Its data is in its memory: the way to it is cut instead.
        self._proxy.change(refuse=True)
        self._proxy.reset_connections()
        yield
        self._proxy.heal()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    with azurite() as server, Proxy(server.port) as proxy:
        yield _Server(folder, server, proxy)


def _holds(name: bytes) -> bool:
    # Azurite takes a backslash for a slash, and cannot list what XML cannot hold.
    spaces = b"\t\n\r"
    return utf8_name(name) and not any(c == 92 or (c < 32 and c not in spaces) for c in name)


KIND = Kind("azure", _serve, holds=_holds)
