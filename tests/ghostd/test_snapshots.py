"""Snapshots of the namespace: what is in them, what they cost, and what a collection leaves."""

from __future__ import annotations

import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.disk import OsDisk
from ghostd import keeper, snapshots_rows
from ghostd.errors import FilesystemError, NotADirectory
from ghostd.filesystem import RENAME_EXCHANGE, AttributeChanges
from ghostd.keeper import CollectionRefused
from ghostd.snapshots import SnapshotInUse, Snapshots
from ghostd.snapshots_rows import forget
from ghostd.snapshots_writing import SnapshotRefused
from syncer.catalogue import Snapshot
from syncer.remotes.errors import Exists, Missing
from tests.ghostd.snapshots_world import ME, live_image, snapshots_of, stored_image
from tests.ghostd.world import Clock, World, jumping, recover, run
from tests.simdisk import SimDisk

FILE, FOLDER = 0o100644, 0o040755


async def some_tree(world: World) -> dict[str, int]:
    """Everything that a mount can show."""
    fs = world.fs
    folder = fs.create(1, b"folder", FOLDER, ME).ino
    deep = fs.create(folder, b"deep", FOLDER, ME).ino
    other = fs.create(1, b"other", FOLDER, ME).ino
    file = fs.create(folder, b"file", FILE, ME).ino
    await fs.write(file, 0, random.Random(1).randbytes(30_000))
    fs.link(file, deep, b"second name")
    fs.link(file, other, b"third name")
    sparse = fs.create(deep, b"sparse", FILE, ME).ino
    await fs.write(sparse, 9 << 20, b"far behind")
    fs.create(deep, b"empty", FILE, ME)
    fs.create(1, b"link", stat.S_IFLNK | 0o777, ME, target=b"folder/file")
    fs.create(1, b"pipe", stat.S_IFIFO | 0o600, ME)
    fs.create(1, b"device", stat.S_IFCHR | 0o666, ME, rdev=0x103)
    fs.create(1, b"socket", stat.S_IFSOCK | 0o600, ME)
    fs.create(1, b"caf\xe9\n", FILE, ME)
    fs.setxattr(folder, b"user.colour", b"blue", ME)
    fs.setxattr(file, b"user.long", b"x" * 40_000, ME)
    acl = bytes.fromhex("0200000001000700ffffffff020007000100000004000500ffffffff"
                        "10000700ffffffff20000500ffffffff")  # fmt: skip
    fs.setxattr(deep, b"system.posix_acl_default", acl, ME)
    fs.setxattr(file, b"system.posix_acl_access", acl, ME)
    fs.setattr(file, AttributeChanges(mode=0o6755, uid=12, gid=34, mtime_ns=123_456_789_012))
    return {"folder": folder, "deep": deep, "other": other, "file": file, "sparse": sparse}


@jumping
async def test_a_snapshot_holds_everything_that_the_mount_shows() -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        await some_tree(world)
        taken = await snapshots.take(b"/", name="all", tags=["a", "b"], expires_s=60)
        assert stored_image(world.store, taken.snapshot) == await live_image(world)
        assert taken.tree.written == 4
        sums = taken.snapshot.sums
        assert (sums.files, sums.nodes) == (6, 13)
        assert (taken.snapshot.source, taken.snapshot.tags) == ("/mnt/orbit", ("a", "b"))
        assert taken.snapshot.expires_ns == taken.tree.time_ns + 60 * 10**9
        await world.check()
    world.close()


@jumping
async def test_only_directories_that_changed_are_written() -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        numbers = await some_tree(world)
        for number in range(20):
            folder = world.fs.create(1, b"many%d" % number, FOLDER, ME).ino
            world.fs.create(folder, b"x", FILE, ME)
        assert (await snapshots.take(b"/")).tree.written == 24
        assert (await snapshots.take(b"/")).tree.written == 0
        await world.fs.write(numbers["sparse"], 5, b"changed")
        # deep, folder, and the root
        assert (await snapshots.take(b"/")).tree.written == 3
        world.fs.setattr(numbers["file"], AttributeChanges(mode=0o600))
        # The file lies in three directories.
        assert (await snapshots.take(b"/")).tree.written == 4
        world.fs.rename(1, b"other", numbers["deep"], b"moved")
        # What was moved is as it was, but for its own attributes, and so is not written.
        assert (await snapshots.take(b"/")).tree.written <= 4
        # A part of the tree first: the whole needs what is above it only.
        world.fs.setxattr(numbers["deep"], b"user.x", b"1", ME)
        assert (await snapshots.take(b"/folder")).tree.written == 2
        taken = await snapshots.take(b"/")
        assert taken.tree.written == 1
        assert stored_image(world.store, taken.snapshot) == await live_image(world)
    world.close()


OPERATIONS = ("create", "mkdir", "write", "truncate", "unlink", "rmdir", "rename", "exchange",
              "link", "chmod", "xattr")  # fmt: skip


def change(world: World, rng: random.Random) -> Callable[[], Awaitable[object]]:
    """One random change of the tree; names are few, so that they meet."""
    folders, files = [1], []
    todo = [1]
    while todo:
        for _, ino in world.listing(todo.pop()):
            inode = world.tree.inode(ino)
            if inode.is_dir:
                folders.append(ino)
                todo.append(ino)
            else:
                files.append(ino)
    fs = world.fs
    name, folder = b"n%d" % rng.randrange(4), rng.choice(folders)
    file = rng.choice(files) if files else 0
    operation = rng.choice(OPERATIONS if files else ("create", "mkdir"))

    async def apply() -> None:
        if operation == "create":
            fs.create(folder, name, FILE, ME)
        elif operation == "mkdir":
            fs.create(folder, name, FOLDER, ME)
        elif operation == "write":
            await fs.write(file, rng.randrange(50_000), rng.randbytes(rng.randrange(1, 30_000)))
        elif operation == "truncate":
            fs.setattr(file, AttributeChanges(size=rng.randrange(60_000)))
        elif operation == "unlink":
            fs.unlink(folder, name)
        elif operation == "rmdir":
            fs.rmdir(folder, name)
        elif operation in {"rename", "exchange"}:
            flags = RENAME_EXCHANGE if operation == "exchange" else 0
            fs.rename(folder, name, rng.choice(folders), b"n%d" % rng.randrange(4), flags)
        elif operation == "link":
            fs.link(file, folder, name)
        elif operation == "chmod":
            fs.setattr(rng.choice(folders + files), AttributeChanges(mode=rng.randrange(0o1000)))
        else:
            fs.setxattr(rng.choice(folders + files), b"user.x", rng.randbytes(3), ME)

    return apply


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=25, deadline=None)
def test_a_snapshot_after_others_is_the_one_of_a_tree_seen_for_the_first_time(seed: int) -> None:
    rng = random.Random(seed)

    async def history() -> None:
        clock = Clock()
        world = World(SimDisk(seed), clock=clock)
        snapshots = snapshots_of(world)
        taken: list[Snapshot] = []
        images = []
        async with world.running():
            for _ in range(rng.randrange(2, 6)):
                for _ in range(rng.randrange(12)):
                    clock.now += 1
                    try:
                        await change(world, rng)()
                    except FilesystemError:
                        continue
                    if rng.random() < 0.1:
                        await world.fs.sync()
                what = rng.random()
                if taken and what < 0.3:
                    number = rng.randrange(len(taken))
                    await snapshots.remove([taken.pop(number)])
                    images.pop(number)
                if what < 0.5:
                    await world.keeper.collect(0.0, dry_run=rng.random() < 0.2)
                if what > 0.9:
                    await snapshots.tree_now(b"/")
                taken.append((await snapshots.take(b"/")).snapshot)
                images.append(await live_image(world))
            world.namespace.write(forget)
            assert (await snapshots.take(b"/")).snapshot.root == taken[-1].root
            for snapshot, image in zip(taken, images, strict=True):
                assert stored_image(world.store, snapshot) == image
            await world.check()
        world.close()

    run(history, seed)


# --- collections ---------------------------------------------------------------------------------


async def taken_removed_collected(world: World, snapshots: Snapshots) -> Snapshot:
    """Objects are remembered that no snapshot holds, and are collected; then they are wanted."""
    await some_tree(world)
    first = (await snapshots.take(b"/")).snapshot
    await snapshots.remove([first])
    # Enough rubbish beside them that their packs go.
    rubbish = world.fs.create(1, b"rubbish", FILE, ME).ino
    await world.fs.write(rubbish, 0, random.Random(2).randbytes(200_000))
    await world.fs.sync()
    world.fs.unlink(1, b"rubbish")
    await world.fs.sync()
    await world.keeper.collect(0.0, dry_run=False)
    return (await snapshots.take(b"/")).snapshot


@jumping
async def test_what_was_collected_is_written_again() -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        snapshot = await taken_removed_collected(world, snapshots)
        assert stored_image(world.store, snapshot) == await live_image(world)
        await world.check()
    world.close()


@jumping
async def test_that_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "unreached", lambda *_: [])
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        await taken_removed_collected(world, snapshots)
        report = await world.keeper.check(data=False)
        assert "snapshots-are-whole" in {each.name for each in report.checks if not each.ok}
    world.close()


@jumping
async def test_what_another_snapshot_holds_is_not_written_again() -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        await some_tree(world)
        first = (await snapshots.take(b"/")).snapshot
        second = (await snapshots.take(b"/")).snapshot
        await snapshots.remove([first])
        await world.keeper.collect(0.0, dry_run=False)
        assert (await snapshots.take(b"/")).tree.written == 0
        assert second.root == first.root
        await world.check()
    world.close()


@jumping
async def test_a_collection_that_was_cut_off_leaves_nothing_to_be_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        await some_tree(world)
        await snapshots.take(b"/")

        def cut_off(*_: object) -> None:
            raise CollectionRefused("cut off")

        with monkeypatch.context() as patch:
            patch.setattr(keeper, "unreached", cut_off)
            with pytest.raises(CollectionRefused):
                await world.keeper.collect(0.0, dry_run=False)
        assert (await snapshots.take(b"/")).tree.written == 4
        assert (await snapshots.take(b"/")).tree.written == 0
    world.close()


@jumping
async def test_a_collection_removes_what_only_a_removed_snapshot_had() -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        file = world.fs.create(1, b"file", FILE, ME).ino
        await world.fs.write(file, 0, random.Random(1).randbytes(300_000))
        snapshot = (await snapshots.take(b"/")).snapshot
        image = await live_image(world)
        world.fs.unlink(1, b"file")
        world.fs.forget(file, 0)
        await world.fs.sync()
        await world.keeper.collect(0.0, dry_run=False)
        assert stored_image(world.store, snapshot) == image
        before = world.store.stats().pack_bytes
        await snapshots.remove([snapshot])
        await world.keeper.collect(0.0, dry_run=False)
        assert world.store.stats().pack_bytes < before - 250_000
        await world.check()
    world.close()


@jumping
async def test_no_collection_while_something_is_stored_for_a_snapshot_or_a_record_is_damaged() -> (
    None
):
    disk = SimDisk(0)
    world = World(disk)
    snapshots = snapshots_of(world)
    async with world.running():
        await some_tree(world)
        await snapshots.take(b"/", name="one")
        held = [1]
        world.keeper.holds.append(lambda: held[0])
        with pytest.raises(CollectionRefused, match="a job is storing"):
            await world.keeper.collect(0.0, dry_run=False)
        held[0] = 0
        await world.keeper.collect(0.0, dry_run=False)
        record = disk.open(world.folder / "snapshots" / "one.snapshot", writable=True)
        record.pwritev([b"X"], 20)
        record.close()
        with pytest.raises(CollectionRefused, match=r"one\.snapshot"):
            await world.keeper.collect(0.0, dry_run=False)
        report = await world.keeper.check(data=False)
        wrong = {each.name for each in report.checks if not each.ok}
        assert wrong == {"snapshots-are-whole"}
    world.close()


# --- records -------------------------------------------------------------------------------------


@jumping
async def test_names_places_and_expiry() -> None:
    now = Clock()
    projected: dict[str, list[bytes]] = {}

    async def where() -> dict[str, list[bytes]]:
        return projected

    world = World(SimDisk(0))
    snapshots = snapshots_of(world, projected=where, now_ns=now)
    told: list[tuple[str, bool]] = []

    async def tell(name: str, there: bool) -> None:
        told.append((name, there))

    snapshots.changed.append(tell)
    async with world.running():
        await some_tree(world)
        one = (await snapshots.take(b"/folder", name="one", tags=["kept"])).snapshot
        with pytest.raises(Exists):
            await snapshots.take(b"/", name="one")
        with pytest.raises(NotADirectory):
            await snapshots.take(b"/link")
        assert snapshots.path_of(one) == b"/folder"
        with pytest.raises(SnapshotRefused):
            snapshots.path_of(Snapshot("x", 0, one.root, one.sums, source="/elsewhere"))
        two = (await snapshots.take(b"/", name="two", expires_s=5)).snapshot
        assert await snapshots.find("latest") == two
        assert await snapshots.find("latest:kept") == one
        assert await snapshots.find(two.id[:8]) == two
        projected["two"] = [b"/here"]
        now.now = two.expires_ns or 0
        with pytest.raises(SnapshotInUse, match="/here"):
            await snapshots.remove([two])
        assert await snapshots.expire() == []
        projected.clear()
        assert await snapshots.expire() == ["two"]
        with pytest.raises(Missing):
            await snapshots.find("two")
        # What somebody else records is seen.
        world.keeper.records.add(two)
        assert await snapshots.named("two") == two
        await snapshots.remove([one, two])
        assert await snapshots.all() == []
    assert told == [("one", True), ("two", True), ("two", False), ("one", False), ("two", False)]
    world.close()


@jumping
async def test_what_expires_goes_by_itself() -> None:
    world = World(SimDisk(0))
    snapshots = snapshots_of(world, now_ns=lambda: int(trio.current_time() * 1e9))
    gone = trio.Event()

    async def tell(_: str, there: bool) -> None:
        if not there:
            gone.set()

    snapshots.changed.append(tell)
    async with world.running(), trio.open_nursery() as nursery:
        stays = (await snapshots.take(b"/", name="stays")).snapshot
        now_ns = int(trio.current_time() * 1e9)
        goes = replace(stays, name="goes", expires_ns=now_ns + 86_400 * 10**9)
        async with world.keeper.exclusive():
            await snapshots.record(goes)
        nursery.start_soon(snapshots.run)
        await gone.wait()
        assert trio.current_time() * 1e9 >= goes.expires_ns
        assert await snapshots.all() == [stays]
        nursery.cancel_scope.cancel()
    world.close()


@jumping
async def test_the_packs_alone_bring_the_snapshots_back() -> None:
    disk = SimDisk(0)
    world = World(disk)
    snapshots = snapshots_of(world)
    async with world.running():
        await some_tree(world)
        taken = [(await snapshots.take(b"/folder")).snapshot, (await snapshots.take(b"/")).snapshot]
        image = await live_image(world)
        assert world.keeper.copy_due
        await world.keeper.copy_namespace()
        assert not world.keeper.copy_due
    world.close()
    folder = world.folder
    for name in ("namespace.db", "namespace.db-wal"):
        if disk.exists(folder / name):
            disk.unlink(folder / name)
    disk.unlink(folder / "snapshots" / f"{taken[1].name}.snapshot")
    recover(disk)
    world = World(disk)
    snapshots = snapshots_of(world)
    async with world.running():
        assert await snapshots.all() == taken
        assert stored_image(world.store, taken[1]) == image
        assert (await snapshots.take(b"/")).tree.written == 4
        await world.check()
    world.close()


def test_nothing_is_noted_before_the_first_snapshot(tmp_path) -> None:
    async def history() -> None:
        world = World(OsDisk(), tmp_path)
        async with world.running():
            await some_tree(world)
            await world.fs.sync()
            count = "SELECT count(*) FROM changed"
            assert world.namespace.query(count) == [(0,)]
            await snapshots_of(world).take(b"/")
            assert world.namespace.query(count) == [(0,)]
            world.fs.create(1, b"new", FILE, ME)
            await world.fs.sync()
            assert world.namespace.query(count) == [(2,)]
            assert snapshots_rows.tracks(world.namespace.snapshot())
        world.close()

    run(history)
