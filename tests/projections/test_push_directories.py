"""Directories that were moved here are renamed at the remote, with all that is in them."""

from __future__ import annotations

import pytest

from blockstore.disk import OsDisk
from ghostd.filesystem import AttributeChanges
from syncer.options import OnConflict
from syncer.remotes.errors import Missing, RemoteError
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from tests.ghostd.world import jumping
from tests.projections.pushing import Pushed, pushed, tree_of
from tests.projections.test_push import settled

FILES = {
    b"d": None, **{b"d/f%02d" % n: b"file %d" % n for n in range(20)},
    b"d/s": None, b"d/s/x": b"X", b"d/s/y": b"Y", b"d/s/t": None, b"d/s/t/z": b"Z", b"e": None,
}  # fmt: skip


def requests(world: Pushed) -> list[tuple[str, bytes]]:
    """What the remote is asked for, from now on."""
    asked: list[tuple[str, bytes]] = []

    async def before_request(method: str, key: bytes) -> None:
        asked.append((method, key))

    world.remote._server.before_request = before_request
    return asked


@pytest.mark.parametrize("known", [True, False])
async def test_a_directory_is_renamed_by_one_request(tmp_path, known):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        inodes = {}
        if known:
            inodes = {key: (await world.look(b"r/" + key)).ino for key in await world.here()}
        await world.move(b"r/d", b"r/e/new")
        shown = await world.here() if known else {}
        asked = requests(world)
        report = await world.push()
        assert (report.failed, report.files_copied) == (0, 0)
        changing = [each for each in asked if each[0] not in {"stat", "list", "set_attributes"}]
        assert changing == [("rename", b"d/")]
        assert len(asked) < 15, "nothing is asked for each file"
        if not known:
            shown = await tree_of(world.remote)
        await settled(world, report, after=shown)
        for key, ino in inodes.items():
            if key.startswith(b"d/"):
                assert (await world.look(b"r/e/new/" + key.removeprefix(b"d/"))).ino == ino


async def test_what_was_changed_in_it_is_pushed_to_where_it_is_now(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.here()
        await world.patch(b"r/d/f00", 0, b"changed before")
        await world.remove(b"r/d/f01")
        await world.move(b"r/d/f02", b"r/out")
        await world.move(b"r/d/f03", b"r/d/f04")
        await world.move(b"r/d", b"r/n")
        await world.patch(b"r/n/s/x", 0, b"changed after")
        await world.remove(b"r/n/s/y")
        await world.move(b"r/n/s/t/z", b"r/n/z")
        await world.mkdir(b"r/n/made")
        await world.put(b"r/n/made/here", b"made here")
        inode = await world.look(b"r/n/f05")
        world.fs.setattr(inode.ino, AttributeChanges(mode=0o600))
        shown, asked = await world.here(), requests(world)
        report = await world.push()
        await settled(world, report, after=shown)
        assert ("rename", b"d/") in asked
        assert (await world.remote.stat(b"n/f05")).mode == 0o600


async def test_what_others_have_put_into_it_goes_along(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.here()
        await world.move(b"r/d", b"r/n")
        await world.remote.write(b"d/s/theirs", Held(b"theirs"))
        await world.remote.write(b"d/f00", Held(b"theirs, too"))
        assert (await world.push()).outcome == "done"
        there = await tree_of(world.remote)
        assert (there[b"n/s/theirs"], there[b"n/f00"]) == (b"theirs", b"theirs, too")
        for directory in (b"r", b"r/n", b"r/n/s"):
            world.projected.listings.expire(await world.look(directory))
        assert await world.here() == there
        assert await world.diff() == []


async def test_a_conflict_in_it_is_one_where_it_is_now(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.content(b"r/d/f00")
        await world.patch(b"r/d/f00", 0, b"ours")
        await world.move(b"r/d", b"r/n")
        await world.remote.write(b"d/f00", Held(b"theirs is longer"))
        report = await world.push()
        assert [each.path for each in report.failures] == ["n/f00"]
        assert (await tree_of(world.remote))[b"n/f00"] == b"theirs is longer"
        assert (await world.push(OnConflict.OURS)).outcome == "done"
        assert (await tree_of(world.remote))[b"n/f00"] == b"ours 0"
        assert await world.diff() == []


async def test_where_its_goal_is_taken_entries_go_one_by_one(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.move(b"r/d", b"r/n")
        shown = await world.here()
        await world.remote.mkdir(b"n/")
        await world.remote.write(b"n/theirs", Held(b"theirs"))
        await world.remote.write(b"d/theirs", Held(b"theirs"))
        report = await world.push()
        assert [each.error for each in report.failures] == [
            "deleted here, but the remote has something in it that was not seen"
        ]
        there = await tree_of(world.remote)
        assert there == {**shown, b"n/theirs": b"theirs", b"d": None, b"d/theirs": b"theirs"}


async def test_only_a_part_of_it_is_pushed(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.look(b"r/d/s")
        await world.move(b"r/d", b"r/n")
        report = await world.push(path=b"r/n/s")
        assert report.failed == 0
        there = await tree_of(world.remote)
        assert (b"n/s/x" in there, b"d/s/x" in there, b"d/f00" in there) == (True, False, True)
        shown = await world.here()
        await settled(world, await world.push(), after=shown)


@pytest.mark.parametrize("moves", [
    [(b"d/s", b"s"), (b"d", b"n")],  # what moved out of it first
    [(b"d", b"n"), (b"n/s", b"s")],  # and afterwards
    [(b"d/s", b"d/u"), (b"d", b"n")],  # within it
    [(b"d", b"e/n"), (b"e", b"m")],  # with the one above
    [(b"e", b"d/e"), (b"d", b"n")],  # what moved into it
    [(b"d/s/t", b"t"), (b"d/s", b"t/s"), (b"d", b"t/d")],  # inside out
    [(b"d", b"n"), (b"n", b"d")],  # there and back
])  # fmt: skip
async def test_directories_that_moved_with_others(tmp_path, moves):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.here()
        for old, new in moves:
            await world.move(b"r/" + old, b"r/" + new)
        shown = await world.here()
        await settled(world, await world.push(), after=shown)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("restart", [True, False])
async def test_cut_off_before_the_rename_is_recorded(tmp_path, known, restart):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        if known:
            await world.here()
        await world.move(b"r/d", b"r/n")

        async def dies(op: str) -> None:
            if op == "push_renamed":
                raise CutOff

        world.door.before = dies
        with pytest.raises(CutOff):
            await world.push()
        world.door.before = None
        there = await tree_of(world.remote)
        assert b"n/s/t/z" in there
        if not restart:
            report = await world.push()
            await settled(world, report, after=there)
    if restart:
        world = Pushed(OsDisk(), MemoryRemote(world.remote._server), folder=tmp_path)
        async with world.running():
            await settled(world, await world.push(), after=there)
            await world.check()
        world.close()


class CutOff(Exception):
    """The worker has died."""


async def test_a_file_that_is_read_and_changed_meanwhile_stays_itself(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.here()
        await world.move(b"r/d", b"r/n")

        async def meanwhile(op: str) -> None:
            if op == "push_renamed":
                world.door.before = None
                await world.patch(b"r/n/f00", 0, b"meanwhile")
                await world.remove(b"r/n/f01")
                await world.move(b"r/n/s", b"r/s")
                await world.put(b"r/n/f02", b"anew")

        world.door.before = meanwhile
        await world.push()
        shown = await world.here()
        await settled(world, await world.push(), after=shown)


async def test_a_directory_that_is_moved_on_meanwhile(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.here()
        await world.move(b"r/d", b"r/n")

        async def meanwhile(op: str) -> None:
            if op == "push_renamed":
                world.door.before = None
                await world.move(b"r/n", b"r/m")

        world.door.before = meanwhile
        await world.push()
        shown = await world.here()
        assert {key.partition(b"/")[0] for key in shown} == {b"m", b"e"}
        world.projected.listings.expire(await world.look(b"r"))
        assert await world.here() == shown
        await settled(world, await world.push(), after=shown)


@jumping
async def test_a_remote_that_does_not_rename_directories_moves_files(tmp_path) -> None:
    class Refuses(MemoryRemote):
        async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
            if key.endswith(b"/"):
                raise RemoteError("not allowed")
            await super().rename(key, new_key, replace=replace)

    there = Refuses(MemoryServer())
    async with pushed(OsDisk(), FILES, remote=there, folder=tmp_path) as world:
        await world.move(b"r/d", b"r/n")
        shown = await world.here()
        await settled(world, await world.push(), after=shown)
        with pytest.raises(Missing):
            await world.remote.stat(b"d")
