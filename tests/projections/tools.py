"""A projected world with the parts that `orbit-ctl` reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ghostd.cow_changes import LocalChange
from ghostd.cow_diff import Differ
from ghostd.cow_revert import Reverter
from ghostd.evicting import Evictor
from ghostd.projected import ProjectedOptions
from ghostd.projection_facade import Residency
from ghostd.residency import ResidencyCount
from ghostd.warming import Work, Works
from tests.projections.test_projected import Setting
from tests.projections.world import ProjectedWorld

ROOT_URL = "memory:///"


class Tools:
    """The parts, over a world whose tasks run."""

    def __init__(self, world: ProjectedWorld) -> None:
        assert world.projected is not None
        projected = world.projected
        self.world = world
        projection_of = projected.projections.get
        common = (world.tree, world.writeback, world.store, world.threads)
        self.works = Works(*common, projected.listings, projected.fetcher, projection_of)
        self.evictor = Evictor(*common, projection_of)
        self.count = ResidencyCount(world.tree, world.store, world.threads, projection_of)
        self.differ = Differ(world.tree, world.writeback, world.threads, projection_of)
        self.reverter = Reverter(
            world.tree,
            world.writeback,
            projected.listings,
            self.differ,
            lambda ino, name: world.invalidated.append((ino, name)),
        )

    async def residency(self, path: bytes) -> Residency:
        (found,) = await self.count.of([path])
        return found

    async def fetch(self, kind: str, *paths: bytes) -> Work:
        """A work, until it has ended."""
        work = await self.works.start(kind, paths)
        await work.ended.wait()
        return work

    async def changes(self, path: bytes = b"/r", limit: int = 1_000) -> list[LocalChange]:
        """All changes, page by page."""
        found: list[LocalChange] = []
        cursor: str | None = None
        while True:
            _, page, cursor = await self.differ.page(path, cursor, limit)
            assert cursor is None or page or limit == 1
            found += page
            if cursor is None:
                return found

    async def kinds(self, path: bytes = b"/r", limit: int = 1_000) -> list[tuple[str, bytes]]:
        """(kind, path) of all changes, by path."""
        found = await self.changes(path, limit)
        return sorted(((c.kind, c.path) for c in found), key=lambda each: each[1])


@asynccontextmanager
async def tooled(
    s: Setting, *, mode: str = "ro", projecting: ProjectedOptions | None = None, **options: object
) -> AsyncIterator[Tools]:
    """A world in which the setting's remote is at /r, checked whole at the end."""
    s.clock.now = 1_700_000_000 * 10**9  # long after the epoch: expired listings count as old
    world = s.world(projecting=projecting)
    try:
        async with world.running(), trio.open_nursery() as nursery:
            tools = Tools(world)
            await nursery.start(tools.works.run)
            await world.project(ROOT_URL, mode=mode, **options)
            yield tools
            await trio.testing.wait_all_tasks_blocked()
            await world.check()
            nursery.cancel_scope.cancel()
    finally:
        world.close()
