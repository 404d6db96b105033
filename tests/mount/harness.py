"""Real daemons for tests: started, stopped, killed and watched as processes of their own.

Readiness is the daemon's own word (NOTIFY_SOCKET); every command has a hard limit; what a test
does in its own process is bounded by `Watch`, which kills the daemon and aborts its connection,
so that no call into a mount hangs.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from cli.client import Client

READY_LIMIT_S = 120.0
STOP_LIMIT_S = 120.0
COMMAND_LIMIT_S = 240.0

_BAD_LINE = re.compile(r"\[(warning|error|critical)\s*\]|Traceback|Exception|ResourceWarning")
_NEWS = re.compile(r"^\d{4}-\d\d-\d\dT", re.MULTILINE)


class DaemonEnded(AssertionError):
    """The daemon ended instead of becoming ready; the message is what it said."""


class CommandFailed(AssertionError):
    """A command did not end with the code that was expected of it."""


def run(
    *command: str | os.PathLike[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    codes: Sequence[int] = (0,),
    limit_s: float = COMMAND_LIMIT_S,
    stdin: bytes = b"",
) -> str:
    """Run a command to its end and return its output; its exit code must be one of `codes`."""
    with subprocess.Popen(
        [os.fspath(part) for part in command],
        cwd=cwd,
        env=None if env is None else {**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(stdin, timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise CommandFailed(f"{command} ran over {limit_s} s:\n{_text(output)}") from None
    if process.returncode not in codes:
        raise CommandFailed(f"{command} ended with {process.returncode}:\n{_text(output)}")
    return _text(output)


def _text(output: bytes) -> str:
    return output.decode("utf-8", "surrogateescape")


class Daemon:
    """One state folder and mount point, and the daemon that serves them (or not, just now)."""

    def __init__(
        self,
        folder: Path,
        *,
        state: Path | None = None,
        config: str = "",
        prefix: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        """`prefix` starts the daemon through another command, such as setpriv."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mount = folder / "mnt"
        self.mount.mkdir(exist_ok=True)
        self.state = state or folder / "state"
        self.socket = folder / "s"
        self.log = folder / "log"
        self.log.touch()
        self.config = folder / "orbit.toml"
        self.config.write_text(config)
        self._prefix = list(prefix)
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        self.client = Client(self.socket)

    # --- life ------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """The process has been started and has not been seen to end."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        """The daemon's command line."""
        return [
            *self._prefix,
            *(sys.executable, "-m", "ghostd.main"),
            *("--mount", str(self.mount), "--state", str(self.state)),
            *("--socket", str(self.socket), "--config", str(self.config)),
            *self._arguments,
        ]

    def start(self) -> Daemon:
        """Start and return when it is mounted. Raises DaemonEnded."""
        assert not self.running
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(str(notify))
            notify.chmod(0o777)
            env = {k: v for k, v in os.environ.items() if not k.startswith(("ORBIT_", "WATCHDOG_"))}
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self.command(),
                    cwd=Path(__file__).parents[2],
                    env={**env, "NOTIFY_SOCKET": str(notify), "PYTHONDONTWRITEBYTECODE": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._wait_ready(notices)
        return self

    def _wait_ready(self, notices: socket.socket) -> None:
        assert self._process is not None
        ended = os.pidfd_open(self._process.pid)
        try:
            while True:
                readable, _, _ = select.select([notices, ended], [], [], READY_LIMIT_S)
                if notices in readable:
                    if b"READY=1" in notices.recv(8192).splitlines():
                        return
                    continue
                if not readable:
                    self.kill()
                    raise DaemonEnded(f"not ready after {READY_LIMIT_S} s:\n{self.news()}")
                self._process.wait()
                raise DaemonEnded(self.news())
        finally:
            os.close(ended)

    def stop(self) -> None:
        """SIGTERM; the daemon must unmount and end well."""
        assert self._process is not None
        self._process.terminate()
        code = self.wait()
        assert code == 0, f"the daemon ended with {code}:\n{self.news()}"
        assert not is_mounted(self.mount)

    def wait(self) -> int:
        """Wait for the end that has been asked for, and return the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not ended in {STOP_LIMIT_S} s:\n{self.news()}") from None

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, the mount stays behind, dead."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ends(self, limit_s: float) -> bool:
        """Whether it ends within the limit, by itself or killed."""
        assert self._process is not None
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def restart(self) -> None:
        """Stop well and start again on the same state."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill and start again on the same state; the new daemon clears the dead mount."""
        self.kill()
        self.start()

    def clear(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        clear_mount(self.mount)

    # --- what it says ----------------------------------------------------------------------------

    def news(self) -> str:
        """What it has logged since the last call."""
        with self.log.open("rb") as log:
            log.seek(self._read_to)
            text = log.read()
        self._read_to += len(text)
        return text.decode("utf-8", "replace")

    def expect_quiet(self, *but: str) -> str:
        """Return what it has logged since the last call.

        Fails on a warning, an error or a traceback that matches none of the patterns `but`.
        """
        news = self.news()
        for line in news.splitlines():
            known = any(re.search(pattern, line) for pattern in but)
            assert known or not _BAD_LINE.search(line), f"the daemon logged:\n{news}"
        return news

    # --- what it is asked ------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """`orbit-ctl status`."""
        return self.client.get("/v1/status", 10.0)

    def flush(self) -> None:
        """`orbit-ctl flush`: everything done so far is durable."""
        self.client.post("/v1/flush", {"timeout_s": 60.0}, 70.0)

    def check(self, *, data: bool = False) -> dict[str, Any]:
        """`orbit-ctl check`: the answer, whatever it is."""
        self.flush()
        return self.client.post("/v1/check", {"data": data}, COMMAND_LIMIT_S)

    def check_clean(self, *, data: bool = False) -> None:
        """The oracle: every invariant holds."""
        report = self.check(data=data)
        wrong = [item for item in report["checks"] if not item["ok"]]
        assert report["checks"]
        assert report["ok"], (wrong, report["damaged_files"])

    def collect(self) -> dict[str, Any]:
        """`orbit-ctl collect`."""
        return self.client.post("/v1/collect", {}, COMMAND_LIMIT_S)

    def state_bytes(self) -> int:
        """What the state folder occupies."""
        return sum(path.lstat().st_blocks * 512 for path in self.state.rglob("*"))


def is_mounted(mount: Path) -> bool:
    """Looks into the kernel's table; never touches the mount."""
    return any(_fields(mount))


def _fields(mount: Path) -> Iterator[list[str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(mount):
            yield fields


def abort_connection(mount: Path) -> None:
    """Fail every request that waits on a FUSE mount, and every later one."""
    for fields in _fields(mount):
        minor = fields[2].split(":")[1]
        try:
            Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
        except OSError:  # fusectl is not mounted: a forced unmount aborts as well, busy or not
            if os.geteuid() == 0:
                run("umount", "-f", str(mount), codes=(0, 1, 32))


def clear_mount(mount: Path) -> None:
    """Abort and detach whatever is mounted there."""
    while is_mounted(mount):
        abort_connection(mount)
        tool = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        run(*tool, str(mount), codes=(0, 1, 32))


class Watch:
    """Kills the daemons of a test that takes longer than its limit, so that it fails instead of
    hanging.
    """

    def __init__(self, limit_s: float, daemons: Callable[[], list[Daemon]]) -> None:
        self._daemons = daemons
        self._timer = threading.Timer(limit_s, self._bite)
        self._timer.daemon = True
        self.bitten = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def _bite(self) -> None:
        self.bitten = True
        for daemon in self._daemons():
            if daemon.running:
                os.kill(daemon.pid, signal.SIGKILL)
            abort_connection(daemon.mount)
