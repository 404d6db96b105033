"""Real daemons that project real servers through a proxy: what the tests of mounts have in common.

A `Site` is an empty place at a server, filled past the code under test, and the proxy before it. A
`Projector` is a daemon with that site at `/far`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest

from tests.mount.harness import Daemon
from tests.servers.openssh import OpenSsh
from tests.servers.proxy import Proxy
from tests.servers.seaweedfs import SeaweedFs

MIB = 1 << 20
DEADLINE_S = 1.0  # of reads and listings, in `IMPATIENT`
ANSWER_LIMIT_S = 20.0  # what has a deadline of a second has ended by then, on a busy machine too
EVENT_LIMIT_S = 60.0  # for what happens by itself, unless something is broken
_numbers = itertools.count()

# Deadlines of seconds, so that a black hole is told from a slow link within a test.
IMPATIENT = f"""
[read]
deadline_s = {DEADLINE_S}
[remotes]
listing_deadline_s = {DEADLINE_S}
stale_wait_s = 0.2
attempt_timeout_s = 0.5
backoff_s = 0.05
backoff_max_s = 0.3
breaker_failures = 3
breaker_pause_s = 0.2
breaker_pause_max_s = 0.5
"""
PATIENT = """
[remotes]
backoff_s = 0.02
backoff_max_s = 0.2
breaker_pause_s = 0.2
breaker_pause_max_s = 0.5
"""


class Site:
    """A place at a server, behind a proxy."""

    proxy: Proxy

    @property
    @abstractmethod
    def url(self) -> str:
        """Of the place, through the proxy."""

    @property
    def options(self) -> dict[str, str]:
        """Of the projection."""
        return {}

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What lets a daemon in."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write a file."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a file."""

    def fill(self, files: Mapping[str, bytes]) -> None:
        """Write many."""
        for key, data in files.items():
            self.put(key, data)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While this lasts the server is gone: connections are cut and refused."""
        self.proxy.change(refuse=True)
        self.proxy.reset_connections()
        try:
            yield
        finally:
            self.proxy.heal()

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[None]:
        """While this lasts nothing arrives."""
        self.proxy.change(black_hole=True)
        try:
            yield
        finally:
            self.proxy.heal()


class Folder(Site):
    """A folder of this machine, over SFTP."""

    def __init__(self, sshd: OpenSsh, proxy: Proxy, path: Path) -> None:
        self.sshd = sshd
        self.proxy = proxy
        self.path = path
        path.mkdir()
        self._clock = 1_600_000_000
        key = (sshd.state / "host_key.pub").read_text().split()
        with sshd.known_hosts.open("a") as known:
            known.write(f"[127.0.0.1]:{proxy.port} {key[0]} {key[1]}\n")

    @property
    def url(self) -> str:
        """See Site."""
        path = quote_from_bytes(bytes(self.path))
        return f"sftp://{self.sshd.user}@127.0.0.1:{self.proxy.port}{path}"

    @property
    def environment(self) -> dict[str, str]:
        """See Site."""
        return {"HOME": str(self.sshd.home), "SSH_AUTH_SOCK": ""}

    def put(self, key: str, data: bytes) -> None:
        """See Site. Each version has a second of its own, which is all that SFTP tells."""
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(data)
        self._clock += 1
        os.utime(new, (self._clock, self._clock))
        new.replace(path)

    def delete(self, key: str) -> None:
        """See Site."""
        (self.path / key).unlink()


class Bucket(Site):
    """A prefix of a bucket, over S3."""

    name = "projected"

    def __init__(self, weed: SeaweedFs, proxy: Proxy) -> None:
        self.weed = weed
        self.proxy = proxy
        self.prefix = f"place-{next(_numbers)}/"
        self._login = weed.environment
        with contextlib.suppress(Exception):
            weed.make_bucket(self.name)
        self.store = weed.store(self.name)

    @property
    def url(self) -> str:
        """See Site."""
        return f"s3://{self.name}/{self.prefix}"

    @property
    def environment(self) -> dict[str, str]:
        """See Site."""
        return {**self._login, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}"}

    def log_in_as(self, key: str, secret: str) -> None:
        """Give daemons that start from now on these credentials."""
        self._login = {
            **self._login, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret,
        }  # fmt: skip

    def put(self, key: str, data: bytes) -> None:
        """See Site."""
        self.store.put(self.prefix + key, data)

    def put_odd(self, key: str, data: bytes) -> None:
        """Under a key that S3 clients do not take."""
        answer = self.weed.request("PUT", self.name, self.prefix + key, body=data)
        answer.raise_for_status()

    def delete(self, key: str) -> None:
        """See Site."""
        self.store.delete(self.prefix + key)


class Projector:
    """A daemon with a site at /far."""

    def __init__(
        self,
        new_daemon: Callable[..., Daemon],
        site: Site,
        *,
        config: str = IMPATIENT,
        mode: str = "ro",
        ttl: str = "1h",
        block_size: str = "1 MiB",
    ) -> None:
        self.site = site
        options = ", ".join(f'{name} = "{value}"' for name, value in site.options.items())
        projection = (
            f'\n[[projection]]\nurl = "{site.url}"\npath = "/far"\nmode = "{mode}"\nttl = "{ttl}"\n'
            f'block_size = "{block_size}"\noptions = {{ {options} }}\n'
        )
        self.daemon = new_daemon(config=config + projection)
        self.far = self.daemon.mount / "far"
        self.start()

    def _prefix(self) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in self.site.environment.items())]

    def start(self) -> None:
        """Start the daemon and wait until it has attached what its configuration names."""
        self.daemon._prefix = self._prefix()
        self.daemon.start()
        until(lambda: self.projection() is not None, "the projection was not attached")

    def stop(self) -> None:
        """Stop it well."""
        self.daemon.stop()

    def crash(self) -> None:
        """kill -9, and a new one on the same state."""
        self.daemon.kill()
        self.start()

    def heal(self) -> None:
        """Let the server be reachable, so that nothing hangs while it is cleared away."""
        self.site.proxy.heal()

    def projection(self) -> dict | None:
        """What `orbit-ctl projections` says of it."""
        found = self.daemon.client.get("/v1/projections", 10.0)["projections"]
        return next((each for each in found if each["path"] == "/far"), None)

    def counters(self) -> dict[str, float]:
        """What has been counted since the start."""
        return self.daemon.client.get("/v1/stats", 10.0)["counters"]

    def gauges(self) -> dict[str, float]:
        """What is measured now."""
        return self.daemon.client.get("/v1/stats", 10.0)["gauges"]

    def call(self, name: str, limit_s: float = 120.0, **arguments: object) -> dict:
        """A call of the control API."""
        return self.daemon.client.post(f"/v1/{name}", arguments, limit_s)


def on(kind: str) -> pytest.MarkDecorator:
    """The test runs on this kind of site; on the other one as a part of the soak."""
    other = {"sftp": "s3", "s3": "sftp"}[kind]
    return pytest.mark.parametrize(
        "site", [kind, pytest.param(other, marks=pytest.mark.soak)], indirect=True
    )


def until(happened: Callable[[], object], why: str, limit_s: float = EVENT_LIMIT_S) -> None:
    """Ask until it is true; nothing tells a test when a daemon has come so far."""
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)  # the control API takes 100 questions a second


def within(limit_s: float, *command: str | os.PathLike[str]) -> tuple[int, str]:
    """A command's exit code and output; it must end within the limit, which is the promise."""
    with subprocess.Popen(
        [os.fspath(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{command} has not ended within {limit_s} s") from None
    return process.returncode, output.decode(errors="surrogateescape")


def orbit_ctl(far: Projector, *arguments: str) -> list[str]:
    """The command line of a client."""
    program = Path(sys.executable).with_name("orbit-ctl")
    return [str(program), "--socket", str(far.daemon.socket), *arguments]


def content(tag: object, size: int) -> bytes:
    """Bytes that follow from the tag and tell every place from every other."""
    return random.Random(f"{tag} {size}").randbytes(size)


def some_files(count: int, seed: int = 0) -> dict[str, bytes]:
    """A tree: many small files, some large ones, in directories."""
    rng = random.Random(seed)
    sizes = (0, 1, 100, 4_096, 70_000, 300_000, MIB, MIB + 1)
    files = {}
    for number in range(count):
        depth = rng.choice((0, 1, 1, 2))
        folders = [f"d{rng.randrange(4)}" for _ in range(depth)]
        key = "/".join([*folders, f"file {number} é"])
        files[key] = content((seed, number), rng.choice(sizes))
    files["large"] = content((seed, "large"), 9 * MIB + 12_345)
    return files


# Reads parts of files at random and prints a line for each that differs from what it was told to
# expect: a file of the same name in another folder.
READER = """
import os, random, sys
shown, truth, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
names = []
for folder, _, files in os.walk(truth):
    names += [os.path.relpath(os.path.join(folder, name), truth) for name in files]
names.sort()
errors = 0
for _ in range(count):
    name = rng.choice(names)
    with open(os.path.join(truth, name), "rb") as file:
        wanted = file.read()
    try:
        fd = os.open(os.path.join(shown, name), os.O_RDONLY)
    except OSError as error:
        errors += 1
        continue
    try:
        if os.fstat(fd).st_size != len(wanted):
            print("size", name, os.fstat(fd).st_size, len(wanted), flush=True)
        for _ in range(rng.choice((1, 1, 3))):
            offset = rng.randrange(len(wanted) + 1)
            length = rng.choice((1, 4096, 100_000, 2_000_000))
            try:
                found = os.pread(fd, length, offset)
            except OSError as error:
                errors += 1
                continue
            part = wanted[offset:offset + length]
            if found and part.startswith(found) and len(found) < len(part):
                errors += 1  # an error in the middle: read(2) gives what came before
            elif found != part:
                print("differs", name, offset, len(found), length, flush=True)
    finally:
        os.close(fd)
print("errors", errors, flush=True)
"""


def readers(
    shown: Path, truth: Path, *, seeds: Sequence[int], count: int, limit_s: float = 120.0
) -> tuple[list[str], int]:
    """Several processes at once read at random: lines about what differs, and how many failed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, shown, truth, str(seed), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    wrong: list[str] = []
    errors = 0
    for process in processes:
        output, _ = process.communicate(timeout=limit_s)
        assert process.returncode == 0
        *lines, last = output.splitlines()
        wrong += lines
        errors += int(last.split()[1])
    return wrong, errors


def truth_of(files: Mapping[str, bytes], folder: Path) -> Path:
    """The same tree as a folder of this machine."""
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def whole_tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        os.path.relpath(os.path.join(folder, name), root): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(root)
        for name in names
    }
