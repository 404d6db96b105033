"""What is told of the namespace's size: on a real disk, with real commits."""

from __future__ import annotations

import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from blockstore.disk import OsDisk
from ghostd.census import Census, Totals
from tests.ghostd.world import ROOT, World

WAIT_S = 20.0  # for what happens at once, unless something is broken


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(OsDisk(), tmp_path)
    async with world.running():
        yield world
    world.close()


@pytest.fixture
def census(world: World) -> Census:
    return Census(world.namespace, lambda: world.tree.committed_epoch, rest=0)


async def test_counts_what_was_committed(world: World, census: Census) -> None:
    assert census.totals(WAIT_S) == Totals(0, 0, 0, 0)
    folder = world.fs.create(1, b"d", stat.S_IFDIR | 0o755, ROOT)
    file = world.fs.create(folder.ino, b"f", stat.S_IFREG | 0o644, ROOT)
    world.fs.create(1, b"l", stat.S_IFLNK | 0o777, ROOT, target=b"d")
    await world.fs.write(file.ino, 1 << 20, b"x" * 5_000)
    assert census.totals(WAIT_S) == Totals(0, 0, 0, 0)
    await world.writeback.commit()
    assert census.totals(WAIT_S) == Totals(2, 1, 0, 5_000)
    world.fs.unlink(1, b"l")
    await world.writeback.commit()
    assert census.totals(WAIT_S) == Totals(1, 1, 0, 5_000)


async def test_a_stuck_count_keeps_nobody_waiting(
    world: World, census: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, going_on = world.namespace.snapshot, threading.Event()

    def stuck() -> apsw.Connection:
        assert going_on.wait(WAIT_S)
        return snapshot()

    monkeypatch.setattr(world.namespace, "snapshot", stuck)
    assert census.totals(0.01) is None
    assert census.totals(0.01) is None
    going_on.set()
    assert census.totals(WAIT_S) == Totals(0, 0, 0, 0)


async def test_counts_no_more_when_closed(world: World, census: Census) -> None:
    census.close()
    assert census.totals(WAIT_S) is None
