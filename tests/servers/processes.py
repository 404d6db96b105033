"""A server as a process group of its own that never outlives the test that started it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

READY_LIMIT_S = 30.0
_POLL_S = 0.005


class ServerFailed(AssertionError):
    """The server ended or never became ready; the message is what it said."""


_given: deque[int] = deque(maxlen=500)


def free_port() -> int:
    """A loopback port that nobody listens on at the moment.

    Below those that the kernel gives to connections, and another one in each of the processes that
    share the tests: what is free now is free when the server comes to it. It is not given again for
    a while: one server asks for several before it listens.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randrange(1_500, 2_700) * 8 + worker % 8
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.append(port)
            return port


def listens(port: int) -> bool:
    """True if something accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One running server. It is killed when the *thread* that started it ends: start it from a
    thread that stays, which those of `trio.to_thread` do not.
    """

    def __init__(
        self, command: Sequence[str | os.PathLike[str]], log: Path, env: Mapping[str, str] = {}
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                # Also when the test is killed: the kernel sends the signal.
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The leader of the group."""
        return self._process.pid

    def wait_ready(self, ready: Callable[[], bool], limit_s: float = READY_LIMIT_S) -> None:
        """Wait until `ready` says so. Raises ServerFailed, and kills it then."""
        deadline = time.monotonic() + limit_s
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                code = self._process.poll()
                self.kill()
                why = f"not ready after {limit_s} s" if code is None else f"ended with {code}"
                said = self.log.read_text(errors="replace")[-4000:]
                raise ServerFailed(f"{self._process.args!r} {why}:\n{said}")
            time.sleep(_POLL_S)  # no event tells that a foreign program listens

    def signal(self, number: signal.Signals) -> None:
        """Send to the whole group: SIGSTOP freezes the server, SIGCONT goes on."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """End the whole group at once and wait for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
