"""What `namespace.db` knows for snapshots: which inodes changed, and which directories are stored.

Two tables make a snapshot cost what has changed. `changed` notes, within the transaction of each
epoch, the tree's own inodes that changed. `settle` turns these into the directories that show them,
up to the root, and forgets the objects of those; what `tree_objects` still names then shows its
directory as it is. Nothing is noted before the first snapshot.

The invariant: a row of `tree_objects` names an object that shows its directory, and everything
below, as of the last settling; and the object is whole in the store, because a recorded snapshot
reaches it or because no collection has run since it was put. A collection marks all rows as suspect
(`suspect`) before it removes anything, deletes those that no recorded snapshot reaches, and takes
the mark away; where that did not come to pass, the next snapshot remembers nothing. Whoever brings
an older namespace.db back calls `forget`.

Functions take the connection that they are to use; those that write belong to the commit thread,
within a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, cast

import apsw

from ghostd.inodes import InodeRow

_PROJECTION: Final = 17  # place of the column in InodeRow
_TRUSTED, _SUSPECT = 1, 2  # values of `tracking` in `meta`; 0: nothing is noted or remembered
_SETTLED: Final = 20_000  # changed inodes in one transaction: about 0.1 s


class StoredTree(NamedTuple):
    """A directory's object and what lies below it; the columns of `tree_objects`."""

    ino: int
    object: bytes  # its id
    sums: bytes  # as `snapshots_encode` packs them


def tracks(connection: apsw.Connection) -> bool:
    """Whether changes are noted."""
    return _tracking(connection) != 0


def begin_tracking(connection: apsw.Connection) -> None:
    """Note changes from now on, if not before; what is suspect is forgotten."""
    if _tracking(connection) != _TRUSTED:
        forget(connection)
        _set_tracking(connection, _TRUSTED)


def suspect(connection: apsw.Connection) -> None:
    """A collection begins: until `trust`, no object may be believed to be there."""
    if _tracking(connection) == _TRUSTED:
        _set_tracking(connection, _SUSPECT)


def trust(connection: apsw.Connection) -> None:
    """Those objects that are still remembered are whole in the store."""
    if _tracking(connection) == _SUSPECT:
        _set_tracking(connection, _TRUSTED)


def _tracking(connection: apsw.Connection) -> int:
    row = connection.execute("SELECT value FROM meta WHERE key = 'tracking'").fetchone()
    return 0 if row is None else cast("int", row[0])


def _set_tracking(connection: apsw.Connection, value: int) -> None:
    connection.execute("UPDATE meta SET value = ? WHERE key = 'tracking'", (value,)).fetchall()


def note_changes(
    connection: apsw.Connection, inodes: Iterable[InodeRow], dead: Sequence[int]
) -> None:
    """Within an epoch's transaction: these rows were written, these inodes are gone.

    What lies in projections is not part of snapshots; their roots are, by name.
    """
    changed = [(row[0],) for row in inodes if not row[_PROJECTION] or row[_PROJECTION] == row[0]]
    if changed:
        connection.executemany("INSERT OR IGNORE INTO changed VALUES(?)", changed).fetchall()
    if dead:
        # Numbers are never used again, so that these rows would only be in the way.
        gone = [(ino,) for ino in dead]
        connection.executemany("DELETE FROM changed WHERE ino = ?", gone).fetchall()
        connection.executemany("DELETE FROM tree_objects WHERE ino = ?", gone).fetchall()


_SETTLE: Final = """
    WITH RECURSIVE up(ino) AS (
        SELECT ino FROM changed WHERE ino <= ?1
        UNION SELECT d.parent FROM changed c JOIN dirents d ON d.ino = c.ino WHERE c.ino <= ?1
        UNION SELECT i.parent FROM up JOIN inodes i ON i.ino = up.ino WHERE i.parent <> 0)
    DELETE FROM tree_objects WHERE ino IN (SELECT ino FROM up)"""


def settle(connection: apsw.Connection) -> bool:
    """Forget the objects of some directories that have changed; whether there may be more."""
    row = connection.execute(
        "SELECT ino FROM changed ORDER BY ino LIMIT 1 OFFSET ?", (_SETTLED - 1,)
    ).fetchone()
    last = (1 << 62) if row is None else row[0]
    connection.execute(_SETTLE, (last,)).fetchall()
    connection.execute("DELETE FROM changed WHERE ino <= ?", (last,)).fetchall()
    return row is not None


def remember(connection: apsw.Connection, trees: Iterable[StoredTree]) -> None:
    """These objects show their directories, as of the state that the last settling left."""
    connection.executemany("REPLACE INTO tree_objects VALUES(?, ?, ?)", trees).fetchall()


def stored_tree(connection: apsw.Connection, ino: int) -> StoredTree | None:
    """What is remembered of a directory."""
    row = connection.execute(
        "SELECT ino, object, sums FROM tree_objects WHERE ino = ?", (ino,)
    ).fetchone()
    return None if row is None else StoredTree(*row)


def forget(connection: apsw.Connection) -> None:
    """Remember nothing: the next snapshot writes every directory."""
    connection.execute("DELETE FROM tree_objects").fetchall()
    connection.execute("DELETE FROM changed").fetchall()
    _set_tracking(connection, 0)


def unreached(
    connection: apsw.Connection, reached: Callable[[Sequence[bytes]], set[bytes]]
) -> Iterator[list[int]]:
    """Batches of the directories whose objects no recorded snapshot reaches.

    `reached` returns those of some ids that one does. To be read from a snapshot of the database.
    """
    after = 0
    while rows := cast(
        "list[tuple[int, bytes]]",
        connection.execute(
            "SELECT ino, object FROM tree_objects WHERE ino > ? ORDER BY ino LIMIT 1000", (after,)
        ).fetchall(),
    ):
        after = rows[-1][0]
        kept = reached([row[1] for row in rows])
        gone = [ino for ino, name in rows if name not in kept]
        if gone:
            yield gone


def drop_unreached(connection: apsw.Connection, directories: Sequence[int]) -> None:
    """Forget the objects of these directories."""
    connection.executemany(
        "DELETE FROM tree_objects WHERE ino = ?", [(ino,) for ino in directories]
    ).fetchall()
