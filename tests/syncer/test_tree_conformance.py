"""What every kind of tree must do. See `tree_conformance` for how one joins."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from syncer.remotes.errors import Changed, Exists, Missing, NotEmpty, Unsupported
from syncer.remotes.held import Held
from syncer.tree import ROOT, Metadata, Node, NodeKind, Tree
from tests.syncer.tree_conformance import (
    MTIME_NS,
    Endless,
    Failing,
    Sample,
    TreeKind,
    find_kinds,
    listed,
)

KINDS = find_kinds()
LARGE = random.Random(5).randbytes((9 << 20) + 4321)
NOTHING = Metadata()

NAMES = [
    b"plain",
    b"with space",
    b"new\nline",
    b"tab\t\x01control",
    b"-rf",
    b".hidden",
    b"...",
    b"%2F#?&+;",
    b"*[a-z]{x}$HOME!",
    b"back\\slash",
    b"quote'\"`",
    "grüße €".encode(),
    "gru\u0308ße".encode(),
    b"invalid \xff\xfe utf-8",
    b"x" * 255,
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TreeKind:
    return request.param


@pytest.fixture(params=[each for each in KINDS if each.writable], ids=lambda kind: kind.name)
def writable(request: pytest.FixtureRequest) -> TreeKind:
    return request.param


@pytest.fixture
async def tree(writable: TreeKind, tmp_path: Path) -> AsyncIterator[Tree]:
    """An empty tree."""
    async with writable.empty(tmp_path) as tree:
        yield tree


async def content(tree: Tree, path: bytes) -> bytes:
    node = await tree.stat(path)
    return await tree.read(path, node, 0, node.size)


def mtime(tree: Tree, ns: int) -> int | None:
    """What the tree keeps of a time."""
    step = tree.features.mtime_resolution_ns
    return ns // step * step if step else None


# ---- reading ----


async def test_lists_and_stats_what_is_there(kind: TreeKind, tmp_path: Path) -> None:
    samples = [
        Sample(b"d", NodeKind.DIRECTORY),
        Sample(b"d/inner", data=b"inner"),
        Sample(b"d/e", NodeKind.DIRECTORY),
        Sample(b"d/e/deep", data=b"deep file"),
        Sample(b"none", data=b""),
        Sample(b"some", data=b"0123456789", metadata=Metadata(mtime_ns=MTIME_NS)),
    ]
    async with kind.filled(tmp_path, samples) as tree:
        root = await listed(tree, ROOT)
        assert set(root) == {b"d", b"none", b"some"}
        assert root[b"d"].kind is NodeKind.DIRECTORY
        assert root[b"some"].size == 10
        assert root[b"none"].size == 0
        assert set(await listed(tree, b"d")) == {b"inner", b"e"}
        assert set(await listed(tree, b"d/e")) == {b"deep"}
        for name, node in root.items():
            found = await tree.stat(name)
            assert found.name == name
            assert (found.kind, found.size) == (node.kind, node.size)
            if node.exact:
                assert found == node._replace(atime_ns=found.atime_ns)
        assert (await tree.stat(b"some")).mtime_ns == mtime(tree, MTIME_NS) or not mtime(tree, 1)
        assert (await tree.stat(ROOT)).kind is NodeKind.DIRECTORY
        assert (await tree.stat(b"d/e/deep")).name == b"deep"


async def test_reads_ranges(kind: TreeKind, tmp_path: Path) -> None:
    async with kind.filled(tmp_path, [Sample(b"d/file", data=LARGE)]) as tree:
        node = await tree.stat(b"d/file")
        size = len(LARGE)
        for offset, length in ((0, size), (0, 1), (size - 1, 1), (1 << 20, 3 << 20), (77, 0)):
            found = await tree.read(b"d/file", node, offset, length)
            assert found == LARGE[offset : offset + length]


async def test_what_is_not_there_is_missing(kind: TreeKind, tmp_path: Path) -> None:
    async with kind.filled(tmp_path, [Sample(b"file", data=b"x")]) as tree:
        for path in (b"no", b"no/such", b"file/below"):
            with pytest.raises(Missing):
                await tree.stat(path)
        with pytest.raises(Missing):
            await listed(tree, b"no")
        with pytest.raises((Missing, Unsupported)):
            await listed(tree, b"file")


async def test_odd_names(kind: TreeKind, tmp_path: Path) -> None:
    names = [name for name in NAMES if kind.holds(name)]
    samples = [Sample(b"d/" + name, data=b"of " + name) for name in names]
    async with kind.filled(tmp_path, samples) as tree:
        assert set(await listed(tree, b"d")) == set(names)
        for sample in samples:
            assert await content(tree, sample.path) == sample.data


async def test_a_directory_of_many_comes_in_pages(kind: TreeKind, tmp_path: Path) -> None:
    names = [b"file %d" % number for number in range(300)]
    async with kind.filled(tmp_path, [Sample(b"d/" + name, data=name) for name in names]) as tree:
        assert {name: node.size for name, node in (await listed(tree, b"d")).items()} == {
            name: len(name) for name in names
        }


async def test_paths_that_no_file_can_have(kind: TreeKind, tmp_path: Path) -> None:
    async with kind.filled(tmp_path, [Sample(b"d/file", data=b"x")]) as tree:
        for path in (b"../d", b"d/../d", b"/d", b"d//file", b"./d", b"nul\0"):
            with pytest.raises((Missing, Unsupported)):
                await tree.stat(path)


# ---- writing ----


@pytest.mark.parametrize("size", [0, 1, 70_000, len(LARGE)])
async def test_writes_and_says_what_is_there(tree: Tree, size: int) -> None:
    data = LARGE[:size]
    node = await tree.write(b"a/b/file", Held(data), Metadata(mtime_ns=MTIME_NS))
    found = await tree.stat(b"a/b/file")
    assert (node.name, node.size, node.kind) == (b"file", size, NodeKind.FILE)
    assert (found.size, found.mtime_ns, found.token) == (node.size, node.mtime_ns, node.token)
    if mtime(tree, MTIME_NS) is not None:
        assert found.mtime_ns == mtime(tree, MTIME_NS)
    assert await tree.read(b"a/b/file", node, 0, size) == data
    assert set(await listed(tree, b"a/b")) == {b"file"}
    await tree.sync()


async def test_replaces_what_may_be_replaced(tree: Tree) -> None:
    first = await tree.write(b"file", Held(b"first"), NOTHING)
    with pytest.raises(Exists):
        await tree.write(b"file", Held(b"other"), NOTHING, replace=False)
    second = await tree.write(b"file", Held(b"the second"), NOTHING, old=first)
    assert await content(tree, b"file") == b"the second"
    with pytest.raises(Changed):
        await tree.write(b"file", Held(b"late"), NOTHING, old=first)
    assert await content(tree, b"file") == b"the second"
    with pytest.raises(Changed):
        await tree.read(b"file", first, 0, 5)
    await tree.delete(b"file", second)
    with pytest.raises(Changed):
        await tree.write(b"file", Held(b"late"), NOTHING, old=second)
    await tree.write(b"file", Held(b"new"), NOTHING, replace=False)
    assert set(await listed(tree, ROOT)) == {b"file"}


async def test_an_error_of_the_source_leaves_the_old_file(tree: Tree) -> None:
    await tree.write(b"file", Held(b"old"), NOTHING)
    for path in (b"file", b"new"):
        with pytest.raises(Failing.Broken):
            await tree.write(path, Failing(LARGE, 8 << 20), NOTHING)
    assert set(await listed(tree, ROOT)) == {b"file"}
    assert await content(tree, b"file") == b"old"


async def test_cancelled_writing_leaves_the_old_file(tree: Tree) -> None:
    await tree.write(b"file", Held(b"old"), NOTHING)
    endless = Endless(5 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.write, b"file", endless, NOTHING)
        await endless.asked.wait()
        nursery.cancel_scope.cancel()
    assert set(await listed(tree, ROOT)) == {b"file"}
    assert await content(tree, b"file") == b"old"


async def test_directories(tree: Tree) -> None:
    if not tree.features.directories:
        pytest.skip("has none of their own")
    await tree.mkdir(b"a/b/c", NOTHING)
    await tree.mkdir(b"a/b/c", NOTHING)
    assert (await tree.stat(b"a/b")).kind is NodeKind.DIRECTORY
    assert await listed(tree, b"a/b/c") == {}
    await tree.write(b"a/file", Held(b"x"), NOTHING)
    with pytest.raises(Exists):
        await tree.mkdir(b"a/file", NOTHING)
    with pytest.raises(NotEmpty):
        await tree.delete(b"a", await tree.stat(b"a"))
    await tree.delete(b"a/b/c", await tree.stat(b"a/b/c"))
    assert await listed(tree, b"a/b") == {}


async def test_deletes(tree: Tree) -> None:
    await tree.write(b"one", Held(b"1"), NOTHING)
    await tree.write(b"two", Held(b"2"), NOTHING)
    node = await tree.stat(b"one")
    await tree.delete(b"one", node)
    assert set(await listed(tree, ROOT)) == {b"two"}
    with pytest.raises(Missing):
        await tree.delete(b"one", node)


async def test_renames(tree: Tree) -> None:
    await tree.write(b"a/file", Held(b"data"), NOTHING)
    await tree.write(b"there", Held(b"already"), NOTHING)
    if not tree.features.rename:
        with pytest.raises(Unsupported):
            await tree.rename(b"a/file", b"new")
        return
    with pytest.raises(Exists):
        await tree.rename(b"a/file", b"there")
    assert await content(tree, b"there") == b"already"
    await tree.rename(b"a/file", b"new")
    assert await content(tree, b"new") == b"data"
    with pytest.raises(Missing):
        await tree.rename(b"a/file", b"other")


async def test_metadata(tree: Tree) -> None:
    wanted = Metadata(mode=0o640, mtime_ns=MTIME_NS)
    await tree.write(b"file", Held(b"x"), wanted)
    modes = {b"file": 0o640}
    if tree.features.directories:
        modes[b"dir"] = 0o750
        await tree.mkdir(b"dir", NOTHING)
        await tree.set_metadata(b"dir", Metadata(mode=0o750, mtime_ns=MTIME_NS))
    for name, mode in modes.items():
        node = await tree.stat(name)
        if tree.features.mode:
            assert node.mode == mode
        if mtime(tree, MTIME_NS) is not None:
            assert node.mtime_ns == mtime(tree, MTIME_NS)
    later = MTIME_NS + 10**10
    await tree.set_metadata(b"file", Metadata(mtime_ns=later))
    node = await tree.stat(b"file")
    if mtime(tree, later) is not None:
        assert node.mtime_ns == mtime(tree, later)
    if tree.features.mode:
        assert node.mode == 0o640
    assert await content(tree, b"file") == b"x"


async def test_xattrs(tree: Tree) -> None:
    xattrs = {b"user.one": b"1", b"user.binary": bytes(range(256))}
    if not tree.features.xattrs:
        await tree.write(b"file", Held(b"x"), NOTHING)
        assert await tree.xattrs(b"file") == {}
        return
    await tree.write(b"file", Held(b"x"), Metadata(xattrs=xattrs))
    assert await tree.xattrs(b"file") == xattrs
    await tree.set_metadata(b"file", Metadata(xattrs={b"user.two": b""}))
    assert await tree.xattrs(b"file") == {b"user.two": b""}
    await tree.set_metadata(b"file", Metadata(mode=0o600))
    assert await tree.xattrs(b"file") == {b"user.two": b""}


async def test_symlinks(tree: Tree) -> None:
    await tree.write(b"file", Held(b"x"), Metadata(mtime_ns=MTIME_NS))
    if not tree.features.symlinks:
        with pytest.raises(Unsupported):
            await tree.symlink(b"link", b"file", NOTHING)
        return
    before = await tree.stat(b"file")
    for target in (b"file", b"../../no/where", b"inv\xff\nalid", b"y" * 1000):
        await tree.symlink(b"link", target, NOTHING)
        node = await tree.stat(b"link")
        assert (node.kind, node.target) == (NodeKind.SYMLINK, target)
        assert (await listed(tree, ROOT))[b"link"].target == target
    await tree.set_metadata(b"link", Metadata(mode=0o600, mtime_ns=MTIME_NS + 10**9))
    assert await tree.stat(b"file") == before
    await tree.symlink(b"file", b"link", NOTHING)  # in place of the file
    assert (await tree.stat(b"file")).kind is NodeKind.SYMLINK
    await tree.mkdir(b"dir", NOTHING)
    with pytest.raises(Exists):
        await tree.symlink(b"dir", b"x", NOTHING)
    # Nothing is reached through a symlink.
    await tree.symlink(b"away", b"dir", NOTHING)
    with pytest.raises((Missing, Unsupported)):
        await tree.stat(b"away/x")
    await tree.delete(b"link", await tree.stat(b"link"))


async def test_hard_links(tree: Tree) -> None:
    await tree.write(b"one", Held(b"shared"), NOTHING)
    if not tree.features.hard_links:
        with pytest.raises(Unsupported):
            await tree.hard_link(b"two", b"one")
        return
    await tree.hard_link(b"d/two", b"one")
    await tree.hard_link(b"d/two", b"one")  # once more
    nodes = [await tree.stat(path) for path in (b"one", b"d/two")]
    assert nodes[0].link is not None
    assert nodes[0].link == nodes[1].link
    assert await content(tree, b"d/two") == b"shared"
    await tree.write(b"other", Held(b"its own"), NOTHING)
    assert (await tree.stat(b"other")).link is None
    await tree.hard_link(b"other", b"one")  # in place of a file
    assert (await tree.stat(b"other")).link == nodes[0].link
    assert set(await listed(tree, ROOT)) == {b"one", b"other", b"d"}


async def test_specials(tree: Tree) -> None:
    for number, kind in enumerate((NodeKind.FIFO, NodeKind.SOCKET)):
        node = Node(b"", kind, mode=0o640)
        if not tree.features.specials:
            with pytest.raises(Unsupported):
                await tree.special(b"special", node, NOTHING)
            continue
        path = b"special %d" % number
        await tree.special(path, node, Metadata(mode=0o640, mtime_ns=MTIME_NS))
        found = await tree.stat(path)
        assert (found.kind, found.mtime_ns) == (kind, mtime(tree, MTIME_NS))
        assert (await listed(tree, ROOT))[path].kind is kind


async def test_holes(tree: Tree) -> None:
    data = bytes(1 << 20) + LARGE[: 1 << 20] + bytes(1 << 20) + b"end" + bytes((1 << 20) - 3)
    ranges = [(1 << 20, 1 << 20), (3 << 20, 3)]
    node = await tree.write(b"file", Held(data), NOTHING, ranges=ranges)
    assert node.size == len(data)
    assert await content(tree, b"file") == data
    found = await tree.data_ranges(b"file", await tree.stat(b"file"))
    if tree.features.holes:
        assert found is not None
        assert sum(length for _, length in found) < len(data)
    for offset, length in found or []:
        data = data[:offset] + bytes(length) + data[offset + length :]
    if found is not None:
        assert not data.strip(b"\0"), "what is no data is zeros"
    empty = await tree.write(b"all hole", Held(bytes(5000)), NOTHING, ranges=[])
    assert empty.size == 5000
    assert await content(tree, b"all hole") == bytes(5000)
