"""A snapshot as a tree, beyond what every tree is asked (tree_kind_snapshot)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from blockstore.errors import ChunkDamaged, StorageFailed
from blockstore.ids import ChunkId
from syncer.recipes import Extent, TreeDamaged
from syncer.remotes.errors import TRANSIENT, Changed, Garbled, Missing, Unreachable, Unsupported
from syncer.snapshot_tree import SnapshotTree
from syncer.tree import Metadata, Node, NodeKind
from syncer.tree_objects import Entry
from syncer.tree_writer import TreeWriter
from tests.syncer.stored import MemoryStore

rng = random.Random(4)
CHUNKS = [rng.randbytes(size) for size in (1, 1_000, 70_000, 3)]


def build(store: MemoryStore, nodes: dict[bytes, Entry]) -> ChunkId:
    """Write a tree of files and directories given by path."""
    writer = TreeWriter(store)

    def below(path: bytes) -> Entry:
        directory = writer.directory()
        prefix = path + b"/" if path else b""
        for each in sorted(nodes):
            if each.startswith(prefix) and b"/" not in each[len(prefix) :]:
                name = each[len(prefix) :]
                entry = nodes[each]
                if entry.kind is NodeKind.DIRECTORY:
                    entry = below(each)
                directory.add(entry._replace(name=name))
        made = directory.finish()
        return Entry(
            b"",
            NodeKind.DIRECTORY,
            made.sums.bytes,
            child=made.id,
            nodes=made.sums.nodes,
            files=made.sums.files,
        )

    root = writer.root(below(b""))
    writer.flush()
    return root


def file(store: MemoryStore, extents: Sequence[Extent], size: int) -> Entry:
    writer = TreeWriter(store)
    recipe = writer.recipe(extents, size)
    writer.flush()
    return Entry(b"", NodeKind.FILE, size, 1, recipe=recipe)


@given(st.data())
def test_any_range_of_any_file(data: st.DataObject) -> None:
    """Slices of chunks, holes, recipes of every size, read in any order."""
    store = MemoryStore()
    names = store.put(CHUNKS)
    model = bytearray()
    extents = []
    for _ in range(data.draw(st.integers(0, 30))):
        model += bytes(data.draw(st.sampled_from((0, 0, 5, 40_000))))
        which = data.draw(st.integers(0, len(CHUNKS) - 1))
        offset = data.draw(st.integers(0, len(CHUNKS[which]) - 1))
        length = data.draw(st.integers(1, len(CHUNKS[which]) - offset))
        extents.append(Extent(len(model), length, offset, names[which]))
        model += CHUNKS[which][offset : offset + length]
    model += bytes(data.draw(st.sampled_from((0, 7))))
    entry = file(store, extents, len(model))
    tree = SnapshotTree(store, build(store, {b"f": entry}))
    found = tree.entry(b"f")
    for _ in range(5):
        start = data.draw(st.integers(0, len(model) + 3))
        length = data.draw(st.integers(0, len(model) + 3))
        assert tree.reader.read(found, start, length) == model[start : start + length]
    covered = bytearray(len(model))
    for at, length in tree.reader.data_ranges(found):
        covered[at : at + length] = model[at : at + length]
    assert covered == model
    assert sum(length for _, length in tree.reader.data_ranges(found)) == sum(
        extent.length for extent in extents
    )


def small() -> tuple[MemoryStore, SnapshotTree]:
    store = MemoryStore()
    names = store.put(CHUNKS)
    one = file(store, [Extent(0, 1_000, 0, names[1])], 1_000)
    nodes = {
        b"d": Entry(b"", NodeKind.DIRECTORY),
        b"d/one": one,
        b"d/same": one,
        b"two": file(store, [Extent(0, 3, 0, names[3])], 3),
    }
    return store, SnapshotTree(store, build(store, nodes))


async def test_equal_files_are_known_without_reading() -> None:
    _, tree = small()
    one, same, two = [await tree.stat(path) for path in (b"d/one", b"d/same", b"two")]
    assert one.content == same.content
    assert one.content is not None
    assert two.content not in {one.content, None}


async def test_a_part_of_a_snapshot_is_a_tree() -> None:
    store, whole = small()
    tree = SnapshotTree(store, build(store, {}), at=b"nowhere")
    with pytest.raises(Missing):
        await tree.stat(b"")
    part = SnapshotTree(store, whole.reader._root, at=b"d")
    assert (await part.stat(b"")).name == b""
    assert (await part.stat(b"one")).size == 1_000
    single = SnapshotTree(store, whole.reader._root, at=b"two")
    node = await single.stat(b"")
    assert await single.read(b"", node, 1, 2) == CHUNKS[3][1:]


async def test_a_node_of_another_snapshot_is_refused() -> None:
    _, tree = small()
    two = await tree.stat(b"two")
    with pytest.raises(Changed):
        await tree.read(b"d/one", two, 0, 3)
    with pytest.raises(Changed):
        await tree.read(b"gone", two, 0, 3)
    with pytest.raises(Garbled):
        await tree.read(b"two", two, 0, 4)
    for path in (b"two/x", b"d/none", b"none/x"):
        with pytest.raises(Missing):
            await tree.stat(path)


async def test_errors_of_the_store_are_those_of_trees() -> None:
    store, tree = small()
    node = await tree.stat(b"two")
    for error, expected in (
        (ChunkDamaged(bytes(32), "a pack"), TreeDamaged),
        (StorageFailed("broken disk"), Unreachable),
    ):

        def fetch(ids: Sequence[ChunkId], error: Exception = error) -> dict[ChunkId, bytes]:
            raise error

        store.fetch = fetch  # type: ignore[method-assign]
        with pytest.raises(expected):
            await tree.read(b"two", node, 0, 3)
    assert not issubclass(TreeDamaged, TRANSIENT)  # trying again is of no use


async def test_what_is_longer_than_its_chunk_is_damage() -> None:
    store = MemoryStore()
    names = store.put(CHUNKS)
    bad = file(store, [Extent(0, 4, 0, names[3])], 4)
    tree = SnapshotTree(store, build(store, {b"f": bad}))
    with pytest.raises(TreeDamaged):
        await tree.read(b"f", await tree.stat(b"f"), 0, 4)


async def test_a_large_directory_comes_in_pages() -> None:
    store = MemoryStore()
    nodes = {b"%06d" % n: Entry(b"", NodeKind.FIFO) for n in range(5_000)}
    tree = SnapshotTree(store, build(store, nodes))
    pages: list[list[bytes]] = []

    async def take(page: Sequence[Node]) -> None:
        pages.append([node.name for node in page])
        await trio.lowlevel.checkpoint()

    await tree.list(b"", take)
    assert [name for page in pages for name in page] == sorted(nodes)
    assert max(len(page) for page in pages) <= 1_000


async def test_nothing_can_be_written() -> None:
    _, tree = small()
    node = await tree.stat(b"two")
    assert not tree.features.write
    for call in (
        tree.mkdir(b"x", Metadata()),
        tree.symlink(b"x", b"y", Metadata()),
        tree.hard_link(b"x", b"two"),
        tree.special(b"x", node, Metadata()),
        tree.set_metadata(b"two", Metadata()),
        tree.delete(b"two", node),
        tree.rename(b"two", b"x"),
        tree.write(b"x", None, Metadata()),  # type: ignore[arg-type]
    ):
        with pytest.raises(Unsupported):
            await call
    await tree.sync()
    await tree.close()
