"""Recipes: the chunks of a file, in order, with its holes. The format is in docs/format.md.

Small recipes lie inside the entry that names them, larger ones are chunks of their own: *leaves* of
extents and, above them, *indexes*. Where a leaf ends is decided by the id of its last chunk alone,
so that an insertion into a file changes the leaf it falls into and the indexes above, no other.

Everything here but `RecipeWriter` and the readers is pure. Decoders are total: bytes that are no
recipe raise TreeDamaged, those of a newer program FormatTooNew.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from blockstore.errors import FormatTooNew
from blockstore.ids import ID_BYTES, MAX_BLOCK, ChunkId, chunk_id
from syncer.remotes.errors import RemoteError

EXTENTS_INLINE_MAX: Final = 16  # about 1 MiB of content; the entry stays below 1 KiB
LEAF_BITS: Final = 9  # a leaf has 512 extents on average: 18 KiB for 32 MiB of content
EXTENTS_MAX: Final = 8_192  # of a leaf: 393 KiB at most
CHILDREN_MAX: Final = 8_192  # of an index: 328 KiB
LEVELS_MAX: Final = 12
SIZE_MAX: Final = (1 << 63) - 1  # bytes of a file

VERSION: Final = 1
_MAGIC: Final = b"ORcp"
_HEADER = struct.Struct("<4sBBBBIQ")  # magic, version, level, form, zero, count, span
_DENSE, _SPARSE = 0, 1  # forms of a leaf

FORM_NONE: Final = 0  # forms of a recipe inside an entry: no extents
FORM_DENSE: Final = 1  # (length, id) each
FORM_SPARSE: Final = 2  # (start, length, offset, id) each
FORM_ROOT: Final = 3  # the id of the root object
_DENSE_EXTENT = struct.Struct("<I32s")
_SPARSE_EXTENT = struct.Struct("<QII32s")


class TreeDamaged(RemoteError):
    """What should be a tree object, a recipe or a snapshot is something else."""


class Extent(NamedTuple):
    """A run of a file: a slice of a chunk."""

    start: int  # bytes from the beginning of the file
    length: int
    offset: int  # of the slice in the chunk's content
    id: ChunkId


class Recipe(NamedTuple):
    """The content of one file; its size stands beside it. What no extent covers is a hole."""

    extents: tuple[Extent, ...] = ()  # all of them, if there are few
    root: ChunkId | None = None  # else the root object


class Leaf(NamedTuple):
    """A run of extents; starts count from the beginning of the leaf."""

    span: int  # bytes of the file that it covers, holes included; of a root: the file's size
    extents: Sequence[Extent]


class Child(NamedTuple):
    """A leaf, or an index one level lower."""

    span: int
    id: ChunkId


class Index(NamedTuple):
    """A run of children, one after the other."""

    level: int  # 1: of leaves
    span: int
    children: Sequence[Child]


# ---- encoding ----


def _dense(extents: Sequence[Extent]) -> bool:
    at = 0
    for extent in extents:
        if extent[0] != at or extent[2]:
            return False
        at += extent[1]
    return True


def encode_leaf(span: int, extents: Sequence[Extent]) -> bytes:
    """Encode extents that ascend, do not overlap and end within `span` bytes."""
    count = len(extents)
    dense = _dense(extents)
    form = _DENSE if dense else _SPARSE
    parts = [
        _HEADER.pack(_MAGIC, VERSION, 0, form, 0, count, span),
        struct.pack(f"<{count}I", *[extent[1] for extent in extents]),
    ]
    if not dense:
        parts.append(struct.pack(f"<{count}Q", *[extent[0] for extent in extents]))
        parts.append(struct.pack(f"<{count}I", *[extent[2] for extent in extents]))
    parts += [extent[3] for extent in extents]
    return b"".join(parts)


def encode_index(level: int, span: int, children: Sequence[Child]) -> bytes:
    """Encode an index of `level` 1 or more."""
    count = len(children)
    return b"".join(
        [
            _HEADER.pack(_MAGIC, VERSION, level, 0, 0, count, span),
            struct.pack(f"<{count}Q", *[child[0] for child in children]),
            *[child[1] for child in children],
        ]
    )


def recipe_id(recipe: Recipe, size: int) -> ChunkId:
    """Return what names the content: files of one id have the same bytes, and the same size.

    It is the id that the root object has, or would have.
    """
    return recipe.root if recipe.root is not None else chunk_id(encode_leaf(size, recipe.extents))


def pack_recipe(recipe: Recipe) -> tuple[int, bytes]:
    """Return form and bytes of a recipe inside an entry."""
    if recipe.root is not None:
        return FORM_ROOT, recipe.root
    extents = recipe.extents
    if not extents:
        return FORM_NONE, b""
    if len(extents) > EXTENTS_INLINE_MAX:
        raise ValueError(f"{len(extents)} extents: at most {EXTENTS_INLINE_MAX} lie in an entry")
    if _dense(extents):
        return FORM_DENSE, b"".join([_DENSE_EXTENT.pack(e[1], e[3]) for e in extents])
    return FORM_SPARSE, b"".join([_SPARSE_EXTENT.pack(*e) for e in extents])


# ---- decoding ----


def _check_extents(extents: Sequence[Extent], span: int) -> None:
    end = 0
    for start, length, offset, _ in extents:
        if start < end or not length or offset + length > MAX_BLOCK:
            raise TreeDamaged("a recipe has extents that overlap, are empty or too long")
        end = start + length
    if end > span:
        raise TreeDamaged("a recipe has extents behind its end")


def unpack_recipe(form: int, data: bytes, size: int) -> Recipe:
    """Decode what `pack_recipe` returned; `size` is the file's."""
    if form == FORM_DENSE and len(data) == _DENSE_EXTENT.size:  # nearly all files
        length, name = _DENSE_EXTENT.unpack(data)
        if 0 < length <= size and length <= MAX_BLOCK:
            return tuple.__new__(Recipe, ((Extent(0, length, 0, name),), None))
    if form == FORM_NONE and not data:
        return Recipe()
    if form == FORM_ROOT and len(data) == ID_BYTES:
        return Recipe(root=ChunkId(data))
    extents: list[Extent] = []
    if form == FORM_DENSE and data and not len(data) % _DENSE_EXTENT.size:
        at = 0
        for length, name in _DENSE_EXTENT.iter_unpack(data):
            extents.append(Extent(at, length, 0, name))
            at += length
    elif form == FORM_SPARSE and data and not len(data) % _SPARSE_EXTENT.size:
        extents = [Extent._make(fields) for fields in _SPARSE_EXTENT.iter_unpack(data)]
    else:
        raise TreeDamaged(f"an entry has {len(data)} bytes for a recipe of form {form}")
    if len(extents) > EXTENTS_INLINE_MAX:
        raise TreeDamaged("an entry has a recipe that is too long for it")
    _check_extents(extents, size)
    return Recipe(tuple(extents))


def decode_recipe(data: bytes) -> Leaf | Index:
    """Decode an object of a recipe."""
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise TreeDamaged("a chunk that should be a recipe is none")
    _, version, level, form, zero, count, span = _HEADER.unpack_from(data)
    if version > VERSION:
        raise FormatTooNew("a recipe", version, VERSION)
    if version != VERSION or zero or form > _SPARSE or span > SIZE_MAX or level > LEVELS_MAX:
        raise TreeDamaged("a recipe has a header that makes no sense")
    if level:
        return _decode_index(data, level, form, count, span)
    width = ID_BYTES + (4 if form == _DENSE else 16)
    if count > EXTENTS_MAX or len(data) != _HEADER.size + count * width:
        raise TreeDamaged("a recipe is longer or shorter than it says")
    at = _HEADER.size
    lengths = struct.unpack_from(f"<{count}I", data, at)
    at += 4 * count
    if form == _SPARSE:
        starts = struct.unpack_from(f"<{count}Q", data, at)
        offsets = struct.unpack_from(f"<{count}I", data, at + 8 * count)
        at += 12 * count
    else:
        starts = tuple(_sums(lengths))
        offsets = (0,) * count
    extents = [
        Extent(start, length, offset, ChunkId(data[i : i + ID_BYTES]))
        for start, length, offset, i in zip(
            starts, lengths, offsets, range(at, len(data), ID_BYTES), strict=True
        )
    ]
    _check_extents(extents, span)
    return Leaf(span, extents)


def _sums(lengths: Iterable[int]) -> Iterator[int]:
    at = 0
    for length in lengths:
        yield at
        at += length


def _decode_index(data: bytes, level: int, form: int, count: int, span: int) -> Index:
    width = ID_BYTES + 8
    if form or not 0 < count <= CHILDREN_MAX or len(data) != _HEADER.size + count * width:
        raise TreeDamaged("the index of a recipe is longer or shorter than it says")
    spans = struct.unpack_from(f"<{count}Q", data, _HEADER.size)
    at = _HEADER.size + 8 * count
    if min(spans) == 0 or sum(spans) > span:
        raise TreeDamaged("the index of a recipe has parts that are empty or behind its end")
    ids = range(at, len(data), ID_BYTES)
    children = [
        Child(part, ChunkId(data[i : i + ID_BYTES])) for part, i in zip(spans, ids, strict=True)
    ]
    return Index(level, span, children)


# ---- writing ----

Save = Callable[[bytes], ChunkId]
Load = Callable[[Sequence[ChunkId]], dict[ChunkId, bytes]]


class RecipeWriter:
    """Makes the recipe of one file from its extents as they come; memory does not grow with it.

    `save` stores an object and returns its id.
    """

    def __init__(self, save: Save) -> None:
        self._save = save
        self._open: Extent | None = None  # the last one, which the next may go on with
        self._extents: list[Extent] = []  # of the leaf under way, counted from its beginning
        self._base = 0  # where in the file that leaf begins
        self._end = 0
        self._levels: list[list[Child]] = []  # children of the indexes under way, leaves first

    def add(self, extents: Iterable[Extent]) -> None:
        """Go on with extents behind all earlier ones."""
        last = self._open
        for extent in extents:
            if extent.start < self._end:
                raise ValueError("extents ascend and do not overlap")
            self._end = extent.start + extent.length
            if last is not None:
                if (
                    last.id == extent.id
                    and last.start + last.length == extent.start
                    and last.offset + last.length == extent.offset
                ):  # two slices of a chunk that are one
                    last = Extent(last.start, last.length + extent.length, last.offset, last.id)
                    continue
                self._append(last)
            last = extent
        self._open = last

    def _append(self, extent: Extent) -> None:
        if len(self._extents) >= EXTENTS_INLINE_MAX and not self._levels:
            self._levels.append([])
            self._split()
        self._extents.append(
            Extent(extent.start - self._base, extent.length, extent.offset, extent.id)
        )
        if self._levels and (_ends(extent.id, 0) or len(self._extents) >= EXTENTS_MAX):
            self._end_leaf()

    def _split(self) -> None:
        """What looked like a small recipe is a large one: cut what has come so far."""
        extents, self._extents = self._extents, []
        for extent in extents:
            self._append(extent)

    def _end_leaf(self) -> None:
        last = self._extents[-1]
        span = last.start + last.length
        child = Child(span, self._save(encode_leaf(span, self._extents)))
        self._extents = []
        self._base += span
        self._end_child(0, child, last.id)

    def _end_child(self, depth: int, child: Child, last: ChunkId) -> None:
        """Note a finished child of an index; `last` is the id of the last chunk below it."""
        if depth == len(self._levels):
            self._levels.append([])
        self._levels[depth].append(child)
        if _ends(last, depth + 1) or len(self._levels[depth]) >= CHILDREN_MAX:
            self._end_index(depth, last)

    def _end_index(self, depth: int, last: ChunkId) -> None:
        children, self._levels[depth] = self._levels[depth], []
        span = sum(child.span for child in children)
        saved = Child(span, self._save(encode_index(depth + 1, span, children)))
        self._end_child(depth + 1, saved, last)

    def finish(self, size: int) -> Recipe:
        """Return the recipe of the file, `size` bytes long."""
        if size < self._end:
            raise ValueError("a file ends behind its last extent")
        if self._open is not None:
            self._append(self._open)
        if not self._levels:
            return Recipe(tuple(self._extents))
        if self._extents:
            self._end_leaf()
        depth = 0
        while depth < len(self._levels) - 1 or not self._levels[depth]:
            # What is under way below the top becomes a child of it.
            if self._levels[depth]:
                children, self._levels[depth] = self._levels[depth], []
                span = sum(child.span for child in children)
                saved = Child(span, self._save(encode_index(depth + 1, span, children)))
                self._levels[depth + 1].append(saved)
            depth += 1
        top = self._levels[depth]
        return Recipe(root=self._save(encode_index(depth + 1, size, top)))


def _ends(last: ChunkId, level: int) -> bool:
    """Tell whether an object of this level ends with the chunk `last`."""
    bits = LEAF_BITS * (level + 1)
    return bits <= 64 and not int.from_bytes(last[:8], "little") & ((1 << bits) - 1)


# ---- reading ----


def _load(load: Load, name: ChunkId, level: int | None, span: int | None) -> Leaf | Index:
    """Read an object; `level` and `span`: what its parent says, None for a root."""
    found = decode_recipe(load([name])[name])
    at = found.level if isinstance(found, Index) else 0
    if (level is not None and at != level) or (span is not None and found.span != span):
        raise TreeDamaged("an object of a recipe is not what its index says")
    return found


def leaves(
    load: Load, recipe: Recipe, size: int, start: int = 0, end: int | None = None
) -> Iterator[list[Extent]]:
    """Yield the extents that touch the bytes from `start` to `end`, leaf by leaf.

    Starts count from the beginning of the file. `load` fetches chunks; it is called while this is
    iterated. Raises TreeDamaged, FormatTooNew, and what `load` raises.
    """
    end = size if end is None else end
    if recipe.root is None:
        yield clipped(recipe.extents, start, end)
        return
    top = _load(load, recipe.root, None, size)
    todo: list[tuple[int, Leaf | Index]] = [(0, top)]
    while todo:
        base, found = todo.pop()
        if isinstance(found, Leaf):
            extents = clipped(found.extents, start - base, end - base)
            yield [Extent(e.start + base, e.length, e.offset, e.id) for e in extents]
            continue
        inside = [
            (base + at, child)
            for at, child in zip(_sums(c.span for c in found.children), found.children, strict=True)
            if base + at < end and base + at + child.span > start
        ]
        if found.level > 1:  # few: each of them leads to leaves of its own
            todo += [(at, _load(load, c.id, found.level - 1, c.span)) for at, c in reversed(inside)]
            continue
        for at, child in inside:
            leaf = _load(load, child.id, 0, child.span)
            assert isinstance(leaf, Leaf)
            extents = clipped(leaf.extents, start - at, end - at)
            yield [Extent(e.start + at, e.length, e.offset, e.id) for e in extents]


def clipped(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """Return those extents that have bytes from `start` to before `end`, as they are."""
    if not extents or (start <= extents[0].start and end > extents[-1].start):
        return list(extents)
    first = max(0, bisect_right(extents, start, key=lambda extent: extent.start) - 1)
    if extents[first].start + extents[first].length <= start:
        first += 1
    last = bisect_right(extents, end - 1, key=lambda extent: extent.start)
    return list(extents[first:last])


def objects(load: Load, root: ChunkId) -> Iterator[tuple[ChunkId, Leaf | Index]]:
    """Yield the objects of a recipe with their ids, parents first; for walks that look at all."""
    todo: list[tuple[ChunkId, int | None, int | None]] = [(root, None, None)]
    while todo:
        name, level, span = todo.pop()
        found = _load(load, name, level, span)
        yield name, found
        if isinstance(found, Index):
            todo += [(c.id, found.level - 1, c.span) for c in reversed(found.children)]
