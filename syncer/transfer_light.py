"""Between local folders: steps that move no bytes, many in one hop to a thread.

A hop costs as much as making ten directories. What fails is left to the way of single steps, which
tries again and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import RemoteError
from syncer.steps import StepKind, StepResult, StepState, TakenStep
from syncer.transfer_steps import private_mode, wanted_metadata
from syncer.tree import Metadata


class LightSteps:
    """See Light."""

    def __init__(self, source: LocalTree, target: LocalTree, options: Options) -> None:
        self._source = source
        self._target = target
        self._options = options

    async def carry_out(self, taken: Sequence[TakenStep]) -> list[StepResult | None]:
        """See Light."""
        stopped: list[bool] = []

        def work() -> list[StepResult | None]:
            return [None if stopped else self._tried(each) for each in taken]

        try:
            return await self._target.wait(work)
        finally:
            stopped.append(True)  # cancelled: the thread ends after its step

    def _tried(self, taken: TakenStep) -> StepResult | None:
        if taken.attempts:
            return None
        try:
            done = self._one(taken)
        except RemoteError:
            return None
        return StepResult(taken.number, StepState.DONE) if done else None

    def _one(self, taken: TakenStep) -> bool:
        """Whether it is a step for here. Blocks. Raises RemoteErrors."""
        step, files = taken.step, self._target.files
        if step.kind is StepKind.MKDIR and step.old is None:
            files.mkdir(step.path, Metadata(mode=private_mode(self._options, self._target)))
        elif step.kind is StepKind.DELETE and step.old is not None:
            files.delete(step.path, step.old)
        elif step.kind in {StepKind.METADATA, StepKind.DIRECTORY_METADATA} and step.node:
            keeps = self._target.features
            xattrs = None
            if self._options.xattrs and keeps.xattrs:
                xattrs = self._source.files.xattrs(step.source_path)
            files.set_metadata(step.path, wanted_metadata(step.node, self._options, keeps, xattrs))
        else:
            return False
        return True
