"""Object stores: their servers behind proxies, and how they are filled past the code under test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Remote
from tests.remotes.kinds import FILLED_AT_NS, RemotePlace, Server, machinery
from tests.servers.proxy import Proxy

AT_ONCE = 16

Put = Callable[[str, bytes], object]


async def fill(put: Put, files: Mapping[str, bytes]) -> None:
    """Call `put(key, data)` for each file, in threads."""
    limiter = trio.CapacityLimiter(AT_ONCE)
    async with trio.open_nursery() as nursery:
        for keys in _shares(list(files), AT_ONCE):
            nursery.start_soon(_in_thread, put, keys, files, limiter)


async def _in_thread(
    put: Put, keys: list[str], files: Mapping[str, bytes], limiter: trio.CapacityLimiter
) -> None:
    await trio.to_thread.run_sync(_put_all, put, keys, files, limiter=limiter)


def _put_all(put: Put, keys: list[str], files: Mapping[str, bytes]) -> None:
    for key in keys:
        put(key, files[key])


def _shares(keys: list[str], count: int) -> list[list[str]]:
    return [keys[start::count] for start in range(count) if keys[start::count]]


class ObjectPlace(RemotePlace):
    """A prefix of a bucket, or a bucket."""

    def __init__(self, opener: Callable[[], Awaitable[Remote]], put: Put, prefix: str = "") -> None:
        super().__init__(opener, directories=False)
        self._put = put
        self._prefix = prefix

    async def fill(self, files: Mapping[bytes, bytes], mtime_ns: int = FILLED_AT_NS) -> None:
        """See Place. Another time makes no other version here: other bytes do."""
        await fill(self._put, {self._prefix + key.decode(): data for key, data in files.items()})


class ObjectServer(Server):
    """A server behind a proxy, which goes away instead: its data or its port would not stay."""

    driver: Callable[[str, Mapping[str, str], Machinery], Awaitable[Remote]]

    def __init__(
        self, folder: Path, proxy: Proxy, environment: Mapping[str, str], way: Mapping[str, str]
    ) -> None:
        """`environment` lets a client in, `way` leads it through the proxy."""
        self.proxy = proxy
        self._folder = folder
        self._environment = environment
        self._way = way
        self._numbers = itertools.count()

    def machinery(
        self, bridge: Bridge, environment: Mapping[str, str] | None = None, **changes: Any
    ) -> Machinery:
        """What opens remotes that go through the proxy."""
        let_in = self._environment if environment is None else environment
        return machinery(bridge, self._folder, environment={**let_in, **self._way}, **changes)

    async def open(
        self,
        bridge: Bridge,
        url: str,
        options: Mapping[str, str] = {},
        environment: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Remote:
        """A remote that goes through the proxy."""
        return await type(self).driver(url, options, self.machinery(bridge, environment, **changes))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """See Server."""
        self.proxy.change(refuse=True)
        self.proxy.reset_connections()
        yield
        self.proxy.heal()
