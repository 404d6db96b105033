"""A TCP proxy in front of a server on loopback, which makes the network as bad as one likes.

It runs in a thread of its own and is steered from any other. It models a link: a delay each way
that holds back nothing else (what is sent later travels at the same time), a bandwidth that all
connections share, and the round trips of a TCP handshake. Faults change at run time, also for
connections that are open.

`Counts.turns` says how often the client of a connection spoke after it had heard from the server:
for a client that asks and waits, its round trips. Where it asks for several things at once, the
link needs a delay, so that no answer is heard before all is asked.
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

T = TypeVar("T")

HELD_MAX = 64 << 20  # bytes of one direction on their way; 20 ms of 3 GB/s
PIECE = 16 << 10  # bytes sent at once where there is a bandwidth
LATE_S = 0.0005  # epoll waits in whole milliseconds: aim half of one early, to be right on average
REQUEST = re.compile(rb"[A-Z]+ \S+ HTTP/1\.[01]\r\n")


class How(enum.Enum):
    """What happens to a connection at a point of its stream."""

    RESET = "reset"  # RST to both ends
    CLOSE = "close"  # the receiver gets what came before, then an end that looks orderly
    GARBLE = "garble"  # the next bytes arrive with flipped bits
    STALL = "stall"  # nothing arrives any more in this direction, whatever changes later


@dataclass(frozen=True, slots=True)
class Cut:
    """A fault after so many bytes of every connection, counted from when it is set."""

    how: How
    after: int  # bytes
    up: bool = False  # of what the client sends; else of what the server sends
    times: int | None = None  # then the fault is gone; None: stays
    length: int = 1  # bytes garbled


@dataclass(frozen=True, slots=True)
class Faults:
    """The state of the link. The default is a perfect one."""

    delay_s: float = 0.0  # one way
    bytes_per_s: float | None = None  # each way, all connections together
    cut: Cut | None = None
    black_hole: bool = False  # connects, but nothing arrives; when it ends, everything does
    refuse: bool = False  # new connections; open ones stay: see Proxy.reset_connections


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the proxy was started; subtract two to measure a stretch."""

    connections: int = 0
    up: int = 0  # bytes delivered to the server
    down: int = 0  # bytes delivered to the client
    turns: int = 0
    requests: int = 0  # HTTP/1
    answered: int = 0  # by the proxy itself
    cuts: int = 0

    def __sub__(self, other: Counts) -> Counts:
        names = self.__slots__
        return Counts(*(getattr(self, name) - getattr(other, name) for name in names))


class Proxy:
    """The proxy, as a context manager; `port` is where clients go."""

    host = "127.0.0.1"

    def __init__(self, port: int, host: str = "127.0.0.1", faults: Faults = Faults()) -> None:
        """`port` and `host`: the server, which need not run yet."""
        self.target = (host, port)
        self.port = 0
        self._faults = faults
        self._link = _Link(self.target, faults)
        self._thread = threading.Thread(target=self._main, name="proxy", daemon=True)
        self._ready: Future[int] = Future()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._ready.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._ready.set_result(self._loop.run_until_complete(self._link.listen()))
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._link.close())
            self._loop.close()

    def _in_loop(self, function: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - for the caller's thread
                done.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return done.result(10)

    @property
    def faults(self) -> Faults:
        """What is set. A cut whose times are used up is gone from it."""
        return self._in_loop(lambda: self._link.faults)

    @property
    def counts(self) -> Counts:
        """What has passed so far."""
        return self._in_loop(lambda: self._link.counts)

    def change(self, **faults: Any) -> None:
        """Change some of the faults; in force when this returns."""
        self._in_loop(lambda: self._link.change(replace(self._link.faults, **faults)))

    def heal(self) -> None:
        """Take every fault away, delay and bandwidth included, and pending answers."""
        self._in_loop(self._link.heal)

    def reset_connections(self) -> None:
        """Cut every connection that is open."""
        self._in_loop(self._link.reset_connections)

    def answer(
        self,
        count: int,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Answer the next `count` HTTP/1 requests in place of the server, which sees none of them.

        Each answer ends its connection.
        """
        lines = [f"HTTP/1.1 {status} Injected"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        answer = "\r\n".join(lines).encode() + body
        self._in_loop(lambda: self._link.answers.extend([answer] * count))


class _Link:
    """What all connections share; lives in the proxy's loop."""

    def __init__(self, target: tuple[str, int], faults: Faults) -> None:
        self.target = target
        self.faults = faults
        self.answers: deque[bytes] = deque()
        self.counted = dict.fromkeys(Counts.__slots__, 0)
        self.free_at = {True: 0.0, False: 0.0}  # when the line has sent what it was given, by `up`
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.open = asyncio.Event()  # no black hole
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def counts(self) -> Counts:
        return Counts(**self.counted)

    async def listen(self) -> int:
        self._listen()
        self.change(self.faults)
        return self._port

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((Proxy.host, self._port))
        listener.listen(256)
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener
        loop.add_reader(listener, self._accept)

    def _unlisten(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.counted["connections"] += 1
        connection = _Connection(self)
        self.connections.add(connection)
        task = asyncio.get_running_loop().create_task(connection.run(client))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def change(self, faults: Faults) -> None:
        before, self.faults = self.faults, faults
        if faults.refuse and self._listener.fileno() >= 0:
            self._unlisten()
        elif not faults.refuse and self._listener.fileno() < 0:
            self._listen()
        (self.open.clear if faults.black_hole else self.open.set)()
        for connection in tuple(self.connections):
            for lane in (connection.up, connection.down):
                if faults.cut is not before.cut:
                    lane.uncut = 0
                lane.pump()

    def heal(self) -> None:
        self.answers.clear()
        self.change(Faults())

    def use_cut(self) -> None:
        """One of the cut's times is used up."""
        cut = self.faults.cut
        assert cut is not None
        self.counted["cuts"] += 1
        if cut.times is not None:
            left = replace(cut, times=cut.times - 1) if cut.times > 1 else None
            self.faults = replace(self.faults, cut=left)

    def reset_connections(self) -> None:
        for connection in tuple(self.connections):
            connection.reset()

    async def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._unlisten()
        self.reset_connections()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the next turn


class _End(asyncio.Protocol):
    """One end of a connection: what arrives here goes into `lane_in`."""

    def __init__(self, connection: _Connection, lane_in: _Lane, lane_out: _Lane) -> None:
        self._connection = connection
        self._in = lane_in
        self._out = lane_out

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._in.source = transport
        self._out.target = transport
        if self._connection.over:
            transport.abort()
        self._out.pump()

    def data_received(self, data: bytes) -> None:
        self._connection.received(self._in, data)

    def eof_received(self) -> bool:
        self._connection.received_end(self._in)
        return True  # the other direction goes on

    def connection_lost(self, error: Exception | None) -> None:
        # An orderly end has been handled by eof_received: this is a reset, or our own doing.
        if error is not None or not self._in.ended:
            self._connection.lost(self._in)

    def pause_writing(self) -> None:
        self._out.blocked = True

    def resume_writing(self) -> None:
        self._out.blocked = False
        self._out.pump()


class _Lane:
    """One direction of one connection: what is on its way, and when it is due."""

    def __init__(self, connection: _Connection, *, up: bool) -> None:
        self.up = up
        self.source: asyncio.Transport | None = None
        self.target: asyncio.Transport | None = None
        self.blocked = False  # the target's buffer is full
        self.stalled = False
        self.ended = False  # the source has said so
        self.uncut = 0  # bytes delivered since the cut was set, or happened last
        self._connection = connection
        self._link = connection.link
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._held = 0  # bytes in the queue
        self._paused = False  # the source is
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, data: bytes | None, late_s: float = 0.0) -> None:
        """Send `data` on its way, or the end of the stream (None)."""
        self.ended |= data is None
        faults = self._link.faults
        now = asyncio.get_running_loop().time()
        arrives_after = faults.delay_s + late_s
        if data is None or faults.bytes_per_s is None:
            self._queue.append((now + arrives_after, data))
        else:
            free_at = max(now, self._link.free_at[self.up])
            for start in range(0, len(data), PIECE):
                piece = data[start : start + PIECE]
                free_at += len(piece) / faults.bytes_per_s
                self._queue.append((free_at + arrives_after, piece))
            self._link.free_at[self.up] = free_at
        self._held += len(data or b"")
        self.pump()
        if data is not None and self._held > self._held_max and self.source is not None:
            self._paused = True
            self.source.pause_reading()

    @property
    def _held_max(self) -> float:
        """Bytes: with a bandwidth the sender must feel it, so hold what is under way and a bit."""
        faults = self._link.faults
        if faults.bytes_per_s is None:
            return HELD_MAX
        return faults.bytes_per_s * (2 * faults.delay_s + 0.1)

    def pump(self) -> None:
        """Deliver what is due, and come back for the next."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and not self._holds():
            due = self._queue[0][0]
            if due > loop.time() + LATE_S:
                self._timer = loop.call_at(due - LATE_S, self.pump)
                break
            data = self._queue.popleft()[1]
            self._held -= len(data or b"")
            self._deliver(data)
        if self._paused and self._held <= self._held_max / 2 and not self._connection.over:
            self._paused = False
            assert self.source is not None
            self.source.resume_reading()

    def _holds(self) -> bool:
        return (
            self.target is None
            or self.blocked
            or self.stalled
            or self._connection.over
            or self._link.faults.black_hole
        )

    def _deliver(self, data: bytes | None) -> None:
        assert self.target is not None
        if data is None:
            if not self.target.is_closing():
                self.target.write_eof()
            self._connection.delivered_end()
            return
        cut = self._link.faults.cut
        if cut is not None and cut.up is self.up and self.uncut + len(data) > cut.after:
            self._cut(cut, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        assert self.target is not None
        self.uncut += len(data)
        self._link.counted["up" if self.up else "down"] += len(data)
        self.target.write(data)
        if not self.up:
            self._connection.told()

    def _cut(self, cut: Cut, data: bytes) -> None:
        self._link.use_cut()
        keep = cut.after - self.uncut
        if cut.how is How.GARBLE:
            length = min(cut.length, len(data) - keep)
            flipped = bytes(byte ^ 0x55 for byte in data[keep : keep + length])
            self._write(data[:keep] + flipped)
            self.uncut = 0
            if keep + length < len(data):
                self._deliver(data[keep + length :])
            return
        if keep:
            self._write(data[:keep])
        if cut.how is How.STALL:
            self.stalled = True
        elif cut.how is How.CLOSE:
            self._connection.close()
        else:
            self._connection.reset()


class _Connection:
    """A client, its two lanes and, after the handshake, the server."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.over = False
        self.up = _Lane(self, up=True)
        self.down = _Lane(self, up=False)
        self._client_spoke_last = False
        self._answered = False
        self._lanes_open = 2

    async def run(self, client: socket.socket) -> None:
        """Take the client and find the server."""
        loop = asyncio.get_running_loop()
        client.setblocking(False)
        # The listening socket's kernel has answered the SYN at once. What the client sends is
        # ahead of a real link's by a round trip, and what the server says first by one and a half.
        delay_s = 3 * self.link.faults.delay_s
        try:
            await loop.connect_accepted_socket(lambda: _End(self, self.up, self.down), client)
            await asyncio.sleep(delay_s)
            await self.link.open.wait()
            await loop.create_connection(lambda: _End(self, self.down, self.up), *self.link.target)
        except OSError:
            self.lost(self.down)

    def received(self, lane: _Lane, data: bytes) -> None:
        """Something came in at one end."""
        if self._answered:
            return  # the rest of a request that the proxy has answered, or the server's surprise
        if lane.up and not self._client_spoke_last:
            self.link.counted["turns"] += 1
            # Nobody pipelines, so a request starts where the client starts to speak.
            if REQUEST.match(data):
                self.link.counted["requests"] += 1
                if self.link.answers:
                    self._answer(self.link.answers.popleft())
                    return
        if lane.up:
            self._client_spoke_last = True
        lane.feed(data)

    def told(self) -> None:
        """The client has got something from the server."""
        self._client_spoke_last = False

    def received_end(self, lane: _Lane) -> None:
        """One end has nothing more to say."""
        if not self._answered:
            lane.feed(None)
        elif lane.up:
            self.close()

    def lost(self, lane: _Lane) -> None:
        """One end is gone."""
        if lane.up or not self._answered:
            self.reset()

    def _answer(self, answer: bytes) -> None:
        self._answered = True
        self.link.counted["answered"] += 1
        self.down.feed(answer, late_s=self.link.faults.delay_s)
        self.down.feed(None, late_s=self.link.faults.delay_s)

    def delivered_end(self) -> None:
        """One direction has ended.

        After an answer of our own the client ends it: a RST for what it still sends could overtake
        the answer.
        """
        self._lanes_open -= 1
        if self._lanes_open == 0:
            self.close()

    def _transports(self) -> list[asyncio.Transport]:
        both = (self.up.source, self.up.target)
        return [transport for transport in both if transport is not None]

    def close(self) -> None:
        """Let go of both ends; what is in the kernel's buffers still arrives."""
        self.over = True
        for transport in self._transports():
            transport.close()
        self.link.connections.discard(self)

    def reset(self) -> None:
        """Cut both ends with a RST."""
        if not self.over:
            self.over = True
            for transport in self._transports():
                raw = transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            self.link.connections.discard(self)
