"""Bloom filters and the choice of runs to merge."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockstore.ids import chunk_id
from blockstore.runs import LEVEL0_ROWS, MERGE_AT, Filter, level, plan_merge, probe


def ids(count: int, salt: int = 0) -> list[bytes]:
    return [chunk_id(b"%d-%d" % (salt, number)) for number in range(count)]


def may_hold(held: Filter, name: bytes) -> bool:
    """As the index looks, where it has no time for a call."""
    hashed, mask = probe(name)
    return held.words[hashed % held.count] & mask == mask


def test_filter_never_denies_what_was_added_and_denies_nearly_all_else() -> None:
    held = ids(20_000)
    filter_ = Filter.sized(len(held))
    filter_.add(held)
    again = Filter.load(filter_.dump())
    assert all(may_hold(again, name) for name in held)
    wrong = sum(may_hold(again, name) for name in ids(20_000, salt=1))
    assert wrong / 20_000 < 0.02
    assert len(filter_.dump()) == 20_000 * 12 // 8


@given(st.lists(st.integers(0, 50_000_000), max_size=60))
def test_merges_take_neighbours_and_end(rows: list[int]) -> None:
    rounds = 0
    total = sum(rows)
    while (chosen := plan_merge(rows)) is not None:
        part = rows[chosen]
        assert len(part) >= MERGE_AT
        rows[chosen] = [sum(part)]
        rounds += 1
        assert rounds <= 60
    assert sum(rows) == total
    # What stays is few runs a level.
    assert len(rows) < MERGE_AT * (2 + level(max(rows, default=0)))


def test_each_row_is_written_once_a_level() -> None:
    """Write amplification of 1,000 batches: about one merge per factor of MERGE_AT."""
    runs: list[int] = []
    written = 0
    for _ in range(1000):
        runs.insert(0, LEVEL0_ROWS)
        written += LEVEL0_ROWS
        while (chosen := plan_merge(runs)) is not None:
            merged = sum(runs[chosen])
            written += merged
            runs[chosen] = [merged]
    assert written / (1000 * LEVEL0_ROWS) < 5
    assert len(runs) < 30
