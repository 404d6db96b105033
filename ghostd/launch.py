"""Starts the daemon in the background and returns when it is mounted, or says why it is not.

`make mount` and the mount(8) helper come through here. The daemon is told to notify as if by a
service manager, so there is one meaning of "ready" and no guessing by waiting.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ghostd.mountpoint import mounted_at, serves
from orbit_socket import default_socket

LOG_NAME: Final = "ghostd.log"
LOG_BYTES_MAX: Final = 1024 * 1024  # a longer one is put aside at the next start
LOG_TAIL_BYTES: Final = 4096
START_TIMEOUT_S: Final = 300.0  # rebuilding an index takes a while; a normal start well under 1 s
KILL_AFTER_S: Final = 10.0


class LaunchFailed(Exception):
    """The daemon is not mounted; the message is the daemon's own, where it left one."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, and where."""

    mount: Path
    state: Path
    config: Path | None = None
    socket: Path | None = None

    def command(self) -> list[str]:
        """Return the daemon's command line."""
        command = [sys.executable, "-m", "ghostd.main"]
        command += ["--mount", str(self.mount), "--state", str(self.state)]
        if self.config is not None:
            command += ["--config", str(self.config)]
        if self.socket is not None:
            command += ["--socket", str(self.socket)]
        return command

    def log(self) -> Path:
        """Return where the background daemon's stderr goes."""
        return self.state / LOG_NAME


def start(
    launch: Launch,
    *,
    timeout_s: float = START_TIMEOUT_S,
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Start the daemon, wait until it is ready and return its pid; `tell` gets its status lines.

    Raises LaunchFailed when it ends instead, or is not ready after `timeout_s` (it is ended then).
    """
    launch.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = launch.log()
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.old"))
    # A private folder: nobody else can claim that the daemon is ready.
    with (
        tempfile.TemporaryDirectory(prefix="orbit-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
    ):
        notices.bind(f"{folder}/notify")
        env = {key: value for key, value in os.environ.items() if "WATCHDOG_" not in key}
        env["NOTIFY_SOCKET"] = f"{folder}/notify"
        with log.open("ab") as output:
            begin = output.tell()
            daemon = subprocess.Popen(
                launch.command(),
                cwd="/",
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if _wait(daemon, notices, timeout_s, tell):
            daemon.returncode = 0  # it outlives us on purpose; Popen would warn of that
            return daemon.pid
    said = _tail(log, begin)
    if daemon.returncode < 0:
        said = said or f"killed by signal {-daemon.returncode}"
    raise LaunchFailed(said or f"ghostd ended with exit code {daemon.returncode}; see {log}")


def _wait(
    daemon: subprocess.Popen[bytes],
    notices: socket.socket,
    timeout_s: float,
    tell: Callable[[str], None],
) -> bool:
    """Return True when it is ready, False when it has ended (by us, when the time is over)."""
    ended = os.pidfd_open(daemon.pid)
    try:
        while True:
            readable, _, _ = select.select([notices.fileno(), ended], [], [], timeout_s)
            if notices.fileno() in readable:
                message = dict(
                    line.partition("=")[::2] for line in notices.recv(8192).decode().splitlines()
                )
                if message.get("READY") == "1":
                    return True
                if "STATUS" in message:
                    tell(message["STATUS"])
            elif ended in readable:
                daemon.wait()
                return False
            else:
                tell(f"not ready and silent for {timeout_s:g} s: ending it")
                _end(daemon)
                return False
    finally:
        os.close(ended)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _tail(log: Path, begin: int) -> str:
    """Return the last of what the daemon wrote in this start."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin, size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()


def _tour(launch: Launch, pid: int) -> str:
    mount = launch.mount
    control = launch.socket or default_socket()
    option = f" --socket {control}" if launch.socket else ""
    variables = f" MNT={mount} STATE={launch.state}"
    return f"""\
mounted at {mount} (pid {pid}); the data lies in {launch.state}, the log in {launch.log()}

  use it      cp -r SOMETHING {mount}/
  look        {Path(sys.prefix, "bin", "orbit-ctl")}{option} status
  flush       {Path(sys.prefix, "bin", "orbit-ctl")}{option} flush
  stop        make unmount{variables}{f" SOCKET={control}" if launch.socket else ""}"""


def main() -> int:
    """`python -m ghostd.launch`: what `make mount` runs."""
    parser = argparse.ArgumentParser(prog="ghostd.launch", description=__doc__)
    parser.add_argument("--mount", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--socket", type=Path)
    given = parser.parse_args()
    launch = Launch(
        Path(os.path.abspath(given.mount)),  # noqa: PTH100  resolve() would touch a dead mount
        given.state.absolute(),
        given.config and given.config.absolute(),
        given.socket and given.socket.absolute(),
    )
    if serves(launch.mount):
        print(f"{launch.mount} is mounted already; `make unmount MNT={launch.mount}` stops it")
        return 0
    try:
        if mounted_at(launch.mount) is None:
            launch.mount.mkdir(parents=True, exist_ok=True)
        pid = start(launch, tell=print)
    except (LaunchFailed, OSError) as error:
        print(f"not mounted: {error}", file=sys.stderr)
        return 1
    print(_tour(launch, pid))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
