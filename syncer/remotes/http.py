"""Web servers: `http(s)://[user@]host[:port]/path/`, read only.

Directories are the listings that the server makes (`http_listing` knows which); a URL without a
slash at the end that is no directory is a single file. Reads are ranges under a condition: the
strong etag, else the time of last modification, which is compared in the answer too. Passwords and
tokens are in the credentials file and go to the URL's own host only.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from typing import TypeVar
from urllib.parse import quote_from_bytes

import trio

from syncer.remotes.errors import (
    BadUrl,
    Changed,
    Denied,
    Garbled,
    Missing,
    RemoteError,
    Unsupported,
)
from syncer.remotes.http_client import (
    Call,
    Client,
    Response,
    Target,
    encode_path,
    refused,
)
from syncer.remotes.http_listing import Link, ListingParser, http_time_ns, listing_parser
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
from syncer.remotes.url import RemoteUrl, check_options

T = TypeVar("T")

_PAGE_ENTRIES = 1000
_LISTING_BYTES = 256 << 10  # read at a time
_UNRANGED_BYTES_MAX = 1 << 20  # a larger file is not read whole for the sake of a part of it
_CLOSE_S = 5.0
_TIDY_S = 1.0

_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_WHY_NOT = "web servers are only read"


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """A remote for `http://…` or `https://…`. Raises BadUrl; asks no server."""
    await trio.lowlevel.checkpoint()
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, ())
    if not parsed.host:
        raise BadUrl(f"{parsed}: expected {parsed.scheme}://host/path/")
    if parsed.query and parsed.path.endswith(b"/"):
        raise BadUrl(f"{parsed}: a directory's URL has no query")
    return HttpRemote(parsed, machinery)


class HttpRemote(ReadOnly):
    """One directory or file of a web server. See Remote."""

    def __init__(self, url: RemoteUrl, machinery: Machinery) -> None:
        self._url = url
        # As spelled: a %2F in it is no slash.
        path = "/" + url.text.partition("://")[2].partition("/")[2].partition("?")[0]
        self._path = encode_path(path)
        self._query = f"?{encode_path(url.query)}" if url.query else ""
        self._client = Client(
            url,
            machinery.credentials,
            connect_timeout_s=machinery.connect_timeout_s,
            timeout_s=machinery.read_timeout_s,
        )
        self._threads = Threads("http", machinery.connections_max)
        self._capabilities = Capabilities(write_reason=_WHY_NOT)

    @property
    def url(self) -> str:
        """See Remote."""
        return str(self._url)

    @property
    def capabilities(self) -> Capabilities:
        """See Remote. `ranges` turns false with the first answer that ignores one."""
        return self._capabilities

    async def close(self) -> None:
        """See Remote."""
        self._client.close()
        await self._threads.drain(_CLOSE_S)

    async def _run(self, work: Callable[[Call], T]) -> T:
        call = Call()
        return await self._threads.run(work, call, abort=call.abort)

    def _target(self, key: bytes) -> Target:
        """What to ask for. Raises Missing for what the server would take for another key."""
        if not key:
            return Target(self._client.home, self._path + self._query)
        names = key.removesuffix(b"/").split(b"/")
        if any(name in {b"", b".", b".."} for name in names):
            raise Missing(f"{self._url}: a path cannot hold {key!r}")
        base = self._path.removesuffix("/")
        return Target(self._client.home, f"{base}/{quote_from_bytes(key, safe='/')}")

    # Finding.

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote."""
        prefix = key if not key or key.endswith(b"/") else key + b"/"
        listing = _Listing(self._client, self._target(prefix))
        try:
            while not listing.complete:
                links = await self._run(listing.step)
                for start in range(0, len(links), _PAGE_ENTRIES):
                    page = await self._entries(prefix, links[start : start + _PAGE_ENTRIES])
                    await sink(page)
        finally:
            if not listing.complete:
                with trio.move_on_after(_TIDY_S, shield=True):
                    await self._threads.run(listing.close, abort=_nothing)

    async def _entries(self, prefix: bytes, links: Sequence[Link]) -> Sequence[Entry]:
        """The entries for links; files whose size is not shown are asked for it."""
        entries: list[Entry | None] = [None] * len(links)
        failures: list[RemoteError] = []

        async def ask(position: int, key: bytes) -> None:
            try:
                entries[position] = await self.stat(key)
            except Missing:
                pass  # it is gone
            except Denied:
                # It is there, whatever its size: nobody can read it.
                entries[position] = Entry(key, Kind.FILE, mode=0, exact=False)
            except Unsupported:
                entries[position] = Entry(key, Kind.OTHER, exact=False)
            except RemoteError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for position, link in enumerate(links):
                key = prefix + link.name + (b"/" if link.directory else b"")
                if link.directory:
                    entries[position] = Entry(key, Kind.DIRECTORY, mtime_ns=link.mtime_ns)
                elif link.size is not None:
                    entries[position] = Entry(
                        key, Kind.FILE, size=link.size, mtime_ns=link.mtime_ns, exact=False
                    )
                else:
                    nursery.start_soon(ask, position, key)
        if failures:
            raise failures[0]
        return [entry for entry in entries if entry is not None]

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        return await self._run(functools.partial(self._stat, self._target(key), key))

    def _stat(self, target: Target, key: bytes, call: Call) -> Entry:
        response = self._client.ask(call, "HEAD", target)
        try:
            if response.status in {405, 501} or (
                response.status == 200 and response.length is None and not _is_directory(response)
            ):
                response.close()
                # One byte of it says the same.
                response = self._client.ask(call, "GET", target, {"Range": "bytes=0-0"})
                if response.status == 416:  # it has none
                    return dataclasses.replace(_entry(response, key, 0), exact=False)
            return self._described(response, key)
        finally:
            response.close()

    def _described(self, response: Response, key: bytes) -> Entry:
        """The entry that an answer's headers describe."""
        bare = key.removesuffix(b"/")
        if _is_directory(response):
            return Entry(bare + b"/" if bare else bare, Kind.DIRECTORY)
        if response.status == 206:
            _, _, size = _range(response)
        elif response.status == 200:
            if response.length is None:
                raise Unsupported(f"{response.target}: the server does not tell the size")
            size = response.length
        else:
            raise refused(response)
        _check_coding(response)
        return _entry(response, key, size)

    # Reading.

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> bytes:
        """See Remote."""
        if not length:
            entry = await self.stat(key)
            if entry.kind is not Kind.FILE or not _agree(version, entry.version):
                raise Changed(f"{self._url}: {key!r} is another version than the one asked for")
            return b""
        if not self._capabilities.ranges and length < version.size > _UNRANGED_BYTES_MAX:
            raise self._no_ranges(repr(key), version)
        return await self._run(
            functools.partial(self._read, self._target(key), version, offset, length)
        )

    def _read(
        self, target: Target, version: Version, offset: int, length: int, call: Call
    ) -> bytes:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        if version.etag:
            headers["If-Match"] = version.etag
        elif version.mtime_ns:
            headers["If-Unmodified-Since"] = formatdate(version.mtime_ns // 10**9, usegmt=True)
        response = self._client.ask(call, "GET", target, headers)
        try:
            if _is_directory(response):
                raise Changed(f"{target} has become a directory")
            if response.status not in {200, 206}:
                error = refused(response)
                if isinstance(error, Missing):
                    raise Changed(f"{target} is gone")
                raise error
            _check_coding(response)
            if response.status == 200:
                return self._cut(response, version, offset, length, call)
            start, end, size = _range(response)
            _check_version(response, version, size)
            if (start, end + 1) != (offset, offset + length):
                raise Garbled(f"{target}: bytes {start} to {end} came, others were asked for")
            return _body(response, length, call)
        finally:
            response.close()

    def _cut(
        self, response: Response, version: Version, offset: int, length: int, call: Call
    ) -> bytes:
        """A range of an answer that has the whole file."""
        size = version.size if response.length is None else response.length
        _check_version(response, version, size)
        whole = (offset, length) == (0, size)
        if not whole or response.header("accept-ranges").strip().lower() != "bytes":
            # A single assignment: threads may do it at the same time.
            self._capabilities = dataclasses.replace(self._capabilities, ranges=False)
        if not whole and size > _UNRANGED_BYTES_MAX:
            raise self._no_ranges(str(response.target), version)
        if offset + length > size:
            raise Garbled(f"{response.target} has no {length} bytes at {offset}")
        return _body(response, size, call)[offset : offset + length]

    def _no_ranges(self, what: str, version: Version) -> Unsupported:
        return Unsupported(
            f"{self._url}: {what}: the server sends whole files only, and this one has "
            f"{version.size} bytes"
        )

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        return await self._run(
            functools.partial(self._read_whole, self._target(key), key, size_max)
        )

    def _read_whole(
        self, target: Target, key: bytes, size_max: int, call: Call
    ) -> tuple[Entry, bytes]:
        response = self._client.ask(call, "GET", target)
        try:
            if _is_directory(response):
                raise Unsupported(f"{target} is a directory")
            if response.status != 200:
                raise refused(response)
            _check_coding(response)
            length = response.length
            if (size_max if length is None else length) > size_max:
                raise Unsupported(f"{target} is larger than {size_max} bytes")
            if length is None:
                data = response.read(call, size_max + 1)
                if len(data) > size_max:
                    raise Unsupported(f"{target} is larger than {size_max} bytes")
            else:
                data = _body(response, length, call)
            return _entry(response, key, len(data)), data
        finally:
            response.close()

    def _refusal(self, key: bytes) -> str:
        return f"{self._url}: {key!r}: {_WHY_NOT}"


def _nothing() -> None:
    """For calls that end by themselves."""


class _Listing:
    """One page of a directory, read and parsed piece by piece, in threads."""

    def __init__(self, client: Client, target: Target) -> None:
        self._client = client
        self._target = target
        self._lock = threading.Lock()  # a step that was given up may still run
        self._response: Response | None = None
        self._parser: ListingParser | None = None
        self.complete = False

    def step(self, call: Call) -> Sequence[Link]:
        """The next entries; about as many as a page has, none only at the end."""
        with self._lock:
            links: list[Link] = []
            response, parser = self._response, self._parser
            if response is None or parser is None:
                response, parser = self._begin(call)
            while len(links) < _PAGE_ENTRIES:
                data = response.read(call, _LISTING_BYTES)
                links += parser.feed(data)
                if len(data) < _LISTING_BYTES:
                    links += parser.finish()
                    if response.left:
                        raise Garbled(f"{self._target}: the listing is cut off")
                    response.close()
                    self.complete = True
                    break
            return links

    def _begin(self, call: Call) -> tuple[Response, ListingParser]:
        target = self._target
        response = self._response = self._client.ask(call, "GET", target)
        if response.slashed is not None:  # the URL of a root may lack the slash
            response.close()
            response = self._response = self._client.ask(call, "GET", response.slashed)
        if response.status != 200:
            raise refused(response)
        _check_coding(response)
        parser = listing_parser(response.header("content-type"), str(response.target))
        self._parser = parser
        return response, parser

    def close(self) -> None:
        """Give it up."""
        with self._lock:
            if self._response is not None:
                self._response.close()


# What an answer says.


def _is_directory(response: Response) -> bool:
    """Whether the answer says so: by what was asked for, or by sending us there."""
    if response.slashed is not None:
        return True
    return response.status == 200 and response.target.path.partition("?")[0].endswith("/")


def _check_coding(response: Response) -> None:
    coding = response.header("content-encoding").strip().lower()
    if coding not in {"", "identity"}:
        raise Unsupported(f"{response.target}: the server insists on sending it as {coding}")


def _strong_etag(response: Response) -> str:
    """Weak ones do not promise the same bytes."""
    etag = response.header("etag").strip()
    return "" if etag.startswith("W/") else etag


def _entry(response: Response, key: bytes, size: int) -> Entry:
    kind = response.header("content-type")
    return Entry(
        key,
        Kind.FILE,
        size=size,
        mtime_ns=http_time_ns(response.header("last-modified")),
        etag=_strong_etag(response),
        metadata={"content-type": kind.encode("latin-1", "replace")} if kind else {},
    )


def _agree(wanted: Version, found: Version) -> bool:
    """Whether a pinned version is the found one, by the best that the pin has."""
    if wanted.size != found.size:
        return False
    if wanted.etag and found.etag:
        return wanted.etag == found.etag
    return not wanted.mtime_ns or wanted.mtime_ns == found.mtime_ns


def _check_version(response: Response, version: Version, size: int) -> None:
    found = _entry(response, b"", size).version
    if not _agree(version, found):
        raise Changed(f"{response.target} is {found}, not {version}")


def _range(response: Response) -> tuple[int, int, int]:
    """First and last byte, and the size of the file."""
    match = _CONTENT_RANGE.fullmatch(response.header("content-range").strip())
    if match is None:
        raise Garbled(f"{response.target}: an answer does not say which bytes it has")
    start, end, size = map(int, match.groups())
    return start, end, size


def _body(response: Response, length: int, call: Call) -> bytes:
    """Exactly this many bytes, all that there are."""
    if response.length is not None and response.length != length:
        raise Garbled(f"{response.target}: {response.length} bytes came instead of {length}")
    data = response.read(call, length)
    if len(data) != length:
        raise Garbled(f"{response.target}: {len(data)} bytes came instead of {length}")
    if response.length is None and response.read(call, 1):
        raise Garbled(f"{response.target}: more than {length} bytes came")
    return data
