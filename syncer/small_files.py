"""The few small files of a repository besides its packs: read, written and listed whole.

Names are relative paths of ASCII letters that this program has chosen.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Protocol

import trio

from syncer.remotes.errors import Missing, Unsupported
from syncer.remotes.held import Held
from syncer.remotes.local import system_errors
from syncer.remotes.remote import Kind, Page, Remote

SIZE_MAX = 1 << 20  # bytes


class SmallFiles(Protocol):
    """Small files in one folder. Raises RemoteError."""

    async def read(self, name: str) -> bytes | None:
        """The content; None when there is no such file."""

    async def write(self, name: str, data: bytes, *, replace: bool = True) -> None:
        """Write whole, durably, with the folders it needs. Raises Exists without `replace`."""

    async def names(self, folder: str) -> list[str]:
        """The names in a folder; none where there is no such folder."""

    async def delete(self, name: str) -> None:
        """Remove; what is not there is no error."""


class RemoteFiles:
    """See SmallFiles: on any remote."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def read(self, name: str) -> bytes | None:
        """See SmallFiles."""
        with contextlib.suppress(Missing):
            return (await self._remote.read_whole(name.encode(), SIZE_MAX))[1]
        return None

    async def write(self, name: str, data: bytes, *, replace: bool = True) -> None:
        """See SmallFiles."""
        await self._remote.write(name.encode(), Held(data), replace=replace)

    async def names(self, folder: str) -> list[str]:
        """See SmallFiles."""
        names: list[str] = []

        async def sink(page: Page) -> None:
            await trio.lowlevel.checkpoint()
            names.extend(os.fsdecode(entry.name) for entry in page if entry.kind is not Kind.OTHER)

        with contextlib.suppress(Missing):
            await self._remote.list(f"{folder}/".encode() if folder else b"", sink)
        return names

    async def delete(self, name: str) -> None:
        """See SmallFiles."""
        with contextlib.suppress(Missing):
            await self._remote.delete(name.encode())


class LocalFiles:
    """See SmallFiles: in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, name: str) -> bytes | None:
        """See SmallFiles."""
        return await trio.to_thread.run_sync(self._read, self._folder / name)

    def _read(self, path: Path) -> bytes | None:
        with contextlib.suppress(Missing), system_errors(bytes(path)):
            return path.read_bytes()
        return None

    async def write(self, name: str, data: bytes, *, replace: bool = True) -> None:
        """See SmallFiles."""
        await trio.to_thread.run_sync(self._write, self._folder / name, data, replace)

    @staticmethod
    def _write(path: Path, data: bytes, replace: bool) -> None:
        with system_errors(bytes(path)):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_name(f".orbit-{secrets.token_hex(8)}.part")
            try:
                with part.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if replace:
                    part.rename(path)
                else:
                    path.hardlink_to(part)  # which never replaces
                    part.unlink()
            finally:
                part.unlink(missing_ok=True)
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    async def names(self, folder: str) -> list[str]:
        """See SmallFiles."""
        return await trio.to_thread.run_sync(self._names, self._folder / folder)

    @staticmethod
    def _names(path: Path) -> list[str]:
        with contextlib.suppress(Missing), system_errors(bytes(path)):
            return [each.name for each in path.iterdir() if not each.name.startswith(".orbit-")]
        if path.is_file():
            raise Unsupported(f"{path} is a file: name a folder")
        return []

    async def delete(self, name: str) -> None:
        """See SmallFiles."""
        await trio.to_thread.run_sync(self._delete, self._folder / name)

    @staticmethod
    def _delete(path: Path) -> None:
        with system_errors(bytes(path)):
            path.unlink(missing_ok=True)
