"""What happens while a block is on its way: evictions, new versions, names that vanish."""

from __future__ import annotations

import random

import pytest
import trio

from ghostd.errors import RemoteVersionGone
from ghostd.evicting import Evictor
from syncer.remotes.errors import RemoteError, Unreachable
from syncer.remotes.memory import MemoryRemote
from syncer.remotes.remote import Kind
from tests.ghostd.world import jumping
from tests.projections.test_projected import DATA, MIB, URL, Setting, settled


async def until_asked(s: Setting, reads: int) -> None:
    """So many reads have reached the remote."""
    while s.requests["read"] < reads:
        await trio.lowlevel.checkpoint()


@jumping
async def test_a_block_evicted_while_its_neighbour_comes_is_not_read_as_zeros() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        await world.project(URL)
        inode = await world.look(b"/r/f")
        world.fs.open(inode.ino)
        await world.fs.read(inode.ino, 1 * MIB, 10)
        evictor = Evictor(
            world.tree,
            world.writeback,
            world.store,
            world.threads,
            world.projected.projections.get,
        )
        s.gate = trio.Event()
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await world.fs.read(inode.ino, 2 * MIB - 1_000, 2_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until_asked(s, 2)
            evicted = await evictor.evict([b"/r"])
            assert evicted.blocks == 1
            s.gate.set()
        assert found == [DATA[2 * MIB - 1_000 :][:2_000]]
        world.fs.release(inode.ino)
    world.close()


@pytest.mark.parametrize("commits", [0, 1, 2])
@jumping
async def test_a_late_block_of_a_file_that_has_gone(commits: int) -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        projection = await world.project(URL, ttl_s=1.0)
        inode = await world.look(b"/r/f")
        row = world.tree.remote.versions.get(inode.base)
        await world.writeback.commit()
        wait, go_on = trio.Event(), trio.Event()
        run = world.threads.run

        async def held(kind, function, *args):
            if kind == "fetch":
                wait.set()
                await go_on.wait()
            return await run(kind, function, *args)

        world.projected.fetcher._threads = type("Held", (), {"run": staticmethod(held)})()
        world.projected.fetcher.ahead(projection, inode.base, row, (0,))
        await wait.wait()
        await s.user.delete(b"f")
        s.clock.now += 10**10
        assert await world.names(b"/r") == []
        assert inode.dead
        for _ in range(commits):
            await world.writeback.commit()
        go_on.set()
        await settled(world)
        await world.check()
    world.close()


@jumping
async def test_a_projected_file_that_is_replaced_while_blocks_come_is_not_a_mixture() -> None:
    s = Setting()
    old, new = DATA, random.Random(6).randbytes(len(DATA))
    s.server.root = s.server.new_node(Kind.FILE, old)
    world = s.world()
    async with world.running():
        projection = await world.project(URL, b"/f", ttl_s=1.0)
        inode = world.fs.lookup(1, b"f")
        row = world.tree.remote.versions.get(inode.base)
        wait, go_on = trio.Event(), trio.Event()
        run = world.threads.run

        async def held(kind, function, *args):
            if kind == "fetch" and not wait.is_set():
                wait.set()
                await go_on.wait()
            return await run(kind, function, *args)

        world.projected.fetcher._threads = type("Held", (), {"run": staticmethod(held)})()
        world.projected.fetcher.ahead(projection, inode.base, row, (0, 1))
        await wait.wait()
        s.server.root = s.server.new_node(Kind.FILE, new)
        s.clock.now += 10**10
        assert await world.projected.files.renew_root(inode)
        world.fs.open(inode.ino)
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await world.fs.read(inode.ino, 0, 4_096)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert found == [new[:4_096]]
        await settled(world)
        for at in range(0, len(new), MIB):
            assert await world.fs.read(inode.ino, at, 4_096) == new[at : at + 4_096]
        world.fs.release(inode.ino)
        await world.check()
    world.close()


@jumping
async def test_readers_that_leave_as_soon_as_they_have_asked() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        projection = await world.project(URL)
        inode = await world.look(b"/r/f")
        row = world.tree.remote.versions.get(inode.base)
        fetcher = world.projected.fetcher
        for pause in range(30):
            evictor = Evictor(
                world.tree,
                world.writeback,
                world.store,
                world.threads,
                world.projected.projections.get,
            )
            await evictor.evict([b"/r"])
            s.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetcher.demand, projection, inode.base, row, [0])
                await trio.testing.wait_all_tasks_blocked()
                s.gate.set()
                for _ in range(pause):
                    await trio.lowlevel.checkpoint()
                with trio.move_on_after(0) as scope:
                    scope.cancel()
                    await fetcher.demand(projection, inode.base, row, [3])
            await trio.testing.wait_all_tasks_blocked()
            assert not fetcher._flights
            assert not fetcher._sources
    world.close()


class Short(MemoryRemote):
    """Breaks its promise: gives less than it was asked for."""

    async def read(self, key, version, offset, length):
        return (await super().read(key, version, offset, length))[:-1]


@jumping
async def test_a_remote_that_gives_too_little_is_an_error() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    world.remotes[URL] = Short(s.server)
    async with world.running():
        await world.project(URL)
        with pytest.raises(RemoteError):
            await world.content(b"/r/f", 0, 10)
        await settled(world)
        await world.check()
    world.close()


@jumping
async def test_a_file_replaced_while_its_directory_is_listed_stays() -> None:
    """The listing has passed the old version; the new one, found by a reader, is not in it."""
    s = Setting()
    await s.put(b"f", DATA)
    await s.put(b"g", b"")
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        assert await world.names(b"/r") == [b"f", b"g"]
        inode = await world.look(b"/r/f")
        world.fs.open(inode.ino)
        whole = world.remotes[URL].list
        passed, go_on = trio.Event(), trio.Event()

        async def slow(key, sink):
            async def pieces(page):
                await sink(page)
                passed.set()
                await go_on.wait()

            await whole(key, pieces)

        world.remotes[URL].list = slow
        s.clock.now += 10**10
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.names, b"/r")
            await passed.wait()
            await s.put(b"f", DATA[::-1])
            with pytest.raises(RemoteVersionGone):
                await world.fs.read(inode.ino, 3 * MIB, 10)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        world.fs.release(inode.ino)
        world.remotes[URL].list = whole
        assert await world.names(b"/r") == [b"f", b"g"]
        assert await world.content(b"/r/f", 0, 100) == DATA[::-1][:100]
        await world.check()
    world.close()


@jumping
async def test_a_directory_that_goes_while_it_is_listed_takes_all_along() -> None:
    s = Setting()
    for n in range(5):
        await s.put(b"d/%d" % n, b"")
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        assert await world.names(b"/r") == [b"d"]
        directory = await world.look(b"/r/d")
        whole = world.remotes[URL].list
        begun, go_on = trio.Event(), trio.Event()

        async def slow(key, sink):
            if key == b"d/":
                begun.set()
                await go_on.wait()
                await sink(entries)
            else:
                await whole(key, sink)

        entries = []

        async def keep(page):
            entries.extend(page)

        await whole(b"d/", keep)

        world.remotes[URL].list = slow
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.projected.listings.fresh, directory)
            await begun.wait()
            for n in range(5):
                await s.user.delete(b"d/%d" % n)
            await s.user.delete(b"d/")
            s.clock.now += 10**10
            assert await world.names(b"/r") == []
            go_on.set()
        await settled(world)
        await world.check()
        assert world.tree.inode_count == 2
    world.close()


@jumping
async def test_an_empty_directory_replaced_by_a_file() -> None:
    s = Setting()
    await s.user.mkdir(b"d/")
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        assert await world.names(b"/r") == [b"d"]
        await s.user.delete(b"d/")
        await s.put(b"d", b"a file")
        s.clock.now += 10**10
        assert await world.names(b"/r") == [b"d"]
        assert await world.content(b"/r/d") == b"a file"
        await world.check()
    world.close()


@jumping
async def test_status_says_that_a_listing_is_old_while_the_remote_is_silent() -> None:
    s = Setting()
    await s.put(b"f", b"")
    world = s.world()
    async with world.running():
        projection = await world.project(URL, ttl_s=1.0)
        assert await world.names(b"/r") == [b"f"]
        s.clock.now += 10**10
        whole = world.remotes[URL].list
        go_on = trio.Event()

        async def slow(key, sink):
            await go_on.wait()
            await whole(key, sink)

        world.remotes[URL].list = slow
        assert await world.names(b"/r") == [b"f"]
        assert projection.stale
        assert "has not answered" in projection.error
        go_on.set()
        await settled(world)
        assert not projection.stale
        assert not projection.error
    world.close()


@jumping
async def test_status_says_that_one_name_could_not_be_asked_for() -> None:
    s = Setting()
    await s.put(b"d/f", b"")
    world = s.world()
    async with world.running():
        projection = await world.project(URL)
        s.fail = Unreachable("cut off")
        with pytest.raises(Unreachable):
            await world.look(b"/r/d")
        assert projection.error == "cut off"
        s.fail = None
        assert await world.names(b"/r/d") == [b"f"]
        assert not projection.error
    world.close()


@jumping
async def test_only_a_first_listing_is_waited_for_at_the_end_of_a_directory() -> None:
    s = Setting()
    await s.put(b"f", b"")
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        listings = world.projected.listings
        root = await world.look(b"/r")
        whole = world.remotes[URL].list
        go_on = trio.Event()

        async def slow(key, sink):
            await go_on.wait()
            await whole(key, sink)

        world.remotes[URL].list = slow
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listings.fresh, root)
            await trio.testing.wait_all_tasks_blocked()
            assert listings.under_way(root.ino)
            go_on.set()
        go_on = trio.Event()
        s.clock.now += 10**10
        await listings.fresh(root)
        assert not listings.under_way(root.ino), "the old one is shown whole"
        go_on.set()
        await settled(world)
    world.close()
