"""Recipes: what is written is read, equal files have one id, damage is told."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.errors import FormatTooNew
from blockstore.ids import ChunkId
from syncer import recipes
from syncer.recipes import (
    EXTENTS_INLINE_MAX,
    Child,
    Extent,
    Leaf,
    Recipe,
    RecipeWriter,
    TreeDamaged,
    clipped,
    decode_recipe,
    encode_index,
    encode_leaf,
    leaves,
    objects,
    pack_recipe,
    recipe_id,
    unpack_recipe,
)
from tests.syncer.stored import MemoryStore, extent_lists, ids


def write(store: MemoryStore, extents: list[Extent], size: int) -> Recipe:
    writer = RecipeWriter(lambda data: store.put([data])[0])
    for start in range(0, len(extents), 7):
        writer.add(extents[start : start + 7])
    return writer.finish(size)


def merged(extents: list[Extent]) -> list[Extent]:
    """The model of what RecipeWriter does to neighbours."""
    result: list[Extent] = []
    for extent in extents:
        last = result[-1] if result else None
        if (
            last is not None
            and last.id == extent.id
            and last.start + last.length == extent.start
            and last.offset + last.length == extent.offset
        ):
            result[-1] = last._replace(length=last.length + extent.length)
        else:
            result.append(extent)
    return result


def end_of(extents: list[Extent]) -> int:
    return extents[-1].start + extents[-1].length if extents else 0


@given(extent_lists(), st.integers(0, 9), st.data())
def test_what_is_written_is_read(extents: list[Extent], hole: int, data: st.DataObject) -> None:
    store = MemoryStore()
    size = end_of(extents) + hole
    recipe = write(store, extents, size)
    expected = merged(extents)
    assert len(recipe.extents) <= EXTENTS_INLINE_MAX
    assert (recipe.root is None) == (len(expected) <= EXTENTS_INLINE_MAX)
    assert [e for batch in leaves(store.fetch, recipe, size) for e in batch] == expected
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    found = [e for batch in leaves(store.fetch, recipe, size, start, end) for e in batch]
    if end > start:
        assert found == [e for e in expected if e.start < end and e.start + e.length > start]


def many(count: int, seed: int = 1) -> list[Extent]:
    rng = random.Random(seed)
    extents = []
    at = 0
    for _ in range(count):
        length = rng.randint(8_000, 260_000)
        extents.append(Extent(at, length, 0, ChunkId(rng.randbytes(32))))
        at += length
    return extents


def test_an_insertion_changes_few_objects() -> None:
    store = MemoryStore()
    extents = many(30_000)  # about 4 GB
    write(store, extents, end_of(extents))
    before = len(store.new)
    assert 30 < before < 200
    new = many(1, seed=2)[0]
    middle = 15_000
    shifted = [e._replace(start=e.start + new.length) for e in extents[middle:]]
    changed = [*extents[:middle], new._replace(start=extents[middle].start), *shifted]
    recipe = write(store, changed, end_of(changed))
    assert len(store.new) - before <= 4
    assert [e for batch in leaves(store.fetch, recipe, end_of(changed)) for e in batch] == changed


def test_large_recipes_have_levels_and_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "LEAF_BITS", 3)
    store = MemoryStore()
    extents = many(5_000)
    size = end_of(extents)
    recipe = write(store, extents, size)
    assert recipe.root is not None
    assert recipe_id(recipe, size) == recipe.root
    levels = {getattr(found, "level", 0) for _, found in objects(store.fetch, recipe.root)}
    assert levels >= {0, 1, 2, 3}
    fetched = []

    def fetch(names: list[ChunkId]) -> dict[ChunkId, bytes]:
        fetched.extend(names)
        return store.fetch(names)

    middle = extents[2_500]
    found = [
        e for batch in leaves(fetch, recipe, size, middle.start, middle.start + 1) for e in batch
    ]
    assert found == [middle]
    assert len(fetched) <= 10


def test_equal_content_has_equal_ids_in_every_form() -> None:
    name = ChunkId(bytes(32))
    one = Recipe((Extent(0, 5, 0, name),))
    assert recipe_id(one, 5) != recipe_id(one, 6)
    slices = [Extent(0, 2, 0, name), Extent(2, 3, 2, name)]
    assert recipe_id(write(MemoryStore(), slices, 5), 5) == recipe_id(one, 5)


@given(extent_lists(EXTENTS_INLINE_MAX), st.none() | ids)
def test_a_recipe_in_an_entry(extents: list[Extent], root: ChunkId | None) -> None:
    recipe = Recipe(tuple(extents)) if root is None else Recipe(root=root)
    form, data = pack_recipe(recipe)
    assert unpack_recipe(form, data, end_of(extents)) == recipe
    if extents and root is None:
        with pytest.raises(TreeDamaged):
            unpack_recipe(form, data, end_of(extents) - 1)


@given(st.integers(0, 255), st.binary(max_size=200), st.integers(0, 1 << 62))
def test_any_bytes_in_an_entry(form: int, data: bytes, size: int) -> None:
    try:
        recipe = unpack_recipe(form, data, size)
    except TreeDamaged:
        return
    assert unpack_recipe(*pack_recipe(recipe), size) == recipe
    assert all(e.start + e.length <= size for e in recipe.extents)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(TreeDamaged):
        decode_recipe(data)


@settings(max_examples=150)
@given(extent_lists(10), st.data())
def test_damaged_objects(extents: list[Extent], data: st.DataObject) -> None:
    """Whatever is changed: an error of ours, or an object that makes sense."""
    whole = encode_leaf(end_of(extents), extents)
    if data.draw(st.booleans()):
        whole = encode_index(2, 100, [Child(40, ChunkId(b"a" * 32)), Child(60, ChunkId(b"b" * 32))])
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for some in (bytes(damaged), whole[:at], whole + b"x"):
        try:
            found = decode_recipe(some)
        except (TreeDamaged, FormatTooNew):
            continue
        if isinstance(found, Leaf):
            assert encode_leaf(found.span, list(found.extents)) == some or some[6] == 1
        else:
            assert encode_index(found.level, found.span, list(found.children)) == some


def test_a_newer_format_is_refused() -> None:
    data = bytearray(encode_leaf(0, []))
    data[4] = 2
    with pytest.raises(FormatTooNew):
        decode_recipe(bytes(data))


def test_an_index_that_lies_is_found_out() -> None:
    """A child of another level or length than its index says: no endless descent."""
    store = MemoryStore()
    leaf = store.put([encode_leaf(10, [Extent(0, 10, 0, ChunkId(bytes(32)))])])[0]
    for level, span in ((2, 10), (1, 11)):
        root = store.put([encode_index(level, 50, [Child(span, leaf)])])[0]
        with pytest.raises(TreeDamaged):
            list(leaves(store.fetch, Recipe(root=root), 50))
        with pytest.raises(TreeDamaged):
            list(objects(store.fetch, root))
    root = store.put([encode_index(1, 50, [Child(10, leaf)])])[0]
    with pytest.raises(TreeDamaged):
        list(leaves(store.fetch, Recipe(root=root), 51))


def test_extents_out_of_order_are_refused() -> None:
    writer = RecipeWriter(lambda _: ChunkId(bytes(32)))
    writer.add([Extent(5, 5, 0, ChunkId(bytes(32)))])
    with pytest.raises(ValueError, match="ascend"):
        writer.add([Extent(9, 5, 0, ChunkId(bytes(32)))])
    with pytest.raises(ValueError, match="behind"):
        writer.finish(9)


@given(extent_lists(), st.integers(0, 1 << 22), st.integers(0, 1 << 22))
def test_clipping(extents: list[Extent], start: int, end: int) -> None:
    if start < end:
        assert clipped(extents, start, end) == [
            e for e in extents if e.start < end and e.start + e.length > start
        ]
