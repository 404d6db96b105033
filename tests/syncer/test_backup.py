"""Backups: what is read back is what was there, and only what changed is read or written."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from blockstore import BlockStore, StoreOptions
from blockstore.errors import OrbitError, StorageFull
from blockstore.ids import Buffer, ChunkId
from syncer import backup as backup_module
from syncer import backup_assembly, backup_scan
from syncer.backup import Backup, Failure, Previous, backup
from syncer.catalogue import FolderCatalogue, Snapshot, SnapshotFolder
from syncer.local_tree import LocalTree
from syncer.options import Options, Symlinks
from syncer.remotes.errors import Changed, Denied, RemoteError, Unreachable, Unsupported
from syncer.snapshot_check import damaged_paths, live_chunks, snapshot_check
from syncer.snapshot_tree import SnapshotTree
from syncer.tree import Metadata, Node, NodeKind, PageSink, Tree
from tests.simdisk import SimDisk, SimulatedCrash, abandon
from tests.syncer.stored import MemoryStore

OLD_NS = 1_600_000_000_000_000_000
ROOT_USER = os.geteuid() == 0


def settle(folder: Path) -> None:
    """Let nothing look as if it had been changed a moment ago."""
    for number, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
        if not path.is_symlink():
            os.utime(path, ns=(OLD_NS, OLD_NS + number))
    os.utime(folder, ns=(OLD_NS, OLD_NS))


def grow(folder: Path, rng: random.Random, nodes: int) -> None:
    """Add nodes of all kinds below a folder."""
    folders = [
        folder,
        *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()),
    ]
    for _ in range(nodes):
        where = rng.choice(folders)
        name = os.fsdecode(rng.randbytes(rng.randint(1, 12)).translate(None, b"/\0.") or b"x")
        path = where / name
        if os.path.lexists(path):
            continue
        kind = rng.randrange(12)
        if kind < 5:
            path.write_bytes(rng.randbytes(rng.choice((0, 1, 1_000, 70_000))))
        elif kind < 7:
            path.mkdir()
            folders.append(path)
        elif kind == 7:
            path.symlink_to(os.fsdecode(rng.randbytes(8).replace(b"\0", b"0")))
        elif kind == 8:
            with path.open("wb") as file:
                file.truncate(5_000_000)
                file.seek(rng.randrange(4_000_000))
                file.write(rng.randbytes(10_000))
        elif kind == 9:
            os.mkfifo(path)
        elif kind == 10:
            files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
            if files:
                os.link(rng.choice(files), path)
        else:
            path.write_bytes(b"x")
            os.setxattr(path, b"user.test", rng.randbytes(rng.choice((1, 2_000))))
            path.chmod(rng.choice((0o600, 0o755, 0o4711)))


def change(folder: Path, rng: random.Random) -> None:
    """Change, remove and add some nodes; times say so."""
    for path in sorted(folder.rglob("*")):
        if not os.path.lexists(path) or rng.random() > 0.2:
            continue
        if path.is_dir() and not path.is_symlink():
            path.chmod(rng.choice((0o700, 0o755)))
        elif rng.random() < 0.5:
            path.unlink()
        elif path.is_file() and not path.is_symlink():
            path.write_bytes(rng.randbytes(3_000))
    grow(folder, rng, 10)


async def every_node(tree: Tree, path: bytes = b"") -> dict[bytes, Node]:
    found = {path: (await tree.stat(path))._replace(name=path.rpartition(b"/")[2])}
    listed: list[Node] = []

    async def take(page: Sequence[Node]) -> None:
        listed.extend(page)
        await trio.lowlevel.checkpoint()

    if found[path].kind is NodeKind.DIRECTORY:
        await tree.list(path, take)
    for node in listed:
        below = path + b"/" + node.name if path else node.name
        found |= await every_node(tree, below)
    return found


async def contents(tree: Tree, path: bytes, node: Node) -> tuple[bytes, Mapping[bytes, bytes]]:
    data = await tree.read(path, node, 0, node.size) if node.kind is NodeKind.FILE else b""
    return data, await tree.xattrs(path)


def links(nodes: Mapping[bytes, Node]) -> set[frozenset[bytes]]:
    """The names of each hard-linked file."""
    groups: dict[object, set[bytes]] = {}
    for path, node in nodes.items():
        if node.link is not None:
            groups.setdefault(node.link, set()).add(path)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


async def assert_same(tree: Tree, copy: Tree, *, holes: bool = True) -> None:
    ours, theirs = await every_node(tree), await every_node(copy)
    assert ours.keys() == theirs.keys()
    assert links(ours) == links(theirs)
    for path, node in ours.items():
        other = theirs[path]
        assert other[:7] == node[:7], path
        assert (other.target, other.owner, other.group) == (node.target, node.owner, node.group)
        assert await contents(copy, path, other) == await contents(tree, path, node), path
        if holes and node.kind is NodeKind.FILE:
            ranges = await tree.data_ranges(path, node)
            assert await copy.data_ranges(path, other) == (ranges or []), path


async def run(
    tree: Tree, store: MemoryStore, previous: Backup | None = None, **more: object
) -> tuple[Backup, list[Failure]]:
    failures: list[Failure] = []
    result = await backup(
        tree,
        store,
        None if previous is None else previous.previous,
        failed=failures.append,
        **more,  # type: ignore[arg-type]
    )
    assert result.progress.failed == len(failures)
    return result, failures


@pytest.mark.parametrize("seed", range(4))
async def test_random_trees_from_backup_to_backup(tmp_path: Path, seed: int) -> None:
    """Read back equal; an incremental backup is the tree that a fresh one is."""
    rng = random.Random(seed)
    source = tmp_path / "source"
    source.mkdir()
    grow(source, rng, 60)
    settle(source)
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    previous: Backup | None = None
    for _ in range(3):
        result, failures = await run(tree, store, previous)
        assert failures == []
        snapshot = SnapshotTree(store, result.root)
        await assert_same(tree, snapshot)
        fresh, _ = await run(tree, MemoryStore())
        assert fresh.root == result.root
        again, _ = await run(snapshot, MemoryStore())  # by the path that all other trees take
        assert again.root == result.root
        assert result.sums.nodes == len(await every_node(tree)) - 1
        previous = result
        change(source, rng)
    await tree.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number in range(30):
        below = folder / f"d{number % 5}" / "e"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"file {number}").write_bytes(b"%d" % number * 1_000)
    settle(folder)
    return folder


async def test_what_did_not_change_is_neither_read_nor_written(source: Path) -> None:
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    assert (first.progress.files_read, first.progress.files) == (30, 30)
    count, stored = store.put_count, len(store.new)
    second, _ = await run(tree, store, first)
    assert second.previous == first.previous
    assert second.progress.files_read == second.progress.bytes_read == 0
    assert second.progress.files_unchanged == 30
    assert second.progress.directories_unchanged == 11
    assert store.put_count - count == 2  # the root and its token
    assert len(store.new) == stored

    (source / "d3" / "e" / "new").write_bytes(b"new")
    third, _ = await run(tree, store, second)
    assert third.progress.files_read == 1
    assert third.progress.directories_unchanged == 8
    # The file, three directories, their tokens, the root and its token.
    assert len(store.new) - stored == 9
    await tree.close()


async def test_unchanged_directories_are_handed_on_a_few_at_a_time(tmp_path: Path) -> None:
    """Between walk and assembly are messages: what one of them holds is what memory holds."""
    source = tmp_path / "source"
    for number in range(50):
        (source / str(number)).mkdir(parents=True)
        for name in range(100):
            (source / str(number) / str(name)).touch()
    settle(source)
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    seen: list[int] = []
    again, _ = await run(tree, store, first, progress=lambda now: seen.append(now.nodes))
    await tree.close()
    assert again.progress.files_unchanged == 5_000
    assert seen[-1] == 5_050
    assert max(now - before for before, now in pairwise([0, *seen])) < 3_000


async def test_checksum_reads_all(source: Path) -> None:
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    second, _ = await run(tree, store, first, options=Options(checksum=True))
    assert second.progress.files_read == 30
    assert second.root == first.root
    await tree.close()


async def test_a_change_that_puts_size_and_time_back_is_seen(source: Path) -> None:
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    path = source / "d0" / "e" / "file 0"
    found = path.stat()
    path.write_bytes(b"Z" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    second, _ = await run(tree, store, first)
    assert second.progress.files_read == 1
    copy = SnapshotTree(store, second.root)
    node = await copy.stat(b"d0/e/file 0")
    assert await copy.read(b"d0/e/file 0", node, 0, 5) == b"ZZZZZ"
    await tree.close()


async def test_what_changed_a_moment_ago_is_read_again(source: Path) -> None:
    """It could have changed once more without showing it."""
    (source / "fresh").write_bytes(b"fresh")
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    second, _ = await run(tree, store, first)
    assert second.progress.files_read == 1
    assert second.root == first.root
    await tree.close()


@pytest.mark.skipif(not ROOT_USER, reason="symlinks have attributes of root's alone")
async def test_attributes_of_symlinks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("link", "bare"):
        (source / name).symlink_to("nowhere")
    os.setxattr(source / "link", b"trusted.note", b"1", follow_symlinks=False)
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, failures = await run(tree, store)
    assert not failures
    copy = SnapshotTree(store, first.root)
    assert await copy.xattrs(b"link") == await tree.xattrs(b"link") == {b"trusted.note": b"1"}
    assert await copy.xattrs(b"bare") == {}
    assert (await copy.stat(b"link")).target == b"nowhere"

    os.setxattr(source / "link", b"trusted.note", b"2", follow_symlinks=False)
    second, _ = await run(tree, store, first)
    assert await SnapshotTree(store, second.root).xattrs(b"link") == {b"trusted.note": b"2"}

    target = await LocalTree.open(os.fsencode(tmp_path / "target"))
    await target.mkdir(b"", Metadata())
    node = await copy.stat(b"link")
    assert node.target is not None
    xattrs = await copy.xattrs(b"link")
    await target.symlink(b"link", node.target, Metadata(xattrs=xattrs))
    assert await target.xattrs(b"link") == xattrs
    await target.close()
    await tree.close()


async def test_a_tree_can_be_a_single_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    tree = await LocalTree.open(os.fsencode(path))
    store = MemoryStore()
    first, failures = await run(tree, store)
    assert failures == []
    copy = SnapshotTree(store, first.root)
    node = await copy.stat(b"")
    assert (node.kind, await copy.read(b"", node, 0, 7)) == (NodeKind.FILE, b"content")
    assert (first.sums.nodes, first.sums.files, first.sums.bytes) == (1, 1, 7)
    second, _ = await run(tree, store, first)
    assert second.progress.files_read == 0
    assert second.previous == first.previous
    await tree.close()


async def test_large_files_in_parts_with_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(5)
    (source / "big").write_bytes(rng.randbytes(13_000_001))
    with (source / "sparse").open("wb") as file:
        for at in (3_000_000, 40_000_000):
            file.seek(at)
            file.write(rng.randbytes(6_000_000))
        file.truncate(90_000_000)
    settle(source)
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    result, failures = await run(tree, store)
    assert failures == []
    await assert_same(tree, SnapshotTree(store, result.root))
    assert result.progress.bytes_read <= 13_000_001 + 2 * 6_100_000
    other = MemoryStore()
    again, _ = await run(SnapshotTree(store, result.root), other)
    assert again.root == result.root
    count = len(store.new)
    with (source / "big").open("r+b") as file:
        file.seek(6_000_000)
        file.write(b"changed")
    changed, _ = await run(tree, store, result)
    assert changed.progress.files_read == 1
    assert len(store.new) - count <= 8
    await assert_same(tree, SnapshotTree(store, changed.root))
    await tree.close()


async def test_a_large_directory_goes_through_a_scratch_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_scan, "SORTED_MAX", 700)
    monkeypatch.setattr(backup_scan, "_PAGE", 300)
    monkeypatch.setattr(backup_assembly, "_HELD", 500)
    source = tmp_path / "source"
    (source / "many").mkdir(parents=True)
    for number in range(2_500):
        (source / "many" / f"{number * 7919 % 2500}").touch()
    (source / "many" / "5x").mkdir()
    (source / "many" / "5x" / "below").write_bytes(b"below")
    settle(source)
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    await assert_same(tree, SnapshotTree(store, first.root), holes=False)
    second, _ = await run(tree, store, first)
    assert second.previous == first.previous
    assert second.progress.files_read == 0
    (source / "many" / "1000").unlink()
    third, _ = await run(tree, store, second)
    assert third.sums.nodes == first.sums.nodes - 1
    monkeypatch.undo()
    fresh, _ = await run(tree, MemoryStore())
    assert fresh.root == third.root
    await tree.close()


async def test_more_hard_links_than_memory_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "_LINKS_MAX", 3)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"a{number}").write_bytes(b"%d" % number)
    for number in range(20):
        os.link(source / f"a{number}", source / f"b{number}")
    settle(source)
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, failures = await run(tree, store)
    assert failures == []
    assert first.progress.files_read == 20
    await assert_same(tree, SnapshotTree(store, first.root))
    second, _ = await run(tree, store, first)
    assert second.previous == first.previous
    assert second.progress.files_read == 0
    await tree.close()


async def test_a_cancelled_backup_ends(source: Path) -> None:
    """In the middle of a file that never comes; another one works afterwards."""
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    whole, _ = await run(tree, store)
    asked = trio.Event()

    class Silent(SnapshotTree):
        async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
            asked.set()
            await trio.sleep_forever()
            raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, Silent(store, whole.root), MemoryStore())
        await asked.wait()
        nursery.cancel_scope.cancel()
    assert (await run(tree, store, whole))[0].root == whole.root
    await tree.close()


class Touchy(MemoryStore):
    """A store that lets something happen while a file is being read."""

    def __init__(self, happens: Callable[[], None], times: int) -> None:
        super().__init__()
        self._happens = happens
        self._times = times

    def cut(self, data: Buffer) -> list[int]:
        if self._times and bytes(data[:2]) in {b"v0", b"v1"}:
            self._times -= 1
            self._happens()
        return super().cut(data)


@pytest.mark.parametrize("size", [50_000, 9_000_000])
async def test_a_file_that_changes_while_it_is_read(tmp_path: Path, size: int) -> None:
    """It is stored as it was at one moment, or not at all."""
    path = tmp_path / "source" / "file"
    path.parent.mkdir()
    path.write_bytes(b"v0" * (size // 2))
    tree = await LocalTree.open(os.fsencode(path.parent))

    def rewrite() -> None:
        path.write_bytes(b"v1" * (size // 2))

    store = Touchy(rewrite, 1)
    result, failures = await run(tree, store)
    assert failures == []
    copy = SnapshotTree(store, result.root)
    assert await copy.read(b"file", await copy.stat(b"file"), 0, size) == b"v1" * (size // 2)

    store = Touchy(rewrite, 1_000)
    result, failures = await run(tree, store)
    assert [(each.path, type(each.error)) for each in failures] == [(b"file", Changed)]
    assert result.sums.nodes == 0
    await tree.close()


class Faulty(SnapshotTree):
    """A tree in which some paths cannot be read."""

    def __init__(self, store: MemoryStore, root: ChunkId, bad: Mapping[bytes, RemoteError]) -> None:
        super().__init__(store, root)
        self.bad = bad

    async def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        if path in self.bad:
            raise self.bad[path]
        return await super().read(path, node, offset, length)

    async def list(self, path: bytes, sink: PageSink) -> None:
        if path in self.bad:
            raise self.bad[path]
        await super().list(path, sink)


async def test_what_cannot_be_read_is_reported_and_the_rest_is_there(source: Path) -> None:
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    whole, _ = await run(tree, store)
    bad = {b"d1/e/file 6": Denied("no"), b"d2/e": Unreachable("gone")}
    result, failures = await run(Faulty(store, whole.root, bad), store)
    assert {each.path: each.error for each in failures} == bad
    copy = await every_node(SnapshotTree(store, result.root))
    missing = {p for p in await every_node(tree) if p == b"d1/e/file 6" or p.startswith(b"d2/e/")}
    assert copy.keys() == (await every_node(tree)).keys() - missing
    # What failed is tried again.
    again, failures = await run(SnapshotTree(store, whole.root), store, result)
    assert (again.root, failures) == (whole.root, [])
    await tree.close()


@pytest.mark.skipif(ROOT_USER, reason="root may read everything")
async def test_files_of_others_are_reported(source: Path) -> None:
    (source / "d0" / "e" / "file 0").chmod(0)
    tree = await LocalTree.open(os.fsencode(source))
    _, failures = await run(tree, MemoryStore())
    assert [type(each.error) for each in failures] == [Denied]
    await tree.close()


async def test_filters_and_options(source: Path) -> None:
    (source / "link").symlink_to("d0")
    os.mkfifo(source / "pipe")
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    result, _ = await run(
        tree,
        store,
        options=Options(symlinks=Symlinks.SKIP, specials=False),
        keeps=lambda path, _: not path.startswith(b"d1") and not path.endswith(b"7"),
    )
    found = await every_node(SnapshotTree(store, result.root))
    assert {path for path in found if b"/" not in path} == {b"", b"d0", b"d2", b"d3", b"d4"}
    assert b"d2/e/file 7" not in found
    assert b"d2/e/file 2" in found
    # Later all of it is wanted.
    whole, _ = await run(tree, store, result)
    assert whole.root == (await run(tree, MemoryStore()))[0].root
    with pytest.raises(Unsupported):
        await run(tree, store, options=Options(symlinks=Symlinks.FOLLOW))
    await tree.close()


async def test_a_full_store_ends_the_backup(source: Path) -> None:
    class Full(MemoryStore):
        def put(self, chunks: Sequence[Buffer]) -> list[ChunkId]:
            if self.put_count > 10:
                raise StorageFull("no space")
            return super().put(chunks)

    tree = await LocalTree.open(os.fsencode(source))
    with pytest.raises(StorageFull):
        await run(tree, Full())
    await tree.close()


async def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    tree = await LocalTree.open(os.fsencode(tmp_path / "none"))
    with pytest.raises(RemoteError):
        await run(tree, MemoryStore())
    await tree.close()


async def test_a_damaged_previous_backup_costs_reading(source: Path) -> None:
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    expected = first.root
    for lost in list(store.chunks):
        kept = dict(store.chunks)
        del store.chunks[lost]
        again, failures = await run(tree, store, first, options=Options(checksum=True))
        assert (again.root, failures) == (expected, [])
        store.chunks = kept
    unknown = Previous(ChunkId(b"x" * 32), ChunkId(b"y" * 32))
    result = await backup(tree, store, unknown)
    assert result.root == expected
    await tree.close()


async def test_check_and_live_chunks_know_everything(source: Path) -> None:
    with (source / "many").open("wb") as file:  # its recipe has objects of its own
        file.write(random.Random(1).randbytes(6_000_000))
    os.setxattr(source / "d1", b"user.large", random.Random(2).randbytes(3_000))
    tree = await LocalTree.open(os.fsencode(source))
    store = MemoryStore()
    first, _ = await run(tree, store)
    (source / "other").write_bytes(b"other")
    second, _ = await run(tree, store, first)
    roots = [each.previous for each in (first, second)]
    live = [name for batch in live_chunks(store, roots) for name in batch]
    assert set(live) == set(store.chunks)
    assert len(live) < 1.5 * len(store.chunks)  # what two snapshots share is looked at once
    for data in (False, True):
        assert snapshot_check(store, roots, data=data).ok
    for lost in store.new:
        kept = store.chunks.pop(lost)
        report = snapshot_check(store, roots)
        assert set(report.problems) == {lost}
        store.chunks[lost] = kept
    lost = next(name for name in store.new if store.chunks[name] == b"other")
    assert [path for path, _ in damaged_paths(store, second.root, {lost})] == [b"other"]
    assert list(damaged_paths(store, first.root, {lost})) == []
    await tree.close()


STORE = StoreOptions(pack_bytes_max=1 << 14, pending_chunks_max=12, cache_bytes_max=0)


async def test_power_cuts_leave_whole_snapshots(tmp_path: Path) -> None:
    """Whenever the power goes: what the catalogue has is there, to the last byte."""
    source = tmp_path / "source"
    rng = random.Random(3)
    source.mkdir()
    for number in range(12):
        (source / f"f{number}").write_bytes(rng.randbytes(900))
    (source / "d").mkdir()
    (source / "d" / "x").write_bytes(rng.randbytes(20_000))
    settle(source)
    folder = Path("/state/store")
    records = Path("/state/snapshots")

    async def life(disk: SimDisk, done: list[str]) -> None:
        store = None
        try:
            store = BlockStore.open(folder, STORE, disk)
            catalogue = FolderCatalogue(records, disk)
            tree = await LocalTree.open(os.fsencode(source))
            previous = None
            for name in ("one", "two"):
                (source / "f1").write_bytes(name.encode() * 300)
                result = await backup(tree, store, previous)
                await trio.to_thread.run_sync(store.sync)
                snapshot = Snapshot(name, 1, result.root, result.sums, tokens=result.tokens)
                await catalogue.add(snapshot)
                done.append(name)
                previous = result.previous
            await tree.close()
            store.close()
        except (SimulatedCrash, OrbitError):
            assert disk.crashed
        finally:
            if store is not None:
                abandon(store.close)

    whole = SimDisk(0)
    await life(whole, done := [])
    assert done == ["one", "two"]
    total = whole.operations
    assert total > 40
    step = max(1, total // 25)
    recorded = set()
    for number in range(1 + rng.randrange(step), total + 1, step):
        disk = SimDisk(number)
        disk.crash_at(number)
        done = []
        await life(disk, done)
        after = disk.crash()
        store = BlockStore.open(folder, STORE, after)
        found = SnapshotFolder(records, after).list()
        assert found.damaged == []
        assert [each.name for each in found.snapshots][: len(done)] == done
        recorded.add(len(found.snapshots))
        roots = [(each.root, each.tokens) for each in found.snapshots]
        report = snapshot_check(store, roots, data=True)
        assert report.ok, (number, report.problems)
        store.close()
    assert recorded >= {0, 1}
