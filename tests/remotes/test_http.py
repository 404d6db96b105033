"""What is particular to web servers; the conformance suite has the rest."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import (
    BadUrl,
    Busy,
    Changed,
    Denied,
    Garbled,
    Missing,
    Unreachable,
    Unsupported,
)
from syncer.remotes.http import open_remote
from syncer.remotes.remote import ROOT, Kind, Remote, Version
from tests.remotes.kinds import FILLED_AT_NS, IMPATIENT, READ_TIMEOUT_S, machinery
from tests.remotes.test_conformance import MIB, entries, eventually
from tests.servers.nginx import PASSWORD, USER, Nginx, nginx
from tests.servers.proxy import Cut, How, Proxy

LARGE = os.urandom(3 * MIB)

EXTRA = [
    "location /answer/404 { return 404; }",
    "location /answer/410 { return 410; }",
    "location /answer/403 { return 403; }",
    "location /answer/500 { return 500; }",
    "location /answer/502 { return 502; }",
    "location /answer/418 { return 418; }",
    "location /answer/503 { add_header Retry-After 7 always; return 503; }",
    "location /answer/429 { add_header Retry-After 3 always; return 429; }",
    "location /loop/ { return 302 /loop/again; }",
    "location /once/ { return 302 /html/f; }",
    "location /to-file { return 302 file:///etc/passwd; }",
    "location /to-nothing { return 302 http://[; }",
    'location /page/ { default_type text/html; return 200 "<html><title>Shop</title></html>"; }',
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "f").write_bytes(b"0123456789")
    (folder / "text.txt").write_bytes(b"compressible " * 1000)
    (folder / "large").write_bytes(LARGE)
    (folder / "d").mkdir()
    (folder / "d" / "in it").write_bytes(b"x" * 12345)
    (folder / "d" / ("n" * 200)).write_bytes(b"n")
    for path in folder.rglob("*"):
        os.utime(path, ns=(FILLED_AT_NS, FILLED_AT_NS))
    with nginx(folder, extra=EXTRA) as running:
        yield running


@pytest.fixture
async def opened(bridge: Bridge, tmp_path: Path):
    """Opens remotes, and closes them."""
    remotes: list[Remote] = []

    async def open_one(url: str, **changes) -> Remote:
        remote = await open_remote(url, {}, machinery(bridge, tmp_path, **changes))
        remotes.append(remote)
        return remote

    yield open_one
    for remote in remotes:
        await remote.close()


def credentials(folder: Path, section: str, **values: str) -> Credentials:
    path = folder / "credentials.toml"
    lines = [f'["{section}"]', *(f'{name} = "{value}"' for name, value in values.items())]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return Credentials(path)


# URLs


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http:///x", {}),
        ("http://host/dir/?query", {}),
        ("http://host/", {"speed": "high"}),
        ("http://user:secret@host/", {}),
        ("http://host/", {"password": "secret"}),
    ],
)
async def test_bad_urls(url: str, options: dict[str, str], bridge: Bridge, tmp_path: Path):
    with pytest.raises(BadUrl) as caught:
        await open_remote(url, options, machinery(bridge, tmp_path))
    assert "secret" not in str(caught.value).replace("is a secret", "")


async def test_a_single_file(server: Nginx, opened):
    for query in ("", "?some=thing&else"):
        remote = await opened(server.url("f") + query)
        entry = await remote.stat(ROOT)
        assert (entry.key, entry.kind, entry.size) == (b"", Kind.FILE, 10)
        assert entry.mtime_ns == FILLED_AT_NS
        assert await remote.read(ROOT, entry.version, 3, 4) == b"3456"
        assert (await remote.read_whole(ROOT, 10))[1] == b"0123456789"
        with pytest.raises(Unsupported):
            await entries(remote)


async def test_a_directory_without_its_slash(server: Nginx, opened):
    remote = await opened(server.url("d"))
    assert (await remote.stat(ROOT)).kind is Kind.DIRECTORY
    assert set(await entries(remote)) == {b"in it", b"n" * 200}
    entry = await remote.stat(b"in it")
    assert await remote.read(b"in it", entry.version, 12344, 1) == b"x"


# Listings of real servers


@pytest.mark.parametrize("location", ["html", "json", "rough", "whole"])
async def test_listings_of_nginx(location: str, server: Nginx, opened):
    remote = await opened(server.url("", location))
    found = await entries(remote)
    kinds = {key: (entry.kind, entry.size) for key, entry in found.items()}
    assert kinds == {
        b"f": (Kind.FILE, 10),
        b"text.txt": (Kind.FILE, 13000),
        b"large": (Kind.FILE, len(LARGE)),
        b"d/": (Kind.DIRECTORY, 0),
    }
    below = await entries(remote, b"d/")
    assert {key: entry.size for key, entry in below.items()} == {
        b"d/in it": 12345,  # "12K" where sizes are rounded
        b"d/" + b"n" * 200: 1,  # shortened in what is shown
    }
    for entry in [*found.values(), *below.values()]:
        if entry.kind is Kind.FILE:
            stat = await remote.stat(entry.key)
            assert entry.size == stat.size
            assert entry.version == stat.version or not entry.exact
            assert await remote.read(entry.key, entry.version, 0, entry.size)


class _PythonServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


@pytest.fixture
def python_server(server: Nginx) -> Iterator[str]:
    """The standard library's, on the same folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(server.folder), **kwargs)

        def log_message(self, *args):
            pass

    with serve_with(Handler) as url:
        yield url


@contextlib.contextmanager
def serve_with(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with _PythonServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


async def test_the_listing_of_python(python_server: str, opened):
    remote = await opened(python_server)
    found = await entries(remote)
    assert {key: entry.size for key, entry in found.items()} == {
        b"f": 10,
        b"text.txt": 13000,
        b"large": len(LARGE),
        b"d/": 0,
    }
    # Every size was asked for, so that everything about it is known.
    assert all(entry.exact for entry in found.values())
    assert found[b"f"].mtime_ns == FILLED_AT_NS
    assert set(await entries(remote, b"d/")) == {b"d/in it", b"d/" + b"n" * 200}


async def test_a_page_that_is_no_listing(server: Nginx, opened):
    for path in ("page/", "html/text.txt"):
        remote = await opened(f"http://127.0.0.1:{server.port}/{path}")
        with pytest.raises(Unsupported):
            await entries(remote)


async def test_a_directory_that_is_not_listed(server: Nginx, opened):
    remote = await opened(server.url("", "unlisted"))
    with pytest.raises(Denied):
        await entries(remote)
    assert (await remote.read_whole(b"f", 10))[1] == b"0123456789"


# Servers without ranges, etags


async def test_a_server_without_ranges(server: Nginx, opened):
    remote = await opened(server.url("", "whole"))
    assert remote.capabilities.ranges
    small, large = await remote.stat(b"f"), await remote.stat(b"large")
    assert await remote.read(b"f", small.version, 3, 4) == b"3456"
    assert not remote.capabilities.ranges
    before = len(server.requests())
    for offset in (0, MIB, 2 * MIB):
        with pytest.raises(Unsupported, match="whole files only"):
            await remote.read(b"large", large.version, offset, MIB)
    await eventually(lambda: len(server.requests()) == before)  # it is not even asked
    assert await remote.read(b"large", large.version, 0, len(LARGE)) == LARGE


async def test_a_large_file_is_not_downloaded_for_a_part(server: Nginx, opened):
    remote = await opened(server.url("", "whole"))
    large = await remote.stat(b"large")
    with pytest.raises(Unsupported):
        await remote.read(b"large", large.version, MIB, 10)
    assert not remote.capabilities.ranges


@pytest.mark.parametrize("location", ["html", "no-etag"])
async def test_what_pins_a_version(location: str, server: Nginx, opened):
    remote = await opened(server.url("", location))
    entry = await remote.stat(b"f")
    assert bool(entry.etag) == (location == "html")
    right = entry.version
    assert await remote.read(b"f", right, 2, 3) == b"234"
    time_only = Version(right.size, "", right.mtime_ns)
    assert await remote.read(b"f", time_only, 2, 3) == b"234"
    wrong = [
        Version(right.size + 1, right.etag, right.mtime_ns),
        Version(right.size, right.etag and '"other"', right.mtime_ns + 10**9),
        Version(right.size, "", right.mtime_ns - 10**9),
        Version(right.size, "", right.mtime_ns + 10**9),
    ]
    for version in wrong:
        for length in (0, 3, 10):
            with pytest.raises(Changed):
                await remote.read(b"f", version, 0, length)


async def test_weak_etags_pin_nothing(opened):
    states = {"etag": 'W/"1"', "time": "Wed, 31 Jan 2024 10:00:00 GMT"}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET(body=b"")

        def do_GET(self, body: bytes = b"2345"):
            self.send_response(206 if self.command == "GET" else 200)
            self.send_header("ETag", states["etag"])
            self.send_header("Last-Modified", states["time"])
            if self.command == "GET":
                self.send_header("Content-Range", "bytes 2-5/10")
            self.send_header("Content-Length", "4" if self.command == "GET" else "10")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with serve_with(Handler) as url:
        remote = await opened(url)
        version = (await remote.stat(b"f")).version
        assert version.etag == ""
        assert await remote.read(b"f", version, 2, 4) == b"2345"
        states["etag"] = 'W/"2"'
        assert await remote.read(b"f", version, 2, 4) == b"2345"
        states["time"] = "Wed, 31 Jan 2024 10:00:01 GMT"
        with pytest.raises(Changed):
            await remote.read(b"f", version, 2, 4)
        await remote.close()


@pytest.mark.parametrize(
    ("headers", "body", "error"),
    [
        ({"Content-Range": "bytes 2-5/10", "Content-Length": "4"}, b"2345", None),
        ({"Content-Range": "bytes 2-5/11", "Content-Length": "4"}, b"2345", Changed),
        ({"Content-Range": "bytes 3-6/10", "Content-Length": "4"}, b"2345", Garbled),
        ({"Content-Range": "bytes 2-4/10", "Content-Length": "3"}, b"234", Garbled),
        ({"Content-Range": "bytes 2-5/10", "Content-Length": "5"}, b"23456", Garbled),
        ({"Content-Range": "bytes 2-5/10", "Content-Length": "3"}, b"234", Garbled),
        ({"Content-Range": "bytes 2-5/10"}, b"23456", Garbled),
        ({"Content-Range": "bytes 2-5/10"}, b"23", Garbled),
        ({"Content-Range": "bytes 2-5/10"}, b"2345", None),
        ({"Content-Range": "bytes 2-5/10", "Content-Length": "4"}, b"23", Garbled),
        ({"Content-Range": "bytes 2-5/*", "Content-Length": "4"}, b"2345", Garbled),
        ({"Content-Length": "4"}, b"2345", Garbled),
        (
            {
                "Content-Range": "bytes 2-5/10",
                "Content-Length": "4",
                "Content-Encoding": "gzip",
            },
            b"2345",
            Unsupported,
        ),
    ],
)
async def test_odd_answers(headers: dict[str, str], body: bytes, error, opened):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(206)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with serve_with(Handler) as url:
        remote = await opened(url)
        if error is None:
            assert await remote.read(b"f", Version(10), 2, 4) == body
        else:
            with pytest.raises(error):
                await remote.read(b"f", Version(10), 2, 4)
        await remote.close()


async def test_nothing_is_compressed(server: Nginx, opened):
    remote = await opened(server.url())
    entry, data = await remote.read_whole(b"text.txt", 20_000)
    assert (entry.size, data) == (13000, b"compressible " * 1000)
    assert await remote.read(b"text.txt", entry.version, 13, 13) == b"compressible "


# Refusals


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, Missing),
        (410, Missing),
        (403, Denied),
        (500, Unreachable),
        (502, Unreachable),
        (418, Garbled),
        (503, Busy),
        (429, Busy),
    ],
)
async def test_statuses(status: int, error, server: Nginx, opened):
    remote = await opened(f"http://127.0.0.1:{server.port}/answer/")
    key = str(status).encode()
    with pytest.raises(error) as caught:
        await remote.stat(key)
    if error is Busy:
        assert caught.value.retry_after_s == {503: 7.0, 429: 3.0}[status]
    with pytest.raises(error):
        await remote.read_whole(key, 100)
    with pytest.raises(Changed if error is Missing else error):
        await remote.read(key, Version(10), 0, 10)


async def test_basic_login(server: Nginx, opened, tmp_path: Path):
    nobody = await opened(server.url("", "private"))
    for act in (nobody.stat(b"f"), entries(nobody), nobody.read_whole(b"f", 10)):
        with pytest.raises(Denied, match="credentials file"):
            await act
    place = f"http://127.0.0.1:{server.port}/private"
    known = credentials(tmp_path, place, user=USER, password=PASSWORD)
    reader = await opened(server.url("", "private"), credentials=known)
    assert (await reader.read_whole(b"f", 10))[1] == b"0123456789"
    named = credentials(tmp_path, place, password=PASSWORD)
    url = server.url("", "private").replace("://", f"://{USER}@")
    assert len(await entries(await opened(url, credentials=named))) == 4
    credentials(tmp_path, place, user=USER, password="wrong, and never shown")
    with pytest.raises(Denied) as caught:
        await reader.stat(b"f")
    assert "wrong" not in str(caught.value)


class _Recording(http.server.BaseHTTPRequestHandler):
    """Answers with a redirect to `to`, or a file; remembers who came."""

    to: str = ""
    seen: list[str | None]

    def do_GET(self):
        self.seen.append(self.headers.get("Authorization"))
        if self.to:
            self.send_response(302)
            self.send_header("Location", self.to)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"there")

    def log_message(self, *args):
        pass


async def test_credentials_go_to_their_host_only(opened, tmp_path: Path):
    known = credentials(tmp_path, "127.0.0.1", token="a-token")
    there = type("There", (_Recording,), {"seen": []})
    with serve_with(there) as other:
        # Another port is another host.
        here = type("Here", (_Recording,), {"seen": [], "to": other + "f"})
        with serve_with(here) as url:
            remote = await opened(url, credentials=known)
            assert (await remote.read_whole(b"f", 10))[1] == b"there"
            assert (here.seen, there.seen) == (["Bearer a-token"], [None])
            await remote.close()


async def test_redirects(server: Nginx, opened):
    remote = await opened(f"http://127.0.0.1:{server.port}/")
    entry = await remote.stat(b"once/x")
    assert (entry.key, entry.size) == (b"once/x", 10)
    assert await remote.read(b"once/x", entry.version, 1, 2) == b"12"
    with pytest.raises(Garbled, match="redirects"):
        await remote.stat(b"loop/x")
    with pytest.raises(Denied):
        await remote.stat(b"to-file")
    with pytest.raises(Garbled):
        await remote.stat(b"to-nothing")


async def test_keys_stay_below_the_url(server: Nginx, opened):
    remote = await opened(server.url("d/"))
    for key in (b"../f", b"./in it", b"x/../in it", b"/in it", b"a//b", b".."):
        with pytest.raises(Missing):
            await remote.stat(key)
    with pytest.raises(Missing):
        await remote.stat(b"..%2ff")
    assert (await remote.stat(b"in it")).size == 12345


# Silence


async def test_a_frozen_server(server: Nginx, opened, bridge: Bridge):
    remote = await opened(server.url(), **IMPATIENT)
    version = (await remote.stat(b"large")).version
    acts: list[Callable] = [
        lambda: remote.stat(b"f"),
        lambda: entries(remote),
        lambda: remote.read(b"large", version, 0, MIB),
    ]
    server.freeze()
    try:
        with trio.fail_after(READ_TIMEOUT_S + 2):
            async with trio.open_nursery() as nursery:

                async def fails(act: Callable) -> None:
                    with pytest.raises(Unreachable):
                        await act()

                for act in acts:
                    nursery.start_soon(fails, act)
        # Given up long before that.
        with trio.move_on_after(0.05) as scope:
            await remote.read(b"large", version, 0, MIB)
        assert scope.cancelled_caught
    finally:
        server.thaw()
    assert await remote.read(b"large", version, MIB, 10) == LARGE[MIB : MIB + 10]
    await remote.close()
    await eventually(lambda: not any(t.name == "http" for t in threading.enumerate()))


# Bad links


@pytest.mark.parametrize("how", [How.RESET, How.CLOSE, How.STALL])
async def test_a_bad_link_gives_the_right_bytes_or_an_error(how: How, server: Nginx, opened):
    with Proxy(server.port) as proxy:
        url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
        remote = await opened(url, read_timeout_s=0.3, connect_timeout_s=0.3)
        version = (await remote.stat(b"large")).version
        chance = random.Random(how.value)
        failures = 0
        for _ in range(12 if how is How.STALL else 30):  # each costs the time limit
            after, up = int(10 ** chance.uniform(0, 6.5)), chance.random() < 0.3
            proxy.change(cut=Cut(how, after, up=up, times=1))
            try:
                assert await remote.read(b"large", version, 0, len(LARGE)) == LARGE
                assert await remote.read(b"large", version, 5, 100) == LARGE[5:105]
                assert set(await entries(remote)) == {b"f", b"text.txt", b"large", b"d/"}
                assert (await remote.read_whole(b"f", 100))[1] == b"0123456789"
            except (Unreachable, Garbled):
                failures += 1
        assert failures > 3
        proxy.heal()
        assert await remote.read(b"large", version, 0, len(LARGE)) == LARGE
        await remote.close()


async def test_round_trips(server: Nginx, opened):
    with Proxy(server.port) as proxy:
        remote = await opened(server.url().replace(f":{server.port}/", f":{proxy.port}/"))
        version = (await remote.stat(b"large")).version
        works: list[Callable] = [
            lambda: remote.stat(b"f"),
            lambda: remote.read(b"large", version, MIB, MIB),
            lambda: remote.read_whole(b"f", 100),
            lambda: entries(remote),
        ]
        for act in works:
            before = proxy.counts
            await act()
            used = proxy.counts - before
            assert (used.turns, used.requests, used.connections) == (1, 1, 0)
        with pytest.raises(Missing):
            await remote.stat(b"gone")
        with pytest.raises(Missing):
            await remote.read_whole(b"gone", 100)
        assert proxy.counts.connections == 1  # kept over refusals


# TLS


def _make_certificate(key: Path, certificate: Path) -> None:
    """One for localhost that nobody has signed."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", key, "-out", certificate]
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run(["openssl", "req", *kind, *subject, *files], check=True, capture_output=True)


async def test_certificates(opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    await trio.to_thread.run_sync(_make_certificate, key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Secure", (_Recording,), {"seen": []})
    with _PythonServer(("127.0.0.1", 0), handler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        running.handle_error = lambda *_: None  # the handshakes that are refused
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"https://localhost:{running.server_port}/"
            distrustful = await opened(url)
            with pytest.raises(Denied, match="certificate is not trusted"):
                await distrustful.read_whole(b"f", 10)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            assert (await (await opened(url)).read_whole(b"f", 10))[1] == b"there"
            other = await opened(url.replace("localhost", "127.0.0.1"))
            with pytest.raises(Denied, match="certificate is not trusted"):
                await other.read_whole(b"f", 10)
        finally:
            running.shutdown()
            thread.join()
