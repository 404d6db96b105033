"""What SFTP has that the suite of all remotes does not ask for: logins, host keys, round trips."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import BadUrl, Changed, Denied, Unreachable
from syncer.remotes.held import Held
from syncer.remotes.remote import ROOT, Kind, Remote
from syncer.remotes.sftp import open_remote
from tests.remotes.kinds import CONNECT_TIMEOUT_S, IMPATIENT, READ_TIMEOUT_S, machinery
from tests.remotes.test_conformance import entries, read_all
from tests.servers.openssh import OpenSsh, agent, openssh, password_user
from tests.servers.proxy import Counts, Cut, How, Proxy

MIB = 1 << 20
LIMIT_S = CONNECT_TIMEOUT_S + READ_TIMEOUT_S + 2


@pytest.fixture
def sshd() -> Iterator[OpenSsh]:
    """A server of the test's own."""
    with openssh() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is served."""
    (tmp_path / "f").write_bytes(b"data")
    return tmp_path


async def opened(sshd: OpenSsh, bridge: Bridge, path: Path, options=None, **changes) -> Remote:
    """A remote on a path."""
    given = machinery(bridge, sshd.home, **changes)
    return await open_remote(sshd.url(path), options or {}, given)


# Logins


async def test_the_users_key(sshd: OpenSsh, folder: Path, bridge: Bridge):
    remote = await opened(sshd, bridge, folder)
    assert await read_all(remote, b"f") == b"data"
    await remote.close()


async def test_a_key_that_is_named(sshd: OpenSsh, folder: Path, bridge: Bridge):
    elsewhere = sshd.home / "elsewhere"
    sshd.key.rename(elsewhere)
    for named in (str(elsewhere), "~/elsewhere"):
        remote = await opened(sshd, bridge, folder, {"identity": named})
        assert await read_all(remote, b"f") == b"data"
        await remote.close()


async def test_a_key_with_a_passphrase(sshd: OpenSsh, folder: Path, bridge: Bridge):
    key = sshd.key.with_name("id_ecdsa")
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-m", "PEM", "-N", "open sesame", "-f", key]
    subprocess.run(command, check=True)  # noqa: ASYNC221
    sshd.key.unlink()
    (sshd.state / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    without = await opened(sshd, bridge, folder)
    with pytest.raises(Denied, match="login was refused"):
        await without.stat(ROOT)
    file = credentials(sshd.home, '["127.0.0.1"]\npassphrase = "open sesame"\n')
    remote = await opened(sshd, bridge, folder, credentials=Credentials(file))
    assert await read_all(remote, b"f") == b"data"
    await remote.close()


def credentials(folder: Path, text: str) -> Path:
    """A credentials file."""
    file = folder / "credentials.toml"
    file.touch(mode=0o600)
    file.write_text(text)
    return file


async def test_the_agents_key(sshd: OpenSsh, folder: Path, bridge: Bridge):
    with agent(sshd.key) as socket:
        sshd.key.unlink()
        remote = await opened(sshd, bridge, folder, environment={"SSH_AUTH_SOCK": str(socket)})
        assert await read_all(remote, b"f") == b"data"
        await remote.close()


async def test_the_ssh_configuration_counts(sshd: OpenSsh, folder: Path, bridge: Bridge):
    elsewhere = sshd.home / "elsewhere"
    sshd.key.rename(elsewhere)
    (sshd.home / ".ssh" / "config").write_text(
        f"Host somewhere\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {elsewhere}\n"
    )
    remote = await open_remote(f"sftp://somewhere{folder}", {}, machinery(bridge, sshd.home))
    assert await read_all(remote, b"f") == b"data"
    await remote.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a system user")
async def test_a_password(folder: Path, bridge: Bridge):
    with password_user() as (name, password), openssh(passwords=True) as sshd:
        sshd.key.unlink()
        folder = Path("/etc")
        url = sshd.url(folder, name)
        section = f'["{sshd.url(user=name)}"]\n'
        file = credentials(sshd.home, section + f'password = "{password}"\n')
        given = machinery(bridge, sshd.home, credentials=Credentials(file))
        remote = await open_remote(url, {}, given)
        assert (await remote.stat(b"passwd")).kind is Kind.FILE
        await remote.close()

        file.write_text(section + 'password = "wrong one"\n')
        wrong = await open_remote(url, {}, given)
        with pytest.raises(Denied, match="login was refused") as refused:
            await wrong.stat(b"passwd")
        assert "wrong one" not in str(refused.value)


async def test_a_login_that_is_refused(sshd: OpenSsh, folder: Path, bridge: Bridge):
    (sshd.state / "authorized_keys").write_text("")
    remote = await opened(sshd, bridge, folder)
    with pytest.raises(Denied, match="login was refused"):
        await remote.stat(b"f")
    assert bridge.running == 0


@pytest.mark.parametrize("url", ["sftp:///path", "sftp://u:secret@host/path"])
async def test_urls_that_make_no_sense(url: str, tmp_path: Path, bridge: Bridge):
    with pytest.raises(BadUrl) as refused:
        await open_remote(url, {}, machinery(bridge, tmp_path))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["password", "compression"])
async def test_options_that_make_no_sense(name: str, tmp_path: Path, bridge: Bridge):
    with pytest.raises(BadUrl, match=name) as refused:
        await open_remote("sftp://host/", {name: "hush"}, machinery(bridge, tmp_path))
    assert "hush" not in str(refused.value)


# Host keys


async def refusal(remote: Remote) -> str:
    """Why it is refused."""
    with pytest.raises(Denied) as denied:
        await remote.stat(b"f")
    return str(denied.value)


def accept(message: str) -> None:
    """Run the command in a message."""
    found = re.search(r"(?:right one|on purpose): (.*)$", message)
    assert found is not None, message
    subprocess.run(["bash", "-c", found[1]], check=True, capture_output=True)


@pytest.mark.parametrize("state", ["no folder", "no file", "others"])
async def test_an_unknown_host_key(state: str, sshd: OpenSsh, folder: Path, bridge: Bridge):
    if state == "others":
        key = sshd.key.with_suffix(".pub").read_text()
        sshd.known_hosts.write_text(f"elsewhere {key}127.0.0.1 {key}")
    else:
        sshd.known_hosts.unlink()
    if state == "no folder":
        (sshd.home / ".ssh").rename(sshd.home / "keys")
    remote = await opened(sshd, bridge, folder, {"identity": str(sshd.key)})
    if state == "no folder":
        remote = await opened(sshd, bridge, folder, {"identity": "~/keys/id_ed25519"})
    message = await refusal(remote)
    assert "is not known (ssh-ed25519 SHA256:" in message or state == "others"
    accept(message)
    assert await read_all(remote, b"f") == b"data"
    await remote.close()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
async def test_a_changed_host_key(kind: str, sshd: OpenSsh, folder: Path, bridge: Bridge):
    remote = await opened(sshd, bridge, folder)
    assert await read_all(remote, b"f") == b"data"
    sshd.new_host_key(kind)
    sshd.restart()
    message = await refusal(remote)
    assert "has changed" in message
    assert "ssh-keygen -f" in message
    accept(message)
    assert await read_all(remote, b"f") == b"data"
    await remote.close()


async def test_a_revoked_host_key(sshd: OpenSsh, folder: Path, bridge: Bridge):
    sshd.known_hosts.write_text("@revoked " + sshd.known_hosts.read_text())
    assert "revoked" in await refusal(await opened(sshd, bridge, folder))


async def test_the_ssh_configuration_cannot_switch_checking_off(
    sshd: OpenSsh, folder: Path, bridge: Bridge
):
    sshd.known_hosts.unlink()
    (sshd.home / ".ssh" / "config").write_text(
        "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n"
    )
    assert "is not known" in await refusal(await opened(sshd, bridge, folder))


# Connections that break


async def test_a_server_that_was_restarted(sshd: OpenSsh, folder: Path, bridge: Bridge):
    data = os.urandom(4 * MIB)
    (folder / "large").write_bytes(data)
    remote = await opened(sshd, bridge, folder)
    version = (await remote.stat(b"large")).version
    assert await remote.read(b"large", version, 0, MIB) == data[:MIB]
    sshd.restart()
    assert await remote.read(b"large", version, MIB, MIB) == data[MIB : 2 * MIB]
    await remote.close()


async def test_a_frozen_server(sshd: OpenSsh, folder: Path, bridge: Bridge):
    remote = await opened(sshd, bridge, folder, **IMPATIENT)
    version = (await remote.stat(b"f")).version
    sshd.freeze()
    try:
        with trio.fail_after(LIMIT_S), pytest.raises(Unreachable, match="no answer"):
            await remote.read(b"f", version, 0, 4)
        # Its kernel still accepts connections.
        with trio.fail_after(LIMIT_S), pytest.raises(Unreachable, match="no connection"):
            await remote.stat(b"f")
    finally:
        sshd.thaw()
    assert await remote.read(b"f", version, 0, 4) == b"data"
    await remote.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_giving_up_on_a_frozen_server(
    connected: bool, sshd: OpenSsh, folder: Path, bridge: Bridge
):
    remote = await opened(sshd, bridge, folder, connect_timeout_s=100.0, read_timeout_s=100.0)
    if connected:
        await remote.stat(b"f")
    sshd.freeze()
    try:
        with trio.fail_after(LIMIT_S):
            with trio.move_on_after(0.1) as scope:
                await remote.stat(b"f")
            assert scope.cancelled_caught
            assert bridge.running == 0
            await remote.close()
    finally:
        sshd.thaw()


async def test_one_caller_that_gives_up_leaves_the_connection_to_others(
    sshd: OpenSsh, folder: Path, bridge: Bridge
):
    with Proxy(sshd.port) as proxy:
        remote = await through(proxy, sshd, folder, bridge)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.stat, b"f")
            with trio.move_on_after(0.001):
                await remote.stat(b"f")
        assert proxy.counts.connections == 1
        await remote.close()


@pytest.mark.parametrize("how", [How.RESET, How.CLOSE, How.GARBLE])
async def test_a_connection_that_breaks_in_the_middle(
    how: How, sshd: OpenSsh, folder: Path, bridge: Bridge
):
    data = os.urandom(2 * MIB)
    (folder / "large").write_bytes(data)
    with Proxy(sshd.port) as proxy:
        remote = await through(proxy, sshd, folder, bridge)
        version = (await remote.stat(b"large")).version
        proxy.change(cut=Cut(how, after=100_000))
        with pytest.raises(Unreachable):
            await remote.read(b"large", version, 0, 2 * MIB)
        # An old connection that breaks is replaced in silence, a new one is not.
        assert proxy.counts.connections == 2
        proxy.change(cut=None)
        assert await remote.read(b"large", version, 0, 2 * MIB) == data
        proxy.change(cut=Cut(how, after=100_000, up=True))
        with pytest.raises(Unreachable):
            await remote.write(b"large", Held(data[::-1]))
        proxy.change(cut=None)
        assert await read_all(remote, b"large") == data
        await remote.close()


# Round trips


async def through(proxy: Proxy, sshd: OpenSsh, folder: Path, bridge: Bridge) -> Remote:
    """A remote behind a proxy."""
    key = sshd.known_hosts.read_text().split()
    sshd.known_hosts.write_text(f"[127.0.0.1]:{proxy.port} {key[1]} {key[2]}\n")
    url = f"sftp://{sshd.user}@127.0.0.1:{proxy.port}{folder}"
    return await open_remote(url, {}, machinery(bridge, sshd.home))


class Turns:
    """Round trips of what is done inside."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.counts = Counts()

    def __enter__(self) -> Self:
        self._before = self._proxy.counts
        return self

    def __exit__(self, *_: object) -> None:
        self.counts = self._proxy.counts - self._before


async def test_what_costs_one_round_trip(sshd: OpenSsh, folder: Path, bridge: Bridge):
    data = os.urandom(8 * MIB)
    (folder / "large").write_bytes(data)
    for n in range(250):
        (folder / f"small {n}").write_bytes(b"small")
    with Proxy(sshd.port) as proxy:
        # Answers that take their time come after all questions of a turn, as in a real network.
        proxy.change(delay_s=0.01)
        remote = await through(proxy, sshd, folder, bridge)
        with Turns(proxy) as turns:
            version = (await remote.stat(b"large")).version
        with Turns(proxy) as turns:
            assert await remote.read(b"large", version, 3 * MIB, MIB) == data[3 * MIB : 4 * MIB]
        assert turns.counts.turns == 1  # OPEN, READ and FSTAT
        assert turns.counts.down < 1.01 * MIB
        with Turns(proxy) as turns:
            assert await remote.read(b"large", version, 7 * MIB, MIB) == data[7 * MIB :]
        assert turns.counts.turns == 1
        with Turns(proxy) as turns:
            assert (await remote.read_whole(b"small 1", MIB))[1] == b"small"
        assert turns.counts.turns == 1
        assert turns.counts.down < 2000
        with Turns(proxy) as turns:
            assert len(await entries(remote)) == 252
        assert turns.counts.turns == 1
        with Turns(proxy) as turns:
            await remote.stat(b"small 2")
        assert turns.counts.turns == 1
        await remote.close()


async def test_many_files_do_not_use_up_handles(sshd: OpenSsh, folder: Path, bridge: Bridge):
    for n in range(200):
        (folder / f"{n}").write_bytes(b"%d" % n)
    remote = await opened(sshd, bridge, folder)

    async def read(n: int) -> None:
        key = b"%d" % n
        version = (await remote.stat(key)).version
        assert await remote.read(key, version, 0, len(key)) == key

    async with trio.open_nursery() as nursery:
        for n in range(200):
            nursery.start_soon(read, n)
    await entries(remote)
    open_there = [
        os.readlink(f"/proc/{pid}/fd/{number}")
        for pid in sshd.sessions()
        for number in os.listdir(f"/proc/{pid}/fd")
    ]
    assert 0 < sum(path.startswith(str(folder)) for path in open_there) <= 33
    await remote.close()


# The rest


async def test_the_home_of_the_login(sshd: OpenSsh, bridge: Bridge):
    given = machinery(bridge, sshd.home)
    home = pwd.getpwuid(os.getuid()).pw_dir
    for url in (sshd.url("/~/"), sshd.url("/~")):
        remote = await open_remote(url, {}, given)
        assert {key.strip(b"/") for key in await entries(remote)} == {
            os.fsencode(name) for name in os.listdir(home)
        }
        await remote.close()


async def test_no_name_leads_out(sshd: OpenSsh, folder: Path, bridge: Bridge):
    (folder / "d").mkdir()
    remote = await opened(sshd, bridge, folder / "d")
    for key in (b"../f", b"..", b"./f", b"a//b"):
        with pytest.raises(Exception, match="no file can be called"):
            await remote.stat(key)
        with pytest.raises(Exception, match="no file can be called"):
            await remote.write(key, Held(b""))
    assert os.listdir(folder / "d") == []
    await remote.close()


async def test_a_symlink_is_no_directory(sshd: OpenSsh, folder: Path, bridge: Bridge):
    (folder / "d").mkdir()
    (folder / "d" / "l").symlink_to(folder)
    (folder / "d" / "f").symlink_to(folder / "f")
    remote = await opened(sshd, bridge, folder / "d")
    with pytest.raises(Exception, match="is no directory"):
        await entries(remote, b"l/")
    version = (await remote.stat(b"f")).version
    with pytest.raises(Changed):
        await remote.read(b"f", version, 0, 4)
    await remote.close()


@pytest.mark.parametrize("name", ["f", "link"])
async def test_a_single_file_is_a_root(name: str, sshd: OpenSsh, folder: Path, bridge: Bridge):
    (folder / "link").symlink_to("f")
    remote = await opened(sshd, bridge, folder / name)
    entry = await remote.stat(ROOT)
    assert (entry.key, entry.kind, entry.size) == (b"", Kind.FILE, 4)
    assert await remote.read(ROOT, entry.version, 1, 2) == b"at"
    assert await read_all(remote, ROOT) == b"data"
    with pytest.raises(Exception, match="is no directory"):
        await entries(remote)
    await remote.close()
