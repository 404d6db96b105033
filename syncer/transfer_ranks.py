"""`--smart`: the place of each step in the queue, by name and, where it is cheap, magic bytes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from syncer.ends import Ends
from syncer.local_root import Directories
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import RemoteError
from syncer.semantic import HEAD_BYTES, Classes
from syncer.steps import Step, StepKind
from syncer.tree import NodeKind

Ranks = Callable[[Sequence[Step]], Awaitable[list[Step]]]


def ranking(options: Options, ends: Ends, overrides: Sequence[tuple[str, str]]) -> Ranks | None:
    """What ranks a plan's steps; None: they go as they come. Raises FilterError.

    First bytes are read from local folders alone: elsewhere each file would cost a round trip.
    """
    if not options.smart:
        return None
    classes = Classes(overrides)
    source = ends.source
    if isinstance(source, LocalTree):
        return partial(_by_heads, source, classes)

    async def by_names(steps: Sequence[Step]) -> list[Step]:
        await trio.lowlevel.checkpoint()
        return [_ranked(classes, step, None) for step in steps]

    return by_names


async def _by_heads(source: LocalTree, classes: Classes, steps: Sequence[Step]) -> list[Step]:
    def look() -> list[Step]:
        directories = Directories(source.root)
        try:
            return [
                _ranked(classes, step, _head(directories, step))
                if _is_asked(classes, step)
                else _ranked(classes, step, None)
                for step in steps
            ]
        finally:
            directories.close()

    return await source.wait(look)


def _is_file(step: Step) -> bool:
    return (
        step.kind in {StepKind.COPY, StepKind.REPLACE}
        and step.node is not None
        and step.node.kind is NodeKind.FILE
    )


def _is_asked(classes: Classes, step: Step) -> bool:
    """Whether the name says nothing, and there is something to read."""
    return _is_file(step) and step.size > 0 and classes.named(step.path) is None


def _head(directories: Directories, step: Step) -> bytes | None:
    """The first bytes; None: whoever copies the file will say what is wrong with it. Blocks."""
    try:
        handle = directories.open_file(step.source_path)
        try:
            return os.pread(handle, HEAD_BYTES, 0)
        finally:
            os.close(handle)
    except (OSError, RemoteError):
        return None


def _ranked(classes: Classes, step: Step, head: bytes | None) -> Step:
    if not _is_file(step):
        return step
    return step._replace(rank=classes.classify(step.path, head).rank)
