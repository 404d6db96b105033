"""Pure plans: which packs to collect, and which reads to make."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockstore.collect import PackUse, plan_collection
from blockstore.ids import ChunkId, Location, PackId
from blockstore.packfile import RECORD_BYTES
from blockstore.reader import GAP_BYTES_MAX, RUN_BYTES_MAX, plan_reads

uses = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(sorted),
    max_size=30,
).map(lambda pairs: [PackUse(PackId(n), total, live) for n, (live, total) in enumerate(pairs, 1)])


@given(uses, st.floats(0, 1), st.integers(0, 10**5))
def test_plan_condemns_waste_and_nothing_else(found, waste_max: float, small: int) -> None:
    plan = plan_collection(found, waste_max=waste_max, small_bytes=small)
    condemned = set(plan.condemned)
    by_pack = {use.pack: use for use in found}
    spared_small = 0
    for use in found:
        dead = use.bytes_total - use.bytes_live
        wasteful = use.bytes_live == 0 or dead > waste_max * use.bytes_total
        if wasteful:
            assert use.pack in condemned
        elif use.pack in condemned:
            assert use.bytes_total < small
        else:
            spared_small += use.bytes_total < small
    assert spared_small <= 1
    lives = [by_pack[pack].bytes_live for pack in plan.condemned]
    assert lives == sorted(lives)
    assert plan.bytes_to_copy == sum(lives)
    assert plan.bytes_to_free == sum(by_pack[p].bytes_total for p in condemned) - sum(lives)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 10**7), st.integers(1, 1 << 20)),
        max_size=40,
    )
)
def test_reads_cover_every_record_and_are_bounded(found) -> None:
    wanted = [
        (ChunkId(b"%032d" % number), Location(PackId(pack), offset, length, number % 3))
        for number, (pack, offset, length) in enumerate([*found, *found[:3]])
    ]
    runs = plan_reads(wanted)
    got = {
        name: (run.pack, want.offset, want.length)
        for run in runs
        for want in run.wants
        for name in want.ids
    }
    assert got == {name: location[:3] for name, location in wanted}
    places = [(run.pack, want.offset, want.length) for run in runs for want in run.wants]
    assert len(places) == len(set(places))  # chunks of a group: one read
    for run in runs:
        assert run.length <= RUN_BYTES_MAX or len(run.wants) == 1
        end = run.offset
        for want in run.wants:
            assert run.offset <= want.offset <= end + GAP_BYTES_MAX
            end = max(end, want.offset + RECORD_BYTES + want.length)
        assert end == run.offset + run.length
