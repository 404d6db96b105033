"""What local folders have that the suite of all remotes does not ask for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import BadUrl, Changed, Missing, Unreachable, Unsupported
from syncer.remotes.file import FileRemote, open_remote
from syncer.remotes.folder import Folder
from syncer.remotes.held import Held
from syncer.remotes.remote import ROOT, Attributes, Kind, Remote
from tests.remotes.kinds import machinery
from tests.remotes.test_conformance import entries, read_all


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder, with a secret beside it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f").write_bytes(b"secret")
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
async def folder(root: Path, bridge: Bridge) -> Remote:
    """A remote on it."""
    return await open_remote(f"file://{root}", {}, machinery(bridge, root))


@pytest.mark.parametrize(
    "url", ["file://host/path", "file://", "file://u@localhost/x", "file:///a%00b"]
)
async def test_urls_that_make_no_sense(url: str, root: Path, bridge: Bridge):
    with pytest.raises(BadUrl):
        await open_remote(url, {}, machinery(bridge, root))


async def test_unknown_options_are_named(root: Path, bridge: Bridge):
    with pytest.raises(BadUrl, match="colour"):
        await open_remote(f"file://{root}", {"colour": "red"}, machinery(bridge, root))


async def test_no_symlink_leads_out(root: Path, folder: Remote):
    (root / "out").symlink_to(root.parent / "secret")
    (root / "file").symlink_to(root.parent / "secret" / "f")
    version = (await folder.stat(b"out")).version
    for read in (b"out/f", b"file"):
        with pytest.raises(Changed):
            await folder.read(read, version, 0, 6)
        with pytest.raises((Missing, Unsupported)):
            await folder.read_whole(read, 100)
    with pytest.raises(Unsupported):
        await entries(folder, b"out/")
    for act in (
        lambda: folder.stat(b"out/f"),
        lambda: folder.delete(b"out/f"),
        lambda: folder.write(b"out/g", Held(b"")),
        lambda: folder.mkdir(b"out/d/"),
        lambda: folder.rename(b"out/f", b"g"),
        lambda: folder.set_attributes(b"out/f", Attributes(mode=0)),
    ):
        with pytest.raises(Missing):
            await act()
    assert os.listdir(root.parent / "secret") == ["f"]


async def test_no_name_leads_out(folder: Remote):
    for key in (b"../secret/f", b"..", b"a/../../secret/f", b"./f", b"a//b", b"nul\0"):
        with pytest.raises(Unsupported):
            await folder.stat(key)
        with pytest.raises(Unsupported):
            await folder.write(key, Held(b""))
        with pytest.raises(Unsupported):
            await entries(folder, key + b"/")


async def test_attributes_of_a_symlink_are_its_own(root: Path, folder: Remote):
    (root / "f").write_bytes(b"")
    (root / "l").symlink_to("f")
    before = (root / "f").stat()
    await folder.set_attributes(b"l", Attributes(mtime_ns=12345, uid=os.getuid()))
    assert (await folder.stat(b"l")).mtime_ns == 12345
    assert (root / "f").stat() == before


async def test_a_pipe_is_listed_and_never_waited_for(root: Path, folder: Remote):
    os.mkfifo(root / "pipe")
    entry = await folder.stat(b"pipe")
    assert entry.kind is Kind.OTHER
    with trio.fail_after(5):
        with pytest.raises(Unsupported):
            await folder.read_whole(b"pipe", 10)
        (root / "was").write_bytes(b"x")
        version = (await folder.stat(b"was")).version
        (root / "was").unlink()
        os.mkfifo(root / "was")
        with pytest.raises(Changed):
            await folder.read(b"was", version, 0, 1)


async def test_a_change_that_puts_the_time_back_is_seen(root: Path, folder: Remote):
    (root / "f").write_bytes(b"old")
    old = await folder.stat(b"f")
    with open(root / "f", "r+b") as file:  # noqa: ASYNC230
        file.write(b"new")
    os.utime(root / "f", ns=(old.mtime_ns, old.mtime_ns))
    assert (await folder.stat(b"f")).mtime_ns == old.mtime_ns
    with pytest.raises(Changed):
        await folder.read(b"f", old.version, 0, 3)


@pytest.mark.parametrize("name", ["f", "link"])
async def test_a_single_file_is_a_root(name: str, root: Path, bridge: Bridge):
    (root / "f").write_bytes(b"0123456789")
    (root / "link").symlink_to("f")
    remote = await open_remote(f"file://{root}/{name}", {}, machinery(bridge, root))
    entry = await remote.stat(ROOT)
    assert (entry.key, entry.kind, entry.size) == (b"", Kind.FILE, 10)
    assert await remote.read(ROOT, entry.version, 3, 4) == b"3456"
    with pytest.raises(Unsupported):
        await entries(remote)
    with pytest.raises(Missing):
        await remote.stat(b"f")
    await remote.write(ROOT, Held(b"new"), if_version=entry.version)
    assert (root / "f").read_bytes() == b"new"
    assert await read_all(remote, ROOT) == b"new"


async def test_a_root_that_is_gone_has_not_been_emptied(root: Path, folder: Remote):
    (root / "f").write_bytes(b"x")
    version = (await folder.stat(b"f")).version
    os.rename(root, root.parent / "moved")
    for act in (
        lambda: entries(folder),
        lambda: folder.stat(b"f"),
        lambda: folder.read(b"f", version, 0, 1),
        lambda: folder.write(b"g", Held(b"")),
    ):
        with pytest.raises(Unreachable, match="mounted"):
            await act()


async def test_a_disk_that_hangs_holds_nobody(root: Path, bridge: Bridge):
    """The system call is one that never returns until it is let go."""
    go_on = threading.Event()

    class Hanging(Folder):
        def stat(self, key):
            go_on.wait()
            return super().stat(key)

    given = machinery(bridge, root, read_timeout_s=0.05)
    remote = FileRemote("file:///hanging", Hanging(os.fsencode(root)), given)
    try:
        with trio.fail_after(5), pytest.raises(Unreachable, match="no answer"):
            await remote.stat(ROOT)
    finally:
        go_on.set()
