"""Local folders: what no other tree has to do."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from syncer import local_nodes
from syncer.filters import Filters
from syncer.local_copy import CopyItem, NewFile, copy_files, write_files
from syncer.local_features import features_of
from syncer.local_parts import STALE_S, PartNames, is_dead, is_part, kept_name
from syncer.local_tree import LocalTree
from syncer.options import Mode, Options
from syncer.plan import make_plan
from syncer.remotes.errors import (
    Changed,
    Denied,
    Full,
    Missing,
    OtherFileSystem,
    RemoteError,
    Unreachable,
)
from syncer.remotes.held import Held
from syncer.steps import Step, StepKind
from syncer.tree import ROOT, Metadata, Node, NodeKind
from tests.syncer.tree_conformance import listed

NOTHING = Metadata()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def tree(tmp_path: Path):
    tree = await LocalTree.open(os.fsencode(tmp_path / "root"))
    await tree.mkdir(ROOT, NOTHING)
    yield tree
    await tree.close()


def root_of(tree: LocalTree) -> Path:
    return Path(os.fsdecode(tree.root.root))


async def content_of(tree: LocalTree, path: bytes) -> bytes:
    node = await tree.stat(path)
    return await tree.read(path, node, 0, node.size)


def ran(*command: str | bytes | os.PathLike[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, check=False)


async def test_a_root_that_vanished_is_unreachable(tree: LocalTree) -> None:
    node = await tree.write(b"d/file", Held(b"x"), NOTHING)
    root_of(tree).rename(root_of(tree).with_name("away"))
    for call in (
        lambda: listed(tree, ROOT),
        lambda: listed(tree, b"d"),
        lambda: tree.stat(ROOT),
        lambda: tree.stat(b"d/file"),
        lambda: tree.read(b"d/file", node, 0, 1),
        lambda: tree.write(b"d/new", Held(b"x"), NOTHING),
        lambda: tree.delete(b"d/file", node),
    ):
        with pytest.raises(Unreachable):
            await call()
    (result,) = await tree.list_many([b"d"])
    assert isinstance(result, Unreachable)
    (outcome,) = await write_files(tree, [NewFile(b"d/x", b"", 0, NOTHING)])
    assert isinstance(outcome.error, Unreachable)
    assert not root_of(tree).exists()


async def test_a_single_file_is_a_tree_of_one_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")  # what the owner of the tree named is followed
    for name in ("file", "link"):
        tree = await LocalTree.open(os.fsencode(tmp_path / name))
        node = await tree.stat(ROOT)
        assert (node.name, node.kind, node.size) == (b"", NodeKind.FILE, 7)
        assert await tree.read(ROOT, node, 0, 7) == b"content"
        await tree.close()


async def test_lists_many_as_it_lists_one(tree: LocalTree) -> None:
    for name in (b"a/one", b"a/two", b"b/c/three", b"b/four"):
        await tree.write(name, Held(name), NOTHING)
    await tree.symlink(b"b/link", b"four", NOTHING)
    deep = b"/".join([b"deep"] * 100)
    await tree.write(deep + b"/file", Held(b"x"), NOTHING)
    paths = [ROOT, b"a", b"b", b"b/c", b"gone", deep, b"a", b"b/four"]
    for path, found in zip(paths, await tree.list_many(paths, 3), strict=True):
        if path in {b"gone", b"b/four"}:
            assert isinstance(found, Missing)
            continue
        expected = await listed(tree, path)
        assert isinstance(found, list)
        names = {node.name: node._replace(atime_ns=None) for node in found}  # it is read
        assert names == {name: node._replace(atime_ns=None) for name, node in expected.items()}
    assert (await tree.list_many([b"b", b"a"], 2))[0] is None  # more than two are in it


async def test_pages_of_a_large_directory(tree: LocalTree) -> None:
    names = {b"%d" % number for number in range(4_100)}
    for name in names:
        os.mknod(os.path.join(tree.root.root, name))
    pages = []

    async def sink(page) -> None:
        await trio.lowlevel.checkpoint()
        pages.append(page)

    await tree.list(ROOT, sink)
    assert [len(page) for page in pages] == [2_000, 2_000, 100]
    assert {node.name for page in pages for node in page} == names


async def test_nodes_say_all_that_lstat_says(tree: LocalTree) -> None:
    path = os.path.join(tree.root.root, b"file")
    await tree.write(b"file", Held(b"x" * 5000), NOTHING)
    os.chmod(path, 0o4711)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    os.link(path, path + b"2")
    node, found = await tree.stat(b"file"), os.lstat(path)
    assert node.mtime_ns == 1_234_567_890_123_456_789
    assert (node.mode, node.uid, node.gid) == (0o4711, found.st_uid, found.st_gid)
    assert node.link == (found.st_dev, found.st_ino)
    assert node.allocated == found.st_blocks * 512
    before = node.token
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))  # only the change time tells
    assert (await tree.stat(b"file")).token != before


@needs_root
async def test_devices_owners_and_unknown_ones(tree: LocalTree) -> None:
    for kind, number in ((NodeKind.CHARACTER, os.makedev(1, 3)), (NodeKind.BLOCK, 0x701)):
        node = Node(b"", kind, mode=0o600, rdev=number)
        await tree.special(b"device", node, Metadata(uid=4_000_000, gid=3))
        found = await tree.stat(b"device")
        assert (found.kind, found.rdev, found.uid, found.gid) == (kind, number, 4_000_000, 3)
        assert found.owner is None
    await tree.write(b"file", Held(b"x"), Metadata(mode=0o6755, uid=1, gid=1))
    assert (await tree.stat(b"file")).mode == 0o6755  # not lost when it was given away


async def test_acls_and_attributes(tree: LocalTree, tmp_path: Path) -> None:
    if ran("setfacl", "-m", "u:12345:rwx,m::rx", tmp_path).returncode:
        pytest.skip("the file system has no ACLs")
    acl = os.getxattr(tmp_path, "system.posix_acl_access")
    wanted = {b"system.posix_acl_access": acl, b"user.x": b"\0\xff"}
    if os.geteuid() == 0:
        wanted |= {b"trusted.x": b"t"}
    await tree.write(b"file", Held(b"x"), Metadata(mode=0o750, xattrs=wanted))
    assert await tree.xattrs(b"file") == wanted
    assert (await tree.stat(b"file")).mode == 0o750
    # What a directory gives to new files is not theirs if they came without.
    default = Metadata(xattrs={b"system.posix_acl_default": acl})
    await tree.mkdir(b"d", default)
    await tree.write(b"d/file", Held(b"x"), Metadata(mode=0o600, xattrs={}))
    assert await tree.xattrs(b"d/file") == {}


def as_nobody(work: Callable[[], None]) -> None:
    """In a child that is nobody; only root can do that."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            work()
        except BaseException as error:  # noqa: BLE001 - the child ends here
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@needs_root
def test_who_is_not_root_keeps_what_they_may() -> None:
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(dir="/tmp")  # pytest's own are closed to others
    os.chmod(folder, 0o777)

    def work() -> None:
        handle = os.open(folder + "/file", os.O_CREAT | os.O_RDWR, 0o444)
        wanted = Metadata(0o6444, 0, 0, 5, 6, {b"user.x": b"1", b"trusted.x": b"2"})
        local_nodes.apply(handle, wanted)
        found = os.fstat(handle)
        assert stat.S_IMODE(found.st_mode) == 0o444  # not setuid of somebody else
        assert (found.st_uid, found.st_mtime_ns) == (65534, 5)
        assert local_nodes.read_xattrs(handle) == {b"user.x": b"1"}
        local_nodes.apply(handle, Metadata(xattrs={b"user.y": b"2"}))
        assert stat.S_IMODE(os.fstat(handle).st_mode) == 0o444
        assert local_nodes.read_xattrs(handle) == {b"user.y": b"2"}
        assert not features_of(b"/").write
        assert not features_of(os.fsencode(folder)).owner

    try:
        as_nobody(work)
    finally:
        shutil.rmtree(folder)


# ---- nothing outside the root ----


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, bytes(one), -100, bytes(other), 2) == 0, ctypes.get_errno()


class Swapper:
    """Changes a directory into a symlink that leads out and back, as fast as it can."""

    def __init__(self, folder: Path, outside: Path) -> None:
        self.real = folder / "d"
        self.hidden = folder / "hidden"
        self.hidden.symlink_to(outside)
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            exchange(self.real, self.hidden)
            exchange(self.real, self.hidden)
            self.rounds += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


async def test_no_race_leads_out_of_the_root(tree: LocalTree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    (outside / "victim").write_bytes(b"victim")
    (root_of(tree) / "d").mkdir()
    (root_of(tree) / "d" / "file").write_bytes(b"public")
    source = await LocalTree.open(os.fsencode(tmp_path / "source"))
    await source.mkdir(ROOT, NOTHING)
    item_node = await source.write(b"file", Held(b"from source"), NOTHING)
    kept = {each: each.read_bytes() for each in outside.iterdir()}
    with Swapper(root_of(tree), outside) as swapper:
        for number in range(150):
            for call in (
                lambda: tree.stat(b"d/file"),
                lambda n=number: tree.write(b"d/new%d" % n, Held(b"new"), Metadata(mode=0o666)),
                lambda: tree.set_metadata(b"d/victim", Metadata(mode=0o777)),
                lambda n=number: tree.symlink(b"d/link%d" % n, b"x", NOTHING),
                lambda n=number: tree.delete(b"d/new%d" % n, item_node),
            ):
                with contextlib.suppress(RemoteError):
                    await call()
            with contextlib.suppress(RemoteError):
                node = await tree.stat(b"d/file")
                assert await tree.read(b"d/file", node, 0, 6) == b"public"
            (found,) = await tree.list_many([b"d"])
            assert isinstance(found, RemoteError) or b"victim" not in {n.name for n in found}
            await copy_files(
                source,
                tree,
                [CopyItem(b"file", b"d/copied", item_node, replace=True)],
                Options(durable=False),
            )
    assert swapper.rounds
    assert await content_of(tree, b"d/file") == b"public"
    assert {each: each.read_bytes() for each in outside.iterdir()} == kept
    assert stat.S_IMODE((outside / "victim").stat().st_mode) == 0o644
    await source.close()


async def test_a_pipe_in_place_of_a_file_holds_nobody(tree: LocalTree) -> None:
    node = await tree.write(b"file", Held(b"x"), NOTHING)
    (root_of(tree) / "file").unlink()
    os.mkfifo(root_of(tree) / "file")
    with pytest.raises(Changed):
        await tree.read(b"file", node, 0, 1)
    (outcome,) = await copy_files(tree, tree, [CopyItem(b"file", b"copy", node)], Options())
    assert isinstance(outcome.error, Changed)


async def test_a_socket_is_listed(tree: LocalTree) -> None:
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(root_of(tree))  # a socket's path is short
        try:
            server.bind("s")
        finally:
            os.chdir(here)
        assert (await tree.stat(b"s")).kind is NodeKind.SOCKET


# ---- parts ----


@given(
    age_s=st.floats(0, 10 * STALE_S),
    other=st.booleans(),
    start=st.one_of(st.none(), st.integers(0, 1 << 40)),
)
def test_parts_of_living_processes_stay(age_s: float, other: bool, start: int | None) -> None:
    names = PartNames()
    mine = names.new()
    assert is_part(mine)
    assert mine != names.new()
    own_start = int(mine.split(b"-")[3], 16)
    boot = b"00000000" if other else names.boot
    dead = is_dead(mine, age_s, boot, lambda pid: start if pid == os.getpid() else None)
    assert dead == (age_s > STALE_S if boot != names.boot else start != own_start)
    assert is_dead(kept_name(), age_s, names.boot, lambda pid: None) == (age_s > STALE_S)


@given(st.binary(max_size=40))
def test_a_users_file_is_no_part(name: bytes) -> None:
    assert not is_part(name)
    assert not is_part(b".orbit-" + name)
    assert not is_part(b".orbit-" + name + b".part")


async def test_parts_are_hidden_and_the_dead_ones_removed(tree: LocalTree) -> None:
    await tree.mkdir(b"d", NOTHING)
    code = (
        "from syncer.local_parts import PartNames; import sys; "
        "sys.stdout.buffer.write(PartNames().new())"
    )
    ended = ran(sys.executable, "-c", code).stdout
    alive, kept = tree.parts.new(), kept_name()
    for name in (ended, alive, kept):
        (root_of(tree) / "d" / os.fsdecode(name)).write_bytes(b"part")
    assert await listed(tree, b"d") == {}
    assert (await tree.list_many([b"d"]))[0] == []
    assert await tree.clean(b"d") == 1
    assert {os.fsencode(each.name) for each in (root_of(tree) / "d").iterdir()} == {alive, kept}
    node = await tree.stat(b"d")
    with pytest.raises(RemoteError):
        await tree.delete(b"d", node)  # somebody is writing there
    for name in (alive, kept):
        (root_of(tree) / "d" / os.fsdecode(name)).unlink()
    (root_of(tree) / "d" / os.fsdecode(ended)).write_bytes(b"part")
    await tree.delete(b"d", node)  # nobody is
    assert await listed(tree, ROOT) == {}


# ---- full, and read-only ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if ran("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder).returncode:
        pytest.skip("mounting is not allowed")
    yield folder
    assert not ran("umount", "-l", folder).returncode  # a test that failed has it open


async def test_a_full_disk_leaves_no_half_file(small_disk: Path, tmp_path: Path) -> None:
    target = await LocalTree.open(os.fsencode(small_disk))
    await target.write(b"old", Held(b"old"), NOTHING)
    with pytest.raises(Full):
        await target.write(b"old", Held(bytes(3 << 20)), NOTHING)
    source = await LocalTree.open(os.fsencode(tmp_path / "source"))
    await source.mkdir(ROOT, NOTHING)
    items = []
    for number in range(100):
        name = b"%d" % number
        node = await source.write(name, Held(bytes([number]) * 30_000), NOTHING)
        items.append(CopyItem(name, name, node))
    outcomes = await copy_files(source, target, items, Options())
    good = {item.path for item, outcome in zip(items, outcomes, strict=True) if not outcome.error}
    assert 0 < len(good) < 100
    assert all(isinstance(each.error, Full) for each in outcomes if each.error)
    found = {os.fsencode(name): (small_disk / name).read_bytes() for name in os.listdir(small_disk)}
    assert found.pop(b"old") == b"old"
    assert found == {name: bytes([int(name)]) * 30_000 for name in good}
    await source.close()
    await target.close()


@needs_root
async def test_a_read_only_file_system_says_so(small_disk: Path) -> None:
    assert not ran("mount", "-o", "remount,ro", small_disk).returncode
    tree = await LocalTree.open(os.fsencode(small_disk))
    assert not tree.features.write
    assert "read-only" in tree.features.why_not
    with pytest.raises(Denied, match="Read-only"):
        await tree.write(b"file", Held(b"x"), NOTHING)
    await tree.close()


async def test_one_file_system(small_disk: Path) -> None:
    (small_disk / "inside").write_bytes(b"x")
    folder = os.fsencode(small_disk.parent)
    for one in (True, False):
        tree = await LocalTree.open(folder, one_file_system=one)
        assert b"small" in await listed(tree, ROOT)
        (many,) = await tree.list_many([b"small"])
        if one:
            with pytest.raises(OtherFileSystem):
                await listed(tree, b"small")
            assert isinstance(many, OtherFileSystem)
        else:
            assert set(await listed(tree, b"small")) == {b"inside"}
            assert isinstance(many, list)
            assert {node.name for node in many} == {b"inside"}
        await tree.close()


async def test_a_mirror_deletes_nothing_below_another_file_system(
    small_disk: Path, tmp_path: Path
) -> None:
    """What is not looked at is not gone."""
    (small_disk / "inside").write_bytes(b"x")
    target = tmp_path / "target"
    (target / "small").mkdir(parents=True)
    (target / "small" / "kept").write_bytes(b"y")
    (target / "other").write_bytes(b"z")
    options = Options(mode=Mode.MIRROR, force=True, one_file_system=True)
    source = await LocalTree.open(os.fsencode(small_disk.parent), one_file_system=True)
    destination = await LocalTree.open(os.fsencode(target), one_file_system=True)
    steps: list[Step] = []

    async def take(batch: Sequence[Step]) -> None:
        await trio.lowlevel.checkpoint()
        steps.extend(batch)

    filters = Filters.parse(["- /target/"], now_ns=0)
    plan = await make_plan(source, destination, options, filters, take)
    assert {step.path for step in steps if step.kind is StepKind.DELETE} == {b"other"}
    assert not any(step.kind is StepKind.COPY for step in steps)
    assert not plan.problems
    await source.close()
    await destination.close()


def test_every_kind_of_error_is_a_remote_error(tmp_path: Path) -> None:
    from syncer.remotes.local import remote_error

    for number in errno.errorcode:
        error = remote_error(b"/some/path", OSError(number, os.strerror(number)))
        assert isinstance(error, RemoteError)
        assert "/some/path" in str(error)
