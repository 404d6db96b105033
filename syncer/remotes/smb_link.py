"""One connection to one SMB share, shared by the threads of a remote.

smbprotocol packs, signs and encrypts; this module decides who may send when, how long an answer is
waited for, and what happens when a caller gives up. All of it blocks and is for worker threads,
save `Call.abort` and `Link.sever`, which are for anybody.

A call that is given up leaves its requests behind; their answers are taken off the connection
later, and files that they opened are closed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smbprotocol.connection import Connection, Request
from smbprotocol.exceptions import (
    SMBAuthenticationError,
    SMBConnectionClosed,
    SMBException,
    SMBResponseException,
)
from smbprotocol.header import Commands, NtStatus, Smb2Flags
from smbprotocol.open import SMB2CloseRequest
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from syncer.remotes import smb_wire
from syncer.remotes.errors import Busy, Denied, Garbled, RemoteError, Unreachable, Unsupported

RELATED = b"\xff" * 16  # MS-SMB2 3.2.4.1.4: the file that the first request of a chain opens

_CREDIT_BYTES = 65_536  # MS-SMB2 3.1.5.2: of payload that a credit pays for
_CREDITS = 512  # to be had at a time: 32 MiB under way
_SMALL_CREDITS = 1

# The library reports each lost connection with a traceback; we report it to the caller.
logging.getLogger("smbprotocol").setLevel(logging.CRITICAL)
logging.getLogger("spnego").setLevel(logging.CRITICAL)


class SmbStatus(Exception):
    """The server refused a request; `status` is the NTSTATUS. For this package only."""

    def __init__(self, status: int) -> None:
        super().__init__(f"NTSTATUS 0x{status:08x}")
        self.status = status


class Abandoned(Exception):
    """The caller has gone; nobody sees this."""


@dataclass(frozen=True, slots=True)
class Share:
    """Where to connect to, and as whom."""

    host: str
    port: int
    name: str
    user: str | None
    password: str | None
    encrypt: bool
    protocol: str  # of authentication: negotiate, ntlm, kerberos

    def __repr__(self) -> str:
        return f"Share({self.host}:{self.port}/{self.name})"


class Call:
    """One operation of a caller, which may give it up at any time."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self.aborted = False

    def abort(self) -> None:
        """Make the thread that works for this call end."""
        self.aborted = True
        for request in list(self._requests):
            request.response_event.set()

    def watch(self, requests: Sequence[Request]) -> None:
        """These are waited for from now on."""
        self._requests = list(requests)


class _Connection(Connection):  # type: ignore[misc]  # untyped library
    """The library's connection, with limits where it has none."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        super().__init__(uuid.uuid4(), host, port, require_signing=True)
        self._timeout_s = timeout_s

    def receive(
        self,
        request: Request,
        wait: bool = True,
        timeout: float | None = None,
        resolve_symlinks: bool = True,
    ) -> Any:
        """Wait for no longer than the limit, also while a session is set up."""
        limit = self._timeout_s if timeout is None else timeout
        return super().receive(request, wait, limit, resolve_symlinks)

    def verify_signature(self, header: Any, session_id: int, force: bool = False) -> None:
        """Refuse an answer without a signature too: the library believes those."""
        session = self.session_table.get(session_id)
        if (
            session is not None
            and session.signing_required
            and not header["flags"].has_flag(Smb2Flags.SMB2_FLAGS_SIGNED)
            and header["command"].get_value() != Commands.SMB2_SESSION_SETUP
            and header["status"].get_value() != NtStatus.STATUS_PENDING
            and header["message_id"].get_value() != 0xFFFFFFFFFFFFFFFF
        ):
            raise SMBException("an answer has no signature")
        super().verify_signature(header, session_id, force)

    def bound_sending(self, limit_s: float) -> None:
        """Make a send to a server that takes nothing fail after a while."""
        seconds = struct.pack("ll", int(limit_s), int(limit_s % 1 * 1_000_000))
        self.transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)  # noqa: SLF001
        self.transport._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # noqa: SLF001

    def sever(self) -> None:
        """Cut the connection at once; those who wait for it wake up."""
        sock = getattr(self.transport, "_sock", None)
        if sock is not None:
            # Not the library's `close`: it would wait for a sender that is stuck.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Link:
    """A session on a share. Every method raises RemoteError or SmbStatus."""

    def __init__(
        self, share: Share, where: str, *, connect_timeout_s: float, timeout_s: float
    ) -> None:
        """Connect and log in; `where` is the URL for messages."""
        self._where = where
        self._timeout_s = timeout_s
        self._room = threading.Condition()  # guards the two below, and sending
        self._under_way = 0  # requests whose answer has not been taken
        self._left: list[tuple[Request, bool]] = []  # given up; True: it opens a file
        self._unclosed: deque[bytes] = deque()  # handles that nobody uses any more
        self._severed = False
        self._connection = _Connection(share.host, share.port, timeout_s)
        with self._translated():
            try:
                self._connection.connect(timeout=connect_timeout_s)
                self._connection.bound_sending(timeout_s)
                self._session = Session(
                    self._connection,
                    share.user,
                    share.password,
                    require_encryption=share.encrypt,
                    auth_protocol=share.protocol,
                )
                self._session.connect()
                tree = TreeConnect(self._session, f"\\\\{share.host}\\{share.name}")
                tree.connect()
                self.tree = tree
                # The library asks for as many credits as it uses, so the window never grows.
                self._connection.echo(
                    sid=self._session.session_id, timeout=timeout_s, credit_request=_CREDITS
                )
            except BaseException:
                self.close()
                raise
        self.read_bytes_max: int = self._connection.max_read_size
        self.write_bytes_max: int = self._connection.max_write_size
        self.transact_bytes_max: int = self._connection.max_transact_size

    @property
    def alive(self) -> bool:
        """False once it cannot be used any more."""
        return not self._severed and bool(self._connection.transport.connected)

    def sever(self) -> None:
        """Cut it; does not block. `close` frees the rest."""
        self._severed = True
        self._connection.sever()

    def close(self) -> None:
        """Cut it and wait for the thread that receives; some seconds at most."""
        self.sever()
        if self._connection.transport is not None:
            with contextlib.suppress(Exception):
                self._connection.disconnect(False)

    def exchange(
        self, call: Call, *messages: Any, opens: bool = False, keep: bool = False
    ) -> list[Any]:
        """The answers to one chain of requests, in one round trip.

        `opens`: the first opens a file that the chain does not close. Raises SmbStatus for the
        first request that fails, after all were answered; with `keep` it stands in its place.
        """
        return self.collect(call, self.send(call, *messages), opens=opens, keep=keep)

    def send(self, call: Call, *messages: Any) -> list[Request]:
        """Send one chain of requests; `collect` must follow."""
        charge = sum(self._credits(message) for message in messages)
        deadline = time.monotonic() + self._timeout_s
        with self._translated(), self._room:
            while True:
                if call.aborted:
                    raise Abandoned
                if self._severed:
                    raise Unreachable(f"{self._where}: the connection was cut")
                self._sweep()
                window = self._connection.sequence_window
                if window["high"] - window["low"] >= charge:
                    break
                if not self._under_way and not self._left:
                    raise Busy(f"{self._where}: the server grants no room for {charge} credits")
                if time.monotonic() > deadline:
                    raise TimeoutError("no credits")
                self._room.wait(min(0.1, self._timeout_s))  # also for what nobody announces
            requests: list[Request] = self._connection.send_compound(
                list(messages), self._session.session_id, self.tree.tree_connect_id, related=True
            )
            self._under_way += len(requests)
            return requests

    def collect(
        self, call: Call, requests: Sequence[Request], *, opens: bool = False, keep: bool = False
    ) -> list[Any]:
        """The answers to what `send` sent; as `exchange`."""
        call.watch(requests)
        answers: list[Any] = []
        try:
            with self._translated():
                for request in requests:
                    try:
                        answers.append(self._answer(call, request))
                    except SMBResponseException as error:
                        answers.append(SmbStatus(error.status))
        finally:
            self.drop(requests[len(answers) :], opens=opens and not answers)
            with self._room:
                self._under_way -= len(answers)
                self._room.notify_all()
        if not keep:
            for answer in answers:
                if isinstance(answer, SmbStatus):
                    raise answer
        return answers

    def drop(self, requests: Sequence[Request], *, opens: bool = False) -> None:
        """Give up the answers to what `send` sent; `opens`: the first opens a file."""
        with self._room:
            self._under_way -= len(requests)
            self._left += [
                (request, opens and position == 0) for position, request in enumerate(requests)
            ]
            self._room.notify_all()

    def _answer(self, call: Call, request: Request) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while True:
            if not request.response_event.wait(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("no answer")
            if call.aborted:
                raise Abandoned
            with request.response_event_lock:
                response = request.response
                pending = (
                    response is not None
                    and response["status"].get_value() == NtStatus.STATUS_PENDING
                )
                if pending:
                    request.response_event.clear()
            if pending:
                if call.aborted:  # told between the wait and the clear
                    raise Abandoned
                continue
            if response is None:
                raise SMBConnectionClosed("the connection was cut")
            return self._connection.receive(request, timeout=1, resolve_symlinks=False)

    def leave(self, handle: bytes) -> None:
        """Close an open file with the next request; does not block."""
        self._unclosed.append(handle)

    def _sweep(self) -> None:
        """Take the answers to what was given up off the connection."""
        waiting = []
        for request, opens in self._left:
            response = request.response
            if response is None or response["status"].get_value() == NtStatus.STATUS_PENDING:
                waiting.append((request, opens))
                continue
            self._connection.outstanding_requests.pop(request.message["message_id"].get_value(), 0)
            if opens and response["status"].get_value() == NtStatus.STATUS_SUCCESS:
                handle, _ = smb_wire.parse_created(response["data"].get_value())
                self._unclosed.append(handle)
        while self._unclosed:
            close = SMB2CloseRequest()
            close["file_id"] = self._unclosed.popleft()
            sent = self._connection.send(close, self._session.session_id, self.tree.tree_connect_id)
            waiting.append((sent, False))
        self._left = waiting

    def _credits(self, message: Any) -> int:
        charge: int = self._connection._calculate_credit_charge(message)  # noqa: SLF001
        return max(charge, _SMALL_CREDITS)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the library as ours; what breaks the connection cuts it."""
        try:
            yield
        except (RemoteError, SmbStatus, Abandoned):
            raise
        except SMBResponseException as error:
            raise SmbStatus(error.status) from None
        except SMBAuthenticationError as error:
            self.sever()
            raise Denied(f"{self._where}: cannot log in: {error}") from None
        except TimeoutError:
            self.sever()
            raise Unreachable(
                f"{self._where}: no answer within {self._timeout_s:g} s; is the server overloaded?"
            ) from None
        except (SMBConnectionClosed, OSError):
            self.sever()
            raise Unreachable(f"{self._where}: the connection was cut") from None
        except SMBException as error:
            self.sever()
            raise _judged(self._where, str(error)) from None
        except Exception as error:  # noqa: BLE001
            # Whatever parsing foreign bytes may raise, and how the library says that no
            # connection came about.
            self.sever()
            text = str(error)
            if isinstance(error, ValueError) and text.startswith("Failed to connect"):
                raise Unreachable(f"{self._where}: {text}; is the server running?") from None
            raise Garbled(f"{self._where}: the server's answer makes no sense: {error!r}") from None


def _judged(where: str, text: str) -> RemoteError:
    """The library's errors that have no class of their own."""
    if "timeout" in text:
        return Unreachable(f"{where}: no answer: {text}")
    if "encryption is required" in text:
        return Unsupported(f"{where}: the server cannot encrypt: leave out the option encrypt")
    if "guest" in text:
        return Denied(f"{where}: the server took us for a guest, whose answers nobody signs")
    if "credits" in text:
        return Busy(f"{where}: {text}")
    return Garbled(f"{where}: {text}")
