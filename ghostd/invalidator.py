"""Tells the kernel what names lead to and attributes are now: from a thread, never in a request.

The kernel lets the thread wait, uninterruptibly, for a lookup in the directory. A lookup that in
turn waits for a remote must not be what it waits for: the daemon could not be killed, and who tried
would be left with a mount that never answers. So names of a directory that is being listed wait
until the listing has ended, and with it those who wait for it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pyfuse3
import structlog
import trio

log = structlog.get_logger(__name__)

_PENDING_MAX = 10_000  # beyond, names are found out when the kernel asks again
_HELD_S = 0.1  # between two looks at directories that are being listed
_TOLD_S = 5.0  # who waits until the kernel has been told waits no longer than this


class Invalidator:
    """A queue of names. The kernel may make the thread wait for requests under way."""

    def __init__(self) -> None:
        self._pending: dict[tuple[int, bytes | None], None] = {}
        self._telling = False
        self._wanted = trio.Event()
        self._rounds = trio.lowlevel.ParkingLot()  # those who wait for the end of one

    def name(self, directory: int, name: bytes) -> None:
        """`name` in the directory leads elsewhere, or nowhere, or somewhere now."""
        if len(self._pending) < _PENDING_MAX:
            self._pending[directory, name] = None
            self._wanted.set()

    def inode(self, ino: int) -> None:
        """The inode has other attributes now."""
        if len(self._pending) < _PENDING_MAX:
            self._pending[ino, None] = None
            self._wanted.set()

    async def run(self, listing: Callable[[int], bool]) -> None:
        """Tell the kernel, until cancelled; `listing`: somebody may wait for this directory."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            pending, self._pending = self._pending, {}
            held = {place: None for place in pending if listing(place[0])}
            free = [place for place in pending if place not in held]
            if free:
                self._telling = True
                await trio.to_thread.run_sync(_tell, free, abandon_on_cancel=True)
                self._telling = False
            self._pending = held | self._pending
            self._rounds.unpark_all()
            if held:
                self._wanted.set()
                await trio.sleep(_HELD_S)

    async def told(self) -> None:
        """Return when the kernel knows of every name so far, or has had its time.

        For calls after which everybody should see what they have done.
        """
        with trio.move_on_after(_TOLD_S):
            while self._pending or self._telling:
                await self._rounds.park()


def _tell(names: list[tuple[int, bytes | None]]) -> None:
    for directory, name in names:
        try:
            if name is None:
                pyfuse3.invalidate_inode(directory, attr_only=True)
            else:
                pyfuse3.invalidate_entry(directory, name)
        except OSError as error:
            # ENOENT: the kernel does not know the name.
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                log.debug("the kernel kept a name", inode=directory, error=str(error))
