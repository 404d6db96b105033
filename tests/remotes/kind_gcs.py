"""Google Cloud Storage: fake-gcs-server, which checks generations but no tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes import gcs
from syncer.remotes.bridge import Bridge
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace, ObjectServer
from tests.remotes.kinds import Kind, Place, utf8_name
from tests.servers.fake_gcs import FakeGcs, fake_gcs
from tests.servers.processes import free_port
from tests.servers.proxy import Proxy


class GcsServer(ObjectServer):
    """fake-gcs-server behind a proxy."""

    driver = staticmethod(gcs.open_remote)

    def __init__(self, folder: Path, server: FakeGcs, proxy: Proxy) -> None:
        way = {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{proxy.port}"}
        super().__init__(folder, proxy, server.environment, way)
        self.server = server

    def _bucket(self) -> str:
        bucket = f"place-{next(self._numbers)}"
        self.server.make_bucket(bucket)
        return bucket

    def place(self, bridge: Bridge) -> Place:
        bucket = self._bucket()

        async def opener() -> Remote:
            return await self.open(bridge, f"gs://{bucket}")

        return ObjectPlace(opener, lambda key, data: self.server.put(bucket, key, data))

    def address(self, bridge: Bridge) -> tuple[str, Machinery]:
        return f"gs://{self._bucket()}/a b", self.machinery(bridge)


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[GcsServer]:
    port = free_port()
    with Proxy(port) as proxy, fake_gcs(port, proxy.port) as server:
        yield GcsServer(folder, server, proxy)


KIND = Kind("gcs", _serve, holds=utf8_name)
