"""Push over a memory remote: every kind of change, conflicts, and what happens meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore.disk import OsDisk
from ghostd.filesystem import RENAME_EXCHANGE, AttributeChanges
from syncer.options import OnConflict
from syncer.remotes.errors import Unreachable
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import Kind
from tests.ghostd.world import ROOT as CALLER
from tests.projections.pushing import Pushed, Told, pushed, tree_of

FILES = {
    b"a": b"A" * 10, b"b": b"B" * 20, b"d": None, b"d/x": b"X", b"d/y": b"Y", b"e": None,
    b"e/z": b"Z",
}  # fmt: skip


async def settled(world: Pushed, report: Any, *, after: dict[bytes, Any]) -> None:
    """Both sides are alike, nothing is left to be done, and listings find nothing new."""
    assert report.outcome == "done", report.failures
    assert await world.here() == after
    assert await tree_of(world.remote) == after
    assert await world.diff() == []
    directories = [b"r", *(b"r/" + key for key, value in after.items() if value is None)]
    inodes = {key: (await world.look(b"r/" + key)).ino for key in after}
    for path in directories:
        world.projected.listings.expire(await world.look(path))
    assert await world.here() == after
    assert {key: (await world.look(b"r/" + key)).ino for key in after} == inodes
    await world.writeback.commit()
    for table in ("gone", "hidden"):
        assert world.namespace.query(f"SELECT * FROM {table}") == []
    again = await world.push()
    assert (again.outcome, again.files_copied, again.deleted) == ("done", 0, 0)


async def everything(world: Pushed) -> None:
    """Changes of every kind."""
    await world.put(b"r/new", b"new" * 1000)
    await world.mkdir(b"r/n")
    await world.mkdir(b"r/n/m")
    await world.put(b"r/n/m/f", b"deep")
    await world.patch(b"r/a", 0, b"patched")
    await world.move(b"r/b", b"r/n/b")
    await world.move(b"r/d", b"r/n/d")
    await world.put(b"r/n/d/w", b"W")
    await world.remove(b"r/n/d/x")
    await world.remove(b"r/e/z")
    await world.remove(b"r/e")
    directory = await world.look(b"r")
    world.fs.create(directory.ino, b"link", 0o120777, CALLER, target=b"n/b")


async def test_all_kinds_of_changes(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await everything(world)
        before = await world.here()
        await settled(world, await world.push(), after=before)
    world = Pushed(OsDisk(), MemoryRemote(world.remote._server), folder=tmp_path)
    async with world.running():
        assert await world.here() == before
        assert await world.diff() == []
        await world.check()
    world.close()


async def test_a_dry_run_tells_the_same_and_does_nothing(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await everything(world)
        there, here = await tree_of(world.remote), await world.diff()
        tell, told = Told(), Told()
        planned = await world.push(dry_run=True, tell=tell)
        assert (await tree_of(world.remote), await world.diff()) == (there, here)
        await world.push(tell=told)
        would = {(each.event, each.source) for each in tell.events}
        done = {("would." + each.event, each.source) for each in told.events}
        assert would == done
        assert planned.directories_made == 3


@pytest.mark.parametrize("choice", list(OnConflict))
async def test_a_dry_run_sees_the_conflicts_of_the_run(tmp_path, choice):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.put(b"r/a", b"ours")
        await world.put(b"r/b", b"ours, too")
        await world.put(b"r/new", b"ours")
        await world.remove(b"r/d/x")
        await world.remove(b"r/d/y")
        await world.remote.write(b"a", Held(b"theirs is longer"))
        await world.remote.write(b"new", Held(b"theirs"))
        await world.remote.write(b"d/x", Held(b"theirs is longer"))
        there, here = await tree_of(world.remote), await world.diff()
        planned = await world.push(dry_run=True, on_conflict=choice)
        assert (await tree_of(world.remote), await world.diff()) == (there, here)
        report = await world.push(on_conflict=choice)
        assert {each.path for each in planned.failures} == {each.path for each in report.failures}
        assert (planned.failed, planned.files_copied, planned.deleted) == (
            report.failed, report.files_copied, report.deleted,
        )  # fmt: skip
        assert bool(report.failed) == (choice is OnConflict.REFUSE)


async def test_only_what_is_below_the_path(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.put(b"r/a", b"changed")
        await world.put(b"r/d/x", b"changed")
        await world.remove(b"r/d/y")
        await world.remove(b"r/e/z")
        report = await world.push(path=b"r/d")
        assert (report.files_copied, report.deleted, report.outcome) == (1, 1, "done")
        there = await tree_of(world.remote)
        assert (there[b"a"], there[b"d/x"], there[b"e/z"]) == (b"A" * 10, b"changed", b"Z")
        assert b"d/y" not in there
        assert sorted(path for _, path in await world.diff()) == [b"/r/a", b"/r/e/z"]


@pytest.mark.parametrize(
    "moves",
    [
        [(b"a", b"t"), (b"b", b"a"), (b"t", b"b")],  # two change places
        [(b"b", b"c"), (b"a", b"b")],  # a chain
        [(b"a", b"b")],  # over another one
        [(b"d", b"t"), (b"e", b"d"), (b"t", b"e")],  # directories
        [(b"d/x", b"d/t"), (b"d/y", b"d/x"), (b"d/t", b"d/y"), (b"d", b"f")],
        [(b"d", b"e/d"), (b"e", b"f")],
        [(b"a", b"c"), (b"c", b"a")],  # there and back
    ],
)
async def test_what_was_moved_in_circles_chains_and_over_others(tmp_path, moves):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        for old, new in moves:
            await world.move(b"r/" + old, b"r/" + new)
        await settled(world, await world.push(), after=await world.here())


async def test_exchanged_names(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.move(b"r/a", b"r/b", RENAME_EXCHANGE)
        await world.move(b"r/d", b"r/e/z", RENAME_EXCHANGE)
        await settled(world, await world.push(), after=await world.here())


async def test_a_file_where_a_directory_was_and_the_other_way_round(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        for path in (b"r/d/x", b"r/d/y", b"r/d", b"r/b"):
            await world.remove(path)
        await world.move(b"r/a", b"r/d")
        await world.mkdir(b"r/a")
        await world.put(b"r/a/in", b"in it")
        await world.mkdir(b"r/b")
        await settled(world, await world.push(), after=await world.here())


async def test_an_editor_that_replaces_by_renaming(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.put(b"r/.a.swp", b"edited")
        await world.move(b"r/.a.swp", b"r/a")
        await world.move(b"r/b", b"r/b~")
        await world.put(b"r/b", b"edited, with a copy of before")
        await settled(world, await world.push(), after=await world.here())


async def test_names_of_one_file_are_files_over_there(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        directory = await world.look(b"r/e")
        await world.patch(b"r/a", 3, b"!")
        world.fs.link((await world.look(b"r/a")).ino, directory.ino, b"linked")
        before = await world.here()
        assert (await world.push()).outcome == "done"
        assert await tree_of(world.remote) == before
        assert await world.diff() == []


async def test_attributes(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        file, directory = await world.look(b"r/a"), await world.look(b"r/d")
        world.fs.setattr(file.ino, AttributeChanges(mode=0o600, mtime_ns=12_345_678_901))
        world.fs.setattr(directory.ino, AttributeChanges(mode=0o700))
        etag = (await world.remote.stat(b"a")).etag
        await settled(world, await world.push(), after=await world.here())
        entry = await world.remote.stat(b"a")
        assert (entry.mode, entry.mtime_ns, entry.etag) == (0o600, 12_345_678_901, etag)
        assert (await world.remote.stat(b"d/")).mode == 0o700
        assert (await world.look(b"r/a")).mtime_ns == 12_345_678_901


async def test_what_was_pushed_is_read_without_the_remote(tmp_path):
    server = MemoryServer()
    async with pushed(OsDisk(), FILES, remote=MemoryRemote(server), folder=tmp_path) as world:
        await world.put(b"r/new", b"n" * 3_000_000)
        await world.patch(b"r/a", 2, b"!!")
        await world.push()
        server.reachable = False
        assert await world.content(b"r/new") == b"n" * 3_000_000
        assert await world.content(b"r/a") == b"AA!!AAAAAA"
        server.reachable = True


async def test_what_is_pushed_is_one_state_of_the_file(tmp_path):
    async with pushed(OsDisk(), {}, folder=tmp_path) as world:
        await world.put(b"r/f", b"1" * 2_500_000)
        states = [b"1" * 2_500_000]
        changes = 2

        async def change(op: str) -> None:
            nonlocal changes
            if op == "push_read" and changes:
                changes -= 1
                await world.patch(b"r/f", 1_000_000 * changes, b"2" * 500_000)
                states.append(await world.content(b"r/f"))

        world.door.after = change
        seen = []

        async def look(method: str, _: bytes) -> None:
            if method == "stat":
                return
            found = await tree_of(MemoryRemote(server))
            seen.extend(found.values())

        server = world.remote._server
        report = await world.push()
        del look
        assert report.outcome == "done"
        assert (await tree_of(world.remote))[b"f"] == states[-1]
        assert all(each in states for each in seen)
        world.door.after = None
        await settled(world, await world.push(), after=await world.here())


@pytest.mark.parametrize("what", ["written", "removed", "renamed", "replaced"])
async def test_what_changes_between_the_write_and_its_record_is_pushed_next(tmp_path, what):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.put(b"r/new", b"first")
        await world.patch(b"r/a", 2, b"first")
        done = []

        async def change(op: str) -> None:
            if op != "push_done" or done:
                return
            done.append(op)
            for path in (b"r/new", b"r/a"):
                if what == "written":
                    await world.patch(path, 1, b"second")
                elif what == "removed":
                    await world.remove(path)
                elif what == "renamed":
                    await world.move(path, path + b"2")
                else:
                    await world.put(path + b"~", b"third")
                    await world.move(path + b"~", path)

        world.door.before = change
        await world.push()
        assert done
        world.door.before = None
        await settled(world, await world.push(), after=await world.here())


async def test_what_somebody_has_open_waits_when_it_is_told_to(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.put(b"r/f", b"half")
        ino = world.fs.open((await world.look(b"r/f")).ino, writing=True).ino
        assert (await world.push(closed_only=True)).files_copied == 0
        assert b"f" not in await tree_of(world.remote)
        world.fs.release(ino)
        await settled(world, await world.push(closed_only=True), after=await world.here())


async def test_a_remote_that_goes_away_loses_nothing(tmp_path):
    server = MemoryServer()
    async with pushed(OsDisk(), FILES, remote=MemoryRemote(server), folder=tmp_path) as world:
        await everything(world)
        before = await world.here()
        left = 8

        async def cut(method: str, _: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Unreachable("gone")

        server.before_request = cut
        report = await world.push()
        assert report.outcome in {"failed", "partly"}
        assert any(each.transient for each in report.failures)
        server.before_request = None
        await settled(world, await world.push(), after=before)


# --- conflicts ---------------------------------------------------------------------------------

BESIDE = b"a.conflict-%s-20260102-030405"


async def _both_sides(world: Pushed, ours: str, theirs: str) -> None:
    match ours:
        case "changed":
            await world.patch(b"r/a", 0, b"ours")
        case "rewritten":
            await world.put(b"r/a", b"ours, whole")
        case "deleted":
            await world.look(b"r/a")
            await world.remove(b"r/a")
        case "made":
            await world.put(b"r/c", b"ours")
        case "chmod":
            world.fs.setattr((await world.look(b"r/a")).ino, AttributeChanges(mode=0o600))
        case "renamed":
            await world.move(b"r/a", b"r/c")
    match theirs:
        case "changed":
            await world.remote.write(b"a", Held(b"theirs"))
        case "deleted":
            await world.remote.delete(b"a")
        case "made":
            await world.remote.write(b"c", Held(b"theirs"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("changed", "changed"), ("rewritten", "changed"), ("rewritten", "deleted"),
        ("deleted", "changed"), ("made", "made"), ("chmod", "changed"), ("renamed", "made"),
        ("renamed", "changed"),
    ],
)  # fmt: skip
async def test_conflicts_are_refused_and_nothing_is_lost(tmp_path, ours, theirs):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        assert await world.content(b"r/a") == FILES[b"a"]
        await _both_sides(world, ours, theirs)
        await world.put(b"r/b", b"another one")
        there, diff = await tree_of(world.remote), await world.diff()
        report = await world.push()
        assert report.outcome == "partly"
        assert len(report.failures) == 1
        assert not report.failures[0].transient
        assert await tree_of(world.remote) == there | {b"b": b"another one"}
        assert await world.diff() == [each for each in diff if each[1] != b"/r/b"]


@pytest.mark.parametrize(
    ("ours", "theirs", "policy", "result"),
    [
        ("changed", "changed", "ours", {b"a": b"oursAAAAAA"}),
        ("rewritten", "changed", "ours", {b"a": b"ours, whole"}),
        ("rewritten", "deleted", "ours", {b"a": b"ours, whole"}),
        ("deleted", "changed", "ours", {}),
        ("made", "made", "ours", {b"a": b"A" * 10, b"c": b"ours"}),
        ("renamed", "made", "ours", {b"c": b"A" * 10}),
        ("rewritten", "changed", "theirs", {b"a": b"theirs"}),
        ("changed", "changed", "theirs", {b"a": b"theirs"}),
        ("rewritten", "deleted", "theirs", {}),
        ("deleted", "changed", "theirs", {b"a": b"theirs"}),
        ("made", "made", "theirs", {b"a": b"A" * 10, b"c": b"theirs"}),
        ("renamed", "made", "theirs", {b"a": b"A" * 10, b"c": b"theirs"}),
        ("rewritten", "changed", "both", {b"a": b"theirs", BESIDE: b"ours, whole"}),
        ("rewritten", "deleted", "both", {b"a": b"ours, whole"}),
        ("deleted", "changed", "both", {b"a": b"theirs"}),
    ],
)
async def test_conflicts_are_resolved_as_told(tmp_path, monkeypatch, ours, theirs, policy, result):
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    async with pushed(OsDisk(), {b"a": b"A" * 10}, folder=tmp_path) as world:
        assert await world.content(b"r/a") == FILES[b"a"]
        await _both_sides(world, ours, theirs)
        report = await world.push(OnConflict(policy))
        assert report.outcome == "done", report.failures
        wanted = {(key % b"here" if b"%s" in key else key): value for key, value in result.items()}
        assert await tree_of(world.remote) == wanted
        world.projected.listings.expire(await world.look(b"r"))
        assert await world.here() == wanted
        assert await world.diff() == []


@pytest.mark.parametrize("directory", [False, True])
async def test_what_a_failed_file_is_based_on_is_not_deleted(tmp_path, directory):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        if directory:
            await world.move(b"r/d/x", b"r/c")
            await world.remove(b"r/d/y")
            await world.remove(b"r/d")
        else:
            await world.move(b"r/a", b"r/c")
            await world.remove(b"r/b")
        await world.remote.write(b"c", Held(b"theirs"))
        report = await world.push()
        assert "c" in {each.path for each in report.failures}
        there = await tree_of(world.remote)
        needed, gone = (b"d/x", b"d/y") if directory else (b"a", b"b")
        assert there[needed] == FILES[needed]
        assert gone not in there
        assert await world.content(b"r/c") == FILES[needed]


async def test_what_others_put_into_a_deleted_directory_is_kept(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        for path in (b"r/d/x", b"r/d/y", b"r/d"):
            await world.remove(path)
        await world.remote.write(b"d/theirs", Held(b"theirs"))
        report = await world.push()
        assert report.outcome == "partly"
        there = await tree_of(world.remote)
        assert there[b"d/theirs"] == b"theirs"
        assert b"d/x" not in there
        report = await world.push(OnConflict.THEIRS)
        assert report.outcome == "done"
        assert (await world.here())[b"d/theirs"] == b"theirs"
        assert (await world.remote.stat(b"d/")).kind is Kind.DIRECTORY


async def test_what_was_reverted_is_not_deleted_by_a_push(tmp_path):
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        for path in (b"r/d/x", b"r/d/y", b"r/d"):
            await world.remove(path)
        await world.push(dry_run=True)
        await world.door.ask(
            {"op": "push_theirs", "projection": (await world.look(b"r")).ino, "path": "d",
             "key": "d/"}
        )  # fmt: skip
        there = await tree_of(world.remote)
        assert (await world.push()).deleted == 0
        assert await tree_of(world.remote) == there
        assert (await world.here())[b"d/x"] == b"X"


@pytest.mark.parametrize("cut", ["write", "done"])
async def test_what_was_moved_and_changed_needs_its_base_until_it_is_pushed(tmp_path, cut):
    """Of the base nothing is here: it is read while the file is written under its new name."""
    async with pushed(OsDisk(), FILES, folder=tmp_path) as world:
        await world.move(b"r/a", b"r/d/a")
        await world.patch(b"r/d/a", 3, b"patched")

        async def dies(op: str) -> None:
            if op == "push_done":
                raise Unreachable("away")

        if cut == "done":
            world.door.before = dies
            await world.push()
            world.door.before = None
            assert (await tree_of(world.remote))[b"d/a"] == b"AAApatched"
        shown = await world.here()
        assert b"a" not in shown
        await settled(world, await world.push(), after=shown)
