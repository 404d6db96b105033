"""One file's content: a map from offsets to slices of chunks and of pieces not stored yet.

Pure: no I/O of its own (segments that are not in memory come from the `SegmentSource` it is given),
no clock, no trio. Holes are simply absent. The map is kept and stored in segments of 4 MiB
(docs/adr/0002-extents.md).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

SEGMENT_BYTES = 4 << 20
SIZE_MAX = (1 << 63) - 1

# A stretch of at least so many neighbours, shorter than this on average, is read and chunked anew
# (ADR 2).
FRAGMENTS_MIN = 16
FRAGMENT_BYTES = 16 << 10

_NOWHERE = 1 << 62  # a segment number that no file reaches: "everything may be in the database"

EXTENT: Final = struct.Struct("<III32s")  # start in the segment, length, offset in the chunk, id


class Piece:
    """Bytes handed to `write`, immutable, compared by identity."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


Source = bytes | Piece
# start and end in the file, where the bytes are, offset of `start` in the source
Extent = tuple[int, int, Source, int]
# what an extent shows, whatever it was cut down to: the source, and the file offset of the source's
# first byte
Origin = tuple[Source, int]


class SegmentSource(Protocol):
    """Where segments that are not in memory come from."""

    def load_segment(self, ino: int, number: int) -> bytes | None:
        """The encoded segment, or None."""

    def segment_sizes(self, ino: int, first: int) -> Sequence[tuple[int, int]]:
        """(number, bytes that are not holes) of every segment from `first` on."""

    def segment_numbers(self, ino: int, first: int, limit: int) -> Sequence[int]:
        """The first `limit` numbers of segments from `first` on, ascending."""


class Tail:
    """Where appending goes on: the last content-defined cut, and the bytes from there to `end`."""

    __slots__ = ("cut", "data", "end")

    def __init__(self, cut: int, end: int, data: bytes) -> None:
        self.cut = cut
        self.end = end
        self.data = data


def origin(extent: Extent) -> Origin:
    """What identifies the bytes an extent shows."""
    return extent[2], extent[0] - extent[3]


def encode_segment(number: int, extents: Iterable[Extent]) -> bytes:
    """A segment as stored: 44 bytes an extent.

    Start in the segment, length, offset in the chunk, chunk id.
    """
    base = number * SEGMENT_BYTES
    pack = EXTENT.pack
    parts = []
    for start, end, source, offset in extents:
        assert isinstance(source, bytes), "a piece reached the database"
        parts.append(pack(start - base, end - start, offset, source))
    return b"".join(parts)


def decode_segment(number: int, blob: bytes) -> list[Extent]:
    """The inverse of `encode_segment`."""
    base = number * SEGMENT_BYTES
    return [
        (base + start, base + start + length, chunk_id, offset)
        for start, length, offset, chunk_id in EXTENT.iter_unpack(blob)
    ]


def chunk_ids(blob: bytes) -> Iterator[bytes]:
    """The chunk ids named by an encoded segment."""
    return (chunk_id for _, _, _, chunk_id in EXTENT.iter_unpack(blob))


def _span(extents: list[Extent], start: int, end: int) -> tuple[int, int]:
    """Indexes i, j: extents[i:j] overlap [start, end)."""
    first = bisect_left(extents, (start,))  # a shorter tuple sorts first
    if first and extents[first - 1][1] > start:
        first -= 1
    return first, bisect_left(extents, (end,), first)


def _splice(extents: list[Extent], start: int, end: int, new: Sequence[Extent]) -> list[Extent]:
    """Put `new` in the place of [start, end); the parts that went."""
    first, last = _span(extents, start, end)
    gone = extents[first:last]
    put = list(new)
    if gone:
        s, e, source, offset = gone[0]
        if s < start:
            put.insert(0, (s, start, source, offset))
            gone[0] = (start, e, source, offset + start - s)
        s, e, source, offset = gone[-1]
        if e > end:
            put.append((end, e, source, offset + end - s))
            gone[-1] = (s, end, source, offset)
    extents[first:last] = put
    return gone


def _clip(extents: list[Extent], start: int, end: int) -> list[Extent]:
    """The parts of `extents` within [start, end)."""
    first, last = _span(extents, start, end)
    found = extents[first:last]
    if found:
        s, e, source, offset = found[0]
        if s < start:
            found[0] = (start, e, source, offset + start - s)
        s, e, source, offset = found[-1]
        if e > end:
            found[-1] = (s, end, source, offset)
    return found


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """Neighbours that show neighbouring bytes of one source become one extent."""
    out: list[Extent] = []
    for extent in extents:
        if out:
            s, e, source, offset = out[-1]
            if extent[0] == e and extent[2] is source and extent[3] - offset == extent[0] - s:
                out[-1] = (s, extent[1], source, offset)
                continue
        out.append(extent)
    return out


def _substitute(
    extents: list[Extent], start: int, end: int, new: list[Extent], old: set[Origin]
) -> int:
    """Show `new` wherever [start, end) still shows one of `old`.

    How many bytes of pieces that freed.
    """
    first, last = _span(extents, start, end)
    out: list[Extent] = []
    freed = 0
    for extent in extents[first:last]:
        s, e, source, offset = extent
        if (source, s - offset) not in old:
            out.append(extent)
            continue
        low, high = max(s, start), min(e, end)
        if s < low:
            out.append((s, low, source, offset))
        out.extend(_clip(new, low, high))
        if high < e:
            out.append((high, e, source, offset + high - s))
        if type(source) is Piece:
            freed += high - low
    extents[first:last] = _joined(out)
    return freed


class FileMap:
    """The content map of one file. `unstored` counts the bytes that are shown from pieces."""

    __slots__ = (
        "_clean_max",
        "_db_limit",
        "_evict_at",
        "_frozen_cut",
        "_ino",
        "_pending_cut",
        "_pieced",
        "_source",
        "changes",
        "dirty",
        "encoded",
        "frozen",
        "passed_over",
        "segments",
        "tail",
        "touched_from",
        "unstored",
    )

    def __init__(
        self, ino: int, source: SegmentSource, *, stored: bool, segments_max: int = 256
    ) -> None:
        self._ino = ino
        self._source = source
        self._clean_max = self._evict_at = segments_max
        # Segments from here on are not (validly) in the database.
        self._db_limit = _NOWHERE if stored else 0
        self._pending_cut = _NOWHERE  # rows from here on go with the next epoch
        self._frozen_cut = _NOWHERE
        self._pieced: set[int] = set()  # segments that show pieces
        self.segments: dict[int, list[Extent]] = {}
        self.dirty: set[int] = set()  # changed in the current epoch
        self.frozen: dict[int, list[Extent]] | None = None  # the epoch being committed
        self.encoded = False  # the frozen copy is on its way to the database: no more changes
        self.touched_from = _NOWHERE  # the lowest offset changed since the last barrier
        self.tail: Tail | None = None
        self.unstored = 0
        self.changes = 0  # that readers would see
        self.passed_over = 0  # bytes of pieces that the last ingest left for the commit

    # --- reading -------------------------------------------------------------------------------

    def extents(self, start: int, end: int) -> list[Extent]:
        """What is not a hole in [start, end), in order, clipped."""
        if start >= end:
            return []
        first, last = start // SEGMENT_BYTES, (end - 1) // SEGMENT_BYTES
        if first == last:
            return _clip(self._segment(first), start, end)
        found: list[Extent] = []
        for number in range(first, last + 1):
            found += _clip(self._segment(number), start, end)
        return found

    def _segment(self, number: int) -> list[Extent]:
        extents = self.segments.get(number)
        if extents is None:
            blob = None
            if number < self._db_limit:
                blob = self._source.load_segment(self._ino, number)
            extents = decode_segment(number, blob) if blob else []
            if len(self.segments) >= self._evict_at:
                self._evict()
            self.segments[number] = extents
        return extents

    def _evict(self) -> None:
        """Drop what can be loaded again, but for the newest."""
        frozen = self.frozen or {}
        clean = [n for n in self.segments if n not in self.dirty and n not in frozen]
        for number in clean[: max(1, len(clean) - self._clean_max // 2)]:
            del self.segments[number]
        # Where much is dirty, looking again at every step would take the square of it.
        self._evict_at = max(self._clean_max, 2 * len(self.segments))

    def numbers(self, first: int, limit: int) -> list[int]:
        """Numbers of segments from `first` on that may show something, ascending.

        Some, about `limit`; none at the end.
        """
        stored: Sequence[int] = ()
        if first < self._db_limit:
            stored = self._source.segment_numbers(self._ino, first, limit)
        last = stored[-1] if len(stored) == limit else _NOWHERE
        found = {number for number in self.segments if first <= number <= last}
        return sorted(found.union(stored))

    # --- changing ------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes) -> int:
        """Show `data` at `offset`; by how many bytes less of the file is hole."""
        piece = Piece(data)
        end = offset + len(data)
        added = 0
        self.changes += 1
        self.touched_from = min(self.touched_from, offset)
        if self.tail is not None and offset < self.tail.end:
            self.tail = None
        for number in range(offset // SEGMENT_BYTES, (end - 1) // SEGMENT_BYTES + 1):
            extents = self._segment(number)
            low = max(offset, number * SEGMENT_BYTES)
            high = min(end, (number + 1) * SEGMENT_BYTES)
            new: Extent = (low, high, piece, low - offset)
            added += high - low
            if not extents or extents[-1][1] <= low:
                extents.append(new)
            else:
                added -= self._gone(_splice(extents, low, high, (new,)))
            self.dirty.add(number)
            self._pieced.add(number)
        self.unstored += len(data)
        return added

    def _gone(self, extents: Iterable[Extent]) -> int:
        removed = 0
        for start, end, source, _ in extents:
            removed += end - start
            if type(source) is Piece:
                self.unstored -= end - start
        return removed

    def show(self, extents: Iterable[Extent]) -> int:
        """Show stored extents, ascending, behind all that is shown; how many bytes they are."""
        shown = 0
        for start, end, source, offset in extents:
            self.touched_from = min(self.touched_from, start)
            shown += end - start
            for number in range(start // SEGMENT_BYTES, (end - 1) // SEGMENT_BYTES + 1):
                low = max(start, number * SEGMENT_BYTES)
                high = min(end, (number + 1) * SEGMENT_BYTES)
                part: Extent = (low, high, source, offset + low - start)
                segment = self._segment(number)
                assert not segment or segment[-1][1] <= low, "behind what is shown"
                segment.append(part)
                self.dirty.add(number)
        return shown

    def truncate(self, size: int, allocated: int) -> int:
        """Drop everything from `size` on; how many of the `allocated` bytes are left."""
        self.changes += 1
        self.touched_from = min(self.touched_from, size)
        if self.tail is not None and size < self.tail.end:
            self.tail = None
        keep, inside = divmod(size, SEGMENT_BYTES)
        if inside:
            extents = self._segment(keep)
            border = (keep + 1) * SEGMENT_BYTES
            gone = self._gone(_splice(extents, size, border, ()))
            if gone:
                allocated -= gone
                self.dirty.add(keep)
                if keep in self._pieced and not any(type(e[2]) is Piece for e in extents):
                    self._pieced.discard(keep)
            keep += 1
        if keep == 0:
            allocated = 0
        elif keep < self._db_limit:
            allocated -= sum(
                length
                for number, length in self._source.segment_sizes(self._ino, keep)
                if number < self._db_limit and number not in self.segments
            )
        for number in [n for n in self.segments if n >= keep]:
            gone = self._gone(self.segments.pop(number))
            if keep:
                allocated -= gone
            self.dirty.discard(number)
            self._pieced.discard(number)
        self._db_limit = min(self._db_limit, keep)
        self._pending_cut = min(self._pending_cut, keep)
        return allocated

    def place(self, new: list[Extent], old: set[Origin]) -> int:
        """Show the stored extents `new` where one of `old` is still shown.

        `new` is contiguous; the frozen copy is changed likewise.

        Returns how many bytes of pieces the live map stopped showing.
        """
        start, end = new[0][0], new[-1][1]
        freed = 0
        for number in range(start // SEGMENT_BYTES, (end - 1) // SEGMENT_BYTES + 1):
            low = max(start, number * SEGMENT_BYTES)
            high = min(end, (number + 1) * SEGMENT_BYTES)
            frozen = self.frozen.get(number) if self.storing and self.frozen else None
            if frozen is not None:
                _substitute(frozen, low, high, new, old)
            extents = self.segments.get(number)
            if extents is None:
                continue  # truncated away meanwhile, or clean: then nothing of `old` is left in it
            freed += _substitute(extents, low, high, new, old)
            if number in self._pieced and not any(type(e[2]) is Piece for e in extents):
                self._pieced.discard(number)
            if frozen is None:
                self.dirty.add(number)
        self.unstored -= freed
        return freed

    # --- epochs --------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """The current epoch has changed something."""
        return bool(self.dirty) or self._pending_cut != _NOWHERE

    def freeze(self) -> None:
        """The barrier: copy out what this epoch changed."""
        assert self.frozen is None, "one commit at a time"
        if self.tail is not None:
            # Appending may replace the fragments since the last cut, which may lie one segment
            # earlier.
            for number in range(self.tail.cut // SEGMENT_BYTES, self.tail.end // SEGMENT_BYTES):
                self._segment(number)
                self.dirty.add(number)
        self.frozen = {number: list(self.segments[number]) for number in self.dirty}
        self.dirty.clear()
        self.touched_from = _NOWHERE
        self._frozen_cut, self._pending_cut = self._pending_cut, _NOWHERE

    @property
    def frozen_cut(self) -> int | None:
        """Rows of segments from here on go before the frozen ones are written; None: all stay."""
        return None if self._frozen_cut == _NOWHERE else self._frozen_cut

    @property
    def storing(self) -> bool:
        """The pieces of the frozen copy are being stored: nobody else may take them."""
        return self.frozen is not None and not self.encoded

    def committed(self) -> None:
        """The frozen copy is in the database."""
        self.frozen = None
        self.encoded = False
        self._frozen_cut = _NOWHERE
        self._db_limit = self._pending_cut

    def thaw(self) -> None:
        """The commit failed: what was frozen is to be committed with the current epoch."""
        assert self.frozen is not None
        self.dirty.update(number for number in self.frozen if number in self.segments)
        self.frozen = None
        self.encoded = False
        self._pending_cut = min(self._pending_cut, self._frozen_cut)
        self._frozen_cut = _NOWHERE

    @property
    def clean(self) -> bool:
        """Everything can be loaded again from the database."""
        return not self.dirty and self.frozen is None and self._pending_cut == _NOWHERE

    # --- what is to be stored --------------------------------------------------------------------

    def live_runs(self, position: int) -> Iterator[list[Extent]]:
        """Contiguous runs of pieces from `position` on."""
        numbers = sorted(n for n in self._pieced if (n + 1) * SEGMENT_BYTES > position)
        return _runs(
            (e for n in numbers for e in self.segments[n] if e[1] > position),
        )

    def frozen_runs(self) -> Iterator[list[Extent]]:
        """Contiguous runs of pieces in the frozen copy."""
        frozen = self.frozen or {}
        return _runs(e for n in sorted(frozen) for e in frozen[n])


def _runs(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    run: list[Extent] = []
    for extent in extents:
        if run and (type(extent[2]) is not Piece or extent[0] != run[-1][1]):
            yield run
            run = []
        if type(extent[2]) is Piece:
            run.append(extent)
    if run:
        yield run


def fragmented(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Index ranges [i, j) of stretches of stored extents that are worth being chunked anew."""
    found = []
    first = 0
    for index in range(1, len(extents) + 1):
        at_end = index == len(extents)
        if not at_end:
            start, end, source, _ = extents[index]
            previous = extents[index - 1]
            small = end - start < FRAGMENT_BYTES and previous[1] - previous[0] < FRAGMENT_BYTES
            if small and start == previous[1] and type(source) is bytes:
                continue
        if index - first >= FRAGMENTS_MIN:
            found.append((first, index))
        first = index
    return found
