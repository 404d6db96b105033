"""What sync must do, as short as it can be said, and small trees to say it about.

A tree is a dict of names to items, a directory's item holds another. `synced` is the reference:
recursive, all in memory, and without any of the product's code but the words of Options.
`carry_out` does what a plan says, by the Tree protocol alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import trio
from hypothesis import strategies as st

from syncer.options import Mode, Options, Symlinks, Verb
from syncer.remotes.errors import NotEmpty
from syncer.remotes.memory import MemoryServer
from syncer.remotes.remote import Kind
from syncer.steps import Step, StepKind
from syncer.tree import Metadata, Node, NodeKind, Tree

SECOND = 10**9
START_NS = 1_600_000_000 * SECOND


@dataclass(frozen=True)
class Item:
    """A file, symlink or directory. Of symlinks only the target counts."""

    kind: NodeKind
    data: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    mtime_ns: int = START_NS
    children: Mapping[bytes, Item] = field(default_factory=dict)


Items = Mapping[bytes, Item]
FILE, DIRECTORY, SYMLINK = NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK

NAMES = (b"a", b"b", b"a.b", b"-c", b"\xff\n")
_TIMES = st.sampled_from([START_NS, START_NS + 1, START_NS + 60 * SECOND])


def _files() -> st.SearchStrategy[Item]:
    return st.builds(
        Item,
        st.just(FILE),
        data=st.sampled_from([b"", b"one", b"two", b"longer"]),
        mode=st.sampled_from([0o644, 0o600]),
        mtime_ns=_TIMES,
    )


def _symlinks() -> st.SearchStrategy[Item]:
    return st.builds(Item, st.just(SYMLINK), target=st.sampled_from([b"a", b"../b", b"/no/where"]))


def directories(children: st.SearchStrategy[Item]) -> st.SearchStrategy[Item]:
    """Directories of these."""
    return st.builds(
        Item,
        st.just(DIRECTORY),
        mode=st.sampled_from([0o755, 0o700]),
        mtime_ns=_TIMES,
        children=st.dictionaries(st.sampled_from(NAMES), children, max_size=4),
    )


ITEMS = st.recursive(_files() | _symlinks(), directories, max_leaves=12)
TREES = directories(ITEMS)


# ---- the reference ----


def _deleted(item: Item, name: bytes, left_out: Callable[[bytes], bool]) -> Item | None:
    """What stays of something that the source has not."""
    if left_out(name):
        return item
    if item.kind is not DIRECTORY:
        return None
    stays = {
        below: rest
        for below, each in item.children.items()
        if (rest := _deleted(each, below, left_out)) is not None
    }
    return dataclasses.replace(item, children=stays) if stays else None


def _copied(item: Item, left_out: Callable[[bytes, Item], bool]) -> Item:
    """What becomes of something where nothing is."""
    children = {
        name: _copied(each, left_out)
        for name, each in item.children.items()
        if not left_out(name, each)
    }
    return dataclasses.replace(item, children=children)


def synced(
    source: Item, target: Item, verb: Verb, options: Options, left_out: Callable[[bytes], bool]
) -> Item:
    """What the destination is to be afterwards. `left_out`: names that the filters leave out."""
    mode = Mode.UPDATE if verb is Verb.COPY else options.mode

    def passed_over(name: bytes, item: Item) -> bool:
        return left_out(name) or (item.kind is SYMLINK and options.symlinks is Symlinks.SKIP)

    def merge(one: Item, other: Item) -> Item:
        result = dict(other.children)
        for name, item in one.children.items():
            if passed_over(name, item):
                continue
            there = other.children.get(name)
            becomes = _copied(item, passed_over) if there is None else settle(item, there)
            if becomes is not None:
                result[name] = becomes
        if mode is Mode.MIRROR:
            for name in other.children.keys() - one.children.keys():
                rest = _deleted(other.children[name], name, left_out)
                if rest is None:
                    del result[name]
                else:
                    result[name] = rest
        return dataclasses.replace(one, children=result)

    def settle(item: Item, there: Item) -> Item | None:
        if item.kind is DIRECTORY and there.kind is DIRECTORY:
            return merge(item, there)
        if options.ignore_existing:
            return there
        if there.kind is DIRECTORY:
            if mode is not Mode.MIRROR:
                return there
            rest = _deleted(there, b"", left_out)
            return item if rest is None else rest
        if item.kind is FILE and there.kind is FILE:
            if mode is Mode.UPDATE and there.mtime_ns > item.mtime_ns:
                return there
            if len(item.data) == len(there.data):
                same = item.data == there.data
                if options.checksum and same:
                    return item
                if not options.checksum and item.mtime_ns == there.mtime_ns:
                    return dataclasses.replace(item, data=there.data)
        return _copied(item, passed_over)

    return merge(source, target)


# ---- trees in memory ----


def make(item: Item) -> MemoryServer:
    """A server whose root is this directory."""
    server = MemoryServer()

    def fill(folder: object, item: Item) -> None:
        for name, each in item.children.items():
            kind = {FILE: Kind.FILE, DIRECTORY: Kind.DIRECTORY, SYMLINK: Kind.SYMLINK}[each.kind]
            target = each.target if each.kind is SYMLINK else None
            node = server.new_node(kind, each.data, target)
            mode = 0o777 if each.kind is SYMLINK else each.mode
            node.entry = dataclasses.replace(node.entry, mtime_ns=each.mtime_ns, mode=mode)
            folder.children[name] = node  # type: ignore[attr-defined]
            fill(node, each)

    root = server.root
    root.entry = dataclasses.replace(root.entry, mtime_ns=item.mtime_ns, mode=item.mode)
    fill(root, item)
    return server


def found(server: MemoryServer) -> Item:
    """What is on a server now."""

    def item(node: object) -> Item:
        entry = node.entry  # type: ignore[attr-defined]
        if entry.kind is Kind.SYMLINK:
            return Item(SYMLINK, target=entry.target)
        if entry.kind is Kind.FILE:
            data = node.data  # type: ignore[attr-defined]
            return Item(FILE, data, mode=entry.mode, mtime_ns=entry.mtime_ns)
        children = {
            name: item(each)
            for name, each in node.children.items()  # type: ignore[attr-defined]
        }
        return Item(DIRECTORY, mode=entry.mode, mtime_ns=entry.mtime_ns, children=children)

    return item(server.root)


def paths(item: Item, path: bytes = b"") -> Iterator[tuple[bytes, Item]]:
    """All that is in a directory, itself first."""
    yield path, item
    for name, each in item.children.items():
        yield from paths(each, path + b"/" + name if path else name)


def files(item: Item) -> int:
    """How many files and symlinks are in it."""
    return sum(each.kind is not DIRECTORY for _, each in paths(item))


# ---- trees in folders ----


def lay(folder: bytes, item: Item) -> None:
    """Make a directory's content in a folder."""
    for name, each in item.children.items():
        path = os.path.join(folder, name)
        if each.kind is DIRECTORY:
            os.mkdir(path)
            lay(path, each)
        elif each.kind is SYMLINK:
            os.symlink(each.target, path)
        else:
            with open(path, "wb") as handle:
                handle.write(each.data)
            os.chmod(path, each.mode)
            os.utime(path, ns=(each.mtime_ns, each.mtime_ns))
    os.chmod(folder, item.mode)
    os.utime(folder, ns=(item.mtime_ns, item.mtime_ns))


def lies(folder: bytes) -> Item:
    """What is in a folder."""
    children = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.islink(path):
            children[name] = Item(SYMLINK, target=os.readlink(path))
        elif os.path.isdir(path):
            children[name] = lies(path)
        else:
            with open(path, "rb") as handle:
                data = handle.read()
            seen = os.stat(path)
            children[name] = Item(FILE, data, mode=seen.st_mode & 0o7777, mtime_ns=seen.st_mtime_ns)
    seen = os.stat(folder)
    return Item(DIRECTORY, mode=seen.st_mode & 0o7777, mtime_ns=seen.st_mtime_ns, children=children)


# ---- doing what a plan says ----


class FromTree:
    """A Content that reads a file of a tree."""

    def __init__(self, tree: Tree, path: bytes, node: Node) -> None:
        self._tree, self._path, self._node = tree, path, node

    @property
    def size(self) -> int:
        return self._node.size

    async def read(self, offset: int, length: int) -> bytes:
        return await self._tree.read(self._path, self._node, offset, length)


_DEEPEST_FIRST = {StepKind.TRASH, StepKind.DELETE, StepKind.DIRECTORY_METADATA}


def in_order(steps: Sequence[Step]) -> list[Step]:
    """As `jobs.db` gives them out."""

    def turn(step: Step) -> tuple[int, int, int]:
        depth = step.path.count(b"/") + 1 if step.path else 0
        if step.kind is StepKind.MKDIR:
            return step.kind, depth, 0
        if step.kind in _DEEPEST_FIRST:
            return step.kind, -depth, 0
        return step.kind, step.rank, step.size

    return sorted(steps, key=turn)


async def carry_out(steps: Sequence[Step], source: Tree, target: Tree, options: Options) -> None:
    """Do it, and fail if anything of it cannot be done."""
    for step in in_order(steps):
        await _do(step, source, target, options)
        await trio.lowlevel.checkpoint()


def _metadata(node: Node, options: Options) -> Metadata:
    return Metadata(
        mode=node.mode if options.modes else None,
        mtime_ns=node.mtime_ns if options.times else None,
    )


async def _do(step: Step, source: Tree, target: Tree, options: Options) -> None:
    node, old = step.node, step.old
    kind = step.kind
    if kind is StepKind.REPLACE:
        assert node is not None
        kind = {FILE: StepKind.COPY, SYMLINK: StepKind.SYMLINK}[node.kind]
    match kind:
        case StepKind.DELETE:
            assert old is not None
            try:
                await target.delete(step.path, old)
            except NotEmpty as error:
                raise AssertionError(
                    f"{step.path!r} was to be deleted with things in it"
                ) from error
        case StepKind.TRASH:
            parent = step.source_path.rpartition(b"/")[0]
            await target.mkdir(parent, Metadata())
            await target.rename(step.path, step.source_path)
        case StepKind.LINK:
            await target.hard_link(step.path, step.source_path)
        case StepKind.MKDIR:
            if old is not None:
                await target.delete(step.path, old)
            await target.mkdir(step.path, Metadata())
        case StepKind.SYMLINK:
            assert node is not None
            assert node.target is not None
            await target.symlink(step.path, node.target, _metadata(node, options))
        case StepKind.METADATA | StepKind.DIRECTORY_METADATA:
            assert node is not None
            await target.set_metadata(step.path, _metadata(node, options))
        case StepKind.COPY:
            assert node is not None
            if not node.exact:
                node = await source.stat(step.source_path)
            content = FromTree(source, step.source_path, node)
            await target.write(step.path, content, _metadata(node, options), old=old)
        case _:
            raise AssertionError(f"no {step.kind} was expected")
