"""Works that fetch ahead: what they fetch, how they end, and what they never do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blockstore.options import FetchedOptions
from ghostd import warming
from ghostd.errors import NotFound
from ghostd.listings import ListingOptions
from ghostd.projected import ProjectedOptions
from ghostd.warming import NoWork, TooManyWorks
from syncer.remotes.errors import Denied, Unreachable
from tests.ghostd.scale import STORE
from tests.ghostd.world import ROOT, jumping
from tests.projections.test_projected import DATA, MIB, Setting
from tests.projections.tools import tooled


async def tree(s: Setting) -> dict[bytes, bytes]:
    """Files in directories, some deep, some empty."""
    files = {b"d%d/e/f%d" % (n % 5, n): DATA[n : n + 3_000 + n] for n in range(40)}
    files[b"large"] = DATA
    files[b"empty"] = b""
    for key, data in files.items():
        await s.put(key, data)
    return files


@jumping
async def test_everything_below_a_path_comes_once() -> None:
    s = Setting()
    files = await tree(s)
    async with tooled(s) as tools:
        work = (await tools.fetch("warm", b"/r")).progress()
        assert (work.state, work.errors, work.listed) == ("done", 0, True)
        assert work.files == work.files_done == len(files)
        total = sum(map(len, files.values()))
        assert work.bytes == work.bytes_done == work.bytes_fetched == total
        assert s.requests["list"] == 11, "one for each directory"
        s.fail = Unreachable("gone")
        for key, data in files.items():
            assert await tools.world.content(b"/r/" + key) == data
        again = (await tools.fetch("warm", b"/r/large", b"/r/d1")).progress()
        assert (again.state, again.bytes_fetched) == ("done", 0)
        assert again.bytes_done == again.bytes
        s.fail = None


@jumping
async def test_what_was_lost_meanwhile_is_fetched_again() -> None:
    s = Setting()
    await s.put(b"a", DATA)
    async with tooled(s) as tools:
        await tools.fetch("warm", b"/r/a")
        ids = [i for i in tools.world.tree.remote.block_ids(
            (await tools.world.look(b"/r/a")).base, len(DATA), MIB) if i]  # fmt: skip
        tools.world.store.evict(ids[1:3])  # behind the rows' back, as the hand does
        work = (await tools.fetch("warm", b"/r/a")).progress()
        assert work.bytes_fetched == 2 * MIB
        assert (await tools.residency(b"/r/a")).local_bytes == len(DATA)


@jumping
async def test_own_bytes_are_not_fetched() -> None:
    s = Setting()
    await s.put(b"a", DATA)
    async with tooled(s, mode="cow") as tools:
        inode = await tools.world.look(b"/r/a")
        await tools.world.fs.write(inode.ino, MIB, b"x" * MIB)
        made = tools.world.fs.create((await tools.world.look(b"/r")).ino, b"b", 0o100644, ROOT)
        await tools.world.fs.write(made.ino, 0, b"own")
        work = (await tools.fetch("warm", b"/r")).progress()
        assert work.bytes_fetched == len(DATA) - MIB
        assert work.bytes_done == work.bytes == len(DATA) + 3


@jumping
async def test_pins_are_marked_before_they_are_fetched_and_follow_new_versions() -> None:
    s = Setting()
    await s.put(b"d/a", DATA)
    async with tooled(s, ttl_s=10.0) as tools:
        s.gate = trio.Event()
        work = await tools.works.start("pin", [b"/r"])
        await trio.testing.wait_all_tasks_blocked()
        assert (await tools.residency(b"/r")).pinned_files == 1
        assert (await tools.residency(b"/r")).local_bytes == 0
        s.gate.set()
        await work.ended.wait()
        await s.put(b"d/a", DATA[1:])
        s.clock.now += 11 * 10**9
        await tools.world.names(b"/r/d")
        found = await tools.residency(b"/r/d/a")
        assert found.bytes == len(DATA) - 1
        assert (found.pinned_files, found.local_bytes) == (1, 0)
        await tools.fetch("pin", b"/r")
        assert (await tools.residency(b"/r/d/a")).local_bytes == len(DATA) - 1
        await tools.evictor.unpin([b"/r"])
        assert (await tools.residency(b"/r")).pinned_files == 0


@jumping
async def test_what_appears_later_in_a_pinned_directory_is_pinned() -> None:
    s = Setting()
    await s.put(b"d/a", b"a")
    await s.put(b"e/a", b"a")
    async with tooled(s, ttl_s=10.0) as tools:
        await tools.fetch("pin", b"/r/d")
        for key in (b"d/b", b"d/new/c", b"e/b"):
            await s.put(key, key)
        s.clock.now += 11 * 10**9
        for directory in (b"/r", b"/r/d", b"/r/d/new", b"/r/e"):
            await tools.world.names(directory)
        assert (await tools.residency(b"/r/d")).pinned_files == 3
        assert (await tools.residency(b"/r/e")).pinned_files == 0
        await tools.evictor.unpin([b"/r/d/new"])
        for key in (b"d/c", b"d/new/d"):
            await s.put(key, key)
        s.clock.now += 11 * 10**9
        for directory in (b"/r/d", b"/r/d/new"):
            await tools.world.names(directory)
        assert (await tools.residency(b"/r/d/new")).pinned_files == 0
        assert (await tools.residency(b"/r/d")).pinned_files == 3


@jumping
async def test_a_stop_ends_a_work_at_once_also_when_the_remote_is_silent() -> None:
    s = Setting()
    await tree(s)
    async with tooled(s) as tools:
        s.gate = trio.Event()
        work = await tools.works.start("warm", [b"/r"])
        await trio.testing.wait_all_tasks_blocked()
        assert work.progress().state == "running"
        began = trio.current_time()
        await tools.works.stop(work.number)
        assert trio.current_time() - began < 1.0
        progress = work.progress()
        assert progress.state == "stopped"
        assert progress.bytes_fetched == 0
        await tools.works.stop(work.number)  # once more does no harm
        with pytest.raises(NoWork):
            await tools.works.stop(99)
        s.gate.set()
        reads = s.requests["read"]
        await trio.testing.wait_all_tasks_blocked()
        assert s.requests["read"] == reads, "nothing is left in the queue"


@jumping
async def test_one_bad_file_does_not_end_a_work() -> None:
    s = Setting()
    files = await tree(s)

    async def refuse(method: str, key: bytes) -> None:
        if method == "read" and key == b"d1/e/f1":
            raise Denied("not yours")

    s.server.before_request = refuse
    async with tooled(s) as tools:
        work = (await tools.fetch("warm", b"/r")).progress()
        assert (work.state, work.errors) == ("done", 1)
        assert work.files_done == len(files) - 1
        assert work.last_errors[0].path == "/r/d1/e/f1"
        assert "not yours" in work.last_errors[0].reason


@jumping
async def test_a_remote_that_refuses_everything_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warming, "_FAILURES_MAX", 5)
    s = Setting()
    await tree(s)
    async with tooled(s) as tools:
        for directory in (b"/r", *(b"/r/d%d" % n for n in range(5))):
            await tools.world.names(directory)
        for n in range(5):
            await tools.world.names(b"/r/d%d/e" % n)
        s.fail = Unreachable("nobody home")
        work = (await tools.fetch("warm", b"/r")).progress()
        assert work.state == "failed"
        assert "nobody home" in work.reason
        assert 5 <= work.errors < 5 + 32
        s.fail = None


@jumping
async def test_unlisted_directories_of_a_dead_remote_are_errors_not_hangs() -> None:
    s = Setting()
    await tree(s)
    patient = ProjectedOptions(listing=ListingOptions(deadline_s=3.0, stale_wait_s=1.0))
    async with tooled(s, projecting=patient) as tools:
        await tools.world.names(b"/r")
        s.fail = Unreachable("nobody home")
        work = (await tools.fetch("warm", b"/r/d0", b"/r/d1")).progress()
        assert (work.state, work.errors) == ("done", 2)
        s.fail = None


@jumping
async def test_a_cache_without_room_ends_a_work_with_the_reason() -> None:
    s = Setting()
    s.roomy = replace(STORE, fetched=FetchedOptions(bytes_max=1 << 30, free_bytes_floor=1 << 60))
    await s.put(b"a", DATA)
    async with tooled(s) as tools:
        work = (await tools.fetch("pin", b"/r/a")).progress()
        assert work.state == "failed"
        assert "no room" in work.reason


@jumping
async def test_wrong_paths_are_told_at_once_and_works_are_bounded() -> None:
    s = Setting()
    await tree(s)
    async with tooled(s) as tools:
        with pytest.raises(NotFound):
            await tools.works.start("warm", [b"/r/none"])
        for _ in range(warming.REMEMBERED_MAX + 5):
            await tools.fetch("warm", b"/r/empty")
        assert len(tools.works.all().works) == warming.REMEMBERED_MAX
        with pytest.raises(NoWork):
            tools.works.get(1)
        s.gate = trio.Event()
        running = [await tools.works.start("warm", [b"/r"]) for _ in range(warming.RUNNING_MAX)]
        with pytest.raises(TooManyWorks):
            await tools.works.start("warm", [b"/r"])
        newest = tools.works.all().works[0]
        assert newest.id == running[-1].number
        s.gate.set()
        for work in running:
            await work.ended.wait()
        total = sum(work.bytes_fetched for work in running)
        assert total >= running[0].bytes
        assert s.requests["read"] <= 45, "works share flights"


@jumping
async def test_listings_of_a_wide_tree_are_asked_for_several_at_a_time() -> None:
    s = Setting()
    for n in range(40):
        await s.put(b"d%d/f" % n, b"x")
    async with tooled(s) as tools:
        await tools.world.names(b"/r")
        under_way = most = 0

        async def slow(method: str, _: bytes) -> None:
            nonlocal under_way, most
            if method == "list":
                under_way += 1
                most = max(most, under_way)
                await trio.sleep(0.04)
                under_way -= 1

        s.server.before_request = slow
        began = trio.current_time()
        await tools.fetch("warm", b"/r")
        assert most == 8
        assert trio.current_time() - began < 40 * 0.04 / 4
