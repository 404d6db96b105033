"""Backup: a tree into a store, reading what changed since the previous one.

    walk (one task) ──items, in order──▶ assembly (one task): entries to directories
        └──────────files to be read──▶ readers (several) ──┘

The walk goes depth first through sorted names and hands on, in that order, what is unchanged as it
was, what must be read as a `Slot`, and where directories begin and end. Assembly takes the items
in the same order, waits for slots that are not done, and writes each directory when it ends. Both
queues are bounded, so memory does not grow with the tree. The order is the same in every run, and
so are the numbers of hard links: equal trees become equal objects.

A file that cannot be read, or changes each time it is read, is left out and reported; the rest goes
on. A directory that cannot be listed is kept without its content and reported.

What is not read or written again is taken from the previous tree: whoever runs backups keeps
collections away from the store meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import trio
from blake3 import blake3

from syncer.backup_assembly import (
    ITEMS,
    Again,
    Assembly,
    Backup,
    Begin,
    End,
    Failure,
    Item,
    Progress,
    Ready,
    Same,
)
from syncer.backup_previous import Known, Previous, PreviousTree, as_it_was, unchanged
from syncer.backup_read import BATCH_FILES, BUFFER_BYTES, LARGE_BYTES, Reader, Slot
from syncer.backup_scan import Folder, Found, IgnoreFiles, Keeps, Pages, Scan
from syncer.backup_small import read_batch
from syncer.backup_stream import Stream
from syncer.chunks import ChunkStore
from syncer.options import Options, Symlinks
from syncer.remotes.errors import Changed, RemoteError, Unsupported
from syncer.tree import ROOT, Node, NodeKind, Tree
from syncer.tree_objects import entry_of, token_of
from syncer.tree_writer import TreeWriter
from syncer.walk_scratch import Links, Scratch

__all__ = ["Backup", "Failure", "Previous", "Progress", "backup"]

_MESSAGES: Final = 16
_ENTRIES: Final = 2_000  # of unchanged directories in one message; some 700 bytes each
_READERS_MAX: Final = 16
_TRIES: Final = 3
_GARBAGE_FROM: Final = 100_000  # objects made since the last search for cycles
_LINKS_MAX: Final = 50_000  # in memory, some 50 MB


async def backup(
    tree: Tree,
    store: ChunkStore,
    previous: Previous | None = None,
    options: Options | None = None,
    *,
    keeps: Keeps | None = None,
    ignores: IgnoreFiles | None = None,
    progress: Callable[[Progress], None] | None = None,
    failed: Callable[[Failure], None] | None = None,
) -> Backup:
    """Write a tree into a store; call `store.sync()` before its root is recorded.

    `previous`: an earlier backup of the same tree into the same store; files that look the same to
    it are not read, unless `options.checksum`. `keeps(path, node)` false: left out, with all below.
    `ignores`: what `keeps` has to know of a directory first; for trees that are not local.
    `progress` and `failed` are called in the trio loop. Attributes are kept whatever the options
    say, as far as the tree knows them: what a snapshot has can be left out when it is restored.

    Raises RemoteError when the root itself cannot be read, Unsupported for options that a backup
    cannot honour, and what the store's put() raises.
    """
    options = options if options is not None else Options()
    if options.symlinks is Symlinks.FOLLOW:
        raise Unsupported("a backup keeps symlinks, or skips them; it does not follow them")
    top = (await tree.stat(ROOT))._replace(name=b"")
    scratch = Scratch()
    try:
        with _rare_collections():
            async with trio.open_nursery() as nursery:
                run = _Run(
                    tree,
                    store,
                    previous,
                    options,
                    keeps,
                    ignores,
                    nursery,
                    scratch,
                    progress,
                    failed,
                )
                result = await run.run(top)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from group
    finally:
        scratch.close()
    return result


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for reference cycles less often: here are none, but millions of tuples.

    Measured with 10^5 unchanged files: half of the time went into the search.
    """
    before = gc.get_threshold()
    if before[0] < _GARBAGE_FROM:
        gc.set_threshold(_GARBAGE_FROM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of several tasks: the others came of it."""
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first


class _Frame:
    """A directory that the walk is in."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.pages: Pages | None = None
        self.page: list[Found] = []
        self.at = 0
        self.folders: deque[Folder] = deque()  # of this page, those still to come


class _Run:
    """One backup."""

    def __init__(
        self,
        tree: Tree,
        store: ChunkStore,
        previous: Previous | None,
        options: Options,
        keeps: Keeps | None,
        ignores: IgnoreFiles | None,
        nursery: trio.Nursery,
        scratch: Scratch,
        progress: Callable[[Progress], None] | None,
        failed: Callable[[Failure], None] | None,
    ) -> None:
        self._options = options
        self._nursery = nursery
        writer = TreeWriter(store)
        self._previous = None if previous is None else PreviousTree(store, previous)
        self._scan = Scan(tree, self._previous, options, keeps, nursery, ignores)
        self._reader = Reader(tree, store, writer, xattrs=True, checksum=options.checksum)
        self._tree = tree
        self._tells_all = tree.features.tells_all
        # Of hard-linked files: the entry of their first name; False: not read, or not yet.
        self._links = Links(scratch, _LINKS_MAX)
        self._assembly = Assembly(
            writer, self._links, xattrs=self._reader.xattrs, progress=progress, failed=failed
        )
        self._readers = self._reader_count()
        self._to_readers, self._from_walk = trio.open_memory_channel[list[Slot] | Stream](
            2 * self._readers
        )
        self._to_assembly, self._items = trio.open_memory_channel[list[Item]](_MESSAGES)
        self._out: list[Item] = []
        self._out_entries = 0  # in directories that are handed on as they were
        self._batch: list[Slot] = []
        self._batch_bytes = 0

    def _reader_count(self) -> int:
        if self._options.parallel > 0:
            return min(self._options.parallel, _READERS_MAX)
        cores = len(os.sched_getaffinity(0))
        return max(2, min(cores, _READERS_MAX))

    async def run(self, top: Node) -> Backup:
        """Do it."""
        known = None
        if self._previous is not None:
            known = await trio.to_thread.run_sync(self._previous.top)
        for _ in range(self._readers):
            self._nursery.start_soon(self._read)
        self._nursery.start_soon(self._walk, top, known)
        return await self._assembly.run(self._items)

    # ---- the walk ----

    async def _walk(self, top: Node, known: Known | None) -> None:
        if top.kind is not NodeKind.DIRECTORY:
            await self._node(ROOT, top, known)
        else:
            await self._tree_below(self._scan.folder(ROOT, top, known))
        await self._hand_on()
        self._to_readers.close()
        self._to_assembly.close()

    async def _tree_below(self, top: Folder) -> None:
        stack = [_Frame(top)]
        await self._begin(top)
        while stack:
            if len(self._out) >= ITEMS or self._out_entries >= _ENTRIES:
                await self._hand_on()
            frame = stack[-1]
            if frame.at == len(frame.page) and not await self._next_page(frame, stack):
                self._out.append(End(frame.folder))
                stack.pop()
                continue
            prefix = frame.folder.path + b"/" if frame.folder.path else b""
            page = frame.page
            if frame.folder.same:
                self._out.append(Same([each.known.entry for each in page if each.known]))
                self._out_entries += len(page)
                frame.at = len(page)
            while frame.at < len(page):
                node, known, same = page[frame.at]
                frame.at += 1
                if same and known is not None:
                    self._out.append(known)
                elif node.kind is NodeKind.DIRECTORY:
                    folder = frame.folders.popleft()
                    await self._begin(folder)
                    stack.append(_Frame(folder))
                    break
                else:
                    await self._node(prefix + node.name, node, known)
                if len(self._out) >= ITEMS:
                    await self._hand_on()

    async def _next_page(self, frame: _Frame, stack: list[_Frame]) -> bool:
        folder = frame.folder
        try:
            if frame.pages is None:
                upcoming = list(stack[-2].folders) if len(stack) > 1 else []
                frame.pages = await self._scan.open(folder, upcoming)
            page = (
                await trio.to_thread.run_sync(frame.pages.next)
                if frame.pages.slow
                else (frame.pages.next())
            )
        except RemoteError as error:
            frame.pages = Pages(iter(()))
            folder.all_found = False
            self._assembly.fail(folder.path, error)
            return False
        if page is None:
            return False
        prefix = folder.path + b"/" if folder.path else b""
        frame.page, frame.at = page, 0
        frame.folders = deque(
            self._scan.folder(prefix + node.name, node, known)
            for node, known, _ in page
            if node.kind is NodeKind.DIRECTORY
        )
        return True

    async def _begin(self, folder: Folder) -> None:
        known = folder.known
        slot = None
        if self._reader.xattrs and not (
            known is not None and self._tells_all and as_it_was(folder.node, known)
        ):
            slot = Slot(folder.path, folder.node, known, content=False)
            await self._to_be_read(slot)
        self._out.append(Begin(folder, slot))

    async def _node(self, path: bytes, node: Node, known: Known | None) -> None:
        """Hand on a node that is no directory."""
        link = 0
        if node.link is not None and self._options.hard_links:
            if self._links.get(node.link) is not None:
                self._out.append(Again(path, node, known))
                return
            link = int.from_bytes(blake3(path).digest(length=8), "little") or 1
            self._links.set(node.link, False)
        is_file = node.kind is NodeKind.FILE
        content = is_file and (self._options.checksum or not unchanged(node, known))
        if known is not None and not content and self._tells_all and as_it_was(node, known):
            same = known.entry.link == link
            entry = known.entry if same else known.entry._replace(link=link)
            self._ready(node, Ready(entry, known.token, same))
        elif node.kind is NodeKind.SYMLINK and node.target is None:
            error = Changed(f"{path!r} is no symlink any more")
            self._out.append(Slot(path, node, known, link, node.link, error=error, done=True))
        elif is_file or self._reader.has_xattrs(node):
            # Whether what is not exact must be read is decided when its time is known.
            content = content or (is_file and not node.exact)
            slot = Slot(path, node, known, link, node.link, content)
            self._out.append(slot)
            await self._to_be_read(slot)
        else:
            entry = entry_of(node, link=link)
            token = token_of((node.token,))
            same = known is not None and known.token == token and known.entry == entry
            self._ready(node, Ready(entry, token, same))

    def _ready(self, node: Node, ready: Ready) -> None:
        if ready.entry.link:
            self._links.set(node.link, ready.entry)
        self._out.append(ready)

    async def _to_be_read(self, slot: Slot) -> None:
        if slot.size > LARGE_BYTES:
            stream = Stream(self._reader, slot)
            for _ in range(min(2, self._readers)):  # as many as cores: more only wait for the lock
                await self._to_readers.send(stream)
            return
        if self._batch and self._batch_bytes + slot.size > BUFFER_BYTES:
            await self._send_batch()
        self._batch.append(slot)
        self._batch_bytes += slot.size
        if len(self._batch) >= BATCH_FILES:
            await self._send_batch()

    async def _send_batch(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            await self._to_readers.send(batch)

    async def _hand_on(self) -> None:
        # What assembly waits for must be on its way to a reader before this waits for assembly.
        await self._send_batch()
        out, self._out = self._out, []
        self._out_entries = 0
        if out:
            await self._to_assembly.send(out)

    # ---- readers ----

    async def _read(self) -> None:
        buffer = bytearray(BUFFER_BYTES)
        async for work in self._from_walk:
            if isinstance(work, Stream):
                if await work.work(buffer):
                    await self._settled(work.slot, buffer)
            else:
                await read_batch(self._reader, work, buffer)
                for slot in work:
                    await self._settled(slot, buffer)

    async def _settled(self, slot: Slot, buffer: bytearray) -> None:
        """Read once more what has changed meanwhile; then let assembly have it."""
        for _ in range(_TRIES - 1):
            if not isinstance(slot.error, Changed) or slot.node.kind is not NodeKind.FILE:
                break
            try:
                node = await self._tree.stat(slot.path)
            except RemoteError as error:
                slot.error = error
                break
            slot.node = node._replace(name=slot.node.name)
            slot.error = None
            slot.content = True
            slot.read_bytes = 0
            await Stream(self._reader, slot).work(buffer)
        self._assembly.settled(slot)
