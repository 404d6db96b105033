"""Between two local folders no byte goes through Python, if the kernel can help it.

Small files go in batches, large ones alone, with checkpoints; `--smart` builds large changed files
from their old copies. What a batch cannot do (a file that changed, a disk that asks for patience)
is left to the way of single steps, which tries again and says what is wrong.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio
from blake3 import blake3

from syncer.local_copy import CopyItem, CopyOutcome, Method, copy_files
from syncer.local_large import copy_large
from syncer.local_root import Directories
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.local import system_errors
from syncer.semantic import SemanticClass, Strategy
from syncer.steps import Step, StepResult, StepState, TakenStep
from syncer.transfer_content import LATER, Pass
from syncer.transfer_meter import Meter
from syncer.transfer_room import BATCH_BYTES
from syncer.transfer_steps import Steps
from syncer.tree import NodeKind

# One sync of the file system and one hop for so many; cancelling waits for one file of them.
STEPS_MAX: Final = 4_000
SMALL_BYTES_MAX: Final = 8 << 20  # larger ones have a progress of their own
_READ_BYTES: Final = 4 << 20
_DELTA_MIN: Final = 1 << 20  # smaller files are copied as fast as they are compared


class LocalMover:
    """See Mover."""

    bytes_max = BATCH_BYTES

    def __init__(
        self,
        source: LocalTree,
        target: LocalTree,
        options: Options,
        meter: Meter,
        how: Callable[[Method, int], None],
        limited: Callable[[], bool] = lambda: False,
    ) -> None:
        """`how` counts files by the way they were copied. `limited`: bytes wait for bandwidth."""
        self._ways: Counter[Method] = Counter()
        self._source = source
        self._target = target
        self._options = options
        self._meter = meter
        self._how = how
        self._limited = limited

    @property
    def steps_max(self) -> int:
        """See Mover. Those that wait for bandwidth are taken one by one."""
        return 1 if self._limited() else STEPS_MAX

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover."""
        results: list[StepResult | None] = [None] * len(taken)
        items: list[CopyItem] = []
        places: list[int] = []
        if self._limited():
            return results
        for place, each in enumerate(taken):
            step = each.step
            if self._fits(each) and step.node is not None:
                items.append(CopyItem(step.source_path, step.path, step.node, step.old))
                places.append(place)
        if not items:
            return results
        began = time.monotonic()
        outcomes = await copy_files(self._source, self._target, items, self._options)
        digests: Sequence[bytes | None] = [None] * len(items)
        if self._options.verify:
            compare = partial(read_back, self._source, self._target, items, outcomes)
            digests = await self._target.wait(compare)
        seconds = (time.monotonic() - began) / len(items)
        for place, outcome, digest in zip(places, outcomes, digests, strict=True):
            results[place] = self._result(taken[place], outcome, digest, seconds)
        for method, files in self._ways.items():
            self._how(method, files)
        self._ways.clear()
        return results

    def _fits(self, taken: TakenStep) -> bool:
        step = taken.step
        if step.size > SMALL_BYTES_MAX or taken.attempts or taken.checkpoint is not None:
            return False
        # What has an old copy may be built from that, or goes to the trash.
        changed = self._options.smart and step.size >= _DELTA_MIN
        return step.old is None or not (changed or self._options.trash)

    def _result(
        self, taken: TakenStep, outcome: CopyOutcome, digest: bytes | None, seconds: float
    ) -> StepResult | None:
        error = outcome.error
        if error is not None:
            if isinstance(error, LATER):
                return None
            return StepResult(taken.number, StepState.FAILED, error=str(error))
        if self._options.verify and digest is None:
            return None  # it was removed: once more, alone
        self._ways[outcome.method] += 1
        self._meter.bytes_done += taken.step.size
        copied = 0 if outcome.method is Method.REFLINK else outcome.bytes_copied
        return StepResult(
            taken.number,
            StepState.DONE,
            bytes_moved=copied,
            bytes_saved=taken.step.size - copied,
            checksum=f"blake3:{digest.hex()}" if digest is not None else "",
            seconds=seconds,
        )


def _digest(directories: Directories, path: bytes, *, drop: bool) -> bytes:
    """BLAKE3 of a file. `drop`: from the disk, as far as the kernel forgets what it has in memory.

    Blocks. Raises OSError.
    """
    handle = directories.open_file(path)
    try:
        if drop:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        hashed = blake3(max_threads=1)
        offset = 0
        while data := os.pread(handle, _READ_BYTES, offset):
            hashed.update(data)
            offset += len(data)
        return hashed.digest()
    finally:
        os.close(handle)


def read_back(
    source: LocalTree,
    target: LocalTree,
    items: Sequence[CopyItem],
    outcomes: Sequence[CopyOutcome],
) -> list[bytes | None]:
    """The digests of files that both sides have with equal bytes; others are removed: None.

    Blocks.
    """
    digests: list[bytes | None] = []
    there, here = Directories(source.root), Directories(target.root)
    try:
        for item, outcome in zip(items, outcomes, strict=True):
            digest = None
            if outcome.error is None:
                try:
                    digest = _digest(here, item.path, drop=True)
                    if _digest(there, item.source_path, drop=False) != digest:
                        digest = None
                        folder, name = here.spot(item.path)
                        os.unlink(name, dir_fd=folder)
                except OSError:
                    digest = None
            digests.append(digest)
    finally:
        there.close()
        here.close()
    return digests


class LocalSteps(Steps):
    """Single steps between two local folders."""

    def __init__(
        self,
        source: LocalTree,
        target: LocalTree,
        options: Options,
        *,
        how: Callable[[Method, int], None],
        save: Callable[[int, bytes | None], None],
        take: Pass | None = None,
        moved: Callable[[int], None] | None = None,
    ) -> None:
        """`save` keeps a checkpoint for a step."""
        super().__init__(source, target, options, take=take, moved=moved)
        self._from, self._to = source, target
        self._how = how
        self._save = save
        self._waiting = take
        self._counting = moved

    async def _copy(self, number: int, step: Step) -> StepResult:
        assert step.node is not None
        began = trio.current_time()
        step = await self._to_trash(step)
        result = await self._from_old_copy(number, step) if self.options.smart else None
        if result is None:
            result = await self._whole(number, step)
        if self.options.verify:
            drop = partial(self._drop, step.path)
            await self._to.wait(drop)
            checksum = await self._verify(step, None, await self._to.stat(step.path))
            result = result._replace(checksum=checksum)
        return result._replace(seconds=trio.current_time() - began)

    def _drop(self, path: bytes) -> None:
        """Have it read from the disk. Blocks."""
        with system_errors(self._to.root.path(path)):
            directories = Directories(self._to.root)
            try:
                handle = directories.open_file(path)
                try:
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(handle)
            finally:
                directories.close()

    async def _whole(self, number: int, step: Step) -> StepResult:
        assert step.node is not None
        outcome = await copy_large(
            self._from,
            self._to,
            CopyItem(step.source_path, step.path, step.node, step.old),
            self.options,
            checkpoint=self.checkpoints.get(number),
            save=partial(self._save, number),
            take=self._waiting,
            moved=self._counting,
        )
        self._how(outcome.method, 1)
        copied = 0 if outcome.method is Method.REFLINK else outcome.bytes_copied
        saved = step.node.size - copied
        return StepResult(number, StepState.DONE, bytes_moved=copied, bytes_saved=saved)

    async def _from_old_copy(self, number: int, step: Step) -> StepResult | None:
        """By what changed; None: it is not worth it, or there is no old copy."""
        from blockstore.chunker import Chunker, ChunkerParams
        from syncer.local_delta import Run, build, chunks_of, grew, grown_runs, plan_runs

        node, old = step.node, step.old
        assert node is not None
        if old is None or old.kind is not NodeKind.FILE or min(old.size, node.size) < _DELTA_MIN:
            return None
        strategy = SemanticClass(step.rank).strategy
        if strategy is Strategy.REPLACE:
            return None
        runs: list[Run] | None = None
        if await grew(self._from, step.source_path, node, self._to, step.path, old):
            runs = grown_runs(old.size, node.size)
        elif strategy is Strategy.CHUNKS:
            cut = Chunker(ChunkerParams()).cut
            new = await chunks_of(self._from, step.source_path, node, cut)
            runs = plan_runs(new, await chunks_of(self._to, step.path, old, cut))
        if runs is None:
            return None

        async def read(offset: int, length: int) -> bytes:
            if self._waiting is not None:
                await self._waiting(length)
            return await self._from.read(step.source_path, node, offset, length)

        built = await build(
            self._to, step.path, runs, node.size, read, await self.metadata(step), old=old
        )
        self._how(built.method, 1)
        if self._counting is not None:
            self._counting(node.size)
        return StepResult(
            number, StepState.DONE, bytes_moved=built.written, bytes_saved=built.reused
        )
