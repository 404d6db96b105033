"""Messages to the service manager: ready, status, still alive, stopping (sd_notify's protocol).

The protocol is one datagram of NAME=VALUE lines to the socket in `$NOTIFY_SOCKET`; see
sd_notify(3). `ghostd.launch` speaks the receiving end, so that every way to start waits alike.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to the manager that started this process; does nothing where there is none."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval_s = _watchdog_interval_s(env)

    def ready(self, status: str) -> None:
        """Say that the mount answers."""
        self._send(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")

    def status(self, status: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Feed the watchdog; due every `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str = "stopping") -> None:
        """Say that a clean stop has begun."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, flags) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            # The listener may be gone (a launcher that has seen READY) or full: neither is worth
            # more than the next message.
            return


def _address(name: str) -> str | None:
    if name.startswith("@"):
        return "\0" + name[1:]  # Linux' abstract namespace
    return name if name.startswith("/") else None


def _line(text: str) -> str:
    return " ".join(text.split())


def _watchdog_interval_s(env: Mapping[str, str]) -> float | None:
    """Return half the manager's patience in seconds, or None when nobody watches this process."""
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    usec = env.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if usec.isdigit() and int(usec) > 0 else None
