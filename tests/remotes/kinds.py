"""The kinds of remotes that pass the suite: each `kind_<name>.py` beside this file has one KIND.

A kind says how to start its server, once a session. A server hands out *places*: empty folders,
prefixes or buckets of their own. A place opens remotes on itself, and fills and changes what they
see behind their backs.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.held import Held
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Attributes, Remote

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0  # a busy machine may take seconds for what takes milliseconds
IMPATIENT = {"connect_timeout_s": 1.0, "read_timeout_s": 2.0}  # where silence is waited out

FILLED_AT_NS = 1_700_000_000 * 10**9


def machinery(bridge: Bridge, home: Path, **changes: Any) -> Machinery:
    """What a driver is given in tests: nothing of the user who runs them."""
    given: dict[str, Any] = {
        "credentials": Credentials(),
        "connect_timeout_s": CONNECT_TIMEOUT_S,
        "read_timeout_s": READ_TIMEOUT_S,
        "home": home,
        "environment": {},
        "system_ssh": home / "no-system-ssh",
        **changes,
    }
    return Machinery(bridge, **given)


class Place(ABC):
    """An empty spot on a server that nobody else uses. Keys are those of its remotes."""

    directories = True  # empty ones can be there

    @abstractmethod
    async def open(self) -> Remote:
        """A new remote whose root is this place."""

    @abstractmethod
    async def fill(self, files: Mapping[bytes, bytes], mtime_ns: int = FILLED_AT_NS) -> None:
        """Write files, over those that are there, with the parents they need.

        Another time makes another version where nothing else tells.
        """

    @abstractmethod
    async def remove(self, key: bytes) -> None:
        """Remove a file."""

    @abstractmethod
    async def mkdir(self, key: bytes) -> None:
        """Make an empty directory."""

    @abstractmethod
    async def symlink(self, key: bytes, target: bytes) -> None:
        """Make a symlink; where the remote's capabilities say that it has them."""


class FolderPlace(Place):
    """A local folder that a server serves."""

    def __init__(self, folder: Path, opener: Callable[[], Awaitable[Remote]]) -> None:
        """`opener` opens a remote on the folder."""
        self.folder = folder
        self._opener = opener

    def path(self, key: bytes) -> bytes:
        """Where `key` lies."""
        return os.path.join(os.fsencode(self.folder), key)

    async def open(self) -> Remote:
        return await self._opener()

    async def fill(self, files: Mapping[bytes, bytes], mtime_ns: int = FILLED_AT_NS) -> None:
        await trio.lowlevel.checkpoint()
        for key, data in files.items():
            _write(self.path(key), data, mtime_ns)

    async def remove(self, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        os.unlink(self.path(key))

    async def mkdir(self, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        os.mkdir(self.path(key))

    async def symlink(self, key: bytes, target: bytes) -> None:
        await trio.lowlevel.checkpoint()
        os.symlink(target, self.path(key))


def _write(path: bytes, data: bytes, mtime_ns: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:  # the same inode: the hardest to notice
        file.write(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


class RemotePlace(Place):
    """A place that is reached through a second remote, of a kind that can write."""

    def __init__(self, opener: Callable[[], Awaitable[Remote]], *, directories: bool) -> None:
        self._opener = opener
        self.directories = directories

    async def open(self) -> Remote:
        return await self._opener()

    async def fill(self, files: Mapping[bytes, bytes], mtime_ns: int = FILLED_AT_NS) -> None:
        limiter = trio.CapacityLimiter(16)
        remote = await self.open()
        settable = remote.capabilities.mtime_resolution_ns > 0
        attributes = Attributes(mtime_ns=mtime_ns) if settable else None

        async def put(key: bytes, data: bytes) -> None:
            async with limiter:
                await remote.write(key, Held(data), attributes)

        async with trio.open_nursery() as nursery:
            for key, data in files.items():
                nursery.start_soon(put, key, data)
        await remote.close()

    async def _with(self, act: Callable[[Remote], Awaitable[None]]) -> None:
        remote = await self.open()
        await act(remote)
        await remote.close()

    async def remove(self, key: bytes) -> None:
        await self._with(lambda remote: remote.delete(key))

    async def mkdir(self, key: bytes) -> None:
        await self._with(lambda remote: remote.mkdir(key))

    async def symlink(self, key: bytes, target: bytes) -> None:
        await self._with(lambda remote: remote.symlink(key, target))


class Server(ABC):
    """A running server of one kind."""

    @abstractmethod
    def place(self, bridge: Bridge) -> Place:
        """A new place; its remotes use `bridge`."""

    def address(self, bridge: Bridge) -> tuple[str, Machinery]:
        """A URL of its own at which nothing is yet, and what opens it."""
        raise NotImplementedError

    def away(self) -> AbstractContextManager[None]:
        """Unreachable inside, with the same data and ready at the same address afterwards."""
        raise NotImplementedError


def any_name(name: bytes) -> bool:
    """Every name that a Unix file can have."""
    return name not in {b"", b".", b".."} and b"/" not in name and b"\0" not in name


def utf8_name(name: bytes) -> bool:
    """What can be decoded."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return any_name(name)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of remote. None of its fields changes what the suite asks, save as they say."""

    name: str
    serve: Callable[[Path], AbstractContextManager[Server]]  # given a folder of its own
    holds: Callable[[bytes], bool] = any_name  # whether a file can have this name
    goes_away: bool = True  # there is something between us and the data that can break
    listing_exact: bool = True  # listings know the version as exactly as `stat` does


def find_kinds() -> list[Kind]:
    """All of them, by the files beside this one."""
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [name for name in names if name.startswith("kind_")]
    return [importlib.import_module(f"tests.remotes.{name}").KIND for name in modules]
