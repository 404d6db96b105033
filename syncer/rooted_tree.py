"""A remote tree whose root is made when something is written into it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import Missing
from syncer.remotes.remote import Remote
from syncer.tree import ROOT, Content, Metadata, Node


class RootedTree(RemoteTree):
    """See RemoteTree. Remotes make what is missing below their root, but not the root itself."""

    def __init__(self, remote: Remote, make_root: Callable[[], Awaitable[None]]) -> None:
        """`make_root` makes the folder at the remote's URL, where there are folders."""
        super().__init__(remote)
        self._make_root = make_root

    async def mkdir(self, path: bytes, metadata: Metadata) -> None:
        """See Tree."""
        try:
            await super().mkdir(path, metadata)
        except Missing:
            await self._make_root()
            await super().mkdir(path, metadata)

    async def write(
        self,
        path: bytes,
        content: Content,
        metadata: Metadata,
        *,
        ranges: Sequence[tuple[int, int]] | None = None,
        old: Node | None = None,
        replace: bool = True,
    ) -> Node:
        """See Tree."""
        try:
            return await super().write(
                path, content, metadata, ranges=ranges, old=old, replace=replace
            )
        except Missing:
            if path == ROOT:
                raise
            await self._make_root()
            return await super().write(
                path, content, metadata, ranges=ranges, old=old, replace=replace
            )
