"""SMB: Debian's samba."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Remote
from syncer.remotes.smb import open_remote
from tests.remotes.kinds import FolderPlace, Kind, Place, Server, machinery, utf8_name
from tests.servers.samba import Samba, samba


def credentials(folder: Path, server: Samba) -> Credentials:
    """A credentials file with the server's password."""
    path = folder / "credentials.toml"
    path.write_text(f'["127.0.0.1"]\npassword = "{server.password}"\n')
    path.chmod(0o600)
    return Credentials(path, required=True)


class SmbServer(Server):
    """A samba with a share over a folder."""

    def __init__(self, samba: Samba, home: Path) -> None:
        self.samba = samba
        self._home = home
        self._credentials = credentials(home, samba)
        self._numbers = itertools.count()

    def _machinery(self, bridge: Bridge) -> Machinery:
        return machinery(bridge, self._home, credentials=self._credentials)

    def address(self, bridge: Bridge) -> tuple[str, Machinery]:
        url = self.samba.url(f"address-{next(self._numbers)}/a b")
        return url, self._machinery(bridge)

    def place(self, bridge: Bridge) -> Place:
        name = f"place-{next(self._numbers)}"
        folder = self.samba.folder / name
        folder.mkdir()
        given = self._machinery(bridge)

        async def opener() -> Remote:
            return await open_remote(self.samba.url(name), {}, given)

        return FolderPlace(folder, opener)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.samba.stop()
        yield
        self.samba.start()


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    shared = folder / "shared"
    shared.mkdir()
    with samba(shared) as running:
        yield SmbServer(running, folder)


def _holds(name: bytes) -> bool:
    """What a server keeps as it is: no characters that SMB forbids, no dot or space at the end."""
    return (
        utf8_name(name)
        and not any(byte in b'\\:*?"<>|' or byte < 32 for byte in name)
        and name[-1:] not in {b".", b" "}
    )


KIND = Kind("smb", _serve, holds=_holds)
