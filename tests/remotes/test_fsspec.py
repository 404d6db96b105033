"""What is particular to fsspec: archives, chains, asyncio, what is not installed."""

from __future__ import annotations

import asyncio
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import trio
from fsspec.asyn import AsyncFileSystem

from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import (
    BadUrl,
    Changed,
    Denied,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.fsspec_remote import open_remote
from syncer.remotes.remote import ROOT, Kind, Remote, Version
from tests.remotes.kinds import machinery
from tests.remotes.test_conformance import entries, eventually

FILES = {
    "a.txt": b"hello",
    "d/b.bin": bytes(range(256)) * 100,
    "d/e/c": b"",
    "d/na me %41 é": b"odd",
    "../out": b"escaped",
    "/absolute": b"escaped",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in FILES.items():
            out.writestr(zipfile.ZipInfo(name, (2024, 1, 31, 10, 0, 2)), data)
    return path


@pytest.fixture
async def opened(bridge: Bridge, tmp_path: Path):
    """Opens remotes, and closes them."""
    remotes: list[Remote] = []

    async def open_one(url: str, options: dict[str, str] | None = None, **changes) -> Remote:
        remote = await open_remote(url, options or {}, machinery(bridge, tmp_path, **changes))
        remotes.append(remote)
        return remote

    yield open_one
    for remote in remotes:
        await remote.close()


async def check_archive(remote: Remote) -> None:
    found = await entries(remote)
    assert found[b"a.txt"].size == 5
    assert found[b"a.txt"].mtime_ns == 1706695202 * 10**9
    assert found[b"a.txt"].etag.startswith("CRC:")
    assert found[b"d/"].kind is Kind.DIRECTORY
    assert b".." not in {entry.name for entry in found.values()}
    below = await entries(remote, b"d/")
    assert set(below) == {b"d/b.bin", b"d/e/", "d/na me %41 é".encode()}
    for key, data in {b"d/b.bin": FILES["d/b.bin"], "d/na me %41 é".encode(): b"odd"}.items():
        assert await remote.read(key, below[key].version, 1, 2) == data[1:3]
        entry, whole = await remote.read_whole(key, 1 << 20)
        assert (entry.version, whole) == (below[key].version, data)
    with pytest.raises(Missing):
        await remote.stat(b"../out")
    with pytest.raises(Missing):
        await remote.stat(b"gone")
    with pytest.raises(Changed):
        await remote.read(b"a.txt", Version(5, "CRC:1", 0), 0, 5)


async def test_zip_by_a_chain(archive: Path, opened):
    await check_archive(await opened(f"fsspec+zip://::file://{archive}"))


async def test_zip_by_an_option(archive: Path, opened):
    await check_archive(await opened("fsspec+zip://", {"fo": str(archive)}))


async def test_a_path_in_a_chain(archive: Path, opened):
    below = await opened(f"fsspec+zip://d::file://{archive}")
    assert set(await entries(below)) == {b"b.bin", b"e/", "na me %41 é".encode()}
    assert (await below.read_whole(b"b.bin", 1 << 20))[1] == FILES["d/b.bin"]
    single = await opened(f"fsspec+zip://a.txt::file://{archive}")
    entry = await single.stat(ROOT)
    assert (entry.key, entry.kind) == (b"", Kind.FILE)
    assert await single.read(ROOT, entry.version, 1, 3) == b"ell"


async def test_an_archive_that_is_missing_or_none(tmp_path: Path, opened):
    gone = await opened(f"fsspec+zip://::file://{tmp_path}/gone.zip")
    with pytest.raises(Missing):
        await gone.stat(ROOT)
    (tmp_path / "no.zip").write_bytes(b"no archive at all")
    with pytest.raises(Garbled):
        await entries(await opened(f"fsspec+zip://::file://{tmp_path}/no.zip"))


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("fsspec+nosuch://x", {}, "knows no protocol 'nosuch'"),
        ("fsspec+dropbox://x", {}, "dropboxdrivefs"),  # the package to install
        ("fsspec+memory://x", {"token": "hidden"}, "credentials file"),
        ("fsspec+memory://x", {"colour": "red"}, "unknown option 'colour'"),
        ("fsspec+zip://", {"fo": "x", "allowZip64": "maybe"}, "true or false"),
        ("fsspec+zip://", {"fo": "x", "compression": "much"}, "a number"),
        ("fsspec+zip://::sftp://me:hidden@host/x.zip", {}, "password"),
    ],
)
async def test_bad_urls(url: str, options: dict[str, str], says: str, opened):
    with pytest.raises(BadUrl, match=says) as caught:
        await opened(url, options)
    assert "hidden" not in str(caught.value)


class _Session:
    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True


class _Looped(AsyncFileSystem):
    """A filesystem for asyncio that knows where it is used."""

    protocol = "looped"
    made: list[_Looped] = []  # noqa: RUF012 - the tests' view of what is made behind their backs
    failure: Exception | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._session = _Session()
        self.waiting = 0
        self.made.append(self)

    async def _check(self) -> None:
        assert self.asynchronous
        assert threading.current_thread().name == "bridge"
        if self.failure is not None:
            raise self.failure
        await asyncio.sleep(0)

    async def _info(self, path, **kwargs):
        await self._check()
        if path == "d":
            return {"name": "d", "size": 0, "type": "directory"}
        return {"name": path, "size": 4, "type": "file", "ETag": "one", "mtime": 1.5}

    async def _ls(self, path, detail=True, **kwargs):
        await self._check()
        return [
            {"name": "d/f", "size": 4, "type": "file", "ETag": "one", "mtime": 1.5},
            {"name": "d", "size": 0, "type": "directory"},
            {"name": "d/e", "size": 0, "type": "directory"},
            {"name": "elsewhere/f", "size": 4, "type": "file"},
            {"name": "d/unsized", "size": None, "type": "file"},
        ]

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        await self._check()
        if "slow" in path:
            self.waiting += 1
            try:
                await asyncio.sleep(3600)
            finally:
                self.waiting -= 1
        return b"data"[start:end]


@pytest.fixture
def looped() -> Iterator[type[_Looped]]:
    fsspec.register_implementation("looped", _Looped, clobber=True)
    _Looped.made, _Looped.failure = [], None
    yield _Looped
    _Looped.made, _Looped.failure = [], None


async def test_asyncio_filesystems_run_on_the_bridge(looped, opened, bridge: Bridge):
    remote = await opened("fsspec+looped://d")
    assert not looped.made  # nothing before it is needed
    found = await entries(remote)
    assert {key: entry.kind for key, entry in found.items()} == {
        b"f": Kind.FILE,
        b"e/": Kind.DIRECTORY,
        b"unsized": Kind.OTHER,
    }
    entry = found[b"f"]
    assert (entry.etag, entry.mtime_ns) == ("ETag:one", 1_500_000_000)
    assert await remote.read(b"f", entry.version, 1, 2) == b"at"
    with trio.move_on_after(0.2) as scope:
        await remote.read(b"slow", entry.version, 0, 4)
    assert scope.cancelled_caught
    (filesystem,) = looped.made
    assert filesystem.waiting == 0
    assert bridge.running == 0
    await remote.close()
    assert filesystem._session.closed


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (FileNotFoundError("x"), Missing),
        (PermissionError("x"), Denied),
        (TimeoutError(), Unreachable),
        (ConnectionResetError("x"), Unreachable),
        (OSError("x"), Unreachable),
        (NotImplementedError(), Unsupported),
        (KeyError("the secret"), Garbled),
        (RuntimeError("the secret"), Garbled),
    ],
)
async def test_errors(failure: Exception, error: type[RemoteError], looped, opened):
    remote = await opened("fsspec+looped://d")
    looped.failure = failure
    with pytest.raises(error) as caught:
        await remote.stat(b"f")
    assert "secret" not in str(caught.value)


async def test_no_answer_in_time(looped, opened, bridge: Bridge):
    remote = await opened("fsspec+looped://d", read_timeout_s=0.2)
    version = (await remote.stat(b"slow")).version
    with pytest.raises(Unreachable, match="in time"):
        await remote.read(b"slow", version, 0, 4)
    assert bridge.running == 0


async def test_a_blocked_thread_does_not_block_us(opened, tmp_path: Path):
    go_on = threading.Event()

    class Blocking(fsspec.AbstractFileSystem):
        protocol = "blocking"

        def info(self, path, **kwargs):
            go_on.wait()
            return {"name": path, "size": 0, "type": "directory"}

    fsspec.register_implementation("blocking", Blocking, clobber=True)
    remote = await opened("fsspec+blocking://x", read_timeout_s=0.2)
    with pytest.raises(Unreachable, match="in time"):
        await remote.stat(ROOT)
    go_on.set()
    assert (await remote.stat(ROOT)).kind is Kind.DIRECTORY
    await remote.close()
    await eventually(lambda: not any(t.name == "fsspec" for t in threading.enumerate()))
