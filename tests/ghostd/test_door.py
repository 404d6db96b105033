"""The door: a worker's store and tree are the daemon's, over real sockets and threads."""

from __future__ import annotations

import itertools
import os
import random
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from blockstore.disk import OsDisk
from blockstore.ids import Buffer
from ghostd.door_server import DoorServer
from ghostd.door_stages import Stages
from ghostd.door_tree import DoorTree as Namespace
from ghostd.in_loop import InLoop
from ghostd.inodes import ROOT_INO
from ghostd.invalidator import Invalidator
from ghostd.keeper import CollectionRefused, Keeper
from syncer import door_upload
from syncer.backup import backup
from syncer.catalogue import Snapshot
from syncer.door import Door, DoorTree
from syncer.door_files import SmallFile
from syncer.door_protocol import DoorClosed, Head, Message
from syncer.door_store import DoorStore
from syncer.options import Options
from syncer.remote_tree import RemoteTree
from syncer.remotes.errors import Busy, Changed, Denied, Exists, Missing, NotEmpty
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.snapshot_tree import SnapshotTree
from syncer.tree import Metadata, Node, NodeKind
from tests.projections.world import ProjectedWorld

MIB = 1 << 20
PLAIN = Metadata()


class Snapshots:
    """The records of a state folder, as the daemon's loop has them."""

    def __init__(self, keeper: Keeper) -> None:
        self._records = keeper.records

    async def all(self) -> list[Snapshot]:
        return self._records.list().snapshots

    async def record(self, snapshot: Snapshot) -> None:
        self._records.add(snapshot)


class CountingDoor(Door):
    """Counts requests, and the bytes of chunks that go through it."""

    put_bytes = 0

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self.requests: Counter[str] = Counter()
        super().__init__(connections)

    def call(self, head: Head, body: Sequence[Buffer] = ()) -> Message:
        self.requests[head["op"]] += 1
        if head["op"] == "put":
            self.put_bytes += sum(map(len, body))
        return super().call(head, body)


class Told(Invalidator):
    """The names that the kernel is told of; it is told at once."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[tuple[int, bytes]] = set()

    def name(self, directory: int, name: bytes) -> None:
        self.names.add((directory, name))

    def inode(self, ino: int) -> None:
        pass

    async def told(self) -> None:
        await trio.lowlevel.checkpoint()


class Doors:
    """A daemon without a mount, and a worker's end of its door."""

    def __init__(
        self,
        world: ProjectedWorld,
        server: DoorServer,
        door: CountingDoor,
        stages: Stages,
        told: set[tuple[int, bytes]],
    ) -> None:
        self.world = world
        self.told = told
        self.stages = stages
        self.server = server
        self.door = door
        self.store = DoorStore(door)
        self.tree = DoorTree(door, b"")

    async def nodes(self, path: bytes = b"") -> dict[bytes, Node]:
        found: dict[bytes, Node] = {}

        async def sink(page):
            for node in page:
                assert node.name not in found
                found[node.name] = node

        await self.tree.list(path, sink)
        return found


@asynccontextmanager
async def opened(folder: Path, remotes=None, door=CountingDoor) -> AsyncIterator[Doors]:
    clock = itertools.count(1_700_000_000 * 10**9, 10**6)
    world = ProjectedWorld(OsDisk(), remotes or {}, folder=folder, clock=lambda: next(clock))
    try:
        async with world.running():
            invalidator = Told()
            names = Namespace(world.fs, world.projected.listings, invalidator)
            server = DoorServer(world.store, names, Snapshots(world.keeper), InLoop(), Path("/mnt"))
            world.keeper.holds.append(lambda: server.holds)
            ends = server.open()
            client = await trio.to_thread.run_sync(door, ends)
            yield Doors(world, server, client, names.stages, invalidator.names)
            client.close()
            with trio.fail_after(10):
                while server.visits:  # noqa: ASYNC110  its threads are ending
                    await trio.sleep(0.001)
            await world.writeback.commit()
    finally:
        world.close()


async def test_a_file_is_there_with_all_its_bytes_and_attributes(tmp_path):
    data = random.Random(1).randbytes(5 * MIB + 17)
    metadata = Metadata(
        mode=0o640, uid=12, gid=34, mtime_ns=1_234_567_890_123_456_789, xattrs={b"user.a": b"\0b"}
    )
    async with opened(tmp_path) as doors:
        node = await doors.tree.write(b"new/dir/f", Held(data), metadata)
        assert (node.size, node.mode, node.uid, node.gid) == (len(data), 0o640, 12, 34)
        assert node.mtime_ns == metadata.mtime_ns
        assert await doors.world.content(b"new/dir/f") == data
        assert await doors.tree.xattrs(b"new/dir/f") == metadata.xattrs
        seen = await doors.tree.stat(b"new/dir/f")
        assert seen._replace(atime_ns=0) == node._replace(atime_ns=0)
        assert await doors.tree.read(b"new/dir/f", seen, MIB - 3, 7) == data[MIB - 3 : MIB + 4]
        await doors.tree.sync()
        await doors.world.check()
    async with opened(tmp_path) as doors:
        assert await doors.world.content(b"new/dir/f") == data


async def test_chunks_that_are_there_are_not_sent(tmp_path):
    data = random.Random(2).randbytes(3 * MIB)
    changed = data[:MIB] + b"!" + data[MIB:]
    async with opened(tmp_path) as doors:

        async def sent(name: bytes, content: bytes) -> int:
            before = doors.door.put_bytes
            await doors.tree.write(name, Held(content), PLAIN)
            # What a commit chunks anew for itself does not count, and hides nothing.
            await doors.world.writeback.commit()
            return doors.door.put_bytes - before

        assert await sent(b"one", data) == len(data)
        assert await sent(b"two", data) == 0
        assert 0 < await sent(b"three", changed) <= 512 << 10
        assert doors.world.store.stats().new_raw_bytes <= len(data) + (512 << 10)
        assert await doors.world.content(b"three") == changed
        await doors.world.check()


async def test_holes_stay_holes(tmp_path):
    data = b"a" * 5000 + bytes(9 * MIB) + b"z" * 5000
    ranges = [(0, 5000), (len(data) - 5000, 5000)]
    async with opened(tmp_path) as doors:
        node = await doors.tree.write(b"f", Held(data), PLAIN, ranges=ranges)
        assert node.allocated == 10_000
        assert await doors.tree.data_ranges(b"f", node) == ranges
        assert await doors.world.content(b"f") == data
        await doors.world.check()


async def test_many_small_files_at_once(tmp_path):
    files = [
        SmallFile(b"d/%d" % n, b"content %d" % n * n, Metadata(mode=0o600)) for n in range(300)
    ]
    async with opened(tmp_path) as doors:
        await doors.tree.mkdir(b"d/7", PLAIN)  # in the way of one of them
        outcomes = await doors.tree.write_many(files)
        assert [n for n, each in enumerate(outcomes) if isinstance(each, Exception)] == [7]
        assert isinstance(outcomes[7], Exists)
        nodes = await doors.nodes(b"d")
        assert len(nodes) == 300
        assert nodes[b"0"].size == 0
        for n in (1, 150, 299):
            assert await doors.world.content(b"d/%d" % n) == files[n].data
        await doors.world.check()


async def test_the_kernel_is_told_of_names_in_directories_that_it_holds(tmp_path):
    # It may have found that they are not there; the root it holds without having looked it up.
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(b"1"), PLAIN)
        await doors.tree.mkdir(b"seen", PLAIN)
        await doors.tree.mkdir(b"unseen", PLAIN)
        held = await doors.world.look(b"seen")
        doors.world.tree.lookups.add(held.ino)
        await doors.tree.write(b"seen/f", Held(b"2"), PLAIN)
        await doors.tree.write(b"unseen/f", Held(b"3"), PLAIN)
        told = {(ROOT_INO, b"f"), (ROOT_INO, b"seen"), (ROOT_INO, b"unseen"), (held.ino, b"f")}
        assert doors.told == told


async def test_replacing(tmp_path):
    async with opened(tmp_path) as doors:
        first = await doors.tree.write(b"f", Held(b"first"), PLAIN)
        with pytest.raises(Exists):
            await doors.tree.write(b"f", Held(b"second"), PLAIN, replace=False)
        second = await doors.tree.write(b"f", Held(b"second"), PLAIN, old=first)
        with pytest.raises(Changed):
            await doors.tree.write(b"f", Held(b"third"), PLAIN, old=first)
        with pytest.raises(Changed):
            await doors.tree.read(b"f", first, 0, 5)
        assert await doors.tree.read(b"f", second, 0, 6) == b"second"
        await doors.tree.delete(b"f", second)
        with pytest.raises(Changed):
            await doors.tree.write(b"f", Held(b"fourth"), PLAIN, old=second)
        with pytest.raises(Missing):
            await doors.tree.stat(b"f")


async def test_an_open_file_keeps_what_it_had(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(b"old"), PLAIN)
        fs = doors.world.fs
        inode = await doors.world.look(b"f")
        fs.open(inode.ino)
        await doors.tree.write(b"f", Held(b"newer"), PLAIN)
        assert await fs.read(inode.ino, 0, 10) == b"old"
        fs.release(inode.ino)
        assert await doors.world.content(b"f") == b"newer"


async def test_everything_that_is_no_file(tmp_path):
    async with opened(tmp_path) as doors:
        tree = doors.tree
        await tree.write(b"f", Held(b"data"), PLAIN)
        await tree.hard_link(b"d/g", b"f")
        await tree.hard_link(b"d/g", b"f")
        await tree.symlink(b"s", b"old", PLAIN)
        await tree.symlink(b"s", b"\xff/target", Metadata(mtime_ns=5))
        fifo = Node(b"p", NodeKind.FIFO)
        await tree.special(b"p", fifo, Metadata(mode=0o600))
        device = Node(b"c", NodeKind.CHARACTER, rdev=os.makedev(1, 3))
        await tree.special(b"c", device, PLAIN)
        await tree.mkdir(b"d", Metadata(mode=0o700))  # is there: stays as it is
        await tree.set_metadata(b"d", Metadata(mode=0o750, mtime_ns=7))
        nodes = await doors.nodes()
        assert nodes[b"s"].target == b"\xff/target"
        assert nodes[b"s"].mtime_ns == 5
        assert (nodes[b"p"].kind, nodes[b"p"].mode) == (NodeKind.FIFO, 0o600)
        assert (nodes[b"c"].kind, nodes[b"c"].rdev) == (NodeKind.CHARACTER, os.makedev(1, 3))
        assert (nodes[b"d"].mode, nodes[b"d"].mtime_ns) == (0o750, 7)
        assert nodes[b"f"].link == (await doors.nodes(b"d"))[b"g"].link is not None
        with pytest.raises(NotEmpty):
            await tree.delete(b"d", nodes[b"d"])
        with pytest.raises(Exists):
            await tree.rename(b"s", b"p")
        await tree.rename(b"d", b"e")
        await tree.delete(b"e/g", nodes[b"f"])
        await tree.delete(b"e", nodes[b"d"])
        assert set(await doors.nodes()) == {b"f", b"s", b"p", b"c"}
        assert (await tree.stat(b"f")).link is None
        await doors.world.check()


async def test_a_collection_between_storing_and_naming_loses_nothing(tmp_path):
    data = random.Random(3).randbytes(MIB)
    async with opened(tmp_path) as doors:
        lengths = doors.store.cut(data)
        parts = [data[sum(lengths[:i]) : sum(lengths[: i + 1])] for i in range(len(lengths))]
        ids = await trio.to_thread.run_sync(doors.store.put, parts)
        await doors.world.keeper.collect(0.0, dry_run=False)
        assert not doors.world.store.contains(ids)  # nothing has named them
        extents = [(0, lengths[0], 0, bytes(ids[0]))]
        item = {"path": "f", "size": lengths[0], "metadata": _wire(PLAIN), "old": None}
        outcomes = await doors.tree._write([({**item, "replace": True}, extents)])
        assert isinstance(outcomes[0], Busy)
        assert await doors.nodes() == {}
        await doors.tree.write(b"f", Held(data), PLAIN)
        await doors.world.keeper.collect(0.0, dry_run=False)
        assert await doors.world.content(b"f") == data
        await doors.world.check()


def _wire(metadata: Metadata) -> dict:
    from syncer.door_protocol import metadata_to_wire

    return metadata_to_wire(metadata)


async def test_a_backup_through_the_door(tmp_path):
    source = MemoryRemote(MemoryServer())
    data = random.Random(4).randbytes(MIB)
    await source.write(b"d/f", Held(data))
    async with opened(tmp_path) as doors:
        async with doors.door.holding():
            made = await backup(RemoteTree(source), doors.door.store, None, Options())
            await trio.to_thread.run_sync(doors.door.store.sync)
            with pytest.raises(CollectionRefused):
                await doors.world.keeper.collect(0.0, dry_run=False)
            snapshot = Snapshot("s", 1, made.root, made.sums)
            await doors.door.catalogue.add(snapshot)
        with pytest.raises(Exists):
            await doors.door.catalogue.add(snapshot)
        await doors.world.keeper.collect(0.0, dry_run=False)
        assert (await doors.door.catalogue.list()).snapshots == [snapshot]
        tree = SnapshotTree(doors.door.store, made.root, label="s")
        node = await tree.stat(b"d/f")
        assert await tree.read(b"d/f", node, 0, MIB) == data


async def test_projections_take_changes_where_they_may(tmp_path):
    remote = MemoryRemote(MemoryServer())
    await remote.write(b"d/f", Held(b"remote"))
    async with opened(tmp_path, {"m://": remote}) as doors:
        await doors.world.project("m://", b"ro", mode="ro")
        await doors.world.project("m://", b"cow", mode="cow")
        node = await doors.tree.stat(b"cow/d/f")
        assert await doors.tree.read(b"cow/d/f", node, 0, 6) == b"remote"
        with pytest.raises(Denied, match=r"ro/d/f.*read-only"):
            await doors.tree.write(b"ro/d/f", Held(b"new"), PLAIN)
        await doors.tree.write(b"cow/d/f", Held(b"new"), PLAIN, old=node)
        await doors.tree.write(b"cow/d/g", Held(b"more"), PLAIN)
        assert set(await doors.nodes(b"cow/d")) == {b"f", b"g"}
        assert await doors.world.content(b"cow/d/f") == b"new"
        assert await doors.world.content(b"ro/d/f") == b"remote"
        await doors.world.check()


async def test_what_a_worker_held_is_let_go_when_it_ends(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.door.ask({"op": "hold"})
        await doors.door.ask({"op": "hold"})
        await doors.door.ask({"op": "release"})
        assert doors.server.holds == 1
        doors.server.close()
        with pytest.raises(DoorClosed):
            await doors.tree.stat(b"f")
        with trio.fail_after(10):
            while doors.server.holds:  # noqa: ASYNC110  its threads are ending
                await trio.sleep(0.001)


async def test_paths_that_lead_nowhere(tmp_path):
    async with opened(tmp_path) as doors:
        for path in (b"../x", b"a/./b", b"a\0b"):
            with pytest.raises(Exception, match="no path"):
                await doors.tree.write(path, Held(b""), PLAIN)
        assert stat.S_ISDIR((await doors.world.look(b"")).mode)
        assert await doors.nodes() == {}


async def test_a_large_file_goes_in_stages_and_appears_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(door_upload, "BATCH_BYTES", MIB)
    data = random.Random(5).randbytes(6 * MIB + 77)
    metadata = Metadata(mode=0o600, uid=7, gid=8, mtime_ns=9, xattrs={b"user.a": b"b"})
    async with opened(tmp_path) as doors:
        old = await doors.tree.write(b"d/f", Held(b"old"), PLAIN)
        doors.tree.stage_extents = 10
        seen = []

        class Watched(Held):
            async def read(self, offset: int, length: int) -> bytes:
                seen.append((len(doors.stages), (await doors.nodes(b"d"))[b"f"].size))
                return await super().read(offset, length)

        holes = [(at, 300_000) for at in range(0, len(data) - 300_000, 600_000)]
        expected = bytearray(len(data))
        for at, length in holes:
            expected[at : at + length] = data[at : at + length]
        node = await doors.tree.write(b"d/f", Watched(data), metadata, ranges=holes, old=old)
        assert seen[-1] == (1, 3)  # a stage was under way, and nobody saw it
        assert not len(doors.stages)
        assert (node.size, node.allocated) == (len(data), sum(length for _, length in holes))
        assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o600, 7, 8, 9)
        assert await doors.tree.xattrs(b"d/f") == metadata.xattrs
        assert await doors.world.content(b"d/f") == expected
        assert await doors.tree.data_ranges(b"d/f", node) == holes
        await doors.world.check()
    async with opened(tmp_path) as doors:
        assert await doors.world.content(b"d/f") == expected
        await doors.world.check()


async def test_what_was_staged_goes_with_its_worker_and_with_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(door_upload, "BATCH_BYTES", MIB)
    data = random.Random(6).randbytes(3 * MIB)

    class Half(Held):
        async def read(self, offset: int, length: int) -> bytes:
            if offset:
                raise Changed("it changed")
            return await super().read(offset, length)

    async with opened(tmp_path) as doors:
        doors.tree.stage_extents = 3
        with pytest.raises(Changed):
            await doors.tree.write(b"f", Half(data), PLAIN, ranges=[(0, MIB), (MIB, 2 * MIB)])
        assert not len(doors.stages)
        head = {"op": "stage", "path": "f", "stage": 0, "files": [{"extents": 0}]}
        await doors.door.ask(head)
        await doors.world.writeback.commit()
        assert len(doors.stages) == 1
        with pytest.raises(Busy):
            await doors.door.ask({**head, "stage": 12_345})
        doors.door.close()
        with trio.fail_after(10):
            while len(doors.stages):  # noqa: ASYNC110  its threads are ending
                await trio.sleep(0.001)
        await doors.world.writeback.commit()
        await doors.world.check()
        assert not doors.world.namespace.orphans()
