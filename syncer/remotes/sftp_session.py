"""One SFTP session over SSH: requests in flight, answers by their ids. For the bridge's loop.

Requests are sent at once and in order, whether or not the answers to those before have come; all
methods that send return futures, so that a caller can send several and wait once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh

from syncer.remotes.errors import Garbled, RemoteError, Unreachable, Unsupported
from syncer.remotes.sftp_handles import HandleGuess
from syncer.remotes.sftp_wire import (
    LIMITS,
    PACKET_BYTES_MAX,
    VERSION_3,
    Attrs,
    Code,
    Fields,
    Packet,
    Status,
    string,
    take_status,
    u32,
    u64,
)

# Every server must take these lengths. OpenSSH says what it takes instead: 255 KiB.
_LENGTH_SAFE = 32 << 10
_LENGTH_MAX = 255 << 10

# Bytes asked for at a time: 40 ms of 400 MB/s.
_IN_FLIGHT_MAX = 16 << 20

_PATIENCE_S = 0.05  # of what need not be sent at once

Landed = Callable[[int, Fields], None]  # the answer's type and what follows its id


@dataclass(frozen=True, slots=True)
class Opening:
    """A handle on its way."""

    guess: bytes | None  # what it will probably be
    handle: asyncio.Future[bytes]  # whoever cancels it need not close what comes


class SftpSession(asyncssh.SSHClientSession[bytes]):
    """A running session; `start` it first."""

    def __init__(self, where: str, *, openssh: bool) -> None:
        """`where`: for messages."""
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._received = bytearray()
        self._unsent: list[bytes] = []
        self._flushing = False
        self._readings: deque[Reading] = deque()  # with requests that are still to be sent
        self._in_flight = 0  # bytes asked for by READ
        self._waiting: dict[int, tuple[Landed, Callable[[RemoteError], None]]] = {}
        self._next_id = 0
        self._greeting: asyncio.Future[dict[bytes, bytes]] = self._loop.create_future()
        self._guess = HandleGuess(numbered=openssh)
        self.openssh = openssh  # which has the arguments of SYMLINK the wrong way round
        self.extensions: dict[bytes, bytes] = {}
        self.read_length = _LENGTH_SAFE  # of one request
        self.write_length = _LENGTH_SAFE
        self.lost: RemoteError | None = None  # why it is of no use any more
        self.heard_at = self._loop.time()  # seconds of the loop's clock

    # What asyncssh calls

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is there."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Bytes of answers."""
        if datatype is not None or self.lost is not None:  # what the server says on stderr
            return
        self.heard_at = self._loop.time()
        self._received += data
        try:
            for packet in self._packets():
                self._take(packet)
        except Garbled as error:
            self.drop(error)

    def _packets(self) -> list[bytes]:
        """Whole packets, taken from what has been received."""
        packets, at = [], 0
        with memoryview(self._received) as received:
            while len(received) - at >= 4:
                length = int.from_bytes(received[at : at + 4], "big")
                if not 5 <= length <= PACKET_BYTES_MAX:
                    raise Garbled(f"{self._where}: this is not SFTP")
                if len(received) - at - 4 < length:
                    break
                packets.append(bytes(received[at + 4 : at + 4 + length]))
                at += 4 + length
        del self._received[:at]
        return packets

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, in order or not."""
        why = f": {exc}" if exc is not None else ""
        self.drop(Unreachable(f"{self._where}: the connection broke{why}"))

    def drop(self, error: RemoteError) -> None:
        """End it: everybody who waits gets `error`."""
        if self.lost is not None:
            return
        self.lost = error
        if not self._greeting.done():
            self._greeting.set_exception(error)
            self._greeting.exception()
        waiting, self._waiting = self._waiting, {}
        for _, fail in waiting.values():
            fail(error)
        if self._channel is not None:
            self._channel.abort()

    def _take(self, packet: bytes) -> None:
        if self.lost is not None:
            return
        kind, fields = packet[0], Fields(packet, 1)
        if kind == Packet.VERSION:
            self._greeted(fields)
            return
        found = self._waiting.pop(fields.u32(), None)
        if found is None:
            raise Garbled(f"{self._where}: an answer to nothing")
        found[0](kind, fields)

    def _greeted(self, fields: Fields) -> None:
        if fields.u32() < VERSION_3:
            self.drop(Unsupported(f"{self._where}: the server is too old for SFTP 3"))
            return
        extensions = {}
        while fields:
            name = fields.string()
            extensions[name] = fields.string()
        if not self._greeting.done():
            self._greeting.set_result(extensions)

    # Requests

    async def start(self) -> None:
        """Agree on the version."""
        self._write(u32(5) + bytes([Packet.INIT]) + u32(VERSION_3))
        self.extensions = await self._greeting
        if LIMITS in self.extensions:

            def landed(kind: int, fields: Fields) -> None:
                if kind == Packet.EXTENDED_REPLY:
                    fields.u64()
                    lengths = [min(fields.u64(), _LENGTH_MAX) or _LENGTH_SAFE for _ in range(2)]
                    self.read_length, self.write_length = lengths

            self._send(Packet.EXTENDED, string(LIMITS), landed, lambda _: None)

    def _write(self, data: bytes, *, soon: bool = True) -> None:
        """Send with all that is written in this turn of the loop: one system call, not one each.

        `soon` is false for what can wait for the next request.
        """
        if self.lost is not None:
            raise self.lost
        self._unsent.append(data)
        if soon and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif not soon and len(self._unsent) == 1:
            self._loop.call_later(_PATIENCE_S, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        unsent, self._unsent = self._unsent, []
        if not unsent or self.lost is not None or self._channel is None:
            return
        try:
            self._channel.write(b"".join(unsent))
        except OSError as error:  # the server has closed it, and the news is on its way
            self.drop(Unreachable(f"{self._where}: the connection broke: {error}"))

    def _send(
        self,
        kind: Packet,
        body: bytes,
        landed: Landed,
        fail: Callable[[RemoteError], None],
        *,
        soon: bool = True,
    ) -> None:
        number = self._next_id
        self._next_id = (number + 1) & 0xFFFFFFFF
        self._write(u32(len(body) + 5) + bytes([kind]) + u32(number) + body, soon=soon)
        self._waiting[number] = (landed, fail)

    def ask(
        self, kind: Packet, body: bytes, answer: Packet = Packet.STATUS
    ) -> asyncio.Future[bytes]:
        """Send a request: what follows the id of an answer of that type; empty for OK.

        The future raises Status, Unreachable or Garbled.
        """
        future = self.future()

        def landed(kind: int, fields: Fields) -> None:
            if future.done():
                return
            if kind == answer and kind != Packet.STATUS:
                future.set_result(fields.rest())
            elif kind == Packet.STATUS:
                error = take_status(fields)
                if error is None and answer is Packet.STATUS:
                    future.set_result(b"")
                else:
                    future.set_exception(error or self._nonsense(kind))
            else:
                future.set_exception(self._nonsense(kind))

        self._send(kind, body, landed, _failing(future))
        return future

    def future(self) -> asyncio.Future[bytes]:
        """A future whose error need not be looked at."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def _nonsense(self, kind: int) -> Garbled:
        return Garbled(f"{self._where}: an answer of the wrong type ({kind})")

    def open(self, path: bytes, flags: int, attrs: Attrs | None = None) -> Opening:
        """OPEN a file."""
        return self._open(Packet.OPEN, string(path) + u32(flags) + (attrs or Attrs()).encode())

    def open_directory(self, path: bytes) -> Opening:
        """OPENDIR."""
        return self._open(Packet.OPENDIR, string(path))

    def _open(self, kind: Packet, body: bytes) -> Opening:
        future = self.future()

        def landed(kind: int, fields: Fields) -> None:
            if kind == Packet.HANDLE:
                handle = fields.string()
                self._guess.opened(handle)
                if future.done():
                    self.close(handle)
                else:
                    future.set_result(handle)
                return
            self._guess.opened(None)
            if not future.done():
                error = take_status(fields) if kind == Packet.STATUS else None
                future.set_exception(error or self._nonsense(kind))

        self._send(kind, body, landed, _failing(future))
        return Opening(self._guess.opening(), future)

    def close(self, handle: bytes) -> None:
        """CLOSE, with the next request; nobody needs the answer."""
        if self.lost is not None:
            return
        self._send(
            Packet.CLOSE,
            string(handle),
            lambda *_: self._guess.closed(),
            lambda _: None,
            soon=False,
        )
        self._guess.closing(handle)

    def read(self, handle: bytes, offset: int, length: int) -> Reading:
        """READ a range, and the file's attributes after that."""
        reading = Reading(self, handle, offset, length)
        self.queue(reading)
        return reading

    def queue(self, reading: Reading) -> None:
        """Send what `reading` asks for, as far as there may be more in flight.

        The limit is the session's: data that was asked for comes even if nobody wants it any more.
        """
        self._readings.append(reading)
        self._send_reads()

    def _send_reads(self) -> None:
        while self._readings and self._in_flight < _IN_FLIGHT_MAX:
            reading = self._readings.popleft()
            if reading.send_next():
                self._readings.append(reading)  # so that a short one does not wait for long ones

    def send_read(
        self,
        handle: bytes,
        offset: int,
        length: int,
        landed: Landed,
        fail: Callable[[RemoteError], None],
    ) -> None:
        """One READ."""

        def landed_here(kind: int, fields: Fields) -> None:
            self._in_flight -= length
            landed(kind, fields)
            self._send_reads()

        body = string(handle) + u64(offset) + u32(length)
        self._send(Packet.READ, body, landed_here, fail)
        self._in_flight += length

    def stat_open(self, handle: bytes) -> asyncio.Future[bytes]:
        """FSTAT."""
        return self.ask(Packet.FSTAT, string(handle), Packet.ATTRS)


def _failing(future: asyncio.Future[bytes]) -> Callable[[RemoteError], None]:
    def fail(error: RemoteError) -> None:
        if not future.done():
            future.set_exception(error)

    return fail


class Reading:
    """A range of a file that is being read.

    FSTAT leaves behind the last READ: what it says was true after every byte had been read.
    """

    def __init__(self, session: SftpSession, handle: bytes, offset: int, length: int) -> None:
        self._session = session
        self._handle = handle
        self._offset = offset
        self._parts: dict[int, bytes] = {}  # by where they lie in the range
        self._unsent: deque[tuple[int, int]] = deque([(0, length)] if length else [])
        self._gaps: list[tuple[int, int]] = []  # of answers that were short; the file may end there
        self._end = length  # less where the file turned out to end
        self._awaited = 0  # answers to READ
        self._error: Status | Garbled | None = None
        self._given_up = False
        self._attrs: asyncio.Future[bytes] | None = None
        self._read = session.future()

    def send_next(self) -> bool:
        """Send the next request; True if there are more. For the session, when it can."""
        if self._given_up:
            return False
        try:
            if self._unsent:
                self._send_one()
            if not self._unsent and self._attrs is None:
                self._attrs = self._session.stat_open(self._handle)
        except RemoteError as error:
            _failing(self._read)(error)
            return False
        self._check_done()
        return bool(self._unsent)

    def _send_one(self) -> None:
        at, left = self._unsent.popleft()
        length = min(self._session.read_length, left)
        if left > length:
            self._unsent.appendleft((at + length, left - length))

        def landed(kind: int, fields: Fields) -> None:
            self._awaited -= 1
            if not self._given_up:
                self._landed(kind, fields, at, length)
                self._check_done()

        self._session.send_read(
            self._handle, self._offset + at, length, landed, _failing(self._read)
        )
        self._awaited += 1

    def _landed(self, kind: int, fields: Fields, at: int, length: int) -> None:
        if kind == Packet.DATA:
            data = fields.string()
            if not 0 < len(data) <= length:
                self._fail(Garbled(f"the server gave {len(data)} bytes of {length}"))
            elif len(data) < length:
                self._gaps.append((at + len(data), length - len(data)))
            self._parts[at] = data
        elif kind == Packet.STATUS:
            status = take_status(fields)
            if status is not None and status.code != Code.EOF:
                self._fail(status)
            self._end = min(self._end, at)
            self._unsent.clear()  # it goes on behind this
        else:
            self._fail(Garbled("an answer of the wrong type"))

    def _fail(self, error: Status | Garbled) -> None:
        self._error = self._error or error
        self._unsent.clear()

    def _check_done(self) -> None:
        if self._unsent or self._awaited:
            return
        if self._attrs is None:  # the rest has been given up: it is not in the queue any more
            try:
                self._attrs = self._session.stat_open(self._handle)
            except RemoteError as error:
                _failing(self._read)(error)
        if not self._read.done():
            self._read.set_result(b"")

    def give_up(self) -> None:
        """What still comes is dropped."""
        self._given_up = True
        self._parts.clear()
        self._read.cancel()
        if self._attrs is not None:
            self._attrs.cancel()

    async def finish(self) -> tuple[bytes, Attrs, Status | Garbled | None]:
        """What was read, shorter where the file ended, the attributes afterwards, what went wrong.

        Raises Status where there are no attributes, Unreachable, Garbled.
        """
        try:
            while True:
                await self._read
                assert self._attrs is not None
                attrs = Attrs.take(Fields(await self._attrs))
                if self._error is not None or not self._fill(attrs):
                    break
        except asyncio.CancelledError:
            self.give_up()
            raise
        parts = [self._parts[at] for at in sorted(self._parts) if at < self._end]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data[: self._end], attrs, self._error

    def _fill(self, attrs: Attrs) -> bool:
        """Ask again for what was left out, except at the file's end; False: nothing was."""
        size = self._offset + self._end if attrs.size is None else attrs.size
        gaps, self._gaps = self._gaps, []
        self._end = min([self._end, *(at for at, _ in gaps if self._offset + at >= size)])
        self._unsent.extend(gap for gap in gaps if gap[0] < self._end)
        if not self._unsent:
            return False
        self._read = self._session.future()
        self._attrs = None
        self._session.queue(self)
        return True
