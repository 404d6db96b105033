"""Snapshots as a remote: URLs, entries, and the extents that reads are made of."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostd import snapshot_remote
from ghostd.filesystem import AttributeChanges
from ghostd.snapshot_remote import SnapshotRemote, SnapshotUrl
from syncer.remotes.errors import BadUrl, Changed, Missing, Unsupported
from syncer.remotes.remote import ROOT, Attributes, Entry, Kind, Page, Version
from tests.ghostd.snapshots_world import ME, snapshots_of
from tests.ghostd.world import World, jumping
from tests.simdisk import SimDisk

FILE, FOLDER = 0o100644, 0o040755


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1),
    st.lists(st.binary(min_size=1).filter(lambda part: part not in {b".", b".."})),
)
def test_urls_read_as_they_are_written(name: str, parts: list[bytes]) -> None:
    path = b"/".join(part.replace(b"/", b"_").replace(b"\0", b"_") for part in parts)
    url = SnapshotUrl(name, path)
    assert SnapshotUrl.parse(str(url)) == url


@pytest.mark.parametrize("text", ["snapshot:a/../b", "snapshot:/x", "other:a", "snapshot:a/%00"])
def test_urls_that_make_no_sense(text: str) -> None:
    with pytest.raises(BadUrl):
        SnapshotUrl.parse(text)


async def listed(remote: SnapshotRemote, key: bytes) -> dict[bytes, Entry]:
    found: dict[bytes, Entry] = {}

    async def sink(page: Page) -> None:
        assert len(page) <= 500
        assert not found.keys() & {entry.key for entry in page}
        found.update((entry.key, entry) for entry in page)

    await remote.list(key, sink)
    return found


@jumping
async def test_it_is_a_remote_that_only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_remote, "_WINDOW_BYTES", 64 << 10)
    monkeypatch.setattr(snapshot_remote, "_WINDOWS", 5)
    rng = random.Random(3)
    world = World(SimDisk(0))
    snapshots = snapshots_of(world)
    async with world.running():
        folder = world.fs.create(1, b"d", FOLDER, ME).ino
        many = world.fs.create(folder, b"many", FOLDER, ME).ino
        for number in range(1_300):
            world.fs.create(many, b"%04d" % number, FILE, ME)
        file = world.fs.create(folder, b"f", FILE, ME).ino
        data = bytearray(1_000_000)
        for _ in range(60):
            at, part = rng.randrange(900_000), rng.randbytes(rng.randrange(1, 20_000))
            data[at : at + len(part)] = part
            await world.fs.write(file, at, part)
        world.fs.setattr(file, AttributeChanges(size=1_000_000))
        one = (await snapshots.take(b"/", name="one")).snapshot
        every = SnapshotRemote(SnapshotUrl("", b""), snapshots, world.store, world.threads)
        remote = SnapshotRemote(SnapshotUrl("latest", b"d"), snapshots, world.store, world.threads)
        assert list(await listed(every, ROOT)) == [b"one/"]
        assert list(await listed(every, b"one/d/")) == [b"one/d/f", b"one/d/many/"]
        assert len(await listed(remote, b"many/")) == 1_300
        assert remote.url == "snapshot:one/d"
        entry = await remote.stat(b"f")
        assert (await every.stat(b"one/d/f")).version == entry.version
        assert (await remote.stat(ROOT)).kind is Kind.DIRECTORY
        assert (await remote.read_whole(b"f", 1 << 20))[1] == data
        for _ in range(200):
            start = rng.randrange(1_000_000)
            end = rng.randrange(start + 1, min(start + 300_000, 1_000_000) + 1)
            assert await remote.read(b"f", entry.version, start, end - start) == data[start:end]
            known = remote.known_extents(entry.version, start, end)
            extents = await remote.extents(b"f", entry.version, start, end)
            assert set(known) <= set(extents)
            shown, at = bytearray(end - start), start
            for low, high, name, offset in extents:
                assert at <= low < high <= end
                chunk = world.store.fetch([name])[name]
                shown[low - start : high - start] = chunk[offset : offset + high - low]
                at = high
            assert shown == data[start:end]
        remote.forget(entry.version)
        assert remote.known_extents(entry.version, 0, 1_000_000) == []
        other = Version(entry.size, "00" * 32)
        with pytest.raises(Changed):
            await remote.extents(b"f", other, 0, 10)
        for key in (b"nothing", b"f/", b"f/below"):
            with pytest.raises(Missing):
                await remote.stat(key)
        with pytest.raises(Unsupported):
            await remote.set_attributes(b"f", Attributes(mode=0o600))
        with pytest.raises(Unsupported):
            await remote.delete(b"f")
        await snapshots.remove([one])
        for call in (remote.stat(b"f"), remote.extents(b"f", entry.version, 0, 10)):
            with pytest.raises(Missing):
                await call
        assert await listed(every, ROOT) == {}
    world.close()
