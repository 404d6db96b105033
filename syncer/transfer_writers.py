"""Trees as those that take small files in batches: see `transfer_many.ManyWriter`."""

from __future__ import annotations

from collections.abc import Sequence

from syncer.door_files import SmallFile
from syncer.local_copy import NewFile, write_files
from syncer.local_tree import LocalTree
from syncer.remotes.errors import RemoteError
from syncer.remotes.held import Held
from syncer.tree import Features, Tree


class LocalWriter:
    """A local folder: one sync of the file system for a batch."""

    steps_max = 4_000
    bytes_max = 16 << 20

    def __init__(self, tree: LocalTree, *, durable: bool) -> None:
        self._tree = tree
        self._durable = durable

    @property
    def features(self) -> Features:
        """See Tree."""
        return self._tree.features

    async def write_many(self, files: Sequence[SmallFile]) -> Sequence[RemoteError | None]:
        """See ManyWriter. Raises RemoteError."""
        new = [
            NewFile(
                file.path,
                file.data,
                len(file.data),
                file.metadata,
                old=file.old,
                replace=file.replace,
            )
            for file in files
        ]
        outcomes = await write_files(self._tree, new, durable=self._durable)
        return [outcome.error for outcome in outcomes]


class EachWriter:
    """A tree that takes one after the other, such as a remote: as many batches go on at a time."""

    steps_max = 32
    bytes_max = 4 << 20

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    @property
    def features(self) -> Features:
        """See Tree."""
        return self._tree.features

    async def write_many(self, files: Sequence[SmallFile]) -> Sequence[RemoteError | None]:
        """See ManyWriter."""
        outcomes: list[RemoteError | None] = []
        for file in files:
            try:
                await self._tree.write(
                    file.path,
                    Held(file.data),
                    file.metadata,
                    old=file.old,
                    replace=file.replace,
                )
            except RemoteError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes
