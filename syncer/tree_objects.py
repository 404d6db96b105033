"""Tree objects: directories as chunks. The format is in docs/format.md. Pure.

A directory is a *leaf*, a sorted run of entries, or, when it is large, several of them under an
*index*. A *root* names the top of a tree with its own attributes. *Token objects* stand beside
leaves and say how the entries looked at their source, so that a backup knows what is unchanged;
they are kept apart because equal trees have equal objects, wherever they come from.

Decoders are total: bytes that are no such object raise TreeDamaged, those of a newer program
FormatTooNew.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from blake3 import blake3

from blockstore.errors import FormatTooNew
from blockstore.ids import ID_BYTES, ChunkId
from syncer.recipes import (
    FORM_NONE,
    SIZE_MAX,
    Recipe,
    TreeDamaged,
    pack_recipe,
    recipe_id,
    unpack_recipe,
)
from syncer.tree import Node, NodeKind

VERSION: Final = 1
NAME_BYTES_MAX: Final = 4_096
XATTRS_INLINE_MAX: Final = 1_024  # bytes in an entry; more are chunks of their own
LEVELS_MAX: Final = 12
CHILDREN_MAX: Final = 4_096  # of an index
ENTRIES_MAX: Final = 8_192  # of a leaf
LEAF_BITS: Final = 9  # a leaf of a large directory has 512 entries on average
TOKENS_MAX: Final = 8_192  # children of a token index

_MAGIC: Final = b"ODir"
_MAGIC_TOKENS: Final = b"OTok"
_ROOT_LEVEL: Final = 255
# magic, version, level, zero, count, bytes of the owners' names; nodes, files, bytes below
_HEADER = struct.Struct("<4sBBHIIQQQ")
# length of the name, kind, has, mode, form of the recipe, more, owner, group, uid, gid, mtime,
# size, bytes behind the name
_ENTRY = struct.Struct("<HBBHBBHHIIqQI")
_CHILD = struct.Struct("<QQQ32sH")  # nodes, files, bytes, id, length of the first name
_TOKENS = struct.Struct("<4sBBHI32s")  # magic, version, level, zero, count, id of the leaf
_BELOW = struct.Struct("<32sQQ")  # of a directory: id, nodes, files
_I64 = struct.Struct("<q")
_U64 = struct.Struct("<Q")
_XATTR = struct.Struct("<HI")  # lengths of name and value
_XATTR_RECIPE = struct.Struct("<BII")  # form, bytes of the recipe, size of the encoded attributes

_CODE_OF_KIND: Final = {
    NodeKind.FILE: 1,
    NodeKind.DIRECTORY: 2,
    NodeKind.SYMLINK: 3,
    NodeKind.FIFO: 4,
    NodeKind.SOCKET: 5,
    NodeKind.CHARACTER: 6,
    NodeKind.BLOCK: 7,
}
_KIND_OF_CODE: Final = {code: kind for kind, code in _CODE_OF_KIND.items()}

_HAS_MODE, _HAS_UID, _HAS_GID, _HAS_MTIME = 1, 2, 4, 8
_MORE_CTIME, _MORE_BTIME, _MORE_RDEV, _MORE_LINK, _MORE_XATTRS, _MORE_XATTR_RECIPE = (
    1, 2, 4, 8, 16, 32,
)  # fmt: skip

NO_TOKEN: Final = 0  # of an entry that has to be read again


class Sums(NamedTuple):
    """What lies below a directory, itself not counted. Names of one file count each."""

    nodes: int = 0  # of all kinds
    files: int = 0
    bytes: int = 0  # sizes of files, holes included


class Entry(NamedTuple):
    """One name of a directory. None: not known. Times in nanoseconds since 1970.

    The first seven fields are those of a Node, so that the two are quickly compared.
    """

    name: bytes  # of a root: empty
    kind: NodeKind
    size: int = 0  # bytes of a file; of a directory: of all files below
    mtime_ns: int | None = None
    mode: int | None = None  # permission bits only
    uid: int | None = None
    gid: int | None = None
    owner: str | None = None
    group: str | None = None
    recipe: Recipe | None = None  # files
    child: ChunkId | None = None  # directories: the object
    nodes: int = 0  # directories: see Sums
    files: int = 0
    target: bytes | None = None  # symlinks
    rdev: int = 0  # devices
    link: int = 0  # the same for all names of one file in this tree; 0: it has one name
    ctime_ns: int | None = None  # kept by snapshots of the namespace only
    btime_ns: int | None = None
    xattrs: Mapping[bytes, bytes] | None = None  # ACLs among them
    xattr_recipe: tuple[Recipe, int] | None = None  # of many: `encode_xattrs`, and its size

    @property
    def sums(self) -> Sums:
        """What it adds to the directory it lies in."""
        if self.kind is NodeKind.DIRECTORY:
            return Sums(self.nodes + 1, self.files, self.size)
        if self.kind is NodeKind.FILE:
            return Sums(1, 1, self.size)
        return Sums(1, 0, 0)


class Leaf(NamedTuple):
    """A run of entries, sorted by name."""

    entries: Sequence[Entry]
    sums: Sums


class Child(NamedTuple):
    """A leaf, or an index one level lower."""

    first: bytes  # the first name in it
    id: ChunkId
    sums: Sums


class Index(NamedTuple):
    """The parts of a large directory, in the order of names."""

    level: int  # 1: of leaves
    children: Sequence[Child]
    sums: Sums


class Tokens(NamedTuple):
    """How the entries of one leaf looked at their source."""

    leaf: ChunkId
    tokens: Sequence[int]  # of each entry; NO_TOKEN: read it again
    children: Sequence[ChunkId | None]  # token objects of the directories among them, in order


class TokenIndex(NamedTuple):
    """The token objects of a large directory's leaves, in order."""

    level: int
    children: Sequence[ChunkId]


def total(sums: Sequence[Sums]) -> Sums:
    """Add up. Sizes of sparse files can come to more than 64 bits: they end at SIZE_MAX."""
    return Sums(
        sum([each[0] for each in sums]),
        sum([each[1] for each in sums]),
        min(SIZE_MAX, sum([each[2] for each in sums])),
    )


def ends_object(name: bytes, level: int) -> bool:
    """Tell whether, in a large directory, an object of this level ends after the name.

    Decided by the name alone: a new one changes the leaf it falls into and the indexes above it.
    """
    bits = LEAF_BITS * (level + 1)
    if bits > 64:
        return False
    digest = blake3(name).digest(length=8)
    return not int.from_bytes(digest, "little") & ((1 << bits) - 1)


def token_of(token: Hashable) -> int:
    """Return 64 bits that stand for a tree's token, the same in every run; NO_TOKEN for None."""
    if token is None:
        return NO_TOKEN
    digest = blake2b(repr(token).encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


# ---- encoding ----


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Encode extended attributes, sorted by name."""
    parts = []
    for name, value in sorted(xattrs.items()):
        parts += [_XATTR.pack(len(name), len(value)), name, value]
    return b"".join(parts)


def _tail(entry: Entry) -> tuple[int, int, bytes]:
    """Return form, `more` and the bytes behind the name."""
    more = 0
    parts: list[bytes] = []
    if entry.ctime_ns is not None:
        more |= _MORE_CTIME
        parts.append(_I64.pack(entry.ctime_ns))
    if entry.btime_ns is not None:
        more |= _MORE_BTIME
        parts.append(_I64.pack(entry.btime_ns))
    if entry.rdev:
        more |= _MORE_RDEV
        parts.append(_U64.pack(entry.rdev))
    if entry.link:
        more |= _MORE_LINK
        parts.append(_U64.pack(entry.link))
    if entry.xattr_recipe is not None:
        recipe, size = entry.xattr_recipe
        form, packed = pack_recipe(recipe)
        more |= _MORE_XATTR_RECIPE
        parts += [_XATTR_RECIPE.pack(form, len(packed), size), packed]
    elif entry.xattrs:
        data = encode_xattrs(entry.xattrs)
        if len(data) > XATTRS_INLINE_MAX:
            raise ValueError("extended attributes above XATTRS_INLINE_MAX need a recipe")
        more |= _MORE_XATTRS
        parts += [_U64.pack(len(data)), data]
    form = FORM_NONE
    kind = entry.kind
    if kind is NodeKind.FILE:
        form, packed = pack_recipe(entry.recipe if entry.recipe is not None else Recipe())
        parts.append(packed)
    elif kind is NodeKind.DIRECTORY:
        if entry.child is None:
            raise ValueError("the entry of a directory names its object")
        parts.append(_BELOW.pack(entry.child, entry.nodes, entry.files))
    elif kind is NodeKind.SYMLINK:
        parts.append(entry.target or b"")
    return form, more, b"".join(parts)


def entry_bytes(entry: Entry) -> int:
    """Return about how many bytes the entry takes in a leaf."""
    size = _ENTRY.size + len(entry.name) + len(entry.target or b"")
    if entry.recipe is not None:
        size += 48 * len(entry.recipe.extents)
    if entry.xattrs:
        size += sum(len(name) + len(value) + 6 for name, value in entry.xattrs.items())
    return size


def encode_directory(entries: Sequence[Entry]) -> bytes:
    """Encode entries, sorted by name; each name once."""
    return _encode(entries, 0)


def encode_root(top: Entry) -> bytes:
    """Encode the top of a tree: a directory, or any other single node. Its name is left out."""
    return _encode([top._replace(name=b"")], _ROOT_LEVEL)


def _encode(entries: Sequence[Entry], level: int) -> bytes:
    owners = sorted({name for e in entries for name in (e.owner, e.group) if name is not None})
    number = {name: n for n, name in enumerate(owners, start=1)}
    fixed: list[bytes] = []
    heap: list[bytes] = []
    for entry in entries:
        form, more, tail = _tail(entry)
        has = 0
        if entry.mode is not None:
            has |= _HAS_MODE
        if entry.uid is not None:
            has |= _HAS_UID
        if entry.gid is not None:
            has |= _HAS_GID
        if entry.mtime_ns is not None:
            has |= _HAS_MTIME
        fixed.append(
            _ENTRY.pack(
                len(entry.name),
                _CODE_OF_KIND[entry.kind],
                has,
                entry.mode or 0,
                form,
                more,
                number[entry.owner] if entry.owner is not None else 0,
                number[entry.group] if entry.group is not None else 0,
                entry.uid or 0,
                entry.gid or 0,
                entry.mtime_ns or 0,
                entry.size,
                len(tail),
            )
        )
        heap.append(entry.name)
        heap.append(tail)
    names = b"".join([_owner_bytes(name) for name in owners])
    sums = total([entry.sums for entry in entries])
    header = _HEADER.pack(_MAGIC, VERSION, level, 0, len(entries), len(names), *sums)
    return b"".join([header, names, *fixed, *heap])


def _owner_bytes(name: str) -> bytes:
    data = name.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError("the name of an owner has at most 255 bytes")
    return bytes([len(data)]) + data


def encode_index(level: int, children: Sequence[Child]) -> bytes:
    """Encode the index of a large directory."""
    sums = total([child.sums for child in children])
    parts = [_HEADER.pack(_MAGIC, VERSION, level, 0, len(children), 0, *sums)]
    parts += [_CHILD.pack(*child.sums, child.id, len(child.first)) for child in children]
    parts += [child.first for child in children]
    return b"".join(parts)


def encode_tokens(tokens: Tokens) -> bytes:
    """Encode the tokens of one leaf."""
    count = len(tokens.tokens)
    return b"".join(
        [
            _TOKENS.pack(_MAGIC_TOKENS, VERSION, 0, 0, count, tokens.leaf),
            struct.pack(f"<{count}Q", *tokens.tokens),
            *[child if child is not None else bytes(ID_BYTES) for child in tokens.children],
        ]
    )


def encode_token_index(index: TokenIndex) -> bytes:
    """Encode what names the token objects of a large directory."""
    header = _TOKENS.pack(
        _MAGIC_TOKENS, VERSION, index.level, 0, len(index.children), bytes(ID_BYTES)
    )
    return b"".join([header, *index.children])


# ---- decoding ----


def decode_directory(data: bytes) -> Leaf | Index:
    """Decode a directory's object."""
    level, count, names_bytes, sums = _header(data)
    if level == _ROOT_LEVEL:
        raise TreeDamaged("the root of a tree stands where a directory should")
    try:
        if level:
            return Index(level, _children(data, count, names_bytes), sums)
        entries = _entries(data, count, names_bytes)
    except (struct.error, ValueError, OverflowError) as error:
        raise TreeDamaged(f"a tree object is damaged: {error}") from error
    last = b""
    for entry in entries:
        name = entry[0]
        if name <= last:
            raise TreeDamaged("a tree object has names that are not in order")
        _check_name(name)
        last = name
    return Leaf(entries, sums)


def decode_root(data: bytes) -> Entry:
    """Decode the top of a tree."""
    level, count, names_bytes, _ = _header(data)
    if level != _ROOT_LEVEL or count != 1:
        raise TreeDamaged("a chunk that should be the root of a tree is none")
    try:
        entry = _entries(data, count, names_bytes)[0]
    except (struct.error, ValueError, OverflowError) as error:
        raise TreeDamaged(f"the root of a tree is damaged: {error}") from error
    if entry.name:
        raise TreeDamaged("the root of a tree has a name")
    return entry


def _header(data: bytes) -> tuple[int, int, int, Sums]:
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise TreeDamaged("a chunk that should be a tree object is none")
    _, version, level, zero, count, names_bytes, nodes, files, size = _HEADER.unpack_from(data)
    if version > VERSION:
        raise FormatTooNew("a tree object", version, VERSION)
    if version != VERSION or zero or LEVELS_MAX < level < _ROOT_LEVEL:
        raise TreeDamaged("a tree object has a header that makes no sense")
    return level, count, names_bytes, Sums(nodes, files, size)


def _check_name(name: bytes) -> None:
    if b"/" in name or b"\0" in name or name in {b".", b".."} or len(name) > NAME_BYTES_MAX:
        raise TreeDamaged(f"a tree object has a name that none can have: {name[:80]!r}")


def _owners(data: bytes) -> list[str | None]:
    names: list[str | None] = [None]
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        if end > len(data):
            raise TreeDamaged("the owners' names of a tree object are cut off")
        names.append(data[at + 1 : end].decode("utf-8", "surrogateescape"))
        at = end
    return names


def _entries(data: bytes, count: int, names_bytes: int) -> list[Entry]:
    table = _HEADER.size + names_bytes
    heap = table + count * _ENTRY.size
    if count > ENTRIES_MAX or heap > len(data):
        raise TreeDamaged("a tree object is shorter than it says")
    owners = _owners(data[_HEADER.size : table])
    entries: list[Entry] = []
    at = heap
    for (
        name_bytes, code, has, mode, form, more, owner, group, uid, gid, mtime_ns, size, tail_bytes
    ) in _ENTRY.iter_unpack(data[table:heap]):  # fmt: skip
        start = at + name_bytes
        name = data[at:start]
        at = start + tail_bytes
        kind = _KIND_OF_CODE.get(code)
        if (
            kind is None
            or has > 15
            or more > 63
            or mode > 0o7777
            or at > len(data)
            or size > SIZE_MAX
            or owner >= len(owners)
            or group >= len(owners)
        ):
            raise TreeDamaged("a tree object has an entry that makes no sense")
        rest: tuple[object, ...] = _NOTHING_MORE
        if more:
            rest, start = _more(data, start, at, more)
        nodes = files = 0
        recipe = child = target = None
        if kind is NodeKind.FILE:
            recipe = unpack_recipe(form, data[start:at], size)
        elif form != FORM_NONE:
            raise TreeDamaged("a tree object has a recipe for what is no file")
        elif kind is NodeKind.DIRECTORY:
            if at - start != _BELOW.size:
                raise TreeDamaged("a tree object has a directory without its object")
            child, nodes, files = _BELOW.unpack_from(data, start)
        elif kind is NodeKind.SYMLINK:
            target = data[start:at]
        elif at != start:
            raise TreeDamaged("a tree object has bytes that belong to nothing")
        # Past the constructor written in Python: a third of the time of decoding.
        fields = (
            name,
            kind,
            size,
            mtime_ns if has & _HAS_MTIME else None,
            mode if has & _HAS_MODE else None,
            uid if has & _HAS_UID else None,
            gid if has & _HAS_GID else None,
            owners[owner],
            owners[group],
            recipe,
            child,
            nodes,
            files,
            target,
            *rest,
        )
        entries.append(tuple.__new__(Entry, fields))
    if at != len(data):
        raise TreeDamaged("a tree object is longer than it says")
    return entries


class _More(NamedTuple):
    """The fields of Entry that few have, in its order."""

    rdev: int = 0
    link: int = 0
    ctime_ns: int | None = None
    btime_ns: int | None = None
    xattrs: Mapping[bytes, bytes] | None = None
    xattr_recipe: tuple[Recipe, int] | None = None


_NOTHING_MORE: Final = _More()


def _more(data: bytes, at: int, end: int, more: int) -> tuple[_More, int]:
    """Return what `more` announces, and where it ends."""
    found: list[int | None] = []
    for bit, field in (
        (_MORE_CTIME, _I64),
        (_MORE_BTIME, _I64),
        (_MORE_RDEV, _U64),
        (_MORE_LINK, _U64),
    ):
        if more & bit:
            found.append(field.unpack_from(data, at)[0])
            at += 8
        else:
            found.append(None)
    xattrs = recipe = None
    if more & _MORE_XATTR_RECIPE:
        form, length, size = _XATTR_RECIPE.unpack_from(data, at)
        at += _XATTR_RECIPE.size
        recipe = (unpack_recipe(form, data[at : at + length], size), size)
        at += length
    if more & _MORE_XATTRS:
        length = _U64.unpack_from(data, at)[0]
        at += _U64.size
        xattrs = decode_xattrs(data[at : at + length])
        at += length
    if at > end:
        raise TreeDamaged("an entry of a tree object is shorter than it says")
    ctime_ns, btime_ns, rdev, link = found
    return _More(rdev or 0, link or 0, ctime_ns, btime_ns, xattrs, recipe), at


def decode_xattrs(data: bytes) -> dict[bytes, bytes]:
    """Decode what `encode_xattrs` returned."""
    xattrs: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _XATTR.size:
            raise TreeDamaged("extended attributes are cut off")
        name_bytes, value_bytes = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        name = data[at : at + name_bytes]
        at += name_bytes
        if not name or b"\0" in name or name in xattrs:
            raise TreeDamaged("extended attributes have a name that none can have, or one twice")
        xattrs[name] = data[at : at + value_bytes]
        at += value_bytes
    if at != len(data):
        raise TreeDamaged("extended attributes are cut off")
    return xattrs


def _children(data: bytes, count: int, names_bytes: int) -> list[Child]:
    at = _HEADER.size + count * _CHILD.size
    if not 0 < count <= CHILDREN_MAX or names_bytes or at > len(data):
        raise TreeDamaged("the index of a directory makes no sense")
    children: list[Child] = []
    last = b""
    for nodes, files, size, name, length in _CHILD.iter_unpack(data[_HEADER.size : at]):
        first = data[at : at + length]
        at += length
        if first <= last:
            raise TreeDamaged("the index of a directory has names that are not in order")
        children.append(Child(first, name, Sums(nodes, files, size)))
        last = first
    if at != len(data):
        raise TreeDamaged("the index of a directory is longer or shorter than it says")
    return children


def decode_tokens(data: bytes) -> Tokens | TokenIndex:
    """Decode a token object."""
    if len(data) < _TOKENS.size or data[:4] != _MAGIC_TOKENS:
        raise TreeDamaged("a chunk that should be a token object is none")
    _, version, level, zero, count, leaf = _TOKENS.unpack_from(data)
    if version > VERSION:
        raise FormatTooNew("a token object", version, VERSION)
    at = _TOKENS.size + (0 if level else 8 * count)
    if version != VERSION or zero or level > LEVELS_MAX or at > len(data):
        raise TreeDamaged("a token object has a header that makes no sense")
    if (len(data) - at) % ID_BYTES:
        raise TreeDamaged("a token object is cut off")
    ids = [ChunkId(data[i : i + ID_BYTES]) for i in range(at, len(data), ID_BYTES)]
    if level:
        if not 0 < count <= TOKENS_MAX or len(ids) != count:
            raise TreeDamaged("a token object is longer or shorter than it says")
        return TokenIndex(level, ids)
    if count > ENTRIES_MAX or len(ids) > count:
        raise TreeDamaged("a token object is longer or shorter than it says")
    children = [name if any(name) else None for name in ids]
    return Tokens(leaf, struct.unpack_from(f"<{count}Q", data, _TOKENS.size), children)


# ---- nodes ----


def entry_of(node: Node, recipe: Recipe | None = None, **more: object) -> Entry:
    """Return the entry of a node that is no directory, or of one before its object is known."""
    return Entry(
        node.name,
        node.kind,
        node.size if node.kind is NodeKind.FILE else 0,
        node.mtime_ns,
        node.mode,
        node.uid,
        node.gid,
        node.owner,
        node.group,
        recipe,
        target=node.target if node.kind is NodeKind.SYMLINK else None,
        rdev=node.rdev,
    )._replace(**more)  # type: ignore[arg-type]  # fields of Entry


def node_of(entry: Entry) -> Node:
    """Return the node that a tree shows for an entry."""
    content = None
    allocated = None
    if entry.kind is NodeKind.FILE:
        recipe = entry.recipe if entry.recipe is not None else Recipe()
        content = recipe_id(recipe, entry.size)
        if recipe.root is None:
            allocated = sum([extent.length for extent in recipe.extents])
    elif entry.kind is NodeKind.DIRECTORY:
        content = entry.child
    return Node(
        entry.name,
        entry.kind,
        entry.size if entry.kind is NodeKind.FILE else 0,
        entry.mtime_ns,
        entry.mode,
        entry.uid,
        entry.gid,
        content,  # nothing in a snapshot changes: the content is the version
        entry.link or None,
        entry.target,
        entry.rdev,
        allocated,
        entry.owner,
        entry.group,
        None,
        content,
    )
