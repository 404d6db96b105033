"""Steps that move no bytes, between local folders: many in one hop, each for itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from syncer.local_files import LocalFiles
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.held import Held
from syncer.steps import Step, StepKind, StepState, TakenStep
from syncer.transfer_light import LightSteps
from syncer.tree import ROOT, Metadata
from tests.syncer.tree_conformance import listed

NOTHING = Metadata()


@pytest.fixture
async def trees(tmp_path: Path):
    trees = []
    for name in ("source", "target"):
        trees.append(await LocalTree.open(os.fsencode(tmp_path / name)))
        await trees[-1].mkdir(ROOT, NOTHING)
    yield trees
    for tree in trees:
        await tree.close()


def taken(steps: list[Step]) -> list[TakenStep]:
    return [TakenStep(number, step, 0, None) for number, step in enumerate(steps)]


async def test_what_is_done_and_what_is_left(trees: list[LocalTree]) -> None:
    source, target = trees
    await source.mkdir(b"d", Metadata(mode=0o751, mtime_ns=7, xattrs={b"user.x": b"1"}))
    await target.write(b"old", Held(b"old"), NOTHING)
    await target.write(b"changed", Held(b"was"), NOTHING)
    await target.write(b"in the way", Held(b"stays"), NOTHING)
    there = await listed(target, ROOT)
    await target.write(b"changed", Held(b"is now"), NOTHING)
    steps = [
        Step(StepKind.MKDIR, b"d"),
        Step(StepKind.MKDIR, b"d/e"),
        Step(StepKind.DELETE, b"old", old=there[b"old"]),
        Step(StepKind.DELETE, b"changed", old=there[b"changed"]),
        Step(StepKind.MKDIR, b"in the way"),
        Step(StepKind.MKDIR, b"replaced", old=there[b"changed"]),
        Step(StepKind.SYMLINK, b"link"),
        Step(StepKind.DIRECTORY_METADATA, b"d", source_path=b"d", node=await source.stat(b"d")),
    ]
    results = await LightSteps(source, target, Options(xattrs=True)).carry_out(taken(steps))
    states = [result and (result.number, result.state) for result in results]
    done = StepState.DONE
    assert states == [(0, done), (1, done), (2, done), None, None, None, None, (7, done)]
    assert set(await listed(target, ROOT)) == {b"d", b"changed", b"in the way"}
    made = await target.stat(b"d")
    assert (made.mode, made.mtime_ns) == (0o751, 7)
    assert await target.xattrs(b"d") == {b"user.x": b"1"}
    assert (await target.stat(b"d/e")).mode == 0o700  # until its metadata come


async def test_what_has_failed_before_is_left(trees: list[LocalTree]) -> None:
    again = TakenStep(1, Step(StepKind.MKDIR, b"d"), 1, None)
    assert await LightSteps(*trees, Options()).carry_out([again]) == [None]
    assert await listed(trees[1], ROOT) == {}


async def test_cancelled_it_ends_after_its_step(
    trees: list[LocalTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    reached, go_on, ended = trio.Event(), threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    real, made = LocalFiles.mkdir, []

    def mkdir(self: LocalFiles, path: bytes, metadata: Metadata) -> None:
        made.append(path)
        token.run_sync_soon(reached.set)
        assert go_on.wait(60)
        real(self, path, metadata)

    class Watched:
        """Tells when the thread that was left behind has ended."""

        def __getattr__(self, name: str) -> object:
            return getattr(target, name)

        async def wait(self, work, *args):
            def watched():
                try:
                    return work(*args)
                finally:
                    token.run_sync_soon(ended.set)

            return await target.wait(watched)

    monkeypatch.setattr(LocalFiles, "mkdir", mkdir)
    steps = taken([Step(StepKind.MKDIR, b"%d" % number) for number in range(10)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LightSteps(source, Watched(), Options()).carry_out, steps)
        await reached.wait()
        nursery.cancel_scope.cancel()
    go_on.set()
    await ended.wait()
    assert made == [b"0"]
