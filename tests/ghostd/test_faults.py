"""A disk that fails or fills up: callers are told, nothing stored is lost, and it goes on after.

The disk fails at any change (write, sync, creation, …) once or several times in a row. When it
works again one sync succeeds, and a power cut then finds everything that was ever done.
"""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio

from blockstore.errors import OrbitError, StorageFailed, StorageFull
from ghostd.errors import NoSpaceLeft
from ghostd.threads import Inline
from ghostd.tree import Tree
from tests.ghostd.crashes import Machine
from tests.ghostd.history import Driver, Op, Reenters, burst, propose
from tests.ghostd.world import ROOT, World, run
from tests.simdisk import SimDisk, abandon

pytestmark = pytest.mark.usefixtures("small_scale")

FULL = StorageFull("the simulated disk is full")
BROKEN = StorageFailed("the simulated disk is broken")


async def suffer(driver: Driver, disk: SimDisk, rng: random.Random, operations: int) -> int:
    """A history on a disk that fails now and then; how many calls were told."""
    told = 0
    for _ in range(operations):
        if rng.random() < 0.15:
            error = rng.choice((FULL, BROKEN))
            disk.fail_at(rng.randint(1, 12), error, times=rng.choice((1, 1, 2, 5)))
        turn = rng.random()
        try:
            if turn < 0.70:
                await driver.apply(propose(rng, driver.model))
            elif turn < 0.74:
                await burst(driver, rng)
            elif turn < 0.88:
                await driver.sync()
            elif turn < 0.93:
                await trio.sleep(1.5)
            elif turn < 0.96:
                await driver.copy()
            else:
                await driver.collect()
        except OrbitError:
            told += 1
            driver.log.append("failed")
    return told


def failing_run(seed: int) -> int:
    """One life on a failing disk, cut at its end; how many calls were told of failures."""
    rng = random.Random(seed)
    machine = Machine(seed)
    driver = machine.driver
    threads = Reenters(seed, rng.choice((0.0, 0.3)))
    threads.driver = driver
    told = 0

    async def history() -> None:
        nonlocal told
        disk = machine.disk
        told = await suffer(driver, disk, rng, rng.randint(10, 60))
        disk.heal()
        await driver.compare()  # nothing that was done is missing, synced or not
        threads.driver = None
        await driver.sync()
        await driver.compare()
        assert driver.world is not None
        await driver.world.check()

    machine.life(history, crash_at=None, threads=threads)
    assert machine.verify() == len(driver.states) - 1, "all of it survives the power cut"
    return told


@pytest.mark.parametrize("block", range(15))
def test_random_failures(block: int) -> None:
    told = sum(failing_run(seed) for seed in range(block * 10, block * 10 + 10))
    assert told > 3


@pytest.mark.soak
@pytest.mark.parametrize("block", range(100))
def test_many_random_failures(block: int) -> None:
    for seed in range(1_000 + block * 30, 1_030 + block * 30):
        failing_run(seed)


async def little_work(driver: Driver, *, expect: type[OrbitError] | None) -> None:
    """A few operations and one sync, which fails with `expect`."""
    rng = random.Random(11)
    number = driver.model.next_node
    for name in (b"a", b"b"):
        await driver.apply(Op("create", (1, name, 0o100644, ROOT, 0, None)))
    await driver.apply(Op("write", (number, 0, rng.randbytes(10_000))))
    await driver.apply(Op("setxattr", (number, b"user.x", b"1")))
    await driver.apply(Op("rename", (1, b"a", 1, b"b", 0)))
    if expect is None:
        await driver.sync()
    else:
        with pytest.raises(expect):
            await driver.sync()


@pytest.mark.parametrize("error", [FULL, BROKEN])
@pytest.mark.parametrize("times", [1, 3])
def test_each_change_of_a_commit_fails_in_turn(error: OrbitError, times: int) -> None:
    machine = Machine(0)
    counted: list[int] = []

    async def count() -> None:
        before = machine.disk.operations
        await little_work(machine.driver, expect=None)
        counted.append(machine.disk.operations - before)

    machine.life(count, crash_at=None)
    assert counted[0] > 10
    for number in range(1, counted[0] + 1):
        machine = Machine(number)
        driver = machine.driver

        async def history(m: Machine = machine, d: Driver = driver, n: int = number) -> None:
            m.disk.fail_at(n, error, times=times)
            await little_work(d, expect=type(error))
            assert d.world is not None
            assert d.world.writeback.stats.last_error
            await d.compare()
            m.disk.heal()
            await d.sync()
            assert not d.world.writeback.stats.last_error
            await d.compare()

        machine.life(history, crash_at=None)
        assert machine.verify() == len(driver.states) - 1


@pytest.mark.parametrize("block", range(4))
def test_what_a_process_left_that_was_killed_after_a_failure_is_not_believed(block: int) -> None:
    """A failed sync drops data that the next process still sees; it must not build on that."""
    for seed in range(block * 25, block * 25 + 25):
        rng = random.Random(seed)
        kept, doubtful = rng.randbytes(9_000), rng.randbytes(20_000)
        disk = SimDisk(seed)
        first = World(disk)

        async def fail(
            world: World = first, disk: SimDisk = disk, seed: int = seed, kept: bytes = kept,
            doubtful: bytes = doubtful,
        ) -> None:  # fmt: skip
            async with world.running():
                await store(world, b"kept", kept)
                await world.fs.sync()
                disk.fail_at(1 + seed % 16, BROKEN, times=1 + seed % 2)
                await store(world, b"doubtful", doubtful)
                with suppress(OrbitError):
                    await world.fs.sync()

        run(fail, seed)
        disk.heal()
        disk = disk.kill()
        abandon(first.close)
        second = World(disk)

        async def go_on(world: World = second, doubtful: bytes = doubtful) -> None:
            async with world.running():
                await store(world, b"same", doubtful)
                await world.fs.sync()

        run(go_on, seed)
        disk = disk.crash()
        abandon(second.close)
        third = World(disk)
        try:
            for name, content in ((b"kept", kept), (b"same", doubtful)):
                assert run(lambda w=third, n=name: load(w, n), seed) == content, (seed, name)
            run(third.running_check, seed)
        finally:
            third.close()


async def store(world: World, name: bytes, content: bytes) -> None:
    """Create a file."""
    ino = world.fs.create(1, name, 0o100644, ROOT).ino
    await world.fs.write(ino, 0, content)


async def load(world: World, name: bytes) -> bytes:
    """The content of a file."""
    async with world.running():
        inode = world.fs.lookup(1, name)
        return bytes(await world.fs.read(inode.ino, 0, inode.size))


def test_dropping_what_a_failed_commit_held_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a commit that forgets what it could not store."""
    monkeypatch.setattr(
        Tree, "thaw", lambda self, frozen: [i.content.thaw() for i in frozen.contents]
    )

    def noticed(seed: int) -> bool:
        try:
            failing_run(seed)
        except (AssertionError, BaseExceptionGroup):
            return True
        return False

    assert any(noticed(seed) for seed in range(30))


def test_a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room() -> None:
    machine = Machine(1)
    driver = machine.driver
    disk = machine.disk
    disk.size_bytes = 600_000
    refused = 0

    async def history() -> None:
        nonlocal refused
        rng = random.Random(0)
        await driver.apply(Op("create", (1, b"log", 0o100644, ROOT, 0, None)))
        for turn in range(120):
            size = driver.model.nodes[2].size
            try:
                await driver.apply(Op("write", (2, size, rng.randbytes(9_000))))
                await driver.sync()
            except (NoSpaceLeft, StorageFull):
                refused += 1
                if refused == 5:
                    break
            assert turn < 119
        disk.size_bytes = disk.used_bytes  # not one byte more
        with pytest.raises(NoSpaceLeft):
            await driver.apply(Op("create", (1, b"more", 0o100644, ROOT, 0, None)))
        await driver.compare()  # what was taken is there
        await driver.apply(Op("unlink", (1, b"log")))  # and removing is possible
        disk.size_bytes = 1 << 30
        await driver.apply(Op("create", (1, b"more", 0o100644, ROOT, 0, None)))
        await driver.sync()
        await driver.compare()

    machine.life(history, crash_at=None, threads=Inline())
    assert refused == 5
    assert machine.verify() == len(driver.states) - 1


def test_the_disk_fills_up_under_a_commit() -> None:
    """The reserve is too small for it: fsync says so, and what was stored before is safe."""
    machine = Machine(2)
    driver = machine.driver

    async def history() -> None:
        disk = machine.disk
        await little_work(driver, expect=None)
        disk.size_bytes = disk.used_bytes + 2_000
        assert driver.world is not None
        tree, writeback = driver.world.tree, driver.world.writeback
        disk.size_bytes *= 4  # what was promised was true when it was asked for …
        await driver.apply(Op("write", (2, 0, random.Random(1).randbytes(30_000))))
        disk.size_bytes = disk.used_bytes + 2_000  # … somebody else has used it up
        with pytest.raises(StorageFull):
            await driver.sync()
        assert tree.changed
        assert writeback.stats.failures == 1
        await driver.compare()
        disk.size_bytes = 1 << 30
        await driver.sync()
        await driver.compare()

    machine.life(history, crash_at=None)
    assert machine.verify() == len(driver.states) - 1
