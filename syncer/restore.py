"""Files of a snapshot into a local folder, as fast as store and disk go. See `transfer.Mover`.

Small files go in batches (`restore_small`), large ones some at a time (`restore_large`). What they
cannot do (a file that is in the way, a disk that asks for patience) is left to the way of single
steps, which tries again and says what is wrong.

What is interrupted is run again: files that are there are equal, and skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from syncer.local_delta import Cutter
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.restore_large import LargeFiles
from syncer.restore_small import SmallFiles
from syncer.restore_source import RestoreSource
from syncer.snapshot_tree import SnapshotTree
from syncer.steps import StepResult, TakenStep
from syncer.transfer_content import Pass
from syncer.transfer_meter import Meter

SMALL_BYTES_MAX: Final = 4 << 20
THREADS: Final = 3  # one waits for the disk while two decode
THREADS_AWAY: Final = 8  # of a store that is away: 64 MiB of content at most


class RestoreMover:
    """See Mover: COPY steps from a snapshot to a local folder."""

    steps_max = 10_000  # one sync of the file system for all
    bytes_max = 256 << 20

    def __init__(
        self,
        source: SnapshotTree,
        target: LocalTree,
        options: Options,
        meter: Meter,
        *,
        cut: Cutter | None = None,
        take: Pass | None = None,
    ) -> None:
        """`cut` is the store's, for files that have an older copy; `take` waits for bandwidth."""
        self._options = options
        files = RestoreSource(source, options, target)
        threads = THREADS if source.features.local else THREADS_AWAY
        self._small = SmallFiles(files, meter, threads=threads, take=take)
        self._large = LargeFiles(files, meter, threads=threads, cut=cut, take=take)

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover."""
        small: list[int] = []
        large: list[int] = []
        for place, each in enumerate(taken):
            step = each.step
            if step.node is None or each.attempts or (step.old is not None and self._options.trash):
                continue  # it is done one by one
            (small if step.size <= SMALL_BYTES_MAX else large).append(place)
        found = await self._large.move([taken[place] for place in large])
        found += await self._small.move([taken[place] for place in small])
        results: list[StepResult | None] = [None] * len(taken)
        for place, result in zip(large + small, found, strict=True):
            results[place] = result
        return results


class PackOrder:
    """Ranks that keep the order of a walk, roughly: a backup has stored files in that order.

    By size alone, the smallest first, each batch would be read from all packs there are.
    """

    def __init__(self) -> None:
        self._files = 0

    def next(self) -> int:
        """The rank of the next file."""
        self._files += 1
        return self._files // RestoreMover.steps_max
