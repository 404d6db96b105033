"""Whether two trees are alike: names, kinds, sizes and contents, and metadata on request."""

from __future__ import annotations

from typing import Final

import trio

from syncer.diff import same_checksum
from syncer.remotes.errors import RemoteError
from syncer.tree import Node, Tree

BLOCK_BYTES: Final = 4 << 20  # compared at a time
BLOCKS_AHEAD: Final = 4  # of one file, from both sides: 32 MiB


async def same_xattrs(source: Tree, source_path: bytes, destination: Tree, path: bytes) -> bool:
    """Whether a name has equal extended attributes in both trees."""
    return dict(await source.xattrs(source_path)) == dict(await destination.xattrs(path))


async def same_content(
    source: Tree, source_path: bytes, node: Node, destination: Tree, path: bytes, there: Node
) -> bool:
    """Whether two files have equal bytes: by what both trees know, else by reading both.

    Raises Changed, and what reading raises.
    """
    if node.size != there.size:
        return False
    if node.content is not None and node.content == there.content:
        return True
    known = same_checksum(node.checksum, there.checksum)
    if known is not None:
        return known
    return await _same_bytes(source, source_path, node, destination, path, there)


async def _same_bytes(
    source: Tree, source_path: bytes, node: Node, destination: Tree, path: bytes, there: Node
) -> bool:
    if not node.exact:
        node = await source.stat(source_path)
    if not there.exact:
        there = await destination.stat(path)
    differs = False
    failed: RemoteError | None = None
    offsets = iter(range(0, node.size, BLOCK_BYTES))

    async def compare_blocks() -> None:
        nonlocal differs, failed
        for offset in offsets:
            length = min(BLOCK_BYTES, node.size - offset)
            blocks: list[bytes] = []

            async def fetch(tree: Tree, where: bytes, what: Node) -> None:
                nonlocal failed
                try:
                    blocks.append(await tree.read(where, what, offset, length))  # noqa: B023
                except RemoteError as error:
                    failed = error
                    scope.cancel()

            async with trio.open_nursery() as both:
                both.start_soon(fetch, source, source_path, node)
                both.start_soon(fetch, destination, path, there)
            if blocks[0] != blocks[1]:
                differs = True
                scope.cancel()

    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        for _ in range(min(BLOCKS_AHEAD, -(-node.size // BLOCK_BYTES))):
            nursery.start_soon(compare_blocks)
    if failed is not None:
        raise failed
    return not differs
