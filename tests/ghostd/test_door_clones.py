"""Copies within the namespace: extents are shared, no byte is moved, each is one state."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from blockstore.ids import Buffer
from ghostd import door_clones
from syncer import door, transfer_clone
from syncer.door_files import CloneFile
from syncer.door_protocol import Head, Message
from syncer.options import Verb
from syncer.remotes.errors import Busy, Changed
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.tree import Metadata, Node
from tests.ghostd.test_door import MIB, PLAIN, CountingDoor, Doors, opened
from tests.ghostd.test_door_reads import context, filled, ran

__all__ = ["context"]

MOVES = {"put", "bind", "read", "read_many", "fetch"}


async def test_no_byte_is_moved(tmp_path, context):
    async with opened(tmp_path / "state") as doors:
        contents = await filled(doors, 1_000)
        large = random.Random(1).randbytes(7 * MIB)
        holes = [(0, MIB), (6 * MIB, MIB)]
        await doors.tree.write(b"in/large", Held(large), Metadata(xattrs={b"user.a": b"b"}))
        await doors.tree.write(b"in/holes", Held(large), PLAIN, ranges=holes)
        await doors.tree.write(b"in/hole", Held(bytes(9 * MIB)), PLAIN, ranges=[])
        await doors.tree.hard_link(b"in/link", b"in/large")
        doors.door.requests.clear()
        report = await ran(context, doors, Verb.COPY, "/mnt/in", "/mnt/out")
        requests = doors.door.requests
        assert not MOVES.intersection(requests)
        assert requests.total() < 100
        assert report.bytes_moved == 0
        assert report.bytes_saved >= sum(map(len, contents.values())) + len(large)
        assert report.how == {"clone": 1_003}
        for path, data in contents.items():
            assert await doors.world.content(b"out/" + path) == data
            assert await doors.tree.xattrs(b"out/" + path) == {b"user.n": path}
        assert await doors.world.content(b"out/large") == large
        assert await doors.tree.xattrs(b"out/large") == {b"user.a": b"b"}
        for name in (b"holes", b"hole"):
            node, copy = await doors.tree.stat(b"in/" + name), await doors.tree.stat(b"out/" + name)
            assert (copy.size, copy.allocated) == (node.size, node.allocated)
            found = await doors.tree.data_ranges(b"out/" + name, copy)
            assert found == await doors.tree.data_ranges(b"in/" + name, node)
        nodes = await doors.nodes(b"out")
        assert nodes[b"link"].link == nodes[b"large"].link is not None
        assert not len(doors.stages)
        # They are files of their own.
        inode = await doors.world.look(b"out/large")
        await doors.world.fs.write(inode.ino, 0, b"changed")
        assert await doors.world.content(b"in/large") == large
        await doors.world.writeback.commit()
        await doors.world.check()
        report = await ran(context, doors, Verb.SYNC, "/mnt/in/d1", "/mnt/out/d1")
        assert report.files_copied == 0
    async with opened(tmp_path / "state") as doors:
        assert await doors.world.content(b"out/large") == b"changed" + large[7:]
        await doors.world.check()


async def test_what_is_in_memory_only_is_stored_first(tmp_path, monkeypatch, context):
    data = random.Random(2).randbytes(6 * MIB)
    async with opened(tmp_path / "state") as doors:
        for name, content in ((b"in/small", data[:5_000]), (b"in/large", data)):
            await doors.tree.write(name, Held(b""), PLAIN)
            inode = await doors.world.look(name)
            await doors.world.fs.write(inode.ino, 0, content)
        report = await ran(context, doors, Verb.COPY, "/mnt/in", "/mnt/out")
        assert (report.bytes_moved, report.how) == (0, {"clone": 2})
        assert await doors.world.content(b"out/small") == data[:5_000]
        assert await doors.world.content(b"out/large") == data
        await doors.world.check()


async def clone_of(doors: Doors, name: bytes) -> CloneFile:
    return CloneFile(name, await doors.tree.stat(name), b"copy", PLAIN)


class Meanwhile(CountingDoor):
    """Does something in the filesystem's loop between two parts of a clone."""

    act = None

    def call(self, head: Head, body: Sequence[Buffer] = ()) -> Message:
        if head["op"] == "clone_part" and head["at"] and self.act is not None:
            act, self.act = self.act, None
            trio.from_thread.run(act)
        return super().call(head, body)


@pytest.mark.parametrize("change", ["written", "written silently", "shortened", "unlinked"])
async def test_a_clone_is_one_state_of_its_source(tmp_path, monkeypatch, change):
    monkeypatch.setattr(door_clones, "_PART_EXTENTS", 1)
    monkeypatch.setattr(door_clones, "_WINDOW_BYTES", MIB)
    data = random.Random(3).randbytes(5 * MIB)
    async with opened(tmp_path, door=Meanwhile) as doors:
        await doors.tree.write(b"f", Held(data), PLAIN)
        inode = await doors.world.look(b"f")
        fs = doors.world.fs

        async def act() -> None:
            if change == "shortened":
                fs.open(inode.ino, truncate=True)
                fs.release(inode.ino)
            elif change == "unlinked":
                fs.unlink(1, b"f")
                await doors.world.writeback.commit()
            else:
                silently = change == "written silently"
                await fs.write(inode.ino, 4 * MIB, b"new", keep_times=silently)

        doors.door.act = act
        clone = await clone_of(doors, b"f")
        if change == "unlinked":  # which changes nothing of its content
            await doors.tree.clone_large(doors.tree, clone)
            assert await doors.world.content(b"copy") == data
        else:
            with pytest.raises(Changed):
                await doors.tree.clone_large(doors.tree, clone)
            assert b"copy" not in await doors.nodes()
        assert doors.door.act is None
        assert not len(doors.stages)
        assert inode.opens == 0
        await doors.world.check()


async def test_a_changed_source_is_not_cloned(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(b"old"), PLAIN)
        clone = await clone_of(doors, b"f")
        await doors.tree.write(b"f", Held(b"new"), PLAIN)
        outcomes = await doors.tree.clone_many(doors.tree, [clone], xattrs=False)
        assert isinstance(outcomes[0], Changed)
        with pytest.raises(Changed):
            await doors.tree.clone_large(doors.tree, clone)
        assert set(await doors.nodes()) == {b"f"}


async def test_a_worker_that_ends_lets_go_of_what_it_cloned(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(bytes(100)), PLAIN)
        clone = await clone_of(doors, b"f")
        head = {"op": "stage", "path": "copy", "stage": 0, "files": [{"extents": 0}]}
        stage = (await doors.door.ask(head)).head["stage"]
        part = {"op": "clone_part", "from": "f", "token": clone.node.token, "path": "copy"}
        await doors.door.ask({**part, "stage": stage, "at": 0})
        inode = await doors.world.look(b"f")
        assert inode.opens == 1
        doors.door.close()
        with trio.fail_after(10):
            while len(doors.stages):  # noqa: ASYNC110  its threads are ending
                await trio.sleep(0.001)
        assert inode.opens == 0


async def test_what_a_remote_has_is_copied(tmp_path, monkeypatch, context):
    remote = MemoryRemote(MemoryServer())
    await remote.write(b"d/here", Held(b"here" * 1_000))
    await remote.write(b"d/far", Held(b"far" * 1_000))
    monkeypatch.setattr(transfer_clone, "SMALL_BYTES_MAX", 3_500)  # one of each kind
    async with opened(tmp_path / "state", {"m://": remote}) as doors:
        await doors.world.project("m://", b"r", mode="cow")
        assert await doors.world.content(b"r/d/here") == b"here" * 1_000
        await doors.tree.write(b"r/d/own", Held(b"own"), PLAIN)
        report = await ran(context, doors, Verb.COPY, "/mnt/r/d", "/mnt/out")
        assert report.how == {"clone": 1}
        assert report.bytes_moved == 7_000
        assert await doors.world.content(b"out/here") == b"here" * 1_000
        assert await doors.world.content(b"out/far") == b"far" * 1_000
        assert await doors.world.content(b"out/own") == b"own"
        await doors.world.check()


async def test_chunks_that_a_collection_took_are_not_named(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(b"some bytes"), PLAIN)
        await doors.world.writeback.commit()
        inode = await doors.world.look(b"f")
        content = doors.world.tree.content(inode)
        content.segments[0] = [(0, 10, b"\1" * 32, 0)]
        clone = await clone_of(doors, b"f")
        outcomes = await doors.tree.clone_many(doors.tree, [clone], xattrs=False)
        assert isinstance(outcomes[0], Busy)
        with pytest.raises(Busy):
            await doors.tree.clone_large(doors.tree, clone)
        assert set(await doors.nodes()) == {b"f"}
        content.segments.clear()


async def test_a_clone_takes_the_place_of_what_was_seen_there(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(b"new"), PLAIN)
        old = await doors.tree.write(b"copy", Held(b"old"), PLAIN)
        clone = (await clone_of(doors, b"f"))._replace(old=old, metadata=Metadata(mode=0o600))
        outcomes = await doors.tree.clone_many(doors.tree, [clone], xattrs=True)
        assert isinstance(outcomes[0], Node)
        assert outcomes[0].mode == 0o600
        assert await doors.world.content(b"copy") == b"new"
        again = await doors.tree.clone_many(doors.tree, [clone], xattrs=True)
        assert isinstance(again[0], Changed)


async def test_a_restore_of_the_stores_own_snapshot_moves_no_byte(tmp_path, monkeypatch, context):
    data = random.Random(4).randbytes(9 * MIB)
    async with opened(tmp_path / "state") as doors:
        contents = await filled(doors, 200)
        await doors.tree.write(b"in/large", Held(data), Metadata(xattrs={b"user.a": b"b"}))
        holes = [(0, MIB), (8 * MIB, MIB)]
        await doors.tree.write(b"in/holes", Held(data), PLAIN, ranges=holes)
        await ran(context, doors, Verb.BACKUP, "/mnt/in", name="then")
        await doors.tree.rename(b"in", b"out of the way")
        doors.door.requests.clear()
        monkeypatch.setattr(door, "STAGE_EXTENTS", 50)
        report = await ran(context, doors, Verb.RESTORE, "snapshot:then", "/mnt/out")
        assert (report.bytes_moved, report.how) == (0, {"clone": 202})
        assert not (MOVES - {"fetch"}).intersection(doors.door.requests)
        assert doors.door.requests["stage"] > 1
        assert doors.door.requests.total() < 120
        for path, kept in contents.items():
            assert await doors.world.content(b"out/" + path) == kept
            assert await doors.tree.xattrs(b"out/" + path) == {b"user.n": path}
        assert await doors.world.content(b"out/large") == data
        assert await doors.tree.xattrs(b"out/large") == {b"user.a": b"b"}
        node = await doors.tree.stat(b"out/holes")
        assert await doors.tree.data_ranges(b"out/holes", node) == holes
        assert not len(doors.stages)
        await doors.world.check()
