"""All wrappers around a real driver, whose server is behind a network that fails."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from syncer.remotes.breaker import NotTried, State
from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import Denied, Unreachable
from syncer.remotes.policy import RemotePolicy
from syncer.remotes.registry import open_remote
from syncer.remotes.remote import ROOT, Entry, Page
from syncer.remotes.wrappers import Hosts, Wrapped, wrapped
from tests.remotes.kinds import machinery
from tests.servers.nginx import Nginx, nginx
from tests.servers.proxy import Cut, How, Proxy

CONTENT = random.Random(1).randbytes(3 << 20)

# Real time: quick to try again, quick to give up.
POLICY = RemotePolicy(
    deadline_s=20.0,
    attempt_timeout_s=1.0,
    backoff_s=0.005,
    backoff_max_s=0.1,
    garbled_max=12,
    breaker_after_s=60.0,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "file.bin").write_bytes(CONTENT)
    with nginx(folder) as running:
        yield running


@dataclass
class Network:
    """From the client to the server."""

    proxy: Proxy
    url: str
    bridge: Bridge
    home: Path

    async def open(self, policy: RemotePolicy) -> Wrapped:
        given = machinery(self.bridge, self.home)
        return wrapped(await open_remote(self.url, {}, given), policy, Hosts())


@pytest.fixture
async def network(server: Nginx, bridge: Bridge, tmp_path: Path) -> AsyncIterator[Network]:
    parts = urlsplit(server.url(""))
    assert parts.port is not None
    with Proxy(parts.port) as proxy:
        url = parts._replace(netloc=f"{proxy.host}:{proxy.port}").geturl()
        yield Network(proxy, url, bridge, tmp_path)


@pytest.fixture
async def remote(network: Network) -> AsyncIterator[Wrapped]:
    remote = await network.open(POLICY)
    yield remote
    await remote.close()
    assert remote.statistics.under_way == 0


@pytest.mark.parametrize("seed", range(4))
async def test_reads_are_right_whatever_the_network_does(
    network: Network, remote: Wrapped, seed: int
) -> None:
    chance = random.Random(seed)
    entry = await remote.stat(b"file.bin")
    for _ in range(40):
        offset = chance.randrange(len(CONTENT))
        length = chance.randrange(1, min(1 << 20, len(CONTENT) - offset) + 1)
        after, times = chance.randrange(2 * length), chance.randrange(1, 4)
        fault = chance.choice(["none", "reset", "close", "status", "drop", "up"])
        if fault in {"reset", "close"}:
            network.proxy.change(cut=Cut(How(fault), after, times=times))
        elif fault == "up":
            network.proxy.change(cut=Cut(How.RESET, chance.randrange(200), up=True, times=times))
        elif fault == "status":
            headers = chance.choice([{}, {"Retry-After": "0"}])
            network.proxy.answer(times, chance.choice([500, 502, 503, 504, 429]), headers)
        elif fault == "drop":
            network.proxy.reset_connections()
        data = await remote.read(b"file.bin", entry.version, offset, length)
        assert data == CONTENT[offset : offset + length]
        network.proxy.heal()
    counts = network.proxy.counts
    assert counts.answered
    assert counts.cuts
    assert remote.retries


async def test_a_stalled_read_is_asked_again(network: Network, remote: Wrapped) -> None:
    entry = await remote.stat(b"file.bin")
    network.proxy.change(cut=Cut(How.STALL, 100_000, times=1))
    data = await remote.read(b"file.bin", entry.version, 0, 1 << 20)
    assert data == CONTENT[: 1 << 20]
    assert remote.retries == 1
    assert remote.statistics.errors == {"Cancelled": 1}  # by the attempt's deadline


async def test_patience_that_the_server_asks_for(network: Network, remote: Wrapped) -> None:
    await remote.stat(b"file.bin")
    network.proxy.answer(1, 503, {"Retry-After": "1"})
    began = time.monotonic()
    await remote.stat(b"file.bin")
    assert time.monotonic() - began >= 1.0


async def test_refused_credentials_are_said_at_once(network: Network, remote: Wrapped) -> None:
    entry = await remote.stat(b"file.bin")
    for status in (401, 403):
        network.proxy.answer(1, status)
        with pytest.raises(Denied):
            await remote.read(b"file.bin", entry.version, 0, 10)
    assert remote.retries == 0


async def test_listings_through_failures(network: Network, remote: Wrapped) -> None:
    found: list[Entry] = []

    async def sink(page: Page) -> None:
        await trio.lowlevel.checkpoint()
        found.extend(page)

    network.proxy.answer(3, 503)
    network.proxy.change(cut=Cut(How.CLOSE, 50, times=2))
    await remote.list(ROOT, sink)
    assert [entry.key for entry in found] == [b"file.bin"]


async def test_a_black_hole_ends_in_time_opens_the_breaker_and_heals(network: Network) -> None:
    policy = RemotePolicy(
        deadline_s=2.0,
        attempt_timeout_s=0.3,
        backoff_s=0.01,
        backoff_max_s=0.02,
        breaker_after_s=0.5,
        breaker_failures=3,
        breaker_pause_s=0.2,
        breaker_pause_max_s=0.2,
    )
    remote = await network.open(policy)
    entry = await remote.stat(b"file.bin")
    network.proxy.change(black_hole=True)
    with trio.fail_after(20), pytest.raises(Unreachable):
        await remote.read(b"file.bin", entry.version, 0, 10)
    circuit = remote.host.breaker.circuit
    assert circuit.number > 0  # it has opened, whatever it is by now
    network.proxy.change(black_hole=False)
    with trio.fail_after(20):
        while True:
            try:
                data = await remote.read(b"file.bin", entry.version, 0, 10)
            except NotTried:
                await trio.lowlevel.checkpoint()
            else:
                break
    assert data == CONTENT[:10]
    assert remote.host.breaker.circuit.state is State.CLOSED
    await remote.close()


async def test_a_server_that_comes_back(network: Network, remote: Wrapped) -> None:
    entry = await remote.stat(b"file.bin")
    network.proxy.change(refuse=True)
    network.proxy.reset_connections()
    async with trio.open_nursery() as nursery:

        async def heal() -> None:
            while not remote.retries:
                await trio.lowlevel.checkpoint()
            network.proxy.heal()

        nursery.start_soon(heal)
        assert await remote.read(b"file.bin", entry.version, 5, 5) == CONTENT[5:10]


async def test_cancelled_reads_leave_nothing(network: Network, remote: Wrapped) -> None:
    """The fixture of the bridge sees to tasks, this to what is under way."""
    entry = await remote.stat(b"file.bin")
    network.proxy.change(delay_s=0.01)
    chance = random.Random(3)
    given_up = 0

    async def read() -> None:
        nonlocal given_up
        with trio.move_on_after(chance.random() * 0.1) as scope:
            await remote.read(b"file.bin", entry.version, 0, 1 << 20)
        given_up += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(read)
    assert given_up
    assert remote.statistics.under_way == 0
    network.proxy.heal()
    data = await remote.read(b"file.bin", entry.version, 0, len(CONTENT))
    assert data == CONTENT
