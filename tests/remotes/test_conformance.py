"""What every kind of remote must do when it is read. `test_conformance_writes` has the rest.

What a remote's capabilities leave out must raise Unsupported, which is tested too. Nothing here
knows any kind.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable

import pytest
import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import Changed, Missing, Unreachable, Unsupported
from syncer.remotes.remote import ROOT, Entry, Page, Remote
from tests.remotes.kinds import (
    CONNECT_TIMEOUT_S,
    FILLED_AT_NS,
    READ_TIMEOUT_S,
    Kind,
    Place,
    Server,
)

MIB = 1 << 20
LARGE = random.Random(3).randbytes(20 * MIB + 12345)
LATER_NS = FILLED_AT_NS + 60 * 10**9
SETTLED_S = 40.0  # for what libraries let go of in their own time: idle threads of trio after 10 s

NAMES = [
    b"plain",
    b"with space",
    b" led by one",
    b"trailed by one ",
    b"new\nline",
    b"tab\tand\x01control",
    b"quote'\"`",
    b"%",
    b"%20",
    b"%2F",
    b"100%zz",
    b"#",
    b"a?b",
    b"a+b",
    b"a&b=c;d,e",
    b"<b>&amp;",
    b"back\\slash",
    b"colon:",
    b"*[a-z]{x}$HOME!",
    b"~",
    b"-rf",
    b".hidden",
    b"...",
    b"dot.",
    b"@",
    b"caf\xc3\xa9",  # NFC
    b"cafe\xcc\x81",  # NFD
    "日本語 🜁".encode(),
    b"UPPER",
    b"upper",
    b"\xff\xfe\x80 no UTF-8",
    b"x" * 255,
    "é".encode() * 127,
]


async def entries(remote: Remote, key: bytes = ROOT) -> dict[bytes, Entry]:
    """One directory; each entry may come once."""
    found: dict[bytes, Entry] = {}

    async def take(page: Page) -> None:
        for entry in page:
            assert entry.key not in found
            found[entry.key] = entry

    await remote.list(key, take)
    return found


async def read_all(remote: Remote, key: bytes) -> bytes:
    """A file's bytes of now."""
    return (await remote.read_whole(key, 1 << 30))[1]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what announces itself by nothing."""
    with trio.fail_after(SETTLED_S):
        while not condition():
            gc.collect()
            await trio.sleep(0.01)


def open_descriptors() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/fd"))


# Listing


async def test_a_directory_comes_in_pages(place: Place, remote: Remote):
    names = [b"d/%04d" % n for n in range(2500)]
    await place.fill(dict.fromkeys(names, b"x"))
    pages: list[Page] = []

    async def take(page: Page) -> None:
        pages.append(page)

    await remote.list(b"d/", take)
    assert sorted(entry.key for page in pages for entry in page) == names
    assert max(len(page) for page in pages) <= 1500


async def test_a_sink_that_fails_ends_the_listing(place: Place, remote: Remote, bridge: Bridge):
    class Enough(Exception):
        pass

    async def take(page: Page) -> None:
        await trio.lowlevel.checkpoint()
        raise Enough

    await place.fill({b"d/%04d" % n: b"" for n in range(1200)})
    with pytest.raises(Enough):
        await remote.list(b"d/", take)
    assert bridge.running == 0
    assert len(await entries(remote, b"d/")) == 1200


async def test_an_empty_root(remote: Remote):
    assert await entries(remote) == {}
    root = await remote.stat(ROOT)
    assert (root.key, root.kind.value, root.name) == (b"", "directory", b"")


async def test_an_empty_directory(place: Place, remote: Remote):
    if not place.directories:
        pytest.skip("directories exist by what is in them")
    await place.mkdir(b"d")
    assert await entries(remote, b"d/") == {}
    assert list(await entries(remote)) == [b"d/"]


async def test_a_missing_directory(place: Place, remote: Remote):
    await place.fill({b"d/f": b""})
    with pytest.raises(Missing):
        await entries(remote, b"gone/")
    with pytest.raises(Missing):
        await entries(remote, b"d/gone/")


async def test_listing_a_file(place: Place, remote: Remote):
    await place.fill({b"f": b"data"})
    # Where directories are prefixes of keys, nothing has this prefix.
    with pytest.raises(Unsupported if remote.capabilities.mkdir else (Missing, Unsupported)):
        await entries(remote, b"f/")


async def test_nested_keys(place: Place, remote: Remote):
    await place.fill({b"a/b/c/deep": b"1", b"a/b/file": b"22", b"a.b": b"333", b"top": b"4444"})
    seen = {}
    for key in (ROOT, b"a/", b"a/b/", b"a/b/c/"):
        seen |= {
            entry.key: (entry.kind.value, entry.size)
            for entry in (await entries(remote, key)).values()
        }
    sizes = {b"a/b/c/deep": 1, b"a/b/file": 2, b"a.b": 3, b"top": 4}
    assert {key: size for key, (kind, size) in seen.items() if kind == "file"} == sizes
    directories = {key for key, (kind, _) in seen.items() if kind == "directory"}
    assert directories == {b"a/", b"a/b/", b"a/b/c/"}
    assert await read_all(remote, b"a/b/c/deep") == b"1"


async def test_odd_names(kind: Kind, place: Place, remote: Remote):
    names = [name for name in NAMES if kind.holds(name)]
    files = {b"d/" + name: b"file " + name for name in names}
    files |= {b"dirs/" + name + b"/" + name: b"nested " + name for name in names}
    await place.fill(files)
    assert sorted(await entries(remote, b"d/")) == sorted(b"d/" + name for name in names)
    assert sorted(await entries(remote, b"dirs/")) == sorted(b"dirs/" + n + b"/" for n in names)
    for key, data in files.items():
        entry = await remote.stat(key)
        assert (entry.key, entry.name) == (key, key.rpartition(b"/")[2])
        assert await read_all(remote, key) == data
        assert await remote.read(key, entry.version, 2, 2) == data[2:4]
        if key.startswith(b"dirs/"):
            directory = key.rpartition(b"/")[0] + b"/"
            assert list(await entries(remote, directory)) == [key]


# Attributes


async def test_stat_of_a_file(kind: Kind, place: Place, remote: Remote):
    await place.fill({b"d/f": b"12345"})
    entry = await remote.stat(b"d/f")
    assert (entry.key, entry.kind.value, entry.size) == (b"d/f", "file", 5)
    assert entry.version.size == 5
    assert entry.version.etag or entry.version.mtime_ns
    if remote.capabilities.etag:
        assert entry.etag
    if remote.capabilities.mtime_resolution_ns:
        assert entry.mtime_ns == FILLED_AT_NS
    if kind.listing_exact:
        assert (await entries(remote, b"d/"))[b"d/f"].version == entry.version
    assert (await remote.stat(b"d/f")).version == entry.version


async def test_stat_of_a_directory(place: Place, remote: Remote):
    await place.fill({b"d/e/f": b""})
    for key in (b"d/", b"d", b"d/e/", b"d/e"):
        entry = await remote.stat(key)
        assert (entry.key, entry.kind.value) == (key.removesuffix(b"/") + b"/", "directory")


async def test_stat_of_what_is_missing(place: Place, remote: Remote):
    await place.fill({b"f": b"", b"d/f": b""})
    for key in (b"gone", b"gone/", b"d/gone", b"gone/f", b"f/below"):
        with pytest.raises(Missing):
            await remote.stat(key)
        with pytest.raises((Missing, Unsupported) if key.endswith(b"/") else Missing):
            await remote.read_whole(key, 100)


async def test_a_symlink_is_not_followed(place: Place, remote: Remote):
    if not remote.capabilities.symlinks:
        pytest.skip("has no symlinks")
    targets = {b"to-file": b"f", b"to-dir": b"d", b"dangling": b"/nowhere/at all", b"up": b"../.."}
    await place.fill({b"f": b"data", b"d/f": b"below"})
    for key, target in targets.items():
        await place.symlink(key, target)
    listed = await entries(remote)
    for key, target in targets.items():
        for entry in (await remote.stat(key), listed[key]):
            assert (entry.key, entry.kind.value, entry.target) == (key, "symlink", target)
    with pytest.raises(Unsupported):
        await remote.read_whole(b"to-file", 100)


# Reading


async def test_ranges(place: Place, remote: Remote):
    if not remote.capabilities.ranges:
        pytest.skip("reads only whole files")
    await place.fill({b"large": LARGE})
    version = (await remote.stat(b"large")).version
    ranges = [
        (0, 1),
        (0, 4096),
        (len(LARGE) - 1, 1),
        (len(LARGE) - 5000, 5000),
        (8 * MIB - 1, 2),
        (8 * MIB - 100_000, 200_000),
        (1_000_001, 9 * MIB + 17),
        (0, len(LARGE)),
        (77, 0),
    ]
    for offset, length in ranges:
        data = await remote.read(b"large", version, offset, length)
        assert memoryview(data).readonly
        assert data == LARGE[offset : offset + length], (offset, length)


async def test_whole_files_only(place: Place, remote: Remote):
    if remote.capabilities.ranges:
        pytest.skip("reads ranges")
    await place.fill({b"f": b"0123456789"})
    version = (await remote.stat(b"f")).version
    assert await remote.read(b"f", version, 0, 10) == b"0123456789"
    with pytest.raises(Unsupported):
        await remote.read(b"f", version, 2, 3)


async def test_an_empty_file(place: Place, remote: Remote):
    await place.fill({b"empty": b""})
    entry, data = await remote.read_whole(b"empty", 100)
    assert (entry.size, data) == (0, b"")
    assert await remote.read(b"empty", entry.version, 0, 0) == b""


async def test_reading_whole(place: Place, remote: Remote):
    await place.fill({b"d/f": b"0123456789", b"large": LARGE})
    entry, data = await remote.read_whole(b"d/f", 10)
    assert data == b"0123456789"
    assert (entry.key, entry.version) == (b"d/f", (await remote.stat(b"d/f")).version)
    assert (await remote.read_whole(b"large", len(LARGE)))[1] == LARGE


async def test_reading_whole_has_a_limit(place: Place, remote: Remote):
    await place.fill({b"f": b"0123456789", b"large": LARGE})
    for key in (b"f", b"large"):
        with pytest.raises(Unsupported):
            await remote.read_whole(key, 9)


async def test_what_cannot_be_read_whole(place: Place, remote: Remote):
    await place.fill({b"d/f": b""})
    with pytest.raises(Missing):
        await remote.read_whole(b"gone", 100)
    # Where directories are prefixes of keys, no object has this key.
    with pytest.raises((Missing, Unsupported)):
        await remote.read_whole(b"d", 100)


async def change_times_only(place: Place) -> None:
    await place.fill({b"f": b"B" * 10_000}, LATER_NS)


async def change_size(place: Place) -> None:
    await place.fill({b"f": b"B" * 10_001}, LATER_NS)


async def shrink(place: Place) -> None:
    await place.fill({b"f": b"B" * 10}, LATER_NS)


async def delete(place: Place) -> None:
    await place.remove(b"f")


CHANGES = [change_times_only, change_size, shrink, delete]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_changed_file_is_not_read(change, place: Place, remote: Remote):
    await place.fill({b"f": b"A" * 10_000})
    version = (await remote.stat(b"f")).version
    await change(place)
    with pytest.raises(Changed):
        await remote.read(b"f", version, 0, 10_000)
    if remote.capabilities.ranges:
        with pytest.raises(Changed):
            await remote.read(b"f", version, 5, 5)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_file_that_changes_between_reads(change, place: Place, remote: Remote):
    await place.fill({b"f": b"A" * 10_000})
    version = (await remote.stat(b"f")).version
    assert await remote.read(b"f", version, 0, 10_000) == b"A" * 10_000
    await change(place)
    for _ in range(2):
        try:
            # An open handle may still have the old one.
            assert await remote.read(b"f", version, 0, 10_000) == b"A" * 10_000
        except Changed:
            continue
    if change is not delete:
        entry, data = await remote.read_whole(b"f", 20_000)
        assert data == b"B" * entry.size
        assert await remote.read(b"f", entry.version, 0, entry.size) == data


async def test_a_new_version_is_read_by_its_own_name(place: Place, remote: Remote):
    await place.fill({b"f": b"old"})
    old = await remote.stat(b"f")
    assert await remote.read(b"f", old.version, 0, 3) == b"old"
    await place.fill({b"f": b"new"}, LATER_NS)
    new = await remote.stat(b"f")
    assert new.version != old.version
    assert await remote.read(b"f", new.version, 0, 3) == b"new"


# Many at once, giving up, going away


async def test_many_reads_at_once(place: Place, remote: Remote):
    if not remote.capabilities.ranges:
        pytest.skip("reads only whole files")
    await place.fill({b"large": LARGE, b"small": b"s" * 100})
    version = (await remote.stat(b"large")).version
    small = (await remote.stat(b"small")).version
    right = []

    async def read(n: int) -> None:
        offset = n * 600_000
        data = await remote.read(b"large", version, offset, 300_000)
        assert data == LARGE[offset : offset + 300_000]
        assert await remote.read(b"small", small, n, 5) == b"sssss"
        right.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(32):
            nursery.start_soon(read, n)
    assert sorted(right) == list(range(32))


async def test_giving_up_leaves_nothing(place: Place, remote: Remote, bridge: Bridge):
    await place.fill({b"large": LARGE})
    version = (await remote.stat(b"large")).version
    length = len(LARGE)

    async def read_large(length: int = length) -> None:
        await remote.read(b"large", version, 0, length)

    async with trio.open_nursery() as nursery:
        # What a driver opens for so many stays open; none ends before the last has begun.
        for _ in range(32):
            nursery.start_soon(read_large, 4 * MIB if remote.capabilities.ranges else length)
    threads, descriptors = threading.active_count(), open_descriptors()
    # Wherever that is: as the times grow, from before the request to the middle of the data.
    for milliseconds in (0, 1, 2, 4, 8, 16, 32):
        with trio.move_on_after(milliseconds / 1000):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(read_large)
        assert bridge.running == 0
    await eventually(lambda: threading.active_count() <= threads)
    await eventually(lambda: open_descriptors() <= descriptors)
    assert await remote.read(b"large", version, 0, length) == LARGE


async def test_closing_leaves_nothing(place: Place, bridge: Bridge):
    await place.fill({b"f": b"data", b"d/f": b""})
    descriptors = open_descriptors()
    remote = await place.open()
    assert await read_all(remote, b"f") == b"data"
    assert len(await entries(remote)) == 2
    await remote.close()
    await remote.close()
    assert bridge.running == 0
    await eventually(lambda: open_descriptors() <= descriptors)


async def test_closing_an_unused_remote(place: Place, bridge: Bridge):
    remote = await place.open()
    await remote.close()
    await remote.close()
    assert bridge.running == 0


async def test_a_server_that_went_away(kind: Kind, server: Server, place: Place, remote: Remote):
    if not kind.goes_away:
        pytest.skip("nothing is between us and the data")
    await place.fill({b"f": b"data"})
    version = (await remote.stat(b"f")).version
    fresh = await place.open()
    with server.away():
        for each in (remote, fresh):
            for act in (
                lambda each=each: each.stat(b"f"),
                lambda each=each: entries(each),
                lambda each=each: each.read(b"f", version, 0, 4),
                lambda each=each: each.read_whole(b"f", 100),
            ):
                with (
                    trio.fail_after(CONNECT_TIMEOUT_S + READ_TIMEOUT_S + 2),
                    pytest.raises(Unreachable),
                ):
                    await act()
        with trio.fail_after(CONNECT_TIMEOUT_S + READ_TIMEOUT_S + 2):
            await fresh.close()
    assert await remote.read(b"f", version, 0, 4) == b"data"
    assert list(await entries(remote)) == [b"f"]


async def test_a_read_is_given_up_at_once_while_the_server_is_away(
    kind: Kind, server: Server, place: Place, remote: Remote, bridge: Bridge
):
    if not kind.goes_away:
        pytest.skip("nothing is between us and the data")
    await place.fill({b"f": b"data"})
    version = (await remote.stat(b"f")).version
    with server.away():
        with (
            trio.fail_after(CONNECT_TIMEOUT_S),
            trio.move_on_after(0.05),
            pytest.raises(Unreachable),
        ):
            await remote.read(b"f", version, 0, 4)
        assert bridge.running == 0
    assert await remote.read(b"f", version, 0, 4) == b"data"


async def test_capabilities_say_why_not(remote: Remote):
    assert remote.capabilities.write or remote.capabilities.write_reason
    assert "://" in remote.url
