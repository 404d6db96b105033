"""One large local file: holes, pieces, checkpoints."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from syncer import linux, local_large
from syncer.local_bytes import Method, Ways
from syncer.local_copy import CopyItem
from syncer.local_large import Checkpoint, copy_large, discard
from syncer.local_parts import kept_name
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import Changed, Exists, Unreachable
from syncer.remotes.held import Held
from syncer.tree import ROOT, Metadata
from tests.syncer.tree_conformance import listed

MIB = 1 << 20
DATA = random.Random(1).randbytes(12 * MIB + 345)
OPTIONS = Options(durable=False)
NOTHING = Metadata()


@pytest.fixture
async def trees(tmp_path: Path):
    trees = []
    for name in ("source", "target"):
        tree = await LocalTree.open(os.fsencode(tmp_path / name))
        await tree.mkdir(ROOT, NOTHING)
        trees.append(tree)
    yield trees
    for tree in trees:
        await tree.close()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_large, "PIECE_MIN", MIB)
    monkeypatch.setattr(local_large, "PIECE_BYTES", MIB)
    monkeypatch.setattr(local_large, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(linux, "clone", _no_clone)


def _no_clone(*_: Any) -> None:
    raise OSError(95, "not here")


async def item_of(source: LocalTree, name: bytes = b"file") -> CopyItem:
    return CopyItem(name, name, await source.stat(name))


async def copied(target: LocalTree) -> bytes:
    node = await target.stat(b"file")
    return await target.read(b"file", node, 0, node.size)


def overwrite(path: bytes | Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"changed")


class Interrupted(Exception):
    """What stops a copy in these tests."""


async def interrupt(
    source: LocalTree, target: LocalTree, item: CopyItem, checkpoint: bytes | None = None
) -> bytes:
    """Copy until a checkpoint past the middle is saved, and break off; the checkpoint."""
    saved: list[bytes] = []
    enough = trio.Event()

    def save(data: bytes) -> None:
        saved.append(data)
        if json.loads(data)["offset"] > 6 * MIB:
            enough.set()

    moved = 0

    async def take(count: int) -> None:
        nonlocal moved
        moved += count
        await trio.lowlevel.checkpoint()
        if moved > 7 * MIB:
            await enough.wait()
            raise Interrupted

    with pytest.raises(Interrupted):
        await copy_large(source, target, item, OPTIONS, checkpoint=checkpoint, save=save, take=take)
    return saved[-1]


@pytest.mark.usefixtures("small_pieces")
async def test_goes_on_where_it_was(trees: list[LocalTree]) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), Metadata(mtime_ns=5))
    item = await item_of(source)
    point = await interrupt(source, target, item)
    assert await listed(target, ROOT) == {}
    assert len(os.listdir(target.root.root)) == 1
    counted: list[int] = []
    outcome = await copy_large(
        source, target, item, OPTIONS, checkpoint=point, moved=counted.append
    )
    assert outcome.bytes_copied == sum(counted) == len(DATA) - json.loads(point)["offset"]
    assert await copied(target) == DATA
    assert (await target.stat(b"file")).mtime_ns == 5
    assert os.listdir(target.root.root) == [b"file"]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("spoil", ["bytes", "length", "gone", "source", "link", "nonsense", "off"])
async def test_begins_anew_where_it_cannot_go_on(trees: list[LocalTree], spoil: str) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    item = await item_of(source)
    point = await interrupt(source, target, item)
    part = Path(os.fsdecode(target.root.root), json.loads(point)["temporary"])
    content, options = DATA, OPTIONS
    match spoil:
        case "bytes":
            overwrite(part, 3 * MIB)
        case "length":
            os.truncate(part, 5 * MIB)
        case "gone":
            os.unlink(part)
        case "source":
            content = DATA[::-1]
            await source.write(b"file", Held(content), NOTHING)
            item = await item_of(source)
        case "link":  # nobody writes through what somebody put there
            victim = part.parent.parent / "victim"
            os.rename(part, victim)
            os.symlink(victim, part)
        case "nonsense":
            point = b'{"temporary": "../../etc/passwd", "offset": 1}'
        case "off":
            options = Options(durable=False, resume=False)
    outcome = await copy_large(source, target, item, options, checkpoint=point)
    assert outcome.bytes_copied == len(DATA)
    assert await copied(target) == content
    left = set(os.listdir(target.root.root)) - {b"file"}
    assert left <= {os.fsencode(part.name)}
    assert bool(left) == (spoil in {"nonsense", "off"})  # it was not told of
    if spoil == "link":
        assert victim.read_bytes()[: 6 * MIB] == DATA[: 6 * MIB]


@pytest.mark.usefixtures("small_pieces")
async def test_interrupted_again_and_again(trees: list[LocalTree]) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    item = await item_of(source)
    point = await interrupt(source, target, item)

    async def take(_: int) -> None:
        await trio.lowlevel.checkpoint()
        raise Interrupted

    with pytest.raises(Interrupted):
        await copy_large(source, target, item, OPTIONS, checkpoint=point, take=take)
    await copy_large(source, target, item, OPTIONS, checkpoint=point)
    assert await copied(target) == DATA


@pytest.mark.usefixtures("small_pieces")
async def test_a_part_dies_with_its_process_until_a_checkpoint_has_told_of_it(
    trees: list[LocalTree],
) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    saved: list[str] = []
    seen: list[tuple[int, str]] = []
    news = trio.Event()
    news.set()  # there is nothing to tell of yet

    def save(point: bytes) -> None:
        saved.append(json.loads(point)["temporary"])
        news.set()

    async def take(_: int) -> None:
        nonlocal news
        await news.wait()
        if len(saved) < 3:
            news = trio.Event()
        parts = [os.fsdecode(name) for name in os.listdir(target.root.root)]
        seen.extend((len(saved), name) for name in parts)

    await copy_large(source, target, await item_of(source), OPTIONS, take=take, save=save)
    assert len(set(saved)) == 1
    early = {name for told, name in seen if told <= 1}
    assert early
    assert saved[0] not in early
    assert {name for told, name in seen if told >= 3} == {saved[0]}


@pytest.mark.usefixtures("small_pieces")
async def test_a_discarded_copy_leaves_nothing(trees: list[LocalTree]) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    point = await interrupt(source, target, await item_of(source))
    await discard(target, b"file", point)
    assert os.listdir(target.root.root) == []
    await discard(target, b"file", point)


async def test_the_source_changes_between_two_pieces(
    trees: list[LocalTree], small_pieces: None
) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    item = await item_of(source)
    changed = False

    async def take(_: int) -> None:
        nonlocal changed
        if not changed:
            overwrite(os.path.join(source.root.root, b"file"), 0)
            changed = True
        await trio.lowlevel.checkpoint()

    with pytest.raises(Changed):
        await copy_large(source, target, item, OPTIONS, take=take, save=lambda _: None)
    assert os.listdir(target.root.root) == []


async def test_a_cloned_file_is_one_call(
    trees: list[LocalTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)

    def clone(to: int, of: int) -> None:
        os.pwrite(to, os.pread(of, len(DATA), 0), 0)

    monkeypatch.setattr(linux, "clone", clone)
    outcome = await copy_large(source, target, await item_of(source), OPTIONS)
    assert outcome == (None, Method.REFLINK, len(DATA))
    assert await copied(target) == DATA


async def test_cancelled_within_a_piece(
    trees: list[LocalTree], small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    reached, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    real = Ways.copy
    pieces = 0

    def copy(self: Ways, *args: Any) -> Method:
        nonlocal pieces
        pieces += 1
        token.run_sync_soon(reached.set)
        assert go_on.wait(60)
        return real(self, *args)

    monkeypatch.setattr(Ways, "copy", copy)
    item = await item_of(source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy_large, source, target, item, OPTIONS)
        await reached.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert pieces == 1
    assert os.listdir(target.root.root) == []


async def test_what_is_there_stays(trees: list[LocalTree]) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)
    old = await target.write(b"file", Held(b"old"), NOTHING)
    item = await item_of(source)
    with pytest.raises(Exists):
        await copy_large(source, target, item, OPTIONS)
    await target.write(b"file", Held(b"newer"), NOTHING)
    with pytest.raises(Changed):
        await copy_large(source, target, item._replace(old=old), OPTIONS)
    assert await copied(target) == b"newer"
    assert os.listdir(target.root.root) == [b"file"]


@pytest.mark.usefixtures("small_pieces")
async def test_a_disk_that_fails_when_a_checkpoint_is_made(
    trees: list[LocalTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = trees
    await source.write(b"file", Held(DATA), NOTHING)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    taken = 0

    async def wait(count: int) -> None:
        nonlocal taken
        taken += count
        if taken > 2 * MIB:
            await trio.sleep_forever()  # the failure ends it
        await trio.lowlevel.checkpoint()

    with pytest.raises(Unreachable):
        await copy_large(
            source, target, await item_of(source), OPTIONS, take=wait, save=lambda _: None
        )
    assert os.listdir(target.root.root) == []


@given(st.binary(max_size=60) | st.text().map(lambda text: json.dumps([text]).encode()))
def test_what_is_no_checkpoint(data: bytes) -> None:
    assert Checkpoint.decode(data) is None


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers())
def test_checkpoints_come_back(offset: int, size: int, mtime_ns: int) -> None:
    point = Checkpoint(kept_name().decode(), offset, "ab" * 32, size, mtime_ns, 7, 8)
    assert Checkpoint.decode(point.encode()) == point
    for field, value in (("temporary", "/etc/passwd"), ("offset", -1), ("offset", "1")):
        assert Checkpoint.decode(point._replace(**{field: value}).encode()) is None
