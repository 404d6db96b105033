"""The way to an SFTP server: connecting, logging in, trusting its key. For the bridge's loop.

There is one connection at a time. It is made when it is first needed and again when it has broken;
callers that need it at the same time wait for the same attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.config import SSHClientConfig
from asyncssh.public_key import get_default_public_key_algs

from syncer.remotes.errors import Busy, Denied, RemoteError, Unreachable, Unsupported
from syncer.remotes.machinery import Machinery
from syncer.remotes.sftp_session import SftpSession
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl

# AES-GCM first: 228 MB/s against 132 with ChaCha20, asyncssh's own first choice.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_KEY_FILES = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
_WINDOW = 16 << 20  # bytes the server may send ahead: 40 ms of 400 MB/s
_PACKET = 64 << 10  # bytes
_KEEPALIVE_S = 15.0
_CLOSE_S = 1.0


@dataclass(slots=True)
class _Trust:
    """The known hosts, and what they said about one server."""

    files: Sequence[Path]
    name: str = ""  # as in known_hosts
    known_in: list[Path] = field(default_factory=list)
    offered: asyncssh.SSHKey | None = None  # that nobody knows
    unreadable: str = ""

    def match(self, host: str, address: str, port: int | None) -> Sequence[Sequence[Any]]:
        """Trusted keys, authorities and revoked keys, and four kinds more: asyncssh asks."""
        self.name = host if port in {None, 22} else f"[{host}]:{port}"
        self.known_in = []
        found: list[list[Any]] = [[] for _ in range(7)]
        for file in self.files:
            try:
                hosts = asyncssh.read_known_hosts(str(file))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, asyncssh.Error) as error:
                # Raised when the connection fails for it, since here nobody would catch it.
                self.unreadable = f"{file}: known hosts cannot be read: {error}"
                continue
            matched = hosts.match(host, address, port)
            for have, more in zip(found, matched, strict=True):
                have.extend(more)
            if matched[0] or matched[1]:
                self.known_in.append(file)
        return found

    def algorithms(self, host: str, port: int) -> list[str]:
        """Kinds of host keys to ask for, those first that are known; empty: the usual ones.

        All others too, since a server that has changed would just hang up otherwise.
        """
        trusted, authorities = self.match(host, "", None if port == 22 else port)[:2]
        known = [algorithm for key in trusted for algorithm in key.sig_algorithms]
        if not known or authorities:
            return []
        both = dict.fromkeys([*known, *get_default_public_key_algs()])
        return [algorithm.decode() for algorithm in both]


class _Keys(list[str]):
    """Files of keys. Never false, even without any: else asyncssh would use its own defaults."""

    def __bool__(self) -> bool:
        return True


class _Client(asyncssh.SSHClient):
    """Refuses keys that are not trusted, and remembers them."""

    def __init__(self, trust: _Trust) -> None:
        self._trust = trust

    def validate_host_public_key(
        self,
        host: str,  # noqa: ARG002
        addr: str,  # noqa: ARG002
        port: int,  # noqa: ARG002
        key: asyncssh.SSHKey,
    ) -> bool:
        """Asked for a key that is not among the trusted."""
        self._trust.offered = key
        return False


class Link:
    """One server, one login."""

    def __init__(self, url: RemoteUrl, options: Mapping[str, str], machinery: Machinery) -> None:
        self._url = url
        self._options = options
        self._machinery = machinery
        self._connection: asyncssh.SSHClientConnection | None = None
        self._session: SftpSession | None = None
        self._attempt: asyncio.Task[SftpSession] | None = None
        self._waiters = 0

    @property
    def working(self) -> SftpSession | None:
        """The session that there is, as far as anybody knows."""
        alive = self._session is not None and self._session.lost is None
        return self._session if alive else None

    async def session(self) -> SftpSession:
        """That one, or a new one. Raises Unreachable, Denied, Unsupported, Busy."""
        if (session := self.working) is not None:
            return session
        if self._attempt is None:
            self._attempt = asyncio.create_task(self._connect())
        attempt = self._attempt
        self._waiters += 1
        try:
            self._session = await asyncio.shield(attempt)
        finally:
            self._waiters -= 1
            if attempt.done():
                self._attempt = None if self._attempt is attempt else self._attempt
            elif not self._waiters:  # nobody wants it any more
                self._attempt = None
                attempt.cancel()
                await asyncio.wait([attempt])
        return self._session

    def drop(self, session: SftpSession, error: RemoteError) -> None:
        """Give a session up that does not answer; the next call connects again."""
        session.drop(error)
        if session is self._session and self._connection is not None:
            self._connection.abort()

    async def close(self) -> None:
        """End it, in a second whatever the server does."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(_CLOSE_S):
                    await connection.wait_closed()
                    return
            connection.abort()

    # Connecting

    async def _connect(self) -> SftpSession:
        """Connect, log in and start a session."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        trust = _Trust(self._machinery.known_hosts)
        connection: asyncssh.SSHClientConnection | None = None
        try:
            async with asyncio.timeout(self._machinery.connect_timeout_s):
                connection = await asyncssh.connect(**self._arguments(trust))
                session = await self._start(connection)
        except BaseException as error:
            if connection is not None:
                connection.abort()
            if isinstance(error, OSError | asyncssh.Error | ValueError):
                raise self._translated(error, trust) from None
            raise
        self._connection = connection
        return session

    async def _start(self, connection: asyncssh.SSHClientConnection) -> SftpSession:
        version = str(connection.get_extra_info("server_version") or "")
        where, openssh = str(self._url), "OpenSSH" in version
        _, session = await connection.create_session(
            lambda: SftpSession(where, openssh=openssh),
            subsystem="sftp",
            encoding=None,
            window=_WINDOW,
            max_pktsize=_PACKET,
        )
        assert isinstance(session, SftpSession)
        await session.start()
        return session

    def _arguments(self, trust: _Trust) -> dict[str, Any]:
        """For asyncssh.connect."""
        url, machinery = self._url, self._machinery
        login = machinery.credentials.find(url)
        files = [str(path) for path in machinery.ssh_config if path.is_file()]
        user = url.user or login.get("user")
        config = SSHClientConfig.load(
            None, files, False, False, False, "", user or (), url.host, url.port or ()
        )
        arguments: dict[str, Any] = {
            "host": url.host,
            "config": files,
            "client_factory": lambda: _Client(trust),
            "known_hosts": trust.match,
            "encryption_algs": _CIPHERS,
            "compression_algs": None,
            "x509_trusted_certs": None,
            "gss_auth": False,
            "gss_kex": False,
            "client_host_keysign": False,
            "agent_forwarding": False,
            "send_env": None,
            "request_pty": False,
            "password": login.get("password"),
            "passphrase": login.get("passphrase"),
            "keepalive_interval": _KEEPALIVE_S,
            "connect_timeout": None,
            "login_timeout": 0,  # there is one for everything
        }
        if url.port is not None:
            arguments["port"] = url.port
        if user is not None:
            arguments["username"] = user
        if config.get("IdentityAgent") is None:
            arguments["agent_path"] = machinery.environment.get("SSH_AUTH_SOCK")
        if "identity" in self._options:
            arguments["client_keys"] = [str(self._home_path(self._options["identity"]))]
        elif config.get("IdentityFile") is None:
            paths = [machinery.home / ".ssh" / name for name in _KEY_FILES]
            arguments["client_keys"] = _Keys(str(path) for path in paths if path.is_file())
            arguments["ignore_encrypted"] = True
        host = str(config.get("HostKeyAlias") or config.get("Hostname") or url.host)
        port = int(str(url.port or config.get("Port") or 22))
        if algorithms := trust.algorithms(host, port):
            arguments["server_host_key_algs"] = algorithms
        return arguments

    def _home_path(self, text: str) -> Path:
        home = self._machinery.home
        return home / text.removeprefix("~/") if text.startswith("~/") else Path(text)

    # What went wrong

    def _translated(self, error: Exception, trust: _Trust) -> RemoteError:
        where = str(self._url)
        if isinstance(error, TimeoutError):
            timeout_s = self._machinery.connect_timeout_s
            return Unreachable(f"{where}: no connection in {timeout_s:g} s: is the host up?")
        if (untrusted := self._key_trouble(error, trust)) is not None:
            return untrusted
        if isinstance(error, asyncssh.PermissionDenied):
            return Denied(
                f"{where}: the login was refused: check the user's key, the agent, or the password "
                f"({CREDENTIALS_CURE})"
            )
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return Unsupported(f"{where}: no common algorithms: {error}")
        if isinstance(error, asyncssh.ChannelOpenError):
            if error.code == asyncssh.OPEN_RESOURCE_SHORTAGE:
                return Busy(f"{where}: too many sessions: {error.reason}")
            if error.code == asyncssh.OPEN_CONNECT_FAILED:  # asyncssh's own: the connection broke
                return Unreachable(f"{where}: the connection broke: {error.reason}")
            return Unsupported(f"{where}: the server offers no SFTP: {error.reason}")
        if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
            return Denied(f"{where}: the key of the login cannot be used: {error}")
        if isinstance(error, asyncssh.ConfigParseError):
            return Denied(f"{where}: the SSH configuration makes no sense: {error}")
        if isinstance(error, socket.gaierror):
            return Unreachable(f"{where}: the name of the host is not known: {error.strerror}")
        return Unreachable(f"{where}: {error or type(error).__name__}: is the server running?")

    def _key_trouble(self, error: Exception, trust: _Trust) -> Denied | None:
        """What is wrong with the server's key, if that is it."""
        if trust.unreadable:
            return Denied(trust.unreadable)
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            if "revoked" in str(error):
                return Denied(f"{self._url}: {error}")
            return self._untrusted(trust, str(error))
        no_key = isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in str(error).lower()
        if no_key and trust.known_in:
            return self._untrusted(trust, "it has no key of the kind that is known")
        return None

    def _untrusted(self, trust: _Trust, why: str) -> Denied:
        """Say how its key would become trusted; nobody but its owner can know whether it should."""
        target = self._machinery.known_hosts[0]
        quoted = shlex.quote(str(target))
        host, bracket, port = trust.name.removeprefix("[").partition("]:")
        scan = f"ssh-keyscan {f'-p {port} ' if bracket else ''}{shlex.quote(host)} >> {quoted}"
        if not target.parent.is_dir():
            scan = f"mkdir -m 700 -p {shlex.quote(str(target.parent))} && {scan}"
        offered = ""
        if trust.offered is not None:
            key = trust.offered
            offered = f" ({key.get_algorithm()} {key.get_fingerprint()})"
        if not trust.known_in:
            return Denied(
                f"{self._url}: the server's key is not known{offered}: {why}. If it is the right "
                f"one: {scan}"
            )
        remove = " && ".join(
            f"ssh-keygen -f {shlex.quote(str(file))} -R {shlex.quote(trust.name)}"
            for file in trust.known_in
        )
        return Denied(
            f"{self._url}: the server's key has changed{offered}: {why}. Somebody may be "
            f"listening. If it was replaced on purpose: {remove} && {scan}"
        )
