"""Names of files that are being written, and which of those left behind may go.

`.orbit-<boot>-<pid>-<start>-<random>-<number>.part` belongs to a process and is worth nothing when
that has ended; `boot` is a hash of the boot and of the space in which the pid counts.
`.orbit-kept-<random>.part` belongs to a job that may go on in it. Both lie in the folder of the
file that they will be, also at remotes that know no other way to write a file whole.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

PREFIX: Final = b".orbit-"
STALE_S: Final = 7 * 86_400.0  # a kept part, or another machine's, that nobody has touched since

_OWNED: Final = re.compile(
    rb"\.orbit-([0-9a-f]{8})-([0-9a-f]+)-([0-9a-f]+)-[0-9a-f]{8}-[0-9a-f]+\.part"
)
# The last: what older versions wrote at remotes.
_OTHER: Final = re.compile(rb"\.orbit-kept-[0-9a-f]{16}\.part|\.orbit-[0-9a-f]{16}\.(?:tmp|part)")


def is_part(name: bytes) -> bool:
    """Whether a file of this name is one that is being written."""
    return name.startswith(PREFIX) and bool(_OWNED.fullmatch(name) or _OTHER.fullmatch(name))


def kept_name() -> bytes:
    """A new name for what a later process may go on with."""
    return b".orbit-kept-%s.part" % secrets.token_hex(8).encode()


def is_dead(name: bytes, age_s: float, boot: bytes, starts: Callable[[int], int | None]) -> bool:
    """Whether nobody will go on with a part. Pure.

    `age_s`: since it was changed; `starts`: when a process of this machine began, None: there is
    none.
    """
    owned = _OWNED.fullmatch(name)
    if owned is None or owned[1] != boot:
        return age_s > STALE_S
    return starts(int(owned[2], 16)) != int(owned[3], 16)


def this_boot() -> bytes:
    """What tells this boot, and space of pids, from others: 8 hexadecimal digits."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    space = b"%d" % Path("/proc/self/ns/pid").stat().st_ino
    return hashlib.sha256(boot + space).hexdigest()[:8].encode()


def process_start(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()  # from the third on: see proc(5)
    return None if fields[0] == b"Z" else int(fields[19])


class PartNames:
    """Gives this process's names. For any thread."""

    def __init__(self) -> None:
        self.boot = this_boot()
        pid = os.getpid()
        self._prefix = b".orbit-%s-%x-%x-%s" % (
            self.boot,
            pid,
            process_start(pid) or 0,
            secrets.token_hex(4).encode(),
        )
        self._numbers = itertools.count()

    def new(self) -> bytes:
        """A name that nothing has."""
        return b"%s-%x.part" % (self._prefix, next(self._numbers))


@cache
def _names_of(pid: int) -> PartNames:  # noqa: ARG001  a fork is another process
    return PartNames()


def new_part() -> bytes:
    """A name for a file that this process writes at a remote. For any thread."""
    return _names_of(os.getpid()).new()
