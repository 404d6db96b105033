"""OpenSSH's server."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

from syncer.remotes.bridge import Bridge
from syncer.remotes.machinery import Machinery
from syncer.remotes.sftp import open_remote
from tests.remotes.kinds import FolderPlace, Kind, Place, Server, machinery
from tests.servers.openssh import OpenSsh, openssh


class _Sshd(Server):
    def __init__(self, folder: Path, sshd: OpenSsh) -> None:
        self._folder = folder
        self._sshd = sshd
        self._numbers = itertools.count()

    def address(self, bridge: Bridge) -> tuple[str, Machinery]:
        folder = self._folder / f"address {next(self._numbers)}" / "a b"
        return self._sshd.url(quote_from_bytes(bytes(folder))), machinery(bridge, self._sshd.home)

    def place(self, bridge: Bridge) -> Place:
        folder = self._folder / f"odd % name? {next(self._numbers)}"
        folder.mkdir()
        url = self._sshd.url(quote_from_bytes(bytes(folder)))
        given = machinery(bridge, self._sshd.home)
        return FolderPlace(folder, lambda: open_remote(url, {}, given))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self._sshd.stop()
        yield
        self._sshd.start()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    with openssh() as sshd:
        yield _Sshd(folder, sshd)


KIND = Kind("sftp", _serve)
