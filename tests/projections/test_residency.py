"""What `residency` and the attributes `user.orbit.*` say, and what `evict` and pins do to it."""

from __future__ import annotations

import random

import pytest
import trio

from ghostd.errors import NotFound
from ghostd.orbit_xattrs import DIRTY, ETAG, PINNED, RESIDENCY, URL, orbit_xattr
from syncer.remotes.errors import Unreachable
from tests.ghostd.world import ROOT, jumping
from tests.projections.test_projected import DATA, MIB, Setting
from tests.projections.tools import ROOT_URL, Tools, tooled

SIZE = len(DATA)


def xattr(tools: Tools, ino: int, name: bytes) -> bytes | None:
    inode = tools.world.tree.inode(ino)
    projection = tools.world.projected.projections.get(inode.projection)
    return orbit_xattr(tools.world.tree, projection, inode, name, tools.world.store.resident)


@jumping
async def test_shares_follow_what_is_read() -> None:
    s = Setting()
    for name in (b"a", b"d/b"):
        await s.put(name, name + DATA)
    async with tooled(s) as tools:
        before = await tools.residency(b"/r")
        assert (before.files, before.directories, before.unlisted_directories) == (0, 1, 1)
        await tools.world.names(b"/r")
        known = await tools.residency(b"/r")
        assert (known.files, known.bytes, known.local_bytes) == (1, SIZE + 1, 0)
        assert known.unlisted_directories == 1
        await tools.world.content(b"/r/a", 2 * MIB + 5, 10)
        assert (await tools.residency(b"/r/a")).local_bytes == MIB
        await tools.world.content(b"/r/a")
        await tools.world.content(b"/r/d/b", 0, 1)
        everything = await tools.residency(b"/")
        assert everything.bytes == 2 * SIZE + 4
        assert everything.local_bytes == SIZE + 1 + MIB
        assert everything.dirty_files == everything.pinned_files == 0
        with pytest.raises(NotFound):
            await tools.residency(b"/r/none")
        asked = s.requests.total()
        await tools.residency(b"/r")
        assert s.requests.total() == asked, "no remote is asked"


@jumping
async def test_own_bytes_of_a_changed_file_are_local_and_dirty() -> None:
    s = Setting()
    await s.put(b"a", DATA)
    async with tooled(s, mode="cow") as tools:
        world = tools.world
        inode = await world.look(b"/r/a")
        # Half a block hidden, then an append.
        await world.fs.write(inode.ino, MIB, b"x" * (MIB // 2))
        await world.fs.write(inode.ino, SIZE, b"y" * 100)
        found = await tools.residency(b"/r/a")
        assert found.dirty_bytes == MIB // 2 + 100
        assert found.bytes == SIZE + 100
        assert found.local_bytes == MIB // 2 + 100
        await world.content(b"/r/a", MIB + MIB // 2, 1)
        found = await tools.residency(b"/r/a")
        assert found.local_bytes == MIB + 100, "the other half of the block has come"
        made = world.fs.create((await world.look(b"/r")).ino, b"new", 0o100644, ROOT)
        await world.fs.write(made.ino, 0, b"z" * 7)
        assert xattr(tools, made.ino, RESIDENCY) == b"7/7"
        assert xattr(tools, made.ino, DIRTY) == b"1"
        assert xattr(tools, made.ino, URL) is None, "it is nowhere else"
        assert (await tools.residency(b"/r")).dirty_files == 2


@jumping
async def test_attributes_for_scripts() -> None:
    s = Setting()
    await s.put(b"d/a b%", DATA)
    async with tooled(s) as tools:
        file = await tools.world.look(b"/r/d/a b%")
        directory = await tools.world.look(b"/r/d")
        top = await tools.world.look(b"/r")
        assert xattr(tools, file.ino, RESIDENCY) == b"0/%d" % SIZE
        await tools.world.content(b"/r/d/a b%", 0, 1)
        await tools.world.projected.fetcher.stored()
        assert xattr(tools, file.ino, RESIDENCY) == b"%d/%d" % (MIB, SIZE)
        assert xattr(tools, file.ino, URL) == b"memory:///d/a%20b%25"
        assert xattr(tools, directory.ino, URL) == b"memory:///d/"
        assert xattr(tools, top.ino, URL) == ROOT_URL.encode()
        entry = await s.user.stat(b"d/a b%")
        assert xattr(tools, file.ino, ETAG) == entry.etag.encode()
        assert xattr(tools, file.ino, PINNED) == b"0"
        assert xattr(tools, file.ino, DIRTY) == b"0"
        assert xattr(tools, directory.ino, RESIDENCY) is None
        assert xattr(tools, file.ino, b"user.orbit.other") is None


@jumping
async def test_the_attribute_of_a_large_file_is_an_estimate_and_the_count_is_exact() -> None:
    s = Setting()
    blocks = 64 * 40
    data = bytes(blocks * (128 << 10))
    await s.put(b"large", data)
    async with tooled(s, block_bytes=128 << 10) as tools:
        file = await tools.world.look(b"/r/large")
        rows = tools.world.tree.remote
        here = tools.world.store.put_fetched([b"block" * 26_214 + b"xx"])[0]
        # Half of every stretch: what a hint says and the store has is local.
        for number in range(0, blocks, 2):
            rows.set_block(file.base, number, here)
        await tools.world.writeback.commit()
        for number in range(0, 64, 2):  # changed since: not in the database yet
            rows.set_block(file.base, number, None)
        local = (blocks // 2 - 32) * (128 << 10)
        assert (await tools.residency(b"/r/large")).local_bytes == local
        text = xattr(tools, file.ino, RESIDENCY)
        assert text is not None
        estimate, size = map(int, text.split(b"/"))
        assert size == len(data)
        assert abs(estimate - local) < len(data) // 20


@jumping
async def test_evict_drops_blocks_and_leaves_pinned_ones() -> None:
    s = Setting()
    for name in (b"a", b"bb", b"ccc"):
        await s.put(name, name + DATA)  # no two blocks are equal
    async with tooled(s) as tools:
        work = await tools.fetch("pin", b"/r/bb")
        assert work.state == "done"
        await tools.world.content(b"/r/a")
        await tools.world.content(b"/r/ccc")
        s.requests.clear()
        gone = await tools.evictor.evict([b"/r"])
        assert (gone.files, gone.pinned_files) == (2, 1)
        assert gone.bytes == 2 * SIZE + 4
        found = await tools.residency(b"/r")
        assert found.local_bytes == found.pinned_bytes == SIZE + 2
        s.fail = Unreachable("gone")
        assert await tools.world.content(b"/r/bb") == b"bb" + DATA, "offline"
        s.fail = None
        assert await tools.world.content(b"/r/a") == b"a" + DATA
        assert s.requests["read"] > 0
        assert (await tools.evictor.unpin([b"/r"])).files == 1
        assert (await tools.evictor.evict([b"/r/bb"])).bytes == SIZE + 2
        assert (await tools.evictor.evict([b"/r/bb"])).blocks == 0


@jumping
async def test_a_block_that_a_pinned_file_shows_too_is_not_evicted() -> None:
    s = Setting()
    for name in (b"a", b"b"):
        await s.put(name, DATA)
    async with tooled(s) as tools:
        await tools.fetch("pin", b"/r/b")
        await tools.world.content(b"/r/a")
        assert (await tools.evictor.evict([b"/r/a"])).blocks == 0
        assert (await tools.residency(b"/r/b")).local_bytes == SIZE


@jumping
async def test_random_reads_and_evictions_agree_with_a_model() -> None:
    s = Setting()
    rng = random.Random(4)
    names = [b"f%d" % n for n in range(4)]
    for n, name in enumerate(names):
        await s.put(name, DATA[n + 1 :][: MIB * (n + 1)] + b"end")
    async with tooled(s) as tools:
        await tools.world.names(b"/r")
        here: dict[bytes, set[int]] = {name: set() for name in names}
        for _ in range(40):
            name = rng.choice(names)
            if rng.random() < 0.2:
                await tools.evictor.evict([b"/r/" + name])
                here[name].clear()
            else:
                size = (await tools.world.look(b"/r/" + name)).size
                offset = rng.randrange(size)
                await tools.world.content(b"/r/" + name, offset, 1)
                await trio.testing.wait_all_tasks_blocked()
                inode = await tools.world.look(b"/r/" + name)
                rows = tools.world.tree.remote
                ids = list(rows.block_ids(inode.base, inode.size, MIB))
                here[name] = {n for n, each in enumerate(ids) if each is not None}
                assert offset // MIB in here[name]
            sizes = {each: (await tools.world.look(b"/r/" + each)).size for each in names}
            expected = sum(
                min(MIB, sizes[each] - n * MIB) for each, found in here.items() for n in found
            )
            assert (await tools.residency(b"/r")).local_bytes == expected
