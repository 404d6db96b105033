"""Google Cloud Storage: fake-gcs-server, which checks generations but no tokens."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes import gcs
from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace
from tests.remotes.kinds import Kind, Place, Server, machinery, utf8_name
from tests.servers.fake_gcs import FakeGcs, fake_gcs
from tests.servers.processes import free_port
from tests.servers.proxy import Proxy


class _Server(Server):
    def __init__(self, folder: Path, server: FakeGcs, proxy: Proxy) -> None:
        self._folder = folder
        self._server = server
        self._proxy = proxy
        self._names = itertools.count()

    def place(self, bridge: Bridge) -> Place:
        bucket = f"place-{next(self._names)}"
        self._server.make_bucket(bucket)
        environment = {
            **self._server.environment,
            "STORAGE_EMULATOR_HOST": f"127.0.0.1:{self._proxy.port}",
        }
        given = machinery(bridge, self._folder, environment=environment)

        async def opener() -> Remote:
            return await gcs.open_remote(f"gs://{bucket}", {}, given)

        return ObjectPlace(opener, lambda key, data: self._server.put(bucket, key, data))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        # Its data is in its memory: the way to it is cut instead.
        self._proxy.change(refuse=True)
        self._proxy.reset_connections()
        yield
        self._proxy.heal()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    port = free_port()
    with Proxy(port) as proxy, fake_gcs(port, proxy.port) as server:
        yield _Server(folder, server, proxy)


KIND = Kind("gcs", _serve, holds=utf8_name)
