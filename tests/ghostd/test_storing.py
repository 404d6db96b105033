"""From written pieces to chunks: what is cut where, and that it ends the same whichever way."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockstore import BlockStore
from ghostd.filemap import Extent, Piece
from ghostd.storing import (
    FRAGMENTS_MAX,
    Run,
    cut_run,
    plan_cuts,
    put_spans,
    rechunk,
    split,
    store_runs,
)
from tests.ghostd.scale import STORE
from tests.ghostd.world import ROOT, World, run
from tests.simdisk import SimDisk

pytestmark = pytest.mark.usefixtures("small_scale")

slow = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def pieces(lengths: list[int], base: int, seed: int = 0) -> tuple[list[Extent], bytes]:
    rng = random.Random(seed)
    run: list[Extent] = []
    whole = b""
    for length in lengths:
        skip = rng.randint(0, 3)  # an extent may show a part of its piece only
        data = rng.randbytes(skip + length + rng.randint(0, 3))
        run.append((base + len(whole), base + len(whole) + length, Piece(data), skip))
        whole += data[skip : skip + length]
    return run, whole


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_portions_are_the_run_and_none_but_the_last_is_small(
    lengths: list[int], bytes_max: int
) -> None:
    run, _ = pieces(lengths, 1_000)
    portions = list(split(run, bytes_max))
    assert [extent for portion in portions for extent in portion] == run
    for portion in portions:
        size = portion[-1][1] - portion[0][0]
        assert size - (portion[-1][1] - portion[-1][0]) < bytes_max, "no longer than needed"
        assert size >= bytes_max or portion is portions[-1]


@given(
    base=st.integers(0, 1 << 50),
    lengths=st.lists(st.integers(1, 5_000), min_size=1, max_size=20),
    old=st.integers(0, 100_000),
    final=st.booleans(),
    fragments=st.integers(0, 30),
)
def test_planned_cuts_cover_what_is_new(
    base: int, lengths: list[int], old: int, final: bool, fragments: int
) -> None:
    start = base + min(old, sum(lengths) - 1)
    end = base + sum(lengths)
    spans, cut = plan_cuts(base, start, lengths, final=final, fragments=fragments)
    assert cut == end - lengths[-1], "the last cut is where the last chunk begins"
    for (_, a), (b, _) in itertools.pairwise(spans):
        assert b == a or (b == start and final), "chunks follow each other"
    assert all(a < b for a, b in spans)
    if not final:
        assert spans == [] or spans[-1][1] == cut
        return
    assert spans[-1][1] == end
    covered = spans[0][0]
    if fragments >= FRAGMENTS_MAX or cut > start:
        assert covered == base, "everything since the last cut is stored anew"
    else:
        assert covered in (base, start)


@slow
@given(
    runs=st.lists(
        st.tuples(st.lists(st.integers(1, 9_000), min_size=1, max_size=6), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 1 << 20),
)
def test_stored_extents_read_back_what_was_written(
    tmp_path: Path, runs: list[tuple[list[int], bool]], seed: int
) -> None:
    store = BlockStore.open(tmp_path / f"store-{seed}", STORE)
    try:
        rng = random.Random(seed)
        made: list[tuple[Run, bytes]] = []
        for number, (lengths, final) in enumerate(runs):
            start = number << 20
            prefix = rng.randbytes(rng.choice((0, 0, 300)))
            parts, data = pieces(lengths, start, seed + number)
            base = start - len(prefix)
            made.append((Run(parts, prefix, base, [], final, want_tail=True), prefix + data))
        results = store_runs(store, [run for run, _ in made])
        for (made_run, data), stored in zip(made, results, strict=True):
            _check_stored(store, made_run, data, stored.extents)
            if stored.tail is not None:
                assert made_run.final
                tail = stored.tail
                assert tail.data == data[tail.cut - made_run.base :]
                assert tail.end == made_run.end
            cut = cut_run(store, made_run)
            if cut.spans:
                same = put_spans(store, cut.data, made_run.base, cut.spans)
                assert same == stored.extents, "batch by batch is the same"
    finally:
        store.close()


def _check_stored(store: BlockStore, made: Run, data: bytes, extents: list[Extent]) -> None:
    chunks = store.fetch([e[2] for e in extents])  # type: ignore[misc]
    for start, end, source, offset in extents:
        at = start - made.base
        assert chunks[source][offset : offset + end - start] == data[at : at + end - start]  # type: ignore[index]
    if made.final:
        assert extents[-1][1] == made.end
        assert extents[0][0] <= made.start


def test_a_fragmented_stretch_becomes_canonical_chunks(tmp_path: Path) -> None:
    store = BlockStore.open(tmp_path, STORE)
    data = random.Random(1).randbytes(9_000)
    parts = [data[at : at + 90] for at in range(0, 9_000, 90)]
    extents: list[Extent] = [
        (50 + 90 * n, 140 + 90 * n, chunk_id, 0) for n, chunk_id in enumerate(store.put(parts))
    ]
    new = rechunk(store, extents)
    assert [end - start for start, end, _, _ in new] == store.cut(data)
    assert b"".join(store.fetch([e[2]])[e[2]] for e in new) == data  # type: ignore[list-item,index]
    assert (new[0][0], new[-1][1]) == (50, 9_050)
    store.close()


# --- through the filesystem --------------------------------------------------------------------


class File:
    """One open file of a running filesystem."""

    def __init__(self, world: World, name: bytes) -> None:
        self.world = world
        self.ino = world.fs.create(1, name, 0o100644, ROOT).ino
        world.fs.open(self.ino)
        self.data = b""

    async def append(self, data: bytes) -> None:
        await self.world.fs.write(self.ino, len(self.data), data)
        self.data += data

    def extents(self) -> list[tuple[int, int]]:
        """Where the chunks lie; slices at segment borders count as one."""
        found: list[Extent] = []
        for extent in self.world.tree.content(self.world.tree.inode(self.ino)).extents(
            0, len(self.data)
        ):
            start, end, source, offset = extent
            if found and found[-1][2] == source and found[-1][1] == start and offset:
                found[-1] = (found[-1][0], end, source, found[-1][3])
            else:
                found.append(extent)
        return [(start, end) for start, end, _, _ in found]

    def canonical(self) -> list[tuple[int, int]]:
        spans, at = [], 0
        for length in self.world.store.cut(self.data):
            spans.append((at, at + length))
            at += length
        return spans

    def assert_canonical(self, fragments_max: int) -> None:
        """All chunks but the last, which later appends may change, are the canonical ones."""
        canonical, found = self.canonical(), self.extents()
        assert found[: len(canonical) - 1] == canonical[:-1]
        rest = found[len(canonical) - 1 :]
        assert rest[0][0] == canonical[-1][0]
        assert len(rest) <= fragments_max


@slow
@given(
    sizes=st.lists(
        st.one_of(st.integers(1, 400), st.integers(1, 9_000), st.integers(1, 60_000)),
        min_size=1,
        max_size=25,
    ),
    seed=st.integers(0, 1 << 20),
    every=st.integers(1, 5),
)
def test_appends_with_commits_between_end_in_the_chunks_of_one_write(
    sizes: list[int], seed: int, every: int
) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        async with world.running():
            file = File(world, b"appended")
            for number, size in enumerate(sizes):
                await file.append(rng.randbytes(size))
                if number % every == 0:
                    await world.fs.sync()
            await world.fs.sync()
            file.assert_canonical(FRAGMENTS_MAX + 1)
            once = File(world, b"at once")
            await once.append(file.data)
            await world.fs.sync()
            assert once.extents() == once.canonical()
            await world.check()

    world = World(SimDisk(seed))
    try:
        run(main, seed)
    finally:
        world.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_a_log_with_a_commit_for_each_line_stays_in_few_extents(reopened: bool) -> None:
    async def main() -> None:
        rng = random.Random(4)
        async with world.running():
            file = File(world, b"log")
            most = 0
            for _ in range(400):
                await file.append(rng.randbytes(rng.randint(20, 120)))
                await world.fs.sync()
                if reopened:
                    world.fs.release(file.ino)
                    world.fs.open(file.ino)
                most = max(most, len(file.extents()) - len(file.canonical()))
            assert most <= 2 * FRAGMENTS_MAX
            if not reopened:
                file.assert_canonical(FRAGMENTS_MAX + 1)
            assert bytes(await world.fs.read(file.ino, 0, 1 << 20)) == file.data

    world = World(SimDisk(1))
    try:
        run(main)
    finally:
        world.close()


def test_small_pieces_before_a_large_one_are_stored() -> None:
    """A commit once spun for ever: a portion of the small piece alone held no cut."""

    async def main() -> None:
        rng = random.Random(2)
        async with world.running():
            file = File(world, b"file")
            await file.append(rng.randbytes(5_000))
            await file.append(b"tiny")
            await file.append(rng.randbytes(40_000))
            await world.fs.sync()
            file.assert_canonical(1)

    world = World(SimDisk(1))
    try:
        run(main)
    finally:
        world.close()
