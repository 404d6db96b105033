"""Plans against the reference model, over trees in memory and in folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.filters import Filters
from syncer.local_tree import LocalTree
from syncer.options import Mode, Options, Symlinks, Verb
from syncer.plan import Plan, make_plan, refusal
from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import Denied, Missing, RemoteError
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.steps import Step, StepKind
from syncer.tree import Tree
from syncer.walk_events import Problem
from tests.syncer import model
from tests.syncer.model import DIRECTORY, FILE, TREES, Item, carry_out, files, paths

NO_FILTERS = Filters.parse([], now_ns=0)

OPTIONS = st.builds(
    Options,
    mode=st.sampled_from(Mode),
    checksum=st.booleans(),
    ignore_existing=st.booleans(),
    symlinks=st.sampled_from([Symlinks.KEEP, Symlinks.SKIP]),
    force=st.just(True),
)


async def planned(
    source: Tree,
    target: Tree,
    options: Options,
    verb: Verb = Verb.SYNC,
    filters: Filters = NO_FILTERS,
) -> tuple[Plan, list[Step], list[Problem]]:
    """A plan with all its steps and problems."""
    steps: list[Step] = []
    problems: list[Problem] = []

    async def sink(some: Sequence[Step]) -> None:
        await trio.lowlevel.checkpoint()
        steps.extend(some)

    plan = await make_plan(
        source, target, options, filters, sink, verb=verb, problem=problems.append
    )
    assert sum(plan.steps.values()) == len(steps)
    assert plan.problems == len(problems)
    return plan, steps, problems


def tree_on(server: MemoryServer) -> RemoteTree:
    return RemoteTree(MemoryRemote(server))


def tree(*items: tuple[str, Item]) -> Item:
    """A directory."""
    return Item(DIRECTORY, mode=0o755, children={name.encode(): each for name, each in items})


def file(data: bytes = b"x", mtime_s: int = 0) -> Item:
    return Item(FILE, data, mtime_ns=model.START_NS + mtime_s * model.SECOND)


# ---- against the model ----


@given(TREES, TREES, OPTIONS, st.sampled_from([Verb.SYNC, Verb.COPY]))
@settings(max_examples=150, deadline=None)
def test_the_destination_becomes_what_the_model_says(
    source: Item, target: Item, options: Options, verb: Verb
) -> None:
    async def check() -> None:
        servers = model.make(source), model.make(target)
        trees = tree_on(servers[0]), tree_on(servers[1])
        _, steps, _ = await planned(*trees, options, verb)
        await carry_out(steps, *trees, options)
        expected = model.synced(source, target, verb, options, lambda name: False)
        assert model.found(servers[1]) == expected
        assert model.found(servers[0]) == source
        _, steps, _ = await planned(*trees, options, verb)
        assert not steps

    trio.run(check)


@given(TREES, TREES, OPTIONS)
@settings(max_examples=100, deadline=None)
def test_what_the_filters_leave_out_is_not_touched(
    source: Item, target: Item, options: Options
) -> None:
    async def check() -> None:
        servers = model.make(source), model.make(target)
        trees = tree_on(servers[0]), tree_on(servers[1])
        filters = Filters.parse(["- a.b"], now_ns=0)
        _, steps, _ = await planned(*trees, options, filters=filters)
        await carry_out(steps, *trees, options)
        expected = model.synced(source, target, Verb.SYNC, options, lambda name: name == b"a.b")
        assert model.found(servers[1]) == expected
        _, steps, _ = await planned(*trees, options, filters=filters)
        assert not steps

    trio.run(check)


@given(TREES, TREES, st.booleans(), st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_nothing_is_deleted_below_what_could_not_be_listed(
    source: Item, target: Item, of_source: bool, gone: bool, data: st.DataObject
) -> None:
    """The unlistable directory fails with whatever error, Missing among them."""
    sides = source, target
    folders = [
        path for path, item in paths(sides[not of_source]) if path and item.kind is DIRECTORY
    ]
    if not folders:
        return
    broken = data.draw(st.sampled_from(sorted(folders)))
    error: RemoteError = Missing("gone") if gone and of_source else Denied("not yours")

    async def refuse(method: str, key: bytes) -> None:
        if method == "list" and key == broken + b"/":
            raise error

    async def check() -> None:
        servers = model.make(source), model.make(target)
        servers[not of_source].before_request = refuse
        trees = tree_on(servers[0]), tree_on(servers[1])
        options = Options(mode=Mode.MIRROR, force=True)
        _, steps, problems = await planned(*trees, options)
        deleted = [
            step.path
            for step in steps
            if step.kind in {StepKind.DELETE, StepKind.TRASH, StepKind.REPLACE}
            or (step.kind is StepKind.MKDIR and step.old is not None)
        ]
        below = broken + b"/"
        assert not [path for path in deleted if path.startswith(below)]
        if dict(paths(target)).get(broken, Item(FILE)).kind is DIRECTORY and any(
            problem.path == broken for problem in problems
        ):
            # Nor is it itself, nor anything above it.
            assert not [path for path in deleted if path == broken or below.startswith(path + b"/")]
        await carry_out(steps, *trees, options)
        kept = dict(paths(model.found(servers[1])))
        for path, item in paths(target):
            if path.startswith(below) and any(problem.path == broken for problem in problems):
                assert kept[path] == item

    trio.run(check)


# ---- in folders ----


@given(TREES, TREES, OPTIONS)
@settings(max_examples=30, deadline=None)
def test_likewise_between_folders(source: Item, target: Item, options: Options) -> None:
    async def check(folder: bytes) -> None:
        roots = [os.path.join(folder, name) for name in (b"source", b"target")]
        for root, item in zip(roots, (source, target), strict=True):
            os.mkdir(root)
            model.lay(root, item)
        trees = [await LocalTree.open(root, durable=False) for root in roots]
        _, steps, _ = await planned(*trees, options)
        await carry_out(steps, *trees, options)
        expected = model.synced(source, target, Verb.SYNC, options, lambda name: False)
        assert model.lies(roots[1]) == expected
        _, steps, _ = await planned(*trees, options)
        assert not steps
        for each in trees:
            await each.close()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(check, os.fsencode(folder))


async def local(root: Path) -> LocalTree:
    return await LocalTree.open(os.fsencode(root), durable=False)


async def mirrored(roots: tuple[Path, Path], options: Options) -> tuple[Plan, list[Step]]:
    """Carry out a plan between two folders; what is left to do afterwards."""
    trees = await local(roots[0]), await local(roots[1])
    _, steps, _ = await planned(*trees, options)
    await carry_out(steps, *trees, options)
    plan, again, _ = await planned(*trees, options)
    assert not again
    return plan, steps


MIRROR = Options(mode=Mode.MIRROR, force=True)


async def test_hard_links_are_kept(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "d").mkdir()
    (source / "a").write_bytes(b"shared")
    os.link(source / "a", source / "d" / "b")
    os.link(source / "a", source / "c")
    (source / "other").write_bytes(b"alone")
    _, steps = await mirrored(roots, MIRROR)
    kinds = {step.path: step.kind for step in steps if step.node and step.node.kind is FILE}
    assert kinds == {
        b"a": StepKind.COPY,
        b"c": StepKind.LINK,
        b"d/b": StepKind.LINK,
        b"other": StepKind.COPY,
    }
    assert len({os.stat(target / name).st_ino for name in ("a", "c", "d/b")}) == 1
    # Two files there that are one here, and one there that are two here.
    os.unlink(target / "c")
    (target / "c").write_bytes(b"shared")
    os.utime(target / "c", ns=(0, os.stat(source / "c").st_mtime_ns))
    os.unlink(target / "other")
    os.link(target / "a", target / "other")
    os.unlink(source / "other")
    (source / "other").write_bytes(b"shared")
    os.utime(source / "other", ns=(0, os.stat(source / "a").st_mtime_ns))
    _, steps = await mirrored(roots, MIRROR)
    made = {step.path: step.kind for step in steps if step.kind is not StepKind.DIRECTORY_METADATA}
    assert made == {b"c": StepKind.LINK, b"other": StepKind.COPY}
    assert os.stat(target / "other").st_nlink == 1
    assert os.stat(target / "a").st_nlink == 3


async def test_without_hard_links_each_name_is_a_file(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "a").write_bytes(b"shared")
    os.link(source / "a", source / "b")
    await mirrored(roots, Options(hard_links=False))
    assert os.stat(target / "b").st_nlink == 1


async def test_extended_attributes_are_compared(roots: tuple[Path, Path]) -> None:
    source, target = roots
    options = Options(xattrs=True)
    for root in roots:
        for name in ("same", "other", "none"):
            (root / name).write_bytes(b"x")
            os.utime(root / name, ns=(0, 10**18))
            os.chmod(root / name, 0o600)
        (root / "d").mkdir()
        os.utime(root / "d", ns=(0, 10**18))
        os.setxattr(root / "same", "user.x", b"1")
        os.utime(root, ns=(0, 10**18))
    os.setxattr(source / "other", "user.x", b"1")
    os.setxattr(target / "other", "user.x", b"2")
    os.setxattr(source / "d", "user.x", b"1")
    _, steps, _ = await planned(await local(source), await local(target), options)
    assert {(step.kind, step.path, step.reason) for step in steps} == {
        (StepKind.METADATA, b"other", "extended attributes differ"),
        (StepKind.DIRECTORY_METADATA, b"d", "extended attributes differ"),
    }
    _, steps, _ = await planned(await local(source), await local(target), Options())
    assert not steps


async def test_a_single_file(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "f").write_bytes(b"data")
    trees = await local(source / "f"), await local(target / "copy")
    plan, steps, _ = await planned(*trees, Options())
    assert [(step.kind, step.path, step.reason) for step in steps] == [(StepKind.COPY, b"", "new")]
    assert plan.bytes == 4


async def test_a_destination_that_is_not_there_yet(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "f").write_bytes(b"data")
    _, steps, _ = await planned(await local(source), await local(target / "new"), Options())
    assert [(step.kind, step.path) for step in steps] == [
        (StepKind.MKDIR, b""),
        (StepKind.COPY, b"f"),
        (StepKind.DIRECTORY_METADATA, b""),
    ]
    assert not (target / "new").exists()


async def test_a_source_that_is_not_there_is_no_empty_source(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (target / "f").write_bytes(b"data")
    with pytest.raises(RemoteError):
        await planned(await local(source / "no"), await local(target), MIRROR)


# ---- deletions ----


@pytest.mark.parametrize(
    ("delete_max", "deletions", "refused"),
    [
        (None, 1, False),
        (None, 2, True),
        (0.5, 5, False),
        (0.5, 6, True),
        (3, 3, False),
        (3, 4, True),
        (0, 1, True),
    ],
)
async def test_deletions_are_capped(
    delete_max: float | None, deletions: int, refused: bool
) -> None:
    there = [(f"f{number}", file()) for number in range(10)]
    source, target = tree(*there[deletions:]), tree(*there)
    options = Options(mode=Mode.MIRROR, delete_max=delete_max)
    plan, steps, _ = await planned(
        tree_on(model.make(source)), tree_on(model.make(target)), options
    )
    assert (plan.deletions, plan.destination_files) == (deletions, 10)
    assert sum(step.kind is StepKind.DELETE for step in steps) == deletions
    assert bool(plan.refusal) is refused
    if refused:
        assert f"{deletions} of the destination's 10 files" in plan.refusal
    forced = Options(mode=Mode.MIRROR, delete_max=delete_max, force=True)
    plan, _, _ = await planned(tree_on(model.make(source)), tree_on(model.make(target)), forced)
    assert not plan.refusal


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_tenth_is_a_tenth(deletions: int, files_there: int) -> None:
    deletions = min(deletions, files_there)
    assert bool(refusal(Options(), deletions, files_there)) is (deletions * 10 > files_there)


@given(TREES, TREES)
@settings(max_examples=100, deadline=None)
def test_deletions_are_counted(source: Item, target: Item) -> None:
    """The files that go, but for those that something else takes the place of."""

    async def check() -> None:
        plan, _, _ = await planned(
            tree_on(model.make(source)), tree_on(model.make(target)), Options(mode=Mode.MIRROR)
        )
        ours, theirs = dict(paths(source)), dict(paths(target))
        gone = [
            path for path, item in theirs.items() if item.kind is not DIRECTORY and path not in ours
        ]
        # Below a file that becomes a directory nothing was, so that these are all.
        assert plan.deletions == len(gone)
        assert plan.destination_files == files(target)
        assert plan.files == files(source)

    trio.run(check)


@given(TREES, TREES)
@settings(max_examples=100, deadline=None)
def test_with_a_trash_nothing_is_lost(source: Item, target: Item) -> None:
    options = Options(mode=Mode.MIRROR, force=True, trash=".trash")

    async def check() -> None:
        servers = model.make(source), model.make(target)
        trees = tree_on(servers[0]), tree_on(servers[1])
        _, steps, _ = await planned(*trees, options)
        assert not [
            step
            for step in steps
            if step.kind is StepKind.DELETE and step.old and step.old.kind is not DIRECTORY
        ]
        await carry_out(steps, *trees, options)
        after = model.found(servers[1])
        trash = dict(paths(after)).get(b".trash")
        kept = dict(paths(trash)) if trash is not None else {}
        ours = dict(paths(source))
        for path, item in paths(target):
            if item.kind is not DIRECTORY and path not in ours:
                assert kept[path] == item
        # It is no part of what is synced: the next run leaves it alone.
        _, steps, _ = await planned(*trees, options)
        assert not steps

    trio.run(check)


async def test_a_nested_trash_keeps_its_directory() -> None:
    target = tree(("old", tree(("trash", tree(("f", file()))))))
    options = Options(mode=Mode.MIRROR, force=True, trash="old/trash/")
    _, steps, _ = await planned(tree_on(model.make(tree())), tree_on(model.make(target)), options)
    assert not [step for step in steps if step.kind is StepKind.DELETE]


# ---- what is in the way ----


async def test_a_directory_gives_way_last_and_only_to_a_mirror() -> None:
    source, target = tree(("x", file(b"new"))), tree(("x", tree(("f", file()), ("g", file()))))
    trees = tree_on(model.make(source)), tree_on(model.make(target))
    _, steps, problems = await planned(*trees, Options())
    assert [step.kind for step in steps] == []
    assert [problem.path for problem in problems] == [b"x"]
    assert "in the way" in str(problems[0].error)
    plan, steps, problems = await planned(*trees, Options(mode=Mode.MIRROR))
    assert [(step.kind, step.path) for step in model.in_order(steps)] == [
        (StepKind.DELETE, b"x/f"),
        (StepKind.DELETE, b"x/g"),
        (StepKind.DELETE, b"x"),
        (StepKind.REPLACE, b"x"),
        (StepKind.DIRECTORY_METADATA, b""),
    ]
    assert (plan.deletions, problems) == (2, [])
    assert "2 of the destination's 2" in plan.refusal


async def test_what_the_destination_cannot_hold_is_told(roots: tuple[Path, Path]) -> None:
    source, _ = roots
    os.mkfifo(source / "pipe")
    (source / "f").write_bytes(b"x")
    plan, steps, problems = await planned(await local(source), tree_on(MemoryServer()), Options())
    assert {step.path for step in steps} == {b"f", b""}
    assert (plan.not_held, [problem.path for problem in problems]) == (1, [b"pipe"])
    assert plan.files == 2
