"""Local folders."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

from syncer.remotes.bridge import Bridge
from syncer.remotes.file import open_remote
from tests.remotes.kinds import FolderPlace, Kind, Place, Server, machinery


class _Folders(Server):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def place(self, bridge: Bridge) -> Place:
        folder = self._folder / f"odd % name? {next(self._numbers)}"
        folder.mkdir()
        url = "file://" + quote_from_bytes(bytes(folder))
        return FolderPlace(folder, lambda: open_remote(url, {}, machinery(bridge, self._folder)))


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[Server]:
    yield _Folders(folder)


KIND = Kind("file", _serve, goes_away=False)
