"""A filesystem with projections and without a mount, over any remote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from blockstore.disk import Disk
from ghostd.inodes import Inode
from ghostd.projected import Projected, ProjectedOptions
from ghostd.projection import Projection
from ghostd.projections import Wanted
from syncer.remotes.remote import Remote
from tests.ghostd.world import World


class ProjectedWorld(World):
    """`World` whose remotes are handed in by URL."""

    def __init__(
        self,
        disk: Disk,
        remotes: Mapping[str, Remote],
        *,
        projecting: ProjectedOptions | None = None,
        **options: object,
    ) -> None:
        self.remotes = dict(remotes)
        self.invalidated: list[tuple[int, bytes]] = []
        self._projecting = projecting or ProjectedOptions()
        super().__init__(disk, **options)  # type: ignore[arg-type]

    def make_projected(self) -> Projected:
        """See World."""

        async def open_remote(url: str, _: Mapping[str, str]) -> Remote:
            return self.remotes[url]

        return Projected(
            self.tree,
            self.writeback,
            self.store,
            self.threads,
            open_remote,
            lambda ino, name: self.invalidated.append((ino, name)),
            self._projecting,
            now_ns=self.now_ns,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The tasks of the daemon's loop."""
        async with super().running(), trio.open_nursery() as nursery:
            assert self.projected is not None
            await nursery.start(self.projected.run)
            yield
            nursery.cancel_scope.cancel()

    async def project(self, url: str, path: bytes = b"/r", **options: object) -> Projection:
        """Attach a remote."""
        assert self.projected is not None
        return await self.projected.projections.project(
            Wanted(url=url, path=path, **options)  # type: ignore[arg-type]
        )

    async def look(self, path: bytes) -> Inode:
        """The inode of a path, looked up as the kernel does."""
        assert self.projected is not None
        inode = self.tree.inode(1)
        for name in path.split(b"/"):
            if name:
                if inode.projection:
                    await self.projected.listings.find(inode, name)
                inode = self.fs.lookup(inode.ino, name)
        return inode

    async def names(self, path: bytes) -> list[bytes]:
        """A directory's names, listed whole."""
        assert self.projected is not None
        inode = await self.look(path)
        await self.projected.listings.fresh(inode)
        return sorted(name for name, _ in self.listing(inode.ino))

    async def content(self, path: bytes, offset: int = 0, size: int | None = None) -> bytes:
        """What a file holds, opened and read as the kernel does."""
        inode = await self.look(path)
        self.fs.open(inode.ino)
        try:
            end = inode.size if size is None else offset + size
            parts = []
            while offset < end:
                data = await self.fs.read(inode.ino, offset, min(end - offset, 1 << 17))
                if not data:
                    break
                parts.append(bytes(data))
                offset += len(data)
            return b"".join(parts)
        finally:
            self.fs.release(inode.ino)
