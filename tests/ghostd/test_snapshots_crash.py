"""Power cuts while snapshots are taken and removed, and while what they held is collected.

After each one: a snapshot whose taking had returned is recorded, and one whose removal had is not;
every recorded one is whole and shows the tree as it was; the next one shows it as it is.
"""

from __future__ import annotations

import random

import pytest

from ghostd.snapshots import Snapshots
from ghostd.snapshots_writing import TreeTaker
from tests.ghostd.crashes import only_the_crash
from tests.ghostd.snapshots_world import ME, Image, live_image, snapshots_of, stored_image
from tests.ghostd.world import Clock, World, run
from tests.simdisk import SimDisk, abandon

FILE, FOLDER = 0o100644, 0o040755


class Life:
    """What was done, and what must be there for it."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}  # by name: what a snapshot shows
        self.there: set[str] = set()
        self.unsure: set[str] = set()  # its taking or removal has begun

    async def take(self, world: World, snapshots: Snapshots, name: str) -> None:
        self.images[name] = await live_image(world)
        self.unsure.add(name)
        await snapshots.take(b"/", name=name)
        self.unsure.discard(name)
        self.there.add(name)

    async def remove(self, snapshots: Snapshots, name: str) -> None:
        self.there.discard(name)
        self.unsure.add(name)
        await snapshots.remove([await snapshots.find(name)])
        self.unsure.discard(name)

    async def script(self, world: World) -> None:
        rng = random.Random(7)
        fs = world.fs
        snapshots = snapshots_of(world)
        folders = [fs.create(1, b"d%d" % number, FOLDER, ME).ino for number in range(3)]
        below = fs.create(folders[0], b"below", FOLDER, ME).ino
        files = [fs.create(folder, b"f", FILE, ME).ino for folder in (*folders, below)]
        for file in files:
            await fs.write(file, 0, rng.randbytes(9_000))
        await self.take(world, snapshots, "one")
        await fs.write(files[3], 100, rng.randbytes(500))
        await self.take(world, snapshots, "two")
        await self.remove(snapshots, "one")
        fs.unlink(folders[1], b"f")
        fs.forget(files[1], 0)
        await self.remove(snapshots, "two")
        await world.keeper.collect(0.0, dry_run=False)
        await self.take(world, snapshots, "three")
        await world.keeper.copy_namespace()
        fs.rename(folders[0], b"below", folders[2], b"moved")
        await self.take(world, snapshots, "four")
        await self.remove(snapshots, "three")
        await world.keeper.collect(0.0, dry_run=False)
        await self.take(world, snapshots, "five")


def lived(disk: SimDisk, life: Life) -> None:
    world = None

    async def main() -> None:
        async with world.running():
            await life.script(world)

    try:
        world = World(disk, clock=Clock())
        run(main)
        world.close()
        assert not disk.crashed
    except BaseException as error:
        if not disk.crashed or not only_the_crash(error):
            raise
        if world is not None:
            abandon(world.close)


async def verify(world: World, life: Life) -> None:
    snapshots = snapshots_of(world)
    async with world.running():
        found = {each.name: each for each in await snapshots.all()}
        assert life.there <= found.keys() <= life.there | life.unsure
        for name, snapshot in found.items():
            assert stored_image(world.store, snapshot) == life.images[name]
        await world.check()
        after = (await snapshots.take(b"/", name="after")).snapshot
        assert stored_image(world.store, after) == await live_image(world)
        await world.keeper.collect(0.0, dry_run=False)
        await world.check()


def new_disk(seed: int) -> SimDisk:
    """A disk with an empty filesystem."""
    disk = SimDisk(seed)
    World(disk, clock=Clock()).close()
    return disk


def cut(number: int) -> None:
    disk, life = new_disk(number), Life()
    disk.crash_at(number)
    lived(disk, life)
    after = disk.crash()
    world = World(after, clock=Clock())
    try:
        run(lambda: verify(world, life))
    finally:
        world.close()


def changes() -> int:
    disk = new_disk(0)
    before = disk.operations
    lived(disk, Life())
    return disk.operations - before


@pytest.mark.parametrize("part", range(4))
def test_power_cut_at_many_changes_of_the_disk(part: int) -> None:
    total = changes()
    assert total > 200
    for number in range(1 + part, total + 1, 16):
        cut(number)


@pytest.mark.soak
def test_power_cut_at_every_change_of_the_disk() -> None:
    for number in range(1, changes() + 1):
        cut(number)


def recorded_too_early(patch: pytest.MonkeyPatch) -> None:
    """The objects of a tree are not made durable."""
    patch.setattr(TreeTaker, "_durable", lambda _, encoder: encoder.take_trees())


def believed_too_long(patch: pytest.MonkeyPatch) -> None:
    """A collection does not say that it has begun."""
    patch.setattr("ghostd.keeper.suspect", lambda _: None)
    patch.setattr("ghostd.keeper.unreached", lambda *_: [])


@pytest.mark.parametrize("mistake", [recorded_too_early, believed_too_long])
def test_a_mistake_is_noticed(mistake) -> None:

    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        # Coarsely first: what is noticed is noticed at a dozen changes in a row.
        for number in sorted(range(1, changes() + 1, 3), key=lambda number: number % 9):
            try:
                cut(number)
            except (Exception, BaseExceptionGroup):  # noqa: BLE001  whatever says that it is broken
                return
    pytest.fail("nothing was noticed")
