"""What was changed here: diff names it, revert takes it back, the remote decides what returns."""

from __future__ import annotations

import random

import pytest
import trio

from ghostd.cow_changes import Cursor, in_place
from ghostd.errors import InvalidArgument, NotFound, OrbitError
from ghostd.filesystem import AttributeChanges
from ghostd.projections import NoProjection
from syncer.remotes.errors import Unreachable
from tests.ghostd.world import ROOT, jumping
from tests.projections.test_projected import DATA, MIB, Setting
from tests.projections.tools import Tools, tooled

DIR = 0o40755
FILE = 0o100644


async def remote_tree(s: Setting) -> None:
    for key in (b"a", b"b", b"c", b"d/x", b"d/y", b"d/deep/z", b"e/v"):
        await s.put(key, key * 1_000)


async def known(tools: Tools) -> None:
    for path in (b"/r", b"/r/d", b"/r/d/deep", b"/r/e"):
        await tools.world.names(path)


async def make(tools: Tools, path: bytes, data: bytes = b"new") -> int:
    above, _, name = path.rpartition(b"/")
    made = tools.world.fs.create((await tools.world.look(above)).ino, name, FILE, ROOT)
    await tools.world.fs.write(made.ino, 0, data)
    return made.ino


async def make_dir(tools: Tools, path: bytes) -> int:
    above, _, name = path.rpartition(b"/")
    return tools.world.fs.create((await tools.world.look(above)).ino, name, DIR, ROOT).ino


async def unlink(tools: Tools, path: bytes) -> None:
    above, _, name = path.rpartition(b"/")
    tools.world.fs.unlink((await tools.world.look(above)).ino, name)


async def move(tools: Tools, old: bytes, new: bytes) -> None:
    (above, _, name), (target, _, new_name) = old.rpartition(b"/"), new.rpartition(b"/")
    tools.world.fs.rename(
        (await tools.world.look(above)).ino, name, (await tools.world.look(target)).ino, new_name
    )


async def everything(tools: Tools, path: bytes = b"/r") -> dict[bytes, bytes]:
    """All files below a path, listed as a reader would, with their content."""
    found: dict[bytes, bytes] = {}
    for name in await tools.world.names(path):
        below = path + b"/" + name
        inode = await tools.world.look(below)
        if inode.is_dir:
            found |= {below: b"/"} | await everything(tools, below)
        else:
            found[below] = await tools.world.content(below)
    return found


@jumping
async def test_every_kind_of_change_has_its_word() -> None:
    s = Setting()
    await remote_tree(s)
    async with tooled(s, mode="cow") as tools:
        await known(tools)
        assert await tools.kinds() == []
        fs, look = tools.world.fs, tools.world.look
        await fs.write((await look(b"/r/a")).ino, 5, b"!")  # modified
        fs.setattr((await look(b"/r/b")).ino, AttributeChanges(mode=0o600))
        await unlink(tools, b"/r/c")
        await move(tools, b"/r/d/x", b"/r/moved")
        fs.setattr((await look(b"/r/d/y")).ino, AttributeChanges(size=3))
        fs.setattr((await look(b"/r/d")).ino, AttributeChanges(mode=0o700))
        await make(tools, b"/r/new")
        await make_dir(tools, b"/r/made")
        await make(tools, b"/r/made/in")
        await unlink(tools, b"/r/e/v")
        await make(tools, b"/r/e/v", b"another")  # replaced
        await move(tools, b"/r/d/deep", b"/r/e/deeper")
        expected = [
            ("modified", b"/r/a"),
            ("attributes", b"/r/b"),
            ("deleted", b"/r/c"),
            ("attributes", b"/r/d"),
            ("modified", b"/r/d/y"),
            ("renamed", b"/r/e/deeper"),
            ("modified", b"/r/e/v"),
            ("added", b"/r/made"),
            ("added", b"/r/made/in"),
            ("renamed", b"/r/moved"),
            ("added", b"/r/new"),
        ]
        assert await tools.kinds() == expected
        for limit in (1, 2, 3, 7):
            assert await tools.kinds(limit=limit) == expected, "pages add up"
        assert await tools.kinds(b"/r/e") == [e for e in expected if e[1].startswith(b"/r/e")]
        assert await tools.kinds(b"/r/d/y") == [("modified", b"/r/d/y")]
        assert await tools.kinds(b"/r/c") == [("deleted", b"/r/c")]
        assert await tools.kinds(b"/r/e/deeper") == [("renamed", b"/r/e/deeper")]
        (moved,) = [c for c in await tools.changes() if c.path == b"/r/moved"]
        assert (moved.key, moved.written) == (b"d/x", False)
        for path in (b"/", b"/r/none"):
            with pytest.raises((NoProjection, NotFound)):
                await tools.changes(path)
        asked = s.requests.total()
        await tools.changes()
        assert s.requests.total() == asked, "no remote is asked"


@jumping
async def test_revert_of_everything_brings_the_remote_back() -> None:
    s = Setting()
    await remote_tree(s)
    async with tooled(s, mode="cow") as tools:
        before = await everything(tools)
        fs, look = tools.world.fs, tools.world.look
        await fs.write((await look(b"/r/a")).ino, 5, b"!")
        fs.setattr((await look(b"/r/b")).ino, AttributeChanges(mode=0o600))
        await unlink(tools, b"/r/c")
        await move(tools, b"/r/d", b"/r/other")
        await make_dir(tools, b"/r/d")
        await make(tools, b"/r/d/new")
        await move(tools, b"/r/other/deep/z", b"/r/d/z")
        await move(tools, b"/r/e/v", b"/r/v")
        mode = (await look(b"/r/b")).mode
        assert mode & 0o777 == 0o600
        done = await tools.reverter.revert(b"/r")
        assert done.waiting == ""
        assert await everything(tools) == before
        assert (await look(b"/r/b")).mode & 0o777 == 0o644
        assert await tools.kinds() == []
        assert (await tools.reverter.revert(b"/r")).changes == 0


@jumping
async def test_revert_of_one_path_leaves_the_rest() -> None:
    s = Setting()
    await remote_tree(s)
    async with tooled(s, mode="cow") as tools:
        before = await everything(tools)
        fs, look = tools.world.fs, tools.world.look
        for path in (b"/r/a", b"/r/b", b"/r/d/x"):
            await fs.write((await look(path)).ino, 0, b"mine")
        await unlink(tools, b"/r/c")
        assert (await tools.reverter.revert(b"/r/a")).changes == 1
        assert await tools.world.content(b"/r/a") == before[b"/r/a"]
        assert (await tools.world.content(b"/r/b")).startswith(b"mine")
        assert (await tools.reverter.revert(b"/r/c")).changes == 1
        assert await tools.world.content(b"/r/c") == before[b"/r/c"]
        assert (await tools.reverter.revert(b"/r/d")).changes == 1
        assert await tools.kinds() == [("modified", b"/r/b")]


@jumping
async def test_a_reverted_rename_shows_its_source_again() -> None:
    s = Setting()
    await remote_tree(s)
    async with tooled(s, mode="cow") as tools:
        before = await everything(tools)
        await move(tools, b"/r/d/x", b"/r/e/x")
        await move(tools, b"/r/d/deep", b"/r/deep")
        for path in (b"/r/e/x", b"/r/deep"):
            await tools.reverter.revert(path)
        assert await everything(tools) == before


@jumping
async def test_a_reader_of_a_reverted_file_keeps_what_it_has() -> None:
    s = Setting()
    await s.put(b"a", DATA)
    async with tooled(s, mode="cow") as tools:
        fs = tools.world.fs
        inode = await tools.world.look(b"/r/a")
        await fs.write(inode.ino, 0, b"mine")
        fs.open(inode.ino)
        await tools.reverter.revert(b"/r/a")
        assert bytes(await fs.read(inode.ino, 0, 6)) == b"mine" + DATA[4:6]
        assert await tools.world.content(b"/r/a", 0, 6) == DATA[:6]
        fs.release(inode.ino)


@jumping
async def test_revert_while_the_remote_is_gone_says_so_and_completes_later() -> None:
    s = Setting()
    await remote_tree(s)
    async with tooled(s, mode="cow") as tools:
        before = await everything(tools)
        await tools.world.fs.write((await tools.world.look(b"/r/a")).ino, 0, b"mine")
        s.fail = Unreachable("nobody home")
        done = await tools.reverter.revert(b"/r/a")
        assert done.changes == 1
        assert done.waiting
        s.fail = None
        assert await everything(tools) == before


@jumping
async def test_conflicts_are_told_and_revert_takes_the_remotes_side() -> None:
    s = Setting()
    await s.put(b"a", DATA)
    async with tooled(s, mode="cow", ttl_s=10.0) as tools:
        await tools.world.names(b"/r")
        inode = await tools.world.look(b"/r/a")
        await tools.world.fs.write(inode.ino, 0, b"mine")
        await s.put(b"a", DATA[MIB:])
        s.clock.now += 11 * 10**9
        await tools.world.names(b"/r")
        projection, _, _ = await tools.differ.page(b"/r", None, 10)
        assert projection.conflicts == {inode.ino}
        await tools.reverter.revert(b"/r/a")
        assert not projection.conflicts
        assert await tools.world.content(b"/r/a") == DATA[MIB:]


@jumping
async def test_thousands_of_changes_come_in_pages_and_go() -> None:
    s = Setting()
    for n in range(1_500):
        await s.put(b"d/f%04d" % n, b"")
    async with tooled(s, mode="cow") as tools:
        await tools.world.names(b"/r/d")
        directory = (await tools.world.look(b"/r/d")).ino
        for n in range(0, 1_500, 2):
            tools.world.fs.unlink(directory, b"f%04d" % n)
        top = await make_dir(tools, b"/r/many")
        for n in range(700):
            tools.world.fs.create(top, b"g%d" % n, FILE, ROOT)
        assert len(await tools.changes(limit=97)) == 750 + 701
        await tools.reverter.revert(b"/r")
        assert await tools.kinds() == []
        assert len(await tools.world.names(b"/r/d")) == 1_500
        assert await tools.world.names(b"/r") == [b"d"]


@jumping
async def test_any_history_is_undone() -> None:
    for seed in range(12):
        s = Setting()
        await remote_tree(s)
        rng = random.Random(seed)
        async with tooled(s, mode="cow") as tools:
            before = await everything(tools)
            for _ in range(40):
                await _step(tools, rng)
                if rng.random() < 0.1:
                    found = await everything(tools)
                    await tools.reverter.revert(rng.choice([*found, b"/r"]))
            changed = await everything(tools)
            kinds = await tools.kinds()
            assert kinds or changed == before
            assert await tools.kinds(limit=2) == kinds
            await tools.reverter.revert(b"/r")
            assert await everything(tools) == before, seed
            assert await tools.kinds() == []


async def _step(tools: Tools, rng: random.Random) -> None:
    found = await everything(tools)
    paths = [*found, b"/r"]
    directories = [path for path in paths if found.get(path, b"/") == b"/"]
    path, target = rng.choice(paths), rng.choice(directories)
    name = target + b"/" + rng.choice([b"a", b"b", b"x", b"new", b"d", b"n%d" % rng.randrange(9)])
    try:
        match rng.randrange(6):
            case 0:
                await make(tools, name)
            case 1:
                await make_dir(tools, name)
            case 2:
                await unlink(tools, path)
            case 3 | 4:
                await move(tools, path, name)
            case 5 if path not in directories:
                await tools.world.fs.write((await tools.world.look(path)).ino, 2, b"zz")
    except OrbitError:
        pass  # the step made no sense there
    await trio.testing.wait_all_tasks_blocked()


def test_places_of_keys() -> None:
    assert in_place(b"", b"a", b"a")
    assert in_place(b"d/", b"a", b"d/a")
    assert in_place(b"d/", b"e", b"d/e/")
    assert not in_place(b"d/", b"b", b"d/a")
    assert not in_place(b"", b"a", b"d/a")
    assert not in_place(None, b"a", b"a")
    assert in_place(b"d/", b"@orbit:a%2F", b"d/a/"), "shown beside a file of its name"
    assert in_place(b"", b"@orbit:..", b".."), "shown under another name"


def test_cursors_come_back() -> None:
    for cursor in (Cursor((1, 22, 3), b"\xff-:."), Cursor((5,), None), Cursor((5,), b"")):
        assert Cursor.parse(cursor.text()) == cursor
    for wrong in ("", "1", ":-", "x:-", "1:zz", "1.:-"):
        with pytest.raises(InvalidArgument):
            Cursor.parse(wrong)
