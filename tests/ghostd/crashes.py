"""Lives of a filesystem on a simulated disk, each ended by a power cut; what must hold after."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import apsw

from blockstore.errors import OrbitError
from ghostd.threads import Threads
from tests.ghostd.history import Driver, Op, Reenters, differences, live, seen
from tests.ghostd.model import Image, Model
from tests.ghostd.world import FOLDER, ROOT, Clock, World, recover, run
from tests.simdisk import SimDisk, SimulatedCrash, abandon


class Machine:
    """One computer: a disk, a model of what was done on it, and the lives of the filesystem."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.disk = SimDisk(seed)
        self.clock = Clock()
        world = World(self.disk, clock=self.clock)
        root = world.tree.inode(1)
        model = Model(0)
        node = model.nodes[1]
        node.atime, node.mtime, node.ctime = root.atime_ns, root.mtime_ns, root.ctime_ns
        world.close()
        self.driver = Driver(model, self.clock)

    def life(
        self,
        history: Callable[[], Awaitable[None]],
        *,
        crash_at: int | None,
        threads: Threads | None = None,
        **sizes: int,
    ) -> bool:
        """Open, let `history` happen, crash at that change of the disk; whether it did crash."""
        disk = self.disk
        self.driver.restart()
        if crash_at is not None:
            disk.crash_at(crash_at)
        world = None

        async def main() -> None:
            async with world.running():
                await history()

        try:
            world = World(disk, clock=self.clock, threads=threads, **sizes)
            self.driver.attach(world)
            run(main, self.seed)
        except BaseException as error:
            if not disk.crashed or not only_the_crash(error):
                raise
        crashed = disk.crashed
        self.disk = disk.crash()
        if world is not None:
            abandon(world.close)
        return crashed

    def verify(self) -> int:
        """After the power cut: sound, what was synced is there, the rest is a prefix.

        The number of the state that was found; the model goes on from it.
        """
        return self._settle(self.driver.synced, "the last sync")

    def verify_recovery(self) -> int:
        """The same with `namespace.db` lost and brought back from its last copy."""
        for name in ("namespace.db", "namespace.db-wal"):
            path = FOLDER / name
            if self.disk.exists(path):
                self.disk.unlink(path)
        recover(self.disk)
        return self._settle(self.driver.copied, "the last copy")

    def _settle(self, promised: int, promise: str) -> int:
        driver = self.driver
        world = World(self.disk, clock=self.clock)
        try:
            found: Image = run(lambda: seen(world), self.seed)
            candidates = range(len(driver.states) - 1, promised - 1, -1)
            for number in candidates:
                state = driver.states[number].clone()
                state.restart()
                if state.image() == found:
                    break
            else:
                raise AssertionError(self._explain(found, promised, promise))
            run(world.running_check, self.seed)
        finally:
            world.close()
        driver.model = state
        return number

    def _explain(self, found: Image, promised: int, promise: str) -> str:
        states = self.driver.states
        images = []
        for number, state in enumerate(states):
            state.restart()
            images.append((len(differences(found, state.image())), number))
        older = [number for count, number in images if not count]
        if older:
            return f"found state {older[-1]} of {len(states) - 1}, {promise} promised {promised}"
        _, nearest = min(images)
        return "\n".join(
            [
                f"no state of this history; {promise} promised {promised} of {len(states) - 1}",
                f"nearest to {nearest}:",
                *differences(found, states[nearest].image()),
                "the history:",
                *(f"  {entry!r}" for entry in self.driver.log),
            ]
        )


def only_the_crash(error: BaseException) -> bool:
    """Whether an error is nothing but what a power cut looks like."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_the_crash(inner) for inner in error.exceptions)
    # SQLite shows the crash as an I/O error (tests/simdisk/vfs.py), and as others that follow.
    return isinstance(error, SimulatedCrash | OrbitError | apsw.Error)


async def populate(driver: Driver, rng: random.Random) -> None:
    """More inodes than the cache keeps."""
    folders = [1]
    for number in range(70):
        mode = 0o40755 if number < 6 else 0o100644
        name = b"%03d" % number
        await driver.apply(Op("create", (rng.choice(folders), name, mode, ROOT, 0, None)))
        if number < 6:
            folders.append(driver.model.next_node - 1)
    await driver.sync()


def crashing_run(seed: int, *, lives: int) -> None:
    """Random histories with random crashes; every choice follows from the seed."""
    rng = random.Random(seed)
    machine = Machine(seed)
    if rng.random() < 0.3:
        machine.life(lambda: populate(machine.driver, rng), crash_at=None)
        machine.verify()
    for _ in range(lives):
        threads = Reenters(rng.randrange(1 << 30), rng.choice((0.0, 0.2, 0.4)))
        threads.driver = machine.driver
        sizes = {
            "inodes_max": 40,  # an operation has at most five in hand, and the hand moves by eight
            "segments_max": rng.choice((1, 2, 256)),
        }
        machine.life(
            lambda: live(machine.driver, rng, operations=rng.randint(5, 50)),
            crash_at=int(rng.expovariate(1 / 80)) + 1,
            threads=threads,
            **sizes,
        )
        if machine.driver.copied >= 0 and rng.random() < 0.5:
            machine.verify_recovery()
        else:
            machine.verify()
