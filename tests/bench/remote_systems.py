"""Systems that show a remote tree: ours and its peers, each mounted over a place."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.disk import Disk
from tests.bench.peers import Peers
from tests.bench.processes import StepFailed, run
from tests.bench.served import BUCKET, Place
from tests.bench.systems import OURS, GhostFS, Served
from tests.mount.harness import Daemon
from tests.servers.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY

PROJECTED = "remote"
_ATTACH_LIMIT_S = 30.0


class RemoteMount(Served):
    """A peer over a place; `top` is where it shows it."""

    def __init__(self, name: str, disk: Disk, peers: Peers, place: Place) -> None:
        self.name = name
        super().__init__(disk, peers)
        self.place = place
        self.cache = self.folder / "cache"

    @property
    def top(self) -> Path:
        """Where the place is shown."""
        return self.mount

    @abstractmethod
    def command(self) -> list[str | Path]: ...


class Sshfs(RemoteMount):
    """sshfs with its defaults."""

    def command(self) -> list[str | Path]:
        """In the foreground; no configuration of the user's."""
        place = self.place
        ssh = [f"IdentityFile={place.key}", f"UserKnownHostsFile={place.known_hosts}"]
        options = ",".join([f"port={place.port}", *ssh])
        source = f"{place.user}@127.0.0.1:{place.path}"
        sshfs = self.peers.debian("sshfs")
        return [sshfs, "-f", "-F", "/dev/null", "-o", options, source, self.mount]


class S3Fs(RemoteMount):
    """s3fs with its defaults."""

    def command(self) -> list[str | Path]:
        """In the foreground; it wants its keys in a file."""
        keys = self.folder / "keys"
        keys.write_text(f"{ACCESS_KEY}:{SECRET_KEY}")
        keys.chmod(0o600)
        server = [f"url=http://127.0.0.1:{self.place.port}", "use_path_request_style"]
        options = ",".join([*server, f"endpoint={REGION}", f"passwd_file={keys}"])
        return [self.peers.debian("s3fs"), BUCKET, self.mount, "-f", "-o", options]


def rclone_environment(place: Place) -> dict[str, str]:
    """What makes `place:` mean this place to rclone."""
    if place.kind == "sftp":
        says = {"TYPE": "sftp", "HOST": "127.0.0.1", "PORT": str(place.port)}
        says |= {"USER": place.user, "KEY_FILE": str(place.key)}
        says |= {"KNOWN_HOSTS_FILE": str(place.known_hosts)}
    else:
        says = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "REGION": REGION}
        says |= {"ACCESS_KEY_ID": ACCESS_KEY, "SECRET_ACCESS_KEY": SECRET_KEY}
        says |= {"ENDPOINT": f"http://127.0.0.1:{place.port}"}
    return {f"RCLONE_CONFIG_PLACE_{name}": value for name, value in says.items()}


class RcloneMount(RemoteMount):
    """`rclone mount --vfs-cache-mode full`, which keeps what was read."""

    def __init__(
        self, name: str, disk: Disk, peers: Peers, place: Place, options: tuple[str, ...] = ()
    ) -> None:
        super().__init__(name, disk, peers, place)
        self._options = options

    def command(self) -> list[str | Path]:
        """The remote is described in the environment, as its documentation has it."""
        place = self.place
        environment = [f"{name}={value}" for name, value in rclone_environment(place).items()]
        assert self.cache is not None
        cache = ["--vfs-cache-mode", "full", "--cache-dir", str(self.cache)]
        mount = [self.peers.rclone(), "mount", "--config", "/dev/null", *cache, *self._options]
        return ["env", *environment, *mount, f"place:{place.path}", self.mount]


class Projection(GhostFS):
    """Ours, with a projection of the place."""

    def __init__(
        self,
        disk: Disk,
        peers: Peers,
        place: Place,
        *,
        name: str = OURS,
        block_size: str = "1 MiB",
        folder: str = "",
        attached: bool = True,
    ) -> None:
        """`folder`: of the place, to be projected; `attached`: the configuration file says so."""
        self.name = name
        super().__init__(disk, peers)
        self.place = place
        self._block_size = block_size
        self._folder = folder
        self._attached = attached

    @property
    def top(self) -> Path:
        """Where the place is shown."""
        return self.mount / PROJECTED

    def _make_daemon(self) -> Daemon:
        lines = [
            "[[projection]]",
            f'url = "{self.place.url(self._folder)}"',
            f'path = "/{PROJECTED}"',
            f'block_size = "{self._block_size}"',
            'ttl = "1h"',
        ]
        return Daemon(
            self.folder,
            state=self.data,
            config="\n".join(lines) if self._attached else "",
            prefix=("env", *(f"{k}={v}" for k, v in self.place.environment.items())),
        )

    def _start(self) -> None:
        super()._start()
        if not self._attached:
            return
        deadline = time.monotonic() + _ATTACH_LIMIT_S
        while run("test", "-d", self.top, limit_s=_ATTACH_LIMIT_S, codes=(0, 1)).code:
            if time.monotonic() > deadline:
                raise StepFailed(f"{self.place.url()} was not attached:\n{self.daemon.news()}")
            time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Contender:
    """A system before it has a place."""

    name: str
    kinds: tuple[str, ...]  # of places
    make: Callable[[Disk, Peers, Place], RemoteMount | Projection]
    works: str = ""  # what it takes part in

    def at(self, place: Place, disk: Disk, peers: Peers) -> RemoteMount | Projection:
        """Over this place, not started."""
        return self.make(disk, peers, place)


BOTH = ("sftp", "s3")
SMALL_READS = ("--vfs-fast-fingerprint", "--buffer-size", "0", "--vfs-read-chunk-size", "1M")
"""What keeps rclone from reading more than it is asked for, and from hashing at the server."""
FAST = ("--vfs-fast-fingerprint", "--use-server-modtime", "--vfs-read-chunk-streams", "4")
