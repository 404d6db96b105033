"""Small files of any tree, whole: in one go where the tree can do that, else several at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from syncer.local_nodes import read_xattrs, same
from syncer.local_root import Directories, read_all
from syncer.local_tree import LocalTree
from syncer.remotes.errors import Busy, Changed, RemoteError
from syncer.remotes.local import shown, system_errors
from syncer.tree import ManyReader, Node, Tree, Whole

AT_ONCE: Final = 16  # files that are read from a tree that reads each alone

Wanted = tuple[bytes, Node]  # its path, and what was seen there


def reads_together(tree: Tree) -> bool:
    """Whether small files of a tree cost less together."""
    return isinstance(tree, LocalTree | ManyReader)


async def read_small(
    tree: Tree, files: Sequence[Wanted], *, xattrs: bool
) -> list[Whole | RemoteError]:
    """Files as they were when their nodes were seen, in the same order; each fails alone.

    The caller bounds how many bytes they are.
    """
    if isinstance(tree, LocalTree):
        try:
            return await tree.wait(_read_local, tree, files, xattrs)
        except RemoteError as error:
            return [error] * len(files)
    found: list[Whole | RemoteError] = [_ALONE] * len(files)
    if isinstance(tree, ManyReader):
        try:
            found = list(await tree.read_many(files, xattrs=xattrs))
        except RemoteError as error:
            return [error] * len(files)
    todo = iter([place for place, each in enumerate(found) if isinstance(each, Busy)])
    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, len(files))):
            nursery.start_soon(_read_alone, tree, files, todo, found, xattrs)
    return found


_ALONE: Final = Busy("is read alone")


async def _read_alone(
    tree: Tree,
    files: Sequence[Wanted],
    todo: Iterator[int],
    found: list[Whole | RemoteError],
    xattrs: bool,
) -> None:
    for place in todo:
        path, node = files[place]
        try:
            data = await tree.read(path, node, 0, node.size) if node.size else b""
            kept = dict(await tree.xattrs(path)) if xattrs else None
            found[place] = Whole(data, kept)
        except RemoteError as error:
            found[place] = error


def _read_local(
    tree: LocalTree, files: Sequence[Wanted], xattrs: bool
) -> list[Whole | RemoteError]:
    """Blocks."""
    found: list[Whole | RemoteError] = []
    with contextlib.closing(Directories(tree.root)) as directories:
        for path, node in files:
            try:
                with system_errors(tree.root.path(path)):
                    handle = directories.open_file(path)
                    try:
                        whole = _read_one(handle, node, xattrs)
                    finally:
                        os.close(handle)
                if whole is None:
                    raise Changed(f"{shown(tree.root.path(path))} is not the file that was listed")
                found.append(whole)
            except RemoteError as error:
                found.append(error)
    return found


def _read_one(handle: int, node: Node, xattrs: bool) -> Whole | None:
    """None: it is another one, or becomes one meanwhile. Raises OSError."""
    if not same(os.fstat(handle), node):
        return None
    data = read_all(handle, 0, node.size)
    kept = read_xattrs(handle) if xattrs else None
    if len(data) != node.size or not same(os.fstat(handle), node):
        return None
    return Whole(data, kept)
