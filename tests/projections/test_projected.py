"""Projections over the reference remote, without a mount: what a user of the tree is promised."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import trio

from blockstore.options import FetchedOptions
from ghostd.errors import (
    DirectoryNotEmpty,
    NotFound,
    OtherProjection,
    ProjectionRoot,
    ReadOnly,
    RemoteVersionGone,
)
from ghostd.filesystem import AttributeChanges
from ghostd.inodes import FLAG_LOCAL, ROOT_INO
from ghostd.projections import LocalChanges, NoProjection, ProjectionRefused
from syncer.remotes.errors import Unreachable
from syncer.remotes.memory import MemoryRemote, MemoryServer
from tests.ghostd.scale import STORE
from tests.ghostd.world import ROOT, Clock, jumping
from tests.projections.world import ProjectedWorld
from tests.simdisk import SimDisk

MIB = 1 << 20
URL = "memory:///"
ROOMY = replace(STORE, fetched=FetchedOptions(bytes_max=1 << 30, free_bytes_floor=0))


@dataclass(frozen=True)
class Source:
    """Bytes to be written."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class Setting:
    """A remote tree, its requests counted, and a disk for the daemon that projects it."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.server = MemoryServer(self._count)
        self.user = MemoryRemote(self.server)
        self.disk = SimDisk(1)
        self.clock = Clock()
        self.fail: Exception | None = None
        self.gate: trio.Event | None = None
        self.roomy = ROOMY  # how the store is run

    async def _count(self, method: str, _: bytes) -> None:
        self.requests[method] += 1
        if self.gate is not None and method == "read":
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail

    async def put(self, key: bytes, data: bytes) -> None:
        await self.user.write(key, Source(data))
        self.requests.clear()

    def world(self, **options: object) -> ProjectedWorld:
        self.requests.clear()
        remotes = {URL: MemoryRemote(self.server), "memory:///b": MemoryRemote(self.server)}
        return ProjectedWorld(
            self.disk,
            remotes,
            clock=self.clock,
            store=self.roomy,
            **options,  # type: ignore[arg-type]
        )


DATA = random.Random(5).randbytes(5 * MIB + 12_345)


async def settled(world: ProjectedWorld) -> None:
    """What runs in the background has run."""
    await trio.testing.wait_all_tasks_blocked()
    await world.writeback.commit()


@jumping
async def test_a_directory_is_listed_once_and_again_after_its_ttl() -> None:
    s = Setting()
    for name in (b"a", b"b", b"d/e"):
        await s.put(name, b"x" * 10)
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=10.0)
        assert s.requests["list"] == 0, "projecting lists nothing"
        assert await world.names(b"/r") == [b"a", b"b", b"d"]
        assert await world.names(b"/r") == [b"a", b"b", b"d"]
        assert s.requests["list"] == 1
        await s.put(b"c", b"")
        assert await world.names(b"/r") == [b"a", b"b", b"d"]
        s.clock.now += 11 * 10**9
        assert await world.names(b"/r") == [b"a", b"b", b"c", b"d"]
        await world.check()
    world.close()
    world = s.world()
    async with world.running():
        assert await world.names(b"/r") == [b"a", b"b", b"c", b"d"], "known after a restart"
        assert s.requests["list"] == 0, "within the TTL nobody is asked"
    world.close()


@jumping
async def test_one_file_of_an_unlisted_directory_costs_no_listing() -> None:
    s = Setting()
    await s.put(b"d/one", b"hello")
    await s.put(b"d/two", b"world")
    world = s.world()
    async with world.running():
        await world.project(URL)
        assert await world.content(b"/r/d/one") == b"hello"
        assert s.requests["list"] == 0
        with pytest.raises(NotFound):
            await world.look(b"/r/d/none")
        assert await world.names(b"/r/d") == [b"one", b"two"]
        assert s.requests["list"] == 1
        await world.check()
    world.close()


@jumping
async def test_bytes_are_fetched_once_also_across_restarts_and_projections() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        await world.project(URL)
        assert await world.content(b"/r/f", 2 * MIB + 100, 5_000) == DATA[2 * MIB + 100 :][:5_000]
        assert s.requests["read"] == 1, "one block, one request"
        assert await world.content(b"/r/f") == DATA
        fetched = world.projected.fetcher.stats.bytes
        assert fetched == len(DATA), "no block came twice"
        await settled(world)
    world.close()
    world = s.world()
    async with world.running():
        assert await world.content(b"/r/f") == DATA
        assert s.requests["read"] == 0
        await world.check()
    world.close()


@jumping
async def test_many_readers_of_a_block_share_one_request() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        await world.project(URL)
        inode = await world.look(b"/r/f")
        world.fs.open(inode.ino)
        s.gate = trio.Event()
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await world.fs.read(inode.ino, 3 * MIB, 4_096)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            s.gate.set()
        assert found == [DATA[3 * MIB :][:4_096]] * 20
        assert s.requests["read"] == 1
        world.fs.release(inode.ino)
    world.close()


@jumping
async def test_a_reader_that_goes_away_takes_its_request_along() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        await world.project(URL)
        inode = await world.look(b"/r/f")
        s.gate = trio.Event()
        with trio.move_on_after(1):
            await world.fs.read(inode.ino, 3 * MIB, 4_096)
        await trio.testing.wait_all_tasks_blocked()
        assert not world.projected.fetcher._flights
        s.gate = None
        assert await world.content(b"/r/f", 3 * MIB, 10) == DATA[3 * MIB :][:10]
    world.close()


@jumping
async def test_an_open_file_never_mixes_versions() -> None:
    s = Setting()
    old, new = DATA, DATA[::-1]
    await s.put(b"f", old)
    world = s.world()
    async with world.running():
        await world.project(URL)
        inode = await world.look(b"/r/f")
        world.fs.open(inode.ino)
        assert await world.fs.read(inode.ino, 0, 4_096) == old[:4_096]
        await s.put(b"f", new)
        assert await world.fs.read(inode.ino, 8_192, 4_096) == old[8_192:][:4_096], "still here"
        with pytest.raises(RemoteVersionGone):
            await world.fs.read(inode.ino, 3 * MIB, 4_096)
        await settled(world)
        assert (await world.look(b"/r/f")).ino != inode.ino, "the name leads to the new version"
        assert (inode.projection, b"f") in world.invalidated
        assert await world.content(b"/r/f") == new
        assert await world.fs.read(inode.ino, 0, 4_096) == old[:4_096]
        world.fs.release(inode.ino)
        await settled(world)
        await world.check()
    world.close()


@jumping
async def test_an_unreachable_remote_removes_nothing() -> None:
    s = Setting()
    await s.put(b"a", b"abc")
    await s.put(b"d/e", b"def")
    world = s.world()
    async with world.running():
        projection = await world.project(URL, ttl_s=1.0)
        assert await world.names(b"/r") == [b"a", b"d"]
        assert await world.content(b"/r/a") == b"abc"
        s.fail = Unreachable("cut off")
        s.clock.now += 10**10
        assert await world.names(b"/r") == [b"a", b"d"]
        assert projection.stale
        assert projection.error == "cut off"
        assert await world.content(b"/r/a") == b"abc", "what is here is served"
        with pytest.raises(Unreachable):
            await world.names(b"/r/d")
        s.fail = None
        assert await world.names(b"/r/d") == [b"e"]
        assert await world.names(b"/r") == [b"a", b"d"]
        assert not projection.stale
        await world.check()
    world.close()


@jumping
async def test_a_listing_that_breaks_off_removes_nothing() -> None:
    s = Setting()
    for n in range(1_500):
        await s.user.write(b"%04d" % n, Source(b""))
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        assert len(await world.names(b"/r")) == 1_500
        whole = world.remotes[URL].list

        async def broken(key, sink):
            async def one_page(page):
                await sink(page[:10])
                raise Unreachable("cut off")

            await whole(key, one_page)

        world.remotes[URL].list = broken
        s.clock.now += 10**10
        assert len(await world.names(b"/r")) == 1_500
        world.remotes[URL].list = whole
        await s.user.delete(b"0007")
        s.clock.now += 10**10
        assert len(await world.names(b"/r")) == 1_499
        await world.check()
    world.close()


@jumping
async def test_what_vanished_at_the_remote_vanishes_here_with_all_below() -> None:
    s = Setting()
    for key in (b"d/e/f", b"d/g", b"h"):
        await s.put(key, b"1")
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        await world.names(b"/r/d/e")
        await world.names(b"/r/d")
        await world.names(b"/r")
        for key in (b"d/e/f", b"d/e/", b"d/g", b"d/"):
            await s.user.delete(key)
        s.clock.now += 10**10
        await world.names(b"/r")
        await settled(world)
        assert await world.names(b"/r") == [b"h"]
        await world.check()
    world.close()


@jumping
async def test_a_read_only_projection_refuses_every_change() -> None:
    s = Setting()
    await s.put(b"f", b"abc")
    await s.put(b"d/e", b"def")
    world = s.world()
    async with world.running():
        await world.project(URL)
        root = await world.look(b"/r")
        f, d = await world.look(b"/r/f"), await world.look(b"/r/d")
        await world.names(b"/r/d")
        fs = world.fs
        refused = [
            lambda: fs.create(root.ino, b"new", 0o100644, ROOT),
            lambda: fs.create(root.ino, b"new", 0o040755, ROOT),
            lambda: fs.unlink(root.ino, b"f"),
            lambda: fs.rename(root.ino, b"f", root.ino, b"g"),
            lambda: fs.rename(root.ino, b"f", d.ino, b"g"),
            lambda: fs.setattr(f.ino, AttributeChanges(mode=0o600)),
            lambda: fs.setattr(f.ino, AttributeChanges(size=0)),
            lambda: fs.setxattr(f.ino, b"user.a", b"b", ROOT),
            lambda: fs.open(f.ino, writing=True),
            lambda: fs.link(f.ino, root.ino, b"g"),
        ]
        for change in refused:
            with pytest.raises(ReadOnly):
                change()
        for change in (
            lambda: fs.rename(root.ino, b"f", ROOT_INO, b"f"),
            lambda: fs.link(f.ino, ROOT_INO, b"f"),
        ):
            with pytest.raises(OtherProjection):
                change()
        for change in (
            lambda: fs.rmdir(ROOT_INO, b"r"),
            lambda: fs.rename(ROOT_INO, b"r", ROOT_INO, b"q"),
        ):
            with pytest.raises(ProjectionRoot):
                change()
        assert await world.content(b"/r/f") == b"abc"
        await world.check()
    world.close()


@jumping
async def test_changes_of_a_cow_projection_stay_here_and_outlive_listings_and_restarts() -> None:
    s = Setting()
    await s.put(b"big", DATA)
    for key in (b"gone", b"old", b"d/e", b"d/f"):
        await s.put(key, b"remote " + key)
    world = s.world()
    expected = bytearray(DATA)
    expected[3 * MIB + 5 : 3 * MIB + 9] = b"here"
    expected += b"the end"
    async with world.running():
        await world.project(URL, mode="cow", ttl_s=1.0)
        names = await world.names(b"/r")
        assert names == [b"big", b"d", b"gone", b"old"]
        root, big = await world.look(b"/r"), await world.look(b"/r/big")
        fs = world.fs
        fs.open(big.ino, writing=True)
        await fs.write(big.ino, len(DATA), b"the end")
        assert s.requests["read"] == 0, "appending fetches nothing"
        await fs.write(big.ino, 3 * MIB + 5, b"here")
        fs.release(big.ino)
        fs.unlink(root.ino, b"gone")
        fs.rename(root.ino, b"old", root.ino, b"new")
        made = fs.create(root.ino, b"made", 0o100644, ROOT)
        await fs.write(made.ino, 0, b"made here")
        d = await world.look(b"/r/d")
        fs.rename(root.ino, b"d", root.ino, b"moved")
        await fs.sync()
        for _ in range(2):
            s.clock.now += 10**10
            assert await world.names(b"/r") == [b"big", b"made", b"moved", b"new"]
            assert await world.names(b"/r/moved") == [b"e", b"f"]
        assert (await world.look(b"/r/moved")).ino == d.ino
    world.close()
    world = s.world()
    async with world.running():
        s.clock.now += 10**10
        assert await world.names(b"/r") == [b"big", b"made", b"moved", b"new"]
        assert await world.content(b"/r/big") == bytes(expected)
        assert await world.content(b"/r/made") == b"made here"
        assert await world.content(b"/r/new") == b"remote old"
        assert await world.content(b"/r/moved/e") == b"remote d/e"
        with pytest.raises(LocalChanges):
            await world.projected.projections.unproject(b"/r", force=False)
        await world.check()
    world.close()


@jumping
async def test_truncating_and_growing_shows_zeros_and_not_the_remote_again() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    async with world.running():
        await world.project(URL, mode="cow")
        f = await world.look(b"/r/f")
        world.fs.setattr(f.ino, AttributeChanges(size=2 * MIB + 7))
        world.fs.setattr(f.ino, AttributeChanges(size=4 * MIB))
        expected = DATA[: 2 * MIB + 7] + bytes(2 * MIB - 7)
        assert await world.content(b"/r/f") == expected
        await world.check()
    world.close()
    world = s.world()
    async with world.running():
        assert await world.content(b"/r/f") == expected
    world.close()


@jumping
async def test_a_file_changed_on_both_sides_keeps_what_was_done_here() -> None:
    s = Setting()
    await s.put(b"f", b"first")
    world = s.world()
    async with world.running():
        projection = await world.project(URL, mode="cow", ttl_s=1.0)
        f = await world.look(b"/r/f")
        await world.fs.write(f.ino, 0, b"LOCAL")
        await s.put(b"f", b"remote's own")
        s.clock.now += 10**10
        assert await world.names(b"/r") == [b"f"]
        assert await world.content(b"/r/f") == b"LOCAL"
        assert projection.conflicts == {f.ino}
    world.close()


@jumping
async def test_new_bytes_of_the_remote_are_shown_under_attributes_set_here() -> None:
    s = Setting()
    await s.put(b"f", b"first")
    await s.put(b"g", b"first")
    world = s.world()
    async with world.running():
        projection = await world.project(URL, mode="cow", ttl_s=1.0)
        f, g = await world.look(b"/r/f"), await world.look(b"/r/g")
        world.fs.setattr(f.ino, AttributeChanges(mtime_ns=5))
        world.fs.setattr(g.ino, AttributeChanges(mode=0o600))
        world.fs.open(f.ino, writing=True)
        for name in (b"f", b"g"):
            await s.put(name, b"remote's own")
        s.clock.now += 10**10
        assert await world.names(b"/r") == [b"f", b"g"]
        assert (await world.look(b"/r/f")).ino == f.ino, "its writer may have more to say"
        assert projection.conflicts == {f.ino}
        assert await world.content(b"/r/g") == b"remote's own"
        mine = await world.look(b"/r/g")
        assert (mine.mode & 0o777, bool(mine.flags & FLAG_LOCAL)) == (0o600, True)
        world.fs.release(f.ino)
        s.clock.now += 10**10
        assert await world.content(b"/r/f") == b"remote's own"
        assert not (await world.look(b"/r/f")).flags & FLAG_LOCAL
        assert not projection.conflicts
        await world.check()
    world.close()


@jumping
async def test_unprojecting_takes_the_whole_tree_away() -> None:
    s = Setting()
    for n in range(300):
        await s.user.write(b"d%d/f%d" % (n % 7, n), Source(b"%d" % n))
    world = s.world()
    async with world.running():
        await world.project(URL)
        for n in range(7):
            await world.names(b"/r/d%d" % n)
        await world.content(b"/r/d0/f0")
        await world.projected.projections.unproject(b"/r", force=False)
        with pytest.raises(NotFound):
            await world.look(b"/r")
        with pytest.raises(NoProjection):
            await world.projected.projections.unproject(b"/r", force=False)
        await settled(world)
        await world.check()
        assert world.tree.inode_count == 1
        assert world.projected.projections.all() == []
    world.close()


@jumping
async def test_a_projection_half_removed_at_a_crash_is_removed_at_the_next_start() -> None:
    s = Setting()
    for n in range(300):
        await s.user.write(b"d/f%d" % n, Source(b"%d" % n))
    world = s.world()
    async with world.running():
        await world.project(URL)
        await world.names(b"/r/d")
        projections = world.projected.projections
        world.projected.remover.remove_projection = lambda _: None
        await projections.unproject(b"/r", force=False)
    world.close()
    world = s.world()
    async with world.running():
        await settled(world)
        await world.check()
        assert world.tree.inode_count == 1
    world.close()


@jumping
async def test_where_a_projection_may_be_attached() -> None:
    s = Setting()
    await s.put(b"d/e", b"1")
    world = s.world()
    async with world.running():
        empty = world.fs.create(ROOT_INO, b"empty", 0o040755, ROOT)
        full = world.fs.create(ROOT_INO, b"full", 0o040755, ROOT)
        world.fs.create(full.ino, b"file", 0o100644, ROOT)
        await world.project(URL, b"/empty")
        assert (await world.look(b"/empty")).ino != empty.ino
        assert await world.names(b"/empty/d") == [b"e"]
        for path in (
            b"/",
            b"",
            b"/../x",
            b"/empty/x",
            b"/full",
            b"/full/file",
            b"/no/x",
            b"/empty",
        ):
            with pytest.raises(Exception, match=r"."):
                await world.project("memory:///b", path)
        with pytest.raises(ProjectionRefused):
            await world.project("memory:///b", b"/x", mode="wo")
        await world.check()
    world.close()


@jumping
async def test_a_non_empty_directory_is_not_removed_before_it_was_listed() -> None:
    s = Setting()
    await s.put(b"d/e", b"1")
    world = s.world()
    async with world.running():
        await world.project(URL, mode="cow")
        root = await world.look(b"/r")
        await world.names(b"/r/d")
        with pytest.raises(DirectoryNotEmpty):
            world.fs.rmdir(root.ino, b"d")
        d = await world.look(b"/r/d")
        world.fs.unlink(d.ino, b"e")
        world.fs.rmdir(root.ino, b"d")
        s.clock.now += 10**12
        assert await world.names(b"/r") == []
        await world.check()
    world.close()


@jumping
async def test_a_listing_that_is_not_exact_is_pinned_before_the_first_read() -> None:
    s = Setting()
    await s.put(b"f", DATA)
    world = s.world()
    remote = world.remotes[URL]
    exact = remote.list

    async def rounded(key, sink):
        async def hand_on(page):
            await sink([replace(e, exact=False, etag="", mtime_ns=10**18) for e in page])

        await exact(key, hand_on)

    remote.list = rounded
    async with world.running():
        await world.project(URL, ttl_s=1.0)
        await world.names(b"/r")
        inode = await world.look(b"/r/f")
        world.fs.open(inode.ino)
        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(world.fs.read, inode.ino, n * MIB, 100)
        assert s.requests["stat"] == 2, "the root's, and one by whoever comes first"
        s.clock.now += 10**10
        await world.names(b"/r")
        assert (await world.look(b"/r/f")).ino == inode.ino, "still the same for the listing"
        await s.put(b"f", DATA[::-1])
        with pytest.raises(RemoteVersionGone):
            await world.fs.read(inode.ino, 5 * MIB, 100)
        world.fs.release(inode.ino)
        await settled(world)
        assert await world.content(b"/r/f") == DATA[::-1]
    world.close()


@jumping
async def test_a_silent_remote_is_waited_for_once_and_not_by_each_lookup() -> None:
    s = Setting()
    for n in range(50):
        await s.user.write(b"f%d" % n, Source(b""))
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=10.0)
        root = await world.look(b"/r")
        listings = world.projected.listings
        await world.names(b"/r")
        assert listings.shown_s(root) == 10.0
        s.clock.now += 10**11
        whole = world.remotes[URL].list

        async def silent(*_: object) -> None:
            await trio.sleep_forever()

        world.remotes[URL].list = silent
        began = trio.current_time()
        for n in range(50):
            await world.look(b"/r/f%d" % n)
        assert trio.current_time() - began < 3.0, "the clock jumps: these are seconds waited"
        assert listings.shown_s(root) == 1.0
        world.remotes[URL].list = whole
    world.close()


@jumping
async def test_the_kernel_keeps_what_a_first_listing_has_shown() -> None:
    s = Setting()
    for n in range(1_500):
        await s.user.write(b"%04d" % n, Source(b""))
    world = s.world()
    async with world.running():
        await world.project(URL, ttl_s=10.0)
        root = await world.look(b"/r")
        listings = world.projected.listings
        assert listings.age_left_s(root) == 0.0, "nothing is known: a missing name is asked for"
        await listings.fresh(root, whole=False)
        await listings.more(root)
        assert listings.under_way(root.ino)
        assert listings.shown_s(root) == 10.0
        while await listings.more(root):
            pass
        assert not [ino for ino, _ in world.invalidated if ino == root.ino]
    world.close()
