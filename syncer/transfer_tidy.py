"""What writers that were killed, or cut off, have left at the destination."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from syncer.remotes.errors import RemoteError
from syncer.steps import StepKind, TakenStep

_FOLDERS_MAX: Final = 10_000  # remembered as done; beyond, some are looked into twice


class HasParts(Protocol):
    """A tree in which files have other names while they are written."""

    @property
    def found_parts(self) -> bool:
        """Whether a listing has come by such a file."""

    async def clean(self, path: bytes) -> int:
        """Remove those of one directory that nobody writes any more; how many."""


class Tidy:
    """Removes parts of ended processes from the folders that a job writes files into.

    A process that dies leaves them beside files that it was to write. So the job that goes on has
    steps there, and so has another one that does the same; that one has seen them on its way.
    """

    def __init__(self, tree: HasParts, *, resumed: bool) -> None:
        """`resumed`: an earlier process may have died in this job."""
        self._tree = tree
        self._resumed = resumed
        self._done: set[bytes] = set()

    async def before(self, taken: Sequence[TakenStep]) -> None:
        """Look into the folders of these steps, if there may be something."""
        if not (self._resumed or self._tree.found_parts):
            return
        files = [each.step.path for each in taken if each.step.kind is StepKind.COPY]
        for folder in {path.rpartition(b"/")[0] for path in files} - self._done:
            if len(self._done) >= _FOLDERS_MAX:
                self._done.clear()
            self._done.add(folder)
            with suppress(RemoteError):  # whoever writes there will say what is wrong
                await self._tree.clean(folder)
