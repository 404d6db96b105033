"""What a plan consists of: values between the planner, `jobs.db` and the transfer."""

from __future__ import annotations

import enum
from typing import NamedTuple

from syncer.tree import Node


class StepKind(enum.IntEnum):
    """What a step does. In this order: deletions after all else that could fail.

    What replaces a directory waits until that is deleted, and metadata of directories comes last,
    since deleting in one changes its times and may need its old mode.
    """

    MKDIR = 1  # make the directory, empty of metadata; `old`: in place of a file or symlink
    COPY = 2  # the file's bytes and metadata
    SYMLINK = 3
    SPECIAL = 4  # a pipe, socket or device
    LINK = 5  # one more name for a file of this job
    METADATA = 6  # of what has the right content already
    TRASH = 7  # move what would be deleted to `source_path`, which lies at the destination too
    DELETE = 8  # a name, or an empty directory; deepest first
    REPLACE = 9  # where a directory was until now: COPY, SYMLINK, … by the kind of `node`
    DIRECTORY_METADATA = 10  # deepest first, after everything in it


class StepState(enum.IntEnum):
    """How far it is."""

    WAITING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    SKIPPED = 4  # it was not needed any more


class Step(NamedTuple):
    """One thing to do. Paths are relative to the roots of the job's trees."""

    kind: StepKind
    path: bytes  # at the destination
    reason: str = ""  # why, for people: "new", "size differs", …
    rank: int = 0  # of the semantic class; lower first
    size: int = 0  # bytes to be moved at most
    source_path: bytes = b""  # where it comes from; the file that LINK names at the destination
    node: Node | None = None  # as the source has it
    old: Node | None = None  # what may be replaced or deleted; None: nothing is there


class TakenStep(NamedTuple):
    """A step to be carried out; its StepResult names its number."""

    number: int
    step: Step
    attempts: int  # that have failed before
    checkpoint: bytes | None  # what was saved for it


class StepResult(NamedTuple):
    """What became of a step."""

    number: int  # of its row
    state: StepState
    bytes_moved: int = 0  # over the wire, or written
    bytes_saved: int = 0  # cloned, deduplicated, found there already
    error: str = ""  # for people
    transient: bool = False  # worth another attempt
    checksum: str = ""  # algorithm:hex of what was read, where it was computed
    seconds: float = 0.0
