"""A second process that looks at one of two local trees while this one looks at the other.

Most of the time of a second sync goes into one call to the system for each file, which the
interpreter's lock lets only one thread of a process prepare at a time: for 10^5 files on either
side this process needs 0.40 s with a twin and 0.56 s without; with extended attributes, of which
each process asks its own side, 0.56 s and 0.90 s. The twin gets directories that are open already,
so that it walks no paths; it never outlives the socket between the two.
"""

from __future__ import annotations

import contextlib
import marshal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

_CHILD: Final = Path(__file__).with_name("walk_twin_child.py")
_BUFFER_BYTES: Final = 4 << 20  # of answers that wait while this process is busy
_END_S: Final = 1.0
_ANSWER_S: Final = 60.0  # a disk that hangs longer is asked in this process, which tells of it

Row = tuple[int, int, int, int, int, int]  # mode, number of links, uid, gid, size, mtime_ns
Looked = dict[str, Row]  # by name
Dressed = list[str]  # names of files that have extended attributes, or may have


class Twin:
    """The other process. For one thread at a time: see `lock`. Close it."""

    def __init__(self, limit: int, *, xattrs: bool) -> None:
        """`limit`: entries of one directory. `xattrs`: look for extended attributes, too.

        Raises OSError where there can be no process.
        """
        self.lock = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.settimeout(_ANSWER_S)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable, "-ISE", str(_CHILD), str(theirs.fileno()), str(limit),
                        "xattrs" if xattrs else "",
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        self._link = ours

    def ask(self, handle: int) -> None:
        """Send an open directory, which may be closed afterwards. Raises OSError."""
        socket.send_fds(self._link, [b"?"], [handle])

    def answer(self) -> tuple[Looked, Dressed] | None:
        """What the next of the directories has; None: look for yourself. Raises OSError."""
        (length,) = struct.unpack("=Q", self._receive(8))
        # Made by a process of ours a moment ago.
        found = marshal.loads(self._receive(length))  # noqa: S302
        return found if isinstance(found, tuple) else None

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            more = self._link.recv(length - len(data))
            if not more:
                raise ConnectionError("the process that looks at directories has ended")
            data += more
        return bytes(data)

    def close(self) -> None:
        """End it; blocks until it is gone, or for a moment if its disk hangs."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._link.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
