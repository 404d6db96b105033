"""A simulated disk: what was not synced may be lost, torn or reordered when the power goes.

    disk = SimDisk(seed=7)
    disk.crash_at(25)                      # SimulatedCrash at the 25th change from now
    ...run the program on it...
    after = disk.crash()                   # the disk as found after the power cut

`SimDisk` implements `blockstore.disk.Disk`; `SimDisk.sqlite_vfs` names an SQLite VFS that keeps
databases on the same disk, so that one crash hits packs and databases at one moment. Inside SQLite
the crash looks like an I/O error; `SimDisk.crashed` tells whether one has happened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from blockstore.errors import OrbitError
from tests.simdisk.crash import SimulatedCrash
from tests.simdisk.disk import SimDisk

__all__ = ["SimDisk", "SimulatedCrash", "abandon"]


def abandon(close: Callable[[], None]) -> None:
    """Free what a crashed program held (SQLite's connections above all), by its own `close`."""
    with contextlib.suppress(SimulatedCrash, OrbitError):
        close()
