"""Projections of one file, and the metadata that remotes keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from syncer.remotes.errors import Unreachable
from syncer.remotes.memory import MemoryRemote
from syncer.remotes.remote import Attributes
from tests.ghostd.world import jumping
from tests.projections.test_projected import DATA, URL, Setting, Source, settled


@jumping
async def test_a_projection_of_one_file_shows_its_new_version_when_nobody_has_it_open() -> None:
    s = Setting()
    await s.put(b"one", DATA)
    whole = MemoryRemote(s.server)
    remote = _OneFile(whole)
    world = s.world()
    world.remotes[URL] = remote  # type: ignore[assignment]
    async with world.running():
        await world.project(URL, ttl_s=5.0)
        files = world.projected.files
        assert await world.content(b"/r") == DATA
        inode = await world.look(b"/r")
        await s.put(b"one", b"another")
        world.fs.open(inode.ino)
        s.clock.now += 10**10
        assert not await files.renew_root(inode), "somebody has it open"
        world.fs.release(inode.ino)
        s.fail = Unreachable("away")
        assert not await files.renew_root(inode)
        assert inode.size == len(DATA)
        s.fail = None
        assert not await files.renew_root(inode), "not asked again at once"
        s.clock.now += 10**10
        assert await files.renew_root(inode)
        assert await world.content(b"/r") == b"another"
        assert not await files.renew_root(inode), "within the TTL"
        await settled(world)
        await world.check()
    world.close()


@jumping
async def test_a_silent_remote_of_one_file_is_waited_for_once() -> None:
    s = Setting()
    await s.put(b"one", DATA)
    world = s.world()
    remote = _OneFile(MemoryRemote(s.server))
    world.remotes[URL] = remote  # type: ignore[assignment]
    async with world.running():
        projection = await world.project(URL, ttl_s=5.0)
        inode = await world.look(b"/r")
        remote.silent = True
        s.clock.now += 10**10
        began = trio.current_time()
        for _ in range(3):
            assert not await world.projected.files.renew_root(inode)
        assert trio.current_time() - began == 2.0
        assert projection.stale
        assert "has not answered" in projection.error
    world.close()


class _OneFile:
    """The file `one` of a tree, as a root of its own."""

    def __init__(self, remote: MemoryRemote) -> None:
        self._remote = remote
        self.url = URL
        self.capabilities = remote.capabilities
        self.silent = False

    async def stat(self, key: bytes):
        assert not key
        if self.silent:
            await trio.sleep_forever()
        return replace(await self._remote.stat(b"one"), key=b"")

    async def read(self, key: bytes, *args):
        assert not key
        return await self._remote.read(b"one", *args)

    async def close(self) -> None:
        await self._remote.close()


@jumping
async def test_metadata_is_asked_for_once_and_listed_on_request_only() -> None:
    s = Setting()
    await s.user.write(b"f", Source(b"1"), Attributes(metadata={"colour": b"red"}))
    world = s.world()
    async with world.running():
        await world.project(URL)
        await world.project("memory:///b", b"/q", options={"metadata": "list"})
        files = world.projected.files
        await world.names(b"/r")
        inode = await world.look(b"/r/f")
        s.requests.clear()
        assert await files.listed_metadata(inode) == {}
        assert not s.requests
        assert await files.metadata(inode) == {b"user.colour": b"red"}
        assert await files.metadata(inode) == {b"user.colour": b"red"}
        assert s.requests["stat"] == 1
        assert await files.listed_metadata(inode) == {b"user.colour": b"red"}
        other = await world.look(b"/q/f")
        assert await files.listed_metadata(other) == {b"user.colour": b"red"}
        s.fail = Unreachable("away")
        files._metadata.clear()
        with pytest.raises(Unreachable):
            await files.metadata(inode)
        assert await files.listed_metadata(other) == {}
    world.close()
