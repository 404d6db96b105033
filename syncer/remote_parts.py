"""Files at a remote that are being written, or were left by whoever was killed or cut off."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from syncer.local_parts import is_dead, is_part, process_start, this_boot
from syncer.remotes.errors import Missing
from syncer.remotes.remote import Entry, Kind, Remote

_FOLDERS_MAX: Final = 1_000  # that are remembered; another run finds what is in the others
_PARTS_MAX: Final = 100  # of a folder, likewise


class RemoteParts:
    """Parts that listings of one tree have come by."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._found: dict[bytes, list[Entry]] = {}  # by directory

    @property
    def any(self) -> bool:
        """Whether there are some, dead or alive."""
        return bool(self._found)

    def takes(self, folder: bytes, entry: Entry) -> bool:
        """Whether an entry of a listing is a part, which is noted then."""
        if entry.kind is not Kind.FILE or not is_part(entry.name):
            return False
        if folder in self._found or len(self._found) < _FOLDERS_MAX:
            parts = self._found.setdefault(folder, [])
            if len(parts) < _PARTS_MAX:
                parts.append(entry)
        return True

    async def clean(self, folder: bytes) -> int:
        """Remove what nobody writes any more from one directory; how many. Raises RemoteError.

        Parts of this machine's ended processes at once, others when nobody has touched them for a
        week by the server's clock.
        """
        removed = 0
        for part in self._found.pop(folder, []):
            age_s = 0.0 if part.mtime_ns is None else time.time() - part.mtime_ns / 10**9
            if is_dead(part.name, age_s, this_boot(), process_start):
                with contextlib.suppress(Missing):
                    await self._remote.delete(part.key)
                    removed += 1
        return removed
