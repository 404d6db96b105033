"""Who holds a job, and whether that process is still there.

A holder is written as `boot:namespace:pid:start:token`. Process ids come again; together with the
time the process was started and the boot, they do not.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import time
import zoneinfo
from pathlib import Path

from syncer.jobs_errors import JobsDamaged


class Host:
    """This machine's clocks and processes."""

    def __init__(self) -> None:
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A process id means something in its own namespace only.
        self._namespace = Path("/proc/self/ns/pid").stat().st_ino

    def wall_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def boot_ns(self) -> int:
        """Nanoseconds since the boot, those asleep included; the same for all processes."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def zone(self) -> dt.tzinfo:
        """The time zone that people here live in: $TZ, else /etc/localtime, else UTC."""
        if name := os.environ.get("TZ", "").removeprefix(":"):
            try:
                return zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                return dt.UTC  # what the C library does with a name that it does not know
        try:
            with Path("/etc/localtime").open("rb") as file:
                return zoneinfo.ZoneInfo.from_file(file)
        except (OSError, ValueError):
            return dt.UTC

    def new_holder(self) -> str:
        """A holder for a claim of this process."""
        pid = os.getpid()
        start = _start_ticks(pid)
        return f"{self._boot}:{self._namespace}:{pid}:{start}:{secrets.token_hex(8)}"

    def gone(self, holder: str) -> bool:
        """Whether the holder's process is certainly not there any more."""
        try:
            boot, namespace, pid, start, _ = holder.split(":")
            if boot != self._boot:
                return True
            if int(namespace) != self._namespace:
                return False  # cannot be seen from here: its lease tells
            return _start_ticks(int(pid)) != int(start)
        except ValueError as error:
            raise JobsDamaged(f"the holder of a job is {holder!r}, which nobody wrote") from error


def _start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks after the boot; -1: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The second field, in parentheses, may hold anything.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return -1 if fields[0] in {b"Z", b"X"} else int(fields[19])
