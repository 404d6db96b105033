"""S3: SeaweedFS, which checks signatures."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes import s3
from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.kinds import Kind, Place, RemotePlace, Server, machinery, utf8_name
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import seaweedfs

BUCKET = "conformance"


class _Server(Server):
    def __init__(self, folder: Path, environment: dict[str, str], proxy: Proxy) -> None:
        self._folder = folder
        self._environment = environment
        self._proxy = proxy
        self._names = itertools.count()

    def place(self, bridge: Bridge) -> Place:
        url = f"s3://{BUCKET}/place-{next(self._names)}/"
        given = machinery(bridge, self._folder, environment=self._environment)

        async def opener() -> Remote:
            return await s3.open_remote(url, {}, given)

        return RemotePlace(opener, directories=False)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        # Its ports cannot be had again for certain: the way to it is cut instead.
        self._proxy.change(refuse=True)
        self._proxy.reset_connections()
        yield
        self._proxy.heal()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    with seaweedfs() as server, Proxy(server.port) as proxy:
        server.make_bucket(BUCKET)
        environment = {
            **server.environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        }
        yield _Server(folder, environment, proxy)


def _holds(name: bytes) -> bool:
    # SeaweedFS takes a backslash for a slash.
    return utf8_name(name) and b"\\" not in name


KIND = Kind("s3", _serve, holds=_holds)
