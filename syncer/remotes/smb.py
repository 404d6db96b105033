"""Shares of SMB servers (2.0.2 to 3.1.1): `smb://user@host[:port]/share/path`.

The password is in the credentials file; without one, Kerberos is tried where it is installed.
Every message is signed in both directions; the option `encrypt=true` encrypts them instead.

Reading opens the file, reads and closes it in one chain of requests, and compares size and time on
that handle before and after. Writing goes to a file that the server removes by itself should the
connection break, which is renamed over the old one at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import trio

from syncer.local_parts import new_part
from syncer.remotes import smb_calls, smb_wire
from syncer.remotes.errors import (
    BadUrl,
    Changed,
    Denied,
    Exists,
    Garbled,
    Missing,
    RemoteError,
    Unsupported,
)
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import (
    Attributes,
    ByteSource,
    Capabilities,
    Entry,
    Kind,
    PageSink,
    Remote,
    Version,
)
from syncer.remotes.smb_calls import AnotherVersion, Listing, Writing, entry_of
from syncer.remotes.smb_link import Abandoned, Call, Link, Share, SmbStatus
from syncer.remotes.smb_status import (
    ACCESS_DENIED,
    END_OF_FILE,
    FILE_IS_A_DIRECTORY,
    MISSING,
    SESSION_GONE,
    refused,
)
from syncer.remotes.threads import Threads
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl, check_options

_log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS_MAX = 8  # one connection serves them all: more only wait for it
_PAGE_ENTRIES = 1000
_WRITE_BYTES = 4 << 20  # taken from the source at a time
_CLOSE_S = 5.0
_TIDY_S = 1.0

_OPTIONS = ("auth", "encrypt")
_AUTH = ("negotiate", "ntlm", "kerberos")

_CAPABILITIES = Capabilities(write=True, rename=True, mkdir=True, mtime_resolution_ns=100)


def _has_kerberos() -> bool:
    """Whether the optional package that speaks it is installed."""
    return importlib.util.find_spec("gssapi") is not None


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """A remote for `smb://…`. Raises BadUrl; asks no server."""
    await trio.lowlevel.checkpoint()
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, _OPTIONS)
    share, _, path = parsed.path.removeprefix(b"/").partition(b"/")
    root = smb_wire.decode_key(path)
    name = smb_wire.decode_key(share)
    if not parsed.host or not name or root is None:
        raise BadUrl(f"{parsed}: expected smb://user@host/share/path")
    auth = options.get("auth", "negotiate")
    if auth not in _AUTH:
        raise BadUrl(f"{parsed}: auth is one of {', '.join(_AUTH)}")
    encrypt = options.get("encrypt", "false")
    if encrypt not in {"true", "false"}:
        raise BadUrl(f"{parsed}: encrypt is true or false")
    place = Share(
        host=parsed.host,
        port=parsed.port or 445,
        name=name,
        user=parsed.user,
        password=None,
        encrypt=encrypt == "true",
        protocol=auth,
    )
    return SmbRemote(parsed, place, root, machinery)


class SmbRemote:
    """One path of one share. See Remote."""

    def __init__(self, url: RemoteUrl, share: Share, root: str, machinery: Machinery) -> None:
        self._url = url
        self._share = share
        self._root = root
        self._machinery = machinery
        self._threads = Threads("smb", min(_THREADS_MAX, machinery.connections_max))
        self._opening = threading.Lock()  # guards the three below
        self._link: Link | None = None
        self._failed: tuple[float, RemoteError] | None = None  # when connecting last failed
        self._closed = False

    @property
    def url(self) -> str:
        """See Remote."""
        return str(self._url)

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return _CAPABILITIES

    # Threads and the connection.

    async def _run(self, work: Callable[[Call, Link], T], key: bytes) -> T:
        """What `work` returns, in a thread; its refusals as errors about `key`."""
        call = Call()
        since = time.monotonic()

        def main() -> T:
            try:
                link = self._connected(call, since)
                try:
                    return work(call, link)
                except SmbStatus as error:
                    if error.status in SESSION_GONE:
                        link.sever()
                    raise
            except SmbStatus as error:
                raise refused(error.status, self._named(key), str(self._share.user)) from None

        return await self._threads.run(main, abort=call.abort)

    def _connected(self, call: Call, since: float) -> Link:
        with self._opening:
            if self._closed:
                raise Unsupported(f"{self._url}: the remote has been closed")
            if self._link is not None:
                if self._link.alive:
                    return self._link
                self._link.close()
                self._link = None
            # Others tried while this call waited: it would fare no better.
            if self._failed is not None and self._failed[0] > since:
                raise self._failed[1]
            if call.aborted:
                raise Abandoned
            try:
                self._link = self._connect()
            except SmbStatus as error:
                failure = refused(error.status, str(self._url), str(self._share.user))
                self._failed = (time.monotonic(), failure)
                raise failure from None
            except RemoteError as error:
                self._failed = (time.monotonic(), error)
                raise
            return self._link

    def _connect(self) -> Link:
        login = self._machinery.credentials.find(self._url)
        user = self._share.user or login.get("user")
        password = login.get("password")
        if password is None and (self._share.protocol == "ntlm" or not _has_kerberos()):
            raise Denied(f"{self._url}: no password is known: {CREDENTIALS_CURE}")
        return Link(
            dataclasses.replace(self._share, user=user, password=password),
            str(self._url),
            connect_timeout_s=self._machinery.connect_timeout_s,
            timeout_s=self._machinery.read_timeout_s,
        )

    async def _tidy(self, leave: Callable[[Call], None]) -> None:
        """Close what is open at the server, also when cancelled; it may not answer in time."""
        call = Call()
        with trio.move_on_after(_TIDY_S, shield=True), contextlib.suppress(RemoteError, SmbStatus):
            await self._threads.run(leave, call, abort=call.abort)

    async def close(self) -> None:
        """See Remote."""

        def shut() -> None:
            # Whoever is connecting is bounded by its own limits, and finds the remote closed.
            self._closed = True
            link = self._link
            if link is not None:
                link.close()

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(shut)
            await self._threads.drain(_CLOSE_S)
            await trio.to_thread.run_sync(shut)  # a link that was made meanwhile

    # Names.

    def _named(self, key: bytes) -> str:
        return f"{self._url} {key.decode(errors='backslashreplace')!r}"

    def _path(self, key: bytes, *, new: bool = False) -> str:
        """The path in the share. Raises Missing, and Unsupported for a new name, where none is."""
        path = smb_wire.decode_key(key)
        if path is None:
            if new:
                raise Unsupported(f"{self._named(key)}: SMB has no such names")
            raise Missing(f"{self._named(key)}: SMB has no such names")
        return "\\".join(part for part in (self._root, path) if part)

    # Finding.

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        path = self._path(key)
        prefix = key if not key or key.endswith(b"/") else key + b"/"
        listing = Listing(path)
        try:
            while not listing.complete:
                page: list[Entry] = []
                for found in await self._run(listing.step, key):
                    name = smb_wire.encode_name(found.name)
                    if smb_wire.decode_key(name) is None:
                        _log.warning("%s: %r cannot be opened: left out", self._url, found.name)
                    elif found.attributes & smb_wire.ATTRIBUTE_REPARSE_POINT:
                        page.append(await self.stat(prefix + name))
                    else:
                        page.append(entry_of(prefix + name, found))
                    if len(page) == _PAGE_ENTRIES:
                        await sink(page)
                        page = []
                if page:
                    await sink(page)
        finally:
            await self._tidy(listing.leave)

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        entry = await self._run(functools.partial(smb_calls.stat, self._path(key), key), key)
        if key.endswith(b"/") and entry.kind is not Kind.DIRECTORY:
            raise Missing(f"{self._named(key)} is no directory")
        return entry

    # Reading.

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        path = self._path(key)

        def work(call: Call, link: Link) -> bytes:
            try:
                return smb_calls.read(path, version, offset, length, call, link)
            except SmbStatus as error:
                if error.status in MISSING or error.status == FILE_IS_A_DIRECTORY:
                    raise Changed(f"{self._named(key)} is gone") from None
                if error.status == END_OF_FILE:
                    # Of this version, or the version would have been the first thing to differ.
                    raise Garbled(f"{self._named(key)} has no {length} bytes at {offset}") from None
                raise
            except AnotherVersion as error:
                raise Changed(f"{self._named(key)} is {error}, not {version}") from None

        data = await self._run(work, key)
        if len(data) != length:
            raise Garbled(f"{self._named(key)}: {len(data)} bytes came instead of {length}")
        return data

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        path = self._path(key)

        def work(call: Call, link: Link) -> tuple[Entry, bytes]:
            try:
                found, data = smb_calls.read_whole(path, size_max, call, link)
            except AnotherVersion as error:
                raise Changed(f"{self._named(key)} became {error} while it was read") from None
            if data is None:
                raise Unsupported(f"{self._named(key)} is larger than {size_max} bytes")
            if len(data) != found.size:
                raise Garbled(f"{self._named(key)}: {len(data)} bytes came of {found.size}")
            return entry_of(key, found), data

        return await self._run(work, key)

    # Changing.

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
        path = self._path(key, new=True)
        # Short whatever the name's length, and hidden from those who list a directory.
        parent, slash, _ = path.rpartition("\\")
        temporary = f"{parent}{slash}{new_part().decode()}"
        writing = Writing(temporary, path, attributes, replace=replace, if_version=if_version)
        try:
            await self._run(writing.begin, key)
            for offset in range(0, source.size, _WRITE_BYTES):
                data = await source.read(offset, min(_WRITE_BYTES, source.size - offset))
                await self._run(functools.partial(writing.put, offset, data), key)
            return entry_of(key, await self._run(writing.finish, key))
        except AnotherVersion as error:
            raise Changed(f"{self._named(key)} is {error}, not {if_version}") from None
        finally:
            await self._tidy(writing.leave)

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote."""
        path, new_path = self._path(key), self._path(new_key, new=True)

        def work(call: Call, link: Link) -> None:
            try:
                directory = key.endswith(b"/")
                smb_calls.rename(path, new_path, call, link, directory=directory, replace=replace)
            except SmbStatus as error:
                if error.status != ACCESS_DENIED or not replace:
                    raise
                # Also how servers say that a directory is in the way.
                if smb_calls.stat(new_path, new_key, call, link).kind is not Kind.DIRECTORY:
                    raise
                raise Exists(f"{self._named(new_key)} is there already") from None

        await self._run(work, key)

    async def delete(self, key: bytes) -> None:
        """See Remote."""
        directory = key.endswith(b"/")
        await self._run(functools.partial(smb_calls.delete, self._path(key), directory), key)

    async def mkdir(self, key: bytes) -> None:
        """See Remote."""
        await self._run(functools.partial(smb_calls.mkdir, self._path(key, new=True)), key)

    async def symlink(self, key: bytes, target: bytes) -> None:  # noqa: ARG002
        """See Remote."""
        await trio.lowlevel.checkpoint()
        raise Unsupported(f"{self._named(key)}: symlinks on SMB servers are only read")

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote."""
        for name in ("mode", "uid", "gid", "metadata"):
            if getattr(attributes, name) is not None:
                raise Unsupported(f"{self._url}: SMB shares do not keep a file's {name}")
        await self._run(functools.partial(smb_calls.set_times, self._path(key), attributes), key)
