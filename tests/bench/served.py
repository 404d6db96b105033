"""What is served to projections and their peers: the same files by SFTP and by S3, on loopback.

Both servers keep everything in memory (/dev/shm, where there is one), so that what they serve is
warm for everybody, also after the kernel's caches have been dropped. Each is reached directly or
through a proxy of its own, which delays and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from obstore.store import S3Store

from tests.bench.bench import Bench
from tests.servers.openssh import OpenSsh, openssh
from tests.servers.proxy import Counts, Faults, Proxy
from tests.servers.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY, SeaweedFs, seaweedfs

BUCKET = "bench"
BIG, STREAM = "big", "stream"
SMALL_BYTES = 4096
_PUTS_AT_ONCE = 16
_QUIET_S = 0.3  # several round trips of the slow link
_QUIET_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """A way to what is served: enough for any client."""

    kind: str  # sftp, s3
    port: int  # on 127.0.0.1
    path: str  # the folder, or the bucket
    user: str = ""
    key: Path = Path()
    known_hosts: Path = Path()
    home: Path = Path()  # with both in its .ssh

    @property
    def environment(self) -> dict[str, str]:
        """What our daemon and rclone need in theirs."""
        if self.kind == "sftp":
            return {"HOME": str(self.home)}
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
        }

    def url(self, folder: str = "") -> str:
        """As our daemon is told."""
        if self.kind == "sftp":
            return f"sftp://{self.user}@127.0.0.1:{self.port}{self.path}/{folder}"
        return f"s3://{self.path}/{folder}"


class Link:
    """A proxy in front of one of the servers."""

    def __init__(self, place: Place, proxy: Proxy) -> None:
        self.place = place
        self._proxy = proxy

    def settled(self) -> Counts:
        """What has passed once nothing passes any more: read-ahead ends after its reader has."""
        deadline = time.monotonic() + _QUIET_LIMIT_S
        counts = self._proxy.counts
        while time.monotonic() < deadline:
            time.sleep(_QUIET_S)
            before, counts = counts, self._proxy.counts
            if before == counts:
                break
        return counts


class Served:
    """The running servers."""

    def __init__(self, bench: Bench, folder: Path, sshd: OpenSsh, weed: SeaweedFs) -> None:
        self.folder = folder  # what SFTP shows
        self._bench = bench
        self._sshd = sshd
        self._weed = weed
        self._store = weed.store(BUCKET)
        self.direct = {kind: self._place(kind, self.port(kind)) for kind in ("sftp", "s3")}

    def port(self, kind: str) -> int:
        """Of a server."""
        return self._sshd.port if kind == "sftp" else self._weed.port

    def _place(self, kind: str, port: int) -> Place:
        if kind == "s3":
            return Place(kind, port, BUCKET)
        sshd = self._sshd
        return Place(kind, port, str(self.folder), sshd.user, sshd.key, sshd.known_hosts, sshd.home)

    @contextlib.contextmanager
    def links(self, delay_s: float) -> Iterator[dict[str, Link]]:
        """Ways through proxies that add `delay_s` each way."""
        with contextlib.ExitStack() as stack:
            found = {}
            for kind in ("sftp", "s3"):
                proxy = Proxy(self.port(kind), faults=Faults(delay_s=delay_s))
                port = stack.enter_context(proxy).port
                found[kind] = Link(self._place(kind, port), proxy)
            self._trust(found["sftp"].place.port)
            yield found

    def _trust(self, port: int) -> None:
        own, key = self._sshd.known_hosts.read_text().splitlines()[0].split(" ", 1)
        with self._sshd.known_hosts.open("a") as file:
            file.write(f"{own.rpartition(':')[0]}:{port} {key}\n")

    # --- contents --------------------------------------------------------------------------------

    def add_big(self, name: str, size: int, seed: int) -> Path:
        """Serve a file of random bytes; where the same bytes lie for comparing."""
        source = self._bench.inputs.random_data(size, seed)
        os.link(source, self.folder / name)
        with source.open("rb") as file:
            self._store.put(name, file)
        return source

    def add_tree(self, name: str, folders: int, files: int) -> None:
        """Serve folders d000, … of files f0000, … with different 4 KiB each."""
        rng = random.Random(5)
        contents: dict[str, bytes] = {}
        for number in range(folders):
            inner = self.folder / name / f"d{number:03}"
            inner.mkdir(parents=True)
            for index in range(files):
                data = rng.randbytes(SMALL_BYTES)
                (inner / f"f{index:04}").write_bytes(data)
                contents[f"{name}/d{number:03}/f{index:04}"] = data
        put_all(self._store, contents)

    def add_objects(self, prefix: str, count: int) -> None:
        """Serve many empty objects under one prefix, by S3 only."""
        put_all(self._store, dict.fromkeys((f"{prefix}/o{n:07}" for n in range(count)), b""))

    def sizes(self, kind: str, folder: str) -> list[int]:
        """Of all files that somebody has put into a folder of the place."""
        if kind == "sftp":
            below = (self.folder / folder).rglob("*")
            return [path.stat().st_size for path in below if path.is_file()]
        return [each["size"] for page in self._store.list(f"{folder}/") for each in page]


def put_all(store: S3Store, contents: dict[str, bytes]) -> None:
    """Write many objects."""

    async def worker(left: Iterator[tuple[str, bytes]]) -> None:
        for key, data in left:
            await store.put_async(key, data, use_multipart=False)

    async def everything() -> None:
        left = iter(contents.items())
        await asyncio.gather(*(worker(left) for _ in range(_PUTS_AT_ONCE)))

    asyncio.run(everything())


@contextlib.contextmanager
def served(bench: Bench) -> Iterator[Served]:
    """Both servers, empty."""
    folder = bench.inputs.memory_folder("served")
    try:
        with contextlib.ExitStack() as stack:
            sshd = stack.enter_context(openssh())
            with _temporary_files_in(folder):
                weed = stack.enter_context(seaweedfs())
            weed.make_bucket(BUCKET)
            (folder / "files").mkdir()
            yield Served(bench, folder / "files", sshd, weed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
