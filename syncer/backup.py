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
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio
from blake3 import blake3

from blockstore.ids import ChunkId
from syncer.backup_previous import Known, Previous, PreviousTree, as_it_was, unchanged
from syncer.backup_read import BATCH_FILES, BUFFER_BYTES, LARGE_BYTES, Reader, Slot, Stream
from syncer.backup_scan import Folder, Found, Keeps, Pages, Scan
from syncer.chunks import ChunkStore
from syncer.options import Options, Symlinks
from syncer.remotes.errors import Changed, RemoteError, Unsupported
from syncer.tree import ROOT, Node, NodeKind, Tree
from syncer.tree_objects import NO_TOKEN, Entry, Sums, entry_of, token_of
from syncer.tree_writer import Directory, DirectoryWriter, TreeWriter
from syncer.walk_scratch import Links, Scratch

__all__ = ["Backup", "Failure", "Previous", "Progress", "backup"]

_ITEMS: Final = 512  # a message from the walk to assembly
_MESSAGES: Final = 16
_READERS_MAX: Final = 16
_TRIES: Final = 3
_GARBAGE_FROM: Final = 100_000  # objects made since the last search for cycles
_LINKS_MAX: Final = 50_000  # in memory, some 50 MB
_HELD: Final = 10_000  # entries of a directory that wait until it turns out to be unchanged


class Failure(NamedTuple):
    """Something that is not in the backup."""

    path: bytes
    error: RemoteError


@dataclass(slots=True)
class Progress:
    """How far a backup is; counts of what assembly has taken."""

    nodes: int = 0
    files: int = 0
    file_bytes: int = 0  # sizes of files, read or not
    files_read: int = 0
    bytes_read: int = 0
    files_unchanged: int = 0
    directories_unchanged: int = 0
    failed: int = 0
    path: bytes = b""  # where it is now


@dataclass(frozen=True, slots=True)
class Backup:
    """A tree that was written. Not durable before the store's sync()."""

    root: ChunkId
    tokens: ChunkId
    sums: Sums
    progress: Progress

    @property
    def previous(self) -> Previous:
        """For the next backup."""
        return Previous(self.root, self.tokens)


async def backup(
    tree: Tree,
    store: ChunkStore,
    previous: Previous | None = None,
    options: Options | None = None,
    *,
    keeps: Keeps | None = None,
    progress: Callable[[Progress], None] | None = None,
    failed: Callable[[Failure], None] | None = None,
) -> Backup:
    """Write a tree into a store; call `store.sync()` before its root is recorded.

    `previous`: an earlier backup of the same tree into the same store; files that look the same to
    it are not read, unless `options.checksum`. `keeps(path, node)` false: left out, with all below.
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
                run = _Run(tree, store, previous, options, keeps, nursery, scratch)
                run.on_progress = progress
                run.on_failure = failed
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


_Result = tuple[Entry, int, ChunkId | None]  # with its token, and its token object


class _End(NamedTuple):
    """A directory has ended."""

    folder: Folder


class _Ready(NamedTuple):
    """An entry that nothing has to be read for."""

    entry: Entry
    token: int
    same: bool  # as in the previous tree


class _Same(NamedTuple):
    """All of a directory is as it was."""

    entries: list[Entry]


class _Begin(NamedTuple):
    """A directory begins; `slot`: its own attributes."""

    folder: Folder
    slot: Slot | None


class _Again(NamedTuple):
    """One more name of a file."""

    path: bytes
    node: Node
    known: Known | None


_Item = Known | _Ready | Slot | _Same | _Begin | _End | _Again


class _Frame:
    """A directory that the walk is in."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.pages: Pages | None = None
        self.page: list[Found] = []
        self.at = 0
        self.folders: deque[Folder] = deque()  # of this page, those still to come


class _Building:
    """A directory that assembly is in."""

    def __init__(self, folder: Folder, slot: Slot | None, *, whole: bool) -> None:
        self.folder = folder
        self.slot = slot
        self.whole = whole  # so far everything is as it was
        self.held: list[_Result] = []
        self.writer: DirectoryWriter | None = None
        self.sums = Sums()


class _Run:
    """One backup."""

    def __init__(
        self,
        tree: Tree,
        store: ChunkStore,
        previous: Previous | None,
        options: Options,
        keeps: Keeps | None,
        nursery: trio.Nursery,
        scratch: Scratch,
    ) -> None:
        self._options = options
        self._nursery = nursery
        self._writer = TreeWriter(store)
        self._previous = None if previous is None else PreviousTree(store, previous)
        self._scan = Scan(tree, self._previous, options, keeps, nursery)
        self._reader = Reader(tree, store, self._writer, xattrs=True, checksum=options.checksum)
        self._tree = tree
        # Tokens of local nodes change with any attribute; those of others with the content alone.
        self._tells_all = self._reader.local is not None
        # Of hard-linked files: the entry of their first name; False: not read, or not yet.
        self._links = Links(scratch, _LINKS_MAX)
        self._progress = Progress()
        self._first_failure: RemoteError | None = None
        self.on_progress: Callable[[Progress], None] | None = None
        self.on_failure: Callable[[Failure], None] | None = None
        self._readers = self._reader_count()
        self._to_readers, self._from_walk = trio.open_memory_channel[list[Slot] | Stream](
            2 * self._readers
        )
        self._to_assembly, self._items = trio.open_memory_channel[list[_Item]](_MESSAGES)
        self._out: list[_Item] = []
        self._batch: list[Slot] = []
        self._batch_bytes = 0
        self._waiting: Slot | None = None
        self._arrived = trio.Event()

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
        return await self._assemble()

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
            if len(self._out) >= _ITEMS:
                await self._hand_on()
            frame = stack[-1]
            if frame.at == len(frame.page) and not await self._next_page(frame, stack):
                self._out.append(_End(frame.folder))
                stack.pop()
                continue
            prefix = frame.folder.path + b"/" if frame.folder.path else b""
            page = frame.page
            if frame.folder.same:
                self._out.append(_Same([each.known.entry for each in page if each.known]))
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
                if len(self._out) >= _ITEMS:
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
            self._fail(folder.path, error)
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
        self._out.append(_Begin(folder, slot))

    async def _node(self, path: bytes, node: Node, known: Known | None) -> None:
        """Hand on a node that is no directory."""
        link = 0
        if node.link is not None and self._options.hard_links:
            if self._links.get(node.link) is not None:
                self._out.append(_Again(path, node, known))
                return
            link = int.from_bytes(blake3(path).digest(length=8), "little") or 1
            self._links.set(node.link, False)
        is_file = node.kind is NodeKind.FILE
        content = is_file and (self._options.checksum or not unchanged(node, known))
        if known is not None and not content and self._tells_all and as_it_was(node, known):
            same = known.entry.link == link
            entry = known.entry if same else known.entry._replace(link=link)
            self._ready(node, _Ready(entry, known.token, same))
        elif is_file or (self._reader.xattrs and node.kind is not NodeKind.SYMLINK):
            # Whether what is not exact must be read is decided when its time is known.
            content = content or (is_file and not node.exact)
            slot = Slot(path, node, known, link, node.link, content)
            self._out.append(slot)
            await self._to_be_read(slot)
        elif node.kind is NodeKind.SYMLINK and node.target is None:
            error = Changed(f"{path!r} is no symlink any more")
            self._out.append(Slot(path, node, known, link, node.link, error=error, done=True))
        else:
            entry = entry_of(node, link=link)
            token = token_of((node.token,))
            same = known is not None and known.token == token and known.entry == entry
            self._ready(node, _Ready(entry, token, same))

    def _ready(self, node: Node, ready: _Ready) -> None:
        if ready.entry.link:
            self._links.set(node.link, ready.entry)
        self._out.append(ready)

    async def _to_be_read(self, slot: Slot) -> None:
        if slot.size > LARGE_BYTES:
            stream = self._reader.stream(slot)
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
                await self._reader.batch(work, buffer)
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
            await self._reader.stream(slot).work(buffer)
        slot.done = True
        if slot is self._waiting:
            self._arrived.set()

    # ---- assembly ----

    async def _assemble(self) -> Backup:
        stack: list[_Building] = []
        finished: _Result | None = None
        async for items in self._items:
            for item in items:
                if isinstance(item, _Begin):
                    whole = item.folder.known is not None
                    stack.append(_Building(item.folder, item.slot, whole=whole))
                    continue
                if isinstance(item, _Same):
                    for entry in item.entries:
                        self._count(entry, unchanged=True)
                    continue
                if isinstance(item, _End):
                    building = stack.pop()
                    result = await self._ended(building)
                    same = _as_known(result, building.folder.known)
                else:
                    result, same = await self._result_of(item)
                if result is None:  # it failed
                    if stack:
                        stack[-1].whole = False
                elif stack:
                    self._count(result[0], unchanged=isinstance(item, Known | _Ready))
                    await self._add(stack[-1], result, same=same)
                else:
                    finished = result
            if self.on_progress is not None:
                self.on_progress(self._progress)
        return await self._top(finished)

    async def _result_of(self, item: Known | _Ready | Slot | _Again) -> tuple[_Result | None, bool]:
        """The entry of a node that is no directory; and whether it is as it was."""
        if isinstance(item, Known):
            return (item.entry, item.token, None), True
        if isinstance(item, _Ready):
            return (item.entry, item.token, None), item.same
        result = self._again(item) if isinstance(item, _Again) else await self._taken(item)
        return result, _as_known(result, item.known)

    async def _top(self, finished: _Result | None) -> Backup:
        if finished is None:
            raise self._first_failure or Changed("there is nothing to back up")
        entry, token, tokens = finished
        if entry.kind is not NodeKind.DIRECTORY:
            self._count(entry, unchanged=False)

        def finish() -> tuple[ChunkId, ChunkId]:
            root = self._writer.root(entry)
            below = self._writer.root_tokens(root, token, tokens)
            self._writer.flush()
            return root, below

        root, root_tokens = await trio.to_thread.run_sync(finish)
        sums = (
            Sums(entry.nodes, entry.files, entry.size)
            if entry.kind is NodeKind.DIRECTORY
            else entry.sums
        )
        return Backup(root, root_tokens, sums, self._progress)

    def _count(self, entry: Entry, *, unchanged: bool) -> None:
        progress = self._progress
        progress.nodes += 1
        if entry.kind is NodeKind.FILE:
            progress.files += 1
            progress.file_bytes += entry.size
            progress.files_unchanged += unchanged

    async def _taken(self, slot: Slot) -> _Result | None:
        """Wait for a slot; None when it failed."""
        if not slot.done:
            self._waiting, self._arrived = slot, trio.Event()
            await self._arrived.wait()
            self._waiting = None
        self._progress.path = slot.path
        if slot.error is not None or slot.entry is None:
            self._fail(slot.path, slot.error or Changed("it was not read"))
            return None
        if slot.link:
            self._links.set(slot.names, slot.entry)
        if slot.node.kind is NodeKind.FILE:
            if slot.content:
                self._progress.files_read += 1
                self._progress.bytes_read += slot.read_bytes
            else:
                self._progress.files_unchanged += 1
        return slot.entry, slot.token, None

    def _again(self, item: _Again) -> _Result | None:
        """One more name of a file, whose first name was taken before."""
        entry: Entry | bool = self._links.get(item.node.link)
        if not isinstance(entry, Entry):
            self._fail(item.path, Changed("another name of this file could not be read"))
            return None
        # No token: what was read is as old as the first name's, not as this listing.
        return entry._replace(name=item.node.name), NO_TOKEN, None

    async def _add(self, building: _Building, result: _Result, *, same: bool) -> None:
        if not same:
            building.whole = False
        if building.writer is None:
            building.held.append(result)
            if len(building.held) <= _HELD:
                return
            building.writer = self._writer.directory(tokens=True)
        else:
            building.held.append(result)
            if len(building.held) < _ITEMS:
                return
        await trio.to_thread.run_sync(self._write, building)

    def _write(self, building: _Building) -> None:
        assert building.writer is not None
        for entry, token, tokens in building.held:
            building.writer.add(entry, token, tokens)
        building.held = []

    async def _ended(self, building: _Building) -> _Result | None:
        """Write a directory, unless it is the one that is there."""
        folder = building.folder
        known = folder.known
        own = folder.node
        token = token_of((own.token,))
        attributes: Entry | None = None
        if building.slot is not None:
            taken = await self._taken(building.slot)
            attributes, token = (None, NO_TOKEN) if taken is None else taken[:2]
        elif known is not None and self._reader.xattrs:
            attributes = known.entry
        if known is not None and building.whole and folder.all_found:
            self._progress.directories_unchanged += 1
            entry = known.entry
            written = Directory(
                entry.child or ChunkId(b""),
                Sums(entry.nodes, entry.files, entry.size),
                known.tokens,
            )
        else:
            written = await trio.to_thread.run_sync(self._finish, building)
        base = entry_of(own) if attributes is None else attributes
        entry = base._replace(
            name=own.name,
            child=written.id,
            size=written.sums.bytes,
            nodes=written.sums.nodes,
            files=written.sums.files,
        )
        return entry, token, written.tokens

    def _finish(self, building: _Building) -> Directory:
        if building.writer is None:
            building.writer = self._writer.directory(tokens=True)
        self._write(building)
        return building.writer.finish()

    def _fail(self, path: bytes, error: RemoteError) -> None:
        self._progress.failed += 1
        if self._first_failure is None:
            self._first_failure = error
        if self.on_failure is not None:
            self.on_failure(Failure(path, error))


def _as_known(result: _Result | None, known: Known | None) -> bool:
    return (
        result is not None
        and known is not None
        and result[1] == known.token
        and result[2] == known.tokens
        and result[0] == known.entry
    )
