"""Read-ahead: what the readers that it is for gain, and what everybody else is spared.

Reads arrive as the kernel sends them: in pieces, those of a few neighbours in any order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostd.read_policy import (
    RUNS_MAX,
    EvidencePolicy,
    Range,
    ReadPattern,
    ReadPolicy,
)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096

Request = tuple[int, int]  # offset, length

seeds = st.integers(0, 1 << 32)
pieces = st.sampled_from([128 * KIB, 256 * KIB, MIB])


class Reader:
    """One open file: its requests, what was read and wanted so far."""

    def __init__(self, size: int, policy: EvidencePolicy | None = None) -> None:
        self.size = size
        self.policy: ReadPolicy[ReadPattern] = policy or EvidencePolicy()
        self.pattern = self.policy.begin()
        self.now = 1000.0
        self.read = 0
        self.wanted: list[Range] = []

    def request(self, offset: int, length: int) -> list[Range]:
        self.now += 0.001
        self.pattern, wanted = self.policy.observe(
            self.pattern, offset, length, self.size, self.now
        )
        for start, end in wanted:
            assert 0 <= start < end <= self.size
        assert len(self.pattern.runs) <= RUNS_MAX
        self.read += min(length, self.size - offset)
        self.wanted += wanted
        return wanted

    def requests(self, requests: Iterable[Request]) -> list[Range]:
        return [wanted for offset, length in requests for wanted in self.request(offset, length)]

    def foresaw(self, offset: int, length: int) -> bool:
        return any(r.start <= offset and offset + length <= r.end for r in merged(self.wanted))


def merged(ranges: Iterable[Range]) -> list[Range]:
    whole: list[Range] = []
    for start, end in sorted(ranges):
        if whole and start <= whole[-1].end:
            whole[-1] = Range(whole[-1].start, max(end, whole[-1].end))
        else:
            whole.append(Range(start, end))
    return whole


def total(ranges: Iterable[Range]) -> int:
    return sum(end - start for start, end in ranges)


def split(offset: int, length: int, piece: int) -> list[Request]:
    return [(at, min(piece, offset + length - at)) for at in range(offset, offset + length, piece)]


def jumbled(requests: list[Request], seed: int, at_once: int = 4) -> Iterator[Request]:
    """The requests in any order within each `at_once` of them."""
    dice = random.Random(seed)
    for first in range(0, len(requests), at_once):
        few = requests[first : first + at_once]
        yield from dice.sample(few, len(few))


# ---- who must cause none


@settings(deadline=None)
@given(st.integers(256, 250_000), pieces, seeds, st.booleans())
def test_one_mebibyte_in_the_middle_and_the_kernels_next(
    page: int, piece: int, seed: int, kernel_goes_on: bool
) -> None:
    reader = Reader(GIB)
    requests = split(page * PAGE, MIB, piece)
    assert reader.requests(jumbled(requests, seed, at_once=8)) == []
    if kernel_goes_on:
        more = split(page * PAGE + MIB, MIB, piece)
        assert reader.requests(jumbled(more, seed, at_once=8)) == []


def test_every_second_request_first_is_no_stride() -> None:
    reader = Reader(GIB)
    requests = split(100 * MIB, 2 * MIB, 128 * KIB)
    assert reader.requests(requests[::2] + requests[1::2]) == []


@settings(deadline=None)
@given(seeds, st.integers(64 * MIB, GIB))
def test_ten_random_small_reads(seed: int, size: int) -> None:
    reader = Reader(size)
    dice = random.Random(seed)
    for _ in range(10):
        offset = dice.randrange(16, size // PAGE - 16) * PAGE
        assert reader.request(offset, PAGE) == []


@settings(deadline=None)
@given(seeds)
def test_a_thousand_random_reads_of_a_large_file(seed: int) -> None:
    reader = Reader(1 << 40)
    dice = random.Random(seed)
    for _ in range(1000):
        length = dice.choice([PAGE, 16 * KIB, 128 * KIB, MIB])
        assert reader.request(dice.randrange(1 << 28) * PAGE, length) == []


def test_touching_reads_of_long_ago_are_no_evidence() -> None:
    reader = Reader(GIB)
    for offset in range(100 * MIB, 120 * MIB, 128 * KIB):
        assert reader.request(offset, 128 * KIB) == []
        reader.now += 60


@settings(deadline=None)
@given(seeds)
def test_reading_the_same_bytes_again_is_no_evidence(seed: int) -> None:
    reader = Reader(GIB)
    dice = random.Random(seed)
    for _ in range(200):
        assert reader.request(50 * MIB + dice.randrange(8) * 128 * KIB, 128 * KIB) == []


# ---- sequential, backwards


@settings(deadline=None)
@given(st.sampled_from([0, 3 * PAGE, 50 * MIB + PAGE]), pieces, seeds)
def test_a_sequential_reader_finds_everything_asked_for(start: int, piece: int, seed: int) -> None:
    size = 300 * MIB + 12_345
    policy = EvidencePolicy(window_bytes_max=16 * MIB)
    reader = Reader(size, policy)
    missed = front = 0
    at_once = max(2, MIB // piece)
    for offset, length in jumbled(split(start, size - start, piece), seed, at_once):
        if not reader.foresaw(offset, min(length, size - offset)):
            missed += length
        reader.request(offset, length)
        front = max(front, offset + length)
        ahead = max((r.end for r in reader.wanted), default=0)
        # A wrong guess at most doubles what is moved, up to whole MiB; and the window has a limit.
        assert ahead - front <= min(max(front - start, MIB), 16 * MIB) + MIB
        if front - start >= 64 * MIB:
            assert ahead >= min(front + 8 * MIB - 4 * piece, size)
    # Disorder delays the evidence: at worst the first requests come in falling order.
    evidence = MIB if start == 0 else 2 * MIB
    assert missed <= evidence + 3 * MIB + 2 * piece
    assert total(reader.wanted) == total(merged(reader.wanted))  # nothing was asked for twice
    assert merged(reader.wanted)[-1].end == size


def test_the_window_doubles() -> None:
    reader = Reader(GIB)
    reader.requests(split(0, 200 * MIB, 128 * KIB))
    lengths = [r.end - r.start for r in reader.wanted]
    assert lengths[0] <= 2 * MIB
    assert all(after <= 2 * before + MIB for before, after in pairwise(lengths))
    assert max(lengths) > 16 * MIB


@settings(deadline=None)
@given(pieces, seeds)
def test_a_backwards_reader_finds_everything_asked_for(piece: int, seed: int) -> None:
    reader = Reader(GIB)
    missed, end = 0, 500 * MIB
    backwards = split(end - 128 * MIB, 128 * MIB, piece)[::-1]
    for offset, length in jumbled(backwards, seed, at_once=2):
        missed += 0 if reader.foresaw(offset, length) else length
        reader.request(offset, length)
    assert missed <= 2 * MIB + 8 * piece
    assert all(r.end <= end for r in reader.wanted)
    assert total(reader.wanted) == total(merged(reader.wanted))
    assert min(r.start for r in reader.wanted) >= end - 128 * MIB - 33 * MIB


def test_a_backwards_reader_ends_at_the_first_byte() -> None:
    reader = Reader(GIB)
    reader.requests(split(0, 20 * MIB, 64 * KIB)[::-1])
    assert min(r.start for r in reader.wanted) == 0


def test_two_readers_of_one_handle_both_get_windows() -> None:
    reader = Reader(GIB)
    for at in range(0, 32 * MIB, 128 * KIB):
        reader.request(10 * MIB + at, 128 * KIB)
        reader.request(700 * MIB + at, 128 * KIB)
    assert reader.foresaw(41 * MIB, MIB)
    assert reader.foresaw(731 * MIB, MIB)


def test_a_paused_player_goes_on_with_its_window() -> None:
    reader = Reader(GIB)
    reader.requests(split(0, 40 * MIB, MIB))
    ahead = max(r.end for r in reader.wanted)
    reader.now += 3600
    assert reader.foresaw(40 * MIB, MIB)
    reader.requests(split(40 * MIB, 20 * MIB, MIB))
    assert max(r.end for r in reader.wanted) > ahead
    assert total(reader.wanted) == total(merged(reader.wanted))


def test_who_goes_back_to_the_beginning_starts_anew() -> None:
    reader = Reader(100 * MIB)
    for _ in range(2):  # the cache may have lost the blocks of the first pass
        reader.wanted.clear()
        reader.requests(split(0, 100 * MIB, 256 * KIB))
        assert total(merged(reader.wanted)) >= 98 * MIB


# ---- trust


@settings(deadline=None)
@given(seeds)
def test_windows_left_unread_make_it_ask_for_more_evidence(seed: int) -> None:
    reader = Reader(1 << 40)
    dice = random.Random(seed)
    for _ in range(50):  # records of 3 MiB at random places
        reader.requests(split(dice.randrange(1 << 28) * PAGE, 3 * MIB, MIB))
    assert 0 < total(reader.wanted) <= 6 * MIB


def test_who_has_read_on_before_needs_less_evidence_after_a_jump() -> None:
    reader = Reader(GIB)
    reader.requests(split(0, 64 * MIB, MIB))
    reader.wanted.clear()
    reader.requests(split(500 * MIB, MIB + MIB // 2, 256 * KIB))
    assert reader.foresaw(502 * MIB, MIB)


@settings(deadline=None)
@given(seeds)
def test_who_begins_to_skip_is_not_followed_for_long(seed: int) -> None:
    reader = Reader(1 << 40)
    reader.requests(split(0, 16 * MIB, MIB))
    dice = random.Random(seed)
    at = 16 * MIB
    for _ in range(400):
        at += dice.randrange(256, 512) * PAGE
        reader.request(at, PAGE)
    # Until no more than a quarter of the run was read, and what was asked for by then.
    assert total(reader.wanted) <= 4 * 16 * MIB + 18 * MIB


def test_the_kernels_own_read_ahead_is_no_evidence() -> None:
    reader = Reader(GIB, EvidencePolicy(kernel_ahead_bytes=4 * MIB))
    assert reader.requests(split(100 * MIB, 5 * MIB, MIB)) == []
    assert reader.requests([(105 * MIB, MIB)]) != []


# ---- strided


@settings(deadline=None)
@given(
    st.integers(MIB // 2, 20 * MIB),
    st.integers(1, 300 * KIB),
    st.booleans(),
    pieces,
    seeds,
)
def test_a_strided_reader_finds_the_next_records(
    step: int, length: int, backwards: bool, piece: int, seed: int
) -> None:
    reader = Reader(GIB)
    records = range(0, GIB - length, step)[:40]
    for number, record in enumerate(reversed(records) if backwards else records):
        first = record // PAGE * PAGE
        size = -(-(record + length) // PAGE) * PAGE - first
        # Distances in whole pages are off by one, so foresight is good to a few pages.
        margin = 4 * PAGE
        if number * step > 2 * MIB + 2 * step and number >= 5 and size > 2 * margin:
            near = [r for r in reader.wanted if r.start <= first + margin]
            assert any(r.end + margin >= first + size for r in near)
        reader.requests(jumbled(split(first, size, piece), seed))
    assert total(reader.wanted) <= 2 * len(records) * (length + 2 * PAGE)


def test_a_strided_reader_of_small_records_is_foreseen() -> None:
    reader = Reader(GIB)
    for offset in range(10 * MIB, 400 * MIB, 10 * MIB):
        reader.request(offset, 4 * KIB)
    assert reader.wanted


def test_a_stride_is_given_up_when_the_reader_leaves_it() -> None:
    reader = Reader(1 << 40)
    reader.requests((offset, 64 * KIB) for offset in range(10 * MIB, 100 * MIB, 10 * MIB))
    dice = random.Random(1)
    reader.requests((dice.randrange(1 << 28) * PAGE, 64 * KIB) for _ in range(10))
    reader.wanted.clear()
    assert reader.requests([(110 * MIB, 64 * KIB), (120 * MIB, 64 * KIB)]) == []


# ---- ends of films and archives


def test_head_then_tail_fetches_the_tail_once() -> None:
    reader = Reader(GIB)
    assert reader.request(0, 64 * KIB) == []
    assert reader.request(GIB - 3 * MIB, 16 * KIB) == [Range(GIB - 3 * MIB + 16 * KIB, GIB)]
    assert reader.request(64 * KIB, 64 * KIB) == []
    assert reader.request(GIB - 2 * MIB, 16 * KIB) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from([100 * MIB, 500 * MIB, 900 * MIB]), min_size=1, max_size=3))
def test_a_jump_to_the_tail_from_elsewhere_fetches_nothing(before: list[int]) -> None:
    reader = Reader(GIB)
    reader.requests((offset, 16 * KIB) for offset in before)
    reader.wanted.clear()
    assert reader.request(GIB - 3 * MIB, 16 * KIB) == []


# ---- anybody

behaviours = st.one_of(
    st.tuples(st.just("run"), st.integers(0, 63), st.integers(1, 40)),
    st.tuples(st.just("back"), st.integers(0, 63), st.integers(1, 40)),
    st.tuples(st.just("skip"), st.integers(0, 63), st.integers(1, 40)),
    st.tuples(st.just("random"), st.integers(0, 63), st.integers(1, 10)),
)


@settings(deadline=None)
@given(st.lists(behaviours, max_size=8), pieces, seeds, st.integers(0, 64 * MIB))
def test_the_waste_of_any_history_is_bounded(
    history: list[tuple[str, int, int]], piece: int, seed: int, size: int
) -> None:
    reader = Reader(size)
    dice = random.Random(seed)
    for what, mib, count in history:
        start = mib * MIB
        if what == "run":
            requests = list(jumbled([(start + n * piece, piece) for n in range(count)], seed))
        elif what == "back":
            requests = [(start - n * piece, piece) for n in range(count)]
        elif what == "skip":
            requests = [(start + 3 * n * piece, piece) for n in range(count)]
        else:
            requests = [(dice.randrange(64 * 256) * PAGE, PAGE) for _ in range(count)]
        reader.requests((o, n) for o, n in requests if 0 <= o < size)
    assert total(reader.wanted) <= 4 * reader.read + 6 * MIB


@pytest.mark.parametrize(("offset", "length"), [(100, 10), (101, 1), (50, 0)])
def test_reads_past_the_end_or_of_nothing_change_nothing(offset: int, length: int) -> None:
    policy = EvidencePolicy()
    before, _ = policy.observe(policy.begin(), 20, 10, 100, 0.0)
    assert policy.observe(before, offset, length, 100, 1.0) == (before, [])
