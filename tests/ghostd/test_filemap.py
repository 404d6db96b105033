"""A file's map against plain bytes with holes, through writes, commits, failures and eviction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ghostd.filemap import (
    FRAGMENTS_MIN,
    Extent,
    FileMap,
    Piece,
    Tail,
    chunk_ids,
    decode_segment,
    encode_segment,
    fragmented,
    origin,
)
from tests.ghostd.scale import SEGMENT

pytestmark = pytest.mark.usefixtures("small_scale")

LONG = 5 * SEGMENT


class Rows:
    """The segments of one file as a database would keep them."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, bytes]] = {}

    def load_segment(self, ino: int, number: int) -> bytes | None:
        assert ino == 7
        row = self.rows.get(number)
        return None if row is None else row[1]

    def segment_sizes(self, ino: int, first: int) -> Sequence[tuple[int, int]]:
        assert ino == 7
        return [(number, row[0]) for number, row in self.rows.items() if number >= first]

    def segment_numbers(self, ino: int, first: int, limit: int) -> Sequence[int]:
        assert ino == 7
        return sorted(number for number in self.rows if number >= first)[:limit]

    def apply(self, cut: int | None, segments: dict[int, list[Extent]]) -> None:
        if cut is not None:
            self.rows = {number: row for number, row in self.rows.items() if number < cut}
        for number, extents in segments.items():
            length = sum(end - start for start, end, _, _ in extents)
            self.rows[number] = (length, encode_segment(number, extents))
            if not length:
                del self.rows[number]


class Chunks:
    """Chunk ids and their bytes."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def put(self, data: bytes) -> bytes:
        chunk_id = hashlib.sha256(data).digest()
        self.data[chunk_id] = data
        return chunk_id

    def shown(self, extents: Sequence[Extent]) -> list[tuple[int, bytes]]:
        found = []
        for start, end, source, offset in extents:
            data = source.data if isinstance(source, Piece) else self.data[source]
            assert 0 <= offset <= offset + end - start <= len(data)
            found.append((start, data[offset : offset + end - start]))
        return found

    def store(self, run: list[Extent], size: int) -> tuple[list[Extent], set]:
        """The run as chunks of at most `size` bytes, and what they replace."""
        data = b"".join(data for _, data in self.shown(run))
        base = run[0][0]
        new: list[Extent] = []
        for at in range(0, len(data), size):
            part = data[at : at + size]
            new.append((base + at, base + at + len(part), self.put(part), 0))
        return new, {origin(extent) for extent in run}


class Plain:
    """Bytes and which of them are not holes."""

    def __init__(self) -> None:
        self.data = bytearray(LONG + SEGMENT)
        self.solid = bytearray(LONG + SEGMENT)

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.solid[offset : offset + len(data)] = b"\1" * len(data)

    def truncate(self, size: int) -> None:
        self.data[size:] = bytes(len(self.data) - size)
        self.solid[size:] = bytes(len(self.solid) - size)

    def frozen(self) -> tuple[bytes, bytes]:
        return bytes(self.data), bytes(self.solid)


def laid_out(shown: list[tuple[int, bytes]]) -> tuple[bytes, bytes]:
    plain = Plain()
    position = 0
    for start, data in shown:
        assert start >= position, "extents overlap"
        assert data, "an extent is empty"
        plain.write(start, data)
        position = start + len(data)
    return plain.frozen()


# Writes of so many bytes at an offset; 0 bytes: truncate there.
CHANGES = st.lists(
    st.tuples(st.integers(0, LONG - 1), st.sampled_from([0, 0, 10, 2_000])), max_size=3
)


class MapMachine(RuleBasedStateMachine):
    """Operations, and commits whose steps may lie anywhere between them."""

    @initialize(segments_max=st.sampled_from([1, 2, 3, 100]))
    def start(self, segments_max: int) -> None:
        self.rows = Rows()
        self.chunks = Chunks()
        self.segments_max = segments_max
        self.map = FileMap(7, self.rows, stored=False, segments_max=segments_max)
        self.plain = Plain()
        self.allocated = 0
        self.barrier: tuple[bytes, bytes] | None = None  # what the frozen epoch holds
        self.applied = False
        self.written = 0

    @rule(offset=st.integers(0, LONG - 1), length=st.sampled_from([1, 100, 3_000, SEGMENT + 5]))
    def write(self, offset: int, length: int) -> None:
        length = min(length, LONG - offset)
        self.written += 1
        data = self.written.to_bytes(4, "little") * (length // 4 + 1)
        self.plain.write(offset, data[:length])
        self.allocated += self.map.write(offset, data[:length])

    @rule(size=st.one_of(st.integers(0, LONG), st.sampled_from([0, SEGMENT, 2 * SEGMENT])))
    def truncate(self, size: int) -> None:
        self.plain.truncate(size)
        self.allocated = self.map.truncate(size, self.allocated)

    @rule(which=st.integers(0, 9), size=st.sampled_from([50, 4_096, SEGMENT * 2]))
    def ingest(self, which: int, size: int) -> None:
        runs = list(self.map.live_runs(0))
        if runs:
            self.map.place(*self.chunks.store(runs[which % len(runs)], size))

    @rule(start=st.integers(0, LONG), length=st.integers(0, LONG))
    def read(self, start: int, length: int) -> None:
        end = min(start + length, LONG)
        found = laid_out(self.chunks.shown(self.map.extents(start, end)))
        for mine, model in zip(found, self.plain.frozen(), strict=True):
            assert mine[start:end] == model[start:end]
            assert not any(mine[:start])
            assert not any(mine[end:])

    # --- a commit ------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: self.barrier is None and self.map.changed)
    def freeze(self) -> None:
        self.map.freeze()
        self.barrier = self.plain.frozen()
        self.applied = False
        assert not self.map.changed

    @rule(size=st.sampled_from([64, 4_096]))
    @precondition(lambda self: self.barrier is not None and not self.applied)
    def store_and_apply(self, size: int) -> None:
        for run in list(self.map.frozen_runs()):
            self.map.place(*self.chunks.store(run, size))
        assert not list(self.map.frozen_runs())
        self.map.encoded = True
        assert self.map.frozen is not None
        self.rows.apply(self.map.frozen_cut, self.map.frozen)
        self.applied = True
        blobs = [
            decode_segment(number, blob) for number, (_, blob) in sorted(self.rows.rows.items())
        ]
        stored = laid_out(self.chunks.shown([extent for blob in blobs for extent in blob]))
        assert stored == self.barrier, "the database holds the epoch, whole, and nothing later"

    @rule()
    @precondition(lambda self: self.applied)
    def committed(self) -> None:
        self.map.committed()
        self.barrier, self.applied = None, False

    @rule(stored=st.integers(0, 3))
    @precondition(lambda self: self.barrier is not None and not self.applied)
    def fail(self, stored: int) -> None:
        for run in list(self.map.frozen_runs())[:stored]:
            self.map.place(*self.chunks.store(run, 1_000))
        self.map.thaw()
        self.barrier = None
        assert not self.map.clean

    @rule(first=CHANGES, second=CHANGES, then=CHANGES)
    @precondition(lambda self: self.barrier is None and self.map.changed)
    def commit_with_changes_between(self, first: list, second: list, then: list) -> None:
        self.freeze()
        self._change(first)
        self.store_and_apply(500)
        self._change(second)
        self.committed()
        self._change(then)

    def _change(self, changes: list[tuple[int, int]]) -> None:
        for offset, length in changes:
            if length:
                self.write(offset, length)
            else:
                self.truncate(offset)

    @rule()
    @precondition(lambda self: self.map.clean)
    def forget_and_load(self) -> None:
        self.map = FileMap(7, self.rows, stored=True, segments_max=self.segments_max)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "map"):
            return
        extents = [e for segment in self.map.segments.values() for e in segment]
        assert self.map.unstored == sum(e[1] - e[0] for e in extents if isinstance(e[2], Piece))
        assert self.allocated == self.plain.solid.count(1)
        assert self.map.unstored == sum(run[-1][1] - run[0][0] for run in self.map.live_runs(0)), (
            "every piece is found when it is to be stored"
        )

    def teardown(self) -> None:
        if hasattr(self, "map"):
            found = laid_out(self.chunks.shown(self.map.extents(0, LONG)))
            assert found == self.plain.frozen()


MapMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestFileMap = MapMachine.TestCase


def ids(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % n).digest() for n in range(count)]


@given(
    number=st.integers(0, 1 << 40),
    gaps=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), max_size=40),
    offsets=st.lists(st.integers(0, 1 << 20), min_size=40, max_size=40),
)
def test_segments_survive_their_encoding(
    number: int, gaps: list[tuple[int, int]], offsets: list[int]
) -> None:
    extents: list[Extent] = []
    position = number * SEGMENT
    for (gap, length), chunk_id, offset in zip(gaps, ids(40), offsets, strict=False):
        extents.append((position + gap, position + gap + length, chunk_id, offset))
        position += gap + length
    blob = encode_segment(number, extents)
    assert len(blob) == 44 * len(extents)
    assert decode_segment(number, blob) == extents
    assert list(chunk_ids(blob)) == [extent[2] for extent in extents]


def test_a_piece_is_never_encoded() -> None:
    with pytest.raises(AssertionError):
        encode_segment(0, [(0, 3, Piece(b"abc"), 0)])


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 600)), max_size=120))
def test_only_long_stretches_of_short_neighbours_are_fragmented(parts: list) -> None:
    extents: list[Extent] = []
    position = 0
    for (gap, length), chunk_id in zip(parts, ids(120), strict=False):
        position += gap * (length % 2)
        extents.append((position, position + length, chunk_id, 0))
        position += length
    position = 0
    for first, last in fragmented(extents):
        assert last - first >= FRAGMENTS_MIN
        assert first >= position
        position = last
        for one, two in zip(extents[first : last - 1], extents[first + 1 : last], strict=True):
            assert one[1] == two[0]
            assert max(one[1] - one[0], two[1] - two[0]) < 256
    stretch = [(n * 10, n * 10 + 10, chunk_id, 0) for n, chunk_id in enumerate(ids(40))]
    assert fragmented(stretch) == [(0, 40)]
    assert fragmented(stretch[: FRAGMENTS_MIN - 1]) == []
    assert fragmented([(s, e, Piece(b"x" * 10), 0) for s, e, _, _ in stretch]) == []


@pytest.mark.parametrize("size", [0, 999, 1_999])
def test_what_changes_before_the_tail_ends_takes_it_away(size: int) -> None:
    """A tail that has become wrong would be stored with the next append."""
    for change in (lambda m: m.write(size, b"z"), lambda m: m.truncate(size, 2_000)):
        filemap = FileMap(7, Rows(), stored=False)
        filemap.write(0, bytes(2_000))
        filemap.tail = Tail(1_000, 2_000, bytes(1_000))
        change(filemap)
        assert filemap.tail is None
    filemap = FileMap(7, Rows(), stored=False)
    filemap.write(0, bytes(2_000))
    filemap.tail = tail = Tail(1_000, 2_000, bytes(1_000))
    filemap.write(2_000, b"appended")
    assert filemap.tail is tail
