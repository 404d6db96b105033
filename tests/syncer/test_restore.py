"""Files of snapshots in local folders: whole, like they were, or not there."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from blockstore import BlockStore, StoreOptions
from blockstore.chunker import ChunkerParams
from blockstore.ids import ChunkId, chunk_id
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.recipes import Extent
from syncer.restore import RestoreMover
from syncer.restore_bytes import past_the_cache, read_back, write_extents
from syncer.restore_small import GROUP_BYTES, GROUP_FILES, groups_of
from syncer.snapshot_tree import SnapshotTree
from syncer.steps import Step, StepKind, StepResult, StepState, TakenStep
from syncer.transfer_meter import Meter
from syncer.tree import Metadata, Node, NodeKind
from syncer.tree_objects import Entry, node_of
from tests.syncer.saved import save

ALL = Options(xattrs=True, owners=True)
SMALL = StoreOptions(pack_bytes_max=1 << 20, chunker=ChunkerParams(2048, 8192, 32768, 2))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockStore]:
    store = BlockStore.open(tmp_path / "store", SMALL)
    yield store
    store.close()


def files_of(tree: SnapshotTree) -> tuple[list[bytes], list[tuple[bytes, Node]]]:
    """Paths of directories, top first, and files."""
    folders: list[bytes] = []
    files: list[tuple[bytes, Node]] = []

    def walk(path: bytes, entry: Entry) -> None:
        folders.append(path)
        for page in tree.reader.pages(entry):
            for each in page:
                below = path + b"/" + each.name if path else each.name
                if each.kind is NodeKind.DIRECTORY:
                    walk(below, each)
                elif each.kind is NodeKind.FILE:
                    files.append((below, node_of(each)))

    walk(b"", tree.reader.top)
    return folders, files


@asynccontextmanager
async def target_at(folder: Path) -> AsyncIterator[LocalTree]:
    target = await LocalTree.open(os.fsencode(folder))
    yield target
    await target.close()


def taken(files: list[tuple[bytes, Node]], olds: dict[bytes, Node] | None = None):
    return [
        TakenStep(
            number,
            Step(
                StepKind.COPY,
                path,
                size=node.size,
                source_path=path,
                node=node,
                old=(olds or {}).get(path),
            ),
            0,
            None,
        )
        for number, (path, node) in enumerate(files)
    ]


async def restore(
    store: BlockStore, root: ChunkId, folder: Path, options: Options = ALL, *, over: bool = False
) -> list[StepResult | None]:
    """All files of a snapshot; `over`: over what is there."""
    tree = SnapshotTree(store, root)
    folders, files = await trio.to_thread.run_sync(files_of, tree)
    async with target_at(folder) as target:
        for path in folders:
            await target.mkdir(path, Metadata())
        olds = {path: await target.stat(path) for path, _ in files} if over else {}
        mover = RestoreMover(tree, target, options, Meter(), cut=store.cut)
        return await mover.move(taken(files, olds))


def look(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a restored file has to have."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            info = path.stat()
            xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
            found[str(path.relative_to(folder))] = (
                path.read_bytes(),
                stat.S_IMODE(info.st_mode),
                info.st_uid,
                info.st_gid,
                info.st_mtime_ns,
                xattrs,
            )
    return found


def fill(folder: Path, seed: int) -> None:
    """Files of all sizes with attributes of all kinds."""
    source = random.Random(seed)
    sizes = [0, 1, 4095, 8192, 50_000, 300_000, 5 << 20]
    for number in range(40):
        path = folder / f"d{number % 3}" / f"f {number}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(sizes[number % len(sizes)]))
        if number % 5 == 0:
            os.setxattr(path, "user.note", source.randbytes(20))
        path.chmod(source.choice([0o600, 0o644, 0o755, 0o400]))
        os.utime(path, ns=(1, source.randrange(10**18)))


async def test_files_come_back_as_they_were(tmp_path: Path, store: BlockStore) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    fill(source, 1)
    root = await trio.to_thread.run_sync(save, store, source)
    results = await restore(store, root, folder)
    assert all(result and result.state is StepState.DONE for result in results), results
    assert look(folder) == look(source)


async def test_holes_stay_holes(tmp_path: Path, store: BlockStore) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    for name, size in (("small", 1 << 20), ("large", 64 << 20), ("only", 8 << 20)):
        with (source / name).open("wb") as file:
            if name != "only":
                for at in range(1, 5):
                    file.seek(at * size // 6 // 4096 * 4096)
                    file.write(os.urandom(10_000))
            file.truncate(size)
    root = await trio.to_thread.run_sync(save, store, source)
    results = await restore(store, root, folder)
    assert all(result and result.state is StepState.DONE for result in results), results
    assert look(folder) == look(source)
    for name in ("small", "large", "only"):
        assert (folder / name).stat().st_blocks <= (source / name).stat().st_blocks


async def test_only_chunks_that_differ_are_fetched(tmp_path: Path, store: BlockStore) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    data = bytearray(random.Random(2).randbytes(8 << 20))
    (source / "big").write_bytes(data)
    root = await trio.to_thread.run_sync(save, store, source)
    folder.mkdir()
    data[3 << 20 : 3 << 20] = b"inserted"
    (folder / "big").write_bytes(data)
    (result,) = await restore(store, root, folder, over=True)
    assert result is not None
    assert result.state is StepState.DONE
    assert result.bytes_moved < 200_000
    assert result.bytes_moved + result.bytes_saved == 8 << 20
    assert look(folder) == look(source)


async def test_what_is_in_the_way_stays_unless_it_was_seen(
    tmp_path: Path, store: BlockStore
) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    (source / "a").write_bytes(b"new")
    (source / "big").write_bytes(bytes(range(256)) * 20_000)
    root = await trio.to_thread.run_sync(save, store, source)
    folder.mkdir()
    (folder / "a").write_bytes(b"somebody's")
    (folder / "big").write_bytes(b"somebody's, too")
    assert await restore(store, root, folder) == [None, None]  # left to the way that tells why
    assert (folder / "a").read_bytes() == b"somebody's"
    assert sorted(os.listdir(folder)) == ["a", "big"]
    results = await restore(store, root, folder, over=True)
    assert all(result and result.state is StepState.DONE for result in results)
    assert look(folder) == look(source)


async def test_a_damaged_chunk_costs_its_files_only(tmp_path: Path, store: BlockStore) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    for number in range(20):
        (source / f"{number:02}").write_bytes(random.Random(number).randbytes(20_000))
    (source / "big").write_bytes(random.Random(99).randbytes(5 << 20))
    root = await trio.to_thread.run_sync(save, store, source)
    store.seal()
    tree = SnapshotTree(store, root)
    entry = tree.entry(b"07")
    assert entry.recipe is not None
    store.close()
    victim = entry.recipe.extents[0].id
    reopened = BlockStore.open(tmp_path / "store", SMALL)
    place = reopened.locate([victim])[victim]
    with (tmp_path / "store" / "packs" / f"{place.pack:010}.pack").open("r+b") as file:
        file.seek(place.offset + 100)
        file.write(b"damage")
    results = await restore(reopened, root, folder)
    failed = [result for result in results if result is None or result.state is not StepState.DONE]
    assert len(failed) == 1
    assert failed[0] is not None
    assert failed[0].state is StepState.FAILED
    assert "damaged" in failed[0].error
    expected = look(source)
    del expected["07"]
    assert look(folder) == expected
    reopened.close()


async def test_cancelled_leaves_nothing_half(tmp_path: Path, store: BlockStore) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    fill(source, 3)
    root = await trio.to_thread.run_sync(save, store, source)
    tree = SnapshotTree(store, root)
    folders, files = await trio.to_thread.run_sync(files_of, tree)
    total = sum(node.size for _, node in files)
    for after in range(0, total, total // 7):
        passed = 0
        async with target_at(folder) as target:
            with trio.CancelScope() as scope:

                async def take(size: int, after: int = after, scope=scope) -> None:
                    nonlocal passed
                    passed += size
                    if passed >= after:
                        scope.cancel()
                    await trio.lowlevel.checkpoint()

                for path in folders:
                    await target.mkdir(path, Metadata())
                mover = RestoreMover(tree, target, ALL, Meter(), cut=store.cut, take=take)
                await mover.move(taken(files))
        known = look(source)
        there = look(folder)
        assert all(known[name] == found for name, found in there.items())
        assert not list(folder.rglob(".orbit-*"))
        for name in there:
            (folder / name).unlink()


async def test_what_is_verified_has_its_digest(tmp_path: Path, store: BlockStore) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    fill(source, 4)
    root = await trio.to_thread.run_sync(save, store, source)
    results = await restore(store, root, folder, replace(ALL, verify=True))
    assert look(folder) == look(source)
    _, files = await trio.to_thread.run_sync(files_of, SnapshotTree(store, root))
    for (path, _), result in zip(files, results, strict=True):
        assert result is not None
        assert (
            result.checksum
            == f"blake3:{blake3((source / os.fsdecode(path)).read_bytes()).hexdigest()}"
        )


@pytest.mark.parametrize("spoilt", ["small", "large", "hole"])
async def test_what_comes_back_wrong_is_removed_and_left_to_single_steps(
    tmp_path: Path, store: BlockStore, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    (source / "small").write_bytes(os.urandom(40_000))
    (source / "large").write_bytes(os.urandom(6 << 20))
    with (source / "hole").open("wb") as file:
        file.write(os.urandom(10_000))
        file.truncate(1 << 20)
    sizes = {name: (source / name).stat().st_size for name in ("small", "large", "hole")}
    root = await trio.to_thread.run_sync(save, store, source)
    place = 900_000 if spoilt == "hole" else 30_000

    def spoil(handle: int, extents: Sequence[Extent], *rest: object) -> int:
        written = write_extents(handle, extents, *rest)  # type: ignore[arg-type]
        end = extents[-1].start + extents[-1].length
        if spoilt == ("hole" if end < 20_000 else "small" if end <= 40_000 else "large"):
            os.pwrite(handle, b"bad", place)
        return written

    monkeypatch.setattr("syncer.restore_small.write_extents", spoil)
    monkeypatch.setattr("syncer.restore_large.write_extents", spoil)
    results = await restore(store, root, folder, replace(ALL, verify=True))
    order = sorted(sizes)
    assert [result is None for result in results] == [name == spoilt for name in order]
    assert sorted(os.listdir(folder)) == [name for name in order if name != spoilt]


async def test_what_goes_to_the_trash_is_left_to_single_steps(
    tmp_path: Path, store: BlockStore
) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    for name, size in (("a", 10), ("big", 6 << 20)):
        (source / name).write_bytes(os.urandom(size))
        (folder / name).write_bytes(b"old")
    root = await trio.to_thread.run_sync(save, store, source)
    trash = replace(ALL, trash=".trash")
    assert await restore(store, root, folder, trash, over=True) == [None, None]
    assert {path.read_bytes() for path in folder.iterdir()} == {b"old"}


@given(st.lists(st.integers(0, 2 * GROUP_BYTES), max_size=60))
def test_groups_are_bounded_and_whole(sizes: list[int]) -> None:
    steps = [
        (number, TakenStep(number, Step(StepKind.COPY, b"x", size=size), 0, None))
        for number, size in enumerate(sizes)
    ]
    groups = list(groups_of(steps))
    assert [item for group in groups for item in group] == steps
    for group in groups:
        assert 0 < len(group) <= GROUP_FILES
        assert sum(each.step.size for _, each in group[:-1]) < GROUP_BYTES


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200), st.integers(0, 50))))
def test_extents_are_written_where_they_say(parts: list[tuple[int, int, int]]) -> None:
    handle = os.memfd_create("test")
    try:
        _write_and_look(handle, parts)
    finally:
        os.close(handle)


@pytest.mark.parametrize("first", [0, 1, 4_095, 4_096, 70_001])
def test_long_runs_are_written_past_the_page_cache(tmp_path: Path, first: int) -> None:
    parts = [(first, 200_000, 3), *[(0, 65_537, 0)] * 130, (5_000, 1 << 20, 0), (0, 4_096, 0)]
    with (tmp_path / "file").open("w+b") as file:
        _write_and_look(file.fileno(), parts)


def _write_and_look(handle: int, parts: Sequence[tuple[int, int, int]]) -> None:
    """`parts`: gap before it, length, offset in the chunk."""
    extents, chunks, at = [], {}, 0
    expected = bytearray()
    for number, (gap, length, offset) in enumerate(parts):
        data = random.Random(number).randbytes(offset + length + gap % 3)
        name = chunk_id(data)
        chunks[name] = data
        at += gap
        expected += bytes(at - len(expected)) + data[offset : offset + length]
        extents.append(Extent(at, length, offset, name))
        at += length
    with past_the_cache(handle) as direct:
        written = write_extents(handle, extents, chunks, direct)
    assert written == sum(each.length for each in extents)
    assert os.pread(handle, len(expected) + 1, 0) == bytes(expected)
    size = len(expected)
    assert read_back(handle, size, extents, chunks.__getitem__) == blake3(expected).digest()
    assert read_back(handle, size + 1, extents, chunks.__getitem__) is None
    for at in random.Random(size).sample(range(size), min(size, 5)):
        os.pwrite(handle, bytes([expected[at] ^ 1]), at)
        assert read_back(handle, size, extents, chunks.__getitem__) is None
        os.pwrite(handle, expected[at : at + 1], at)
