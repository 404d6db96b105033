"""The directories of a tree in the order of a backup: depth first, names sorted, listed ahead.

Each node comes with what the previous backup knew of it. Directories of ordinary size are sorted in
memory, larger ones in a scratch database; a few neighbours are listed ahead.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from syncer.backup_previous import Known, PreviousDirectory, PreviousTree, as_it_was
from syncer.local_tree import LocalTree
from syncer.options import Options, Symlinks
from syncer.remotes.errors import OtherFileSystem, RemoteError
from syncer.tree import Node, NodeKind, Page, Tree
from syncer.walk_scratch import Names, Scratch

AHEAD: Final = 32  # directories
_AHEAD_NODES: Final = 500  # of each; a larger one is listed when its turn comes
_AHEAD_REMOTE: Final = 8  # listings at a time of trees that are not local
SORTED_MAX: Final = 50_000  # nodes sorted in memory, some 30 MB
_PAGE: Final = 2_000

Keeps = Callable[[bytes, Node], bool]


class IgnoreFiles(NamedTuple):
    """Files whose content decides on what lies beside and below them."""

    names: frozenset[bytes]
    # Is given the path of a directory and those of its nodes that have these names.
    enter: Callable[[bytes, Sequence[Node]], Awaitable[None]]


_NAME = operator.itemgetter(0)


class Found(NamedTuple):
    """A node, and what was there before under its name."""

    node: Node
    known: Known | None
    same: bool = False  # it is as it was, and nothing else has to be looked at


@dataclass(slots=True, eq=False)
class Folder:
    """A directory on its way into the backup."""

    path: bytes
    node: Node
    known: Known | None
    previous: PreviousDirectory = field(repr=False)
    all_found: bool = False  # known after its last page: nothing of the previous one is gone
    same: bool = False  # it has no directories, and everything in it is as it was


class Pages:
    """The nodes of one directory, sorted, in pages."""

    def __init__(self, pages: Iterator[list[Found]], *, slow: bool = False) -> None:
        self._pages = pages
        self.slow = slow  # `next` may block

    def next(self) -> list[Found] | None:
        """Return the next page. Blocks."""
        return next(self._pages, None)


class _Sorter:
    """The nodes of one directory as they are listed, and then in the order of their names."""

    def __init__(self) -> None:
        self._scratch = Scratch()  # of its own: several directories are listed at a time
        self._names = Names(self._scratch, None, SORTED_MAX)

    @property
    def small(self) -> list[Node] | None:
        """All nodes, if they are few."""
        return self._names.in_memory

    def add(self, nodes: Sequence[Node]) -> None:
        """Take a page. Blocks."""
        self._names.add(nodes)

    def pages(self) -> Iterator[list[Node]]:
        """Yield all nodes, sorted; once. Blocks."""
        page: list[Node] = []
        for _, same in self._names.groups():
            page.append(same[-1])  # listed twice, because it was renamed meanwhile: once will do
            if len(page) == _PAGE:
                yield page
                page = []
        yield page
        self._scratch.close()


class Scan:
    """Lists directories, a few ahead. Its tasks live in the nursery it is given."""

    def __init__(
        self,
        tree: Tree,
        previous: PreviousTree | None,
        options: Options,
        keeps: Keeps | None,
        nursery: trio.Nursery,
        ignores: IgnoreFiles | None = None,
    ) -> None:
        self._tree = tree
        self._ignores = ignores
        self._previous = previous
        self._options = options
        self._keeps = keeps
        self._nursery = nursery
        self._local = tree if isinstance(tree, LocalTree) else None
        self._tells_all = tree.features.tells_all
        # A directory is here from when it is asked for until its turn comes.
        self._ready: dict[bytes, list[Found] | _Sorter | RemoteError | None] = {}
        self._landed: dict[bytes, trio.Event] = {}
        self._remote = trio.CapacityLimiter(_AHEAD_REMOTE)

    def folder(self, path: bytes, node: Node, known: Known | None) -> Folder:
        """Return a directory that is to be opened."""
        if self._previous is None:
            return Folder(path, node, known, PreviousDirectory(iter(())))
        return Folder(path, node, known, self._previous.directory(known))

    async def open(self, folder: Folder, upcoming: Sequence[Folder]) -> Pages:
        """List a directory; `upcoming` are those that will be asked for next.

        Raises RemoteError; then nothing is known of what is in it.
        """
        if self._local is not None:
            if folder.path not in self._ready:
                window = [folder, *upcoming[: AHEAD - 1]]
                window = [each for each in window if each.path not in self._ready]
                listed = await self._local.wait(self._list_local, self._local, window)
                self._ready.update(zip([each.path for each in window], listed, strict=True))
        else:
            for each in [folder, *upcoming[: _AHEAD_REMOTE - 1]]:
                if each.path not in self._landed:
                    self._landed[each.path] = trio.Event()
                    self._nursery.start_soon(self._list_ahead, each)
            await self._landed[folder.path].wait()
            del self._landed[folder.path]
        found: list[Found] | _Sorter | RemoteError | None = self._ready.pop(folder.path)
        if found is None:
            found = await self._list(folder)
        if isinstance(found, OtherFileSystem):
            found = []  # kept as an empty directory
        if isinstance(found, RemoteError):
            raise found
        if isinstance(found, list):
            return Pages(iter([found]))
        return Pages(self._merged(folder, found), slow=True)

    def _list_local(
        self, local: LocalTree, window: Sequence[Folder]
    ) -> list[list[Found] | RemoteError | None]:
        listed = local.scanner.many([each.path for each in window], _AHEAD_NODES)
        return [
            self._merge_last(folder, sorted(nodes, key=_NAME)) if isinstance(nodes, list) else nodes
            for folder, nodes in zip(window, listed, strict=True)
        ]

    async def _list_ahead(self, folder: Folder) -> None:
        async with self._remote:
            try:
                found: list[Found] | _Sorter | RemoteError = await self._list(folder)
            except RemoteError as error:
                found = error
        self._ready[folder.path] = found
        self._landed[folder.path].set()

    async def _list(self, folder: Folder) -> list[Found] | _Sorter:
        sorter = _Sorter()
        ignores = self._ignores
        rules: list[Node] = []

        async def take(page: Page) -> None:
            if ignores is not None:
                rules.extend(node for node in page if node.name in ignores.names)
            if len(page) < 1_000:  # shorter than a hop to a thread
                sorter.add(page)
                await trio.lowlevel.checkpoint()
            else:
                await trio.to_thread.run_sync(sorter.add, page)

        await self._tree.list(folder.path, take)
        if ignores is not None:
            await ignores.enter(folder.path, rules)
        nodes = sorter.small
        if nodes is None:
            return sorter
        nodes = sorted(nodes, key=_NAME)
        return await trio.to_thread.run_sync(self._merge_last, folder, nodes)

    def _merged(self, folder: Folder, sorter: _Sorter) -> Iterator[list[Found]]:
        for page in sorter.pages():
            yield self._merge(folder, page)
        folder.all_found = folder.previous.all_found()

    def _merge_last(self, folder: Folder, nodes: list[Node]) -> list[Found]:
        found = self._merge(folder, nodes)
        folder.all_found = folder.previous.all_found()
        folder.same = folder.all_found and all(each.same for each in found)
        return found

    def _merge(self, folder: Folder, nodes: list[Node]) -> list[Found]:
        """Leave out what is not wanted, and look up the rest in the previous tree."""
        options = self._options
        if self._keeps is not None:
            prefix = folder.path + b"/" if folder.path else b""
            nodes = [node for node in nodes if self._keeps(prefix + node.name, node)]
        unwanted = set()
        if options.symlinks is Symlinks.SKIP:
            unwanted.add(NodeKind.SYMLINK)
        if not options.specials:
            unwanted |= SPECIALS
        if not options.recursive:
            unwanted.add(NodeKind.DIRECTORY)
        if unwanted:
            nodes = [node for node in nodes if node.kind not in unwanted]
        find = folder.previous.find
        if not self._tells_all or options.checksum:
            return [Found(node, find(node[0])) for node in nodes]
        found = []
        for node in nodes:
            known = find(node[0])
            same = (
                known is not None
                and node.link is None
                and not known.entry.link
                and node.kind is not NodeKind.DIRECTORY
                and as_it_was(node, known)
            )
            found.append(Found(node, known, same))
        return found


SPECIALS: Final = frozenset({NodeKind.FIFO, NodeKind.SOCKET, NodeKind.CHARACTER, NodeKind.BLOCK})
