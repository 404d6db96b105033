"""Power cuts at any moment in the life of the whole filesystem, block store and SQLite together.

After each one: the filesystem opens; every check is clean with all data read back; what it shows is
one state of the history, whole, and none older than the last sync. The seed in a failure's name
repeats it. That the simulation loses things, and that these tests notice, is shown at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio

from ghostd.errors import FilesystemError
from ghostd.filesystem import RENAME_EXCHANGE, AttributeChanges
from ghostd.namespace import Namespace
from ghostd.threads import Inline
from ghostd.writeback import Writeback
from tests.ghostd.crashes import Machine, crashing_run
from tests.ghostd.history import Driver, Op, Reenters
from tests.ghostd.world import ROOT

pytestmark = pytest.mark.usefixtures("small_scale")

FILE, FOLDER = 0o100644, 0o040755


@pytest.mark.parametrize("seed", range(250))
def test_random_histories(seed: int) -> None:
    crashing_run(seed, lives=3)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(100))
def test_many_random_histories(block: int) -> None:
    for seed in range(1_000 + block * 50, 1_050 + block * 50):
        crashing_run(seed, lives=4)


# --- a script that touches every step, cut at every single change ------------------------------


async def script(driver: Driver) -> None:
    """Names, content, attributes, a collection and a copy; syncs and intervals in between."""
    rng = random.Random(5)

    async def do(name: str, *args: object) -> int:
        number = driver.model.next_node
        await driver.apply(Op(name, args))
        return number

    folder = await do("create", 1, b"folder", FOLDER, ROOT, 0, None)
    one = await do("create", folder, b"one", FILE, ROOT, 0, None)
    await do("open", one, False)
    await do("write", one, 0, rng.randbytes(40_000))
    await driver.sync()
    await do("write", one, 40_000, rng.randbytes(3_000))
    await do("link", one, 1, b"second name")
    await do("setxattr", folder, b"user.colour", b"blue")
    await trio.sleep(1.5)
    await do("write", one, 9_000, rng.randbytes(500))
    two = await do("create", 1, b"two", FILE, ROOT, 0, None)
    await do("write", two, 0, rng.randbytes(9_000))
    await do("rename", 1, b"two", folder, b"one", RENAME_EXCHANGE)
    await do("setattr", one, AttributeChanges(size=36_000))
    await driver.sync()
    await do("unlink", folder, b"one")
    await driver.collect()
    await do("rename", 1, b"second name", folder, b"moved", 0)
    await do("release", one)
    await do("setattr", one, AttributeChanges(size=10))
    await driver.copy()
    await do("unlink", 1, b"two")
    await driver.sync()


def changes_of(history: Callable[[Driver], object]) -> int:
    machine = Machine(0)
    before = machine.disk.operations
    disk = machine.disk
    machine.life(lambda: history(machine.driver), crash_at=None)  # type: ignore[arg-type,return-value]
    return disk.operations - before


@pytest.mark.parametrize("part", range(8))
def test_power_cut_at_every_single_change(part: int) -> None:
    total = changes_of(script)
    assert total > 150
    for number in range(1 + part, total + 1, 8):
        machine = Machine(number)
        assert machine.life(lambda m=machine: script(m.driver), crash_at=number)
        machine.verify()


@pytest.mark.parametrize("part", range(4))
def test_power_cut_while_starting_after_a_power_cut(part: int) -> None:
    for seed in range(part, 60, 4):
        machine = Machine(seed)
        machine.life(lambda m=machine: script(m.driver), crash_at=30 + 4 * seed)
        machine.verify()
        for again in (1 + seed % 5, 2 + seed % 9):
            machine.life(trio.lowlevel.checkpoint, crash_at=again)
            assert machine.verify() == 0


async def replace_by_rename(driver: Driver) -> None:
    """An editor's save, with and without the fsync that careful editors do."""
    rng = random.Random(1)
    target = driver.model.next_node
    await driver.apply(Op("create", (1, b"target", FILE, ROOT, 0, None)))
    await driver.apply(Op("write", (target, 0, rng.randbytes(6_000))))
    await driver.sync()
    for turn in range(4):
        new = driver.model.next_node
        await driver.apply(Op("create", (1, b"target.tmp", FILE, ROOT, 0, None)))
        await driver.apply(Op("write", (new, 0, rng.randbytes(6_000 + 900 * turn))))
        if turn % 2:
            await driver.sync()
        await driver.apply(Op("rename", (1, b"target.tmp", 1, b"target", 0)))
        await trio.sleep(1.5)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_file_replaced_by_rename_is_old_or_new_and_whole(share: float) -> None:
    total = changes_of(replace_by_rename)
    assert total > 40
    for number in range(1, total + 1):
        machine = Machine(number)
        threads = Reenters(number, share)
        threads.driver = machine.driver if share else None
        machine.life(lambda m=machine: rescued(m.driver), crash_at=number, threads=threads)
        machine.verify()


async def rescued(driver: Driver) -> None:
    """Reentering operations may take the names away under the script's feet."""
    try:
        await replace_by_rename(driver)
    except (FilesystemError, KeyError):
        await driver.sync()


def test_an_open_file_without_a_name_is_gone_after_the_crash() -> None:
    machine = Machine(3)

    async def history() -> None:
        driver = machine.driver
        await driver.apply(Op("create", (1, b"gone", FILE, ROOT, 0, None)))
        await driver.apply(Op("open", (2, False)))
        await driver.apply(Op("write", (2, 0, b"x" * 5_000)))
        await driver.sync()
        await driver.apply(Op("unlink", (1, b"gone")))
        await driver.sync()
        assert driver.world is not None
        assert driver.world.namespace.orphans() == [2]
        await driver.compare()

    machine.life(history, crash_at=None)
    assert machine.verify() == len(machine.driver.states) - 1
    machine.life(trio.lowlevel.checkpoint, crash_at=None)
    machine.verify()


# --- the tests can fail --------------------------------------------------------------------------


def caught(patch: Callable[[pytest.MonkeyPatch], None], seeds: range) -> bool:
    with pytest.MonkeyPatch.context() as broken:
        patch(broken)
        for seed in seeds:
            try:
                crashing_run(seed, lives=3)
            except (Exception, BaseExceptionGroup):  # noqa: BLE001  whatever says that it is broken
                return True
    return False


def without_fsync_of_packs(patch: pytest.MonkeyPatch) -> None:
    run = Inline.run

    async def skipping(self, kind, function, *args):
        name = getattr(function, "__name__", "")
        return None if name == "sync" else await run(self, kind, function, *args)

    patch.setattr(Inline, "run", skipping)
    run_reentering = Reenters.run

    async def skipping_too(self, kind, function, *args):
        name = getattr(function, "__name__", "")
        return None if name == "sync" else await run_reentering(self, kind, function, *args)

    patch.setattr(Reenters, "run", skipping_too)


def in_two_transactions(patch: pytest.MonkeyPatch) -> None:
    apply = Namespace.apply

    def torn(self, changes):
        segments, changes.segments = changes.segments, []
        apply(self, changes)
        changes.segments = segments
        apply(self, changes)

    patch.setattr(Namespace, "apply", torn)


def acknowledged_too_early(patch: pytest.MonkeyPatch) -> None:
    async def hurry(self):
        self._wanted.set()

    patch.setattr(Writeback, "commit", hurry)


@pytest.mark.parametrize(
    "mistake", [without_fsync_of_packs, in_two_transactions, acknowledged_too_early]
)
def test_a_mistake_is_noticed(mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert caught(mistake, range(40))
