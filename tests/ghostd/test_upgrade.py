"""A namespace of format 1, which knew no projections, is upgraded when it is opened."""

from __future__ import annotations

from pathlib import Path

import apsw

from blockstore.disk import OsDisk
from ghostd.namespace import FILE_NAME, FORMAT
from tests.ghostd.world import ROOT, World, jumping

TABLES = ("projections", "remote_dirs", "versions", "blocks", "hidden")


@jumping
async def test_a_namespace_of_format_1_is_upgraded_and_loses_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    world = World(OsDisk(), state)
    async with world.running():
        ino = world.fs.create(1, b"file", 0o100644, ROOT).ino
        await world.fs.write(ino, 0, b"kept")
        await world.fs.sync()
    world.close()
    database = apsw.Connection(str(state / FILE_NAME))
    for table in TABLES:
        database.execute(f"DROP TABLE {table}").fetchall()
    for column in ("projection", "base", "base_end"):
        database.execute(f"ALTER TABLE inodes DROP COLUMN {column}").fetchall()
    database.execute("UPDATE meta SET value = 1 WHERE key = 'format'").fetchall()
    database.close()
    for _ in range(2):
        world = World(OsDisk(), state)
        async with world.running():
            found = world.resolve(b"file")
            assert bytes(await world.fs.read(found.ino, 0, 10)) == b"kept"
            assert (found.projection, found.base, found.base_end) == (0, 0, 0)
            assert world.namespace.query("SELECT value FROM meta WHERE key = 'format'") == [
                (FORMAT,)
            ]
            await world.check()
        world.close()
