"""Everything that projections need, put together for the filesystem's loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from blockstore.errors import OrbitError
from blockstore.store import BlockStore
from ghostd.entangler import Entangler
from ghostd.fetch_plan import Limits
from ghostd.fetcher import Fetcher
from ghostd.inodes import Inode
from ghostd.listings import ListingOptions, Listings
from ghostd.orbit_xattrs import orbit_xattr
from ghostd.projection import Projection
from ghostd.projections import OpenRemote, Projections
from ghostd.read_policy import AccessRecord
from ghostd.remote_files import RemoteFiles
from ghostd.remote_rows import VersionRow
from ghostd.remover import Remover
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.writeback import Writeback

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProjectedOptions:
    """Limits of all projections."""

    read_deadline_s: float = 30.0
    ahead_bytes_max: int = 32 << 20
    kernel_ahead_bytes: int = 4 << 20  # the mount's own read-ahead
    listing: ListingOptions = field(default_factory=ListingOptions)
    fetching: Limits = field(default_factory=Limits)


class Projected:
    """The parts, and the tasks that they need."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        store: BlockStore,
        threads: Threads,
        open_remote: OpenRemote,
        invalidate: Callable[[int, bytes], None],
        options: ProjectedOptions,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        log_access: Callable[[AccessRecord], None] | None = None,
    ) -> None:
        self.tree = tree
        self.invalidate = invalidate
        self._store = store
        self.remover = Remover(tree, writeback, invalidate)
        self.fetcher = Fetcher(
            tree.remote,
            store,
            threads,
            changed=self._changed,
            limits=options.fetching,
            ahead_bytes_max=options.ahead_bytes_max,
            kernel_ahead_bytes=options.kernel_ahead_bytes,
            log_access=log_access,
        )
        self.projections = Projections(
            tree,
            writeback,
            self.remover,
            open_remote,
            now_ns=now_ns,
            invalidate=invalidate,
            forget=self.fetcher.forget,
        )
        self.listings = Listings(
            tree,
            writeback,
            self.projections.get,
            now_ns=now_ns,
            invalidate=invalidate,
            remove=self.remover.remove,
            options=options.listing,
        )
        self.entangler = Entangler(
            tree.remote, self.fetcher, self.projections.get, options.read_deadline_s
        )
        self.files = RemoteFiles(
            tree,
            self.projections.get,
            now_ns=now_ns,
            deadline_s=options.listing.deadline_s,
            stale_wait_s=options.listing.stale_wait_s,
        )
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the remotes and host all tasks until cancelled; the remotes are closed then."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.listings.run)
                await nursery.start(self.fetcher.run)
                nursery.start_soon(self.remover.run)
                await self.projections.start()
                task_status.started()
        finally:
            self._nursery = None
            await self.projections.close()

    def xattr(self, inode: Inode, name: bytes) -> bytes | None:
        """`user.orbit.*` of an inode of a projection."""
        projection = self.projections.get(inode.projection)
        if projection is None:
            return None
        return orbit_xattr(self.tree, projection, inode, name, self._store.resident)

    def _changed(self, projection: Projection, row: VersionRow) -> None:
        """A read found out that a file is of another version now: let new opens see it."""
        if self._nursery is not None:
            self._nursery.start_soon(partial(self._look_again, projection, row))

    async def _look_again(self, projection: Projection, row: VersionRow) -> None:
        try:
            await self.listings.renew(projection, row.key)
        except OrbitError as error:
            log.warning(
                "a changed file could not be looked at",
                remote=projection.url,
                key=row.key.decode(errors="backslashreplace"),
                error=str(error),
            )
