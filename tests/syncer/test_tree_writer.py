"""Directories of any size: read as written, the same in every run, changed in one place."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.ids import ChunkId
from syncer import tree_objects, tree_writer
from syncer.recipes import Recipe, TreeDamaged
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import NodeKind
from syncer.tree_objects import (
    Child,
    Entry,
    Index,
    Sums,
    TokenIndex,
    decode_directory,
    decode_tokens,
    encode_directory,
    encode_index,
    total,
)
from syncer.tree_writer import Directory, TreeWriter
from tests.syncer.stored import MemoryStore, entries, sorted_entries


def write(store: MemoryStore, drawn: list[Entry], *, tokens: bool = False) -> Directory:
    writer = TreeWriter(store)
    directory = writer.directory(tokens=tokens)
    for number, entry in enumerate(drawn):
        directory.add(entry, number)
    result = directory.finish()
    writer.flush()
    return result


def read(store: MemoryStore, directory: Directory) -> list[Entry]:
    reader = SnapshotReader(store, ChunkId(bytes(32)))
    top = Entry(b"", NodeKind.DIRECTORY, child=directory.id)
    return [entry for page in reader.pages(top) for entry in page]


def files(count: int) -> list[Entry]:
    rng = random.Random(1)
    numbers = sorted({b"file-%09d" % rng.randrange(10**9) for _ in range(count)})
    return [Entry(name, NodeKind.FILE, 10, n, recipe=Recipe()) for n, name in enumerate(numbers)]


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits happen with a few entries already."""
    monkeypatch.setattr(tree_writer, "SPLIT_ENTRIES", 3)
    monkeypatch.setattr(tree_objects, "LEAF_BITS", 1)
    monkeypatch.setattr(tree_writer, "ENTRIES_MAX", 5)
    monkeypatch.setattr(tree_writer, "CHILDREN_MAX", 3)


@pytest.mark.usefixtures("_small_pieces")
def test_any_directory_in_small_pieces() -> None:
    @settings(max_examples=60)
    @given(st.lists(entries(), max_size=12).map(sorted_entries))
    def check(drawn: list[Entry]) -> None:
        store = MemoryStore()
        written = write(store, drawn)
        assert read(store, written) == drawn
        assert written.sums == total([entry.sums for entry in drawn])
        reader = SnapshotReader(store, ChunkId(bytes(32)))
        top = Entry(b"", NodeKind.DIRECTORY, child=written.id)
        for entry in drawn:
            assert reader.child(top, entry.name) == entry
            after = [e for page in reader.pages(top, entry.name) for e in page]
            assert after == [e for e in drawn if e.name > entry.name]
        assert reader.child(top, b"\xff" * 30) is None
        assert reader.child(top, b"\x01") is None or drawn[0].name == b"\x01"

    check()


def test_a_large_directory_is_split_and_one_new_name_changes_little() -> None:
    store = MemoryStore()
    many = files(20_000)
    written = write(store, many, tokens=True)
    assert read(store, written) == many
    assert isinstance(decode_directory(store.chunks[written.id]), Index)
    objects = len(store.new)
    assert objects > 40
    more = sorted([*many, Entry(b"file-5", NodeKind.FILE, recipe=Recipe())], key=lambda e: e.name)
    assert read(store, write(store, more)) == more
    assert len(store.new) - objects <= 4
    assert write(store, many).id == written.id


def test_tokens_lie_beside_their_leaves() -> None:
    store = MemoryStore()
    many = files(3_000)
    written = write(store, many, tokens=True)
    assert written.tokens is not None
    index = decode_tokens(store.chunks[written.tokens])
    assert isinstance(index, TokenIndex)
    found = [decode_tokens(store.chunks[name]) for name in index.children]
    assert [token for each in found for token in each.tokens] == list(range(len(many)))
    leaves = [decode_directory(store.chunks[each.leaf]) for each in found]
    assert [entry for leaf in leaves for entry in leaf.entries] == many


def test_the_shape_does_not_depend_on_tokens_or_on_what_is_stored() -> None:
    store = MemoryStore()
    many = files(2_500)
    assert write(store, many).id == write(store, many, tokens=True).id
    assert write(MemoryStore(), many).id == write(store, many).id


def test_names_out_of_order_are_refused() -> None:
    directory = TreeWriter(MemoryStore()).directory()
    directory.add(Entry(b"b", NodeKind.FIFO))
    for name in (b"a", b"b"):
        with pytest.raises(ValueError, match="after"):
            directory.add(Entry(name, NodeKind.FIFO))


def test_many_attributes_are_stored_beside_the_entry() -> None:
    store = MemoryStore()
    writer = TreeWriter(store)
    rng = random.Random(2)
    few = {b"user.a": b"1", b"user.b": b""}
    many = {b"user.%d" % n: rng.randbytes(60_000) for n in range(40)}
    for xattrs in ({}, few, many):
        entry = writer.with_xattrs(Entry(b"x", NodeKind.FILE), xattrs)
        data = encode_directory([entry])
        assert len(data) < 2_000
        writer.flush()
        assert SnapshotReader(store, ChunkId(bytes(32))).xattrs(entry) == xattrs


def test_children_are_put_before_what_names_them() -> None:
    """A store that is cut off has no directory without its parts."""
    store = MemoryStore()
    writer = TreeWriter(store)
    child = ChunkId(bytes(32))
    names = []
    for depth in range(3):
        directory = writer.directory()
        for entry in files(9_000):
            directory.add(entry._replace(mtime_ns=depth))
        if names:
            directory.add(Entry(b"z", NodeKind.DIRECTORY, child=child))
        child = directory.finish().id
        names.append(child)
    writer.flush()
    position = {name: number for number, name in enumerate(store.new)}
    for name in store.new:
        found = decode_directory(store.chunks[name])
        parts = (
            [each.id for each in found.children]
            if isinstance(found, Index)
            else [entry.child for entry in found.entries if entry.child is not None]
        )
        assert all(position[part] < position[name] for part in parts)


def test_an_index_that_lies_is_found_out() -> None:
    store = MemoryStore()
    leaf = store.put([encode_directory(files(1))])[0]
    index = store.put([encode_index(2, [Child(b"f", leaf, Sums())])])[0]
    with pytest.raises(TreeDamaged):
        read(store, Directory(index, Sums()))
