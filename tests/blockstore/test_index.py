"""The index against a dict: batches, newer rows, packs that go, merges, restarts."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest

from blockstore.errors import OrbitError, StorageFailed
from blockstore.ids import ChunkId, Location, PackId, chunk_id
from blockstore.index import Index, IndexDamaged, PackRow, PackState, RootRow
from tests.simdisk import SimDisk, SimulatedCrash, abandon

UUID = b"u" * 16


def pack_row(number: int) -> PackRow:
    return PackRow(PackId(number), 1000, 10, PackState.SEALED)


def batch(rng: random.Random, pack: int, count: int, universe: int) -> dict[ChunkId, Location]:
    return {
        chunk_id(b"%d" % rng.randrange(universe)): Location(PackId(pack), 64 + 100 * i, 36)
        for i in range(count)
    }


@pytest.mark.parametrize("seed", range(4))
def test_index_agrees_with_a_dict(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "chunks.db"
    index = Index.create(path, None, UUID)
    model: list[dict[ChunkId, Location]] = []  # newest first, one a batch
    packs: set[int] = set()
    for number in range(1, 40):
        rows = batch(rng, number, rng.randint(0, 200), 1500)
        index.add(rows, [pack_row(number)])
        model.insert(0, rows)
        packs.add(number)
        if rng.random() < 0.2:
            gone = PackId(rng.choice(sorted(packs)))
            index.condemn([gone])
            index.forget([gone])
            packs.discard(gone)
        if rng.random() < 0.3:
            index.merge()
        if rng.random() < 0.2:
            index.close()
            index = Index.load(path, None, UUID)
        assert set(index.packs) == packs
        sought = [chunk_id(b"%d" % rng.randrange(1600)) for _ in range(150)]
        expected = {}
        for name in sought:
            for rows in model:
                if name in rows and rows[name].pack in packs:
                    expected[name] = rows[name]
                    break
        assert index.lookup(sought) == expected
    assert index.integrity() == []
    index.merge()
    assert index.run_count < 10
    index.close()


def test_lookups_go_on_while_runs_are_merged(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "chunks.db", None, UUID)
    rng = random.Random(1)
    rows: dict[ChunkId, Location] = {}
    wrong: list[ChunkId] = []
    done = threading.Event()
    index.add({}, [pack_row(1)])

    def look() -> None:
        while not done.is_set():
            some = rng.sample(sorted(rows), 20) if rows else []
            found = index.lookup(some)
            wrong.extend(name for name in some if name not in found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(60):
            new = batch(rng, 1, 50, 10**9)
            index.add(new)
            rows = {**rows, **new}
            index.merge()
    finally:
        done.set()
        thread.join()
    assert wrong == []
    assert index.run_count < 10
    index.close()


def test_roots_follow_their_packs(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "chunks.db", None, UUID)
    roots = [RootRow(n, Location(PackId(n), 64, 9)) for n in (1, 2, 3)]
    index.add({}, [pack_row(n) for n in (1, 2, 3)], roots)
    assert index.roots() == roots
    index.condemn([PackId(2)])
    assert index.roots() == [roots[0], roots[2]]
    index.close()


def test_an_interrupted_merge_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "chunks.db"
    index = Index.create(path, None, UUID)
    index.add(batch(random.Random(0), 1, 10, 100), [pack_row(1)])
    index._writer.execute("CREATE TABLE run_77 (id BLOB PRIMARY KEY) WITHOUT ROWID")
    index.close()
    index = Index.load(path, None, UUID)
    assert index.run_tables() == ["run_1"]
    tables = index._writer.execute("SELECT name FROM sqlite_schema WHERE name = 'run_77'")
    assert tables.fetchall() == []
    index.close()


@pytest.mark.parametrize("damage", ["garbage", "empty", "foreign", "table gone"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "chunks.db"
    index = Index.create(path, None, UUID)
    index.add(batch(random.Random(0), 1, 10, 100), [pack_row(1)])
    if damage == "table gone":
        index._writer.execute("DROP TABLE run_1")
    index.close()
    if damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    with pytest.raises(IndexDamaged):
        Index.load(path, None, b"v" * 16 if damage == "foreign" else UUID)


PATH = Path("/state/chunks.db")


def open_on(disk: SimDisk) -> Index:
    disk.mkdir(PATH.parent)
    return Index.load(PATH, disk, UUID) if disk.exists(PATH) else Index.create(PATH, disk, UUID)


def test_a_failed_read_is_our_error_and_the_next_lookup_works() -> None:
    disk = SimDisk(0)
    index = open_on(disk)
    rows = batch(random.Random(0), 1, 500, 10**9)
    index.add(rows, [pack_row(1)])
    index.close()
    index = open_on(disk)
    disk.fail_reads(PATH, StorageFailed("unreadable"))
    with pytest.raises(StorageFailed, match=r"reading or writing .* failed"):
        index.lookup(rows)
    disk.heal()
    assert index.lookup(rows) == rows
    index.close()


def fill(index: Index, batches: int, known: dict[ChunkId, Location]) -> None:
    """Tell it of so many packs; what it took is in `known`. A failure is the caller's."""
    for _ in range(batches):
        number = len(index.packs) + 1
        rows = {
            chunk_id(b"%d-%d" % (number, i)): Location(PackId(number), 64 + 100 * i, 36)
            for i in range(40)
        }
        index.add(rows, [pack_row(number)])
        known.update(rows)


def assert_prefix(index: Index, known: dict[ChunkId, Location]) -> None:
    """The database is sound, and has the packs up to some moment with all of their rows."""
    assert index.integrity() == []
    assert sorted(index.packs) == list(range(1, len(index.packs) + 1))
    expected = {name: place for name, place in known.items() if place.pack in index.packs}
    assert index.lookup(known) == expected


def work(index: Index, known: dict[ChunkId, Location]) -> None:
    """Enough for several checkpoints and merges; what fails is tried again later."""
    for _ in range(20):
        with contextlib.suppress(OrbitError):
            fill(index, 3, known)
            index.merge()


@pytest.mark.parametrize("block", range(4))
def test_a_failed_sync_never_mixes_old_and_new_pages(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """A sync fails, work goes on with checkpoints, the power goes at any change after it."""
    monkeypatch.setattr("blockstore.database.LOG_PAGES_MAX", 30)
    disk = SimDisk(0)
    index = open_on(disk)
    start = disk.operations
    work(index, {})
    syncs = [number - start for number in disk.syncs if number > start]
    assert len(syncs) > 10
    index.close()
    for seed in range(block * 60, block * 60 + 60):
        rng = random.Random(seed)
        disk = SimDisk(seed)
        index = open_on(disk)
        known: dict[ChunkId, Location] = {}
        failing = rng.choice(syncs[:-4])
        disk.fail_at(failing, StorageFailed("broken"))
        disk.crash_at(failing + rng.randint(1, 60))
        with contextlib.suppress(SimulatedCrash):
            work(index, known)
        assert disk.crashed
        after = disk.crash()
        abandon(index.close)
        index = open_on(after)
        assert_prefix(index, known)
        index.close()


def test_what_is_durable_stays_after_a_failure_before_it() -> None:
    """The state of removed packs is durable when condemn() returns, also the second time."""
    for seed in range(60):
        disk = SimDisk(seed)
        index = open_on(disk)
        known: dict[ChunkId, Location] = {}
        fill(index, 5, known)
        disk.fail_at(1 + seed % 12, StorageFailed("broken"))
        with contextlib.suppress(OrbitError):
            index.condemn([PackId(2)])
        disk.heal()
        index.condemn([PackId(2)])
        after = disk.crash()
        abandon(index.close)
        index = open_on(after)
        assert index.packs.get(PackId(2)) in (None, pack_row(2)._replace(state=PackState.CONDEMNED))
        index.close()
