"""Daemons, servers and proxies for the tests of projections on real mounts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.mount.conftest import machine, new_daemon, watch, workplace
from tests.projections.mounts import Bucket, Folder, Projector, Site
from tests.servers.openssh import OpenSsh, openssh
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import SeaweedFs, seaweedfs

__all__ = ["machine", "new_daemon", "watch", "workplace"]


@pytest.fixture(scope="session")
def sshd(workplace) -> Iterator[OpenSsh]:
    with openssh() as server:
        yield server


@pytest.fixture(scope="session")
def weed(workplace) -> Iterator[SeaweedFs]:
    with seaweedfs() as server:
        yield server


@pytest.fixture
def folder(workplace, sshd, tmp_path) -> Iterator[Folder]:
    """An empty folder behind SFTP and a proxy of its own."""
    with Proxy(sshd.port) as proxy:
        yield Folder(sshd, proxy, tmp_path / "source")


@pytest.fixture
def bucket(workplace, weed) -> Iterator[Bucket]:
    """An empty prefix behind S3 and a proxy of its own."""
    with Proxy(weed.port) as proxy:
        yield Bucket(weed, proxy)


@pytest.fixture(params=["sftp", "s3"])
def site(request) -> Site:
    """An empty place of either kind."""
    return request.getfixturevalue("folder" if request.param == "sftp" else "bucket")


@pytest.fixture
def projector(new_daemon, workplace) -> Iterator[Callable[..., Projector]]:
    """Makes daemons that project a site; they are started, and cleared away afterwards."""
    made: list[Projector] = []
    with contextlib.ExitStack() as stack:

        def make(site: Site, **options) -> Projector:
            projector = Projector(new_daemon, site, **options)
            made.append(projector)
            stack.callback(projector.heal)
            return projector

        yield make
