"""Namespaces of older formats are upgraded.

1 knew no projections, 2 no snapshots, 3 no push, 4 did not find what was pushed.
"""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from blockstore.disk import OsDisk
from ghostd.namespace import FILE_NAME, FORMAT
from tests.ghostd.world import ROOT, World, jumping

# What each format added: tables, columns of inodes, indexes, keys of meta.
ADDED = {
    2: (
        ("projections", "remote_dirs", "versions", "blocks", "hidden"),
        ("projection", "base", "base_end"),
        (),
        (),
    ),
    3: (
        ("changed", "tree_objects", "snapshot_links"),
        ("base_holes",),
        ("places", "linked"),
        ("tracking",),
    ),
    4: (("gone",), (), ("changed_here",), ()),
    5: ((), (), ("pushed_here",), ()),
}


@pytest.mark.parametrize("before", [1, 2, 3, 4])
@jumping
async def test_a_namespace_of_an_older_format_is_upgraded_and_loses_nothing(
    tmp_path: Path, before: int
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    world = World(OsDisk(), state)
    async with world.running():
        ino = world.fs.create(1, b"file", 0o100644, ROOT).ino
        await world.fs.write(ino, 0, b"kept")
        await world.fs.sync()
    world.close()
    database = apsw.Connection(str(state / FILE_NAME))
    assert max(ADDED) == FORMAT
    for number in range(FORMAT, before, -1):
        tables, columns, indexes, keys = ADDED[number]
        for index in indexes:
            database.execute(f"DROP INDEX {index}").fetchall()
        for table in tables:
            database.execute(f"DROP TABLE {table}").fetchall()
        for column in columns:
            database.execute(f"ALTER TABLE inodes DROP COLUMN {column}").fetchall()
        for key in keys:
            database.execute("DELETE FROM meta WHERE key = ?", (key,)).fetchall()
    database.execute("UPDATE meta SET value = ? WHERE key = 'format'", (before,)).fetchall()
    database.close()
    for _ in range(2):
        world = World(OsDisk(), state)
        async with world.running():
            found = world.resolve(b"file")
            assert bytes(await world.fs.read(found.ino, 0, 10)) == b"kept"
            assert (found.projection, found.base, found.base_end, found.base_holes) == (0, 0, 0, 0)
            assert world.namespace.query("SELECT value FROM meta WHERE key = 'format'") == [
                (FORMAT,)
            ]
            await world.check()
        world.close()
