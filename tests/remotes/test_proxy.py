"""The proxy does to a connection what it says, at the byte it says."""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.servers.proxy import HELD_MAX, Cut, Faults, How, Proxy

PATTERN = bytes(range(251)) * 4200  # about a MiB, no short period


class Echo(socketserver.StreamRequestHandler):
    """Sends as many bytes of the pattern as a line asks for; says nothing else."""

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.wfile.write(PATTERN[: int(line)])
        except OSError:
            pass  # the proxy cuts


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class WebThreads(ThreadingHTTPServer):
    block_on_close = False


def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def echo() -> Iterator[int]:
    yield from serving(Threads(("127.0.0.1", 0), Echo))


@pytest.fixture
def web() -> Iterator[int]:
    yield from serving(WebThreads(("127.0.0.1", 0), Pages))


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as it:
        yield it


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=20)


def exactly(client: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = client.recv(length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def ask(client: socket.socket, length: int) -> bytes:
    client.sendall(b"%d\n" % length)
    return exactly(client, length)


def test_bytes_pass_and_are_counted(proxy: Proxy) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        assert ask(client, len(PATTERN)) == PATTERN
        assert ask(client, 10) == PATTERN[:10]
        assert ask(other, 0) == b""
        counts = proxy.counts
        assert counts.connections == 2
        assert counts.down == len(PATTERN) + 10
        other.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""  # an end passes through as an end, both ways
    with connect(proxy) as client:
        before = proxy.counts
        ask(client, 5)
        ask(client, 5)
        stretch = proxy.counts - before
        assert (stretch.turns, stretch.down, stretch.up) == (2, 10, 4)


def test_a_delay_is_never_shorter_and_loses_nothing(proxy: Proxy) -> None:
    proxy.change(delay_s=0.02)
    with connect(proxy) as client:
        began = time.monotonic()
        assert ask(client, 3) == PATTERN[:3]
        assert time.monotonic() - began >= 4 * 0.02 - 0.002  # the handshake, and there and back
        began = time.monotonic()
        assert ask(client, 3) == PATTERN[:3]
        assert time.monotonic() - began >= 2 * 0.02 - 0.002
        assert ask(client, len(PATTERN)) == PATTERN


def test_a_bandwidth_is_never_exceeded(proxy: Proxy) -> None:
    proxy.change(bytes_per_s=10e6)
    with connect(proxy) as client:
        began = time.monotonic()
        assert ask(client, len(PATTERN)) == PATTERN
        assert time.monotonic() - began >= len(PATTERN) / 10e6 - 0.002


@pytest.mark.parametrize("after", [0, 1, 70_000])
def test_reset_after_some_bytes_of_each_connection(proxy: Proxy, after: int) -> None:
    proxy.change(cut=Cut(How.RESET, after, times=2))
    for _ in range(2):
        with connect(proxy) as client, pytest.raises(ConnectionResetError):
            ask(client, len(PATTERN) + 1)
    with connect(proxy) as client:
        assert ask(client, len(PATTERN)) == PATTERN
    assert proxy.faults.cut is None
    assert proxy.counts.cuts == 2


@pytest.mark.parametrize("after", [0, 1, 70_000])
def test_truncation_is_an_orderly_end_too_early(proxy: Proxy, after: int) -> None:
    proxy.change(cut=Cut(How.CLOSE, after))
    for _ in range(2):
        with connect(proxy) as client:
            assert ask(client, len(PATTERN)) == PATTERN[:after]


def test_garbage_starts_where_it_was_told_also_on_an_open_connection(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert ask(client, 1000) == PATTERN[:1000]
        proxy.change(cut=Cut(How.GARBLE, 70_000, times=1, length=3))
        got = ask(client, len(PATTERN))
        wrong = [i for i, (a, b) in enumerate(zip(got, PATTERN, strict=True)) if a != b]
        assert wrong == [70_000, 70_001, 70_002]
        assert ask(client, len(PATTERN)) == PATTERN


def test_what_the_client_sends_can_be_cut_too(proxy: Proxy) -> None:
    proxy.change(cut=Cut(How.GARBLE, 0, up=True, times=1))
    with connect(proxy) as client:
        client.sendall(b"d\n")  # flipped to "1"
        assert exactly(client, 1) == PATTERN[:1]


def test_a_stalled_connection_says_no_more_others_do(proxy: Proxy) -> None:
    proxy.change(cut=Cut(How.STALL, 10, times=1))
    with connect(proxy) as client, connect(proxy) as other:
        client.sendall(b"100\n")
        assert exactly(client, 10) == PATTERN[:10]
        assert ask(other, 100) == PATTERN[:100]
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_a_black_hole_swallows_old_and_new_connections_and_gives_back(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert ask(client, 10) == PATTERN[:10]
        proxy.change(black_hole=True)
        before = proxy.counts
        with connect(proxy) as other:
            for each in (client, other):
                each.sendall(b"20\n")
                each.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    each.recv(1)
                each.settimeout(20)
            assert (proxy.counts - before).up == 0
            proxy.change(black_hole=False)
            assert exactly(client, 20) == PATTERN[:20]
            assert exactly(other, 20) == PATTERN[:20]


def test_refused_until_healed_open_connections_stay(proxy: Proxy) -> None:
    with connect(proxy) as client:
        ask(client, 1)
        proxy.change(refuse=True)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(client, 10) == PATTERN[:10]
        proxy.reset_connections()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.heal()
    assert proxy.faults == Faults()
    with connect(proxy) as client:
        assert ask(client, 10) == PATTERN[:10]


def test_a_server_that_is_not_there_is_a_reset() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        # The reset may come before `connect` has returned.
        with Proxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
            client.recv(1)


def test_a_client_that_does_not_read_is_felt_by_the_server(proxy: Proxy) -> None:
    """Memory of the proxy is bounded: the server is not read without end."""
    wanted = HELD_MAX * 4 // len(PATTERN)
    with connect(proxy) as client:
        client.sendall((b"%d\n" % len(PATTERN)) * wanted)
        for _ in range(wanted):
            assert exactly(client, len(PATTERN)) == PATTERN
            (connection,) = proxy._link.connections
            assert connection.down._held <= HELD_MAX + (1 << 20)


def test_answers_in_place_of_the_server(web: int) -> None:
    with Proxy(web) as proxy:
        client = http.client.HTTPConnection(proxy.host, proxy.port, timeout=20)
        client.request("GET", "/")
        assert client.getresponse().read() == b"page"
        proxy.answer(2, 503, {"Retry-After": "7"}, b"later")
        for method, body in (("GET", None), ("PUT", b"x" * (8 << 20))):
            client.request(method, "/", body)  # connects again when the answer closed it
            answer = client.getresponse()
            assert (answer.status, answer.getheader("Retry-After")) == (503, "7")
            assert answer.read() == b"later"
        for _ in range(3):  # the third reuses the connection
            client.request("PUT", "/", b"GET / HTTP/1.1\r\n" * 100_000)
            assert client.getresponse().read() == b"page"
        client.close()
        assert (proxy.counts.requests, proxy.counts.answered) == (6, 2)
        assert proxy.counts.connections == 3


def test_nothing_is_left_behind(echo: int) -> None:
    threads = threading.active_count()
    with Proxy(echo, faults=Faults(delay_s=0.5)) as proxy:
        client = connect(proxy)
        client.sendall(b"100\n")
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)
    assert threading.active_count() <= threads + 1  # the server's, for a moment
