"""The control socket: bound privately, owned by one daemon, open to its user and root only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from blockstore.errors import OrbitError
from orbit_socket import SOCKET_PATH_BYTES_MAX

BACKLOG = 32
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


class SocketUnusable(OrbitError):
    """The control socket cannot be opened there; the message says why and what to do."""


class ControlSocket:
    """A listening unix socket at `path`, mode 0600 from its first moment.

    A socket that a dead daemon left is replaced. Raises SocketUnusable when another daemon listens
    there, when something else has the name, or when the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if len(os.fsencode(path)) + len(".new") > SOCKET_PATH_BYTES_MAX:
            raise SocketUnusable(
                f"{path}: too long for a socket (at most {SOCKET_PATH_BYTES_MAX - 4} bytes);"
                " choose a shorter one with --socket"
            )
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = _lock(path)
            try:
                self.listening = _bind(path)
            except BaseException:
                os.close(self._lock_fd)
                raise
        except OSError as error:
            raise SocketUnusable(
                f"{path}: the control socket cannot be opened: {error.strerror};"
                " choose another one with --socket"
            ) from error
        self._inode = path.stat().st_ino

    def close(self) -> None:
        """Stop listening and remove the name, unless somebody else has it by now."""
        self.listening.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        os.close(self._lock_fd)


def _lock(path: Path) -> int:
    """Hold the name: without, two daemons that start at once would both replace a stale socket.

    The lock's file stays behind: removing it would let two processes lock two files of one name.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise _taken(path) from None
    return fd


def _taken(path: Path) -> SocketUnusable:
    return SocketUnusable(
        f"{path}: another daemon listens there; see `orbit-ctl --socket {path} status`,"
        " or choose another socket with --socket"
    )


def _bind(path: Path) -> socket.socket:
    _refuse_live(path)
    # Bound under another name and made private before anyone can connect to it; a umask would be
    # shared with every thread of the process.
    fresh = Path(f"{path}.new")
    fresh.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(fresh))
        fresh.chmod(0o600)
        listening.listen(BACKLOG)
        fresh.rename(path)
    except BaseException:
        listening.close()
        fresh.unlink(missing_ok=True)
        raise
    return listening


def _refuse_live(path: Path) -> None:
    """Raise when the name is taken by anything but the socket of a dead process."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketUnusable(f"{path}: not a socket; it is left alone, choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full: alive
    raise _taken(path)


def peer_allowed(getsockopt: Callable[[int, int, int], bytes]) -> bool:
    """True if the process at the other end runs as this user or as root.

    Takes the connection's `getsockopt`, which sockets of the standard library and of trio share.
    """
    raw = getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(raw)
    return uid in (0, os.geteuid())
