"""Small files in batches, to a tree that takes many at once: the daemon's namespace.

One by one, each would cost three calls through the door. What a batch cannot do (a file that
changed, that is there already, a disk that is full) is left to the way of single steps, which tries
again and says what is wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import trio

from syncer.door import SmallFile
from syncer.local_nodes import read_xattrs, same
from syncer.local_root import Directories, read_all
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import TRANSIENT, Changed, Exists, Full, Missing, RemoteError
from syncer.remotes.local import system_errors
from syncer.steps import StepResult, StepState, TakenStep
from syncer.transfer_content import Pass
from syncer.transfer_meter import Meter
from syncer.transfer_steps import wanted_metadata
from syncer.tree import Features, Metadata, Node, Tree

SMALL_BYTES_MAX: Final = 1 << 20  # larger ones have a progress of their own
_AT_ONCE: Final = 16  # files that are read from a tree that is not local

_LATER: Final = (*TRANSIENT, Changed, Exists, Full)


class ManyWriter(Protocol):
    """A tree that takes many small files at once."""

    @property
    def features(self) -> Features:
        """See Tree."""

    async def write_many(self, files: Sequence[SmallFile]) -> list[Node | RemoteError]:
        """Write them; each one succeeds or fails alone."""


class _Read(NamedTuple):
    """A file of a batch with its bytes and attributes."""

    place: int  # in the batch
    file: SmallFile


class ManyMover:
    """See Mover."""

    steps_max = 500
    bytes_max = 8 << 20  # in memory, twice for each batch under way

    def __init__(
        self,
        source: Tree,
        target: ManyWriter,
        options: Options,
        meter: Meter,
        *,
        take: Pass | None = None,
    ) -> None:
        """`take` waits for bandwidth."""
        self._source = source
        self._target = target
        self._options = options
        self._meter = meter
        self._take = take

    async def move(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Mover. What is to be verified is left to the way of single steps, which does it."""
        results: list[StepResult | None] = [None] * len(taken)
        places = [place for place, each in enumerate(taken) if self._fits(each)]
        if not places:
            await trio.lowlevel.checkpoint()
            return results
        began = time.monotonic()
        if self._take is not None:
            await self._take(sum(taken[place].step.size for place in places))
        if isinstance(self._source, LocalTree):
            read = await self._source.wait(self._read_local, self._source, taken, places)
        else:
            read = await self._read_any(taken, places)
        if not read:
            return results
        try:
            outcomes = await self._target.write_many([each.file for each in read])
        except RemoteError:
            return results  # one by one, with the patience that each has
        seconds = (time.monotonic() - began) / len(read)
        for each, outcome in zip(read, outcomes, strict=True):
            results[each.place] = self._result(taken[each.place], outcome, seconds)
        return results

    def _fits(self, taken: TakenStep) -> bool:
        step, node = taken.step, taken.step.node
        if node is None or not node.exact or taken.attempts or self._options.verify:
            return False
        if step.size > SMALL_BYTES_MAX or (
            node.allocated is not None and node.allocated < step.size
        ):
            return False  # one with holes keeps them
        return step.old is None or not self._options.trash

    def _small(
        self, taken: TakenStep, place: int, data: bytes, xattrs: dict[bytes, bytes] | None
    ) -> _Read:
        step = taken.step
        assert step.node is not None
        return _Read(
            place,
            SmallFile(
                step.path,
                data,
                self._metadata(step.node, xattrs),
                step.old,
                replace=step.old is not None,
            ),
        )

    def _metadata(self, node: Node, xattrs: dict[bytes, bytes] | None) -> Metadata:
        return wanted_metadata(node, self._options, self._target.features, xattrs)

    @property
    def _with_xattrs(self) -> bool:
        return self._options.xattrs and self._target.features.xattrs

    def _read_local(
        self, source: LocalTree, taken: Sequence[TakenStep], places: Sequence[int]
    ) -> list[_Read]:
        """All that can be read as they were listed. Blocks."""
        found: list[_Read] = []
        directories = Directories(source.root)
        try:
            for place in places:
                step = taken[place].step
                assert step.node is not None
                try:
                    with system_errors(source.root.path(step.source_path)):
                        handle = directories.open_file(step.source_path)
                        try:
                            read = self._read_one(handle, step.node)
                        finally:
                            os.close(handle)
                except RemoteError:
                    continue
                if read is not None:
                    found.append(self._small(taken[place], place, *read))
        finally:
            directories.close()
        return found

    def _read_one(self, handle: int, node: Node) -> tuple[bytes, dict[bytes, bytes] | None] | None:
        """None: it is another one, or becomes one meanwhile. Raises OSError."""
        if not same(os.fstat(handle), node):
            return None
        data = read_all(handle, 0, node.size)
        xattrs = read_xattrs(b"/proc/self/fd/%d" % handle) if self._with_xattrs else None
        if len(data) != node.size or not same(os.fstat(handle), node):
            return None
        return data, xattrs

    async def _read_any(self, taken: Sequence[TakenStep], places: Sequence[int]) -> list[_Read]:
        found: list[_Read] = []
        todo = list(reversed(places))

        async def work() -> None:
            while todo:
                place = todo.pop()
                step = taken[place].step
                assert step.node is not None
                try:
                    data = b""
                    if step.size:
                        data = await self._source.read(step.source_path, step.node, 0, step.size)
                    xattrs = None
                    if self._with_xattrs:
                        xattrs = dict(await self._source.xattrs(step.source_path))
                except RemoteError:
                    continue
                found.append(self._small(taken[place], place, data, xattrs))

        async with trio.open_nursery() as nursery:
            for _ in range(min(_AT_ONCE, len(todo))):
                nursery.start_soon(work)
        return found

    def _result(
        self, taken: TakenStep, outcome: Node | RemoteError, seconds: float
    ) -> StepResult | None:
        if isinstance(outcome, (*_LATER, Missing)):
            return None
        if isinstance(outcome, RemoteError):
            return StepResult(taken.number, StepState.FAILED, error=str(outcome))
        self._meter.bytes_done += taken.step.size
        return StepResult(
            taken.number, StepState.DONE, bytes_moved=taken.step.size, seconds=seconds
        )
