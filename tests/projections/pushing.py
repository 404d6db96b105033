"""A cow projection of a memory remote, and pushes of it, in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import trio

from blockstore.disk import Disk
from blockstore.ids import ChunkId
from ghostd.attached_paths import AttachedPaths
from ghostd.cow_diff import Differ
from ghostd.cow_revert import Reverter
from ghostd.door_tree import DoorTree
from ghostd.errors import InvalidArgument
from ghostd.invalidator import Invalidator
from ghostd.push_release import Releaser
from ghostd.push_side import PushSide
from ghostd.push_watch import PushWatch
from ghostd.remote_rows import ID_BYTES
from syncer.context import Context
from syncer.door_protocol import Message, error_of
from syncer.engine import Run, outcome_of
from syncer.events import Event, Progress, Report
from syncer.options import JobSpec, OnConflict, Options, Verb
from syncer.push import Push
from syncer.push_changes import PushDoor
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import ROOT, Entry, Kind, Remote
from syncer.transfer_meter import Meter
from tests.ghostd.world import ROOT as CALLER
from tests.ghostd.world import Clock
from tests.projections.world import ProjectedWorld

URL = "memory:///"


class Told:
    """Keeps what it is told."""

    files = True

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, progress: Progress) -> None:
        pass


class Doorway:
    """The door without sockets: what a worker asks is answered in this loop."""

    def __init__(self, tree: DoorTree) -> None:
        self._tree = tree
        self.before: Callable[[str], Awaitable[None]] | None = None  # with the operation's name
        self.after: Callable[[str], Awaitable[None]] | None = None

    async def ask(self, head: dict[str, Any], body: Any = ()) -> Message:
        assert not body
        if self.before is not None:
            await self.before(head["op"])
        answer, data = await self._tree.answer(head)
        if self.after is not None:
            await self.after(head["op"])
        error = error_of(answer)
        if error is not None:
            raise error
        return Message(answer, bytearray(data))


class Pushed(ProjectedWorld):
    """A world whose projection `/r` can be pushed."""

    def __init__(self, disk: Disk, remote: Remote, **options: Any) -> None:
        self.watch = PushWatch()
        self.remote = remote
        clock = Clock()
        clock.now = 1_700_000_000 * 10**9  # long after the epoch: expired listings count as old
        super().__init__(disk, {URL: remote}, clock=clock, **options)
        self.fs._changed = self.watch.changed
        self.fs._closed = self.watch.closed
        assert self.projected is not None
        projected = self.projected
        differ = Differ(self.tree, self.writeback, self.threads, projected.projections.get)
        invalidator = Invalidator()
        reverter = Reverter(self.tree, self.writeback, projected.listings, differ, lambda *_: None)
        self.releaser = Releaser(
            self.tree,
            self.writeback,
            self.store,
            self.threads,
            projected.entangler,
            projected.projections,
            self.watch,
            lambda: self.keeper.collect(0.25, dry_run=False),
            waste_max=0.25,
        )
        side = PushSide(
            self.fs,
            projected.projections,
            projected.listings,
            reverter,
            self.watch,
            AttachedPaths(self.tree, self.threads),
            invalidator,
            pushed=self.releaser.pushed,
            now_ns=self.now_ns,
        )
        self.differ = differ
        self.door = Doorway(DoorTree(self.fs, projected.listings, invalidator, side))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The tasks of the daemon's loop."""
        async with super().running(), trio.open_nursery() as nursery:
            nursery.start_soon(self.releaser.run)
            yield
            nursery.cancel_scope.cancel()

    async def push(
        self,
        on_conflict: OnConflict = OnConflict.REFUSE,
        *,
        path: bytes = b"r",
        remote: Remote | None = None,
        dry_run: bool = False,
        tell: Told | None = None,
        **options: Any,
    ) -> Report:
        """What `orbit-ctl push` does."""
        spec = JobSpec(Verb.PUSH, "/mnt/r", options=Options(on_conflict=on_conflict, **options))
        context = Context(state=Path("/nowhere"), audited=False, wait_s=0.0)
        report = Report("push", "/mnt/r", URL, dry_run=dry_run)
        run = Run(spec, context, tell or Told(), report, Meter(), dry_run, None, None)
        side = PushDoor(self.door)  # type: ignore[arg-type]  # a Door's `ask` is what it uses
        opened = await side.open(path)
        moment = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  shown as it is
        await Push(run, side, opened, remote or self.remote, now=lambda: moment).carry_out()
        report.outcome = outcome_of(report)
        return report

    async def diff(self) -> list[tuple[str, bytes]]:
        """What was changed here."""
        _, changes, cursor = await self.differ.page(b"r", None, 10_000)
        assert cursor is None
        return [(change.kind, change.path) for change in changes]

    async def nothing_cached(self) -> None:
        """Have what was pushed become part of the cache, and that evicted."""
        await self.releaser.release((await self.look(b"r")).ino)
        ids = {
            ChunkId(ids[at : at + ID_BYTES])
            for (ids,) in self.namespace.query("SELECT ids FROM blocks")
            for at in range(0, len(ids), ID_BYTES)
        }
        self.store.evict(list(ids))
        await self.keeper.collect(0.0, dry_run=False)

    # --- what a user does ------------------------------------------------------------------------

    async def put(self, path: bytes, content: bytes) -> None:
        """Write a file anew, as the shell's `>` does."""
        *above, name = path.split(b"/")
        directory = await self.look(b"/".join(above))
        if directory.projection:
            await self.projected.listings.find(directory, name)
        found = self.tree.find(directory.ino, name)
        if found is None:
            ino = self.fs.create(directory.ino, name, 0o100644, CALLER).ino
            self.fs.open(ino)
        else:
            if not self.tree.inode(found[1]).is_file:
                raise InvalidArgument
            ino = self.fs.open(found[1], writing=True, truncate=True).ino
        await self.fs.write(ino, 0, content)
        self.fs.release(ino)

    async def patch(self, path: bytes, offset: int, content: bytes) -> None:
        """Write into a file."""
        inode = await self.look(path)
        if not inode.is_file:
            raise InvalidArgument
        ino = self.fs.open(inode.ino, writing=True).ino
        await self.fs.write(ino, offset, content)
        self.fs.release(ino)

    async def mkdir(self, path: bytes) -> None:
        *above, name = path.split(b"/")
        directory = await self.look(b"/".join(above))
        await self.projected.listings.find(directory, name)
        self.fs.create(directory.ino, name, 0o40755, CALLER)

    async def symlink(self, path: bytes, target: bytes) -> None:
        *above, name = path.split(b"/")
        directory = await self.look(b"/".join(above))
        await self.projected.listings.find(directory, name)
        self.fs.create(directory.ino, name, 0o120777, CALLER, target=target)

    async def remove(self, path: bytes) -> None:
        """Take away a file, symlink or empty directory."""
        *above, name = path.split(b"/")
        inode = await self.look(path)
        directory = await self.look(b"/".join(above))
        if inode.is_dir:
            await self.projected.listings.fresh(inode)
        (self.fs.rmdir if inode.is_dir else self.fs.unlink)(directory.ino, name)

    async def move(self, path: bytes, new_path: bytes, flags: int = 0) -> None:
        *above, name = path.split(b"/")
        *new_above, new_name = new_path.split(b"/")
        await self.look(path)
        source, target = await self.look(b"/".join(above)), await self.look(b"/".join(new_above))
        if target.projection:
            await self.projected.listings.find(target, new_name)
        found = self.tree.find(target.ino, new_name)
        if found is not None and (old := self.tree.inode(found[1])).is_dir:
            await self.projected.listings.fresh(old)
        self.fs.rename(source.ino, name, target.ino, new_name, flags)

    async def here(self, path: bytes = b"r") -> dict[bytes, Any]:
        """Everything below a directory: content, None for a directory, a symlink's target."""
        found: dict[bytes, Any] = {}
        for name in await self.names(path):
            below = path + b"/" + name
            inode = await self.look(below)
            shown = below.removeprefix(b"r/")
            if inode.is_dir:
                found[shown] = None
                found |= await self.here(below)
            elif inode.target is not None:
                found[shown] = ("->", inode.target)
            else:
                found[shown] = await self.content(below)
        return found


async def tree_of(remote: Remote, key: bytes = ROOT) -> dict[bytes, Any]:
    """Everything at a remote, in the same words."""
    found: dict[bytes, Any] = {}
    entries: list[Entry] = []

    async def sink(page):
        entries.extend(page)

    await remote.list(key, sink)
    for entry in entries:
        bare = entry.key.removesuffix(b"/")
        if entry.kind is Kind.DIRECTORY:
            found[bare] = None
            found |= await tree_of(remote, entry.key)
        elif entry.kind is Kind.SYMLINK:
            found[bare] = ("->", entry.target)
        else:
            found[bare] = (await remote.read_whole(entry.key, 1 << 30))[1]
    return found


async def fill(remote: Remote, files: dict[bytes, bytes | None]) -> None:
    """Make files, and directories (None)."""
    for key, content in files.items():
        if content is None:
            await remote.mkdir(key + b"/")
        else:
            await remote.write(key, Held(content))


@asynccontextmanager
async def pushed(
    disk: Disk,
    files: dict[bytes, bytes | None],
    *,
    remote: Remote | None = None,
    mode: str = "cow",
    **options: Any,
) -> AsyncIterator[Pushed]:
    """A projection of a remote with some files, at `/r`."""
    there = remote or MemoryRemote(MemoryServer())
    await fill(there, files)
    world = Pushed(disk, there, **options)
    try:
        async with world.running():
            await world.project(URL, b"/r", mode=mode)
            yield world
            await world.writeback.commit()
            await world.check()
    finally:
        world.close()
