"""Flushes on demand: shared, complete, and nobody's but the daemon's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from blockstore.errors import StorageFailed
from ghostd.flusher import Flusher


class Steps:
    """Two steps that wait at a gate and remember how often they were taken."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.taken: list[str] = []
        self.error: StorageFailed | None = None

    async def kernel(self) -> None:
        self.taken.append("kernel")
        await self.gate.wait()

    async def commit(self) -> None:
        self.taken.append("commit")
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Flusher, Steps, trio.Nursery]]:
    steps = Steps()
    flusher = Flusher(steps.kernel, steps.commit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flusher.run)
        yield flusher, steps, nursery
        nursery.cancel_scope.cancel()


async def test_who_comes_while_one_runs_shares_the_next_one() -> None:
    async with running() as (flusher, steps, _):
        async with trio.open_nursery() as callers:
            callers.start_soon(flusher.flush)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):
                callers.start_soon(flusher.flush)
            await trio.testing.wait_all_tasks_blocked()
            assert steps.taken == ["kernel"]
            steps.gate.set()
        assert steps.taken == ["kernel", "commit"] * 2


async def test_it_goes_on_when_those_who_asked_have_left() -> None:
    async with running() as (flusher, steps, _):
        async with trio.open_nursery() as callers:
            callers.start_soon(flusher.flush)
            await trio.testing.wait_all_tasks_blocked()
            callers.cancel_scope.cancel()
        assert steps.taken == ["kernel"]
        steps.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert steps.taken == ["kernel", "commit"]


async def test_a_failure_is_told_to_its_callers_and_the_next_one_begins_anew() -> None:
    async with running() as (flusher, steps, _):
        steps.gate.set()
        steps.error = StorageFailed("broken")
        with pytest.raises(StorageFailed, match="broken"):
            await flusher.flush()
        steps.error = None
        await flusher.flush()
        assert steps.taken == ["kernel", "commit"] * 2
