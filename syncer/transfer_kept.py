"""Filters as a backup asks for them: path by path, while directories are listed.

Ignore files of local folders are read where they lie, in the thread that lists; of other trees
they are fetched when their directory has been listed, before anything in it is judged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from syncer.backup_scan import IgnoreFiles
from syncer.filter_ignore import FILE_BYTES_MAX
from syncer.filter_patterns import FilterError
from syncer.filters import Filters
from syncer.local_tree import LocalTree
from syncer.remotes.errors import RemoteError, Unsupported
from syncer.tree import ROOT, Node, NodeKind, Tree

_KEPT_MAX: Final = 256  # directories whose filters are remembered, before some are forgotten
_RECENT: Final = 64  # directories that may be listed ahead of the one that the walk is in


class Kept:
    """What belongs to a backup."""

    def __init__(self, tree: Tree, filters: Filters) -> None:
        self._tree = tree
        self._local = tree if isinstance(tree, LocalTree) else None
        self._top = filters
        self._known: dict[bytes, Filters] = {}
        self._recent: deque[bytes] = deque(maxlen=_RECENT)

    @property
    def ignores(self) -> IgnoreFiles | None:
        """What `keeps` is to be told of; None: it looks by itself."""
        if self._local is not None:
            return None
        return IgnoreFiles(frozenset(self._top.ignore_names), self.enter)

    def keeps(self, path: bytes, node: Node) -> bool:
        """Whether a path belongs to the backup; its parents do. Blocks for local trees."""
        return self._of(path.rpartition(b"/")[0]).decide(path, node).keep

    async def enter(self, directory: bytes, nodes: Sequence[Node]) -> None:
        """Read the ignore files of a directory, whose parents were entered.

        Raises RemoteError: then nobody knows what is to be kept.
        """
        above = self._above(directory)
        self._recent.append(directory)
        self._forget()
        contents: dict[bytes, bytes] = {}
        for node in nodes:
            if node.kind is not NodeKind.FILE:
                continue
            if node.size > FILE_BYTES_MAX:
                raise Unsupported(f"{node.name!r} has {node.size} bytes: too many for rules")
            path = directory + b"/" + node.name if directory else node.name
            exact = node if node.exact else await self._tree.stat(path)
            contents[node.name] = await self._tree.read(path, exact, 0, exact.size)
        try:
            if contents:
                self._known[directory] = above.enter(directory, contents)
        except FilterError as error:
            raise Unsupported(str(error)) from error

    def _above(self, directory: bytes) -> Filters:
        return self._top if directory == ROOT else self._of(directory.rpartition(b"/")[0])

    def _of(self, directory: bytes) -> Filters:
        """What holds in a directory."""
        known = self._known.get(directory)
        if known is None:
            known = self._above(directory)
            if self._local is not None and known.ignore_names:
                known = known.enter(directory, self._contents(self._local, directory, known))
                while len(self._known) >= _KEPT_MAX:
                    del self._known[next(iter(self._known))]
                self._known[directory] = known
        return known

    def _contents(self, tree: LocalTree, directory: bytes, filters: Filters) -> dict[bytes, bytes]:
        """The ignore files there: small, and read where they lie; a hop would cost more."""
        found = {}
        for name in filters.ignore_names:
            path = directory + b"/" + name if directory else name
            with suppress(RemoteError):
                node = tree.files.stat(path)
                if node.kind is NodeKind.FILE and node.size <= FILE_BYTES_MAX:
                    found[name] = tree.files.read(path, node, 0, node.size)
        return found

    def _forget(self) -> None:
        """Keep what holds where the walk is: it goes depth first, and lists some ahead."""
        if len(self._known) <= _KEPT_MAX:
            return
        needed = {ROOT}
        for path in self._recent:
            while path:
                needed.add(path)
                path = path.rpartition(b"/")[0]  # noqa: PLW2901  upwards
        for directory in [each for each in self._known if each not in needed]:
            del self._known[directory]
