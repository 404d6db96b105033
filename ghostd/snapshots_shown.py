"""`.snapshots` in the root of the mount: every snapshot by its name, read-only, hidden in listings.

It is one projection of `snapshot:`, whose root lists the catalogue. It is attached when there are
snapshots for the first time. A name that goes is taken out of sight at once and emptied in the
background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from blockstore.errors import OrbitError
from ghostd.attached_paths import AttachedPaths
from ghostd.inodes import ROOT_INO, Inode
from ghostd.projected import Projected
from ghostd.projection import Projection
from ghostd.projections import Wanted
from ghostd.snapshot_remote import SCHEME, SnapshotUrl
from ghostd.snapshots_encode import HIDDEN_NAME
from ghostd.tree import Tree

log = structlog.get_logger(__name__)

# No snapshot can be called so.
_GOING: Final = b"@orbit:removed-"
_TTL_S: Final = 60.0  # what comes and goes is told; this is for what came while it was listed


class ShownSnapshots:
    """Owned by the filesystem's loop."""

    def __init__(
        self, projected: Projected, paths: AttachedPaths, invalidate: Callable[[int, bytes], None]
    ) -> None:
        self._projected = projected
        self._tree: Tree = projected.tree
        self._paths = paths
        self._invalidate = invalidate
        self._refused = False

    def _root(self) -> Inode | None:
        found = self._tree.find(ROOT_INO, HIDDEN_NAME)
        inode = None if found is None else self._tree.inode(found[1])
        return inode if inode is not None and inode.projection == inode.ino else None

    def hides(self, directory: int) -> Callable[[bytes], bool] | None:
        """Tells which names are left out of the listing of a directory; None: none are."""
        if directory == ROOT_INO:
            return None if self._root() is None else HIDDEN_NAME.__eq__
        found = self._tree.find(ROOT_INO, HIDDEN_NAME)
        if found is None or found[1] != directory:
            return None
        return lambda name: name.startswith(_GOING)

    async def attach(self) -> None:
        """See to it that the directory is there."""
        if self._refused or self._root() is not None:
            return
        path = b"/" + HIDDEN_NAME
        above = self._tree.inode(ROOT_INO)
        times = above.mtime_ns, above.ctime_ns
        try:
            await self._projected.projections.project(Wanted(url=SCHEME, path=path, ttl_s=_TTL_S))
            # To those who list it nothing has changed in the root.
            above = self._tree.inode(ROOT_INO)
            above.mtime_ns, above.ctime_ns = times
            self._tree.touch(above)
        except OrbitError as error:
            self._refused = True
            log.warning("snapshots are not shown in the mount", error=str(error))

    async def changed(self, name: str, there: bool) -> None:
        """A snapshot came or went."""
        if there:
            await self.attach()
        root = self._root()
        if root is None:
            return
        shown = name.encode()
        tree = self._tree
        found = tree.find(root.ino, shown)
        if not there and found is not None:
            inode = tree.inode(found[1])
            going = _GOING + b"%d" % inode.ino
            tree.drop_name(root.ino, shown)
            tree.set_name(root.ino, going, inode.ino)
            tree.touch(root)
            self._projected.remover.remove(root, inode, going)
        self._projected.listings.expire(root)
        self._invalidate(root.ino, shown)

    def is_shown(self, projection: Projection) -> bool:
        """Whether a projection is this directory: it is not the user's."""
        root = self._root()
        return root is not None and root.ino == projection.row.id

    async def projected(self) -> Mapping[str, Sequence[bytes]]:
        """By the names of snapshots, the paths at which users have projected them."""
        found: dict[str, list[bytes]] = {}
        for projection in self._projected.projections.all():
            if projection.url.startswith(SCHEME):
                name = SnapshotUrl.parse(projection.url).name
                if name:
                    path = await self._paths.path_of(projection.row.id)
                    found.setdefault(name, []).append(path)
        return found
