"""SFTP servers: `sftp://[user@]host[:port]/path`, from the login's home with `/~/path`.

Logins are the user's key (or the option `identity`), the agent's keys, or a password from the
credentials file; `~/.ssh/config` counts. The server's key must be in `~/.ssh/known_hosts` or the
system's. No command is ever run on the server.

A version is size and modification time, in whole seconds: a file that is rewritten in place, with
the same size and within the second, is not told from the old one. Reads compare them after the
last byte, on the handle that the bytes came through. Writes go to a temporary name, are brought to
the disk where the server knows how, and renamed over the old file with OpenSSH's extension;
`if_version` is looked at just before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from syncer.remotes import sftp_writes
from syncer.remotes.errors import BadUrl, Garbled, Missing, Unreachable, Unsupported
from syncer.remotes.keys import components
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import (
    ROOT,
    Attributes,
    ByteSource,
    Capabilities,
    Entry,
    Kind,
    PageSink,
    Remote,
    Version,
)
from syncer.remotes.sftp_link import Link
from syncer.remotes.sftp_reads import (
    Listing,
    OpenFiles,
    attrs_of,
    read_whole,
    readlink,
    stat_path,
)
from syncer.remotes.sftp_session import SftpSession
from syncer.remotes.sftp_wire import NS, Status, meaning
from syncer.remotes.url import RemoteUrl, check_options

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_OPTIONS = ("identity",)
_PART_BYTES = 1 << 20  # of a write, with a deadline each: 35 kB/s are enough
_CLOSE_S = 2.0  # to say goodbye
_SILENT_S = 1.0  # of a session, after which it is no loss when a call of it is cancelled

_CAPABILITIES = Capabilities(
    write=True,
    rename=True,
    mkdir=True,
    symlinks=True,
    mode=True,
    owner=True,
    mtime_resolution_ns=NS,
)


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """The folder or file that `url` names; option `identity`: a private key's file.

    Raises BadUrl.
    """
    await trio.lowlevel.checkpoint()
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, _OPTIONS)
    if not parsed.host:
        raise BadUrl(f"{parsed}: no host: write sftp://host/path")
    if b"\0" in parsed.path:
        raise BadUrl(f"{parsed}: a path cannot hold a NUL")
    return SftpRemote(parsed, Link(parsed, options, machinery), machinery)


class _Silent(Unreachable):
    """No answer in time: not to be waited for twice."""


class SftpRemote:
    """See Remote."""

    def __init__(self, url: RemoteUrl, link: Link, machinery: Machinery) -> None:
        self._url = str(url)
        path = url.path.rstrip(b"/") or b"/"
        home, slash, rest = path.partition(b"/~")
        if not home and slash and (not rest or rest.startswith(b"/")):
            path = rest.lstrip(b"/") or b"."
        self._root = path
        self._link = link
        self._bridge = machinery.bridge
        self._timeout_s = machinery.read_timeout_s
        self._files = OpenFiles(self._url)

    @property
    def url(self) -> str:
        """See Remote."""
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return _CAPABILITIES

    def _path(self, key: bytes) -> bytes:
        names = components(key)
        return b"/".join([self._root.rstrip(b"/"), *names]) if names else self._root

    def _where(self, key: bytes) -> str:
        return f"{self._url}: {key!r}"

    # In the bridge's loop

    async def _run(
        self, function: Callable[[SftpSession, *Ts], Awaitable[T]], *args: *Ts, again: bool = False
    ) -> T:
        """Call with a session, connected if need be; for the trio loop.

        `again`: once more if an old connection turns out to be broken, for what does no harm twice.
        """
        return await self._bridge.run(self._call, again, function, *args)

    async def _call(
        self,
        again: bool,
        function: Callable[[SftpSession, *Ts], Awaitable[T]],
        *args: *Ts,
    ) -> T:
        session = self._link.working
        if again and session is not None:
            try:
                return await self._within(session, function, session, *args)
            except _Silent:
                raise
            except Unreachable:
                if session.lost is None:
                    raise
        session = await self._link.session()
        return await self._within(session, function, session, *args)

    async def _within(
        self, session: SftpSession, function: Callable[[*Ts], Awaitable[T]], *args: *Ts
    ) -> T:
        """Call with a deadline. A session that says nothing at all until then is given up.

        So is one that says nothing until a caller has less patience and cancels: the next call
        would wait for it just as long.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await function(*args)
        except TimeoutError:
            error = _Silent(f"{self._url}: no answer in {self._timeout_s:g} s: is the host up?")
            if session.heard_at < started:
                self._link.drop(session, error)
            raise error from None
        except asyncio.CancelledError:
            waited_s = loop.time() - started
            if session.heard_at < started and waited_s > _SILENT_S:
                error = _Silent(f"{self._url}: no answer in {waited_s:.1f} s: is the host up?")
                self._link.drop(session, error)
            raise

    async def _stat(self, session: SftpSession, key: bytes) -> Entry:
        path = self._path(key)
        try:
            attrs = await attrs_of(stat_path(session, path, follow=key == ROOT))
        except Status as status:
            raise meaning(status, self._where(key), Garbled) from None
        if key.endswith(b"/") and attrs.kind is not Kind.DIRECTORY:
            raise Missing(f"{self._where(key)} is no directory")
        target = await readlink(session, path) if attrs.kind is Kind.SYMLINK else None
        return attrs.entry(key, target)

    async def _change(
        self,
        session: SftpSession,
        where: str,
        function: Callable[[SftpSession, str, *Ts], Awaitable[None]],
        *args: *Ts,
    ) -> None:
        try:
            await function(session, where, *args)
        except Status as status:
            raise meaning(status, where) from None

    # The protocol

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        listing: Listing | None = None

        async def first(session: SftpSession) -> tuple[Listing, list[Entry]]:
            nonlocal listing
            listing = Listing(session, self._where(key), key, self._path(key))
            return listing, await listing.page()

        try:
            begun, page = await self._run(first, again=True)
            while page:
                await sink(page)
                page = await self._bridge.run(self._within, begun.session, begun.page)
        finally:
            if listing is not None:
                await self._close(listing.close)

    async def _close(self, close: Callable[[], None]) -> None:
        async def run() -> None:
            close()

        with trio.CancelScope(shield=True):  # a moment: nothing is waited for
            await self._bridge.run(run)

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        return await self._run(self._stat, key, again=True)

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        path = self._path(key)
        return await self._run(self._files.read, path, version, offset, length, again=True)

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        path = self._path(key)
        return await self._run(read_whole, self._where(key), key, path, size_max, again=True)

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
        names = components(key)
        parents = [self._path(b"/".join(names[:n])) for n in range(1, len(names))]
        upload: sftp_writes.Upload | None = None

        async def begin(session: SftpSession) -> sftp_writes.Upload:
            nonlocal upload
            upload = sftp_writes.Upload(
                session, self._where(key), key, self._path(key), attributes or Attributes()
            )
            await upload.begin(parents)
            return upload

        try:
            begun = await self._run(begin)
            for offset in range(0, source.size, _PART_BYTES):
                length = min(_PART_BYTES, source.size - offset)
                data = await source.read(offset, length)
                if len(data) != length:
                    raise Garbled(f"the source gave {len(data)} of {length} bytes at {offset}")
                await self._bridge.run(self._within, begun.session, begun.append, data)
            # fsync takes as long as the disk needs for the whole file. A server that dies meanwhile
            # is noticed by the connection's keep-alive.
            return await self._bridge.run(partial(begun.publish, if_version, replace=replace))
        finally:
            if upload is not None:
                await self._close(upload.close)

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote."""
        if ROOT in {key, new_key}:
            raise Unsupported(f"{self._url}: the root stays where it is")
        old, new = self._path(key), self._path(new_key)
        move = partial(sftp_writes.move, replace=replace)
        await self._run(self._change, self._where(new_key), move, old, new)

    async def delete(self, key: bytes) -> None:
        """See Remote."""
        delete = partial(sftp_writes.delete, directory=key.endswith(b"/"))
        await self._run(self._change, self._where(key), delete, self._path(key))

    async def mkdir(self, key: bytes) -> None:
        """See Remote."""
        await self._run(self._change, self._where(key), sftp_writes.mkdir, self._path(key))

    async def symlink(self, key: bytes, target: bytes) -> None:
        """See Remote."""
        path = self._path(key)
        await self._run(self._change, self._where(key), sftp_writes.symlink, path, target)

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote."""
        path, change = self._path(key), sftp_writes.set_attributes
        await self._run(self._change, self._where(key), change, path, attributes)

    async def close(self) -> None:
        """See Remote."""

        async def close() -> None:
            self._files.close()
            await self._link.close()

        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
            await self._bridge.run(close)
