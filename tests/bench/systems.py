"""The systems that are measured: each a folder on the shared disk, and a mount over it.

"Stored" means for each that a power cut would lose nothing:
  ext4           syncfs
  passthrough    syncfs of the mount, then of the disk under it
  JuiceFS        its write-back is off: close() uploads; then syncfs of the mount and of the disk
  rclone         uploads begin at once (--vfs-write-back 0) and are waited for, then both syncfs
  GhostFS        syncfs of the mount, then `orbit-ctl flush`
"Cold" means: the daemon is stopped, its own cache is removed (JuiceFS, rclone), the kernel's caches
are dropped, and the daemon is started again.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import shutil
import socket
import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.bench.disk import Disk
from tests.bench.peers import Peers
from tests.bench.processes import Server, StepFailed, end, family_cpu_s, family_rss_bytes, run
from tests.mount.harness import Daemon

SETTLE_LIMIT_S = 600.0
_UPLOAD_POLL_S = 0.01


class System(ABC):
    """One filesystem to work in. Life: (start … stop)*, clear."""

    name: str

    def __init__(self, disk: Disk, peers: Peers) -> None:
        self.disk = disk
        self.peers = peers
        self.folder = disk.root / self.name
        self.mount = self.folder / "mnt"
        self.data = self.folder / "data"
        self.cache: Path | None = None  # the daemon's own, on the disk

    def start(self) -> None:
        """Mount, with what was stored before."""
        self.mount.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(exist_ok=True)
        self._start()

    def cold(self) -> None:
        """Forget everything that is only in memory or in a cache."""
        self.stop()
        self._empty_cache()
        self.disk.drop_caches()
        self.start()

    def clear(self) -> None:
        """End whatever runs and remove everything."""
        self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def settle(self) -> float:
        """Return when everything done so far is stored; the seconds that took."""
        started = time.perf_counter()
        self._settle()
        return time.perf_counter() - started

    def stored_bytes(self) -> int:
        """What its folder occupies on the disk, caches apart."""
        total = 0
        for folder, _, files in os.walk(self.data):
            total += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in files)
        return total

    def cpu_s(self) -> float:
        """Processor seconds of its daemon since this start."""
        pid = self._pid()
        return 0.0 if pid is None else family_cpu_s(pid)

    def rss_bytes(self) -> int:
        """Resident memory of its daemon."""
        pid = self._pid()
        return 0 if pid is None else family_rss_bytes(pid)

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None:
        """Unmount, with everything written back."""

    @abstractmethod
    def _kill(self) -> None: ...

    @abstractmethod
    def _pid(self) -> int | None: ...

    def _empty_cache(self) -> None:
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)

    def _settle(self) -> None:
        run("sync", "-f", self.mount, limit_s=SETTLE_LIMIT_S)
        self.disk.sync()


class Ext4(System):
    """The disk itself."""

    name = "ext4"

    def __init__(self, disk: Disk, peers: Peers) -> None:
        super().__init__(disk, peers)
        self.mount = self.data

    def _start(self) -> None:
        pass

    def stop(self) -> None:
        """Nothing runs."""

    def _kill(self) -> None:
        pass

    def _pid(self) -> None:
        return None

    def _settle(self) -> None:
        self.disk.sync()


class Served(System):
    """A filesystem whose daemon runs in the foreground under us."""

    def __init__(self, disk: Disk, peers: Peers) -> None:
        super().__init__(disk, peers)
        self._server: Server | None = None

    @abstractmethod
    def command(self) -> list[str | Path]:
        """The daemon's command line."""

    def _start(self) -> None:
        self._server = Server(self.command(), self.mount, self.folder / "log")

    def stop(self) -> None:
        """Unmount and wait for the daemon's end."""
        assert self._server is not None
        self._server.stop()
        self._server = None

    def _kill(self) -> None:
        if self._server is not None:
            self._server.clear()
            self._server = None

    def _pid(self) -> int | None:
        return None if self._server is None else self._server.pid


class Passthrough(Served):
    """libfuse's C example over ext4, with libfuse's defaults."""

    name = "passthrough_ll"

    def command(self) -> list[str | Path]:
        """It keeps a descriptor for every inode: it gets as many as there may be."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = ["prlimit", f"--nofile={most}"]
        binary = self.peers.passthrough()
        return [*limit, binary, "-f", "-o", f"source={self.data}", self.mount]


class JuiceFS(Served):
    """SQLite metadata and file storage, on the disk; its defaults otherwise."""

    name = "juicefs"
    compress = "none"

    def __init__(self, disk: Disk, peers: Peers) -> None:
        super().__init__(disk, peers)
        self._meta = f"sqlite3://{self.data}/meta.db"
        self.cache = self.folder / "cache"

    def _start(self) -> None:
        if not (self.data / "meta.db").exists():
            storage = ["--storage", "file", "--bucket", f"{self.data}/objects/"]
            codec = ["--compress", self.compress, "--trash-days", "0"]
            binary = self.peers.juicefs()
            run(binary, "format", *storage, *codec, self._meta, "bench", limit_s=60)
        super()._start()

    def command(self) -> list[str | Path]:
        """Its cache lies on the same disk."""
        options = ["--no-usage-report", "--no-syslog", "--backup-meta", "0"]
        options += ["--cache-dir", str(self.cache)]
        return [self.peers.juicefs(), "mount", *options, self._meta, self.mount]


class JuiceFSZstd(JuiceFS):
    """The same with compression."""

    name = "juicefs-zstd"
    compress = "zstd"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


class Rclone(Served):
    """`rclone mount --vfs-cache-mode full` over a local folder."""

    name = "rclone"

    def __init__(self, disk: Disk, peers: Peers) -> None:
        super().__init__(disk, peers)
        self.cache = self.folder / "cache"
        self._socket = self.folder / "rc"

    def command(self) -> list[str | Path]:
        """Uploads begin at close, so that waiting for them does not measure a delay."""
        self._socket.unlink(missing_ok=True)
        cache = ["--vfs-cache-mode", "full", "--vfs-write-back", "0"]
        cache += ["--cache-dir", str(self.cache)]
        control = ["--rc", "--rc-no-auth", "--rc-addr", f"unix://{self._socket}"]
        config = ["--config", "/dev/null"]
        return [self.peers.rclone(), "mount", *config, *cache, *control, self.data, self.mount]

    def _settle(self) -> None:
        run("sync", "-f", self.mount, limit_s=SETTLE_LIMIT_S)
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while self._uploads():
            if time.monotonic() > deadline:
                raise StepFailed(f"rclone still uploads after {SETTLE_LIMIT_S:g} s")
            time.sleep(_UPLOAD_POLL_S)
        self.disk.sync()

    def stop(self) -> None:
        """Its uploads end with the process: wait for them first."""
        self._settle()
        super().stop()

    def _uploads(self) -> int:
        connection = _UnixConnection(self._socket)
        try:
            connection.request("POST", "/vfs/stats", "{}", {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise StepFailed(f"rclone does not answer: {error}") from error
        finally:
            connection.close()
        cache = answer["diskCache"]
        return int(cache["uploadsInProgress"]) + int(cache["uploadsQueued"])


class GhostFS(System):
    """Ours, with its defaults."""

    name = "ghostfs"

    def __init__(self, disk: Disk, peers: Peers) -> None:
        super().__init__(disk, peers)
        self._daemon: Daemon | None = None

    @property
    def daemon(self) -> Daemon:
        """The running daemon."""
        assert self._daemon is not None
        return self._daemon

    def _start(self) -> None:
        if self._daemon is None:
            self._daemon = self._make_daemon()
        try:
            self._daemon.start()
            self._daemon.status()  # its socket answers last: it is not measured while it starts
        except AssertionError as error:
            raise StepFailed(f"ghostd did not start: {error}") from error

    def _make_daemon(self) -> Daemon:
        return Daemon(self.folder, state=self.data)

    def stop(self) -> None:
        """A clean stop."""
        try:
            self.daemon.stop()
        except AssertionError as error:
            raise StepFailed(f"ghostd did not stop: {error}") from error

    def _kill(self) -> None:
        if self._daemon is not None:
            if self._daemon.running:
                end(self._daemon.pid, self.mount)
            self._daemon.clear()
            self._daemon = None

    def _pid(self) -> int | None:
        return self._daemon.pid if self._daemon is not None and self._daemon.running else None

    def _settle(self) -> None:
        run("sync", "-f", self.mount, limit_s=SETTLE_LIMIT_S)
        self.daemon.client.post("/v1/flush", {"timeout_s": SETTLE_LIMIT_S}, SETTLE_LIMIT_S + 5)


OURS = GhostFS.name
SYSTEMS: dict[str, type[System]] = {
    kind.name: kind for kind in (Ext4, Passthrough, JuiceFS, JuiceFSZstd, Rclone, GhostFS)
}
