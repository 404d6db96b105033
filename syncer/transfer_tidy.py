"""What writers that were killed have left in local folders."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from syncer.local_tree import LocalTree
from syncer.remotes.errors import RemoteError
from syncer.steps import StepKind, TakenStep

_FOLDERS_MAX: Final = 10_000  # remembered as done; beyond, some are looked into twice


class Tidy:
    """Removes parts of ended processes from the folders that a job writes files into.

    A process that dies leaves them beside files that it was to write. So the job that goes on has
    steps there, and so has another one that does the same; that one has seen them on its way.
    """

    def __init__(self, tree: LocalTree, *, resumed: bool) -> None:
        """`resumed`: an earlier process may have died in this job."""
        self._tree = tree
        self._resumed = resumed
        self._done: set[bytes] = set()

    async def before(self, taken: Sequence[TakenStep]) -> None:
        """Look into the folders of these steps, if there may be something."""
        if not (self._resumed or self._tree.scanner.found_parts):
            return
        files = [each.step.path for each in taken if each.step.kind is StepKind.COPY]
        for folder in {path.rpartition(b"/")[0] for path in files} - self._done:
            if len(self._done) >= _FOLDERS_MAX:
                self._done.clear()
            self._done.add(folder)
            with suppress(RemoteError):  # whoever writes there will say what is wrong
                await self._tree.clean(folder)
