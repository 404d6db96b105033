"""Blocks that can be had again: kept beside own data, and never in its way."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore import (
    MAX_BLOCK,
    BlockStore,
    ChunkDamaged,
    ChunkId,
    ChunkMissing,
    FetchedOptions,
    StorageFull,
    chunk_id,
)
from tests.blockstore.conftest import SMALL, Opener, assert_sound, blob

FETCHED = FetchedOptions(
    bytes_max=1 << 20, free_bytes_floor=0, pack_bytes_max=1 << 14, pending_blocks_max=20
)
NOTHING_CACHED = replace(SMALL, cache_bytes_max=0, fetched=FETCHED)


def blocks(count: int, *, seed: int = 0, length: int = 1500) -> list[bytes]:
    return [blob(7_000_000 + seed * 1000 + number, length) for number in range(count)]


def fetched_packs(store: BlockStore) -> list[Path]:
    return sorted((store.folder / "fetched").glob("*.pack"))


def flip_fetched(store: BlockStore, content: bytes, *, at: int = 0) -> None:
    """Flip a byte of a block that is stored as it is."""
    for path in fetched_packs(store):
        raw = bytearray(path.read_bytes())
        found = raw.find(content)
        if found >= 0:
            raw[found + at] ^= 1
            path.write_bytes(raw)
            return
    raise AssertionError("no pack has these bytes")


def read(store: BlockStore, name: ChunkId) -> bytes | None:
    try:
        return store.fetch([name])[name]
    except ChunkMissing:
        return None


def test_put_fetch_reopen(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    data = [*blocks(60), b"x", b"text " * 5000]
    ids = store.put_fetched([*data, data[3]])
    assert ids == [chunk_id(block) for block in (*data, data[3])]
    assert store.resident([*ids, chunk_id(b"never")]) == [True] * len(ids) + [False]
    expected = dict(zip(ids, [*data, data[3]], strict=True))
    assert store.fetch(ids) == expected
    assert store.fetch_nowait(ids[3]) == data[3]
    assert store.stats().fetched.new_blocks == len(data)
    for _ in range(2):
        store.close()
        store = open_store(NOTHING_CACHED)
        assert store.fetch(ids) == expected
        assert store.put_fetched(data) == ids[:-1]
        assert store.stats().fetched.new_blocks == 0
        assert store.stats().fetched.blocks == len(data)
    assert_sound(store)


def test_a_store_without_fetched_blocks_has_no_files_for_them(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    assert store.resident([chunk_id(b"x")]) == [False]
    store.put([b"own"])
    store.close()
    names = {path.name for path in store.folder.iterdir()}
    assert not {name for name in names if name.startswith("fetched")}


@pytest.mark.parametrize("length", [1, 128 << 10, MAX_BLOCK - 1, MAX_BLOCK])
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_every_size_and_codec(open_store: Opener, length: int, codec) -> None:
    options = replace(
        NOTHING_CACHED,
        fetched=FetchedOptions(bytes_max=1 << 28, free_bytes_floor=0, codec=codec),
    )
    store = open_store(options)
    noise, text = blob(1, length), (b"%d words " % length * MAX_BLOCK)[:length]
    data = [noise, text] if length > 1 else [noise]
    ids = store.put_fetched(data)
    assert list(store.fetch(ids).values()) == data
    store.close()
    store = open_store(options)
    assert list(store.fetch(ids).values()) == data
    stored = store.stats().fetched.bytes
    assert stored < 1.1 * length + 10_000 if codec != "none" else stored >= len(data) * length


def test_sizes_outside_the_limits_are_refused(open_store: Opener) -> None:
    store = open_store()
    for bad in (b"", bytes(MAX_BLOCK + 1)):
        with pytest.raises(ValueError, match="1 to"):
            store.put_fetched([bad])


def test_own_data_never_binds_to_fetched_blocks(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(30)
    ids = store.put_fetched(data)
    assert store.put(data) == ids
    assert store.stats().new_chunks == 30
    store.close()
    for path in fetched_packs(store):
        path.unlink()
    store = open_store(NOTHING_CACHED)
    assert store.fetch(ids) == dict(zip(ids, data, strict=True))
    assert store.contains(ids) == set(ids)


def test_what_own_data_has_is_not_stored_again(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(30)
    ids = store.put(data)
    assert store.put_fetched(data) == ids
    assert store.stats().fetched.new_blocks == 0
    store.collect([ids[:10]], waste_max=0.0)
    assert store.resident(ids) == [True] * 10 + [False] * 20
    assert store.put_fetched(data) == ids
    assert store.resident(ids) == [True] * 30
    assert store.stats().fetched.new_blocks == 20


def test_what_own_data_is_about_to_lose_is_kept(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(30)
    ids = store.put(data)
    named = dict(zip(ids, data, strict=True))
    store.keep_fetched(named, owned=True)
    store.keep_fetched(named, owned=True)
    assert store.stats().fetched.new_blocks == 30
    store.collect([], waste_max=0.0)
    assert store.contains(ids) == set()
    assert store.fetch(ids) == named
    assert_sound(store)


def test_collection_sees_no_fetched_block(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(30)
    ids = store.put_fetched(data)
    own = store.put(blocks(30, seed=1))
    report = store.collect([[*ids, *own[:5]]], waste_max=0.0)
    assert report.records_copied == 5
    assert store.contains([*ids, *own]) == set(own[:5])
    assert store.fetch(ids) == dict(zip(ids, data, strict=True))
    assert_sound(store)


@pytest.mark.parametrize("damaged", [1, 30])
def test_a_damaged_block_is_missing_and_can_be_stored_again(
    open_store: Opener, damaged: int
) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(30)
    ids = store.put_fetched(data)
    for content in data[:damaged]:
        flip_fetched(store, content, at=70)
    for name in ids[:damaged]:
        assert store.fetch_nowait(name) is None
        with pytest.raises(ChunkMissing):
            store.fetch([name])
    assert store.resident(ids) == [False] * damaged + [True] * (30 - damaged)
    assert set(store.fetch(ids[damaged:])) == set(ids[damaged:])
    assert store.damaged() == {}
    assert store.stats().fetched.dropped == damaged
    assert_sound(store)
    store.close()
    store = open_store(NOTHING_CACHED)
    assert store.resident(ids) == [False] * damaged + [True] * (30 - damaged)
    assert store.put_fetched(data) == ids
    assert store.fetch(ids) == dict(zip(ids, data, strict=True))


def test_packs_that_are_gone_are_missing_blocks(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(60)
    ids = store.put_fetched(data)
    store.close()
    store = open_store(NOTHING_CACHED)
    first, second, *_ = fetched_packs(store)
    first.unlink()  # under the running store
    found = {name: read(store, name) for name in ids}
    assert None in found.values()
    assert all(got in (None, block) for got, block in zip(found.values(), data, strict=True))
    store.close()
    second.unlink()
    store = open_store(NOTHING_CACHED)
    resident = store.resident(ids)
    assert False in resident
    assert resident == [read(store, name) is not None for name in ids]
    assert store.put_fetched(data) == ids
    assert store.fetch(ids) == dict(zip(ids, data, strict=True))
    assert_sound(store)


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_the_index_is_rebuilt_from_the_packs(open_store: Opener, damage: str) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(60)
    ids = store.put_fetched(data)
    store.close()
    path = store.folder / "fetched.db"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 999)
    store = open_store(NOTHING_CACHED)
    assert store.fetch(ids) == dict(zip(ids, data, strict=True))
    assert store.stats().fetched.blocks == 60
    assert_sound(store)


def test_damaged_own_data_is_read_from_the_cache_and_repaired_by_a_fetch(
    open_store: Opener,
) -> None:
    store = open_store(NOTHING_CACHED)
    data = blocks(3)
    ids = store.put_fetched(data[:2])
    ids = store.put(data)
    store.sync()
    (path,) = (store.folder / "packs").iterdir()
    raw = bytearray(path.read_bytes())
    for block in data:
        raw[raw.find(block)] ^= 1
    path.write_bytes(raw)
    assert store.fetch(ids[:2]) == dict(zip(ids, data[:2], strict=False))
    with pytest.raises(ChunkDamaged):
        store.fetch(ids)
    assert store.resident(ids) == [True, True, False]
    store.put_fetched(data)
    assert store.damaged() == {}
    store.close()
    for pack in fetched_packs(store):
        pack.unlink()
    store = open_store(NOTHING_CACHED)
    assert store.fetch(ids) == dict(zip(ids, data, strict=True))


def test_a_fetched_pack_is_never_taken_for_an_own_one(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    ids = store.put_fetched(blocks(5))
    store.close()
    (path,) = fetched_packs(store)
    raw = path.read_bytes()
    # Even without its header, which names its series: its records are valid nowhere else.
    (store.folder / "packs" / path.name).write_bytes(bytes(64) + raw[64:])
    store = open_store(NOTHING_CACHED)
    assert store.contains(ids) == set()


def test_below_the_floor_blocks_are_refused_and_own_data_is_not(open_store: Opener) -> None:
    store = open_store(replace(SMALL, fetched=FetchedOptions(free_bytes_floor=1 << 60)))
    with pytest.raises(StorageFull, match="full"):
        store.put_fetched(blocks(1))
    assert store.stats().fetched.refused == 1
    store.put(blocks(1))
    store.sync()


def test_voids_beyond_a_torn_end_do_not_hide_what_is_written_there(open_store: Opener) -> None:
    """Found by a random life: the index kept a void whose record a power cut had taken."""
    store = open_store(NOTHING_CACHED)
    ids = store.put_fetched(blocks(4))
    assert store.evict(ids[2:3]) == 1
    shutil.copytree(store.folder, store.folder.with_name("killed"))
    folder = store.folder.with_name("killed")
    (path,) = (folder / "fetched").iterdir()
    os.truncate(path, path.stat().st_size - 1700)  # in the third of four
    store = open_store(NOTHING_CACHED, folder)
    assert store.resident(ids) == [True, True, False, False]
    assert store.put_fetched(blocks(4)) == ids
    assert store.fetch(ids) == dict(zip(ids, blocks(4), strict=True))
    store.close()
    store = open_store(NOTHING_CACHED, folder)
    assert store.resident(ids) == [True] * 4
