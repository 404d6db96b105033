"""HTTP over the daemon's unix socket, and what can go wrong there, by name."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import struct
from pathlib import Path
from typing import Any, Final

CONNECT_TIMEOUT_S: Final = 2.0
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


class CallFailed(Exception):
    """Root of the failures below. `error` is a word for programs, `hint` says what to do."""

    error = "failed"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DaemonAbsent(CallFailed):
    """Nobody listens on the socket."""

    error = "daemon_absent"
    exit_code = 3


class DaemonSilent(CallFailed):
    """The daemon took the call and has not answered in time."""

    error = "timeout"
    exit_code = 5


class ConnectionLost(CallFailed):
    """The daemon took the call and closed the connection without an answer."""

    error = "connection_lost"


class CallRefused(CallFailed):
    """The daemon answered with a problem."""

    def __init__(self, status: int, error: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.error = error
        self.exit_code = DaemonSilent.exit_code if status == 504 else 1


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("ghostd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(str(self._path))
            sock.settimeout(self.timeout)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class Client:
    """Calls the daemon that listens at `path`; every method raises `CallFailed`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, url: str, timeout_s: float) -> dict[str, Any]:
        """Return the answer's JSON object."""
        return self._call("GET", url, None, timeout_s)

    def post(self, url: str, body: dict[str, object], timeout_s: float) -> dict[str, Any]:
        """Return the answer's JSON object."""
        return self._call("POST", url, body, timeout_s)

    def delete(self, url: str, timeout_s: float) -> dict[str, Any]:
        """Return the answer's JSON object."""
        return self._call("DELETE", url, None, timeout_s)

    def process(self) -> DaemonProcess:
        """Return a hold on the daemon's process, to wait for its end."""
        connection = self._connect(CONNECT_TIMEOUT_S)
        with contextlib.closing(connection):
            raw = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
            pid = _PEERCRED.unpack(raw)[0]
            # While the connection stands the daemon lives, so the pid is not yet somebody else's.
            return DaemonProcess(pid)

    def _connect(self, timeout_s: float) -> _UnixConnection:
        connection = _UnixConnection(self.path, timeout_s)
        try:
            connection.connect()
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            why = "nobody listens" if isinstance(error, ConnectionRefusedError) else "no such file"
            message = f"no daemon at {self.path} ({why})"
            raise DaemonAbsent(message, _how_to_start(self.path)) from error
        except PermissionError as error:
            hint = "the daemon of another user is reached as that user, or as root"
            raise CallFailed(f"{self.path} is not yours to use", hint) from error
        except TimeoutError as error:
            raise self._silent(CONNECT_TIMEOUT_S) from error
        except OSError as error:
            hint = "name the daemon's socket with --socket"
            raise CallFailed(f"{self.path} cannot be called: {error}", hint) from error
        return connection

    def _silent(self, timeout_s: float) -> DaemonSilent:
        message = f"the daemon at {self.path} has not answered within {timeout_s:g} s"
        return DaemonSilent(message, "its log, and `systemctl status ghostd`, may say why")

    def _call(
        self, method: str, url: str, body: dict[str, object] | None, timeout_s: float
    ) -> dict[str, Any]:
        connection = self._connect(timeout_s)
        with contextlib.closing(connection):
            try:
                if body is None:
                    connection.request(method, url)
                else:
                    headers = {"Content-Type": "application/json"}
                    connection.request(method, url, json.dumps(body), headers)
                response = connection.getresponse()
                answer = json.loads(response.read())
            except TimeoutError as error:
                raise self._silent(timeout_s) from error
            except (OSError, http.client.HTTPException) as error:
                message = f"the daemon at {self.path} ended the connection"
                raise ConnectionLost(message, "it may have stopped: see its log") from error
            except ValueError as error:
                raise CallFailed(f"{self.path}: the answer is not JSON", "is it ghostd?") from error
        if not isinstance(answer, dict):
            raise CallFailed(f"{self.path}: the answer is not an object", "is it ghostd?")
        if response.status >= 400:
            words = (str(answer.get(key, "")) for key in ("error", "message", "hint"))
            raise CallRefused(response.status, *words)
        return answer


class DaemonProcess:
    """The daemon's process, held so that its number cannot come to mean another one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)  # closed with this short program
        except OSError as error:
            hint = "it may run outside of this container; stop it with --no-wait"
            raise CallFailed(f"the daemon's process cannot be watched: {error}", hint) from error

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; True if it came within `timeout_s`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


def _how_to_start(path: Path) -> str:
    lines = [
        "start it with one of",
        "  systemctl start ghostd                (once installed)",
        "  ghostd --mount MNT --state FOLDER     (in the foreground)",
        "  make mount                            (in a checkout)",
    ]
    others = [str(each) for each in sorted(path.parent.glob("*.sock")) if each != path]
    if others:
        lines.append(f"or name another one of this folder with --socket: {', '.join(others)}")
    return "\n".join(lines)
