"""One projection while the daemon runs: its row, its remote, and how the remote is doing."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Final

from blockstore.errors import OrbitError
from ghostd.inodes import Inode
from ghostd.remote_rows import ProjectionRow
from ghostd.snapshot_remote import SnapshotRemote
from ghostd.tree import Tree
from syncer.remotes.remote import Entry, Exact, Remote

_CONFLICTS_MAX: Final = 1_000
# Options of the projection itself; all others are the remote's.
OWN_OPTIONS: Final = ("owner", "metadata")


@dataclass(frozen=True, slots=True)
class LocalAttributes:
    """What an entry shows where its remote does not say."""

    uid: int
    gid: int
    mtime_ns: int


class Projection:
    """A remote tree attached under a path. Owned by the filesystem's loop."""

    def __init__(self, row: ProjectionRow, remote: Remote, *, uid: int, gid: int) -> None:
        self.row = row
        self.remote = remote
        # Its files lie in our own store: nothing is fetched, cached or missing.
        self.stored = remote if isinstance(remote, SnapshotRemote) else None
        self._uid = uid
        self._gid = gid
        options = json.loads(row.options)
        self._remote_owner = options.get("owner", "remote") == "remote"
        # Newer versions of ls list the attributes of every file, which would be a request for each.
        self.lists_metadata = options.get("metadata") == "list"
        self.left_out = 0  # entries that cannot be shown: devices, sockets, unreadable links
        self.conflicts: set[int] = set()  # inodes changed here and at the remote
        self.error = ""  # of the last call that failed; "" when the last one did not
        self.error_kind = ""  # the name of its class
        self.error_at = 0.0  # seconds since 1970
        self.stale = False  # a listing is shown that the remote could not renew

    @property
    def url(self) -> str:
        """Where the tree is, without secrets."""
        return self.row.url

    @property
    def ttl_s(self) -> float:
        """How old a listing may be, seconds."""
        return self.row.ttl_ms / 1_000

    def attributes(self, entry: Entry) -> LocalAttributes:
        """Owner and time of an entry, with what stands in where the remote knows none."""
        remote = self._remote_owner
        return LocalAttributes(
            uid=entry.uid if remote and entry.uid is not None else self._uid,
            gid=entry.gid if remote and entry.gid is not None else self._gid,
            mtime_ns=self.row.created_ns if entry.mtime_ns is None else entry.mtime_ns,
        )

    def succeeded(self) -> None:
        """The remote has answered."""
        self.error = ""
        self.stale = False

    def succeeded_reading(self) -> None:
        """The remote has answered a read; an old listing is still old."""
        if not self.stale:
            self.error = ""

    def failed(self, error: OrbitError, *, stale: bool = False) -> None:
        """The remote has not, or not well."""
        self.error = str(error)
        self.error_kind = type(error).__name__
        self.error_at = time.time()
        self.stale = self.stale or stale

    def note_conflict(self, ino: int) -> None:
        """A file was changed here and at the remote; the one here is kept."""
        if len(self.conflicts) < _CONFLICTS_MAX:
            self.conflicts.add(ino)


def show_as_was(tree: Tree, inode: Inode, exact: Exact) -> None:
    """Give a new inode what a snapshot has of it, and no other remote."""
    if exact.ctime_ns is not None:
        inode.ctime_ns = exact.ctime_ns
    if exact.btime_ns is not None:
        inode.btime_ns = exact.btime_ns
    inode.base_holes = exact.holes
    for name, value in exact.xattrs.items():
        tree.set_xattr(inode, name, value)
    if exact.link and not inode.is_dir:
        tree.remote.links.set((inode.projection, exact.link), inode.ino)
        # Names that are not known yet count, too: who meets the first one looks for more.
        inode.nlink = max(1, exact.nlink)
