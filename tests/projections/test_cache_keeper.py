"""The cache of fetched blocks: what is pinned stays, the rest goes and comes again."""

from __future__ import annotations

from dataclasses import replace

import trio

from blockstore.options import FetchedOptions
from ghostd.cache_keeper import PinnedBlocks, keep_cache
from tests.ghostd.scale import STORE
from tests.ghostd.world import jumping
from tests.projections.test_projected import DATA, MIB, URL, Setting, settled

SMALL = replace(STORE, fetched=FetchedOptions(bytes_max=8 * MIB, free_bytes_floor=0))


@jumping
async def test_the_cache_shrinks_and_pinned_files_stay() -> None:
    s = Setting()
    names = [b"f%d" % n for n in range(6)]
    for n, name in enumerate(names):
        await s.put(name, DATA[n:] + DATA[:n])
    world = s.world()
    async with world.running():
        world.store.set_pinned(PinnedBlocks(world.namespace))
        await world.project(URL)
        rows = world.tree.remote
        pinned = await world.look(b"/r/f0")
        row = rows.versions.get(pinned.base)
        assert row is not None
        rows.versions.set(pinned.base, row._replace(pinned=1))
        for name in names:
            await world.content(b"/r/" + name)
        await settled(world)
    world.close()
    s.roomy = SMALL
    world = s.world()
    async with world.running(), trio.open_nursery() as nursery:
        world.store.set_pinned(PinnedBlocks(world.namespace))
        before = world.store.stats().fetched.bytes
        nursery.start_soon(keep_cache, world.store, world.threads)
        await settled(world)
        nursery.cancel_scope.cancel()
        after = world.store.stats().fetched.bytes
        assert before > 30 * MIB
        assert after <= 2 * 8 * MIB
        assert await world.content(b"/r/f0") == DATA
        assert s.requests["read"] == 0, "a pinned file needs no remote"
        for n, name in enumerate(names):
            assert await world.content(b"/r/" + name) == DATA[n:] + DATA[:n]
        assert s.requests["read"] > 0, "the others are fetched again"
    async with world.running():
        await world.check()
    world.close()
