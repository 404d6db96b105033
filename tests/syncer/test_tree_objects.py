"""Directories, roots and tokens as bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.errors import FormatTooNew
from blockstore.ids import ChunkId
from syncer.recipes import SIZE_MAX, TreeDamaged
from syncer.tree import NodeKind
from syncer.tree_objects import (
    XATTRS_INLINE_MAX,
    Child,
    Entry,
    Index,
    Leaf,
    Sums,
    TokenIndex,
    Tokens,
    decode_directory,
    decode_root,
    decode_tokens,
    decode_xattrs,
    encode_directory,
    encode_index,
    encode_root,
    encode_token_index,
    encode_tokens,
    encode_xattrs,
    node_of,
    token_of,
)
from tests.syncer.stored import entries, ids, names, sorted_entries

some_entries = st.lists(entries(), max_size=6).map(sorted_entries)
TWO = [
    Entry(b"a", NodeKind.FILE, 9, 1, 0o644, 1, 2, "me", "us", xattrs={b"user.x": b"y"}),
    Entry(b"d", NodeKind.DIRECTORY, 7, child=ChunkId(b"i" * 32), nodes=3, files=2),
]


@given(some_entries)
def test_a_directory_is_read_as_it_was_written(drawn: list[Entry]) -> None:
    data = encode_directory(drawn)
    found = decode_directory(data)
    assert isinstance(found, Leaf)
    assert found.entries == drawn
    assert encode_directory(found.entries) == data
    assert found.sums.nodes == sum(e.sums.nodes for e in drawn)
    assert found.sums.files == sum(e.sums.files for e in drawn)
    assert found.sums.bytes == min(SIZE_MAX, sum(e.sums.bytes for e in drawn))


@given(entries())
def test_a_root_is_read_as_it_was_written(entry: Entry) -> None:
    assert decode_root(encode_root(entry)) == entry._replace(name=b"")


@given(entries())
def test_a_node_says_what_its_entry_says(entry: Entry) -> None:
    node = node_of(entry)
    first = 3 if entry.kind is NodeKind.DIRECTORY else 0
    assert node[first:7] == entry[first:7]
    assert (node.owner, node.group, node.rdev) == (entry.owner, entry.group, entry.rdev)
    assert (node.target, node.link or 0) == (entry.target, entry.link)


sums = st.builds(Sums, *[st.integers(0, 1 << 40)] * 3)
children = st.lists(st.builds(Child, names, ids, sums), min_size=1, max_size=5).map(
    lambda drawn: [child for _, child in sorted({child.first: child for child in drawn}.items())]
)


@given(st.integers(1, 12), children)
def test_an_index_is_read_as_it_was_written(level: int, drawn: list[Child]) -> None:
    found = decode_directory(encode_index(level, drawn))
    assert isinstance(found, Index)
    assert (found.level, found.children) == (level, drawn)
    assert found.sums.bytes == sum(child.sums.bytes for child in drawn)


@given(
    ids, st.lists(st.integers(0, (1 << 64) - 1), min_size=3, max_size=9), st.lists(ids, max_size=3)
)
def test_tokens_are_read_as_they_were_written(
    leaf: ChunkId, tokens: list[int], below: list[ChunkId]
) -> None:
    given_children = [*below[:-1], None] if below else []
    found = decode_tokens(encode_tokens(Tokens(leaf, tokens, given_children)))
    assert isinstance(found, Tokens)
    assert (found.leaf, list(found.tokens), found.children) == (leaf, tokens, given_children)
    if below:
        index = TokenIndex(3, below)
        assert decode_tokens(encode_token_index(index)) == index


def decode_any(data: bytes) -> None:
    """Each decoder returns, or raises an error of ours."""
    for decode in (decode_directory, decode_root, decode_tokens, decode_xattrs):
        with contextlib.suppress(TreeDamaged, FormatTooNew):
            decode(data)


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    decode_any(data)
    with pytest.raises(TreeDamaged):
        decode_directory(data)


@settings(max_examples=150)
@given(some_entries, children, st.data())
def test_damaged_bytes(drawn: list[Entry], parts: list[Child], data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from(
            [
                encode_directory(drawn),
                encode_root(drawn[0] if drawn else TWO[0]),
                encode_index(1, parts),
                encode_tokens(Tokens(ChunkId(bytes(32)), [1, 2], [ChunkId(b"x" * 32)])),
                encode_xattrs({b"user.a": b"1", b"user.b": b"22"}),
            ]
        )
    )
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for some in (bytes(damaged), whole[:at], whole + b"\0" * 5):
        decode_any(some)


def test_each_byte_that_is_cut_off_is_missed() -> None:
    for whole in (
        encode_directory(TWO),
        encode_index(1, [Child(b"a", ChunkId(bytes(32)), Sums())]),
    ):
        for length in range(len(whole)):
            with pytest.raises(TreeDamaged):
                decode_directory(whole[:length])


def test_names_that_none_can_have_are_refused() -> None:
    for name in (b"", b".", b"..", b"a/b", b"a\0b", b"n" * 5_000):
        with pytest.raises(TreeDamaged):
            decode_directory(encode_directory([TWO[0]._replace(name=name)]))
    for order in ([TWO[1], TWO[0]], [TWO[0], TWO[0]]):
        with pytest.raises(TreeDamaged, match="order"):
            decode_directory(encode_directory(order))


def test_newer_formats_are_refused() -> None:
    for data, decode in (
        (encode_directory(TWO), decode_directory),
        (encode_root(TWO[0]), decode_root),
        (encode_tokens(Tokens(ChunkId(bytes(32)), [], [])), decode_tokens),
    ):
        newer = bytearray(data)
        newer[4] = 2
        with pytest.raises(FormatTooNew):
            decode(bytes(newer))


def test_one_kind_of_object_is_not_taken_for_another() -> None:
    with pytest.raises(TreeDamaged):
        decode_directory(encode_root(TWO[0]))
    with pytest.raises(TreeDamaged):
        decode_root(encode_directory(TWO[:1]))


def test_many_attributes_do_not_go_into_an_entry() -> None:
    with pytest.raises(ValueError, match="recipe"):
        encode_directory([TWO[0]._replace(xattrs={b"user.x": bytes(XATTRS_INLINE_MAX)})])


def test_tokens_tell_nodes_apart() -> None:
    seen = {token_of(t) for t in (None, (None,), (1, 2), (1, 3), "etag", "etag2", b"x", ("a", 1))}
    assert len(seen) == 8
    assert token_of(None) == 0
    assert token_of((7, 8)) == 0x57332382E6084A3D  # the same in every run
