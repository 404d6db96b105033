"""HTTP: nginx, with its HTML listing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes.bridge import Bridge
from syncer.remotes.http import open_remote
from syncer.remotes.remote import Remote
from tests.remotes.kinds import FolderPlace, Kind, Place, Server, machinery
from tests.servers.nginx import Nginx, nginx


class HttpServer(Server):
    """An nginx over a folder."""

    def __init__(self, nginx: Nginx, home: Path) -> None:
        self.nginx = nginx
        self._home = home
        self._numbers = itertools.count()

    def place(self, bridge: Bridge) -> Place:
        name = f"place-{next(self._numbers)}"
        folder = self.nginx.folder / name
        folder.mkdir()
        given = machinery(bridge, self._home)

        async def opener() -> Remote:
            return await open_remote(self.nginx.url(name + "/"), {}, given)

        return FolderPlace(folder, opener)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.nginx.stop()
        yield
        self.nginx.start()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    shared = folder / "shared"
    shared.mkdir()
    with nginx(shared) as running:
        yield HttpServer(running, folder)


# nginx leaves names with a leading dot out of its listings.
KIND = Kind("http", _serve, holds=lambda name: not name.startswith(b"."), listing_exact=False)
