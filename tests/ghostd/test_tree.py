"""Inodes in memory: how long they stay, what leaves, and that nothing is lost by it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostd.errors import InvalidArgument, StaleHandle
from ghostd.inodes import LookupCounts
from tests.ghostd.world import FOLDER, ROOT, World, run
from tests.simdisk import SimDisk

pytestmark = pytest.mark.usefixtures("small_scale")

FILE, DIRECTORY = 0o100644, 0o040755


def commit(world: World) -> None:
    run(world.writeback.commit_once)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(1, 600), st.integers(1, 1 << 60)),
            st.one_of(st.just(0), st.integers(1, 5)),
        ),
        max_size=200,
    )
)
@settings(deadline=None)
def test_lookup_counts_are_a_dict_of_counters(steps: list[tuple[int, int]]) -> None:
    counts = LookupCounts()
    model: dict[int, int] = {}
    for ino, dropped in steps:
        if dropped:
            left = max(0, model.get(ino, 0) - dropped)
            assert counts.drop(ino, dropped) == left
            model[ino] = left
        else:
            counts.add(ino)
            model[ino] = model.get(ino, 0) + 1
        assert counts.get(ino) == model[ino]
    assert len(counts) == sum(1 for count in model.values() if count)
    for ino, count in model.items():
        assert counts.drop(ino, count) == 0
    assert len(counts) == 0
    assert not counts._pages, "what nobody holds takes no memory"


@pytest.fixture
def world():
    world = World(SimDisk(1), inodes_max=16, segments_max=2)
    yield world
    world.close()


def test_the_cache_stays_within_its_bound_and_forgets_nothing(world: World) -> None:
    fs, rng = world.fs, random.Random(1)
    modes: dict[int, int] = {}
    for number in range(300):
        inode = fs.create(1, b"%d" % number, FILE, ROOT)
        modes[inode.ino] = inode.mode
        if number % 7 == 0:
            commit(world)
        assert len(world.tree.cache) <= 16 + 10, "only what is not committed stays beyond it"
    commit(world)
    order = list(modes) * 2
    rng.shuffle(order)
    for ino in order:
        assert world.tree.inode(ino).mode == modes[ino]
        assert len(world.tree.cache) <= 16
    assert world.tree.inode(1).children == 300


def test_a_directory_in_hand_is_not_evicted_by_what_is_created_in_it() -> None:
    """The count of its entries was lost when the new inode pushed it out of the cache."""
    world = World(SimDisk(1), inodes_max=16)
    fs = world.fs
    folders = [fs.create(1, b"d%d" % n, DIRECTORY, ROOT).ino for n in range(40)]
    commit(world)
    rng = random.Random(3)
    expected = dict.fromkeys(folders, 0)
    for number in range(400):
        folder = rng.choice(folders)
        fs.create(folder, b"%d" % number, FILE, ROOT)
        expected[folder] += 1
        if number % 3 == 0:
            other = rng.choice(folders)
            fs.rename(folder, b"%d" % number, other, b"%d" % number)
            expected[folder] -= 1
            expected[other] += 1
        commit(world)
    assert {folder: world.tree.inode(folder).children for folder in folders} == expected
    run(world.check)
    world.close()


def test_a_deep_path_is_walked_without_filling_the_cache(world: World) -> None:
    fs = world.fs
    parent = 1
    depth = 60
    chain = []
    for _ in range(depth):
        parent = fs.create(parent, b"d", DIRECTORY, ROOT).ino
        chain.append(parent)
        commit(world)
    with pytest.raises(InvalidArgument):
        fs.rename(1, b"d", chain[-1], b"loop")
    assert len(world.tree.cache) <= 16 + 4
    fs.rename(chain[-2], b"d", 1, b"top")
    commit(world)
    run(world.check)


def test_an_inode_lives_while_anything_reaches_it(world: World) -> None:
    fs, tree = world.fs, world.tree
    before = tree.inode_count
    ino = fs.create(1, b"f", FILE, ROOT).ino
    tree.lookups.add(ino)
    tree.lookups.add(ino)
    fs.open(ino)
    fs.unlink(1, b"f")
    commit(world)
    for step in (lambda: fs.release(ino), lambda: fs.forget(ino, 1)):
        assert tree.inode(ino).nlink == 0
        step()
    assert tree.inode(ino).nlink == 0, "the kernel still holds one reference"
    assert tree.inode_count == before + 1
    fs.forget(ino, 1)
    assert tree.inode_count == before
    commit(world)
    with pytest.raises(StaleHandle):
        tree.inode(ino)
    run(world.check)


def test_an_inode_that_comes_and_goes_within_an_epoch_never_reaches_the_disk(world: World) -> None:
    commit(world)
    ino = world.fs.create(1, b"f", FILE, ROOT).ino
    world.fs.setxattr(ino, b"user.x", b"1", ROOT)
    world.fs.unlink(1, b"f")
    frozen = world.tree.freeze()
    assert [row[0] for row in frozen.rows] == [1]
    assert not frozen.dead
    assert not frozen.xattrs
    world.tree.thaw(frozen)
    commit(world)
    run(world.check)


def test_what_a_crash_left_without_a_name_is_removed_at_the_start() -> None:
    disk = SimDisk(1)
    world = World(disk)
    ino = world.fs.create(1, b"f", FILE, ROOT).ino
    world.fs.open(ino)
    world.fs.unlink(1, b"f")
    commit(world)
    assert world.namespace.orphans() == [ino]
    world.close()
    world = World(disk)
    commit(world)
    assert world.namespace.orphans() == []
    run(world.check)
    world.close()
    assert disk.exists(FOLDER / "namespace.db")


def test_numbers_are_not_used_again_after_a_restart() -> None:
    disk = SimDisk(1)
    seen: set[tuple[int, int]] = set()
    for _ in range(4):
        world = World(disk)
        for number in range(3):
            inode = world.fs.create(1, b"%d" % number, FILE, ROOT)
            assert (inode.ino, inode.generation) not in seen
            seen.add((inode.ino, inode.generation))
        for number in range(3):
            world.fs.unlink(1, b"%d" % number)
        world.close()  # without a commit: the numbers come back, under a new generation
