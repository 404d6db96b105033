"""Bytes of objects through obstore, and what its exceptions mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast

import obstore
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from syncer.remotes.errors import Changed, Garbled, Missing, RemoteError, Unreachable, Unsupported
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import (
    Answer,
    ObjectHttp,
    Request,
    seconds_ns,
    strong_etag,
)
from syncer.remotes.object_store import ObjectInfo, TooLarge
from syncer.remotes.remote import Data

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Retries are a wrapper's: it knows the deadline, and all kinds are treated alike.
NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}

_STATUS = re.compile(r"status code: (\d{3})")
_CUT = re.compile(
    r"timed? ?out|connect|reset|refused|broken pipe|closed|dns|incomplete|end of file|eof|"
    r"error sending request|hyper",
    re.IGNORECASE,
)


def client_options(machinery: Machinery, headers: Mapping[str, str] | None = None) -> ClientConfig:
    """How obstore's HTTP client behaves: the timeout of a whole request is ObjectHttp.turn's."""
    options: ClientConfig = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=machinery.connect_timeout_s),
        "read_timeout": timedelta(seconds=machinery.read_timeout_s),
        "timeout": timedelta(days=1),
        "pool_max_idle_per_host": str(machinery.connections_max),
        "pool_idle_timeout": timedelta(seconds=60),
    }
    if headers:
        options["default_headers"] = dict(headers)
    return options


def obstore_can(key: bytes) -> bool:
    """Whether obstore passes the key on as it is: it refuses or changes all others."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return False
    parts = text.split("/")
    return not (
        "" in parts
        or "." in parts
        or ".." in parts
        or any(ord(letter) < 32 or ord(letter) == 127 for letter in text)
    )


def translated(error: Exception, place: str, http: ObjectHttp) -> RemoteError:
    """What an exception of obstore means.

    Its text is not shown: it can hold signed URLs.
    """
    text = str(error).partition("\n\nDebug source:")[0]
    status = _STATUS.search(text)
    if status is not None:
        body = text[status.end() :].encode()
        return http.refused(Answer(int(status[1]), {}, body), place)
    if "redirect without LOCATION" in text:
        return http.refused(Answer(301, {}, b""), place)
    if isinstance(error, FileNotFoundError):
        return Missing(f"{place}: there is no such object")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return http.refused(Answer(403, {}, b""), place)
    if isinstance(error, PreconditionError):
        return Changed(f"{place}: is not the version asked for any more")
    if _CUT.search(text):
        return Unreachable(f"{place}: {http.endpoint}: the connection failed or was cut")
    return Garbled(f"{place}: {http.endpoint}: {type(error).__name__}: the answer makes no sense")


async def get(
    store: Any,
    http: ObjectHttp,
    key: bytes,
    place: str,
    condition: Mapping[str, str],
    *,
    start: int,
    end: int | None,
    size_max: int,
) -> tuple[ObjectInfo, str, memoryview]:
    """Bytes of an object and its generation, in one request. See Store.get.

    `condition`: options of obstore that pin the version.
    """
    options: dict[str, Any] = dict(condition)
    if end is not None:
        options["range"] = (start, end)
    async with http.turn(place, size_max if end is None else end - start):
        try:
            result = await obstore.get_async(store, key.decode(), options=cast("Any", options))
            meta = result.meta
            if end is None and meta["size"] > size_max:
                raise TooLarge(f"{place} is larger than {size_max} bytes")
            data = memoryview(await result.bytes_async())
        except (BaseError, OSError, ValueError) as error:
            raise translated(error, place, http) from None
    info = ObjectInfo(
        key,
        meta["size"],
        strong_etag(meta["e_tag"] or ""),
        seconds_ns(meta["last_modified"]),
        metadata={name.lower(): value.encode() for name, value in result.attributes.items()},
    )
    return info, meta["version"] or "", data


async def get_plainly(
    http: ObjectHttp, request: Request, place: str, start: int, end: int
) -> Answer:
    """The same with our own client, for keys that obstore cannot ask for. Raises Garbled."""
    if end > start:
        request.headers["range"] = f"bytes={start}-{end - 1}"
    answer = await http.send(request, place, fine=(200, 206), body_max=end - start)
    if answer.status == 206:
        sent = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")[0]
        if sent != f"{start}-{end - 1}":
            raise Garbled(f"{place}: the server sent the bytes {sent!r}")
    elif start:
        raise Unsupported(f"{place}: the server does not read ranges")
    return answer


class ByEtag(Protocol):
    """What `get_by_etag` needs of a store that tells versions by their etags."""

    http: ObjectHttp

    def place(self, key: bytes) -> str:
        """An object, for people."""

    def request(self, method: str, key: bytes = b"", **query: str) -> Request:
        """A request for an object."""

    async def head(self, key: bytes) -> ObjectInfo:
        """See Store."""

    def info_of(self, key: bytes, answer: Answer) -> ObjectInfo:
        """What the headers of an answer say of the object."""


async def get_by_etag(
    store: ByEtag, reader: Any, key: bytes, etag: str, start: int, end: int | None, size_max: int
) -> tuple[ObjectInfo, Data]:
    """See Store.get. `reader`: the same store, obstore's."""
    place = store.place(key)
    if obstore_can(key):
        condition = {"if_match": etag} if etag else {}
        info, _, data = await get(
            reader, store.http, key, place, condition, start=start, end=end, size_max=size_max
        )
        return info, data
    if end is None:
        found = await store.head(key)
        if found.size > size_max:
            raise TooLarge(f"{place} is larger than {size_max} bytes")
        etag, end = etag or found.etag, found.size
    request = store.request("GET", key)
    if etag:
        request.headers["if-match"] = etag
    answer = await get_plainly(store.http, request, place, start, end)
    return store.info_of(key, answer), answer.body
