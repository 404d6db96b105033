"""Where projections are attached: the way from the inode of a root up to the root of the mount."""

from __future__ import annotations

import apsw

from ghostd.errors import StaleHandle
from ghostd.inodes import ROOT_INO
from ghostd.namespace import Namespace, translated
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, joined


class AttachedPaths:
    """Finds the paths of roots. Owned by the filesystem's loop.

    Directories know the one above; of a projection that is a single file the place is looked for
    once and remembered, by inode, since what is above may be renamed.
    """

    def __init__(self, tree: Tree, threads: Threads) -> None:
        self._tree = tree
        self._threads = threads
        self._places: dict[int, tuple[int, bytes]] = {}  # of roots that are files

    def remember(self, root: Seen) -> None:
        """The place of a root is known."""
        self._places[root.ino] = (root.parent, root.name)

    async def path_of(self, root: int) -> bytes:
        """The path of a projection, from the root of the mount; `?`: it has no name.

        As of the last commit.
        """
        tree = self._tree
        try:
            inode = tree.inode(root)
        except StaleHandle:
            return b"?"
        if inode.is_dir:
            return self._directory(root)
        place = self._places.get(root)
        if place is None or (tree.find(*place) or (0, 0))[1] != root:
            place = await self._search(root)
            if place is None:
                return b"?"
            self._places[root] = place
        return joined(self._directory(place[0]), place[1])

    def _directory(self, ino: int) -> bytes:
        names: list[bytes] = []
        while ino != ROOT_INO:
            above = self._tree.parent_of(ino)
            rows = self._tree.namespace.query(
                "SELECT name FROM dirents WHERE parent = ? AND ino = ?", (above, ino)
            )
            if not rows:
                return b"?"
            names.append(rows[0][0])
            ino = above
        return b"/" + b"/".join(reversed(names))

    async def _search(self, root: int) -> tuple[int, bytes] | None:
        namespace = self._tree.namespace
        snapshot = await self._threads.run("maintenance", namespace.snapshot)
        try:
            return await self._threads.run("maintenance", _search, namespace, snapshot, root)
        finally:
            namespace.end_snapshot(snapshot)


def _search(
    namespace: Namespace, connection: apsw.Connection, root: int
) -> tuple[int, bytes] | None:
    """In a thread: names are not indexed by what they lead to, so all are looked at."""
    try:
        row = connection.execute(
            "SELECT parent, name FROM dirents WHERE ino = ? LIMIT 1", (root,)
        ).fetchone()
    except apsw.Error as error:
        raise translated(error, namespace.path) from error
    return None if row is None else (row[0], row[1])
