"""What is special about remotes as trees; the rest is in the suite of trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from syncer.filters import Filters
from syncer.options import Mode, Options
from syncer.plan import Plan, make_plan
from syncer.remote_tree import RemoteTree, describe, mtime_text, parse_mtime
from syncer.remotes.errors import Changed, Unsupported
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import Capabilities, Entry, Kind, PageSink
from syncer.steps import Step, StepKind
from syncer.tree import ROOT, Metadata, Node, NodeKind, Tree
from tests.syncer import model
from tests.syncer.remote_trees import RemoteKind
from tests.syncer.tree_conformance import MTIME_NS, listed

NO_FILTERS = Filters.parse([], now_ns=0)


class Listing(MemoryRemote):
    """A remote that lists what it is given, as an object store or not."""

    def __init__(self, entries: Sequence[Entry], **capabilities: bool) -> None:
        super().__init__(MemoryServer(), "s3://bucket/")
        self._entries = entries
        self._has = Capabilities(**capabilities)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> Capabilities:
        return self._has

    async def list(self, key: bytes, sink: PageSink) -> None:
        for entry in self._entries:
            await sink([entry])


@given(st.integers(-(10**19), 10**20))
@example(-1)
@example(0)
def test_times_are_kept_to_the_nanosecond(ns: int) -> None:
    assert parse_mtime(mtime_text(ns)) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"1600000000.123456789", 1_600_000_000_123_456_789),
        (b"1600000000.5", 1_600_000_000_500_000_000),
        (b"1600000000", 1_600_000_000_000_000_000),
        (b"1600000000.1234567891", 1_600_000_000_123_456_789),
        (b"2020-09-13T12:26:40.123456789Z", 1_600_000_000_123_456_789),
        (b"2020-09-13T14:26:40+02:00", 1_600_000_000_000_000_000),
        (b"2020-09-13T12:26:40", 1_600_000_000_000_000_000),
        (b"1969-12-31T23:59:59.75Z", -250_000_000),
        (b"yesterday", None),
        (b"", None),
        (b"1e9", None),
        (b"\xff", None),
        (b"99999999999999999999999999999", None),
        (None, None),
    ],
)
def test_times_as_others_write_them(text: bytes | None, ns: int | None) -> None:
    assert parse_mtime(text) == ns


@given(st.binary(max_size=40))
def test_any_text_is_a_time_or_none(text: bytes) -> None:
    parse_mtime(text)


def test_metadata_as_rclone_spells_it() -> None:
    assert describe(Metadata(mode=0o640, uid=7, gid=8, mtime_ns=1_500_000_000)) == {
        "mtime": b"1.500000000",
        "mode": b"100640",
        "uid": b"7",
        "gid": b"8",
    }
    assert describe(Metadata()) == {}


async def test_names_that_no_path_can_hold_are_left_out_and_told_of() -> None:
    entries = [
        Entry(b"d/good", Kind.FILE),
        Entry(b"d/..", Kind.FILE),
        Entry(b"d/./", Kind.DIRECTORY),
        Entry(b"d//", Kind.DIRECTORY),
        Entry(b"d/nul\0", Kind.FILE),
        Entry(b"d/both", Kind.FILE),
        Entry(b"d/both/", Kind.DIRECTORY),
        Entry(b"d/device", Kind.OTHER),
    ]
    told: list[str] = []
    tree = RemoteTree(Listing(entries), warn=told.append)
    assert set(await listed(tree, b"d")) == {b"good", b"both"}
    assert (await listed(tree, b"d"))[b"both"].kind is NodeKind.FILE
    assert tree.left_out == 12  # twice listed
    assert len(told) == 2
    assert "6 entries of b'd'" in told[0]


async def test_listings_without_metadata_are_not_exact() -> None:
    said = {"mtime": b"5.000000001", "mode": b"100600", "uid": b"no number"}
    entries = [
        Entry(b"plain", Kind.FILE, size=3, mtime_ns=7, etag="a"),
        Entry(b"said", Kind.FILE, size=3, mtime_ns=7, etag="a", metadata=said),
    ]
    tree = RemoteTree(Listing(entries, metadata=True, write=True))
    nodes = await listed(tree, ROOT)
    assert not nodes[b"plain"].exact
    assert (nodes[b"plain"].mtime_ns, nodes[b"plain"].mode) == (7, None)
    assert nodes[b"said"].exact
    said_node = nodes[b"said"]
    assert (said_node.mtime_ns, said_node.mode, said_node.uid) == (5_000_000_001, 0o600, None)
    features = tree.features
    assert (features.mtime_resolution_ns, features.mode, features.owner) == (1, True, True)


async def test_a_node_of_elsewhere_is_no_version() -> None:
    server = model.make(model.Item(model.DIRECTORY, children={b"f": model.Item(model.FILE, b"x")}))
    tree = RemoteTree(MemoryRemote(server))
    with pytest.raises(Changed):
        await tree.read(b"f", Node(b"f", NodeKind.FILE, 1), 0, 1)
    with pytest.raises(Unsupported):
        await tree.stat(b"f/")


async def test_what_was_a_symlink_is_replaced_only_while_it_is_one() -> None:
    tree = RemoteTree(MemoryRemote(MemoryServer()))
    await tree.symlink(b"name", b"one", Metadata())
    old = await tree.stat(b"name")
    await tree.symlink(b"name", b"two", Metadata())
    with pytest.raises(Changed):
        await tree.write(b"name", Held(b"x"), Metadata(), old=old)
    await tree.write(b"name", Held(b"x"), Metadata(), old=await tree.stat(b"name"))
    assert (await tree.stat(b"name")).kind is NodeKind.FILE


# ---- with real servers ----


async def planned(source: Tree, target: Tree, options: Options) -> tuple[Plan, list[Step]]:
    steps: list[Step] = []

    async def sink(some: Sequence[Step]) -> None:
        await trio.lowlevel.checkpoint()
        steps.extend(some)

    return await make_plan(source, target, options, NO_FILTERS, sink), steps


SOURCE = model.Item(
    model.DIRECTORY,
    children={
        b"d": model.Item(
            model.DIRECTORY,
            children={
                b"f": model.Item(model.FILE, b"one", mtime_ns=MTIME_NS),
                b"empty": model.Item(model.FILE),
            },
        ),
        b"x": model.Item(model.FILE, b"some bytes", mode=0o600),
        b"same size": model.Item(model.FILE, b"abc"),
    },
)


@pytest.mark.parametrize("name", ["sftp", "smb", "s3", "azure", "gcs"])
async def test_a_second_sync_finds_nothing_to_do(name: str) -> None:
    """The times, and where they are kept the modes, come back as they were given."""
    source = RemoteTree(MemoryRemote(model.make(SOURCE)))
    options = Options(mode=Mode.MIRROR, force=True)
    async with RemoteKind(name).empty(None) as target:  # type: ignore[arg-type]
        _, steps = await planned(source, target, options)
        await model.carry_out(steps, source, target, options)
        plan, steps = await planned(source, target, options)
        assert not steps
        assert plan.equal == 4
        # The same size at another time, an extra name, and a file where a directory was.
        changed = replace(
            SOURCE,
            children={
                b"d": model.Item(model.FILE, b"no directory any more"),
                b"same size": model.Item(
                    model.FILE, b"xyz", mtime_ns=model.START_NS + 10 * model.SECOND
                ),
            },
        )
        source = RemoteTree(MemoryRemote(model.make(changed)))
        plan, steps = await planned(source, target, options)
        kinds = {step.path: step.kind for step in steps if step.kind is not StepKind.DELETE}
        kinds.pop(b"", None)
        assert kinds == {b"d": StepKind.REPLACE, b"same size": StepKind.COPY}
        assert plan.deletions == 3
        await model.carry_out(steps, source, target, options)
        _, steps = await planned(source, target, options)
        assert not steps
        assert set(await listed(target, ROOT)) == {b"d", b"same size"}


@pytest.mark.parametrize("name", ["s3", "azure", "gcs"])
async def test_object_stores_give_back_what_they_were_given(name: str) -> None:
    """From a store to a tree with times of its own: nothing is lost on the way."""
    source = RemoteTree(MemoryRemote(model.make(SOURCE)))
    options = Options(mode=Mode.MIRROR, force=True)
    back = MemoryServer()
    async with RemoteKind(name).empty(None) as store:  # type: ignore[arg-type]
        _, steps = await planned(source, store, options)
        await model.carry_out(steps, source, store, options)
        target = RemoteTree(MemoryRemote(back))
        _, steps = await planned(store, target, options)
        await model.carry_out(steps, store, target, options)
    ours, theirs = dict(model.paths(SOURCE)), dict(model.paths(model.found(back)))
    assert ours.keys() == theirs.keys()
    for path, item in ours.items():
        if item.kind is model.FILE:
            assert theirs[path] == item
