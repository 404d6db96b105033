"""What is particular to SMB; the conformance suite has the rest."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from smbprotocol.connection import Connection

from syncer.remotes import smb_status, smb_wire
from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import (
    BadUrl,
    Busy,
    Denied,
    Full,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.held import Held
from syncer.remotes.remote import ROOT, Attributes, Kind, Remote
from syncer.remotes.smb import open_remote
from tests.remotes.kind_smb import credentials
from tests.remotes.kinds import CONNECT_TIMEOUT_S, IMPATIENT, READ_TIMEOUT_S, machinery
from tests.remotes.test_conformance import MIB, SETTLED_S, entries, eventually
from tests.servers.processes import listens
from tests.servers.proxy import Cut, Faults, How, Proxy
from tests.servers.samba import Samba, samba

LARGE = os.urandom(3 * MIB)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samba]:
    folder = tmp_path_factory.mktemp("share")
    (folder / "f").write_bytes(b"0123456789")
    (folder / "large").write_bytes(LARGE)
    (folder / "d").mkdir()
    (folder / "d" / "in it").write_bytes(b"x")
    shares = {
        "others": ["valid users = nobody"],
        "secret": ["smb encrypt = required"],
        "plain": ["smb encrypt = off"],
        "usual": ["case sensitive = auto"],
    }
    with samba(folder, shares=shares) as running:
        yield running


@pytest.fixture
async def opened(bridge: Bridge, tmp_path: Path, server: Samba):
    """Opens remotes, and closes them."""
    remotes: list[Remote] = []

    async def open_one(url: str, options: Mapping[str, str] = {}, **changes) -> Remote:
        given = {"credentials": credentials(tmp_path, server), **changes}
        remote = await open_remote(url, options, machinery(bridge, tmp_path, **given))
        remotes.append(remote)
        return remote

    yield open_one
    for remote in remotes:
        await remote.close()


def smb_threads() -> list[str]:
    """Those of remotes, and of the library's connections."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name == "smb" or name.startswith("msg_worker")]


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("smb://host", {}),
        ("smb://host/", {}),
        ("smb:///share/x", {}),
        ("smb://host/share/../x", {}),
        ("smb://host/share/a:b", {}),
        ("smb://host/share", {"encrypt": "maybe"}),
        ("smb://host/share", {"auth": "trust"}),
        ("smb://host/share", {"speed": "high"}),
        ("smb://me:hidden@host/share", {}),
        ("smb://host/share", {"password": "hidden"}),
    ],
)
async def test_bad_urls(url: str, options: dict[str, str], bridge: Bridge, tmp_path: Path):
    with pytest.raises(BadUrl) as caught:
        await open_remote(url, options, machinery(bridge, tmp_path))
    assert "hidden" not in str(caught.value)


async def test_roots(server: Samba, opened):
    below = await opened(server.url("d"))
    assert list(await entries(below)) == [b"in it"]
    assert (await below.stat(ROOT)).kind is Kind.DIRECTORY
    single = await opened(server.url("f"))
    entry = await single.stat(ROOT)
    assert (entry.key, entry.kind, entry.size) == (b"", Kind.FILE, 10)
    assert await single.read(ROOT, entry.version, 3, 4) == b"3456"
    with pytest.raises(Unsupported):
        await entries(single)


# Who may come


async def test_logins(server: Samba, opened, tmp_path: Path):
    nobody = await opened(server.url(), credentials=Credentials())
    with pytest.raises(Denied, match="credentials file"):
        await nobody.stat(b"f")
    path = tmp_path / "wrong.toml"
    path.write_text('["127.0.0.1"]\npassword = "never shown"\n')
    path.chmod(0o600)
    wrong = await opened(server.url(), credentials=Credentials(path))
    with pytest.raises(Denied, match="cannot log in") as caught:
        await wrong.stat(b"f")
    assert "never shown" not in str(caught.value)
    # Put right, it works without a restart.
    path.write_text(f'["127.0.0.1"]\npassword = "{server.password}"\n')
    assert (await wrong.stat(b"f")).size == 10


async def test_shares_that_are_not_ours(server: Samba, opened):
    others = await opened(server.url(share="others"))
    with pytest.raises(Denied):
        await others.stat(b"f")
    missing = await opened(server.url(share="nothing"))
    with pytest.raises(Missing, match="no share"):
        await missing.stat(b"f")


async def test_a_share_that_is_read_only(server: Samba, opened):
    remote = await opened(server.url(share="frozen"))
    assert (await remote.read_whole(b"f", 10))[1] == b"0123456789"
    acts: list[Callable] = [
        lambda: remote.write(b"new", Held(b"x")),
        lambda: remote.delete(b"f"),
        lambda: remote.mkdir(b"new/"),
        lambda: remote.rename(b"f", b"new"),
        lambda: remote.set_attributes(b"f", Attributes(mtime_ns=10**18)),
    ]
    for act in acts:
        with pytest.raises(Denied):
            await act()
    assert set(await entries(remote)) == {b"f", b"large", b"d/"}


@pytest.mark.parametrize(
    ("share", "encrypt", "encrypted"),
    [("data", "false", False), ("data", "true", True), ("secret", "false", True)],
)
async def test_encryption(share: str, encrypt: str, encrypted: bool, server: Samba, opened):
    remote = await opened(server.url(share=share), {"encrypt": encrypt})
    version = (await remote.stat(b"large")).version
    assert await remote.read(b"large", version, 0, len(LARGE)) == LARGE
    link = remote._link
    assert (link._session.encrypt_data or link.tree.encrypt_data) == encrypted
    assert link._session.signing_required or link._session.encrypt_data


async def test_an_answer_without_a_signature_is_refused(
    server: Samba, opened, monkeypatch: pytest.MonkeyPatch
):
    remote = await opened(server.url())
    entry = await remote.stat(b"f")
    # What the library would believe: the flag is gone, and the signature with it.
    real = remote._link._connection.transport.recv

    def stripped(timeout: float) -> bytes:
        message = bytearray(real(timeout) or b"")
        if message:
            flags = struct.unpack_from("<I", message, 16)[0]
            struct.pack_into("<I", message, 16, flags & ~0x8)
            message[48:64] = bytes(16)
        return bytes(message)

    monkeypatch.setattr(remote._link._connection.transport, "recv", stripped)
    await remote.read(b"f", entry.version, 0, 10)  # its answer was waited for already
    with pytest.raises((Garbled, Unreachable)):
        await remote.read(b"f", entry.version, 0, 10)
    assert await remote.read(b"f", entry.version, 0, 10) == b"0123456789"  # on a new connection


# What others do


async def test_a_file_that_somebody_locks(server: Samba, opened):
    remote, other = await opened(server.url()), await opened(server.url())
    await other.write(b"locked", Held(b"data"))

    def hold(link, call):
        from syncer.remotes import smb_calls

        request = smb_calls._create(link, "locked", smb_calls._READ)
        request["share_access"] = 0
        return link.exchange(call, request)

    await other._run(lambda call, link: hold(link, call), b"locked")
    with pytest.raises(Busy):
        await remote.read_whole(b"locked", 100)
    await other.close()  # and with it, as soon as the server notices, what it held
    with trio.fail_after(SETTLED_S):
        while True:
            with contextlib.suppress(Busy):
                assert (await remote.read_whole(b"locked", 100))[1] == b"data"
                break
    await remote.delete(b"locked")


async def test_names_that_smb_has_not(server: Samba, opened):
    remote = await opened(server.url("d"))
    (server.folder / "d" / "a:b").write_bytes(b"cannot be opened: a stream's name")
    try:
        assert set(await entries(remote)) == {b"in it"}
    finally:
        (server.folder / "d" / "a:b").unlink()
    for key in (b"../f", b"..\\f", b"in it:stream", b"a*", b"a//b", b"\xff", b"./in it"):
        with pytest.raises(Missing):
            await remote.stat(key)
        with pytest.raises(Unsupported):
            await remote.write(key, Held(b""))


async def test_a_usual_server_does_not_tell_cases_apart(server: Samba, opened):
    remote = await opened(server.url(share="usual"))
    assert (await remote.stat(b"LARGE")).size == len(LARGE)


async def test_nothing_is_left_when_the_connection_breaks_while_writing(server: Samba, opened):
    remote = await opened(server.url("d"))

    class Cutting(Held):
        async def read(self, offset: int, length: int) -> bytes:
            if offset:
                remote._link.sever()
            return await super().read(offset, length)

    with pytest.raises(Unreachable):
        await remote.write(b"new", Cutting(b"x" * (9 * MIB)))
    await eventually(lambda: os.listdir(server.folder / "d") == ["in it"])
    assert set(await entries(remote)) == {b"in it"}


# Silence


async def test_a_frozen_server(server: Samba, opened):
    remote = await opened(server.url(), **IMPATIENT)
    fresh = await opened(server.url(), **IMPATIENT)
    version = (await remote.stat(b"large")).version
    acts: list[Callable] = [
        lambda: remote.stat(b"f"),
        lambda: entries(remote),
        lambda: remote.read(b"large", version, 0, MIB),
        lambda: remote.read(b"large", version, 0, len(LARGE)),
        lambda: remote.write(b"new", Held(LARGE)),
        lambda: fresh.stat(b"f"),
    ]
    server.freeze()
    try:
        with trio.move_on_after(0.05) as scope:  # given up long before the deadline
            await remote.read(b"large", version, 0, MIB)
        assert scope.cancelled_caught
        with trio.fail_after(CONNECT_TIMEOUT_S + 2 * READ_TIMEOUT_S + 2):
            async with trio.open_nursery() as nursery:

                async def fails(act: Callable) -> None:
                    with pytest.raises(Unreachable):
                        await act()

                for act in acts:
                    nursery.start_soon(fails, act)
    finally:
        server.thaw()
    for each in (remote, fresh):
        assert await each.read(b"large", version, MIB, 10) == LARGE[MIB : MIB + 10]
        await each.close()
    assert set(os.listdir(server.folder)) == {"f", "large", "d"}
    await eventually(lambda: not smb_threads())


async def test_closing_while_the_server_is_frozen(server: Samba, opened):
    remote = await opened(server.url())
    version = (await remote.stat(b"large")).version
    server.freeze()
    try:
        with trio.fail_after(READ_TIMEOUT_S):
            async with trio.open_nursery() as nursery:

                async def fails() -> None:
                    with pytest.raises((Unreachable, Unsupported)):
                        await remote.read(b"large", version, 0, len(LARGE))

                nursery.start_soon(fails)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await remote.close()
        await eventually(lambda: not smb_threads())
    finally:
        server.thaw()


async def test_a_restarted_server(server: Samba, opened):
    remote = await opened(server.url())
    assert (await remote.stat(b"f")).size == 10
    server.stop()
    assert not listens(server.port)
    server.start()
    await eventually(lambda: not remote._link.alive)
    assert (await remote.stat(b"f")).size == 10


async def test_many_give_up(server: Samba, opened):
    """What is given up is taken off the connection, which lives on."""
    remote = await opened(server.url())
    version = (await remote.stat(b"large")).version
    link = remote._link
    for n in range(40):
        with trio.move_on_after(0.0005 * (n % 8)):
            if n % 3:
                await remote.read(b"large", version, 0, len(LARGE))
            else:
                await entries(remote)
    for _ in range(3):  # the last answers come in the meantime
        assert await remote.read(b"large", version, 0, len(LARGE)) == LARGE
    assert remote._link is link
    assert len(link._connection.outstanding_requests) <= len(link._left)
    assert not link._under_way
    assert remote._threads.running == 0


# The wire


def directory(entries: list[tuple[str, int, int, int, int]]) -> bytes:
    """An answer as MS-FSCC 2.4.18 has it: name, written, size, attributes, tag."""
    parts = []
    for position, (name, written, size, attributes, tag) in enumerate(entries):
        raw = name.encode("utf-16-le", "surrogatepass")
        head = struct.pack(
            "<QQQQQQIIIIQ", 0, 7, written, 0, size, 4096, attributes, len(raw), tag, 0, 99
        )
        body = struct.pack("<I", position) + head + raw
        length = len(body) + 4
        padded = (length + 7) // 8 * 8
        last = position == len(entries) - 1
        parts.append(struct.pack("<I", 0 if last else padded) + body + b"\0" * (padded - length))
    return b"".join(parts)


NAMES = st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."}
)
ENTRIES = st.lists(
    st.tuples(NAMES, st.integers(0, 2**62), st.integers(0, 2**62), st.sampled_from([0, 16, 1024])),
    min_size=1,
    max_size=8,
)


@given(ENTRIES)
def test_directories(found):
    given_ = [(".", 0, 0, 16, 0), *((*each, 5) for each in found)]
    parsed = list(smb_wire.parse_directory(directory(given_)))
    assert [(f.name, f.written, f.size, f.attributes) for f in parsed] == found
    assert all(f.tag == (5 if f.attributes & 1024 else 0) for f in parsed)


@given(ENTRIES, st.data())
def test_broken_directories_are_garbled_or_end(found, data):
    buffer = bytearray(directory([(*each, 0) for each in found]))
    at = data.draw(st.integers(0, len(buffer) - 1))
    buffer[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(buffer)))
    with contextlib.suppress(Garbled):
        assert len(list(smb_wire.parse_directory(bytes(buffer[:cut])))) <= len(buffer)


@given(st.text(st.characters(categories=["L", "N", "Cs"]), min_size=1))
def test_names_come_back(name: str):
    key = smb_wire.encode_name(name)
    assert smb_wire.decode_key(key) == name
    assert smb_wire.decode_key(key + b"/") == name


def symlink(target: str, shown: str, tag: int = 0xA000000C) -> bytes:
    """MS-FSCC 2.1.2.4 and 2.1.2.5."""
    real, print_ = target.encode("utf-16-le"), shown.encode("utf-16-le")
    head = struct.pack("<HHHH", 0, len(real), len(real), len(print_))
    body = head + (b"\1\0\0\0" if tag == 0xA000000C else b"") + real + print_
    return struct.pack("<IHH", tag, len(body), 0) + body


@pytest.mark.parametrize(
    ("data", "target"),
    [
        (symlink("..\\up\\é", "..\\up\\é"), "../up/é".encode()),
        (symlink("\\??\\C:\\x", "C:\\x"), b"C:/x"),
        (symlink("\\??\\C:\\x", ""), b"C:/x"),
        (symlink("\\??\\C:\\x", "C:\\x", tag=0xA0000003), b"C:/x"),
        (struct.pack("<IHHI", 0xA000001D, 7, 0, 2) + b"a/b", b"a/b"),
        (struct.pack("<IHH", 0x80000013, 4, 0) + b"dedu", None),
    ],
)
def test_links(data: bytes, target: bytes | None):
    assert smb_wire.parse_link(data) == target


@given(st.binary(max_size=60), st.sampled_from([0xA000000C, 0xA0000003, 0xA000001D]))
def test_broken_links(body: bytes, tag: int):
    for data in (body, struct.pack("<IHH", tag, len(body), 0) + body):
        with contextlib.suppress(Garbled):
            target = smb_wire.parse_link(data)
            assert target is None or isinstance(target, bytes)


@given(st.integers(-(10**18), 4 * 10**18))
def test_times(ns: int):
    assert smb_wire.time_ns(smb_wire.time_ticks(ns)) == ns // 100 * 100


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0xC000007F, Full),
        (0xC0000044, Full),
        (0xC0000043, Busy),
        (0xC0000072, Denied),
        (0xC0000203, Unreachable),
        (0xC0000257, Unsupported),
        (0xC0DEC0DE, Garbled),
    ],
)
def test_statuses_that_no_server_here_gives(status: int, error: type[RemoteError]):
    assert type(smb_status.refused(status, "smb://x", "me")) is error


def test_the_library_still_has_what_we_override():
    for name in ("receive", "verify_signature", "_calculate_credit_charge", "send_compound"):
        assert callable(getattr(Connection, name))


# Bad links


@pytest.mark.parametrize("how", [How.RESET, How.CLOSE, How.GARBLE, How.STALL])
async def test_a_bad_link_gives_the_right_bytes_or_an_error(how: How, server: Samba, opened):
    with Proxy(server.port) as proxy:
        url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
        remote = await opened(url, read_timeout_s=0.3, connect_timeout_s=0.3)
        direct = await opened(server.url())
        version = (await direct.stat(b"large")).version
        chance = random.Random(how.value)
        failures = 0
        for _ in range(12 if how is How.STALL else 30):  # each costs the time limit
            after, up = int(10 ** chance.uniform(0, 6.5)), chance.random() < 0.3
            proxy.change(cut=Cut(how, after, up=up, times=1))
            try:
                assert await remote.read(b"large", version, 0, len(LARGE)) == LARGE
                assert await remote.read(b"large", version, 5, 100) == LARGE[5:105]
                assert set(await entries(remote)) == {b"f", b"large", b"d/"}
                assert (await remote.stat(b"f")).size == 10
            except (Unreachable, Garbled, Denied):  # Denied: what is garbled while logging in
                failures += 1
        assert failures > 5
        proxy.heal()
        fresh = await opened(url)
        assert await fresh.read(b"large", version, 0, len(LARGE)) == LARGE
        for each in (direct, remote, fresh):
            await each.close()
    await eventually(lambda: not smb_threads())


async def test_round_trips(server: Samba, opened):
    with Proxy(server.port, faults=Faults(delay_s=0.1)) as proxy:
        url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
        remote = await opened(url)
        version = (await remote.stat(b"large")).version
        works: dict[str, tuple[Callable, int]] = {
            "stat": (lambda: remote.stat(b"f"), 1),
            "a block": (lambda: remote.read(b"large", version, MIB, MIB), 1),
            "a small file": (lambda: remote.read_whole(b"f", 100), 1),
            # Open, ask for all parts, close.
            "several blocks": (lambda: remote.read(b"large", version, 0, 3 * MIB), 3),
            # Open and ask, ask whether that was all, close.
            "a directory": (lambda: entries(remote), 3),
        }
        for name, (act, trips) in works.items():
            before = proxy.counts
            await act()
            assert (proxy.counts - before).turns <= trips, name
        await remote.close()
