"""A whole filesystem without a mount: the daemon's composition over any disk."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio
import trio.testing

from blockstore import BlockStore, StoreOptions
from blockstore.disk import Disk
from ghostd import copies
from ghostd.filesystem import Caller, Filesystem
from ghostd.inodes import Inode
from ghostd.keeper import SNAPSHOTS_FOLDER, Keeper
from ghostd.namespace import Namespace
from ghostd.projected import Projected
from ghostd.reader import Reader, ReadOptions
from ghostd.threads import Inline, Threads
from ghostd.tree import Tree
from ghostd.writeback import Writeback, WritebackOptions
from syncer.catalogue import SnapshotFolder
from tests.ghostd.scale import STORE

FOLDER = Path("/state")
ROOT = Caller(uid=0, gid=0, pid=0, umask=0)
T = TypeVar("T")


class Clock:
    """Time that moves when a test says so; nanoseconds."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


class World:
    """What `ghostd.main.Daemon` puts together, opened and closed the same way."""

    def __init__(
        self,
        disk: Disk,
        folder: Path = FOLDER,
        *,
        clock: Callable[[], int] | None = None,
        threads: Threads | None = None,
        store: StoreOptions = STORE,
        options: WritebackOptions | None = None,
        reading: ReadOptions | None = None,
        inodes_max: int = 1_000,
        segments_max: int = 256,
    ) -> None:
        self.disk = disk
        self.folder = folder
        self.threads = threads or Inline()
        ticks = itertools.count()
        with ExitStack() as stack:
            self.store = BlockStore.open(folder, store, disk)
            stack.callback(self.store.close)
            self.namespace = Namespace.open(folder, disk)
            keepers = stack.enter_context(ExitStack())
            stack.callback(self.namespace.close)
            self.tree = Tree(
                self.namespace,
                generation=self.namespace.begin_generation(),
                inodes_max=inodes_max,
                segments_max=segments_max,
            )
            for ino in self.namespace.orphans():
                self.tree.reap(self.tree.inode(ino))
            self.writeback = Writeback(
                self.tree,
                self.store,
                self.namespace,
                self.threads,
                options or WritebackOptions(),
                monotonic=lambda: float(next(ticks)),  # look at the free space every time
            )
            self.now_ns = clock or Clock()
            self.projected = self.make_projected()
            self.reader = Reader(
                self.store,
                self.tree.content,
                self.threads,
                reading or ReadOptions(),
                self.projected and self.projected.entangler,
            )
            self.fs = Filesystem(
                self.tree,
                self.writeback,
                self.reader,
                groups_of=lambda _: set(),
                now_ns=self.now_ns,
                takes_changes=(
                    self.projected.projections.takes_changes if self.projected else lambda _: False
                ),
            )
            self.keeper = Keeper(
                folder,
                disk,
                store=self.store,
                namespace=self.namespace,
                tree=self.tree,
                writeback=self.writeback,
                threads=self.threads,
            )
            keepers.callback(self.keeper.close)
            self._closing = stack.pop_all()

    def make_projected(self) -> Projected | None:
        """What projections need; here: none."""
        return None

    def close(self) -> None:
        """Close everything; nothing that was not committed is."""
        self._closing.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The tasks of the daemon's loop."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.writeback.run)
            await nursery.start(self.reader.run)
            yield
            nursery.cancel_scope.cancel()

    async def check(self) -> None:
        """The oracle: every check of the namespace and the store, all data read back."""
        report = await self.keeper.check(data=True)
        assert len(report.checks) > 15
        problems = {item.name: item.problems for item in report.checks if not item.ok}
        assert not problems, problems
        assert not report.damaged_files

    async def running_check(self) -> None:
        """`check`, with the tasks that it needs."""
        async with self.running():
            await self.check()

    def listing(self, ino: int, *, page: int = 7) -> list[tuple[bytes, int]]:
        """(name, inode number) of a directory, asked for page by page as `readdir` does."""
        below = self.tree.next_cookie
        after = 0
        found: list[tuple[bytes, int]] = []
        while True:
            count = 0
            for cookie, name, inode, row in self.tree.list_page(ino, after, below, page):
                assert cookie > after, "cookies ascend"
                after = cookie
                count += 1
                if inode is not None:
                    found.append((name, inode.ino))
                else:
                    assert row is not None
                    found.append((name, row[2]))  # type: ignore[arg-type]
            if not count:
                return found

    def resolve(self, path: bytes) -> Inode:
        """The inode of a path from the root."""
        inode = self.tree.inode(1)
        for name in path.split(b"/"):
            if name:
                inode = self.fs.lookup(inode.ino, name)
        return inode


def recover(disk: Disk, folder: Path = FOLDER) -> None:
    """What `ghostd --recover` does."""
    store = BlockStore.open(folder, STORE, disk)
    try:
        copies.recover(folder, store, disk, SnapshotFolder(folder / SNAPSHOTS_FOLDER, disk))
    finally:
        store.close()


def jumping(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a test of an async function: run on a clock that jumps."""

    @functools.wraps(test)
    def wrapper(*args: object, **kwargs: object) -> None:
        run(lambda: test(*args, **kwargs))

    return wrapper


def run(main: Callable[[], Awaitable[T]], seed: int = 0) -> T:
    """trio.run, with a clock that jumps and tasks that take turns as the seed says."""
    scheduler = trio._core._run  # the switch trio's own Hypothesis plugin throws
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r = random.Random(seed)
    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
