"""Local folders and files: `file:///path`.

What a folder says can be believed to the nanosecond, and every attribute is kept. Versions are
told by size and modification time, and by inode and change time as the etag. Nothing makes a
version and its bytes one: both are compared before and after a read, and a write looks at
`if_version` just before it renames.

Calls run in threads. A disk or network file system that hangs holds its thread, not the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from syncer.remotes.errors import BadUrl, Garbled, Unreachable
from syncer.remotes.folder import Draft, Folder, Listing
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import (
    Attributes,
    ByteSource,
    Capabilities,
    Entry,
    PageSink,
    Remote,
    Version,
)
from syncer.remotes.url import RemoteUrl, check_options

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PART_BYTES = 4 << 20  # of a write: long enough for threads not to matter
_CLOSE_S = 2.0  # to remove a draft or close a listing of which the caller has had enough

_CAPABILITIES = Capabilities(
    write=True,
    rename=True,
    mkdir=True,
    symlinks=True,
    mode=True,
    owner=True,
    mtime_resolution_ns=1,
    metadata=True,
)


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """The folder or file that `url` names. It has no options. Raises BadUrl."""
    await trio.lowlevel.checkpoint()
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, ())
    if parsed.host not in {"", "localhost"} or parsed.user or parsed.port:
        raise BadUrl(f"{parsed}: a file URL names no other host: write file:///path")
    if not parsed.path.startswith(b"/") or b"\0" in parsed.path:
        raise BadUrl(f"{parsed}: write file:///path, from the root of the file system")
    return FileRemote(str(parsed), Folder(parsed.path.rstrip(b"/") or b"/"), machinery)


class FileRemote:
    """See Remote."""

    def __init__(self, url: str, folder: Folder, machinery: Machinery) -> None:
        self._url = url
        self._folder = folder
        self._timeout_s = machinery.read_timeout_s
        self._limiter = trio.CapacityLimiter(machinery.connections_max)
        self._closing = trio.CapacityLimiter(machinery.connections_max)  # never behind what hangs

    @property
    def url(self) -> str:
        """See Remote."""
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return _CAPABILITIES

    async def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call in a thread, which is left behind when the caller gives up or the time is over."""
        try:
            with trio.fail_after(self._timeout_s):
                return await self._wait(function, *args)
        except trio.TooSlowError:
            raise Unreachable(
                f"{self._url}: no answer in {self._timeout_s:g} s: is its disk or server alive?"
            ) from None

    async def _wait(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Likewise, however long it takes."""
        return await trio.to_thread.run_sync(
            function, *args, abandon_on_cancel=True, limiter=self._limiter
        )

    async def _close(self, what: Listing | Draft) -> None:
        """Behind the thread that still has it, if there is one."""
        with trio.move_on_after(_CLOSE_S) as scope:
            scope.shield = True
            await trio.to_thread.run_sync(what.close, abandon_on_cancel=True, limiter=self._closing)

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        listing = Listing(self._folder, key)
        try:
            while page := await self._run(listing.page):
                await sink(page)
        finally:
            await self._close(listing)

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        return await self._run(self._folder.stat, key)

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        return await self._run(self._folder.read, key, version, offset, length)

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        return await self._run(self._folder.read_whole, key, size_max)

    async def write(
        self,
        key: bytes,
        source: ByteSource,
        attributes: Attributes | None = None,
        *,
        if_version: Version | None = None,
        replace: bool = True,
    ) -> Entry:
        """See Remote."""
        draft = Draft(self._folder, key, attributes)
        try:
            for offset in range(0, source.size, _PART_BYTES):
                length = min(_PART_BYTES, source.size - offset)
                data = await source.read(offset, length)
                if len(data) != length:
                    raise Garbled(f"the source gave {len(data)} of {length} bytes at {offset}")
                await self._wait(draft.append, data)
            # fsync takes as long as the disk needs for the whole file.
            return await self._wait(partial(draft.publish, if_version, replace=replace))
        finally:
            await self._close(draft)

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote."""
        await self._run(partial(self._folder.rename, key, new_key, replace=replace))

    async def delete(self, key: bytes) -> None:
        """See Remote."""
        await self._run(self._folder.delete, key)

    async def mkdir(self, key: bytes) -> None:
        """See Remote."""
        await self._run(self._folder.mkdir, key)

    async def symlink(self, key: bytes, target: bytes) -> None:
        """See Remote."""
        await self._run(self._folder.symlink, key, target)

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote."""
        await self._run(self._folder.set_attributes, key, attributes)

    async def close(self) -> None:
        """See Remote."""
        await trio.lowlevel.checkpoint()
