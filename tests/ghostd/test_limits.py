"""What may be dirty is bounded: writers wait, and are told when waiting is in vain."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from blockstore.errors import OrbitError, StorageFailed, StorageFull
from ghostd.errors import NoSpaceLeft
from ghostd.writeback import WritebackOptions
from tests.ghostd.waiting import Waiting
from tests.ghostd.world import ROOT, World, jumping
from tests.simdisk import SimDisk

pytestmark = pytest.mark.usefixtures("small_scale")

LIMIT = 100_000
REQUEST = 9_000


@asynccontextmanager
async def opened(**options: float) -> AsyncIterator[tuple[World, Waiting, SimDisk]]:
    threads = Waiting()
    disk = SimDisk(1)
    settings = {"dirty_bytes_max": LIMIT, "reserve_bytes": 10_000, **options}
    world = World(disk, threads=threads, options=WritebackOptions(**settings))  # type: ignore[arg-type]
    try:
        async with world.running():
            yield world, threads, disk
    finally:
        world.close()


def new_file(world: World, name: bytes) -> int:
    ino = world.fs.create(1, name, 0o100644, ROOT).ino
    world.fs.open(ino)
    return ino


async def write_until_refused(
    world: World, ino: int, offset: int, request: int, error: type[OrbitError] = NoSpaceLeft
) -> int:
    """Append until `error` is raised; how many bytes were taken."""
    for taken in range(0, 100 * request, request):
        try:
            await world.fs.write(ino, offset + taken, b"w" * request)
        except error:
            return taken
    raise AssertionError("never refused")


@pytest.mark.parametrize("kind", ["encode", "commit"])
@jumping
async def test_dirty_bytes_stay_within_the_limit_and_one_request(kind: str) -> None:
    async with opened() as (world, threads, _):
        threads.delay_s[kind] = 0.7
        peak = 0
        contents: dict[int, bytes] = {}

        async def writer(number: int) -> None:
            nonlocal peak
            ino = new_file(world, b"%d" % number)
            rng = random.Random(number)
            data = b""
            for _ in range(12):
                part = rng.randbytes(REQUEST)
                await world.fs.write(ino, len(data), part)
                data += part
                peak = max(peak, world.tree.unstored)
            contents[ino] = data

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(writer, number)
        assert LIMIT < peak <= LIMIT + REQUEST, "it was reached, and not passed"
        await world.fs.sync()
        assert world.tree.unstored == 0
        for ino, data in contents.items():
            assert bytes(await world.fs.read(ino, 0, len(data))) == data


@jumping
async def test_changed_names_stay_within_their_limit() -> None:
    async with opened(dirty_ops_max=50) as (world, threads, _):
        threads.delay_s["commit"] = 0.7
        peak = 0

        async def maker(number: int) -> None:
            nonlocal peak
            for turn in range(30):
                await world.writeback.room(0)  # as the FUSE edge does before it creates
                world.fs.create(1, b"%d-%d" % (number, turn), 0o100644, ROOT)
                peak = max(peak, world.tree.dirty_ops)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(maker, number)
        assert 50 < peak <= 50 + 3, "a creation changes an inode, a name and a directory"
        await world.fs.sync()
        assert len(world.listing(1)) == 180


@pytest.mark.parametrize(
    ("error", "told"),
    [(StorageFull("full"), NoSpaceLeft), (StorageFailed("broken"), StorageFailed)],
)
@jumping
async def test_a_writer_that_waits_in_vain_is_told_why(
    error: OrbitError, told: type[OrbitError]
) -> None:
    async with opened() as (world, _, disk):
        ino = new_file(world, b"f")
        disk.fail_at(1, error, times=10_000)
        written = await write_until_refused(world, ino, 0, REQUEST, told)
        assert LIMIT - REQUEST < written <= LIMIT + REQUEST
        assert world.tree.unstored == written
        disk.heal()
        await world.fs.write(ino, written, b"goes on")
        await world.fs.sync()
        assert world.tree.unstored == 0
        assert bytes(await world.fs.read(ino, written, 100)) == b"goes on"
        await world.check()


@jumping
async def test_what_the_disk_could_not_take_is_refused_at_once() -> None:
    async with opened() as (world, _, disk):
        ino = new_file(world, b"f")
        await world.fs.write(ino, 0, b"x" * 5_000)
        await world.fs.sync()
        reserve = 10_000
        disk.size_bytes = disk.used_bytes + 40_000 + reserve
        reserve = min(reserve, disk.size_bytes // 20)
        accepted = await write_until_refused(world, ino, 5_000, 1_000)
        assert 20_000 < accepted <= 45_000
        for refused in (
            lambda: world.fs.create(1, b"g", 0o100644, ROOT),
            lambda: world.fs.link(ino, 1, b"h"),
            lambda: world.fs.setxattr(ino, b"user.big", bytes(60_000), ROOT),
        ):
            disk.size_bytes = disk.used_bytes
            with pytest.raises(NoSpaceLeft):
                refused()
        assert world.fs.statfs().free_bytes == 0
        disk.size_bytes = 1 << 30
        await world.fs.sync()
        assert bytes(await world.fs.read(ino, 5_000, accepted)) == b"w" * accepted
        assert world.fs.statfs().free_bytes > 1 << 29


@jumping
async def test_one_commit_serves_all_who_wait() -> None:
    async with opened(commit_interval_s=1_000.0) as (world, threads, _):
        threads.delay_s["commit"] = 1.0
        ino = new_file(world, b"f")
        await world.fs.write(ino, 0, b"x" * 3_000)
        before = world.writeback.stats.commits
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.fs.sync)
        assert world.writeback.stats.commits == before + 1
        await world.fs.sync()
        assert world.writeback.stats.commits == before + 1, "nothing to do"


@jumping
async def test_after_a_failed_commit_the_next_fsync_does_not_wait() -> None:
    async with opened(commit_interval_s=1_000.0) as (world, _, disk):
        ino = new_file(world, b"f")
        await world.fs.write(ino, 0, b"x" * 3_000)
        disk.fail_at(1, StorageFailed("broken"))
        with pytest.raises(StorageFailed):
            await world.fs.sync()
        began = trio.current_time()
        await world.fs.sync()
        assert trio.current_time() == began
        assert not world.tree.changed


@jumping
async def test_after_a_failed_commit_what_nobody_waits_for_takes_its_time() -> None:
    """A disk that fails is not asked again for each write, only for each fsync."""
    async with opened(commit_interval_s=10.0, dirty_ops_max=10) as (world, _, disk):
        stats = world.writeback.stats
        inodes = [new_file(world, name) for name in (b"f", b"g", b"h")]
        disk.fail_at(1, StorageFailed("broken"), times=10_000)
        await world.fs.write(inodes[0], 0, b"x")  # enough has changed to begin a commit at once
        await trio.sleep(0.1)
        failures = [stats.failures]
        for turn in range(20):
            await world.fs.write(inodes[0], turn, b"y")
            await trio.sleep(0.1)
        failures.append(stats.failures)
        with pytest.raises(StorageFailed):
            await world.fs.sync()
        failures.append(stats.failures)
        await trio.sleep(30.0)
        failures.append(stats.failures)
        disk.heal()
        assert failures[:3] == [1, 1, 2]
        assert 3 <= failures[3] <= 5


@jumping
async def test_what_changes_during_a_commit_waits_for_the_next_one() -> None:
    async with opened(commit_interval_s=1_000.0) as (world, threads, _):
        threads.delay_s["commit"] = 1.0
        ino = new_file(world, b"f")
        stored: list[int] = []

        async def sync() -> None:
            await world.fs.sync()
            row = world.namespace.load_inode(ino)
            stored.append(0 if row is None else row[7])

        async with trio.open_nursery() as nursery:
            await world.fs.write(ino, 0, b"x" * 3_000)
            nursery.start_soon(sync)
            await trio.sleep(0.5)  # the commit is under way
            await world.fs.write(ino, 3_000, b"y" * 3_000)
            await sync()
        assert stored == [3_000, 6_000]


@jumping
async def test_the_interval_alone_commits() -> None:
    async with opened(commit_interval_s=1.0) as (world, _, _):
        ino = new_file(world, b"f")
        await trio.sleep(1.2)
        assert world.namespace.load_inode(ino) is not None
        assert not world.tree.changed
        commits = world.writeback.stats.commits
        await trio.sleep(20)
        assert world.writeback.stats.commits == commits, "nothing has changed"
