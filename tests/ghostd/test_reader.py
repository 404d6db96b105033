"""Reads: shared, bounded in time, verified. The disk's slowness is the clock's."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from blockstore.errors import ChunkDamaged
from blockstore.ids import ChunkId, pack_name
from ghostd.reader import ReadOptions, ReadTimeout
from tests.ghostd.scale import STORE
from tests.ghostd.waiting import Waiting
from tests.ghostd.world import FOLDER, ROOT, World, jumping
from tests.simdisk import SimDisk

pytestmark = pytest.mark.usefixtures("small_scale")

UNCACHED = replace(STORE, cache_bytes_max=0)
DATA = random.Random(9).randbytes(30_000)


@asynccontextmanager
async def opened(**reading: float) -> AsyncIterator[tuple[World, Waiting, int]]:
    """A running filesystem with one open file of many chunks, all of them on the disk only."""
    threads = Waiting()
    options = ReadOptions(**{"read_ahead_bytes": 0, "deadline_s": 5.0, **reading})  # type: ignore[arg-type]
    world = World(SimDisk(1), threads=threads, store=UNCACHED, reading=options)
    try:
        async with world.running():
            ino = world.fs.create(1, b"file", 0o100644, ROOT).ino
            world.fs.open(ino)
            await world.fs.write(ino, 0, DATA)
            await world.fs.sync()
            threads.calls.clear()
            yield world, threads, ino
    finally:
        world.close()


def chunks_of(world: World, ino: int, start: int, end: int) -> list[bytes]:
    content = world.tree.content(world.tree.inode(ino))
    return [source for _, _, source, _ in content.extents(start, end)]  # type: ignore[misc]


async def gather(count: int, call: Callable[[], object]) -> list[object]:
    results: list[object] = []

    async def one() -> None:
        try:
            results.append(bytes(await call()))  # type: ignore[misc,call-overload]
        except Exception as error:  # noqa: BLE001  looked at by the test
            results.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return results


@jumping
async def test_many_readers_share_one_flight_for_each_chunk() -> None:
    async with opened() as (world, threads, ino):
        threads.delay_s["read"] = 1.0
        began = trio.current_time()
        found = await gather(10, lambda: world.fs.read(ino, 0, 20_000))
        assert found == [DATA[:20_000]] * 10
        assert sorted(threads.fetched()) == sorted(set(chunks_of(world, ino, 0, 20_000)))
        assert trio.current_time() - began == 1.0
        assert not world.reader._flights


@jumping
async def test_overlapping_reads_fetch_only_what_is_not_on_its_way() -> None:
    async with opened() as (world, threads, ino):
        threads.delay_s["read"] = 1.0
        found: dict[int, bytes] = {}

        async def read(at: int) -> None:
            found[at] = bytes(await world.fs.read(ino, at, 12_000))

        async with trio.open_nursery() as nursery:
            for at in (0, 6_000, 3_000):
                nursery.start_soon(read, at)
        assert found == {at: DATA[at : at + 12_000] for at in (0, 6_000, 3_000)}
        assert sorted(threads.fetched()) == sorted(set(chunks_of(world, ino, 0, 18_000)))


@jumping
async def test_a_disk_that_does_not_answer_is_an_error_at_the_deadline() -> None:
    async with opened() as (world, threads, ino):
        threads.delay_s["read"] = 1_000.0
        began = trio.current_time()
        found = await gather(3, lambda: world.fs.read(ino, 0, 20_000))
        assert [type(result) for result in found] == [ReadTimeout] * 3
        assert trio.current_time() - began == 5.0
        assert "5 s" in str(found[0])
        assert not world.reader._flights
        assert not world.reader.damaged_inodes, "slow is not damaged"
        threads.delay_s["read"] = 0.5  # it answers again
        assert bytes(await world.fs.read(ino, 0, 20_000)) == DATA[:20_000]


@jumping
async def test_a_reader_that_leaves_takes_nobody_with_it() -> None:
    async with opened() as (world, threads, ino):
        threads.delay_s["read"] = 2.0
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await world.fs.read(ino, 0, 20_000)))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1.0) as impatient:
                nursery.start_soon(read)
                await world.fs.read(ino, 0, 20_000)
            assert impatient.cancelled_caught
        assert found == [DATA[:20_000]]
        assert not world.reader._flights


@jumping
async def test_what_is_in_memory_waits_for_nothing() -> None:
    async with opened() as (world, threads, ino):
        threads.delay_s["read"] = 1_000.0
        await world.fs.write(ino, 1_000, b"new" * 1_000)
        assert bytes(await world.fs.read(ino, 1_500, 2_000)) == (b"new" * 1_000)[500:2_500]
        await world.fs.write(ino, 500_000, b"end")
        hole = await world.fs.read(ino, 40_000, 100_000)
        assert bytes(hole) == bytes(100_000)
        assert threads.fetched() == []


@jumping
async def test_a_damaged_chunk_is_an_error_and_its_file_is_named() -> None:
    async with opened() as (world, _, ino):
        fs = world.fs
        other = fs.create(1, b"other", 0o100644, ROOT).ino
        fs.open(other)
        await fs.write(other, 0, b"sound" * 3_000)
        fs.link(ino, 1, b"second name")
        await fs.sync()
        victim = ChunkId(chunks_of(world, ino, 10_000, 10_001)[0])
        place = world.store.locate([victim])[victim]
        disk = world.disk
        assert isinstance(disk, SimDisk)
        disk.flip(FOLDER / "packs" / pack_name(place.pack), place.offset + 80)
        for at, size in ((9_000, 5_000), (10_000, 1)):
            with pytest.raises(ChunkDamaged) as caught:
                await fs.read(ino, at, size)
            assert caught.value.chunk_id == victim
        assert list(world.reader.damaged_inodes) == [ino]
        assert bytes(await fs.read(other, 0, 15_000)) == b"sound" * 3_000
        first = world.tree.content(world.tree.inode(ino)).extents(0, 1)[0]
        sound_until = first[0] + len(world.store.fetch([ChunkId(first[2])])[ChunkId(first[2])])  # type: ignore[arg-type]
        assert bytes(await fs.read(ino, 0, sound_until)) == DATA[:sound_until]
        report = await world.keeper.check(data=True)
        assert not report.ok
        assert sorted(report.damaged_files) == ["file", "second name"]
        # Written again, it is whole again.
        await fs.write(ino, 0, DATA)
        await fs.sync()
        assert bytes(await fs.read(ino, 0, 30_000)) == DATA


@jumping
async def test_a_sequential_reader_is_served_ahead() -> None:
    async with opened() as (world, threads, _):
        big = world.fs.create(1, b"big", 0o100644, ROOT).ino
        world.fs.open(big)
        data = random.Random(3).randbytes(1 << 20)
        await world.fs.write(big, 0, data)
        await world.fs.sync()
        world.reader._options = ReadOptions(read_ahead_bytes=200_000, deadline_s=5.0)
        threads.calls.clear()
        for at in range(0, 1 << 20, 64 << 10):
            assert bytes(await world.fs.read(big, at, 64 << 10)) == data[at : at + (64 << 10)]
            await trio.sleep(0.01)
        assert world.reader.stats.ahead_chunks > 100
        ahead = world.reader.stats.ahead_chunks
        for at in (900_000, 100_000, 500_000, 10_000, 700_000):
            assert bytes(await world.fs.read(big, at, 4_096)) == data[at : at + 4_096]
        assert world.reader.stats.ahead_chunks == ahead, "who jumps about is not"
