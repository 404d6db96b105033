"""Debian's smbd on a loopback port, with one user and shares of folders."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.servers.processes import Process, free_port, listens

PASSWORD = "correct horse; battery"  # with what breaks careless quoting

_GLOBAL = """\
[global]
server role = standalone server
interfaces = 127.0.0.1
bind interfaces only = yes
smb ports = {port}
disable netbios = yes
passdb backend = tdbsam:{state}/passdb.tdb
private dir = {state}
lock directory = {state}
state directory = {state}
cache directory = {state}
pid directory = {state}
ncalrpc dir = {state}/ncalrpc
log file = {state}/log.%m
map to guest = never
restrict anonymous = 2
server min protocol = SMB2
server signing = mandatory
# As our tests name files; by default `a` and `A` are one.
case sensitive = yes
load printers = no
printcap name = /dev/null
disable spoolss = yes
# Samba maps names that Windows could not hold to short ones; here they are data.
mangled names = no
unix extensions = no
{extra}
"""

_SHARE = """\
[{name}]
path = {path}
read only = {read_only}
guest ok = no
store dos attributes = yes
create mask = 0664
{extra}
"""


class Samba:
    """A running smbd."""

    def __init__(self, folder: Path, state: Path, port: int, user: str) -> None:
        self.folder = folder  # of all shares
        self.port = port
        self.user = user
        self.password = PASSWORD
        self._state = state
        self._process: Process | None = None

    def url(self, path: str = "", share: str = "data") -> str:
        """The URL of a path in a share, without the password."""
        return f"smb://{self.user}@127.0.0.1:{self.port}/{share}/{path}"

    def start(self) -> None:
        """Start it, at the same address each time, and wait until it listens."""
        assert self._process is None
        self._process = Process(
            [
                "smbd",
                "--foreground",
                "--no-process-group",
                "--debuglevel=1",
                "-s",
                self._state / "smb.conf",
            ],
            self._state / "smbd.log",
        )
        self._process.wait_ready(lambda: listens(self.port))

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def freeze(self) -> None:
        """Stop answering; connections stay open."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.signal(signal.SIGCONT)


@contextlib.contextmanager
def samba(
    folder: Path, *, extra: Sequence[str] = (), shares: Mapping[str, Sequence[str]] = {}
) -> Iterator[Samba]:
    """Serve `folder` as the shares `data` (writable), `frozen` (read-only), and `shares`.

    `extra` are lines of the global section, `shares` maps further names to their lines.
    """
    state = Path(tempfile.mkdtemp(prefix="samba-"))
    user = getpass.getuser()
    server = Samba(folder, state, free_port(), user)
    try:
        sections = [_GLOBAL.format(port=server.port, state=state, extra="\n".join(extra))]
        lines: dict[str, Sequence[str]] = {"data": (), "frozen": (), **shares}
        sections += [
            _SHARE.format(
                name=name,
                path=folder,
                read_only="yes" if name == "frozen" else "no",
                extra="\n".join(more),
            )
            for name, more in lines.items()
        ]
        config = state / "smb.conf"
        config.write_text("\n".join(sections))
        subprocess.run(
            ["pdbedit", "-s", config, "-a", "-t", "-u", user],
            input=f"{PASSWORD}\n{PASSWORD}\n".encode(),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(state)
