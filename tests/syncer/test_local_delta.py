"""Files built from their old copies."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.chunker import Chunker
from blockstore.ids import chunk_id
from blockstore.options import StoreOptions
from syncer import local_delta
from syncer.local_delta import Chunk, Run, build, chunks_of, grew, grown_runs, plan_runs
from syncer.local_tree import LocalTree
from syncer.remotes.errors import Changed, Garbled
from syncer.remotes.held import Held
from syncer.tree import ROOT, Metadata
from tests.syncer.tree_conformance import listed

NOTHING = Metadata()
MIB = 1 << 20
cut = Chunker(StoreOptions().chunker).cut


def chunks(data: bytes, lengths: list[int]) -> list[Chunk]:
    found, at = [], 0
    for length in lengths:
        found.append(Chunk(at, length, chunk_id(data[at : at + length])))
        at += length
    return found


pieces = st.lists(st.sampled_from([b"", b"a", b"b", b"cc", b"ddd", b"\0\0\0\0"]), max_size=12)


@given(pieces, pieces)
def test_the_plan_gives_the_new_content(new: list[bytes], old: list[bytes]) -> None:
    new_data, old_data = b"".join(new), b"".join(old)
    runs = plan_runs(
        chunks(new_data, [len(each) for each in new]), chunks(old_data, [len(each) for each in old])
    )
    built, asked = b"", 0
    for start, length, place in runs:
        assert start == len(built)
        assert length
        taken = new_data[start : start + length]
        if place is None:
            asked += length
            built += taken
        else:
            assert old_data[place : place + length] == taken
            built += old_data[place : place + length]
    assert built == new_data
    assert asked == sum(len(each) for each in new if each and each not in old)
    for one, other in itertools.pairwise(runs):  # neighbours are one run
        assert (one.old is None) != (other.old is None) or (
            one.old is not None and one.old + one.length != other.old
        )


def test_many_equal_chunks_are_planned_in_time_that_grows_with_their_number() -> None:
    name = chunk_id(bytes(8))
    zeros = [Chunk(at * 8, 8, name) for at in range(100_000)]
    assert plan_runs(zeros, zeros) == [Run(0, 800_000, 0)]


def test_what_stays_in_place_is_taken_from_its_place() -> None:
    a, b = chunk_id(b"a"), chunk_id(b"b")
    old = [Chunk(0, 1, a), Chunk(1, 1, b), Chunk(2, 1, a)]
    assert plan_runs(old, old) == [Run(0, 3, 0)]
    new = [Chunk(0, 1, b), Chunk(5, 1, a)]  # a hole between
    assert plan_runs(new, old) == [Run(0, 1, 1), Run(5, 1, 2)]


@pytest.fixture
async def tree(tmp_path: Path):
    tree = await LocalTree.open(os.fsencode(tmp_path / "root"), durable=False)
    await tree.mkdir(ROOT, NOTHING)
    yield tree
    await tree.close()


async def content(tree: LocalTree, path: bytes) -> bytes:
    node = await tree.stat(path)
    return await tree.read(path, node, 0, node.size)


async def test_windows_do_not_show_in_the_cuts(
    tree: LocalTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(4).randbytes(5 * MIB + 77)
    node = await tree.write(b"file", Held(data), NOTHING)
    monkeypatch.setattr(local_delta, "WINDOW_BYTES", MIB)
    assert await chunks_of(tree, b"file", node, cut) == chunks(data, cut(memoryview(data)))
    node = await tree.write(b"empty", Held(b""), NOTHING)
    assert await chunks_of(tree, b"empty", node, cut) == []


def overwrite(path: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(b"changed")


async def rebuild(tree: LocalTree, new: bytes) -> local_delta.Built:
    old = await tree.stat(b"file")
    runs = plan_runs(chunks(new, cut(memoryview(new))), await chunks_of(tree, b"file", old, cut))

    async def read(offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return new[offset : offset + length]

    metadata = Metadata(mode=0o604, mtime_ns=9)
    return await build(tree, b"file", runs, len(new), read, metadata, old=old)


async def test_only_what_changed_is_asked_for(tree: LocalTree) -> None:
    data = random.Random(5).randbytes(6 * MIB)
    insert = random.Random(6).randbytes(5_000)
    await tree.write(b"file", Held(data), NOTHING)
    for new in (
        data[: 2 * MIB] + insert + data[2 * MIB :],
        data[: 3 * MIB] + data[3 * MIB + 5_000 :],
        insert + data[4 * MIB :] + data[:MIB],
        data,
        data[:0],
    ):
        built = await rebuild(tree, new)
        assert built.reused + built.written == len(new)
        assert built.written < MIB
        assert await content(tree, b"file") == new
        assert (built.node.mode, built.node.mtime_ns) == (0o604, 9)
        assert set(await listed(tree, ROOT)) == {b"file"}
        await tree.write(b"file", Held(data), NOTHING)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 600_000), st.integers(0, 3000), st.binary(max_size=3000)),
        max_size=4,
    )
)
def test_any_edit(edits: list[tuple[int, int, bytes]]) -> None:
    data = random.Random(7).randbytes(600_000)
    new = data
    for offset, removed, added in edits:
        new = new[:offset] + added + new[offset + removed :]

    async def run(root: str) -> None:
        tree = await LocalTree.open(os.fsencode(root), durable=False)
        await tree.write(b"file", Held(data), NOTHING)
        await rebuild(tree, new)
        assert await content(tree, b"file") == new
        await tree.close()

    root = tempfile.mkdtemp()
    try:
        trio.run(run, root)
    finally:
        shutil.rmtree(root)


async def test_an_old_copy_that_changes_meanwhile(tree: LocalTree) -> None:
    old = await tree.write(b"file", Held(b"0123456789"), NOTHING)
    runs = [Run(0, 5, 0), Run(5, 5, None)]

    async def read(offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        overwrite(os.path.join(tree.root.root, b"file"))
        return b"x" * length

    with pytest.raises(Changed):
        await build(tree, b"file", runs, 10, read, NOTHING, old=old)
    assert await content(tree, b"file") == b"changed789"
    assert os.listdir(tree.root.root) == [b"file"]


async def test_a_source_that_gives_too_little(tree: LocalTree) -> None:
    old = await tree.write(b"file", Held(b"0123456789"), NOTHING)

    async def read(offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"x" * (length - 1)

    with pytest.raises(Garbled):
        await build(tree, b"file", [Run(0, 5, None)], 5, read, NOTHING, old=old)
    assert await content(tree, b"file") == b"0123456789"
    assert os.listdir(tree.root.root) == [b"file"]


async def test_from_a_copy_of_another_name(tree: LocalTree) -> None:
    base = await tree.write(b"base", Held(b"0123456789"), NOTHING)

    async def read(offset: int, length: int) -> bytes:
        raise AssertionError("nothing is new")

    runs = [Run(0, 4, 6), Run(8, 2, 0)]
    await build(tree, b"d/new", runs, 12, read, NOTHING, old=base, base=b"base")
    assert await content(tree, b"d/new") == b"6789\0\0\0\00001\0\0".replace(b"0001", b"01")
    assert await content(tree, b"base") == b"0123456789"


async def test_files_that_grew(tree: LocalTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_delta, "NEW_BYTES_MAX", 7)
    old = await tree.write(b"old", Held(b"line 1\nline 2\n"), NOTHING)
    for data, expected in (
        (b"line 1\nline 2\nline 3\n", True),
        (b"line 1\nline 2\n", False),
        (b"line 1\nline X\nline 3\n", False),
        (b"line 1\n", False),
    ):
        node = await tree.write(b"new", Held(data), NOTHING)
        assert await grew(tree, b"new", node, tree, b"old", old) is expected
    empty = await tree.write(b"empty", Held(b""), NOTHING)
    assert not await grew(tree, b"old", old, tree, b"empty", empty)
    assert grown_runs(14, 21) == [Run(0, 14, 0), Run(14, 7, None)]
