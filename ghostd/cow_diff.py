"""`orbit-ctl diff`: pages of the changes at and below a path of a cow projection."""

from __future__ import annotations

from collections.abc import Callable

import apsw

from ghostd.cow_changes import (
    ChangeScan,
    Cursor,
    Frame,
    LocalChange,
    classified,
    deleted,
    entry_row,
)
from ghostd.errors import NotFound
from ghostd.facade import printable_path
from ghostd.namespace import Namespace, translated
from ghostd.projection import Projection
from ghostd.projections import NoProjection
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, find_path, parts_of
from ghostd.writeback import Writeback


class Differ:
    """Finds changes. Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        threads: Threads,
        projection_of: Callable[[int], Projection | None],
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._threads = threads
        self._projection_of = projection_of

    async def page(
        self, path: bytes, cursor: str | None, limit: int
    ) -> tuple[Projection, list[LocalChange], str | None]:
        """Changes at and below `path`, and the cursor of the next page.

        Raises NotFound, NotADirectory, NoProjection, InvalidArgument (the cursor), StorageFull and
        StorageFailed (what is not committed yet cannot be).
        """
        where = None if cursor is None else Cursor.parse(cursor)
        try:
            top = find_path(self._tree, path)
        except NotFound:
            return self._deleted(path)
        projection = self._projection_of(top.projection)
        if projection is None:
            raise NoProjection(
                f"{printable_path(path)} lies in no projection; see orbit-ctl projections"
            )
        await self._writeback.commit()
        namespace = self._tree.namespace
        snapshot = await self._threads.run("maintenance", namespace.snapshot)
        try:
            found, more = await self._threads.run(
                "maintenance", _scan, namespace, snapshot, top, where, limit
            )
        finally:
            namespace.end_snapshot(snapshot)
        return projection, found, None if more is None else more.text()

    def _deleted(self, path: bytes) -> tuple[Projection, list[LocalChange], str | None]:
        """The change of a name that leads nowhere here. Raises NotFound where it is none."""
        parts = parts_of(path)
        above = find_path(self._tree, b"/".join(parts[:-1]))
        projection = self._projection_of(above.projection)
        if projection is None or not self._tree.remote.hidden.get((above.ino, parts[-1])):
            raise NotFound(f"{printable_path(path)} does not exist, or is not known here yet")
        whole = b"/" + b"/".join(parts)
        return projection, [deleted(whole, above.ino, parts[-1])], None


def _scan(
    namespace: Namespace,
    connection: apsw.Connection,
    top: Seen,
    cursor: Cursor | None,
    limit: int,
) -> tuple[list[LocalChange], Cursor | None]:
    """In a thread."""
    try:
        itself = _itself(connection, top) if cursor is None and top.is_local else []
        if not top.is_dir:
            return itself, None
        key = _key(connection, top.ino)
        scan = ChangeScan(connection, top.projection, Frame(top.ino, top.path, key))
        found, more = scan.page(cursor, limit)
        return itself + found, more
    except apsw.Error as error:
        raise translated(error, namespace.path) from error


def _key(connection: apsw.Connection, ino: int) -> bytes | None:
    row = connection.execute("SELECT key FROM remote_dirs WHERE ino = ?", (ino,)).fetchone()
    return None if row is None else row[0]


def _itself(connection: apsw.Connection, top: Seen) -> list[LocalChange]:
    """The change of the path's own entry."""
    if top.ino == top.projection:
        return []  # the root of a projection: its attributes are ours
    cookie = connection.execute(
        "SELECT cookie FROM dirents WHERE parent = ? AND name = ?", (top.parent, top.name)
    ).fetchone()
    row = () if cookie is None else entry_row(connection, top.projection, top.parent, cookie[0])
    if not row:
        return []
    frame = Frame(top.parent, b"", _key(connection, top.parent))
    return [classified(frame, top.path, row)]
