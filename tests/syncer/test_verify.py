"""Comparing two trees."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer import verify as verifying
from syncer.filters import Filters
from syncer.options import Options
from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import Denied, Unreachable
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.verify import Difference, Verified, What, same_bytes, verify
from tests.syncer import model
from tests.syncer.model import DIRECTORY, FILE, SYMLINK, TREES, Item, paths

NO_FILTERS = Filters.parse([], now_ns=0)


def tree_on(server: MemoryServer) -> RemoteTree:
    return RemoteTree(MemoryRemote(server))


async def compared(
    one: MemoryServer, other: MemoryServer, *, metadata: bool = False
) -> tuple[Verified, set[Difference]]:
    told: list[Difference] = []

    async def sink(difference: Difference) -> None:
        await trio.lowlevel.checkpoint()
        told.append(difference)

    verified = await verify(
        tree_on(one), tree_on(other), Options(), NO_FILTERS, sink, metadata=metadata
    )
    assert verified.count == len(told) == len(set(told))
    assert set(verified.differences) <= set(told)
    assert len(verified.differences) == min(len(told), verifying.DIFFERENCES_KEPT)
    return verified, set(told)


def kinds_of(differences: set[Difference]) -> dict[bytes, What]:
    return {each.path: each.what for each in differences}


def expected(one: Item, other: Item, *, metadata: bool) -> dict[bytes, What]:
    """How two directories differ."""
    ours, theirs = dict(paths(one)), dict(paths(other))
    found = {}
    for path in ours.keys() | theirs.keys():
        a, b = ours.get(path), theirs.get(path)
        if a is None or b is None:
            found[path] = What.MISSING if b is None else What.EXTRA
        elif a.kind is not b.kind:
            found[path] = What.KIND
        elif a.kind is FILE and len(a.data) != len(b.data):
            found[path] = What.SIZE
        elif a.kind is FILE and a.data != b.data:
            found[path] = What.CONTENT
        elif a.kind is SYMLINK and a.target != b.target:
            found[path] = What.TARGET
        elif metadata and a.kind is not SYMLINK and (a.mode, a.mtime_ns) != (b.mode, b.mtime_ns):
            found[path] = What.METADATA
    return found


@given(TREES, TREES, st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_difference_is_found(one: Item, other: Item, metadata: bool) -> None:
    async def check() -> None:
        verified, told = await compared(model.make(one), model.make(other), metadata=metadata)
        assert kinds_of(told) == expected(one, other, metadata=metadata)
        assert verified.alike is not bool(told)

    trio.run(check)


@given(TREES)
@settings(max_examples=50, deadline=None)
def test_a_tree_is_like_itself(tree: Item) -> None:
    async def check() -> None:
        verified, _ = await compared(model.make(tree), model.make(tree), metadata=True)
        assert verified.alike
        assert verified.files == model.files(tree)
        assert verified.bytes_read == sum(len(each.data) for _, each in paths(tree))

    trio.run(check)


@pytest.mark.parametrize("flipped", [0, 4 << 20, (9 << 20) + 1])
async def test_one_byte_anywhere_is_found(flipped: int) -> None:
    data = bytes(range(256)) * ((9 << 20) // 256) + b"xy"
    other = bytearray(data)
    other[flipped] ^= 1
    trees = [Item(DIRECTORY, children={b"f": Item(FILE, each)}) for each in (data, bytes(other))]
    _, told = await compared(model.make(trees[0]), model.make(trees[1]))
    assert kinds_of(told) == {b"f": What.CONTENT}
    verified, told = await compared(model.make(trees[0]), model.make(trees[0]))
    assert (verified.alike, verified.bytes_read) == (True, len(data))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("method", ["list", "read"])
async def test_what_cannot_be_read_did_not_verify(side: int, method: str) -> None:
    tree = Item(
        DIRECTORY,
        children={
            b"d": Item(DIRECTORY, children={b"f": Item(FILE, b"x")}),
            b"e": Item(DIRECTORY, children={b"f": Item(FILE, b"x")}),
        },
    )
    servers = model.make(tree), model.make(tree)

    async def refuse(asked: str, key: bytes) -> None:
        if asked == method and key.startswith(b"d/"):
            raise Denied("not yours")

    servers[side].before_request = refuse
    verified, told = await compared(*servers)
    path = b"d" if method == "list" else b"d/f"
    assert kinds_of(told) == {path: What.UNREADABLE}
    assert not verified.alike
    assert verified.counts[What.UNREADABLE] == 1


async def test_the_summary_is_bounded() -> None:
    many = {b"f%d" % number: Item(FILE, b"x") for number in range(verifying.DIFFERENCES_KEPT + 50)}
    verified, told = await compared(
        model.make(Item(DIRECTORY, children=many)), model.make(Item(DIRECTORY))
    )
    assert len(told) == verified.counts[What.MISSING] == len(many)
    assert len(verified.differences) == verifying.DIFFERENCES_KEPT


async def test_an_error_while_others_read_is_raised_once() -> None:
    data = bytes(40 << 20)
    server = model.make(Item(DIRECTORY, children={b"f": Item(FILE, data)}))
    asked = 0

    async def break_later(method: str, key: bytes) -> None:
        nonlocal asked
        if method == "read":
            asked += 1
            if asked > 3:
                raise Unreachable("away")

    good = model.make(Item(DIRECTORY, children={b"f": Item(FILE, data)}))
    trees = tree_on(good), tree_on(server)
    nodes = [await tree.stat(b"f") for tree in trees]
    server.before_request = break_later
    with pytest.raises(Unreachable):
        await same_bytes(trees[0], b"f", nodes[0], trees[1], b"f", nodes[1])
