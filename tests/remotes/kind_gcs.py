"""Google Cloud Storage: fake-gcs-server, which checks generations but no tokens."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from syncer.remotes import gcs
from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace
from tests.remotes.kinds import Kind, Place, Server, machinery, utf8_name
from tests.servers.fake_gcs import FakeGcs, fake_gcs
from tests.servers.processes import free_port
from tests.servers.proxy import Proxy


class GcsServer(Server):
    """fake-gcs-server behind a proxy."""

    def __init__(self, folder: Path, server: FakeGcs, proxy: Proxy) -> None:
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
        way = {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{self.proxy.port}"}
        given = machinery(bridge, self._folder, environment={**environment, **way}, **changes)
        return await gcs.open_remote(url, options, given)

    def place(self, bridge: Bridge) -> Place:
        bucket = f"place-{next(self._names)}"
        self.server.make_bucket(bucket)

        async def opener() -> Remote:
            return await self.open(bridge, f"gs://{bucket}")

        return ObjectPlace(opener, lambda key, data: self.server.put(bucket, key, data))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        # Its data is in its memory: the way to it is cut instead.
        self.proxy.change(refuse=True)
        self.proxy.reset_connections()
        yield
        self.proxy.heal()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[GcsServer]:
    port = free_port()
    with Proxy(port) as proxy, fake_gcs(port, proxy.port) as server:
        yield GcsServer(folder, server, proxy)


KIND = Kind("gcs", _serve, holds=utf8_name)
