"""What every kind of remote must do when it is written, or say when it cannot be."""

from __future__ import annotations

import os

import pytest
import trio

from syncer.remotes.errors import (
    Changed,
    Exists,
    Missing,
    NotEmpty,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.held import Held
from syncer.remotes.remote import ROOT, Attributes, Capabilities, Entry, Remote, Version
from tests.remotes.kinds import Kind, Place
from tests.remotes.test_conformance import LARGE, MIB, NAMES, entries, read_all

ATTRIBUTES = Attributes(
    mode=0o640,
    uid=os.getuid(),
    gid=os.getgid(),
    mtime_ns=1_234_567_890_123_456_789,
    metadata={"colour": b"dark blue", "number": b"7"},
)


@pytest.fixture
def writable(remote: Remote) -> Remote:
    """The remote, if it can be written."""
    if not remote.capabilities.write:
        pytest.skip("cannot be written")
    return remote


def needs(remote: Remote, capability: str) -> None:
    """Skip where the remote lacks it; that it says so is tested elsewhere."""
    if not getattr(remote.capabilities, capability):
        pytest.skip(f"has no {capability}")


def check_kept(entry: Entry, given: Attributes, kept: Capabilities) -> None:
    """`entry` has what the capabilities say of what was given."""
    if kept.mode:
        assert entry.mode == given.mode
    if kept.owner:
        assert (entry.uid, entry.gid) == (given.uid, given.gid)
    if kept.mtime_resolution_ns:
        assert given.mtime_ns is not None
        coarse = given.mtime_ns // kept.mtime_resolution_ns * kept.mtime_resolution_ns
        assert entry.mtime_ns == coarse
    if kept.metadata:
        assert given.metadata is not None
        assert {name: entry.metadata.get(name) for name in given.metadata} == given.metadata


# What it cannot do


async def test_what_it_lacks_is_unsupported(place: Place, remote: Remote):
    await place.fill({b"f": b"data"})
    has = remote.capabilities
    lacks = []
    if not has.write:
        lacks += [
            lambda: remote.write(b"new", Held(b"")),
            lambda: remote.delete(b"f"),
        ]
    if not (has.write and has.rename):
        lacks.append(lambda: remote.rename(b"f", b"new"))
    if not (has.write and has.mkdir):
        lacks.append(lambda: remote.mkdir(b"new/"))
    if not (has.write and has.symlinks):
        lacks.append(lambda: remote.symlink(b"new", b"f"))
    if not (has.write and has.mode):
        lacks.append(lambda: remote.set_attributes(b"f", Attributes(mode=0o600)))
    if not (has.write and has.owner):
        lacks.append(lambda: remote.set_attributes(b"f", Attributes(uid=0)))
    if not (has.write and has.mtime_resolution_ns):
        lacks.append(lambda: remote.set_attributes(b"f", Attributes(mtime_ns=10**18)))
    if not (has.write and has.metadata):
        lacks.append(lambda: remote.set_attributes(b"f", Attributes(metadata={"a": b"b"})))
    for act in lacks:
        with pytest.raises(Unsupported):
            await act()
    assert list(await entries(remote)) == [b"f"]
    assert await read_all(remote, b"f") == b"data"


# Writing


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 1, len(LARGE)])
async def test_writing(size: int, writable: Remote):
    written = await writable.write(b"f", Held(LARGE[:size]))
    assert (written.key, written.kind.value, written.size) == (b"f", "file", size)
    assert await read_all(writable, b"f") == LARGE[:size]
    assert written.version == (await writable.stat(b"f")).version
    assert await writable.read(b"f", written.version, 0, size) == LARGE[:size]
    assert list(await entries(writable)) == [b"f"]


async def test_parents_are_made(writable: Remote):
    await writable.write(b"a/b/c/f", Held(b"deep"))
    await writable.write(b"a/b/g", Held(b"beside"))
    assert await read_all(writable, b"a/b/c/f") == b"deep"
    assert set(await entries(writable, b"a/b/")) == {b"a/b/c/", b"a/b/g"}


async def test_writing_odd_names(kind: Kind, writable: Remote):
    names = [name for name in NAMES if kind.holds(name)]
    for name in names:
        await writable.write(b"d/" + name, Held(name))
    assert sorted(await entries(writable, b"d/")) == sorted(b"d/" + name for name in names)
    for name in names:
        assert await read_all(writable, b"d/" + name) == name
    for name in names:
        await writable.delete(b"d/" + name)
        with pytest.raises(Missing):
            await writable.stat(b"d/" + name)


async def test_replacing(writable: Remote):
    old = await writable.write(b"f", Held(b"a long first one"))
    new = await writable.write(b"f", Held(b"second"))
    assert await read_all(writable, b"f") == b"second"
    assert new.version != old.version
    with pytest.raises(Changed):
        await writable.read(b"f", old.version, 0, 5)


async def test_writing_without_replacing(writable: Remote):
    await writable.write(b"f", Held(b"first"), replace=False)
    with pytest.raises(Exists):
        await writable.write(b"f", Held(b"second"), replace=False)
    assert await read_all(writable, b"f") == b"first"
    assert list(await entries(writable)) == [b"f"]


async def test_writing_over_a_version(writable: Remote):
    first = await writable.write(b"f", Held(b"first"))
    second = await writable.write(b"f", Held(b"second one"), if_version=first.version)
    for wrong in (first.version, Version(10, "no-such-etag", 10**18)):
        with pytest.raises(Changed):
            await writable.write(b"f", Held(b"third"), if_version=wrong)
    assert await read_all(writable, b"f") == b"second one"
    await writable.delete(b"f")
    with pytest.raises(Changed):
        await writable.write(b"f", Held(b"third"), if_version=second.version)
    assert await entries(writable) == {}


async def test_one_of_many_creators_wins(writable: Remote):
    outcomes = []

    async def create(n: int) -> None:
        try:
            await writable.write(b"f", Held(b"%d" % n), replace=False)
            outcomes.append(b"%d" % n)
        except Exists:
            outcomes.append(None)

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(create, n)
    winners = [each for each in outcomes if each is not None]
    assert len(outcomes) == 8
    assert winners == [await read_all(writable, b"f")]


async def test_a_directory_is_in_the_way(writable: Remote):
    needs(writable, "mkdir")
    await writable.mkdir(b"d/")
    await writable.write(b"f", Held(b"data"))
    for key in (b"d", b"f/below"):
        with pytest.raises(RemoteError):
            await writable.write(key, Held(b"new"))
    assert set(await entries(writable)) == {b"d/", b"f"}
    assert await read_all(writable, b"f") == b"data"


async def test_a_source_that_fails_changes_nothing(writable: Remote):
    class Failing(Held):
        async def read(self, offset: int, length: int) -> bytes:
            if offset + length > 10 * MIB:
                raise Unreachable("the source went away")
            return await super().read(offset, length)

    await writable.write(b"d/f", Held(b"old"))
    for key in (b"d/f", b"d/new"):
        with pytest.raises(Unreachable, match="the source went away"):
            await writable.write(key, Failing(LARGE))
    assert list(await entries(writable, b"d/")) == [b"d/f"]
    assert await read_all(writable, b"d/f") == b"old"


async def test_a_write_that_is_given_up_changes_nothing(writable: Remote, bridge):
    scope = trio.CancelScope()

    class GivenUp(Held):
        async def read(self, offset: int, length: int) -> bytes:
            if offset + length > 10 * MIB:
                scope.cancel()
            return await super().read(offset, length)

    await writable.write(b"d/f", Held(b"old"))
    for key in (b"d/f", b"d/new"):
        scope = trio.CancelScope()
        with scope:
            await writable.write(key, GivenUp(LARGE))
        assert scope.cancelled_caught
        assert bridge.running == 0
    assert list(await entries(writable, b"d/")) == [b"d/f"]
    assert await read_all(writable, b"d/f") == b"old"


async def test_writes_keep_attributes(writable: Remote):
    has = writable.capabilities
    written = await writable.write(b"f", Held(b"data"), ATTRIBUTES)
    entry = await writable.stat(b"f")
    check_kept(entry, ATTRIBUTES, has)
    assert written.version == entry.version
    assert await read_all(writable, b"f") == b"data"
    if has.mode:
        assert (await entries(writable))[b"f"].mode == ATTRIBUTES.mode
    # Not those of the file that was there.
    await writable.write(b"f", Held(b"data"))
    if has.metadata:
        assert "colour" not in (await writable.stat(b"f")).metadata


# Attributes


async def test_set_attributes(writable: Remote):
    has = writable.capabilities
    given = {
        "mode": {"mode": 0o604},
        "owner": {"uid": os.getuid(), "gid": os.getgid()},
        "mtime_resolution_ns": {"mtime_ns": 1_111_111_111_987_654_321},
        "metadata": {"metadata": {"colour": b"red"}},
    }
    kept = {
        name: value
        for each, values in given.items()
        if getattr(has, each)
        for name, value in values.items()
    }
    if not kept:
        pytest.skip("keeps no attributes")
    await writable.write(b"f", Held(b"data"), ATTRIBUTES)
    await writable.set_attributes(b"f", Attributes())
    check_kept(await writable.stat(b"f"), ATTRIBUTES, has)
    await writable.set_attributes(b"f", Attributes(**kept))
    wanted = Attributes(
        mode=0o604,
        uid=os.getuid(),
        gid=os.getgid(),
        mtime_ns=1_111_111_111_987_654_321,
        metadata={"colour": b"red"},
    )
    entry = await writable.stat(b"f")
    check_kept(entry, wanted, has)
    assert "number" not in entry.metadata
    assert await read_all(writable, b"f") == b"data"
    with pytest.raises(Missing):
        await writable.set_attributes(b"gone", Attributes(**kept))


async def test_set_attributes_of_a_directory(writable: Remote):
    needs(writable, "mkdir")
    needs(writable, "mode")
    await writable.mkdir(b"d/")
    await writable.set_attributes(b"d/", Attributes(mode=0o750))
    assert (await writable.stat(b"d/")).mode == 0o750


# Names


async def test_rename(writable: Remote):
    needs(writable, "rename")
    await writable.write(b"d/f", Held(b"data"))
    await writable.rename(b"d/f", b"d/g")
    assert list(await entries(writable, b"d/")) == [b"d/g"]
    assert await read_all(writable, b"d/g") == b"data"
    with pytest.raises(Missing):
        await writable.stat(b"d/f")
    with pytest.raises(Missing):
        await writable.rename(b"d/f", b"d/h")


async def test_rename_over_a_file(writable: Remote):
    needs(writable, "rename")
    await writable.write(b"f", Held(b"new"))
    await writable.write(b"g", Held(b"older"))
    with pytest.raises(Exists):
        await writable.rename(b"f", b"g", replace=False)
    assert await read_all(writable, b"g") == b"older"
    await writable.rename(b"f", b"g")
    assert list(await entries(writable)) == [b"g"]
    assert await read_all(writable, b"g") == b"new"


async def test_rename_a_directory(writable: Remote):
    needs(writable, "rename")
    needs(writable, "mkdir")
    version = (await writable.write(b"d/e/f", Held(b"data"))).version
    await writable.rename(b"d/", b"n/")
    assert list(await entries(writable)) == [b"n/"]
    assert await read_all(writable, b"n/e/f") == b"data"
    assert (await writable.stat(b"n/e/f")).version == version


async def test_delete(writable: Remote):
    await writable.write(b"d/f", Held(b"data"))
    await writable.write(b"d/g", Held(b"data"))
    await writable.delete(b"d/f")
    assert list(await entries(writable, b"d/")) == [b"d/g"]
    for key in (b"d/f", b"gone", b"gone/f"):
        with pytest.raises(Missing):
            await writable.delete(key)


async def test_delete_a_directory(writable: Remote):
    needs(writable, "mkdir")
    await writable.write(b"d/e/f", Held(b"data"))
    with pytest.raises(NotEmpty):
        await writable.delete(b"d/e/")
    await writable.delete(b"d/e/f")
    with pytest.raises(RemoteError):
        await writable.delete(b"d/e")  # as a file, which it is not
    assert list(await entries(writable, b"d/")) == [b"d/e/"]
    await writable.delete(b"d/e/")
    assert await entries(writable, b"d/") == {}
    with pytest.raises(Missing):
        await writable.delete(b"d/e/")


async def test_mkdir(writable: Remote):
    needs(writable, "mkdir")
    await writable.mkdir(b"d/")
    await writable.mkdir(b"d/e/")
    assert await entries(writable, b"d/e/") == {}
    await writable.write(b"f", Held(b""))
    for key in (b"d/", b"f/"):
        with pytest.raises(Exists):
            await writable.mkdir(key)
    with pytest.raises(Missing):
        await writable.mkdir(b"gone/e/")
    assert set(await entries(writable, ROOT)) == {b"d/", b"f"}


async def test_symlink(writable: Remote):
    needs(writable, "symlinks")
    await writable.symlink(b"l", b"some where/\xc3\xa9")
    entry = await writable.stat(b"l")
    assert (entry.kind.value, entry.target) == ("symlink", b"some where/\xc3\xa9")
    with pytest.raises(Exists):
        await writable.symlink(b"l", b"elsewhere")
    await writable.delete(b"l")
    assert await entries(writable) == {}


async def test_a_symlink_is_deleted_not_what_it_points_to(writable: Remote):
    needs(writable, "symlinks")
    await writable.write(b"d/f", Held(b"data"))
    await writable.symlink(b"l", b"d")
    await writable.symlink(b"m", b"d/f")
    await writable.delete(b"l")
    await writable.delete(b"m")
    assert list(await entries(writable)) == [b"d/"]
    assert await read_all(writable, b"d/f") == b"data"


async def test_writing_over_a_symlink_replaces_it(writable: Remote):
    needs(writable, "symlinks")
    await writable.write(b"f", Held(b"data"))
    await writable.symlink(b"l", b"f")
    await writable.write(b"l", Held(b"new"))
    assert (await writable.stat(b"l")).kind.value == "file"
    assert await read_all(writable, b"f") == b"data"
