"""Signed HTTP requests to an object store, and what its refusals mean. For the bridge's loop.

Listings, metadata, writes, copies and deletions go this way; bytes are read by obstore, which is
several times cheaper a byte. The other calls are not obstore's because it lists without pages (a
directory with its subdirectories comes whole or not at all), fails a whole listing for one key
with `//` or a control character, shows `a/` as `a`, and leaves interrupted uploads behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import hashlib
import re
import ssl
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

import httpx

from syncer.remotes.errors import (
    Busy,
    Changed,
    Denied,
    Exists,
    Full,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.machinery import Machinery

ANSWER_BYTES_MAX = 32 << 20  # 1,000 keys of 1,024 bytes, escaped, with metadata, take 4 MiB
# What may be added to the timeout of a request: for a long body, for work at the server.
SLOWEST_BYTES_PER_S = 256 << 10
SLOWEST_COPY_BYTES_PER_S = 16 << 20
CLOSE_S = 2.0

_SKEW = "the clocks differ: set this machine's clock (NTP), 15 minutes apart is too much"
_EXPIRED = "they have expired: renew them"
# What the codes of S3, Azure and GCS say beyond their status.
_DENIALS = {
    "RequestTimeTooSkewed": _SKEW,
    "RequestExpired": _SKEW,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": "the session token is not valid: renew them",
    "InvalidAccessKeyId": "the server does not know this access key: check it, and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: check it",
    "AccountProblem": "the provider says that there is a problem with the account",
    "AllAccessDisabled": "the provider has disabled all access to it",
    "AuthenticationFailed": "the account key or token is wrong or has expired: check it",
    "AuthorizationFailure": "the account key is wrong, or this address is not allowed: check it",
    "InvalidAuthenticationInfo": "the account key or token is malformed: check it",
    "AuthorizationPermissionMismatch": "they lack the permission: check roles or SAS permissions",
    "AuthorizationSourceIPMismatch": "the SAS is for another address",
    "InsufficientAccountPermissions": "they lack the permission: check the SAS",
    "ResourceNotFound": "the container is not public, or is not there",
    "PublicAccessNotPermitted": "the account allows no anonymous access: give credentials",
    "NoAuthenticationInformation": "the server wants credentials: give some",
}
_NO_CONTAINER = {"NoSuchBucket", "ContainerNotFound"}
_BUSY = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "ConditionalRequestConflict",
    "OperationAborted",
    "ServerBusy",
    "OperationTimedOut",
    "ContainerBeingDeleted",
    "LeaseIdMissing",
    "rateLimitExceeded",
    "backendError",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "AccountQuotaExceeded", "InsufficientCapacity"}
_ARCHIVED = {"InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"}
_CODE = re.compile(r"<Code>\s*([\w.]{1,80})\s*</Code>|\"reason\"\s*:\s*\"(\w{1,80})\"")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
_STALE_DATE = re.compile(r"date header|request date|too old", re.IGNORECASE)


@dataclass(slots=True)
class Request:
    """One request before it is signed: a signer adds headers or query parameters."""

    method: str
    path: str  # percent-encoded, from the root of the endpoint's host
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    body_sha256: str = ""  # hexadecimal, where the signer asks for it

    @property
    def target(self) -> str:
        """Path and query as they are sent."""
        if not self.query:
            return self.path
        asked = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~', errors='surrogateescape')}"
            for name, value in sorted(self.query.items())
        )
        return f"{self.path}?{asked}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Signer(Protocol):
    """Proves who asks."""

    wants_sha256: bool

    @property
    def source(self) -> str:
        """Where the credentials are from, for messages; never a secret."""

    async def sign(self, request: Request, host: str) -> None:
        """Add what proves it. Raises Denied where there are no credentials."""

    def forget(self) -> None:
        """The server has refused: look for newer credentials next time."""


def quoted(key: bytes, safe: str = "/-_.~") -> str:
    """A key in the path of a URL."""
    return quote(key, safe=safe)


def seconds_ns(time: dt.datetime) -> int:
    """Nanoseconds since 1970, in whole seconds: HEAD has no more, and versions must compare."""
    return int(time.timestamp()) * 10**9


def http_date_ns(text: str) -> int:
    """Nanoseconds of an HTTP date; 0 for what is none."""
    try:
        return seconds_ns(email.utils.parsedate_to_datetime(text))
    except ValueError:
        return 0


def iso_date_ns(text: str) -> int:
    """Nanoseconds of an ISO date, in whole seconds; 0 for what is none."""
    try:
        return seconds_ns(dt.datetime.fromisoformat(text))
    except ValueError:
        return 0


def strong_etag(text: str) -> str:
    """An etag in quotes, as If-Match wants it; listings of some servers leave them away."""
    return text if text.startswith("W/") else f'"{text.strip(chr(34))}"' if text else ""


def parse_xml(body: bytes, place: str) -> ET.Element:
    """The root of an answer, without namespaces. Raises Garbled."""
    # A document type is where entities are declared; no answer has one.
    if b"<!DOCTYPE" in body:
        raise Garbled(f"{place}: the server's answer is no listing")
    try:
        root = ET.fromstring(body)  # noqa: S314 - see above
    except ET.ParseError:
        raise Garbled(f"{place}: the server's answer is not XML") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP status that is no success, with what the server said about it."""

    status: int
    code: str = ""  # the provider's name for it
    region: str = ""  # where the bucket is, when it is elsewhere
    retry_after_s: float | None = None
    stale_date: bool = False

    @classmethod
    def parse(cls, status: int, headers: Mapping[str, str], text: str) -> Refusal:
        """From an answer; `text` is its body."""
        found = _CODE.search(text)
        code = (found[1] or found[2]) if found else headers.get("x-ms-error-code", "")
        region = _REGION.search(text)
        after = headers.get("retry-after", "")
        return cls(
            status,
            code,
            headers.get("x-amz-bucket-region", "") or (region[1] if region else ""),
            float(after) if after.isdecimal() and len(after) < 7 else None,
            _STALE_DATE.search(text) is not None,
        )


def refused(refusal: Refusal, place: str, source: str) -> RemoteError:
    """The error that a refusal means. `place`: URL or key; `source`: whose credentials."""
    status, code = refusal.status, refusal.code
    said = f"{status} {code}".strip()
    if status in {301, 307, 308} or code in {"AuthorizationHeaderMalformed", "PermanentRedirect"}:
        where = f"in region {refusal.region}" if refusal.region else "elsewhere"
        cure = f"option region={refusal.region}" if refusal.region else "check region and endpoint"
        return Denied(f"{place}: the bucket is {where} ({said}): {cure}")
    if code in _FULL or status == 507:
        return Full(f"{place}: the server has no room left ({said})")
    if code in _ARCHIVED:
        return Unsupported(f"{place}: archived; restore it at the provider first ({said})")
    if status in {429, 500, 503} or code in _BUSY:
        return Busy(f"{place}: the server is busy ({said})", refusal.retry_after_s)
    if status in {408, 502, 504} or code == "RequestTimeout":
        return Unreachable(f"{place}: the server did not answer in time ({said})")
    if status in {401, 403} or code in _DENIALS:
        why = _SKEW if refusal.stale_date else _DENIALS.get(code, "they lack the permission")
        return Denied(f"{place}: refused ({said}) with {source}: {why}")
    if code in _NO_CONTAINER:
        return Missing(f"{place}: there is no such bucket or container ({said}): check its name")
    if status == 404:
        return Missing(f"{place}: there is no such object")
    if status == 409 and "Exists" in code:
        return Exists(f"{place}: is there already")
    if status in {412, 416}:
        return Changed(f"{place}: is not the version asked for any more")
    return Unsupported(f"{place}: the server refuses this request ({said})")


_CLOSE_S = 1.0  # for a connection that is given up


class ObjectHttp:
    """A pool of connections to one endpoint."""

    def __init__(self, endpoint: str, signer: Signer, machinery: Machinery, url: str) -> None:
        """`endpoint`: scheme and host; `url`: the remote, for messages."""
        self.endpoint = endpoint.rstrip("/")
        self.signer = signer
        self._url = url
        self._machinery = machinery
        # One connection each. A pool of many looks at every one of them for every request: with 16
        # at a time half of what a small request costs.
        self._clients: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []  # the one that was used last is the last
        self._context: ssl.SSLContext | None = None
        # Of both pools together, so that reads and writes do not add up.
        self._places = asyncio.Semaphore(machinery.connections_max)

    @property
    def host(self) -> str:
        """Host and port as the Host header has them."""
        return self.endpoint.partition("://")[2]

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """One that nobody else uses meanwhile."""
        client = self._idle.pop() if self._idle else self._new_client()
        try:
            yield client
        except BaseException:
            # What was cut off or given up may still hold the one connection that it may have.
            self._clients.remove(client)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_S):
                    await client.aclose()
            raise
        self._idle.append(client)

    def _new_client(self) -> httpx.AsyncClient:
        if self._context is None:
            self._context = httpx.create_ssl_context()
        client = httpx.AsyncClient(
            verify=self._context,
            limits=httpx.Limits(max_connections=1),
            follow_redirects=False,
        )
        self._clients.append(client)
        return client

    @contextlib.asynccontextmanager
    async def turn(
        self, place: str, body_bytes: int = 0, work_bytes: int = 0
    ) -> AsyncIterator[float]:
        """One request at a time of as many as there may be; ends it when its time is over.

        Gives that time in seconds.
        """
        async with self._places:
            limit_s = (
                self._machinery.read_timeout_s
                + body_bytes / SLOWEST_BYTES_PER_S
                + work_bytes / SLOWEST_COPY_BYTES_PER_S
            )
            try:
                async with asyncio.timeout(limit_s):
                    yield limit_s
            except TimeoutError:
                raise Unreachable(f"{place}: no answer within {limit_s:.0f} s") from None

    async def send(
        self,
        request: Request,
        place: str,
        *,
        fine: tuple[int, ...] = (200,),
        body_max: int = ANSWER_BYTES_MAX,
        work_bytes: int = 0,
    ) -> Answer:
        """Sign, send, and read the answer. Raises what a status other than `fine` means.

        `work_bytes`: what the server must move before it can answer.
        """
        if self.signer.wants_sha256:
            request.body_sha256 = await _sha256(request.body)
        request.headers.setdefault("accept-encoding", "identity")
        await self.signer.sign(request, self.host)
        async with self.turn(place, len(request.body), work_bytes) as limit_s:
            answer = await self._exchange(request, place, body_max, limit_s)
        if answer.status not in fine:
            raise self.refused(answer, place)
        return answer

    def refused(self, answer: Answer, place: str) -> RemoteError:
        """The error of an answer that is none of those hoped for."""
        text = answer.body[: 1 << 16].decode("utf-8", "replace")
        error = refused(
            Refusal.parse(answer.status, answer.headers, text), place, self.signer.source
        )
        if isinstance(error, Denied):
            self.signer.forget()
        return error

    async def _exchange(
        self, request: Request, place: str, body_max: int, limit_s: float
    ) -> Answer:
        try:
            async with (
                self._client() as client,
                client.stream(
                    request.method,
                    self.endpoint + request.target,
                    headers=request.headers,
                    content=request.body,
                    timeout=httpx.Timeout(limit_s, connect=self._machinery.connect_timeout_s),
                ) as response,
            ):
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > body_max:
                        raise Garbled(f"{place}: the answer is longer than {body_max} bytes")
        except httpx.ConnectTimeout:
            raise Unreachable(f"{place}: {self.endpoint} does not answer") from None
        except httpx.TimeoutException:
            raise Unreachable(f"{place}: {self.endpoint} stopped answering") from None
        except httpx.RemoteProtocolError as error:
            # Also what a connection is called that ends before its answer.
            kind = (
                Unreachable
                if "disconnected" in str(error) or "incomplete" in str(error)
                else Garbled
            )
            raise kind(f"{place}: {self.endpoint}: {error}") from None
        except httpx.TransportError as error:
            raise Unreachable(f"{place}: {self.endpoint}: {_why(error)}") from None
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise Unsupported(f"{place}: {type(error).__name__}") from None
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, bytes(body))

    async def close(self) -> None:
        """Give up the connections, within seconds."""
        clients, self._clients, self._idle = self._clients, [], []
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(CLOSE_S):
                for client in clients:
                    await client.aclose()


def _why(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


async def _sha256(body: bytes) -> str:
    if len(body) <= 1 << 16:
        return hashlib.sha256(body).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()
