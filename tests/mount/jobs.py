"""orbit-ctl as a program, against a daemon of a test: jobs, how far they are, how they end."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mount.harness import Daemon

ENDED = frozenset({"done", "partly", "failed", "cancelled"})
LIMIT_S = 120.0
_LOOK_S = 0.02  # between two questions: nothing else says how far a job is

Job = dict[str, Any]


class Ctl:
    """`orbit-ctl`, as its user has it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._home = daemon.folder / "home"
        self._home.mkdir(exist_ok=True)

    def command(self, *arguments: object) -> list[str]:
        """Its command line."""
        socket = str(self.daemon.socket)
        return [sys.executable, "-m", "cli.orbit_ctl", "--socket", socket, *map(str, arguments)]

    @property
    def _env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._home), "LC_ALL": "C.UTF-8"}

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run it to its end, which must be `code`; what it says, errors included."""
        ended = subprocess.run(
            self.command(*arguments),
            env=self._env,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert ended.returncode == code, (arguments, ended.returncode, ended.stdout)
        return ended.stdout

    def events(self, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
        """Likewise with --json: one object a line."""
        return [json.loads(line) for line in self(*arguments, "--json", code=code).splitlines()]

    def submit(self, *arguments: object) -> int:
        """Queue a job; its number."""
        return int(self.events(*arguments, "--detach")[0]["job"])

    def on_a_terminal(self, *arguments: object) -> tuple[subprocess.Popen[bytes], int]:
        """Start it in the foreground of a terminal of its own; the process, and the terminal."""
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", _FOREGROUND, *self.command(*arguments)],
            env={**self._env, "TERM": "xterm"},
            cwd=Path(__file__).parents[2],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        return process, master

    # --- jobs ------------------------------------------------------------------------------------

    def job(self, number: int) -> Job:
        """As the API shows it."""
        found: Job = self.daemon.client.get(f"/v1/jobs/{number}", 10.0)
        return found

    def jobs(self) -> list[Job]:
        """All, newest first."""
        found: list[Job] = self.daemon.client.get("/v1/jobs", 10.0)["jobs"]
        return found

    def until(self, number: int, seen: Callable[[Job], object]) -> Job:
        """Watch a job until `seen`."""
        limit = time.monotonic() + LIMIT_S
        while not seen(job := self.job(number)):
            assert time.monotonic() < limit, job
            time.sleep(_LOOK_S)
        return job

    def until_moved(self, number: int, moved: int = 1) -> Job:
        """Watch it until it has moved so many bytes; it must not have ended."""

        def seen(job: Job) -> bool:
            assert job["state"] not in ENDED, job
            return bool(job["progress"].get("bytes_done", 0) >= moved)

        return self.until(number, seen)

    def ended(self, number: int, state: str = "done") -> Job:
        """Watch it until it ends, which must be like this."""
        job = self.until(number, lambda job: job["state"] in ENDED)
        assert job["state"] == state, job
        return job

    def worker(self) -> int:
        """The process of the worker; 0: there is none."""
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"syncer.worker" in words and os.fsencode(self.daemon.state) in words:
                return int(entry.parent.name)
        return 0


# Makes the terminal it is given its own, so that Ctrl-C reaches what it becomes.
_FOREGROUND = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.argv[1], sys.argv[1:])
"""


def read_until(terminal: int, words: bytes) -> bytes:
    """What a terminal shows, until it shows these words."""
    said = b""
    while words not in said:
        said += os.read(terminal, 4096)
    return said


def make_tree(folder: Path, *, seed: int, small: int = 40, large: int = 3) -> int:
    """Files of many sizes, a hole, links, names that are hard to say; the bytes in all."""
    rng = random.Random(seed)
    sizes = [rng.choice((0, 1, 700, 9_000, 90_000)) for _ in range(small)]
    sizes += [rng.randrange(1 << 20, 3 << 20) for _ in range(large)]
    for number, size in enumerate(sizes):
        path = folder / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(size))
        path.chmod(rng.choice((0o600, 0o644, 0o755)))
        os.utime(path, ns=(0, rng.randrange(10**18)))
    with (folder / "holes").open("wb") as file:
        file.write(b"a" * 5000)
        file.seek(3 << 20)
        file.write(b"z" * 5000)
    (folder / b"\xff\xfe\nodd".decode("utf-8", "surrogateescape")).write_bytes(b"odd")
    (folder / "-rf").write_bytes(b"dash")
    (folder / "link").symlink_to("d0/f0")
    os.link(folder / "-rf", folder / "second name")
    (folder / "empty").mkdir()
    return sum(sizes)
