"""What is asked of a remote about one file: its metadata, and whether a file root has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import trio

from ghostd.inodes import Inode
from ghostd.projection import Projection
from ghostd.remote_rows import PART_BLOCKS, VersionRow
from ghostd.tree import Tree
from syncer.remotes.errors import RemoteError, Unreachable
from syncer.remotes.remote import Entry, Kind

_METADATA_MAX: Final = 1_024  # files whose metadata is remembered
_PREFIX: Final = b"user."
_AGAIN_S: Final = 5.0  # after a failure the old version is shown unasked for so long


class RemoteFiles:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        projection_of: Callable[[int], Projection | None],
        *,
        now_ns: Callable[[], int],
        deadline_s: float,
        stale_wait_s: float,
    ) -> None:
        """`stale_wait_s`: for a remote that is only asked whether what is known still holds."""
        self._tree = tree
        self._projection_of = projection_of
        self._now_ns = now_ns
        self._deadline_s = deadline_s
        self._stale_wait_s = stale_wait_s
        self._metadata: OrderedDict[int, Mapping[bytes, bytes]] = OrderedDict()
        self._seen_ns: dict[int, int] = {}  # file root → when it was looked at
        self._failed_ns: dict[int, int] = {}  # file root → when that failed last

    @staticmethod
    async def _stat(projection: Projection, key: bytes, limit_s: float) -> Entry:
        with trio.move_on_after(limit_s):
            return await projection.remote.stat(key)
        raise Unreachable(f"{projection.url} has not answered for {limit_s:g} s; try again")

    # --- metadata ------------------------------------------------------------------------------

    async def listed_metadata(self, inode: Inode) -> Mapping[bytes, bytes]:
        """What a listing of attributes shows: what is known, or all where the projection says so.

        A remote that does not answer is no reason not to list the others.
        """
        projection = self._projection_of(inode.projection)
        if projection is None or not projection.lists_metadata:
            return self._metadata.get(inode.base, {})
        try:
            return await self.metadata(inode)
        except RemoteError as error:
            projection.failed(error)
            return {}

    async def metadata(self, inode: Inode) -> Mapping[bytes, bytes]:
        """The remote's metadata of a file as `user.*` attributes; asked for once a version.

        Raises RemoteError.
        """
        if not inode.base or inode.projection == 0:
            return {}
        known = self._metadata.get(inode.base)
        if known is not None:
            self._metadata.move_to_end(inode.base)
            return known
        projection = self._projection_of(inode.projection)
        row = self._tree.remote.versions.get(inode.base)
        if projection is None or row is None or not projection.remote.capabilities.metadata:
            return {}
        entry = await self._stat(projection, row.key, self._deadline_s)
        found = {}
        if entry.version == row.version:
            found = {
                _PREFIX + name.encode(errors="surrogateescape"): value
                for name, value in entry.metadata.items()
            }
        self._metadata[inode.base] = found
        if len(self._metadata) > _METADATA_MAX:
            self._metadata.popitem(last=False)
        return found

    # --- projections of one file -----------------------------------------------------------------

    def is_root(self, inode: Inode) -> bool:
        """The inode is a projection of a single file."""
        return inode.projection == inode.ino and inode.is_file

    def age_left_s(self, inode: Inode) -> float:
        """How much longer the attributes of a file root may be shown unasked."""
        projection = self._projection_of(inode.projection)
        if projection is None:
            return 0.0
        if 0 <= self._now_ns() - self._failed_ns.get(inode.ino, 0) < _AGAIN_S * 1e9:
            return min(1.0, projection.ttl_s)
        age_s = (self._now_ns() - self._seen_ns.get(inode.ino, 0)) / 1e9
        return max(0.0, projection.ttl_s - age_s) if age_s >= 0 else 0.0

    async def renew_root(self, inode: Inode) -> bool:
        """Look at a file root again when its TTL is over; whether it shows other bytes now.

        Its inode stays the same, so while somebody has it open the version stays, too. A remote
        that does not answer changes nothing.
        """
        if not self.is_root(inode) or inode.opens or self.age_left_s(inode) > 0:
            return False
        projection = self._projection_of(inode.projection)
        row = self._tree.remote.versions.get(inode.base)
        if projection is None or row is None:
            return False
        inode.opens += 1  # it stays in memory meanwhile
        try:
            entry = await self._stat(projection, row.key, self._stale_wait_s)
        except RemoteError as error:
            projection.failed(error, stale=True)
            self._failed_ns[inode.ino] = self._now_ns()
            return False
        finally:
            inode.opens -= 1
            self._tree.reap(inode)
        projection.succeeded()
        self._failed_ns.pop(inode.ino, None)
        self._seen_ns[inode.ino] = self._now_ns()
        same = entry.kind is not Kind.FILE or entry.version == row.version
        if same or inode.opens or inode.flags or inode.dead:
            return False
        self._replace(inode, row, entry, projection)
        return True

    def _replace(self, inode: Inode, row: VersionRow, entry: Entry, projection: Projection) -> None:
        rows = self._tree.remote
        blocks = -(-row.size // projection.row.block_bytes)
        for part in range(-(-blocks // PART_BLOCKS)):
            rows.blocks.set((inode.base, part), None)
        rows.versions.set(
            inode.base, VersionRow(row.key, entry.size, entry.etag, entry.mtime_ns or 0, row.pinned)
        )
        self._metadata.pop(inode.base, None)
        if inode.allocated:  # it was written here, and pushed
            content = self._tree.content(inode)
            unstored = content.unstored
            inode.allocated = content.truncate(0, inode.allocated)
            self._tree.touch_content(inode, unstored)
        attributes = projection.attributes(entry)
        inode.size = inode.base_end = entry.size
        inode.mtime_ns = inode.ctime_ns = attributes.mtime_ns
        self._tree.touch(inode)
