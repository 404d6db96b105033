"""Any other filesystem that fsspec knows, read only: `fsspec+PROTOCOL://…`, chains (`::`) too.

Filesystems written for asyncio run on the bridge, all others in threads. What fsspec's drivers
report differs: a version is the size with whatever of etag, checksum and times there is, compared
before and after each read. Directories are listed in one piece, as fsspec does.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import logging
import threading
from collections.abc import Mapping
from typing import Any

import fsspec
import trio
from fsspec.core import url_to_fs

from syncer.remotes.errors import (
    BadUrl,
    Changed,
    Denied,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.http_listing import http_time_ns
from syncer.remotes.machinery import Machinery
from syncer.remotes.read_only import ReadOnly
from syncer.remotes.remote import (
    Capabilities,
    Entry,
    Kind,
    PageSink,
    Remote,
    Version,
)
from syncer.remotes.threads import Threads
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl, check_options

_log = logging.getLogger(__name__)

_THREADS_MAX = 4  # few drivers say whether they can be used by many
_PAGE_ENTRIES = 1000
_CLOSE_S = 5.0
_WHY_NOT = "fsspec filesystems are only read"

_ETAGS = ("ETag", "etag", "e_tag", "md5Hash", "md5", "checksum", "CRC")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created", "date_time")


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """A remote for `fsspec+PROTOCOL://…`; `options` are the filesystem's own.

    Raises BadUrl, also where the protocol needs a package that is not installed.
    """
    await trio.lowlevel.checkpoint()
    parsed = RemoteUrl.parse(url)
    inner = parsed.text[len("fsspec+") :]
    protocol = inner.partition("://")[0]
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise BadUrl(f"{parsed}: {error}") from None
    except ValueError:
        raise BadUrl(f"{parsed}: fsspec knows no protocol {protocol!r}") from None
    known = _options(kind)
    check_options(parsed, options, known)
    typed = {name: _typed(parsed, name, text, known[name]) for name, text in options.items()}
    return FsspecRemote(parsed, inner, kind, typed, machinery)


def _options(kind: type) -> dict[str, object]:
    """The options that a filesystem's constructor names, and their defaults."""
    found: dict[str, object] = {}
    for each in reversed(kind.__mro__):
        if "__init__" in vars(each):
            for parameter in inspect.signature(each.__init__).parameters.values():  # type: ignore[misc]
                if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                    found[parameter.name] = parameter.default
    for reserved in ("self", "asynchronous", "loop"):
        found.pop(reserved, None)
    return found


def _typed(url: RemoteUrl, name: str, text: str, default: object) -> str | int | bool:
    """An option's value, of the kind of its default."""
    if isinstance(default, bool):
        if text not in {"true", "false"}:
            raise BadUrl(f"{url}: {name} is true or false")
        return text == "true"
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError:
            raise BadUrl(f"{url}: {name} is a number") from None
    return text


class FsspecRemote(ReadOnly):
    """One path of one filesystem of fsspec. See Remote."""

    def __init__(
        self,
        url: RemoteUrl,
        inner: str,
        kind: Any,
        options: Mapping[str, str | int | bool],
        machinery: Machinery,
    ) -> None:
        self._url = url
        self._inner = inner
        self._kind = kind
        self._options = options
        self._machinery = machinery
        self._async = bool(kind.async_impl) and "::" not in inner
        slots = machinery.connections_max if self._async else _THREADS_MAX
        self._slots = trio.CapacityLimiter(min(slots, machinery.connections_max))
        self._threads = Threads("fsspec", int(self._slots.total_tokens))
        self._opening = threading.Lock()  # guards the two below
        self._opened: tuple[Any, str] | None = None  # the filesystem, and our root in it
        self._closed = False

    @property
    def url(self) -> str:
        """See Remote."""
        return str(self._url)

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return Capabilities(write_reason=_WHY_NOT)

    # The filesystem.

    def _storage_options(self) -> dict[str, Any]:
        login = self._machinery.credentials.find(self._url)
        own: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        return {**self._options, **login, **own}

    def _sync_filesystem(self) -> tuple[Any, str]:
        with self._opening:
            if self._closed:
                raise Unsupported(f"{self._url}: the remote has been closed")
            if self._opened is None:
                options = self._storage_options()
                if "::" in self._inner:
                    # Each part of a chain has options of its own; these are the first one's.
                    protocol = self._inner.partition("://")[0]
                    options = {protocol: {**options, "skip_instance_cache": True}}
                self._opened = url_to_fs(self._inner, **options)
            return self._opened

    async def _async_filesystem(self) -> tuple[Any, str]:
        if self._closed:
            raise Unsupported(f"{self._url}: the remote has been closed")
        if self._opened is None:
            options = {**self._kind._get_kwargs_from_urls(self._inner), **self._storage_options()}  # noqa: SLF001
            # No await between: one filesystem, in the loop that uses it.
            filesystem = self._kind(asynchronous=True, loop=asyncio.get_running_loop(), **options)
            self._opened = (filesystem, self._kind._strip_protocol(self._inner))  # noqa: SLF001
            set_session = getattr(filesystem, "set_session", None)
            if set_session is not None:
                await set_session()
        return self._opened

    async def _call(self, name: str, key: bytes, **arguments: Any) -> Any:
        """What the filesystem's method says about a key."""

        def in_thread() -> Any:
            filesystem, root = self._sync_filesystem()
            return getattr(filesystem, name)(self._path(root, key), **arguments)

        async def on_bridge() -> Any:
            filesystem, root = await self._async_filesystem()
            return await getattr(filesystem, "_" + name)(self._path(root, key), **arguments)

        async with self._slots:
            try:
                with trio.fail_after(self._machinery.read_timeout_s):
                    if self._async:
                        return await self._machinery.bridge.run(on_bridge)
                    # Such a call cannot be woken; its place is taken until it ends.
                    return await self._threads.run(in_thread, abort=_nothing)
            except trio.TooSlowError:
                raise Unreachable(f"{self._named(key)}: no answer in time") from None
            except RemoteError:
                raise
            except Exception as error:  # noqa: BLE001 - drivers raise whatever they like
                raise self._translated(error, key) from None

    def _translated(self, error: Exception, key: bytes) -> RemoteError:
        where, why = self._named(key), f"{type(error).__name__}"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return Missing(f"{where}: there is no such file or directory")
        if isinstance(error, PermissionError):
            return Denied(f"{where}: not allowed; {CREDENTIALS_CURE}")
        if isinstance(error, IsADirectoryError | NotImplementedError):
            return Unsupported(f"{where}: {why}")
        if isinstance(error, ImportError):
            return Unsupported(f"{where}: {error}")
        if isinstance(error, OSError | EOFError | asyncio.TimeoutError):
            return Unreachable(f"{where}: {why}")
        # Its text may hold anything, secrets too.
        return Garbled(f"{where}: the filesystem failed with {why}")

    async def close(self) -> None:
        """See Remote."""
        self._closed = True
        with trio.CancelScope(shield=True):
            await self._threads.drain(_CLOSE_S)
            opened, self._opened = self._opened, None
            if opened is None:
                await trio.lowlevel.checkpoint()
            elif self._async:
                with trio.move_on_after(_CLOSE_S):
                    await self._machinery.bridge.run(_close_session, opened[0])
            else:
                close = getattr(opened[0], "close", None)
                if close is not None:
                    with trio.move_on_after(_CLOSE_S):
                        await self._threads.run(close, abort=_nothing)

    # Names.

    def _named(self, key: bytes) -> str:
        return f"{self._url} {key.decode(errors='backslashreplace')!r}"

    def _path(self, root: str, key: bytes) -> str:
        bare = key.removesuffix(b"/")
        if not bare:
            return root
        if any(name in {b"", b".", b".."} for name in bare.split(b"/")):
            raise Missing(f"{self._named(key)}: a path cannot hold it")
        name = bare.decode("utf-8", "surrogateescape")
        return f"{root.rstrip('/')}/{name}" if root else name

    # The protocol.

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        prefix = key if not key or key.endswith(b"/") else key + b"/"
        # Some drivers list a file as itself, and nothing for what is missing.
        if (await self.stat(key.removesuffix(b"/"))).kind is not Kind.DIRECTORY:
            raise Unsupported(f"{self._named(key)} is no directory")
        found = await self._call("ls", key, detail=True)
        own = b""
        if self._opened is not None:
            own = _bytes(self._path(self._opened[1], key)).strip(b"/")
        entries: dict[tuple[bytes, Kind], Entry] = {}
        for info in found:
            path = _bytes(str(info.get("name", ""))).strip(b"/")
            if path == own:  # the directory itself, as object stores mark it
                continue
            above, _, name = path.rpartition(b"/")
            if above != own or name in {b"", b".", b".."} or b"\0" in name:
                _log.warning("%s: %r is no name: left out", self._url, path)
                continue
            entry = _entry(prefix + name, info)
            entries[entry.key, entry.kind] = entry
        page = tuple(entries.values())
        for start in range(0, len(page), _PAGE_ENTRIES):
            await sink(page[start : start + _PAGE_ENTRIES])

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        entry = _entry(key.removesuffix(b"/"), await self._call("info", key))
        if key.endswith(b"/") and entry.kind is not Kind.DIRECTORY:
            raise Missing(f"{self._named(key)} is no directory")
        return entry

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        await self._pinned(key, version)
        if not length:
            return b""
        try:
            data = await self._call("cat_file", key, start=offset, end=offset + length)
        except Missing as error:
            raise Changed(str(error)) from None
        await self._pinned(key, version)
        if len(data) != length:
            raise Garbled(f"{self._named(key)}: {len(data)} bytes came instead of {length}")
        return bytes(data)

    async def _pinned(self, key: bytes, version: Version) -> None:
        try:
            entry = await self.stat(key)
        except Missing as error:
            raise Changed(str(error)) from None
        if entry.kind is not Kind.FILE or entry.version != version:
            raise Changed(f"{self._named(key)} is {entry.version}, not {version}")

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        entry = await self.stat(key)
        if entry.kind is not Kind.FILE:
            raise Unsupported(f"{self._named(key)} is no file")
        if entry.size > size_max:
            raise Unsupported(f"{self._named(key)} is larger than {size_max} bytes")
        if not entry.size:
            return entry, b""
        return entry, await self.read(key, entry.version, 0, entry.size)

    def _refusal(self, key: bytes) -> str:
        return f"{self._named(key)}: {_WHY_NOT}"


def _nothing() -> None:
    """For calls that nobody can wake."""


async def _close_session(filesystem: Any) -> None:
    """Close what an asyncio filesystem holds open, if it says how."""
    session = getattr(filesystem, "_session", None)
    close = getattr(session, "close", None)
    if close is not None:
        closing = close()
        if inspect.isawaitable(closing):
            await closing


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _entry(key: bytes, info: Mapping[str, Any]) -> Entry:
    """The entry for what a driver says of `key`, which has no slash at its end."""
    kinds = {"file": Kind.FILE, "directory": Kind.DIRECTORY, "link": Kind.SYMLINK}
    kind = kinds.get(str(info.get("type")), Kind.OTHER)
    target = info.get("destination") if kind is Kind.SYMLINK else None
    size = info.get("size")
    known = isinstance(size, int) and size >= 0
    if kind is Kind.FILE and not known:
        kind = Kind.OTHER  # a file of no known size cannot be read in blocks
    times = (_time_ns(info.get(name)) for name in _TIMES)
    return Entry(
        key + b"/" if kind is Kind.DIRECTORY and key else key,
        kind,
        size=int(size) if kind is Kind.FILE and size is not None else 0,
        mtime_ns=next((ns for ns in times if ns is not None), None),
        target=target if isinstance(target, bytes) else _bytes(target) if target else None,
        etag=next((f"{name}:{info[name]}" for name in _ETAGS if info.get(name)), ""),
    )


def _time_ns(value: object) -> int | None:
    """Nanoseconds since 1970, of the many ways in which drivers give times."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=dt.UTC)
        whole = value.replace(microsecond=0)
        return int(whole.timestamp()) * 10**9 + value.microsecond * 1000
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value) * 10**9 + round(value % 1 * 10**6) * 1000
    if isinstance(value, tuple) and len(value) == 6:  # zip
        try:
            return _time_ns(dt.datetime(*value, tzinfo=dt.UTC))
        except (TypeError, ValueError):
            return None
    if isinstance(value, str):
        try:
            return _time_ns(dt.datetime.fromisoformat(value))
        except ValueError:
            return http_time_ns(value)
    return None
