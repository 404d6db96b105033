"""What is special about object stores: pages, keys, versions, uploads, refusals."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import os
import random
import re
import resource
import tracemalloc
from collections.abc import Callable

import obstore.store
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import (
    BadUrl,
    Busy,
    Changed,
    Denied,
    Exists,
    Full,
    Garbled,
    Missing,
    NotEmpty,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.held import Held
from syncer.remotes.object_http import Refusal, refused
from syncer.remotes.object_reads import obstore_can
from syncer.remotes.objects import part_size
from syncer.remotes.remote import ROOT, Attributes, Entry, Kind, Page, Remote, Version
from tests.remotes import kind_azure, kind_gcs, kind_s3
from tests.remotes.filling import fill
from tests.remotes.kind_azure import AzureServer
from tests.remotes.kind_gcs import GcsServer
from tests.remotes.kind_s3 import BUCKET, S3Server
from tests.remotes.kinds import Server
from tests.servers.proxy import Cut, How
from tests.servers.seaweedfs import PUBLIC_BUCKET

MIB = 1 << 20
LARGE = random.Random(5).randbytes(40 * MIB)

_numbers = itertools.count()

Serve = Callable[[object], Server]


@pytest.fixture
def s3(serve: Serve) -> S3Server:
    server = serve(kind_s3.KIND)
    assert isinstance(server, S3Server)
    return server


@pytest.fixture
def azure(serve: Serve) -> AzureServer:
    server = serve(kind_azure.KIND)
    assert isinstance(server, AzureServer)
    return server


@pytest.fixture
def gcs(serve: Serve) -> GcsServer:
    server = serve(kind_gcs.KIND)
    assert isinstance(server, GcsServer)
    return server


@pytest.fixture
def prefix() -> str:
    """One that no other test uses."""
    return f"objects-{next(_numbers)}"


async def listed(remote: Remote, key: bytes = ROOT) -> dict[bytes, Entry]:
    found: dict[bytes, Entry] = {}

    async def take(page: Page) -> None:
        for entry in page:
            assert entry.key not in found
            found[entry.key] = entry

    await remote.list(key, take)
    return found


# Pages


async def test_a_directory_costs_one_request_a_page_and_no_memory(
    s3: S3Server, bridge: Bridge, prefix: str
):
    count = 12_000
    await fill(s3.store.put, {f"{prefix}/{n:06}": b"" for n in range(count)})
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    seen = 0

    async def take(page: Page) -> None:
        nonlocal seen
        seen += len(page)

    await remote.list(ROOT, take)  # so that all modules are there
    seen, before = 0, s3.proxy.counts
    gc.collect()
    tracemalloc.start()
    await remote.list(ROOT, take)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == count
    assert (s3.proxy.counts - before).requests == math.ceil(count / 1000)
    # A page is about 2 MiB while it is parsed; all entries together would be 7.
    assert peak < 5 * MIB
    await remote.close()


@pytest.mark.soak
async def test_a_hundred_thousand_in_one_directory(s3: S3Server, bridge: Bridge, prefix: str):
    count = 100_000
    await fill(s3.store.put, {f"{prefix}/{n:06}": b"" for n in range(count)})
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    seen = 0
    peaks: list[int] = []  # KiB

    async def take(page: Page) -> None:
        nonlocal seen
        seen += len(page)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    before = s3.proxy.counts
    await remote.list(ROOT, take)
    assert seen == count
    assert (s3.proxy.counts - before).requests == count // 1000
    assert peaks[-1] - peaks[4] < 8 << 10
    await remote.close()


async def test_what_lies_below_subdirectories_is_not_listed(
    s3: S3Server, bridge: Bridge, prefix: str
):
    keys = [f"{prefix}/d{n}/{m}" for n in range(60) for m in range(40)] + [f"{prefix}/f"]
    await fill(s3.store.put, dict.fromkeys(keys, b""))
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    before = s3.proxy.counts
    found = await listed(remote)
    assert (s3.proxy.counts - before).requests == 1
    assert found.keys() == {b"f"} | {b"d%d/" % n for n in range(60)}
    await remote.close()


# Roots and keys


async def test_a_root_with_and_without_a_slash(s3: S3Server, bridge: Bridge, prefix: str):
    await fill(s3.store.put, {f"{prefix}/a": b"1", f"{prefix}-b": b"2"})
    for url in (f"s3://{BUCKET}/{prefix}", f"s3://{BUCKET}/{prefix}/"):
        remote = await s3.open(bridge, url)
        assert (await listed(remote)).keys() == {b"a"}
        assert (await remote.read_whole(b"a", 9))[1] == b"1"
        await remote.close()


async def test_a_root_that_is_one_object(s3: S3Server, bridge: Bridge, prefix: str):
    await fill(s3.store.put, {f"{prefix}/a": b"one"})
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/a")
    entry = await remote.stat(ROOT)
    assert (entry.kind, entry.key, entry.size) == (Kind.FILE, ROOT, 3)
    assert await remote.read(ROOT, entry.version, 1, 2) == b"ne"
    assert (await remote.read_whole(ROOT, 9))[1] == b"one"
    with pytest.raises(Unsupported):
        await listed(remote)
    with pytest.raises(Missing):
        await remote.stat(b"b")
    written = await remote.write(ROOT, Held(b"another"), if_version=entry.version)
    assert written.version == (await remote.stat(ROOT)).version
    await remote.delete(ROOT)
    with pytest.raises(Missing):
        await remote.stat(ROOT)
    await remote.close()


async def test_a_directory_is_no_file_whatever_is_called_like_it(
    azure: AzureServer, bridge: Bridge, prefix: str
):
    azure.server.make_container(prefix)
    azure.server.put(prefix, "d", b"a file of this name")
    azure.server.put(prefix, "d/f", b"x")
    for url in (f"az://{prefix}/d/", f"az://{prefix}"):
        remote = await azure.open(bridge, url)
        assert (await remote.stat(ROOT)).kind is Kind.DIRECTORY
        for attempt in (
            remote.read(ROOT, Version(19), 0, 19),
            remote.read_whole(ROOT, 99),
            remote.write(ROOT, Held(b"")),
            remote.set_attributes(ROOT, Attributes(metadata={})),
            remote.rename(ROOT, b"x"),
        ):
            with pytest.raises(Unsupported):
                await attempt
        with pytest.raises(NotEmpty):
            await remote.delete(ROOT)
        await remote.close()
    # An empty object with something below is the marker of some tools.
    azure.server.put(prefix, "d", b"")
    remote = await azure.open(bridge, f"az://{prefix}/d")
    assert (await listed(remote)).keys() == {b"f"}
    await remote.close()


async def test_where_nothing_is_yet(s3: S3Server, bridge: Bridge, prefix: str):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}")
    assert await listed(remote) == {}
    await remote.write(b"f", Held(b"x"))
    assert (await listed(remote)).keys() == {b"f"}
    await remote.close()
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}-one")
    await remote.write(ROOT, Held(b"x"))
    assert (await remote.stat(ROOT)).kind is Kind.FILE
    await remote.close()


async def test_markers_make_directories_and_are_not_shown(
    azure: AzureServer, bridge: Bridge, prefix: str
):
    azure.server.make_container(prefix)
    for key, data in {"d/": b"", "d/f": b"x", "e/": b"", "f": b"x", "f/g": b"x"}.items():
        azure.server.put(prefix, key, data)
    remote = await azure.open(bridge, f"az://{prefix}")
    found = await listed(remote)
    kinds = {key: entry.kind for key, entry in found.items()}
    assert kinds == {
        b"d/": Kind.DIRECTORY,
        b"e/": Kind.DIRECTORY,
        b"f": Kind.FILE,
        b"f/": Kind.DIRECTORY,
    }
    assert (await listed(remote, b"d/")).keys() == {b"d/f"}
    assert await listed(remote, b"e/") == {}
    assert (await remote.stat(b"e")).key == b"e/"
    with pytest.raises(NotEmpty):
        await remote.delete(b"d/")
    await remote.delete(b"e/")
    with pytest.raises(Missing):
        await listed(remote, b"e/")
    await remote.close()


async def test_keys_with_empty_components(azure: AzureServer, bridge: Bridge, prefix: str):
    azure.server.make_container(prefix)
    contents = {"a//b": b"1", "a/b": b"2", "/c": b"3", "a///": b"4", "//": b"5"}
    for key, data in contents.items():
        azure.server.put(prefix, key, data)
    remote = await azure.open(bridge, f"az://{prefix}")
    assert (await listed(remote)).keys() == {b"a/", b"/"}
    assert (await listed(remote, b"a/")).keys() == {b"a//", b"a/b"}
    assert (await listed(remote, b"a//")).keys() == {b"a//b", b"a///"}
    assert (await listed(remote, b"/")).keys() == {b"/c", b"//"}
    for key in ("a//b", "a/b", "/c"):
        entry, data = await remote.read_whole(key.encode(), 9)
        assert data == contents[key]
        assert await remote.read(key.encode(), entry.version, 0, 1) == contents[key]
    await remote.write(b"x//y", Held(b"odd"))
    await remote.rename(b"x//y", b"x//z")
    assert (await remote.read_whole(b"x//z", 9))[1] == b"odd"
    assert azure.server.request("GET", prefix, "x//z").content == b"odd"
    await remote.close()


async def test_dots_are_left_out_with_a_warning(
    gcs: GcsServer, bridge: Bridge, prefix: str, caplog: pytest.LogCaptureFixture
):
    gcs.server.make_bucket(prefix)
    for key in ("d/..", "d/../x", "d/.", "d/...", "d/x"):
        gcs.server.put(prefix, key, b"x")
    remote = await gcs.open(bridge, f"gs://{prefix}")
    with caplog.at_level(logging.WARNING, "syncer.remotes.objects"):
        assert (await listed(remote, b"d/")).keys() == {b"d/...", b"d/x"}
    assert "3 names" in caplog.text
    with pytest.raises(Missing):
        await remote.stat(b"d/../x")
    with pytest.raises(Unsupported):
        await remote.write(b"d/../y", Held(b""))
    await remote.close()


async def test_one_odd_key_does_not_hide_the_others(gcs: GcsServer, bridge: Bridge, prefix: str):
    # obstore's listing fails as a whole for each of these.
    gcs.server.make_bucket(prefix)
    keys = ["a\nb", "a\x7fb", "a b ", "tab\t", "plain", "%2e%2e", "a%b", "~", "ü"]
    for key in keys:
        gcs.server.put(prefix, key, key.encode())
    remote = await gcs.open(bridge, f"gs://{prefix}")
    found = await listed(remote)
    assert found.keys() == {key.encode() for key in keys}
    for key, entry in found.items():
        assert await remote.read(key, entry.version, 0, len(key)) == key
    await remote.close()


@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("/.%\n\x7f~ "), max_size=12)
)
def test_obstore_keeps_the_keys_that_it_is_given(text: str):
    if not text or not obstore_can(text.encode()):
        return
    store = obstore.store.MemoryStore()
    store.put(text, b"x")
    assert [each["path"] for page in store.list() for each in page] == [text]


# Versions


async def test_another_version_is_refused_by_the_server(s3: S3Server, bridge: Bridge, prefix: str):
    key = f"{prefix}/f"
    await fill(s3.store.put, {key: LARGE[: 4 * MIB]})
    remote = await s3.open(bridge, f"s3://{BUCKET}/")
    entry = await remote.stat(key.encode())
    await fill(s3.store.put, {key: LARGE[MIB : 5 * MIB]})
    before = s3.proxy.counts
    with pytest.raises(Changed):
        await remote.read(key.encode(), entry.version, MIB, 2 * MIB)
    with pytest.raises(Changed):
        await remote.read(key.encode(), entry.version, 0, 4 * MIB)
    assert (s3.proxy.counts - before).down < 64 << 10
    await remote.close()


async def test_a_server_that_ignores_the_condition_is_found_out(
    s3: S3Server, bridge: Bridge, prefix: str
):
    key = f"{prefix}/f"
    await fill(s3.store.put, {key: b"old bytes"})
    remote = await s3.open(bridge, f"s3://{BUCKET}/")
    entry = await remote.stat(key.encode())
    modified = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    other = {**modified, "ETag": '"6dd3a2a3e1b1bd2c05a3b3d7e4ad1a2b"'}
    s3.proxy.reset_connections()
    s3.proxy.answer(1, 200, other, b"new bytes")
    with pytest.raises(Changed):
        await remote.read(key.encode(), entry.version, 0, 9)
    s3.proxy.answer(1, 206, {**other, "Content-Range": "bytes 0-2/9"}, b"new")
    with pytest.raises(Changed):
        await remote.read(key.encode(), entry.version, 0, 3)
    # Of the right version, but not the bytes asked for.
    right = {**modified, "ETag": entry.etag}
    s3.proxy.answer(1, 206, {**right, "Content-Range": "bytes 0-1/9"}, b"ol")
    with pytest.raises((Garbled, Unsupported)):
        await remote.read(key.encode(), entry.version, 0, 3)
    assert await remote.read(key.encode(), entry.version, 0, 3) == b"old"
    await remote.close()


async def test_versions_without_etags_are_compared_by_size_and_time(
    s3: S3Server, bridge: Bridge, prefix: str
):
    key = f"{prefix}/f"
    await fill(s3.store.put, {key: b"bytes"})
    remote = await s3.open(bridge, f"s3://{BUCKET}/")
    entry = await remote.stat(key.encode())
    bare = Version(entry.size, mtime_ns=entry.mtime_ns or 0)
    with pytest.raises(Changed):  # the server's answer has an etag: it is more than was known
        await remote.read(key.encode(), Version(5, mtime_ns=1), 0, 5)
    assert await remote.read(key.encode(), bare, 0, 5) == b"bytes"
    with pytest.raises(Changed):
        await remote.write(key.encode(), Held(b"x"), if_version=Version(5, mtime_ns=1))
    await remote.write(key.encode(), Held(b"other"), if_version=bare)
    await remote.close()


@pytest.mark.parametrize(("brief", "requests"), [(True, 1), (False, 2)])
async def test_the_time_of_what_was_written_is_asked_for_where_it_is_wanted(
    s3: S3Server, bridge: Bridge, prefix: str, brief: bool, requests: int
):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    await remote.write(b"first", Held(b"x"))  # finds out what the root is
    before = s3.proxy.counts
    written = await remote.write(b"f", Held(b"bytes"), Attributes(brief=brief))
    assert (s3.proxy.counts - before).requests == requests
    found = await remote.stat(b"f")
    assert (written.mtime_ns, written.version.etag) == (
        None if brief else found.mtime_ns,
        found.version.etag,
    )
    assert await remote.read(b"f", written.version, 0, 5) == b"bytes"
    await remote.close()


async def test_damage_on_the_way_is_found(s3: S3Server, bridge: Bridge, prefix: str):
    key = f"{prefix}/f"
    await fill(s3.store.put, {key: LARGE[:100_000]})
    remote = await s3.open(bridge, f"s3://{BUCKET}/")
    entry = await remote.stat(key.encode())
    s3.proxy.reset_connections()
    s3.proxy.change(cut=Cut(How.GARBLE, after=50_000, times=1))
    with pytest.raises(Garbled, match="MD5"):
        await remote.read(key.encode(), entry.version, 0, entry.size)
    s3.proxy.reset_connections()
    s3.proxy.change(cut=Cut(How.GARBLE, after=50_000, times=1))
    with pytest.raises(Garbled, match="MD5"):
        await remote.read_whole(key.encode(), MIB)
    s3.proxy.heal()
    assert await remote.read(key.encode(), entry.version, 0, entry.size) == LARGE[:100_000]
    await remote.close()


async def test_an_etag_of_an_encrypted_object_is_no_checksum(
    s3: S3Server, bridge: Bridge, prefix: str
):
    remote = await s3.open(bridge, f"s3://{BUCKET}/")
    key = f"{prefix}/f".encode()
    etag = '"6dd3a2a3e1b1bd2c05a3b3d7e4ad1a2b"'
    headers = {"ETag": etag, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    s3.proxy.answer(1, 200, headers, b"bytes")
    s3.proxy.answer(1, 200, {**headers, "x-amz-server-side-encryption": "aws:kms"}, b"bytes")
    assert await remote.read(key, Version(5, etag), 0, 5) == b"bytes"
    s3.proxy.answer(2, 200, headers, b"bytes")
    with pytest.raises(Garbled, match="MD5"):
        await remote.read(key, Version(5, etag), 0, 5)
    await remote.close()
    remote = await s3.open(bridge, f"s3://{BUCKET}/", {"checksum": "none"})
    s3.proxy.answer(1, 200, headers, b"bytes")
    assert await remote.read(key, Version(5, etag), 0, 5) == b"bytes"
    await remote.close()


async def test_listed_checksums_verify_later_reads(azure: AzureServer, bridge: Bridge, prefix: str):
    azure.server.make_container(prefix)
    azure.server.put(prefix, "f", LARGE[:100_000])
    remote = await azure.open(bridge, f"az://{prefix}")
    entry = (await listed(remote))[b"f"]
    assert entry.checksum is not None
    azure.proxy.reset_connections()
    azure.proxy.change(cut=Cut(How.GARBLE, after=50_000, times=1))
    with pytest.raises(Garbled, match="MD5"):
        await remote.read(b"f", entry.version, 0, entry.size)
    azure.proxy.heal()
    assert await remote.read(b"f", entry.version, 0, entry.size) == LARGE[:100_000]
    await remote.close()


# Uploads


def uploads(s3: S3Server) -> list[str]:
    """Keys of uploads that are neither finished nor taken back."""
    answer = s3.server.request("GET", BUCKET, query={"uploads": ""})
    return re.findall("<UploadId>(.*?)</UploadId>", answer.text)


class Failing(Held):
    """Fails in the middle."""

    async def read(self, offset: int, length: int) -> bytes:
        if offset > self.size // 2:
            raise ConnectionError("the source is gone")
        return await super().read(offset, length)


class Stuck(Held):
    """Never gives its end."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked = trio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        if offset > self.size // 2:
            self.asked.set()
            await trio.sleep_forever()
        return await super().read(offset, length)


async def test_an_upload_that_fails_is_taken_back(s3: S3Server, bridge: Bridge, prefix: str):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    with pytest.raises(ConnectionError):
        await remote.write(b"f", Failing(LARGE))
    assert uploads(s3) == []
    stuck = Stuck(LARGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.write, b"f", stuck)
        await stuck.asked.wait()
        assert len(uploads(s3)) == 1
        nursery.cancel_scope.cancel()
    assert uploads(s3) == []
    with pytest.raises(Missing):
        await remote.stat(b"f")
    await remote.close()


async def test_an_upload_cancelled_while_it_begins_is_taken_back(
    s3: S3Server, bridge: Bridge, prefix: str
):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    await listed(remote)  # connected
    before = s3.proxy.counts
    s3.proxy.change(delay_s=0.1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.write, b"f", Held(LARGE))
        while not (s3.proxy.counts - before).requests:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    s3.proxy.heal()
    assert uploads(s3) == []
    await remote.close()


async def test_parts_that_are_refused_end_the_upload(s3: S3Server, bridge: Bridge, prefix: str):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    await fill(s3.store.put, {f"{prefix}/f": b"there"})
    with pytest.raises(Exists):
        await remote.write(b"f", Held(LARGE), replace=False)
    with pytest.raises(Changed):
        await remote.write(b"f", Held(LARGE), if_version=Version(5, '"0"'))
    assert uploads(s3) == []
    assert (await remote.read_whole(b"f", 9))[1] == b"there"
    entry = await remote.write(b"f", Held(LARGE), if_version=(await remote.stat(b"f")).version)
    assert await remote.read(b"f", entry.version, 0, len(LARGE)) == LARGE
    await remote.close()


@given(st.integers(0, 5 << 40))
def test_parts_are_as_many_as_the_store_takes(size: int):
    part = part_size(size, 8 * MIB, 9000)
    assert part % MIB == 0
    assert part >= 8 * MIB
    assert math.ceil(size / part) <= 9000
    assert part - MIB < max(8 * MIB, size / 9000)


async def test_metadata_that_headers_cannot_carry_is_refused(
    s3: S3Server, bridge: Bridge, prefix: str
):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    for metadata in ({"a b": b"x"}, {"a": b"x\ny"}, {"a": "ü".encode()}, {"ü": b"x"}, {"": b""}):
        with pytest.raises(Unsupported, match="metadata"):
            await remote.write(b"f", Held(b""), Attributes(metadata=metadata))
    kept = {"content-type": b"text/plain", "colour": b"red, blue"}
    await remote.write(b"f", Held(b"x"), Attributes(metadata=kept))
    assert (await remote.stat(b"f")).metadata == kept
    assert (await remote.read_whole(b"f", 9))[0].metadata == kept
    await remote.close()


# Refusals


def xml(code: str, more: str = "") -> bytes:
    return f"<Error><Code>{code}</Code><Message>m</Message>{more}</Error>".encode()


REFUSALS = [
    (403, xml("RequestTimeTooSkewed"), Denied, "clock"),
    (
        403,
        xml("AuthenticationFailed", "<Detail>Request date header too old</Detail>"),
        Denied,
        "clock",
    ),
    (400, xml("ExpiredToken"), Denied, "expired"),
    (403, xml("AccessDenied"), Denied, "permission"),
    (403, xml("InvalidAccessKeyId"), Denied, "access key"),
    (400, xml("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"), Denied, "eu-west-3"),
    (301, xml("PermanentRedirect"), Denied, "region"),
    (404, xml("NoSuchBucket"), Missing, "bucket"),
    (404, xml("NoSuchKey"), Missing, "object"),
    (404, b'{"error":{"code":404,"errors":[{"reason":"notFound"}]}}', Missing, "object"),
    (503, xml("SlowDown"), Busy, "busy"),
    (429, b'{"error":{"errors":[{"reason":"rateLimitExceeded"}]}}', Busy, "busy"),
    (409, xml("ConditionalRequestConflict"), Busy, "busy"),
    (400, xml("RequestTimeout"), Unreachable, "in time"),
    (502, b"<html>", Unreachable, "in time"),
    (412, b"", Changed, "version"),
    (416, xml("InvalidRange"), Changed, "version"),
    (507, b"", Full, "room"),
    (403, xml("QuotaExceeded"), Full, "room"),
    (409, xml("BlobAlreadyExists"), Exists, "already"),
    (403, xml("InvalidObjectState"), Unsupported, "archived"),
    (501, xml("NotImplemented"), Unsupported, "refuses"),
    (418, b"\xff\x00", Unsupported, "418"),
]


@pytest.mark.parametrize(
    ("status", "body", "error", "word"), REFUSALS, ids=[str(row[:2])[:40] for row in REFUSALS]
)
def test_what_refusals_mean(status: int, body: bytes, error: type[RemoteError], word: str):
    text = body.decode("utf-8", "replace")
    found = refused(Refusal.parse(status, {}, text), "s3://b/k", "the key of the test")
    assert type(found) is error
    assert word in str(found)
    assert (
        error is not Denied
        or status == 301
        or "region" in word
        or "eu-" in word
        or ("the key of the test" in str(found))
    )


async def test_refusals_read_the_same_on_both_ways(s3: S3Server, bridge: Bridge, prefix: str):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    version = Version(5, '"0"')
    for status, body, error, word in REFUSALS:
        if status in {404, 418} or error is Changed:
            continue  # other words for a listing than for a read; or no text
        s3.proxy.reset_connections()
        headers = {"Retry-After": "7"}
        s3.proxy.answer(1, status, headers, body)
        with pytest.raises(error, match=word):
            await listed(remote)
        s3.proxy.answer(1, status, headers, body)
        with pytest.raises(RemoteError) as caught:
            await remote.read(b"f", version, 0, 5)
        assert caught.type is error
        assert word in str(caught.value)
    s3.proxy.answer(1, 503, {"Retry-After": "7"}, xml("SlowDown"))
    with pytest.raises(Busy) as busy:
        await listed(remote)
    assert busy.value.retry_after_s == 7
    await remote.close()


async def test_answers_that_are_no_listing(s3: S3Server, bridge: Bridge, prefix: str):
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/")
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><ListBucketResult>&a;</ListBucketResult>'
    elsewhere = b"<Contents><Key>elsewhere/x</Key><Size>1</Size></Contents>"
    deeper = f"<Contents><Key>{prefix}/x/y</Key><Size>1</Size></Contents>".encode()
    for body in (
        b"",
        b"hello",
        b"<html></html>",
        b"<ListBucketResult>",
        bomb,
        b"<ListBucketResult>" + elsewhere + b"</ListBucketResult>",
        b"<ListBucketResult>" + deeper + b"</ListBucketResult>",
        b"<ListBucketResult><Contents><Key>x</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    ):
        s3.proxy.answer(1, 200, {"Content-Type": "application/xml"}, body)
        with pytest.raises(Garbled):
            await listed(remote)
    assert await listed(remote) == {}
    await remote.close()


async def test_an_unknown_bucket(s3: S3Server, azure: AzureServer, gcs: GcsServer, bridge: Bridge):
    for server, url in ((s3, "s3://no-bucket/"), (azure, "az://no-container"), (gcs, "gs://no")):
        remote = await server.open(bridge, url)
        with pytest.raises(Missing):
            await listed(remote)
        with pytest.raises(Missing):
            await remote.read_whole(b"f", 9)
        await remote.close()


async def test_public_data_needs_no_credentials(s3: S3Server, bridge: Bridge, prefix: str):
    s3.server.request("PUT", PUBLIC_BUCKET, f"{prefix}/f", body=b"open").raise_for_status()
    remote = await s3.open(bridge, f"s3://{PUBLIC_BUCKET}/{prefix}/", {"anonymous": "true"}, {})
    assert (await listed(remote)).keys() == {b"f"}
    assert (await remote.read_whole(b"f", 9))[1] == b"open"
    assert not remote.capabilities.write
    with pytest.raises(Unsupported, match="anonymous"):
        await remote.write(b"g", Held(b""))
    await remote.close()
    remote = await s3.open(bridge, f"s3://{BUCKET}/", {"anonymous": "true"}, {})
    with pytest.raises(Denied, match="anonymous"):
        await listed(remote)
    await remote.close()


async def test_connections_are_limited(s3: S3Server, bridge: Bridge, prefix: str):
    await fill(s3.store.put, {f"{prefix}/f": b"x" * 1000})
    remote = await s3.open(bridge, f"s3://{BUCKET}/{prefix}/", connections_max=3)
    entry = await remote.stat(b"f")
    before = s3.proxy.counts
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(remote.read, b"f", entry.version, 0, 1000)
            nursery.start_soon(remote.stat, b"f")
    assert (s3.proxy.counts - before).connections <= 6  # of two pools
    await remote.close()


async def test_the_environment_of_the_process_does_not_count(
    s3: S3Server, azure: AzureServer, gcs: GcsServer, bridge: Bridge, prefix: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    places = [server.place(bridge) for server in (s3, azure, gcs)]
    for place in places:
        await place.fill({b"f": b"bytes"})
    # obstore reads it on its own: what it could take from there must have been said already.
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "AWS_SESSION_TOKEN": "wrong",
        "AWS_REGION": "mars-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc=",
        "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1",
        "AZURE_STORAGE_SAS_TOKEN": "sig=wrong",
        "AZURE_SKIP_SIGNATURE": "true",
        "GOOGLE_BASE_URL": "http://127.0.0.1:1",
        "GOOGLE_BEARER_TOKEN": "wrong",
    }.items():
        monkeypatch.setenv(name, value)
    for place in places:
        remote = await place.open()
        assert (await remote.read_whole(b"f", 9))[1] == b"bytes"
        await remote.close()
    assert os.environ["AWS_REGION"] == "mars-1"


@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("s3:///x", {}, "bucket"),
        ("s3://b:80/x", {}, "endpoint"),
        ("s3://u@b/x", {}, "endpoint"),
        ("s3://b/x", {"endpiont": "y"}, "endpoint, "),
        ("s3://b/x", {"secret_key": "y"}, "credentials"),
        ("s3://b/x", {"endpoint": "localhost"}, "http://"),
        ("s3://b/x", {"endpoint": "http://u:p@host"}, "http://"),
        ("s3://b/x", {"anonymous": "perhaps"}, "true or false"),
        ("s3://b/x", {"identity": "y"}, "instance"),
        ("s3://b/x", {"checksum": "crc"}, "etag"),
        ("az://c/x", {}, "account"),
        ("az://c/x", {"account": "No!"}, "account"),
        ("az://c/x", {"account": "abc", "endpoint": "http://h/other"}, "path"),
        ("gs://b/x", {"endpoint": "ftp://h"}, "http"),
        ("gs://b/x", {"identity": "y"}, "instance"),
    ],
)
async def test_urls_and_options_that_make_no_sense(
    bridge: Bridge, tmp_path, url: str, options: dict[str, str], word: str
):
    from syncer.remotes.registry import open_remote
    from tests.remotes.kinds import machinery

    with pytest.raises(BadUrl, match=re.escape(word)):
        await open_remote(url, options, machinery(bridge, tmp_path))
