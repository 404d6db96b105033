"""S3: SeaweedFS, which checks signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes import s3
from syncer.remotes.bridge import Bridge
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace, ObjectServer
from tests.remotes.kinds import Kind, Place, utf8_name
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import SeaweedFs, seaweedfs

BUCKET = "conformance"


class S3Server(ObjectServer):
    """SeaweedFS behind a proxy."""

    driver = staticmethod(s3.open_remote)

    def __init__(self, folder: Path, server: SeaweedFs, proxy: Proxy) -> None:
        way = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        super().__init__(folder, proxy, server.environment, way)
        self.server = server
        self.store = server.store(BUCKET)

    def place(self, bridge: Bridge) -> Place:
        prefix = f"place-{next(self._numbers)}/"
        url = f"s3://{BUCKET}/{prefix}"

        def put(key: str, data: bytes) -> None:
            try:
                self.store.put(key, data)
            except ValueError:  # obstore knows no such keys
                self.server.request("PUT", BUCKET, key, body=data).raise_for_status()

        async def opener() -> Remote:
            return await self.open(bridge, url)

        return ObjectPlace(opener, put, prefix)

    def address(self, bridge: Bridge) -> tuple[str, Machinery]:
        return f"s3://{BUCKET}/address-{next(self._numbers)}/a b", self.machinery(bridge)


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[S3Server]:
    with seaweedfs() as server, Proxy(server.port) as proxy:
        server.make_bucket(BUCKET)
        yield S3Server(folder, server, proxy)


def _holds(name: bytes) -> bool:
    # SeaweedFS takes a backslash for a slash.
    return utf8_name(name) and b"\\" not in name


KIND = Kind("s3", _serve, holds=_holds)
