"""A local file that differs little from its old copy: built from that copy's parts and new bytes.

The old copy is cut by content and its chunks hashed; a new content is given as chunks too. What
both have is copied from the old file to the temporary one by the kernel (shared, where the file
system can), and only the rest is asked for. A crash leaves the old file whole.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from blockstore.ids import ChunkId, chunk_id
from syncer.local_bytes import Method, Ways
from syncer.local_draft import Draft
from syncer.local_tree import LocalTree
from syncer.remotes.errors import Garbled
from syncer.tree import Metadata, Node, Tree

WINDOW_BYTES: Final = 16 << 20  # of a file that is being cut; more than the largest chunk
NEW_BYTES_MAX: Final = 4 << 20  # asked for at once
KERNEL_BYTES_MAX: Final = 64 << 20  # copied between two looks at whether it is cancelled

Cutter = Callable[[memoryview], list[int]]  # lengths of chunks; the last one ends with the data
NewBytes = Callable[[int, int], Awaitable[bytes]]  # of an offset and length of the new content


class Chunk(NamedTuple):
    """A run of a file."""

    start: int  # bytes from the beginning of the file
    length: int
    id: ChunkId


class Run(NamedTuple):
    """A run of the new file, and where it comes from."""

    start: int
    length: int
    old: int | None  # where the old copy has it; None: new bytes


class Built(NamedTuple):
    """What a file was built from."""

    node: Node
    reused: int  # bytes of the old copy
    written: int  # new bytes
    method: Method  # how the old ones were copied


def plan_runs(new: Iterable[Chunk], old: Iterable[Chunk]) -> list[Run]:
    """Where each byte of the new content comes from, neighbours merged. Pure.

    `new` ascends; what it leaves out is a hole. Of several places in the old copy, the one at the
    same offset is taken, then the one that goes on where the last run ended.
    """
    places: dict[tuple[ChunkId, int], int] = {}  # the first of each
    there: dict[int, tuple[ChunkId, int]] = {}
    for start, length, name in old:
        places.setdefault((name, length), start)
        there[start] = (name, length)
    runs: list[Run] = []
    for start, length, name in new:
        if not length:
            continue
        last = runs[-1] if runs else None
        key = (name, length)
        on = last.old + last.length if last is not None and last.old is not None else -1
        at = next((each for each in (start, on) if there.get(each) == key), places.get(key))
        joins = (
            last is not None
            and last.start + last.length == start
            and (at is None if last.old is None else at == on)
        )
        if last is not None and joins:
            runs[-1] = Run(last.start, last.length + length, last.old)
        else:
            runs.append(Run(start, length, at))
    return runs


async def chunks_of(tree: LocalTree, path: bytes, node: Node, cut: Cutter) -> list[Chunk]:
    """A file's chunks, about a hundred bytes of memory each. Raises Changed."""
    reader = _Chunker(tree, path, node, cut)
    try:
        while not await tree.wait(reader.step):
            pass
        return reader.chunks
    finally:
        reader.stop()


class _Chunker:
    """Cuts and hashes one file, a window at a time. For one thread at a time."""

    def __init__(self, tree: LocalTree, path: bytes, node: Node, cut: Cutter) -> None:
        self._tree = tree
        self._path = path
        self._node = node
        self._cut = cut
        self._at = 0
        self._stopped = False
        self.chunks: list[Chunk] = []

    def stop(self) -> None:
        """Have the thread that may still run give up."""
        self._stopped = True

    def step(self) -> bool:
        """The next window; whether it was the last one."""
        length = min(WINDOW_BYTES, self._node.size - self._at)
        data = memoryview(self._tree.files.read(self._path, self._node, self._at, length))
        lengths = self._cut(data) if length else []
        last = self._at + length >= self._node.size
        if not last:
            lengths.pop()  # it would go on in the next window
            assert lengths, "a window has more than one chunk"
        offset = 0
        for each in lengths:
            if self._stopped:
                return True
            piece = data[offset : offset + each]
            self.chunks.append(Chunk(self._at + offset, each, chunk_id(piece)))
            offset += each
        self._at += offset
        return last


async def build(
    tree: LocalTree,
    path: bytes,
    runs: Sequence[Run],
    size: int,
    read: NewBytes,
    metadata: Metadata,
    *,
    old: Node,
    base: bytes | None = None,
    replace: Node | None = None,
) -> Built:
    """Write `path` whole from runs of an old copy and new bytes: all or nothing, as Tree.write.

    `old` is the copy that the runs are of, at `base` or else `path`. It is compared before and
    after; Changed is raised when it is another one. `replace`: what may be replaced at `path`, if
    that is not `old`.
    """
    draft = tree.draft(path)
    base = path if base is None else base
    parts = _Parts(tree, base, old, draft)
    reused = written = 0
    try:
        for start, length, place in runs:
            for offset in range(0, length, NEW_BYTES_MAX if place is None else KERNEL_BYTES_MAX):
                if place is not None:
                    count = min(KERNEL_BYTES_MAX, length - offset)
                    await tree.wait(parts.copy, place + offset, start + offset, count)
                    reused += count
                    continue
                count = min(NEW_BYTES_MAX, length - offset)
                data = await read(start + offset, count)
                if len(data) != count:
                    raise Garbled(f"the source gave {len(data)} of {count} bytes at {start}")
                await tree.wait(draft.write, data, start + offset)
                written += count
        expected = old if replace is None and base == path else replace
        publish = partial(draft.publish, replace=expected is None, durable=tree.durable)
        await tree.wait(parts.check)
        node = await tree.wait(publish, size, metadata, expected)
        return Built(node, reused, written, parts.method)
    finally:
        await tree.finish(draft.close)


class _Parts:
    """Copies ranges of an old file into a draft. For one thread at a time."""

    def __init__(self, tree: LocalTree, base: bytes, old: Node, draft: Draft) -> None:
        self._tree = tree
        self._base = base
        self._old = old
        self._draft = draft
        self._ways = Ways()
        self.method = Method.NOTHING

    def copy(self, place: int, start: int, length: int) -> None:
        """Copy `length` bytes from `place` of the old file to `start` of the draft."""
        with (
            self._tree.files.pinned(self._base, self._old) as source,
            self._draft.mine() as target,
        ):
            devices = (os.fstat(source).st_dev, os.fstat(target).st_dev)
            shift = start - place
            self.method = self._ways.copy(source, target, place, length, devices, shift)

    def check(self) -> None:
        """Raise Changed if the old file is another one by now."""
        with self._tree.files.pinned(self._base, self._old):
            pass


async def grew(
    source: Tree, source_path: bytes, node: Node, target: Tree, path: bytes, old: Node
) -> bool:
    """Whether the source's file is the target's with more at its end, by the bytes of both.

    Both are read where they lie, so nothing is hashed: the first difference ends it. Raises
    Changed.
    """
    if not 0 < old.size < node.size:
        return False
    for offset in range(0, old.size, NEW_BYTES_MAX):
        length = min(NEW_BYTES_MAX, old.size - offset)
        data = await source.read(source_path, node, offset, length)
        if data != await target.read(path, old, offset, length):
            return False
    return True


def grown_runs(old_size: int, size: int) -> list[Run]:
    """How a file is built that has grown from `old_size` to `size` bytes. Pure."""
    return [Run(0, old_size, 0), Run(old_size, size - old_size, None)]
