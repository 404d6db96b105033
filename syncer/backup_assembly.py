"""Assembly: what the walk of a backup hands on, in order, becomes directories in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from blockstore.ids import ChunkId
from syncer.backup_previous import Known, Previous
from syncer.backup_read import Slot
from syncer.backup_scan import Folder
from syncer.remotes.errors import Changed, RemoteError
from syncer.tree import Node, NodeKind
from syncer.tree_objects import NO_TOKEN, Entry, Sums, entry_of, token_of
from syncer.tree_writer import Directory, DirectoryWriter, TreeWriter
from syncer.walk_scratch import Links

ITEMS: Final = 512  # a message from the walk
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


Result = tuple[Entry, int, ChunkId | None]  # with its token, and its token object


class End(NamedTuple):
    """A directory has ended."""

    folder: Folder


class Ready(NamedTuple):
    """An entry that nothing has to be read for."""

    entry: Entry
    token: int
    same: bool  # as in the previous tree


class Same(NamedTuple):
    """All of a directory is as it was."""

    entries: list[Entry]


class Begin(NamedTuple):
    """A directory begins; `slot`: its own attributes."""

    folder: Folder
    slot: Slot | None


class Again(NamedTuple):
    """One more name of a file."""

    path: bytes
    node: Node
    known: Known | None


Item = Known | Ready | Slot | Same | Begin | End | Again


class _Building:
    """A directory that assembly is in."""

    def __init__(self, folder: Folder, slot: Slot | None, *, whole: bool) -> None:
        self.folder = folder
        self.slot = slot
        self.whole = whole  # so far everything is as it was
        self.held: list[Result] = []
        self.writer: DirectoryWriter | None = None
        self.sums = Sums()


class Assembly:
    """Takes the items of one backup."""

    def __init__(
        self,
        writer: TreeWriter,
        links: Links,
        *,
        xattrs: bool,
        progress: Callable[[Progress], None] | None,
        failed: Callable[[Failure], None] | None,
    ) -> None:
        """`xattrs`: directories have attributes that were read."""
        self._writer = writer
        self._links = links
        self._xattrs = xattrs
        self._on_progress = progress
        self._on_failure = failed
        self._progress = Progress()
        self._first_failure: RemoteError | None = None
        self._waiting: Slot | None = None
        self._arrived = trio.Event()

    def settled(self, slot: Slot) -> None:
        """A slot is done."""
        slot.done = True
        if slot is self._waiting:
            self._arrived.set()

    def fail(self, path: bytes, error: RemoteError) -> None:
        """Note what is not in the backup."""
        self._progress.failed += 1
        if self._first_failure is None:
            self._first_failure = error
        if self._on_failure is not None:
            self._on_failure(Failure(path, error))

    async def run(self, batches: trio.MemoryReceiveChannel[list[Item]]) -> Backup:
        """Take all there is. Raises RemoteError when not even the root could be read."""
        stack: list[_Building] = []
        finished: Result | None = None
        async for items in batches:
            for item in items:
                if isinstance(item, Begin):
                    whole = item.folder.known is not None
                    stack.append(_Building(item.folder, item.slot, whole=whole))
                    continue
                if isinstance(item, Same):
                    for entry in item.entries:
                        self._count(entry, unchanged=True)
                    continue
                if isinstance(item, End):
                    building = stack.pop()
                    result = await self._ended(building)
                    same = _as_known(result, building.folder.known)
                else:
                    result, same = await self._result_of(item)
                if result is None:  # it failed
                    if stack:
                        stack[-1].whole = False
                elif stack:
                    self._count(result[0], unchanged=isinstance(item, Known | Ready))
                    await self._add(stack[-1], result, same=same)
                else:
                    finished = result
            if self._on_progress is not None:
                self._on_progress(self._progress)
        return await self._top(finished)

    async def _result_of(self, item: Known | Ready | Slot | Again) -> tuple[Result | None, bool]:
        """The entry of a node that is no directory; and whether it is as it was."""
        if isinstance(item, Known):
            return (item.entry, item.token, None), True
        if isinstance(item, Ready):
            return (item.entry, item.token, None), item.same
        result = self._again(item) if isinstance(item, Again) else await self._taken(item)
        return result, _as_known(result, item.known)

    async def _top(self, finished: Result | None) -> Backup:
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

    async def _taken(self, slot: Slot) -> Result | None:
        """Wait for a slot; None when it failed."""
        if not slot.done:
            self._waiting, self._arrived = slot, trio.Event()
            await self._arrived.wait()
            self._waiting = None
        self._progress.path = slot.path
        if slot.error is not None or slot.entry is None:
            self.fail(slot.path, slot.error or Changed("it was not read"))
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

    def _again(self, item: Again) -> Result | None:
        """One more name of a file, whose first name was taken before."""
        entry: Entry | bool = self._links.get(item.node.link)
        if not isinstance(entry, Entry):
            self.fail(item.path, Changed("another name of this file could not be read"))
            return None
        # No token: what was read is as old as the first name's, not as this listing.
        return entry._replace(name=item.node.name), NO_TOKEN, None

    async def _add(self, building: _Building, result: Result, *, same: bool) -> None:
        if not same:
            building.whole = False
        if building.writer is None:
            building.held.append(result)
            if len(building.held) <= _HELD:
                return
            building.writer = self._writer.directory(tokens=True)
        else:
            building.held.append(result)
            if len(building.held) < ITEMS:
                return
        await trio.to_thread.run_sync(self._write, building)

    def _write(self, building: _Building) -> None:
        assert building.writer is not None
        for entry, token, tokens in building.held:
            building.writer.add(entry, token, tokens)
        building.held = []

    async def _ended(self, building: _Building) -> Result | None:
        """Write a directory, unless it is the one that is there."""
        folder = building.folder
        known = folder.known
        own = folder.node
        token = token_of((own.token,))
        attributes: Entry | None = None
        if building.slot is not None:
            taken = await self._taken(building.slot)
            attributes, token = (None, NO_TOKEN) if taken is None else taken[:2]
        elif known is not None and self._xattrs:
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


def _as_known(result: Result | None, known: Known | None) -> bool:
    return (
        result is not None
        and known is not None
        and result[1] == known.token
        and result[2] == known.tokens
        and result[0] == known.entry
    )
