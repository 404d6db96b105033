"""Tells the kernel that names lead elsewhere now: from a thread, never inside a request."""

from __future__ import annotations

import errno

import pyfuse3
import structlog
import trio

log = structlog.get_logger(__name__)

_PENDING_MAX = 10_000  # beyond, names are found out when the kernel asks again


class Invalidator:
    """A queue of names. The kernel may make the thread wait for requests under way."""

    def __init__(self) -> None:
        self._pending: dict[tuple[int, bytes], None] = {}
        self._wanted = trio.Event()

    def name(self, directory: int, name: bytes) -> None:
        """`name` in the directory leads elsewhere, or nowhere, or somewhere now."""
        if len(self._pending) < _PENDING_MAX:
            self._pending[directory, name] = None
            self._wanted.set()

    async def run(self) -> None:
        """Tell the kernel, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            pending, self._pending = self._pending, {}
            await trio.to_thread.run_sync(_tell, list(pending), abandon_on_cancel=True)


def _tell(names: list[tuple[int, bytes]]) -> None:
    for directory, name in names:
        try:
            pyfuse3.invalidate_entry(directory, name)
        except OSError as error:
            # ENOENT: the kernel does not know the name.
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                log.debug("the kernel kept a name", inode=directory, error=str(error))
