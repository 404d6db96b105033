"""HTTP for one remote: kept connections, redirects, deadlines, and what a status means.

The standard library's client in threads: nothing but the bytes of a key goes into a path, and all
headers of an answer can be seen. Measured, 1 GiB from nginx over loopback in ranges of 8 MiB
(1 MiB), two at a time, CPU seconds: this 0.68 (0.76), obstore 0.61 to 0.78 (0.86), httpx 2.65
(2.50).

All of it blocks, save `Call.abort`. Every wait has a limit; an answer that trickles can take
longer in all, and ends when its call is given up.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import (
    Busy,
    Changed,
    Denied,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl

REDIRECTS_MAX = 5
_IDLE_MAX_S = 30.0  # servers close connections after 60 to 75 s by default
_PIECE_BYTES = 1 << 20
_DISCARD_BYTES_MAX = 64 << 10
_SAFE = "/~!$&'()*+,;=:@-._%"
_LONE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


class Origin(NamedTuple):
    """Whom a connection leads to."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask of whom; `path` is encoded, and holds the query."""

    origin: Origin
    path: str

    def __str__(self) -> str:
        scheme, host, port = self.origin
        host = f"[{host}]" if ":" in host else host
        usual = {"http": 80, "https": 443}[scheme]
        return f"{scheme}://{host}{'' if port == usual else f':{port}'}{self.path}"

    def redirected(self, location: str) -> Target:
        """Where an answer sends us. Raises Garbled, and Denied for what may not be followed."""
        try:
            parts = urlsplit(urljoin(str(self), location))
            port = parts.port
        except ValueError:
            raise Garbled(f"{self}: the server redirects to no URL") from None
        host = parts.hostname
        if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc:
            raise Denied(f"{self}: the server redirects to what is not followed: {parts.scheme}")
        if (self.origin.scheme, parts.scheme) == ("https", "http"):
            raise Denied(f"{self}: the server redirects to a connection without encryption")
        path = encode_path(parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not path.isascii() or any(ord(char) <= 32 or ord(char) == 127 for char in path):
            raise Garbled(f"{self}: the server redirects to no URL")
        usual = {"http": 80, "https": 443}[parts.scheme]
        return Target(Origin(parts.scheme, host, port or usual), path)


def encode_path(path: str) -> str:
    """A path that is encoded already, with what may not stand in a request encoded too."""
    return quote(_LONE_PERCENT.sub("%25", path), safe=_SAFE, errors="surrogateescape")


class Call:
    """One operation of a caller, which may give it up at any time."""

    def __init__(self) -> None:
        self.aborted = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # held for no longer than a system call

    def abort(self) -> None:
        """Make the thread that works for this call end; does not block."""
        with self._lock:
            self.aborted = True
            self._shut()

    def hold(self, held: socket.socket | None) -> None:
        """This is what the thread waits for from now on; None: another call may have it now."""
        with self._lock:
            self._socket = held
            if self.aborted:
                self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own: that one would take the session from a thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Response:
    """An answer whose body has not been read. `close` it, whatever happens."""

    def __init__(
        self,
        client: Client,
        call: Call,
        target: Target,
        connection: http.client.HTTPConnection,
        held: socket.socket,
        response: http.client.HTTPResponse,
    ) -> None:
        self.target = target  # after redirects
        self.status = response.status
        self.slashed: Target | None = None  # where it sends us: the same path with a slash
        self._client = client
        self._call = call
        self._connection = connection
        self._socket = held  # the connection forgets it where it is not to be used again
        self._response = response
        self._closed = False

    def header(self, name: str) -> str:
        """A header's value; "" where it is missing."""
        return self._response.headers.get(name, "") or ""

    @property
    def length(self) -> int | None:
        """Of the body, in bytes, if the server says it."""
        text = self.header("content-length").strip()
        return int(text) if re.fullmatch("[0-9]{1,18}", text) else None

    def read(self, call: Call, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the body ends. Raises Unreachable, Garbled."""
        self._call = call
        deadline = time.monotonic() + self._client.timeout_s
        parts: list[bytes] = []
        with self._client.translated(self.target):
            call.hold(self._socket)
            while length and not self._response.isclosed():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                part = self._response.read(min(length, _PIECE_BYTES))
                if not part:
                    break
                parts.append(part)
                length -= len(part)
        return b"".join(parts)

    @property
    def left(self) -> bool:
        """Whether the server has said that there is more."""
        return bool(self._response.length)

    def discard(self) -> None:
        """Read a short body that nobody wants, to keep the connection."""
        if self._response.length is not None and self._response.length <= _DISCARD_BYTES_MAX:
            with self._client.translated(self.target):
                self._response.read()

    def close(self) -> None:
        """Give the connection back if it can be used again."""
        if self._response.length == 0 and not self._response.isclosed():
            self._response.read()  # nothing: it notices that it is at its end
        # From here on the connection may be another call's.
        self._call.hold(None)
        if self._closed:
            return
        self._closed = True
        if self._response.isclosed() and not self._response.will_close:
            self._client.keep(self.target.origin, self._connection)
        else:
            self._response.close()
            self._connection.close()


class Client:
    """Connections of one remote."""

    def __init__(
        self,
        url: RemoteUrl,
        credentials: Credentials,
        *,
        connect_timeout_s: float,
        timeout_s: float,
    ) -> None:
        """`url` decides which login is sent, and to whom alone."""
        self._url = url
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self.timeout_s = timeout_s
        self._lock = threading.Lock()  # guards the two below
        self._idle: dict[Origin, list[tuple[float, http.client.HTTPConnection]]] = {}
        self._closed = False
        self._context: ssl.SSLContext | None = None

    @property
    def home(self) -> Origin:
        """The remote's own host."""
        port = self._url.port_or_default
        assert port is not None
        return Origin(self._url.scheme, self._url.host, port)

    def close(self) -> None:
        """Close what is idle now, and keep nothing any more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for kept in idle.values():
            for _, connection in kept:
                connection.close()

    def keep(self, origin: Origin, connection: http.client.HTTPConnection) -> None:
        """A connection that can be used again."""
        with self._lock:
            if not self._closed:
                self._idle.setdefault(origin, []).append((time.monotonic(), connection))
                return
        connection.close()

    def _take(self, origin: Origin) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                kept = self._idle.get(origin)
                if not kept:
                    return None
                since, connection = kept.pop()
            sock: socket.socket | None = connection.sock
            if (
                sock is not None
                and time.monotonic() - since < _IDLE_MAX_S
                and not select.select([sock], [], [], 0)[0]  # neither closed nor out of step
            ):
                return connection
            connection.close()

    def _new(self, origin: Origin) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if origin.scheme == "https":
            if self._context is None:
                self._context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                origin.host, origin.port, timeout=self._connect_timeout_s, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(
                origin.host, origin.port, timeout=self._connect_timeout_s
            )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(
        self, call: Call, method: str, target: Target, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The answer to one request, redirects followed, whatever its status.

        A redirect to the same path with a slash is an answer: it says that there is a directory.
        """
        asked = target
        for _ in range(REDIRECTS_MAX + 1):
            response = self._ask(call, method, target, headers or {})
            location = response.header("location")
            if response.status not in {301, 302, 303, 307, 308} or not location:
                return response
            try:
                next_target = target.redirected(location)
                if _is_slashed(target, next_target):
                    response.slashed = next_target
                    return response
            except BaseException:
                response.close()
                raise
            response.close()
            target = next_target
        raise Garbled(f"{asked}: more than {REDIRECTS_MAX} redirects")

    def _ask(self, call: Call, method: str, target: Target, headers: Mapping[str, str]) -> Response:
        sent = {"Accept-Encoding": "identity", "User-Agent": "orbit", **headers}
        if target.origin == self.home:
            sent |= self._authorization()
        with self.translated(target):
            connection = self._take(target.origin)
            if connection is not None:
                try:
                    return self._send(call, connection, method, target, sent)
                except (ConnectionError, http.client.RemoteDisconnected):
                    connection.close()  # closed by the server just now: try a new one
                    if call.aborted:
                        raise
                except BaseException:
                    connection.close()
                    raise
            connection = self._new(target.origin)
            try:
                return self._send(call, connection, method, target, sent)
            except BaseException:
                connection.close()
                raise

    def _send(
        self,
        call: Call,
        connection: http.client.HTTPConnection,
        method: str,
        target: Target,
        headers: Mapping[str, str],
    ) -> Response:
        held = connection.sock
        call.hold(held)
        held.settimeout(self.timeout_s)
        connection.putrequest(method, target.path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = Response(self, call, target, connection, held, connection.getresponse())
        if response.status >= 300:
            response.discard()
        return response

    def _authorization(self) -> dict[str, str]:
        login = self._credentials.find(self._url)
        if token := login.get("token"):
            value = f"Bearer {token}"
        elif (password := login.get("password")) is not None:
            user = self._url.user or login.get("user", "")
            value = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        else:
            return {}
        if any(ord(char) < 32 or ord(char) > 126 for char in value):
            raise Denied(f"{self._url}: the token in the credentials file has odd characters")
        return {"Authorization": value}

    @contextlib.contextmanager
    def translated(self, target: Target) -> Iterator[None]:
        """Errors of sockets, TLS and the library as ours."""
        try:
            yield
        except TimeoutError:
            raise Unreachable(f"{target}: no answer in time; is the server overloaded?") from None
        except ssl.SSLCertVerificationError as error:
            raise Denied(
                f"{target}: the certificate is not trusted: {error.verify_message}; "
                "SSL_CERT_FILE names further authorities"
            ) from None
        except ssl.SSLError as error:
            raise Garbled(f"{target}: TLS failed: {error.reason or error}") from None
        except http.client.RemoteDisconnected:
            raise Unreachable(f"{target}: the connection was cut") from None
        except http.client.HTTPException as error:
            raise Garbled(f"{target}: the answer is no HTTP: {type(error).__name__}") from None
        except socket.gaierror as error:
            raise Unreachable(f"{target}: the host has no address: {error.strerror}") from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Unreachable(f"{target}: {why}; is the server running?") from None
        except ValueError as error:
            raise Garbled(f"{target}: the answer is no HTTP: {error}") from None


def _is_slashed(target: Target, other: Target) -> bool:
    """Whether `other` is `target` with a slash at the end of the path."""
    return (
        target.origin == other.origin
        and other.path.partition("?")[0] == target.path.partition("?")[0] + "/"
    )


def refused(response: Response) -> RemoteError:
    """The error that a status other than success is."""
    status, where = response.status, str(response.target)
    if status == 401:
        return Denied(f"{where}: 401, the server wants a login: {CREDENTIALS_CURE}")
    if status in {403, 407, 451}:
        return Denied(f"{where}: {status}, the server does not allow it")
    if status in {404, 410}:
        return Missing(f"{where}: {status}, there is no such file or directory")
    if status in {412, 416}:
        return Changed(f"{where}: {status}, another version than the one asked for")
    if status in {429, 503}:
        after_s = _retry_after_s(response.header("retry-after"))
        return Busy(f"{where}: {status}, the server asks for patience", after_s)
    if status in {405, 501}:
        return Unsupported(f"{where}: {status}, the server does not answer such requests")
    if status in {408, 500, 502, 504} or status > 504:
        return Unreachable(f"{where}: {status}, the server is in trouble")
    return Garbled(f"{where}: the server answered {status}")


def _retry_after_s(text: str) -> float | None:
    if re.fullmatch("[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
