"""Histories of projections with failures, restarts and power cuts, compared with what must hold."""

from __future__ import annotations

import random

import apsw
import pytest

from blockstore.errors import OrbitError
from tests.ghostd.world import run
from tests.projections.history import History
from tests.simdisk import SimulatedCrash, abandon


def life(history: History, *, steps: int, first: bool, trouble: float) -> None:
    """One life: steps among failures, then a good end."""

    async def main() -> None:
        async with world.running():
            if first:
                await history.attach()
            history.trouble(trouble)
            for _ in range(steps):
                await history.step()
                if history.rng.random() < 0.1:
                    await history.settle()
                    history.trouble(trouble)
            await history.settle()
            await world.check()

    world = history.open()
    try:
        run(main, history.seed)
    finally:
        world.close()


def crashing_life(history: History, *, steps: int, trouble: float) -> bool:
    """A life without changes here, ended by a power cut; whether it came to that."""
    rng = history.rng
    disk = history.disk

    async def main() -> None:
        async with world.running():
            history.trouble(trouble)
            disk.crash_at(rng.choice((1, 3, 10, 30, 100)))
            for _ in range(steps):
                await history.step(local=False)

    world = history.open()
    try:
        run(main, history.seed)
    except BaseException as error:
        if not disk.crashed or not _only_the_crash(error):
            raise
    crashed = disk.crashed
    history.disk = disk.crash()
    abandon(world.close)
    return crashed


def _only_the_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_only_the_crash(inner) for inner in error.exceptions)
    # What comes to a loop that is ending finds its nurseries and remotes gone.
    late = isinstance(error, AssertionError) and error.args in {(), ("the remote has been closed",)}
    return late or isinstance(error, SimulatedCrash | OrbitError | apsw.Error)


def final(history: History) -> None:
    """The remote is well again."""

    async def main() -> None:
        async with world.running():
            await history.converge()
            await history.settle()
            await world.check()

    world = history.open()
    try:
        run(main, history.seed)
    finally:
        world.close()


def tell(seed: int, *, lives: int, steps: int) -> History:
    """One history; every choice follows from the seed."""
    history = History(seed)
    rng = random.Random(seed)
    try:
        for number in range(lives):
            trouble = rng.choice((0.0, 0.1, 0.4))
            life(history, steps=rng.randint(1, steps), first=number == 0, trouble=trouble)
            if rng.random() < 0.5:
                crashing_life(history, steps=steps, trouble=trouble)
        final(history)
    except BaseException as error:
        for line in history.log[-60:]:
            error.add_note(line)
        raise
    return history


@pytest.mark.parametrize("seed", range(50))
def test_histories(seed: int) -> None:
    tell(seed, lives=3, steps=40)


def test_the_histories_do_what_they_are_for() -> None:
    """Most reads succeed, some are refused, names change on both sides."""
    done = dict.fromkeys(("reads", "refused", "listings", "local"), 0)
    for seed in range(10):
        for what, count in tell(seed, lives=2, steps=30).done.items():
            done[what] += count
    assert done["reads"] > done["refused"] > 20
    assert min(done["listings"], done["local"]) > 50


@pytest.mark.soak
@pytest.mark.parametrize("block", range(100))
def test_many_histories(block: int) -> None:
    for seed in range(1_000 + block * 50, 1_050 + block * 50):
        tell(seed, lives=4, steps=60)


@pytest.mark.parametrize("seed", [10_741])
def test_histories_that_failed(seed: int) -> None:
    """A directory that became one of ours while one name of it was asked for."""
    tell(seed, lives=4, steps=60)
