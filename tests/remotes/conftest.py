"""Servers once a session, places and remotes once a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from syncer.remotes.bridge import Bridge
from syncer.remotes.remote import Remote
from tests.remotes.kinds import Kind, Place, Server, find_kinds


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Kind], Server]]:
    """The server of a kind, started when it is first asked for."""
    running: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:

        def start(kind: Kind) -> Server:
            if kind.name not in running:
                folder = tmp_path_factory.mktemp(kind.name)
                running[kind.name] = stack.enter_context(kind.serve(folder))
            return running[kind.name]

        yield start


@pytest.fixture(params=find_kinds(), ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every kind in turn."""
    return request.param


@pytest.fixture
def server(kind: Kind, serve: Callable[[Kind], Server]) -> Server:
    """The kind's server."""
    return serve(kind)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """A running bridge, on which the test must leave nothing."""
    bridge = Bridge()
    bridge.start()
    yield bridge
    left = bridge.running
    bridge.stop()
    assert left == 0


@pytest.fixture
def place(server: Server, bridge: Bridge) -> Place:
    """An empty place."""
    return server.place(bridge)


@pytest.fixture
async def remote(place: Place):
    """A remote on the place."""
    remote: Remote = await place.open()
    yield remote
    await remote.close()
