"""What has been pushed is part of the cache: read as before, evicted, fetched again."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import trio

from blockstore.disk import OsDisk
from blockstore.options import FetchedOptions
from ghostd import push_release
from ghostd.filesystem import AttributeChanges
from ghostd.inodes import FLAG_PINNED
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import Kind
from tests.ghostd.crashes import abandon, only_the_crash
from tests.ghostd.scale import STORE
from tests.ghostd.world import ROOT as CALLER
from tests.ghostd.world import jumping, run
from tests.projections.pushing import URL, Pushed, pushed, tree_of
from tests.simdisk import SimDisk

MIB = 1 << 20
CACHE = replace(STORE, fetched=FetchedOptions(bytes_max=16 * MIB, free_bytes_floor=0))


def some_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def released(world: Pushed) -> None:
    """What has been pushed is part of the cache."""
    await world.releaser.release((await world.look(b"r")).ino)


def reads(world: Pushed) -> list[bytes]:
    """The keys that the remote is asked for bytes of, from now on."""
    asked: list[bytes] = []

    async def before_request(method: str, key: bytes) -> None:
        if method in {"read", "read_whole"}:
            asked.append(key)

    world.remote._server.before_request = before_request
    return asked


async def test_what_was_pushed_is_read_from_the_cache_and_after_eviction_from_the_remote(tmp_path):
    data = some_bytes(1, 5 * MIB // 2)
    async with pushed(OsDisk(), {}, folder=tmp_path, store=CACHE) as world:
        await world.put(b"r/f", data)
        assert (await world.push()).outcome == "done"
        asked = reads(world)
        await released(world)
        inode = await world.look(b"r/f")
        assert (inode.allocated, inode.base_end) == (0, len(data))
        await world.keeper.collect(0.0, dry_run=False)
        assert world.store.stats().pack_bytes < MIB, "nothing but the namespace is ours"
        assert await world.content(b"r/f") == data
        assert asked == []
        await world.nothing_cached()
        assert await world.content(b"r/f") == data
        assert set(asked) == {b"f"}
        assert await world.diff() == []


async def test_small_files_stay_readable_although_their_block_was_their_chunk(tmp_path):
    async with pushed(OsDisk(), {}, folder=tmp_path) as world:
        await world.put(b"r/f", b"one chunk")
        await world.push()
        await released(world)
        await world.keeper.collect(0.0, dry_run=False)
        asked = reads(world)
        world.store._cache.discard([world.tree.remote.block((await world.look(b"r/f")).ino, 0)])
        assert await world.content(b"r/f") == b"one chunk"
        assert asked == []


@pytest.mark.parametrize("size", [3 * MIB, 3 * MIB + 5])
async def test_what_was_written_into_a_remote_file(tmp_path, size):
    """Blocks that were not touched stay as they are: fetched, or not."""
    old = some_bytes(2, size)
    async with pushed(OsDisk(), {b"f": old}, folder=tmp_path) as world:
        await world.content(b"r/f", 0, 10)
        await world.patch(b"r/f", MIB + 7, b"in the second block")
        await world.patch(b"r/f", size - 3, b"over the end")
        inode = await world.look(b"r/f")
        world.fs.setattr(inode.ino, AttributeChanges(size=size + 2 * MIB))
        await world.patch(b"r/f", size + 3 * MIB, b"behind a hole")
        shown = await world.content(b"r/f")
        await world.push()
        await released(world)
        asked = reads(world)
        assert await world.content(b"r/f") == shown == (await tree_of(world.remote))[b"f"]
        before = len(asked)
        await world.nothing_cached()
        assert await world.content(b"r/f") == shown
        assert len(asked) > before


async def test_a_file_that_was_cut_and_grew_again(tmp_path):
    old = some_bytes(3, 3 * MIB)
    async with pushed(OsDisk(), {b"f": old}, folder=tmp_path) as world:
        assert await world.content(b"r/f") == old
        inode = await world.look(b"r/f")
        world.fs.setattr(inode.ino, AttributeChanges(size=MIB + 100))
        await world.push()
        await released(world)
        await world.patch(b"r/f", 2 * MIB + 50, b"grown")
        shown = await world.content(b"r/f")
        assert shown == old[: MIB + 100] + bytes(MIB - 50) + b"grown"
        await world.push()
        await released(world)
        assert await world.content(b"r/f") == shown
        await world.nothing_cached()
        assert await world.content(b"r/f") == shown


async def test_what_is_changed_while_it_is_released_stays_ours(tmp_path):
    async with pushed(OsDisk(), {}, folder=tmp_path) as world:
        data = some_bytes(4, 3 * MIB)
        await world.put(b"r/f", data)
        await world.push()
        inside = world.threads.run

        async def and_written(kind, function, *arguments):
            if kind == "keep":
                world.threads.run = inside
                await world.patch(b"r/f", 2 * MIB, b"meanwhile")
            return await inside(kind, function, *arguments)

        world.threads.run = and_written
        await released(world)
        inode = await world.look(b"r/f")
        assert inode.allocated == len(data)
        shown = data[: 2 * MIB] + b"meanwhile" + data[2 * MIB + 9 :]
        assert await world.content(b"r/f") == shown
        assert await world.diff() == [("modified", b"/r/f")]
        await world.push()
        await released(world)
        assert inode.allocated == 0
        assert await world.content(b"r/f") == shown == (await tree_of(world.remote))[b"f"]


async def test_what_was_not_pushed_or_is_pinned_or_has_several_names_stays_ours(tmp_path):
    async with pushed(OsDisk(), {b"pinned": b"before"}, folder=tmp_path) as world:
        inode = await world.look(b"r/pinned")
        rows = world.tree.remote
        row = rows.versions.get(inode.base)
        assert row is not None
        rows.versions.set(inode.base, row._replace(pinned=1))
        await world.put(b"r/pinned", b"pinned, and changed")
        await world.put(b"r/two", b"of several names")
        linked = await world.look(b"r/two")
        world.fs.link(linked.ino, (await world.look(b"r")).ino, b"names")
        await world.push()
        await world.put(b"r/local", b"not pushed")
        await released(world)
        for name in (b"pinned", b"two", b"local"):
            found = await world.look(b"r/" + name)
            assert found.allocated == found.size > 0


async def test_what_is_made_in_a_pinned_directory_stays(tmp_path):
    """As editors save: a new file takes the name of the old one."""
    async with pushed(OsDisk(), {b"d": None, b"d/f": b"before"}, folder=tmp_path) as world:
        directory = await world.look(b"r/d")
        directory.flags |= FLAG_PINNED
        world.tree.touch(directory)
        await world.mkdir(b"r/d/new")
        await world.put(b"r/d/new/g", b"in a new directory")
        await world.put(b"r/d/.f.new", b"after")
        await world.move(b"r/d/.f.new", b"r/d/f")
        await world.push()
        await world.nothing_cached()
        asked = reads(world)
        assert await world.content(b"r/d/f") == b"after"
        assert await world.content(b"r/d/new/g") == b"in a new directory"
        assert asked == []


async def test_a_file_that_is_large_for_the_cache_leaves_the_rest_of_it_alone(tmp_path):
    data = some_bytes(5, 5 * MIB)
    async with pushed(OsDisk(), {}, folder=tmp_path, store=CACHE) as world:
        await world.put(b"r/f", data)
        await world.push()
        await released(world)
        assert world.store.stats().fetched.put_blocks == 0
        assert await world.content(b"r/f") == data


async def test_a_snapshot_keeps_the_chunks_that_it_names(tmp_path):
    """What is outside of the projection and shares the bytes needs no remote."""
    data = some_bytes(6, 2 * MIB)
    async with pushed(OsDisk(), {}, folder=tmp_path) as world:
        ino = world.fs.create(1, b"own", 0o100644, CALLER).ino
        await world.fs.write(ino, 0, data)
        await world.put(b"r/f", data)
        await world.push()
        await released(world)
        await world.nothing_cached()
        asked = reads(world)
        assert await world.content(b"own") == data
        assert asked == []


@jumping
async def test_the_space_of_what_was_pushed_comes_back_by_itself(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(push_release, "_COLLECT_BYTES", 4 * MIB)
    data = some_bytes(7, 3 * MIB)
    async with pushed(OsDisk(), {}, folder=tmp_path, store=CACHE) as world:
        for name, enough in ((b"r/f", False), (b"r/g", True)):
            await world.put(name, name + data)
            await world.push()
            await trio.sleep(10)  # on a clock that jumps
            assert (await world.look(name)).allocated == 0
            assert (world.store.stats().pack_bytes < MIB) == enough
        assert await world.content(b"r/f") == b"r/f" + data


@jumping
async def test_a_projection_of_one_file_shows_what_came_after_a_push(tmp_path) -> None:
    """What was pushed and stays ours, here for a pin, does not hide the next version."""
    server = MemoryServer()
    server.root = server.new_node(Kind.FILE, b"first")
    async with pushed(OsDisk(), {}, remote=MemoryRemote(server), folder=tmp_path) as world:
        inode = await world.look(b"r")
        rows = world.tree.remote
        rows.versions.set(inode.base, rows.versions.get(inode.base)._replace(pinned=1))
        await world.patch(b"r", 0, b"ours is longer")
        server.root = server.new_node(Kind.FILE, b"ours is longer")  # by a push that was cut off
        assert (await world.push()).outcome == "done"
        assert inode.allocated
        server.root = server.new_node(Kind.FILE, b"theirs")
        world.now_ns.now += 10**12
        assert await world.projected.files.renew_root(inode)
        assert await world.content(b"r") == b"theirs"


class Lives:
    """A projection whose files have been pushed, on a disk that can lose its power."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.server = MemoryServer()
        self.disk = SimDisk(seed)
        self.files = {b"f%d" % n: some_bytes(n, 100_000 * (n + 1)) for n in range(3)}

    def live(self, body, *, crash_at: int | None = None) -> bool:
        """One run of the daemon, and a power cut; whether that came in the middle of it."""
        if crash_at is not None:
            self.disk.crash_at(crash_at)
        world = None

        async def main() -> None:
            async with world.running():
                await body(world)

        try:
            world = Pushed(self.disk, MemoryRemote(self.server), store=CACHE)
            run(main, self.seed)
        except BaseException as error:
            if not self.disk.crashed or not only_the_crash(error):
                raise
        crashed = self.disk.crashed
        self.disk = self.disk.crash()
        if world is not None:
            abandon(world.close)
        return crashed

    async def begin(self, world: Pushed) -> None:
        await world.project(URL, b"/r", mode="cow", block_bytes=128 << 10)
        for name, content in self.files.items():
            await world.put(b"r/" + name, content)
        assert (await world.push()).outcome == "done"
        await world.writeback.commit()

    async def release(self, world: Pushed) -> None:
        await released(world)
        await world.keeper.collect(0.0, dry_run=False)
        await self.compare(world)

    async def compare(self, world: Pushed) -> None:
        for name, content in self.files.items():
            assert await world.content(b"r/" + name) == content
        assert await world.diff() == []
        await world.check()


def cut_everywhere(first: int, step: int) -> None:
    for crash_at in itertools.count(first, step):
        lives = Lives(crash_at)
        lives.live(lives.begin)
        crashed = lives.live(lives.release, crash_at=crash_at)
        lives.live(lives.compare)
        lives.live(lives.release)
        if not crashed:
            break
    assert crash_at > first + 2 * step


@pytest.mark.parametrize("first", range(1, 6))
def test_a_power_cut_while_it_is_released_loses_nothing(first):
    cut_everywhere(first, 17)


@pytest.mark.soak
def test_a_power_cut_anywhere_while_it_is_released_loses_nothing():
    cut_everywhere(1, 1)
