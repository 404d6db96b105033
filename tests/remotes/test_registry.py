"""The registry: every scheme finds its driver, and nothing is loaded before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import BadUrl
from syncer.remotes.machinery import Machinery
from syncer.remotes.registry import MODULES, open_remote
from tests.remotes.kinds import machinery

# Nobody listens there: opening a remote asks no server.
URLS = {
    "file": "file:///{home}",
    "sftp": "sftp://anna@127.0.0.1:9/x",
    "smb": "smb://anna@127.0.0.1:9/share/x",
    "s3": "s3://bucket/x",
    "az": "az://container/x",
    "gs": "gs://bucket/x",
    "http": "http://127.0.0.1:9/x/",
    "https": "https://127.0.0.1:9/x/",
    "fsspec": "fsspec+memory:///x",
}


@pytest.fixture
def given(bridge: Bridge, tmp_path: Path) -> Machinery:
    return machinery(bridge, tmp_path)


def test_every_scheme_is_tried_below() -> None:
    assert set(URLS) == {*MODULES, "fsspec"}


@pytest.mark.parametrize("scheme", URLS)
async def test_every_scheme_opens_without_a_server(scheme: str, given: Machinery) -> None:
    url = URLS[scheme].format(home=str(given.home).lstrip("/"))
    options = {"account": "someone"} if scheme == "az" else {}
    remote = await open_remote(url, options, given)
    assert remote.url.startswith(url.partition("/")[0])
    await remote.close()


@pytest.mark.parametrize("scheme", URLS)
async def test_every_scheme_refuses_what_it_does_not_know(scheme: str, given: Machinery) -> None:
    url = URLS[scheme].format(home=str(given.home).lstrip("/"))
    if scheme != "fsspec":  # whose options are for libraries that nobody has a list of
        with pytest.raises(BadUrl, match="nonsense"):
            await open_remote(url, {"nonsense": "1"}, given)
    with pytest.raises(BadUrl, match="secret") as caught:
        await open_remote(url, {"password": "hunter2"}, given)
    assert "hunter2" not in str(caught.value)


async def test_an_unknown_scheme_is_answered_with_the_known_ones(given: Machinery) -> None:
    with pytest.raises(BadUrl, match="unknown scheme 'ftp'") as caught:
        await open_remote("ftp://h/x", {}, given)
    assert all(f"{scheme}://" in str(caught.value) for scheme in MODULES)


def test_no_driver_is_loaded_before_it_is_used() -> None:
    program = """
import sys
import syncer.remotes.registry, syncer.remotes.wrappers
heavy = {"obstore", "asyncssh", "smbprotocol", "fsspec", "httpx", "cryptography"}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert not done.stdout.strip()
