"""What a walk tells, whatever it costs: order, completeness, filters, symlinks, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer import walk_local
from syncer.diff import rules_of
from syncer.filters import Filters
from syncer.local_tree import LocalTree
from syncer.options import Mode, Options, Symlinks, Verb
from syncer.plan import Plan, make_plan
from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import Denied, Missing, RemoteError
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.steps import Step, StepKind
from syncer.tree import Features, Node, NodeKind, PageSink, Tree
from syncer.walk import walk
from syncer.walk_events import Enter, Equal, Event, Leave, Pair, Problem, Side
from syncer.walk_scratch import Links, Names, Queue, Scratch
from syncer.walk_twin import Dressed, Looked, Twin
from tests.syncer import model
from tests.syncer.model import DIRECTORY, FILE, TREES, Item, paths

NO_FILTERS = Filters.parse([], now_ns=0)
MIRROR = Options(mode=Mode.MIRROR, force=True)


def tree_on(server: MemoryServer) -> RemoteTree:
    return RemoteTree(MemoryRemote(server))


async def walked(
    source: Tree, target: Tree, options: Options = MIRROR, filters: Filters = NO_FILTERS
) -> list[Event]:
    events: list[Event] = []

    async def sink(some: Sequence[Event]) -> None:
        await trio.lowlevel.checkpoint()
        assert some
        events.extend(some)

    rules = rules_of(Verb.SYNC, options, source.features, target.features)
    await walk(source, target, options, rules, filters, sink)
    return events


def check_order(events: Sequence[Event]) -> None:
    """Enter and Leave nest; pairs lie in what was entered last, in order; so do subdirectories."""
    stack: list[bytes] = []
    last: list[bytes] = []
    for event in events:
        if isinstance(event, Enter):
            path = event.directory.path
            if stack:
                assert path.rpartition(b"/")[0] == stack[-1]
                assert path > last[-1] or last[-1] == b""
                last[-1] = path
            stack.append(path)
            last.append(b"")
        elif isinstance(event, Leave):
            assert stack.pop() == event.directory.path
            last.pop()
        elif isinstance(event, Pair):
            assert event.path.rpartition(b"/")[0] == stack[-1]
    assert not stack


@given(TREES, TREES)
@settings(max_examples=80, deadline=None)
def test_every_name_is_told_once(source: Item, target: Item) -> None:
    async def check() -> None:
        events = await walked(tree_on(model.make(source)), tree_on(model.make(target)))
        check_order(events)
        told: dict[bytes, tuple[Node | None, Node | None]] = {}
        for event in events:
            pair = event.directory if isinstance(event, Enter) else event
            if isinstance(event, Enter | Pair):
                assert pair.path not in told
                told[pair.path] = pair.source, pair.destination
        ours, theirs = dict(paths(source)), dict(paths(target))
        assert told.keys() == ours.keys() | theirs.keys()
        for path, nodes in told.items():
            for node, item in zip(nodes, (ours.get(path), theirs.get(path)), strict=True):
                assert (node is None) == (item is None)
                if node is not None and item is not None:
                    assert (node.kind, node.size) == (item.kind, len(item.data))

    trio.run(check)


@given(TREES, st.data())
@settings(max_examples=60, deadline=None)
def test_any_listing_may_fail(source: Item, data: st.DataObject) -> None:
    """A directory that fails is told as such, and the others as if nothing had been."""
    folders = sorted(p for p, item in paths(source) if p and item.kind is DIRECTORY)
    if not folders:
        return
    broken = data.draw(st.sampled_from(folders))
    side = data.draw(st.sampled_from(Side))

    async def refuse(method: str, key: bytes) -> None:
        if method == "list" and key == broken + b"/":
            raise Denied("not yours")

    async def check() -> None:
        servers = model.make(source), model.make(source)
        servers[side is Side.DESTINATION].before_request = refuse
        events = await walked(tree_on(servers[0]), tree_on(servers[1]))
        check_order(events)
        problems = [event for event in events if isinstance(event, Problem)]
        assert [(each.path, each.side) for each in problems] == [(broken, side)]
        complete = {e.directory.path: e.complete for e in events if isinstance(e, Leave)}
        assert {path for path, ok in complete.items() if not ok} == {broken}
        assert not [e for e in events if isinstance(e, Pair) and e.path.startswith(broken + b"/")]

    trio.run(check)


@pytest.mark.parametrize("side", [0, 1])
async def test_a_root_that_cannot_be_listed_ends_the_walk(side: int) -> None:
    servers = MemoryServer(), MemoryServer()

    async def refuse(method: str, key: bytes) -> None:
        if method == "list":
            raise Denied("not yours")

    servers[side].before_request = refuse
    with pytest.raises(Denied):
        await walked(tree_on(servers[0]), tree_on(servers[1]))


async def test_what_goes_at_the_destination_meanwhile_is_no_error() -> None:
    inner = Item(DIRECTORY, children={b"d": Item(DIRECTORY, children={b"f": Item(FILE, b"x")})})
    servers = model.make(inner), model.make(inner)

    async def gone(method: str, key: bytes) -> None:
        if method == "list" and key == b"d/":
            raise Missing("gone")

    servers[1].before_request = gone
    events = await walked(tree_on(servers[0]), tree_on(servers[1]))
    assert not [event for event in events if isinstance(event, Problem)]
    entered = {e.directory.path: e.directory for e in events if isinstance(e, Enter)}
    assert entered[b"d"].destination is None
    assert all(event.complete for event in events if isinstance(event, Leave))


# ---- what is left out ----


async def local(root: Path) -> LocalTree:
    return await LocalTree.open(os.fsencode(root), durable=False)


def kept(events: Sequence[Event]) -> dict[bytes, bool]:
    return {event.path: event.kept for event in events if isinstance(event, Pair)}


async def test_ignore_files_hold_where_they_lie(roots: tuple[Path, Path]) -> None:
    source, target = roots
    for root in roots:
        for folder in ("a", "b"):
            (root / folder).mkdir()
            (root / folder / "x.o").write_bytes(b"x")
            (root / folder / "x.c").write_bytes(b"x")
    (source / "a" / ".orbitignore").write_bytes(b"*.o\n")
    events = await walked(await local(source), await local(target))
    assert kept(events)[b"a/x.o"] is False
    assert kept(events)[b"a/x.c"] is True
    assert kept(events)[b"b/x.o"] is True


async def test_an_ignore_file_that_cannot_be_read_hides_its_directory(
    roots: tuple[Path, Path],
) -> None:
    source, target = roots
    for root in roots:
        (root / "a").mkdir()
        (root / "a" / "x").write_bytes(b"x")
    (source / "a" / ".orbitignore").write_bytes(b"x" * ((1 << 20) + 1))
    events = await walked(await local(source), await local(target))
    assert [event.path for event in events if isinstance(event, Problem)] == [b"a"]
    assert kept(events) == {}


async def test_without_recursion_directories_are_left_alone(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "d").mkdir()
    (source / "d" / "f").write_bytes(b"x")
    (source / "f").write_bytes(b"x")
    events = await walked(await local(source), await local(target), Options(recursive=False))
    assert kept(events) == {b"d": False, b"f": True}


# ---- symlinks ----


async def test_symlinks_are_followed_inside_the_source_only(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "real").mkdir()
    (source / "real" / "f").write_bytes(b"data")
    (source / "real" / "up").symlink_to("..")
    (source / "folder").symlink_to("real")
    (source / "file").symlink_to("./folder/f")
    (source / "twice").symlink_to("file")
    (source / "out").symlink_to("../target")
    (source / "root").symlink_to("/etc")
    (source / "gone").symlink_to("nothing")
    (source / "circle").symlink_to("circle")
    (source / "here").symlink_to("real/../real/./f")
    events = await walked(
        await local(source), await local(target), Options(symlinks=Symlinks.FOLLOW)
    )
    told = {e.path: (e.source_path, e.source) for e in events if isinstance(e, Pair) and e.kept}
    assert {path: where for path, (where, _) in told.items()} == {
        b"real/f": b"real/f",
        b"folder/f": b"real/f",
        b"file": b"real/f",
        b"twice": b"real/f",
        b"here": b"real/f",
    }
    for path, (_, node) in told.items():
        assert node is not None
        assert (node.kind, node.size, node.name) == (FILE, 4, path.rpartition(b"/")[2])
    assert {event.path for event in events if isinstance(event, Problem)} == {
        b"real/up",
        b"folder/up",
        b"out",
        b"root",
        b"gone",
        b"circle",
    }
    assert not any(value for path, value in kept(events).items() if path not in told)


# ---- two nodes of one name ----


class Fixed:
    """A tree that lists what it is given. For reading only what a walk reads."""

    label = "fixed:"

    def __init__(
        self, listing: Callable[[bytes], Iterator[list[Node]]], features: Features | None = None
    ) -> None:
        self._listing = listing
        self.features = features or Features()

    async def stat(self, path: bytes) -> Node:
        await trio.lowlevel.checkpoint()
        return Node(b"", NodeKind.DIRECTORY)

    async def list(self, path: bytes, sink: PageSink) -> None:
        for page in self._listing(path):
            await sink(page)
            await trio.lowlevel.checkpoint()


def fixed(*names: bytes, **features: bool) -> Fixed:
    nodes = [Node(name, FILE, 1, 5) for name in names]
    return Fixed(lambda path: iter([nodes]), Features(**features))  # type: ignore[arg-type]


async def test_names_that_are_one_there() -> None:
    source, target = fixed(b"File", b"file", b"other"), fixed(b"FILE", b"Other")
    target.features = Features(case_sensitive=False)
    events = await walked(source, target)  # type: ignore[arg-type]
    assert [event.path for event in events if isinstance(event, Problem)] == [b"file"]
    pairs = [event for event in events if isinstance(event, Pair)]
    assert [
        (pair.path, pair.source and pair.source.name, pair.destination and pair.destination.name)
        for pair in pairs
    ] == [(b"File", b"File", b"FILE"), (b"other", b"other", b"Other")]


async def test_of_doubles_the_first_counts() -> None:
    events = await walked(fixed(b"a", b"a", b"b"), fixed(b"a"))  # type: ignore[arg-type]
    assert [event.path for event in events if isinstance(event, Problem)] == [b"a"]
    assert [event.path for event in events if isinstance(event, Pair)] == [b"a", b"b"]


# ---- ahead ----


async def test_listings_run_ahead_of_a_far_server_and_are_bounded() -> None:
    """The first ones are held back until as many as may be are on their way."""
    width = 100
    running = peak = 0
    full = trio.Event()
    tree = Item(
        DIRECTORY,
        children={b"d%02d" % number: Item(DIRECTORY) for number in range(width)},
    )
    server = model.make(tree)

    async def wait(method: str, key: bytes) -> None:
        nonlocal running, peak
        if method == "list" and key:
            running += 1
            peak = max(peak, running)
            if running == 16:
                full.set()
            await full.wait()
            running -= 1

    server.before_request = wait
    source = RemoteTree(MemoryRemote(server), round_trip_s=0.04)
    events = await walked(source, tree_on(MemoryServer()))
    assert peak == 16
    assert sum(isinstance(event, Enter) for event in events) == width + 1


# ---- memory ----


def synthetic(entries: int, folders: int) -> Fixed:
    """`folders` directories of `entries` files each, in no order, made when they are listed."""

    def listing(path: bytes) -> Iterator[list[Node]]:
        if not path and folders:
            yield [Node(b"d%06d" % number, NodeKind.DIRECTORY) for number in range(folders)]
            return
        step = 7_919  # prime: every name once, shuffled
        for start in range(0, entries, 1_000):
            yield [
                Node(b"file %08d" % (number * step % entries), FILE, 10, 5, token=(number, number))
                for number in range(start, min(start + 1_000, entries))
            ]

    return Fixed(listing)


async def measured(source: Fixed, target: Fixed) -> tuple[Plan, int, int]:
    """The plan, how many steps the sink got, and the peak of memory (bytes)."""
    steps = 0

    async def sink(some: Sequence[Step]) -> None:
        nonlocal steps
        await trio.lowlevel.checkpoint()
        steps += len(some)

    tracemalloc.start()
    try:
        plan = await make_plan(source, target, MIRROR, NO_FILTERS, sink)  # type: ignore[arg-type]
        return plan, steps, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_a_large_directory_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Names.__init__, "__defaults__", (1_000,))
    monkeypatch.setattr("syncer.walk_scratch._ROWS", 500)
    small, _, small_peak = await measured(synthetic(4_000, 0), synthetic(2_000, 0))
    large, steps, large_peak = await measured(synthetic(16_000, 0), synthetic(8_000, 0))
    assert (small.files, large.files) == (4_000, 16_000)
    assert (large.equal, large.steps[StepKind.COPY]) == (8_000, 8_000)
    assert steps == sum(large.steps.values())
    assert large_peak < small_peak + (1 << 20)  # a node has half a kilobyte


_ALONE = """
import resource, sys, trio
from syncer.plan import make_plan
from tests.syncer.test_walk import MIRROR, NO_FILTERS, synthetic

async def main(entries, folders):
    async def sink(steps):
        await trio.lowlevel.checkpoint()

    trees = [synthetic(entries, folders) for _ in range(2)]
    plan = await make_plan(*trees, MIRROR, NO_FILTERS, sink)
    print(plan.equal, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.soak
@pytest.mark.parametrize(("entries", "folders"), [(1_000_000, 0), (1_000, 1_000)])
def test_a_million_entries_do_not_fill_memory(entries: int, folders: int) -> None:
    """In a process of its own, whose peak is that of the walk."""

    def run(*numbers: int) -> tuple[int, int]:
        command = [sys.executable, "-c", _ALONE, *map(str, numbers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        equal, peak_kib = done.stdout.split()
        return int(equal), int(peak_kib)

    _, small_kib = run(1_000, 10)
    equal, large_kib = run(entries, folders)
    assert equal == 1_000_000
    assert large_kib < small_kib + 48 * 1024


async def test_many_directories_do_not_fill_memory() -> None:
    plan, _, peak = await measured(synthetic(50, 200), synthetic(100, 0))
    assert plan.files == 10_000
    assert plan.deletions == 100
    assert peak < 12 << 20


NAMED = st.lists(st.binary(min_size=1, max_size=3), max_size=60)


@given(NAMED, st.integers(1, 20), st.booleans())
def test_scratch_sorts_like_memory(names: list[bytes], limit: int, fold: bool) -> None:
    def folded(name: bytes) -> bytes:
        return name.lower()

    scratch = Scratch()
    found = Names(scratch, folded if fold else None, nodes_max=limit)
    nodes = [
        Node(name, FILE, size, token=(size, name), checksum=None) for size, name in enumerate(names)
    ]
    for start in range(0, len(nodes), 7):
        found.add(nodes[start : start + 7])
    assert len(found) == len(nodes)
    assert (found.in_memory is None) == (len(nodes) > limit)
    key = (lambda node: (node.name.lower(), node.size)) if fold else (lambda n: (n.name, n.size))
    grouped = list(found.groups())
    assert [node for _, group in grouped for node in group] == sorted(nodes, key=key)
    assert len({name for name, _ in grouped}) == len(grouped)
    found.clear()
    assert list(found.groups()) == []
    scratch.close()


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(1, 10))
def test_a_queue_keeps_its_order(does: list[int], limit: int) -> None:
    scratch = Scratch()
    queue, expected = Queue(scratch, values_max=limit), []
    for number, what in enumerate(does):
        if what:
            queue.add(number)
            expected.append(number)
        else:
            assert queue.peek(3)[:3] == expected[:3]
            assert queue.pop() == (expected.pop(0) if expected else None)
    while expected:
        assert queue.pop() == expected.pop(0)
    assert queue.pop() is None
    scratch.close()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60), st.integers(1, 9))
def test_links_are_remembered(links: list[tuple[int, int]], limit: int) -> None:
    scratch = Scratch()
    known, expected = Links(scratch, links_max=limit), {}
    for number, link in enumerate(links):
        assert known.get(link) == expected.get(link)
        if link not in expected:
            known.set(link, (number, b"path"))
            expected[link] = (number, b"path")
    for link, value in expected.items():
        assert known.get(link) == value
    scratch.close()


# ---- both local ----


async def found_by(trees: Sequence[LocalTree], *, quick: bool) -> list[Event]:
    rules = rules_of(Verb.SYNC, MIRROR, trees[0].features, trees[1].features)
    found: list[Event] = []

    async def sink(some: Sequence[Event]) -> None:
        await trio.lowlevel.checkpoint()
        found.extend(some)

    await walk(trees[0], trees[1], MIRROR, rules, NO_FILTERS, sink, quick=quick)
    return found


def check_alike(slow: Sequence[Event], fast: Sequence[Event]) -> int:
    """What the quick walk only counts, the slow one tells as equal pairs. Returns how many."""
    counted = sum(event.files for event in fast if isinstance(event, Equal))
    told = {event.path for event in fast if isinstance(event, Pair)}
    rest = [e for e in slow if isinstance(e, Pair) and e.path not in told]
    assert len(rest) == counted
    for pair in rest:
        assert pair.source is not None
        assert pair.destination is not None
        assert pair.source[2:5] == pair.destination[2:5]
    assert told <= {event.path for event in slow if isinstance(event, Pair)}
    entered = [
        [e.directory.path for e in events if isinstance(e, Enter)] for events in (slow, fast)
    ]
    assert entered[0] == entered[1]
    return counted


@pytest.mark.parametrize("twin_from", [1, 1_000])
@given(source=TREES, target=TREES)
@settings(max_examples=25, deadline=None)
def test_quick_and_slow_walks_find_the_same(twin_from: int, source: Item, target: Item) -> None:
    """With the help of another process, and without."""

    async def check(folder: bytes) -> None:
        roots = [os.path.join(folder, name) for name in (b"source", b"target")]
        for root, item in zip(roots, (source, target), strict=True):
            os.mkdir(root)
            model.lay(root, item)
        trees = [await LocalTree.open(root, durable=False) for root in roots]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(walk_local, "_TWIN_VISITS_MIN", twin_from)
            fast = await found_by(trees, quick=True)
        check_alike(await found_by(trees, quick=False), fast)
        for each in trees:
            await each.close()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(check, os.fsencode(folder))


@pytest.mark.parametrize("dies_at", [None, "start", "ask", "answer"])
async def test_the_twin_may_die_at_any_time(
    roots: tuple[Path, Path], dies_at: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in roots:
        for number in range(70):
            folder = root / f"d{number}"
            folder.mkdir()
            for name in ("f", "g\udcff"):
                (folder / name).write_bytes(b"x")
                os.utime(folder / name, (1, 1))
    (roots[0] / "d5" / "f").write_bytes(b"longer")
    (roots[1] / "d6" / "more").write_bytes(b"x")
    calls = 0
    twins: list[Twin] = []

    class Dying(Twin):
        def __init__(self, limit: int, *, xattrs: bool) -> None:
            if dies_at == "start":
                raise OSError("no more processes")
            super().__init__(limit, xattrs=xattrs)
            twins.append(self)

        def ask(self, handle: int) -> None:
            self._count("ask")
            super().ask(handle)

        def answer(self) -> tuple[Looked, Dressed] | None:
            self._count("answer")
            return super().answer()

        def _count(self, what: str) -> None:
            nonlocal calls
            calls += what == dies_at
            if calls == 20:
                self._process.kill()
                self._process.wait()

    monkeypatch.setattr(walk_local, "Twin", Dying)
    trees = [await local(root) for root in roots]
    fast = await found_by(trees, quick=True)
    assert check_alike(await found_by(trees, quick=False), fast) == 139
    assert len(twins) == (dies_at != "start")
    assert all(twin._process.returncode is not None for twin in twins)


@pytest.mark.parametrize("twin_from", [1, 1_000])
async def test_files_with_attributes_are_told(
    roots: tuple[Path, Path], twin_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either side, with the help of another process and without: what has none is counted."""
    monkeypatch.setattr(walk_local, "_TWIN_VISITS_MIN", twin_from)
    for side, root in enumerate(roots):
        (root / "d").mkdir()
        for name in ("neither", "source", "target", "both", "longer"):
            (root / "d" / name).write_bytes(b"x" * (1 + side * (name == "longer")))
            os.utime(root / "d" / name, (1, 1))
            if name in {("source", "target")[side], "both"}:
                try:
                    os.setxattr(root / "d" / name, "user.x", b"1")
                except OSError:
                    pytest.skip("the file system keeps no attributes")
    trees = [await local(root) for root in roots]
    options = Options(mode=Mode.MIRROR, force=True, xattrs=True)
    rules = rules_of(Verb.SYNC, options, trees[0].features, trees[1].features)
    found: list[Event] = []

    async def sink(some: Sequence[Event]) -> None:
        await trio.lowlevel.checkpoint()
        found.extend(some)

    await walk(trees[0], trees[1], options, rules, NO_FILTERS, sink, quick=True)
    assert sum(event.files for event in found if isinstance(event, Equal)) == 1
    told = {event.path for event in found if isinstance(event, Pair)}
    assert told == {b"d/source", b"d/target", b"d/both", b"d/longer"}


async def test_errors_of_local_directories_are_told(roots: tuple[Path, Path]) -> None:
    """A directory that becomes a symlink between its parent's listing and its own."""
    source, target = roots
    for name in ("a", "b"):
        (source / name).mkdir()
        (source / name / "f").write_bytes(b"x")
    tree = await local(source)
    swapped = False
    there = await local(target)
    original: Callable[..., Awaitable[object]] = tree.wait

    async def swap(function: Callable[..., object], *args: object) -> object:
        nonlocal swapped
        found = await original(function, *args)
        if not swapped and args and len(args[0]) == 1:  # type: ignore[arg-type]
            swapped = True
            os.rename(source / "a", source / "c")
            os.symlink("c", source / "a")
        return found

    tree.wait = swap  # type: ignore[method-assign,assignment]
    events = await walked(tree, there)
    problems = [event for event in events if isinstance(event, Problem)]
    assert [(each.path, each.side) for each in problems] == [(b"a", Side.SOURCE)]
    assert all(isinstance(each.error, RemoteError) for each in problems)
    assert b"b/f" in kept(events)
