"""Differences between snapshots against a model that compares all paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.ids import ChunkId
from syncer.recipes import Recipe
from syncer.remotes.errors import Missing
from syncer.snapshot_diff import Change, snapshot_diff
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import NodeKind
from syncer.tree_objects import Entry
from tests.syncer.stored import MemoryStore
from tests.syncer.test_snapshot_tree import build

FILE, DIRECTORY, LINK = NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK
files = st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from((None, {b"user.a": b"b"})))
leaves = files.map(
    lambda drawn: Entry(b"", FILE, drawn[0], drawn[1], recipe=Recipe(), xattrs=drawn[2])
) | st.sampled_from((b"a", b"b")).map(lambda target: Entry(b"", LINK, target=target))


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Entry]:
    nodes: dict[bytes, Entry] = {}
    folders = [b""]
    for _ in range(draw(st.integers(0, 10))):
        above = draw(st.sampled_from(folders))
        path = (above + b"/" if above else b"") + draw(st.sampled_from((b"a", b"b", b"c")))
        if path in nodes:
            continue
        if draw(st.booleans()):
            nodes[path] = Entry(b"", DIRECTORY)
            folders.append(path)
        else:
            nodes[path] = draw(leaves)
    return nodes


def content(entry: Entry) -> object:
    return (entry.size, entry.target)


def model(old: dict[bytes, Entry], new: dict[bytes, Entry]) -> set[tuple[bytes, Change]]:
    found = set()
    for path in old.keys() | new.keys():
        one, other = old.get(path), new.get(path)
        if one is not None and (other is None or one.kind is not other.kind):
            found.add((path, Change.REMOVED))
        if other is not None and (one is None or one.kind is not other.kind):
            found.add((path, Change.ADDED))
        if one is None or other is None or one.kind is not other.kind:
            continue
        if content(one) != content(other):
            found.add((path, Change.CONTENT))
        elif (one.mtime_ns, one.xattrs or {}) != (other.mtime_ns, other.xattrs or {}):
            found.add((path, Change.METADATA))
    return found


@given(trees(), trees())
def test_against_the_model(old: dict[bytes, Entry], new: dict[bytes, Entry]) -> None:
    store = MemoryStore()
    one = SnapshotReader(store, build(store, old))
    other = SnapshotReader(store, build(store, new))
    found = [(each.path, each.change) for each in snapshot_diff(one, other)]
    assert len(found) == len(set(found))
    assert set(found) == model(old, new)
    assert list(snapshot_diff(one, one)) == []
    for each in snapshot_diff(one, other):
        assert (each.old is None) == (each.change is Change.ADDED)
        assert (each.new is None) == (each.change is Change.REMOVED)


def test_equal_parts_are_not_read() -> None:
    store = MemoryStore()
    nodes = {b"same": Entry(b"", DIRECTORY), b"other": Entry(b"", DIRECTORY)}
    for number in range(50):
        nodes[b"same/%d" % number] = Entry(b"", LINK, target=b"x")
    old = build(store, nodes)
    new = build(store, {**nodes, b"other/new": Entry(b"", LINK, target=b"y")})
    fetched: list[ChunkId] = []
    fetch = store.fetch

    def counting(names: list[ChunkId]) -> dict[ChunkId, bytes]:
        fetched.extend(names)
        return fetch(names)

    store.fetch = counting  # type: ignore[method-assign,assignment]
    found = list(snapshot_diff(SnapshotReader(store, old), SnapshotReader(store, new)))
    assert [(each.path, each.change) for each in found] == [(b"other/new", Change.ADDED)]
    assert len(fetched) == 6  # two roots, their directories, and `other` of both


def test_below_a_path() -> None:
    store = MemoryStore()
    link = Entry(b"", LINK, target=b"x")
    folder = Entry(b"", DIRECTORY)
    old = SnapshotReader(store, build(store, {b"d": folder, b"d/a": link, b"x": link}))
    new = SnapshotReader(store, build(store, {b"d": folder, b"d/b": link}))
    assert {(d.path, d.change) for d in snapshot_diff(old, new, b"d")} == {
        (b"d/a", Change.REMOVED),
        (b"d/b", Change.ADDED),
    }
    assert [(d.path, d.change) for d in snapshot_diff(old, new, b"x")] == [(b"x", Change.REMOVED)]
    with pytest.raises(Missing):
        list(snapshot_diff(old, new, b"none"))
