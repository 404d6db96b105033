"""Packs at a remote, everything else in a local folder."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.errors import ChunkMissing, StorageFailed, StorageFull
from blockstore.ids import PackId, chunk_id
from syncer.portal import open_portal
from syncer.remote_blocks import BLOCK_BYTES, Blocks
from syncer.remote_disk import UPLOADS_MAX, pack_key
from syncer.remotes.errors import Full, Missing, Unreachable
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.repository import Access, Repository
from syncer.repository_lock import remove_locks
from syncer.small_files import RemoteFiles
from tests.syncer.repositories import Counted, blobs, holds, machine, opened, put, sound


async def pack_sizes(server: MemoryServer) -> dict[bytes, int]:
    found: dict[bytes, int] = {}

    async def sink(page) -> None:
        await trio.lowlevel.checkpoint()
        found.update((entry.name, entry.size) for entry in page)

    with contextlib.suppress(Missing):
        await MemoryRemote(server).list(b"packs/", sink)
    return found


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("packs/*"))


async def test_what_was_synced_is_at_the_remote_and_needs_no_cache(tmp_path: Path) -> None:
    counted = Counted()
    here = machine(tmp_path, counted.server)
    chunks = blobs(1, 40)
    async with opened(here) as repository:
        await put(repository, chunks)
        assert files_in(tmp_path) == []
        await holds(repository, chunks)
    shutil.rmtree(tmp_path / "cache")
    async with opened(here, Access.READ) as repository:
        await holds(repository, chunks)
        with pytest.raises(ChunkMissing):
            repository.store.fetch([chunk_id(b"another")])


async def test_opening_costs_what_is_new(tmp_path: Path) -> None:
    counted = Counted()
    here, there = machine(tmp_path / "a", counted.server), machine(tmp_path / "b", counted.server)
    async with opened(here) as repository:
        await put(repository, blobs(1, 40))
    packs = len(await pack_sizes(counted.server))
    assert packs >= 4
    counted.asked.clear()
    async with opened(here):
        pass
    assert counted.asked["list", "packs"] == 1
    assert counted.asked["read", "packs"] == 0
    async with opened(there) as repository:
        await put(repository, blobs(2, 12))
    new = len(await pack_sizes(counted.server)) - packs
    assert new >= 1
    counted.asked.clear()
    async with opened(here) as repository:
        assert counted.asked["read", "packs"] == new  # the tail of each
        await holds(repository, blobs(2, 12))
    counted.asked.clear()
    async with opened(here):
        assert counted.asked["read", "packs"] == 0


async def test_a_lost_cache_is_made_anew_from_tables_alone(tmp_path: Path) -> None:
    counted = Counted()
    here = machine(tmp_path, counted.server)
    async with opened(here) as repository:
        await put(repository, blobs(1, 60))
    packs = len(await pack_sizes(counted.server))
    shutil.rmtree(tmp_path / "cache")
    counted.asked.clear()
    async with opened(here) as repository:
        assert counted.asked["read", "packs"] == packs
        assert repository.store.blocks.opened.records_found == 60


async def test_machines_share_chunks_by_turns(tmp_path: Path) -> None:
    counted = Counted()
    machines = [machine(tmp_path / name, counted.server) for name in "ab"]
    written: list[bytes] = []
    for turn in range(6):
        async with opened(machines[turn % 2]) as repository:
            before = sum((await pack_sizes(counted.server)).values())
            await put(repository, [*written, *blobs(turn, 3)])
            after = sum((await pack_sizes(counted.server)).values())
            assert after - before < 3 * 10_000 + 2_000  # what others stored was not stored again
            written += blobs(turn, 3)
            await holds(repository, written)


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_number_that_another_machine_took_meanwhile(tmp_path: Path, sealed: bool) -> None:
    """A machine dies with a pack that is not uploaded; another one writes; the first comes back."""
    counted = Counted()
    here, there = machine(tmp_path / "a", counted.server), machine(tmp_path / "b", counted.server)
    async with opened(here) as repository:
        await put(repository, blobs(1))
    with trio.CancelScope() as scope:
        async with opened(here) as repository:
            # The index here is told of them, the remote is not.
            await put(repository, blobs(2, 30 if sealed else 4), sync=False)
            counted.server.reachable = False
            await trio.to_thread.run_sync(repository.store.blocks.sync)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    counted.server.reachable = True
    await remove_locks(RemoteFiles(MemoryRemote(counted.server)), force=True)
    left = files_in(tmp_path / "a")
    assert left
    async with opened(there) as repository:
        await put(repository, blobs(3, 30))
    assert {name.encode() for name in left} & set(await pack_sizes(counted.server))
    async with opened(here) as repository:
        await holds(repository, [*blobs(1), *blobs(3, 30)])
        await put(repository, blobs(2, 30))
        await holds(repository, blobs(2, 30))
        await sound(repository)
    shutil.rmtree(tmp_path / "a" / "cache")
    async with opened(here) as repository:
        await holds(repository, [*blobs(1), *blobs(2, 30), *blobs(3, 30)])


async def test_packs_of_a_run_that_died_are_adopted(tmp_path: Path) -> None:
    counted = Counted()
    here = machine(tmp_path, counted.server)
    with trio.CancelScope() as scope:
        async with opened(here) as repository:
            await put(repository, blobs(1, 4), sync=False)
            await trio.to_thread.run_sync(repository.store.blocks.sync)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert files_in(tmp_path)
    async with opened(here) as repository:
        counted.asked.clear()
        assert repository.store.contains([chunk_id(chunk) for chunk in blobs(1, 4)])
        await put(repository, blobs(1, 5))  # four of them are there
    shutil.rmtree(tmp_path / "cache")
    async with opened(here) as repository:
        await holds(repository, blobs(1, 5))


@pytest.mark.parametrize(
    ("error", "raised"), [(Unreachable("away"), StorageFailed), (Full("full"), StorageFull)]
)
async def test_an_upload_that_fails_is_told_and_tried_again(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    counted = Counted()
    here = machine(tmp_path, counted.server)
    failing = True

    async def fail(method: str, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if failing and method == "write" and key.startswith(b"packs/"):
            raise error

    counted.server.before_request = fail
    async with opened(here) as repository:
        with pytest.raises(raised) as caught:
            await put(repository, blobs(1))
        assert caught.value.__cause__ is error
        with pytest.raises(raised):  # noqa: PT012 also while storing more than may wait
            for part in range(200):
                await put(repository, blobs(part, 4), sync=False)
        failing = False
        await put(repository, [*blobs(1), *blobs(2, 200)])
    shutil.rmtree(tmp_path / "cache")
    async with opened(here, Access.READ) as repository:
        await holds(repository, [*blobs(1), *blobs(2, 200)])


async def test_storing_waits_for_uploads(tmp_path: Path) -> None:
    counted = Counted()
    waiting = 0
    full, go = trio.Event(), trio.Event()

    async def wait(method: str, key: bytes) -> None:
        nonlocal waiting
        await trio.lowlevel.checkpoint()
        if method == "write" and key.startswith(b"packs/"):
            waiting += 1
            if waiting == UPLOADS_MAX:
                full.set()
            await go.wait()

    done = trio.Event()

    async def store(repository: Repository) -> None:
        await put(repository, blobs(1, 200))
        done.set()

    async with opened(machine(tmp_path, counted.server)) as repository:
        counted.server.before_request = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store, repository)
            await full.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert waiting == UPLOADS_MAX
            assert not done.is_set()
            go.set()
        await holds(repository, blobs(1, 200))


async def test_a_job_that_is_cancelled_does_not_wait_for_the_remote(tmp_path: Path) -> None:
    counted = Counted()
    asked = trio.Event()

    async def hang(method: str, key: bytes) -> None:
        if method == "write" and key.startswith(b"packs/"):
            asked.set()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        async with opened(machine(tmp_path, counted.server)) as repository:
            counted.server.before_request = hang
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, repository, blobs(1))
                await asked.wait()
                scope.cancel()
    assert scope.cancelled_caught


async def test_nothing_is_recorded_when_the_lock_was_taken_away(tmp_path: Path) -> None:
    counted = Counted()
    here, there = machine(tmp_path / "a", counted.server), machine(tmp_path / "b", counted.server)
    async with opened(here) as repository:
        await remove_locks(RemoteFiles(MemoryRemote(counted.server)), force=True)
        async with opened(there) as other:
            await put(other, blobs(2, 4))
        with pytest.raises(StorageFailed, match="somebody else has written"):
            await put(repository, blobs(1, 4))  # the same number, other bytes


async def test_a_pack_whose_end_is_lost_is_read_once(tmp_path: Path) -> None:
    counted = Counted()
    here = machine(tmp_path, counted.server)
    async with opened(here) as repository:
        await put(repository, blobs(1, 14))
    sizes = await pack_sizes(counted.server)
    first = min(sizes)
    remote = MemoryRemote(counted.server)
    entry, data = await remote.read_whole(b"packs/" + first, 1 << 20)
    await remote.write(entry.key, Held(data[:-100]))
    shutil.rmtree(tmp_path / "cache")
    async with opened(here) as repository:
        await holds(repository, blobs(1, 14))
    counted.asked.clear()
    async with opened(here) as repository:
        assert counted.asked["read", "packs"] == 0
        await holds(repository, blobs(1, 14))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4 * BLOCK_BYTES + 77),
    st.lists(st.tuples(st.integers(0, 5 * BLOCK_BYTES), st.integers(0, 2 * BLOCK_BYTES))),
)
def test_blocks_are_the_bytes_of_the_pack(size: int, reads: list[tuple[int, int]]) -> None:
    data = blobs(size, 1, size)[0]

    async def main() -> None:
        server = MemoryServer()
        remote = MemoryRemote(server)
        entry = await remote.write(pack_key(PackId(1)), Held(data))
        async with open_portal() as portal:
            blocks = Blocks(remote, portal, pack_key, bytes_max=2 * BLOCK_BYTES)
            for offset, length in reads:
                found = await trio.to_thread.run_sync(
                    blocks.read, PackId(1), entry.version, length, offset
                )
                assert found == data[offset : offset + length]

    trio.run(main)


async def test_a_block_flies_once_however_many_wait() -> None:
    data = blobs(5, 1, 3 * BLOCK_BYTES)[0]
    asked: list[bytes] = []
    first, go = trio.Event(), trio.Event()

    async def wait(method: str, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if method == "read":
            asked.append(key)
            first.set()
            await go.wait()

    server = MemoryServer(wait)
    remote = MemoryRemote(server)
    entry = await remote.write(pack_key(PackId(1)), Held(data))
    begun = threading.Semaphore(0)
    results: list[bytes] = []
    async with open_portal() as portal:
        blocks = Blocks(remote, portal, pack_key)

        def read() -> None:
            begun.release()
            results.append(blocks.read(PackId(1), entry.version, 100, 10))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(trio.to_thread.run_sync, read)
            await first.wait()
            for _ in range(5):
                await trio.to_thread.run_sync(begun.acquire)
            go.set()
    assert results == [data[10:110]] * 5
    assert len(asked) == 1


async def test_a_failed_block_is_asked_for_again() -> None:
    fail = True

    async def before(method: str, _key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if fail and method == "read":
            raise Unreachable("away")

    server = MemoryServer(before)
    remote = MemoryRemote(server)
    entry = await remote.write(pack_key(PackId(1)), Held(b"x" * 100))
    async with open_portal() as portal:
        blocks = Blocks(remote, portal, pack_key)
        with pytest.raises(Unreachable):
            await trio.to_thread.run_sync(blocks.read, PackId(1), entry.version, 10, 0)
        fail = False
        assert await trio.to_thread.run_sync(blocks.read, PackId(1), entry.version, 10, 0)
