"""Fills object stores quickly: many objects at once, past the code under test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from syncer.remotes.remote import Remote
from tests.remotes.kinds import FILLED_AT_NS, RemotePlace

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
