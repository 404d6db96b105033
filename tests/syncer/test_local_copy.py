"""Copying between local folders: what is copied is equal in everything, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncer import linux, local_bytes, local_copy
from syncer.local_bytes import Method, Ways
from syncer.local_copy import CopyItem, NewFile, copy_files, write_files
from syncer.local_large import copy_large
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import Changed, Exists, Missing
from syncer.remotes.held import Held
from syncer.tree import ROOT, Metadata, Node, NodeKind
from tests.syncer.tree_conformance import listed

ARCHIVE = Options(owners=True, xattrs=True, durable=False)
NOTHING = Metadata()
BLOCK = 4096


class Made(NamedTuple):
    """A file to be copied."""

    name: bytes
    size: int
    runs: Sequence[tuple[int, bytes]]  # what is written where; the rest are holes
    mode: int
    owner: int
    mtime_ns: int
    xattrs: dict[str, bytes]


names = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in {b".", b".."} and not set(name) & set(b"/\0")
)
made = st.builds(
    Made,
    names,
    st.integers(0, 40 * BLOCK),
    st.lists(
        st.tuples(st.integers(0, 39 * BLOCK), st.binary(min_size=1, max_size=300)), max_size=5
    ),
    st.integers(0, 0o7777),
    st.sampled_from([0, 1, 65534]),
    st.integers(-(10**9), 2**33 * 10**9),
    st.dictionaries(
        st.text("abc.é", min_size=1, max_size=20).map(lambda name: "user." + name),
        st.binary(max_size=50),
        max_size=3,
    ),
)


def make(root: bytes, file: Made) -> None:
    path = os.path.join(root, file.name)
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    for offset, data in file.runs:
        os.pwrite(handle, data, offset)
    os.ftruncate(handle, file.size)
    if os.geteuid() == 0:
        os.fchown(handle, file.owner, file.owner)
    for name, value in file.xattrs.items():
        os.setxattr(handle, name, value)
    os.fchmod(handle, file.mode)
    os.utime(handle, ns=(0, file.mtime_ns))
    os.close(handle)


def seen(path: bytes) -> dict[str, Any]:
    """All that one can see of a file."""
    found = os.lstat(path)
    handle = os.open(path, os.O_RDONLY)
    data = os.read(handle, found.st_size + 1)
    ranges = linux.data_ranges(handle, found.st_size)
    xattrs = {name: os.getxattr(handle, name) for name in os.listxattr(handle)}
    os.close(handle)
    return {
        "mode": found.st_mode,
        "owner": (found.st_uid, found.st_gid),
        "mtime": found.st_mtime_ns,
        "xattrs": xattrs,
        "data": data,
        "ranges": ranges,
    }


async def nodes_of(tree: LocalTree) -> dict[bytes, Node]:
    return await listed(tree, ROOT)


@contextlib.asynccontextmanager
async def two_trees(folder: Path):
    trees = []
    for name in ("source", "target"):
        tree = await LocalTree.open(os.fsencode(folder / name))
        await tree.mkdir(ROOT, NOTHING)
        trees.append(tree)
    yield trees
    for tree in trees:
        await tree.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(made, max_size=4, unique_by=lambda file: file.name), st.booleans(), st.data())
def test_a_copy_is_equal_in_everything(files: list[Made], large: bool, data: st.DataObject) -> None:
    way = data.draw(st.sampled_from([Method.COPY_FILE_RANGE, Method.SENDFILE, Method.BUFFERED]))

    async def run(folder: Path) -> None:
        async with two_trees(folder) as (source, target):
            for file in files:
                make(source.root.root, file)
            nodes = await nodes_of(source)
            items = [CopyItem(name, b"a/b/" + name, node) for name, node in nodes.items()]
            with only(way):
                if large:
                    outcomes = [await copy_large(source, target, each, ARCHIVE) for each in items]
                else:
                    outcomes = await copy_files(source, target, items, ARCHIVE)
            for item, outcome in zip(items, outcomes, strict=True):
                assert outcome.error is None
                expected = seen(os.path.join(source.root.root, item.source_path))
                assert seen(os.path.join(target.root.root, item.path)) == expected
                assert outcome.bytes_copied == sum(length for _, length in expected["ranges"])
                assert outcome.method is (way if outcome.bytes_copied else Method.NOTHING)
            if files:
                assert set(await listed(target, b"a/b")) == set(nodes)

    folder = Path(tempfile.mkdtemp())
    try:
        trio.run(run, folder)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def only(way: Method) -> Iterator[None]:
    """The kernel knows none of the better ways."""

    def refuse(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "not here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linux, "clone", refuse)
        if way is not Method.COPY_FILE_RANGE:
            patch.setattr(os, "copy_file_range", refuse)
        if way is Method.BUFFERED:
            patch.setattr(os, "sendfile", refuse)
        yield


@pytest.fixture
async def trees(tmp_path: Path):
    async with two_trees(tmp_path) as trees:
        yield trees


async def test_what_is_not_asked_for_is_not_copied(trees: list[LocalTree]) -> None:
    source, target = trees
    metadata = Metadata(mode=0o6711, mtime_ns=5, xattrs={b"user.x": b"1"})
    node = await source.write(b"file", Held(b"x"), metadata)
    options = Options(modes=False, times=False, durable=False)
    await copy_files(source, target, [CopyItem(b"file", b"bare", node)], options)
    found = await target.stat(b"bare")
    mask = os.umask(0)
    os.umask(mask)
    assert found.mode == 0o666 & ~mask
    assert found.mtime_ns != 5
    assert await target.xattrs(b"bare") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_nobodys_setuid_becomes_ours(trees: list[LocalTree]) -> None:
    source, target = trees
    node = await source.write(b"file", Held(b"x"), Metadata(mode=0o6755, uid=1, gid=1))
    items = [CopyItem(b"file", b"copy", node)]
    await copy_files(source, target, items, Options(durable=False))
    assert (await target.stat(b"copy")).mode == 0o755
    items = [CopyItem(b"file", b"owned", node)]
    await copy_files(source, target, items, ARCHIVE)
    assert (await target.stat(b"owned")).mode == 0o6755


def acl(*entries: tuple[int, int, int]) -> bytes:
    """As the kernel keeps it: tag, permissions, id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF  # no id
ACL_MINIMAL = acl((0x01, 7, NOBODY), (0x04, 0, NOBODY), (0x20, 0, NOBODY))
ACL_NAMED = acl(
    (0x01, 7, NOBODY), (0x02, 7, 1), (0x04, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 0, NOBODY)
)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("given", [None, ACL_MINIMAL, ACL_NAMED], ids=["none", "minimal", "named"])
async def test_what_a_directory_gives_its_files_does_not_stay(
    trees: list[LocalTree], given: bytes | None
) -> None:
    """Its group, by setgid, and its default ACL: what the first file got from it, the next has."""
    source, target = trees
    for folder in (b"d", b"e"):
        await target.mkdir(folder, NOTHING)
        path = os.path.join(target.root.root, folder)
        os.chown(path, 0, 1)
        os.chmod(path, 0o2775)
        if given is not None:
            try:
                os.setxattr(path, "system.posix_acl_default", given)
            except OSError:
                pytest.skip("the file system keeps no ACLs")
    kinds = [(0o600, 0), (0o644, 0), (0o644, 0), (0o664, 1), (0o664, 1), (0o2751, 1), (0o644, 2)]
    items = []
    for number, (mode, owner) in enumerate(kinds * 2):
        name = b"%02d" % number
        metadata = Metadata(mode=mode, uid=owner, gid=owner, mtime_ns=7, xattrs={})
        node = await source.write(name, Held(name), metadata)
        items.append(CopyItem(name, (b"d/", b"e/")[number % 2] + name, node))
    outcomes = await copy_files(source, target, items, ARCHIVE)
    assert all(outcome.error is None for outcome in outcomes)
    for item in items:
        copied = seen(os.path.join(target.root.root, item.path))
        assert copied == seen(os.path.join(source.root.root, item.source_path))


async def test_each_file_fails_alone(trees: list[LocalTree]) -> None:
    source, target = trees
    nodes = {
        name: await source.write(name, Held(name), NOTHING)
        for name in (b"good", b"gone", b"changed", b"there", b"late", b"onto", b"below", b"long")
    }
    os.unlink(os.path.join(source.root.root, b"gone"))
    await source.write(b"changed", Held(b"something else"), NOTHING)
    old = await target.write(b"late", Held(b"old"), NOTHING)
    await target.write(b"late", Held(b"newer"), NOTHING)
    await target.write(b"there", Held(b"theirs"), NOTHING)
    await target.mkdir(b"onto", NOTHING)
    await target.write(b"file", Held(b"a file"), NOTHING)
    places = {name: name for name in nodes} | {b"below": b"file/below", b"long": b"x" * 256}
    items = [
        CopyItem(name, places[name], node, old=old if name == b"late" else None)
        for name, node in nodes.items()
    ]
    outcomes = dict(zip(nodes, await copy_files(source, target, items, ARCHIVE), strict=True))
    kinds = {name: type(outcome.error) for name, outcome in outcomes.items()}
    assert kinds.pop(b"good") is type(None)
    assert kinds.pop(b"below") is Missing
    assert kinds.pop(b"onto") is Exists
    assert kinds.pop(b"there") is Exists
    assert kinds.pop(b"long").__name__ == "Unsupported"
    assert set(kinds.values()) == {Changed}
    left = {
        name: (target_path(target) / os.fsdecode(name)).read_bytes()
        for name in os.listdir(target.root.root)
        if name != b"onto"
    }
    expected = {b"good": b"good", b"late": b"newer", b"there": b"theirs", b"file": b"a file"}
    assert left == expected
    assert os.listdir(os.path.join(target.root.root, b"onto")) == []


def target_path(tree: LocalTree) -> Path:
    return Path(os.fsdecode(tree.root.root))


@pytest.mark.parametrize("served", [False, True])
async def test_a_batch_of_many_in_one_go(
    trees: list[LocalTree], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one thread where the system answers from memory, in several where a server does."""
    source, target = trees
    monkeypatch.setattr(local_copy, "is_served", lambda _: served)
    # Nor does any disk read, whatever others do to this machine's memory.
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_inblock=0))
    files = [
        NewFile(b"d%d/%d" % (number % 70, number), b"%d" % number, len(b"%d" % number), NOTHING)
        for number in range(500)
    ]
    assert all(outcome.error is None for outcome in await write_files(source, files))
    listings = await source.list_many([b"d%d" % number for number in range(70)])
    items = [
        CopyItem(path, path, node)
        for number, nodes in enumerate(listings)
        for node in nodes
        for path in [b"d%d/%s" % (number, node.name)]
    ]
    assert len(items) == 500
    threads: set[int] = set()
    calls, real = itertools.count(), Ways.copy
    expected = local_copy._THREADS if served else 1
    all_there = threading.Barrier(expected)

    def copy(self: Ways, *args: Any) -> Method:
        mine = threading.get_ident()
        if next(calls) >= local_copy._TRIAL and mine not in threads:
            threads.add(mine)
            all_there.wait(60)
        return real(self, *args)

    monkeypatch.setattr(Ways, "copy", copy)
    with only(Method.COPY_FILE_RANGE):
        outcomes = await copy_files(source, target, items, Options())
    assert all(not outcome.error for outcome in outcomes)
    assert len(threads) == expected
    for number, nodes in enumerate(listings):
        folder = target_path(target) / f"d{number}"
        assert {each.name: each.read_bytes() for each in folder.iterdir()} == {
            node.name.decode(): node.name for node in nodes
        }


async def test_written_files_have_their_holes_and_metadata(trees: list[LocalTree]) -> None:
    _, target = trees
    ranges = [(BLOCK, 3), (10 * BLOCK, 4)]
    wanted = Metadata(mode=0o604, mtime_ns=77, xattrs={b"user.x": b"y"})
    files = [NewFile(b"a/sparse", b"onefour", 20 * BLOCK, wanted, ranges)]
    (outcome,) = await write_files(target, files)
    assert outcome == (None, Method.BUFFERED, 7)
    found = seen(os.path.join(target.root.root, b"a/sparse"))
    data = bytearray(20 * BLOCK)
    data[BLOCK : BLOCK + 3], data[10 * BLOCK : 10 * BLOCK + 4] = b"one", b"four"
    assert found["data"] == data
    assert stat.S_IMODE(found["mode"]) == 0o604
    assert found["xattrs"] == {"user.x": b"y"}
    assert sum(length for _, length in found["ranges"]) < len(data)


async def test_a_source_that_changes_while_it_is_copied(
    trees: list[LocalTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    node = await source.write(b"file", Held(bytes(100_000)), NOTHING)
    path = os.path.join(source.root.root, b"file")
    item = CopyItem(b"file", b"copy", node)
    real = Ways.copy

    def copy(self: Ways, *args: Any) -> Method:
        done = real(self, *args)
        with open(path, "r+b") as file:
            file.write(b"changed")
        return done

    monkeypatch.setattr(Ways, "copy", copy)
    (outcome,) = await copy_files(source, target, [item], ARCHIVE)
    assert isinstance(outcome.error, Changed)
    node = await source.stat(b"file")
    with pytest.raises(Changed):
        await copy_large(source, target, item._replace(node=node), ARCHIVE)
    assert os.listdir(target.root.root) == []


async def test_cancelled_batches_leave_nothing(
    trees: list[LocalTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    await write_files(
        source, [NewFile(b"%d" % number, b"x", 1, NOTHING) for number in range(200)], durable=False
    )
    nodes = await nodes_of(source)
    items = [CopyItem(name, name, node) for name, node in nodes.items()]
    token = trio.lowlevel.current_trio_token()
    for point in ("copy", "sync"):
        reached, go_on = trio.Event(), threading.Event()

        def wait(reached: trio.Event = reached, go_on: threading.Event = go_on) -> None:
            token.run_sync_soon(reached.set)
            assert go_on.wait(60)

        with monkeypatch.context() as patch:
            if point == "copy":
                real = Ways.copy

                def copy(self: Ways, *args: Any, wait=wait, real=real) -> Method:
                    wait()
                    return real(self, *args)

                patch.setattr(Ways, "copy", copy)
            else:
                patch.setattr(linux, "sync_file_system", lambda _, wait=wait: wait())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy_files, source, target, items, Options())
                await reached.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()  # it knows
                go_on.set()
        assert os.listdir(target.root.root) == []


async def test_a_hung_disk_does_not_hold_who_cancels(
    trees: list[LocalTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    node = await source.write(b"file", Held(b"x"), NOTHING)
    reached, alive = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def hang(_: int) -> None:
        token.run_sync_soon(reached.set)
        assert alive.wait(60)

    monkeypatch.setattr(linux, "sync_file_system", hang)
    item = CopyItem(b"file", b"file", node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy_files, source, target, [item], Options())
        await reached.wait()
        nursery.cancel_scope.cancel()
    assert not alive.is_set(), "it came back while the disk still hung"
    removed = trio.Event()
    unlink = os.unlink

    def tell(*args: Any, **more: Any) -> None:
        unlink(*args, **more)
        token.run_sync_soon(removed.set)

    monkeypatch.setattr(os, "unlink", tell)
    alive.set()
    await removed.wait()  # the thread removes its file when the disk comes back
    assert os.listdir(target.root.root) == []


# ---- crashes ----

CRASHER = """
import os, signal, sys, threading, trio
from syncer.local_copy import CopyItem, copy_files
from syncer.local_large import copy_large
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.tree import Metadata

large, folder = sys.argv[1] == "large", sys.argv[2].encode()
seen, crash_at, lock = 0, 0, threading.Lock()

armed = False

def profile(frame, event, function):
    global seen
    if armed and event == "c_call" and getattr(function, "__module__", "") in ("posix", "fcntl"):
        with lock:
            seen += 1
            if seen == crash_at:
                os.kill(os.getpid(), signal.SIGKILL)

async def main(target):
    source = await LocalTree.open(folder + b"/source")
    target = await LocalTree.open(target)
    items = [
        CopyItem(name, b"d/" + name, await source.stat(name), old=await target.stat(b"d/" + name))
        for name in sorted(os.listdir(folder + b"/source"))
    ]
    global armed
    armed = True
    options = Options(owners=True, xattrs=True)
    if large:
        for item in items:
            await copy_large(source, target, item, options)
    else:
        await copy_files(source, target, items, options)
    armed = False

while True:
    crash_at += 1
    target = folder + b"/target%d" % crash_at
    os.makedirs(target + b"/d")
    for name in os.listdir(folder + b"/source"):
        with open(target + b"/d/" + name, "wb") as file:
            file.write(b"old " + name)
    child = os.fork()
    if not child:
        code = 1
        try:
            threading.setprofile(profile)
            trio.run(main, target)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        print(crash_at)
        sys.exit(os.WEXITSTATUS(status))
"""


@pytest.mark.parametrize("how", ["small", "large"])
async def test_killed_at_any_call_a_file_is_the_old_or_the_new_one(
    how: str, tmp_path: Path
) -> None:
    """The child is killed at its first call of the system, at its second, until it gets through."""
    contents = {f"file{number}": os.urandom(20_000) for number in range(3)}
    (tmp_path / "source").mkdir()
    for name, data in contents.items():
        (tmp_path / "source" / name).write_bytes(data)
    command = [sys.executable, "-c", CRASHER, how, os.fspath(tmp_path)]
    done = await trio.run_process(command, capture_stdout=True)
    points = int(done.stdout)
    assert points > 30, "each call was a point to crash at"
    states = set()
    for point in range(1, points + 1):
        folder = os.path.join(tmp_path, f"target{point}", "d")
        tree = await LocalTree.open(os.fsencode(folder))
        found = {}
        for node in (await listed(tree, ROOT)).values():
            assert node.kind is NodeKind.FILE
            found[node.name.decode()] = await tree.read(node.name, node, 0, node.size)
        assert set(found) == set(contents)
        for name, data in found.items():
            assert data in {contents[name], b"old " + name.encode()}
        states.add(sum(found[name] == contents[name] for name in contents))
        await tree.clean(ROOT)
        kept = [name for name in os.listdir(folder) if name not in contents]
        assert all(name.startswith(".orbit-kept-") for name in kept)
        assert how == "large" or not kept
        await tree.close()
    assert states == {0, 1, 2, 3}


def test_names_follow_bytes(tmp_path: Path) -> None:
    """One sync of the file system stands between the last byte and the first name.

    The next one brings the names to the disk.
    """
    trace = tmp_path / "trace"
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / "source" / f"file{number}").write_bytes(b"x" * 1000)
    code = (
        "import sys, os, trio\n"
        "from syncer.local_copy import *\nfrom syncer.local_tree import LocalTree\n"
        "from syncer.options import Options\n"
        "async def main():\n"
        "    s = await LocalTree.open(sys.argv[1].encode() + b'/source')\n"
        "    t = await LocalTree.open(sys.argv[1].encode() + b'/target')\n"
        "    names = [b'file0', b'file1', b'file2']\n"
        "    items = [CopyItem(n, b'd/' + n, await s.stat(n)) for n in names]\n"
        "    await copy_files(s, t, items, Options())\n"
        "    await t.sync()\n"
        "os.mkdir(sys.argv[1] + '/target')\n"
        "trio.run(main)\n"
    )
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    command = ["strace", "-f", "-o", trace, "-e", "trace=copy_file_range,syncfs,renameat2,fsync"]
    done = subprocess.run([*command, sys.executable, "-c", code, tmp_path], check=False)
    if done.returncode:
        pytest.skip("strace is not allowed here")
    calls = [line.split()[1].partition("(")[0] for line in trace.read_text().splitlines()]
    calls = [call for call in calls if call in {"copy_file_range", "syncfs", "renameat2", "fsync"}]
    if "copy_file_range" not in calls:
        pytest.skip("the file system shares blocks")
    assert calls == ["copy_file_range"] * 3 + ["syncfs"] + ["renameat2"] * 3 + ["syncfs"]


def test_a_failed_sync_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with two_trees(tmp_path) as (source, target):
            node = await source.write(b"file", Held(b"x"), NOTHING)

            def fail(_: int) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            monkeypatch.setattr(linux, "sync_file_system", fail)
            items = [CopyItem(b"file", b"file", node)]
            (outcome,) = await copy_files(source, target, items, Options())
            assert type(outcome.error).__name__ == "Unreachable"
            assert os.listdir(target.root.root) == []

    trio.run(run)


def test_a_source_that_lies_about_its_size_is_read_to_its_end(tmp_path: Path) -> None:
    """As files of /proc do: the kernel's ways give nothing, reading gives the bytes."""
    with open("/proc/version", "rb") as source, open(tmp_path / "file", "w+b") as target:
        method = Ways().copy(source.fileno(), target.fileno(), 0, 10_000, (1, 2))
        assert method is Method.BUFFERED
        assert Path("/proc/version").read_bytes() == (tmp_path / "file").read_bytes()
    assert local_bytes.Method.BUFFERED.value == "buffered"
