"""OpenSSH's sshd on a loopback port, with host keys of its own and SFTP only."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.processes import Process, free_port

_SSHD = "/usr/sbin/sshd"  # which insists on an absolute path
_SEPARATION = Path("/run/sshd")  # the folder that sshd wants when root starts it

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {host_key}
PidFile none
UsePAM no
StrictModes no
AuthorizedKeysFile {authorized_keys}
PermitRootLogin {root_login}
PasswordAuthentication {password}
KbdInteractiveAuthentication no
MaxStartups 200
MaxSessions 100
Subsystem sftp internal-sftp
LogLevel VERBOSE
{extra}
"""


@dataclass(slots=True)
class OpenSsh:
    """A running sshd, and a home with what a client needs to log in."""

    port: int
    user: str
    home: Path  # of the client: .ssh with the key id_ed25519 and known_hosts
    state: Path
    extra: str
    passwords: bool = False
    process: Process | None = field(default=None)

    def url(self, path: str | os.PathLike[str] = "/", user: str | None = None) -> str:
        """The URL of a path."""
        return f"sftp://{user or self.user}@127.0.0.1:{self.port}{os.fspath(path)}"

    @property
    def known_hosts(self) -> Path:
        """The client's."""
        return self.home / ".ssh" / "known_hosts"

    @property
    def key(self) -> Path:
        """The client's private key."""
        return self.home / ".ssh" / "id_ed25519"

    def start(self) -> None:
        """Start it, on the same port as before."""
        config = self.state / "sshd_config"
        config.write_text(
            _CONFIG.format(
                port=self.port,
                host_key=self.state / "host_key",
                authorized_keys=self.state / "authorized_keys",
                root_login="yes" if self.user == "root" else "no",
                password="yes" if self.passwords else "no",
                extra=self.extra,
            )
        )
        self.process = Process([_SSHD, "-D", "-e", "-f", config], self.state / "sshd.log")
        self.process.wait_ready(self._greets)

    def _greets(self) -> bool:
        """True if it says what it is: accepting a connection is not enough."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as probe:
                return probe.recv(4) == b"SSH-"
        except OSError:
            return False

    def stop(self) -> None:
        """End it and its connections."""
        if self.process is None:
            return
        # In order, so that each reaps its children and none is left to somebody else's init.
        self.process.signal(signal.SIGCONT)
        self.process.wait_ready(self._end_sessions)
        self.process.kill()
        self.process = None

    def _end_sessions(self) -> bool:
        """Tell them to end, again and again: they may be told just before they go to sleep."""
        sessions = self.sessions()
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)
        return not sessions

    def sessions(self) -> list[int]:
        """Its processes that serve connections."""
        assert self.process is not None
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    todo += map(int, (task / "children").read_text().split())
            found.append(pid)
        return found[1:]

    def restart(self) -> None:
        """Break every connection."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop answering; connections stay open, and new ones are accepted by the kernel."""
        assert self.process is not None
        for pid in [self.process.pid, *self.sessions()]:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self.process is not None
        for pid in [self.process.pid, *self.sessions()]:
            os.kill(pid, signal.SIGCONT)

    def new_host_key(self, kind: str = "ed25519") -> None:
        """Replace the host key; in force from the next start."""
        path = self.state / "host_key"
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        _keygen(path, kind)

    def trust(self) -> None:
        """Make the client know the host key."""
        key = (self.state / "host_key.pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n")


def _keygen(path: Path, kind: str = "ed25519") -> None:
    command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def openssh(*, passwords: bool = False, extra: Sequence[str] = ()) -> Iterator[OpenSsh]:
    """Serve the whole file system to the user who runs this. `extra` are lines of sshd_config.

    As root, sshd needs the folder /run/sshd, which is made and left behind: others use it too.
    """
    state = Path(tempfile.mkdtemp(prefix="openssh-"))
    server = OpenSsh(
        free_port(), getpass.getuser(), state / "home", state, "\n".join(extra), passwords
    )
    try:
        if os.geteuid() == 0:
            _SEPARATION.mkdir(mode=0o755, exist_ok=True)
        (server.home / ".ssh").mkdir(parents=True, mode=0o700)
        _keygen(server.key)
        shutil.copy(server.key.with_suffix(".pub"), state / "authorized_keys")
        server.new_host_key()
        server.trust()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(state)


@contextlib.contextmanager
def agent(*keys: Path) -> Iterator[Path]:
    """Run ssh-agent with these keys; gives its socket."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    path = folder / "socket"
    process = Process(["ssh-agent", "-D", "-a", path], folder / "log")
    try:
        process.wait_ready(path.exists)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", *keys], env=environment, check=True)
        yield path
    finally:
        process.kill()
        shutil.rmtree(folder)


@contextlib.contextmanager
def password_user() -> Iterator[tuple[str, str]]:
    """A system user `orbittest` with a password, for as long as this lasts; needs root."""
    name, password = "orbittest", secrets.token_urlsafe(12)
    subprocess.run(
        ["useradd", "--no-create-home", "--home-dir", "/", "--shell", "/bin/sh", name], check=True
    )
    try:
        subprocess.run(["chpasswd"], input=f"{name}:{password}\n".encode(), check=True)
        yield name, password
    finally:
        subprocess.run(["userdel", name], check=True, stderr=subprocess.DEVNULL)
