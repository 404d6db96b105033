"""Gives memory back after a burst.

A gigabyte that streams through leaves the allocator with up to 300 MiB of free but resident memory,
since buffers of many sizes come and go in several arenas. Smaller mmap thresholds would return it
at once and cost 0.4 s of page faults a GiB (measured); trimming when nothing has happened for a
while costs nothing that anyone waits for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import trio

_LIBC = ctypes.CDLL(None)  # releases the GIL
_QUIET_S = 2.0


async def trim_when_quiet(requests: Callable[[], int]) -> None:
    """Trim the heap once after each burst; `requests` counts those of the mount so far.

    Until cancelled.
    """
    if not hasattr(_LIBC, "malloc_trim"):  # not glibc
        return
    seen = trimmed = requests()
    while True:
        await trio.sleep(_QUIET_S)
        now = requests()
        if now == seen and now != trimmed:
            await trio.to_thread.run_sync(_LIBC.malloc_trim, 0)
            trimmed = now
        seen = now
