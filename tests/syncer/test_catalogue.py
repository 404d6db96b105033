"""Snapshots: records that check themselves, names, folders and remotes that hold them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.disk import OsDisk
from blockstore.errors import FormatTooNew
from blockstore.ids import ChunkId
from syncer.catalogue import (
    BadName,
    Catalogue,
    FolderCatalogue,
    RemoteCatalogue,
    Snapshot,
    SnapshotFolder,
    check_name,
    choose_name,
    decode_snapshot,
    select,
)
from syncer.recipes import TreeDamaged
from syncer.remotes.errors import Exists, Missing
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.tree_objects import Sums
from tests.simdisk import SimDisk, SimulatedCrash
from tests.syncer.stored import ids

numbers = st.integers(0, 1 << 63)
texts = st.text(st.characters(), max_size=20)


def ok(name: str) -> bool:
    with contextlib.suppress(BadName):
        return check_name(name) == name
    return False


snapshots = st.builds(
    Snapshot,
    texts.filter(ok),
    numbers,
    ids,
    st.builds(Sums, numbers, numbers, numbers),
    host=texts,
    source=texts,
    tags=st.lists(texts, max_size=3).map(tuple),
    expires_ns=st.none() | numbers,
    tokens=st.none() | ids,
    failed=numbers,
)


def snap(name: str, time_ns: int = 1, *, tags: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(name, time_ns, ChunkId(name.encode().ljust(32)), Sums(1, 2, 3), tags=tags)


@given(snapshots)
def test_a_record_is_read_as_it_was_written(snapshot: Snapshot) -> None:
    found = decode_snapshot(snapshot.encode())
    assert found == snapshot
    assert found.id == snapshot.id


@given(snapshots, st.data())
def test_a_damaged_record_is_told(snapshot: Snapshot, data: st.DataObject) -> None:
    whole = snapshot.encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for some in (bytes(damaged), whole[:at], whole + b"\n"):
        with pytest.raises(TreeDamaged):
            decode_snapshot(some)


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    from blake3 import blake3

    for some in (data, data + b"\n" + blake3(data).hexdigest().encode() + b"\n"):
        with pytest.raises(TreeDamaged):
            decode_snapshot(some)


def test_a_newer_record_is_refused() -> None:
    from blake3 import blake3

    content = snap("a").encode().split(b"\n")[0].replace(b'"format":1', b'"format":2')
    with pytest.raises(FormatTooNew):
        decode_snapshot(content + b"\n" + blake3(content).hexdigest().encode() + b"\n")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "latest", "a/b", "a:b", "-x", ".x", "x.", "x ", "a\nb", "n" * 201, "\ud800"],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(BadName):
        check_name(name)


@given(texts, st.integers(0, 4 * 10**18), st.integers(0, 5))
def test_chosen_names_can_be_had(source: str, time_ns: int, count: int) -> None:
    taken: set[str] = set()
    for _ in range(count):
        name = choose_name(source, time_ns, taken)
        assert name not in taken
        taken.add(check_name(name))


def test_a_chosen_name_says_what_and_when() -> None:
    when = 1_700_000_000 * 10**9
    assert choose_name("/home/me", when, ()) == "me-20231114-221320"
    assert choose_name("s3://bucket/photos/", when, ("photos-20231114-221320",)) == (
        "photos-20231114-221320-2"
    )
    assert choose_name("/", when, ()) == "snapshot-20231114-221320"


def test_selecting() -> None:
    known = [snap("old", 1, tags=("t",)), snap("new", 3), snap("mid", 2, tags=("t",))]
    assert select(known, "latest").name == "new"
    assert select(known, "latest:t").name == "mid"
    assert select(known, "old").name == "old"
    assert select(known, known[0].id[:12].upper()).name == "old"
    for nothing in ("none", "latest:x", known[0].id[:3], "zzzz"):
        with pytest.raises(Missing):
            select(known, nothing)
    with pytest.raises(Missing):
        select([], "latest")
    twins = [snap("a"), snap("a")]
    with pytest.raises(Missing, match="could be"):
        select([*twins], twins[0].id[:8])


@pytest.fixture(params=["folder", "remote"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Catalogue:
    if request.param == "folder":
        return FolderCatalogue(tmp_path / "deep" / "snapshots", OsDisk())
    return RemoteCatalogue(MemoryRemote(MemoryServer()))


async def test_a_catalogue_holds_what_was_added(catalogue: Catalogue) -> None:
    assert (await catalogue.list()).snapshots == []
    for name, time_ns in (("b", 2), ("a", 3), ("ö", 1)):
        await catalogue.add(snap(name, time_ns))
    assert [each.name for each in (await catalogue.list()).snapshots] == ["ö", "b", "a"]
    with pytest.raises(Exists):
        await catalogue.add(snap("a", 9))
    await catalogue.remove(snap("a", 3))
    with pytest.raises(Missing):
        await catalogue.remove(snap("a", 3))
    found = await catalogue.list()
    assert found.snapshots == [snap("ö", 1), snap("b", 2)]
    assert found.damaged == []
    with pytest.raises(BadName):
        await catalogue.add(snap("a/b"))


async def test_damaged_records_are_named(tmp_path: Path) -> None:
    catalogue = FolderCatalogue(tmp_path, OsDisk())
    for name in "abcd":
        await catalogue.add(snap(name))
    (tmp_path / "a.snapshot").write_bytes(b"")
    (tmp_path / "b.snapshot").rename(tmp_path / "z.snapshot")
    (tmp_path / "c.snapshot").write_bytes((tmp_path / "c.snapshot").read_bytes()[:-1])
    (tmp_path / "notes.txt").write_bytes(b"not ours")
    found = await catalogue.list()
    assert [each.name for each in found.snapshots] == ["d"]
    assert sorted(found.damaged) == ["a.snapshot", "c.snapshot", "z.snapshot"]


def test_power_cuts_leave_whole_records() -> None:
    """At every change: what add() returned for is there, what is there is whole."""
    folder = Path("/state/snapshots")
    operation = 0
    while True:
        operation += 1
        disk = SimDisk(operation)
        disk.crash_at(operation)
        added: list[str] = []
        removed: list[str] = []
        records = SnapshotFolder(folder, disk)
        try:
            for name in ("a", "b", "c"):
                records.add(snap(name))
                added.append(name)
            records.remove(snap("b"))
            removed.append("b")
        except SimulatedCrash:
            pass
        after = SnapshotFolder(folder, disk.crash()).list()
        assert after.damaged == []
        there = {each.name for each in after.snapshots}
        removing = {"b"} if len(added) == 3 else set()
        assert there >= set(added) - removing
        assert not there & set(removed)
        if removed:
            break
    assert operation > 10
