"""S3: SeaweedFS, which checks signatures."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from syncer.remotes import s3
from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.filling import ObjectPlace
from tests.remotes.kinds import Kind, Place, Server, machinery, utf8_name
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import SeaweedFs, seaweedfs

BUCKET = "conformance"


class S3Server(Server):
    """SeaweedFS behind a proxy."""

    def __init__(self, folder: Path, server: SeaweedFs, proxy: Proxy) -> None:
        self._folder = folder
        self.server = server
        self.proxy = proxy
        self.store = server.store(BUCKET)
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
        way = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}"}
        given = machinery(bridge, self._folder, environment={**environment, **way}, **changes)
        return await s3.open_remote(url, options, given)

    def place(self, bridge: Bridge) -> Place:
        prefix = f"place-{next(self._names)}/"
        url = f"s3://{BUCKET}/{prefix}"

        def put(key: str, data: bytes) -> None:
            try:
                self.store.put(key, data)
            except ValueError:  # obstore knows no such keys
                self.server.request("PUT", BUCKET, key, body=data).raise_for_status()

        async def opener() -> Remote:
            return await self.open(bridge, url)

        return ObjectPlace(opener, put, prefix)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        # Its ports cannot be had again for certain: the way to it is cut instead.
        self.proxy.change(refuse=True)
        self.proxy.reset_connections()
        yield
        self.proxy.heal()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[S3Server]:
    with seaweedfs() as server, Proxy(server.port) as proxy:
        server.make_bucket(BUCKET)
        yield S3Server(folder, server, proxy)


def _holds(name: bytes) -> bool:
    # SeaweedFS takes a backslash for a slash.
    return utf8_name(name) and b"\\" not in name


KIND = Kind("s3", _serve, holds=_holds)
