"""How much room a plan needs at its destination, as far as that can be known before. Pure."""

from __future__ import annotations

from typing import Final

from syncer.guardian import Need
from syncer.guardian_mounts import Mounts
from syncer.options import Options
from syncer.steps import Step, StepKind
from syncer.tree import Node, NodeKind

BATCH_BYTES: Final = 256 << 20  # of small files that are written before they get their names

# File systems where a copy can share its blocks with the source. Whether it does shows only when
# it is tried: xfs may be made without.
_CLONING: Final = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2", "zfs"})
_MOVING: Final = frozenset({StepKind.COPY, StepKind.REPLACE})
_NEW: Final = frozenset({StepKind.MKDIR, StepKind.COPY, StepKind.SYMLINK, StepKind.SPECIAL})


class Room:
    """Sums over the steps of a plan."""

    def __init__(self, options: Options, *, holes: bool) -> None:
        """`holes`: the destination keeps them, so that they take no room."""
        self._holes = holes
        self._frees = not options.trash
        self._growth_bytes = 0  # what is more at the destination afterwards
        self._twice_bytes = 0  # of files that replace others: for a while both are there
        self._twice_bytes_max = 0  # of one of them
        self._files = 0

    def add(self, step: Step) -> None:
        """Take in a step."""
        if step.kind in _NEW and step.old is None:
            self._files += 1
        node = step.node
        if step.kind not in _MOVING or node is None or node.kind is not NodeKind.FILE:
            return
        wanted = self._on_disk(node) if self._holes else node.size
        freed = self._freed(step.old)
        self._growth_bytes += max(0, wanted - freed)
        twice = min(wanted, freed)
        self._twice_bytes += twice
        self._twice_bytes_max = max(self._twice_bytes_max, twice)

    def _freed(self, old: Node | None) -> int:
        """Bytes that are free again when a file has been replaced."""
        if old is None or old.kind is not NodeKind.FILE or old.link is not None or not self._frees:
            return 0
        return self._on_disk(old)

    @staticmethod
    def _on_disk(node: Node) -> int:
        return node.size if node.allocated is None else min(node.size, node.allocated)

    def need(self, parallel: int, bytes_done: int = 0, files_done: int = 0) -> Need:
        """What has to be free now, with so many files at a time, so much having been done."""
        twice = min(self._twice_bytes, parallel * max(self._twice_bytes_max, BATCH_BYTES))
        return Need(
            max(0, self._growth_bytes - bytes_done) + twice, max(0, self._files - files_done)
        )


def may_clone(source: bytes, destination: bytes, mounts: Mounts) -> bool:
    """Whether files of `source` may share their blocks with copies at `destination`."""
    one, other = mounts.of(source), mounts.of(destination)
    return (
        one is not None
        and other is not None
        and one.type in _CLONING
        and (one.type, one.source) == (other.type, other.source)
    )
