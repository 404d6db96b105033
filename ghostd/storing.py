"""Turns runs of pieces into chunks: what is cut where, and which extents come of it.

Runs in worker threads on what it is given; touches no map. `plan_cuts` is pure and holds the
decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.filemap import Extent, Origin, Piece, Tail, origin

# How much of a run is cut, hashed and stored in one go: large enough that the call costs nothing,
# small enough that two workers share a stream and buffers stay in the cache hierarchy.
BATCH_BYTES = 8 << 20

# More fragments since the last cut than this are stored as one chunk with what is appended.
FRAGMENTS_MAX = 15

TAIL_BYTES_MAX = 256 << 10


@dataclass(slots=True)
class Run:
    """Contiguous pieces of one file, and the stored bytes before them back to the last cut."""

    parts: list[Extent]
    prefix: bytes  # the bytes from `base` to the first part
    base: int
    replaced: list[Extent]  # the extents that show the prefix now
    final: bool  # store the rest behind the last cut too
    want_tail: bool

    @property
    def start(self) -> int:
        """Offset in the file of the first piece."""
        return self.parts[0][0]

    @property
    def end(self) -> int:
        """Offset in the file behind the last piece."""
        return self.parts[-1][1]

    def origins(self) -> set[Origin]:
        """What the stored chunks may replace."""
        return {origin(extent) for extent in (*self.replaced, *self.parts)}

    def bytes(self) -> bytes:
        """Prefix and pieces in one buffer."""
        if not self.prefix and len(self.parts) == 1:
            start, end, source, _ = self.parts[0]
            assert isinstance(source, Piece)
            if end - start == len(source.data):
                return source.data
        return b"".join([self.prefix, *(piece_view(part) for part in self.parts)])


@dataclass(slots=True)
class Stored:
    """What became of a run: contiguous extents of chunks, and where appending goes on."""

    extents: list[Extent]
    tail: Tail | None


def piece_view(extent: Extent) -> memoryview:
    """The bytes that an extent shows of a piece."""
    start, end, source, offset = extent
    assert isinstance(source, Piece)
    return memoryview(source.data)[offset : offset + end - start]


def plan_cuts(
    base: int, start: int, lengths: Sequence[int], *, final: bool, fragments: int
) -> tuple[list[tuple[int, int]], int]:
    """Which [start, end) of the file become chunks, and where the last cut is.

    `lengths` are the chunks of the bytes from `base` on; the last one ends where the bytes end, not
    at a cut, so it is stored only when the run is `final`. Where it began before `start`, in bytes
    that are stored as `fragments` already, only what is new is stored, unless there are many of
    them.
    """
    spans = []
    position = base
    for length in lengths[:-1]:
        spans.append((position, position + length))
        position += length
    if final:
        end = position + lengths[-1]
        spans.append((start if position < start and fragments < FRAGMENTS_MAX else position, end))
    return spans, position


def store_runs(store: BlockStore, runs: Sequence[Run]) -> list[Stored]:
    """Cut and store the runs, together where they are small. In a worker thread."""
    planned: list[tuple[Run, bytes, list[tuple[int, int]], int]] = []
    views: list[memoryview] = []
    for run in runs:
        data = run.bytes()
        lengths = store.cut(data)
        spans, cut = plan_cuts(
            run.base, run.start, lengths, final=run.final, fragments=len(run.replaced)
        )
        view = memoryview(data)
        views += [view[a - run.base : b - run.base] for a, b in spans]
        planned.append((run, data, spans, cut))
    ids = iter(store.put(views))
    return [
        Stored(
            extents=[(a, b, chunk_id, 0) for (a, b), chunk_id in zip(spans, ids, strict=False)],
            tail=_tail(run, data, cut),
        )
        for run, data, spans, cut in planned
    ]


def _tail(run: Run, data: bytes, cut: int) -> Tail | None:
    if not run.want_tail or not run.final or run.end - cut > TAIL_BYTES_MAX:
        return None
    return Tail(cut, run.end, data[cut - run.base :])


@dataclass(frozen=True, slots=True)
class CutRun:
    """A run's bytes, the [start, end) that become chunks, the last cut, and the tail."""

    data: bytes
    spans: list[tuple[int, int]]
    cut: int
    tail: Tail | None


def cut_run(store: BlockStore, run: Run) -> CutRun:
    """Decide what becomes of a run. In a worker thread."""
    data = run.bytes()
    spans, cut = plan_cuts(
        run.base, run.start, store.cut(data), final=run.final, fragments=len(run.replaced)
    )
    return CutRun(data, spans, cut, _tail(run, data, cut))


def put_spans(
    store: BlockStore, data: bytes, base: int, spans: Sequence[tuple[int, int]]
) -> list[Extent]:
    """Store the chunks of a run that has been cut. In a worker thread."""
    view = memoryview(data)
    ids: list[ChunkId] = store.put([view[a - base : b - base] for a, b in spans])
    return [(a, b, chunk_id, 0) for (a, b), chunk_id in zip(spans, ids, strict=True)]


def rechunk(store: BlockStore, extents: Sequence[Extent]) -> list[Extent]:
    """Store a fragmented stretch (contiguous, all chunks) anew. In a worker thread."""
    wanted = [ChunkId(source) for _, _, source, _ in extents if isinstance(source, bytes)]
    chunks = store.fetch(wanted)
    data = b"".join(
        memoryview(chunks[chunk_id])[offset : offset + end - start]
        for (start, end, _, offset), chunk_id in zip(extents, wanted, strict=True)
    )
    base = extents[0][0]
    spans = []
    position = base
    for length in store.cut(data):
        spans.append((position, position + length))
        position += length
    return put_spans(store, data, base, spans)


def split(run: list[Extent], bytes_max: int) -> Iterator[list[Extent]]:
    """A run of pieces in portions that end with the piece that reaches `bytes_max`.

    Pieces are not divided, and no portion but the last is smaller: each holds a cut.
    """
    portion: list[Extent] = []
    size = 0
    for extent in run:
        portion.append(extent)
        size += extent[1] - extent[0]
        if size >= bytes_max:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
