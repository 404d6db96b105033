"""What a push does about one change: the same for a dry run and for the run. Pure."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import NamedTuple

from syncer.options import Options
from syncer.push_changes import Change, Gone
from syncer.remotes.remote import Attributes, Capabilities, Entry, Kind, Version
from syncer.tree import NodeKind


class Act(enum.Enum):
    """What is done at the remote."""

    WRITE = "write"  # the file whole, under its goal
    RENAME = "rename"  # what it is based on becomes the goal
    ATTRIBUTES = "attributes"
    SYMLINK = "symlink"
    MKDIR = "mkdir"  # or, where there are no directories, nothing
    REFUSE = "refuse"
    LATER = "later"  # somebody has it open


class Decision(NamedTuple):
    """An act, and why."""

    act: Act
    reason: str


def decide(change: Change, capabilities: Capabilities, options: Options) -> Decision:
    """What becomes of a change."""
    if change.goal is None:
        return Decision(Act.REFUSE, "no remote can have a file of this name")
    match change.kind:
        case NodeKind.DIRECTORY:
            if change.key == change.goal:
                return Decision(Act.ATTRIBUTES, "attributes changed")
            return Decision(Act.MKDIR, "new" if change.key is None else "moved")
        case NodeKind.SYMLINK:
            if not capabilities.symlinks:
                return Decision(Act.REFUSE, "the remote has no symlinks: it stays here only")
            return Decision(Act.SYMLINK, "symlink")
        case NodeKind.FILE:
            return _decide_file(change, capabilities, options)
        case _:
            return Decision(Act.REFUSE, f"a {change.kind.value} cannot be at a remote")


def _decide_file(change: Change, capabilities: Capabilities, options: Options) -> Decision:
    if options.closed_only and change.open:
        return Decision(Act.LATER, "somebody has it open")
    if change.key == change.goal:
        if change.written:
            return Decision(Act.WRITE, "changed")
        return Decision(Act.ATTRIBUTES, "attributes changed")
    if change.key is None:
        return Decision(Act.WRITE, "replaced" if change.replaces is not None else "new")
    if capabilities.rename and change.names == 1 and not change.written:
        return Decision(Act.RENAME, "renamed")
    return Decision(Act.WRITE, "renamed" if change.names == 1 else "one more name")


def may_rename_whole(change: Change, capabilities: Capabilities) -> bool:
    """Whether a moved directory is renamed with all that is in it, should its goal be free."""
    if change.key is None or change.goal is None or change.key == change.goal:
        return False
    there = change.replaces is not None or change.blocked or change.goal.startswith(change.key)
    return capabilities.rename and capabilities.mkdir and not there


def expected(change: Change) -> Version | None:
    """The version that may be replaced at the goal; None: nothing is to be there."""
    if change.key is not None and change.key == change.goal:
        return change.version
    return None if change.replaces is None else change.replaces.version


def attributes_of(change: Change, capabilities: Capabilities, options: Options) -> Attributes:
    """What the remote is to keep of the file besides its bytes."""
    times = options.times and capabilities.mtime_resolution_ns > 0
    owners = options.owners and capabilities.owner
    return Attributes(
        mode=change.mode if options.modes and capabilities.mode else None,
        uid=change.uid if owners else None,
        gid=change.gid if owners else None,
        mtime_ns=change.mtime_ns if times else None,
    )


def is_as_seen(gone: Gone, entry: Entry) -> bool:
    """Whether the remote still has what was taken away here, and nothing newer."""
    if gone.key.endswith(b"/"):
        return entry.kind is Kind.DIRECTORY
    if gone.target is not None:
        return entry.kind is Kind.SYMLINK and entry.target == gone.target
    return entry.kind is Kind.FILE and gone.version is not None and entry.version == gone.version


def is_state(entry: Entry, version: Version | None) -> bool:
    """Whether a file is in this state, be it under another key, where its time may be another."""
    if version is None or entry.kind is not Kind.FILE or entry.size != version.size:
        return False
    if version.etag and entry.etag:
        return version.etag == entry.etag
    return entry.version == version


def was_renamed(change: Change, source: Entry | None, target: Entry | None) -> bool:
    """Whether a push that was cut off has renamed what a moved file is based on."""
    return source is None and target is not None and is_state(target, change.version)


def in_conflict(change: Change, now: Entry | None) -> bool:
    """Whether the remote has something else at the goal of a file or symlink than was seen here."""
    if change.blocked:
        return False  # a directory, whose removal has a look of its own
    if change.kind is NodeKind.SYMLINK:
        if now is None or (now.kind is Kind.SYMLINK and now.target == change.target):
            return False
        return change.replaces is None or not is_as_seen(change.replaces, now)
    if change.key is not None and change.key == change.goal:
        return now is None or not is_state(now, change.version)
    if change.replaces is None:
        return now is not None
    if now is None:
        # A rename needs nothing there; a write says which version it replaces.
        return change.replaces.target is None and change.key is None
    return not is_as_seen(change.replaces, now)


def conflict_name(name: bytes, host: str, moment: datetime) -> bytes:
    """`report.conflict-HOST-YYYYMMDD-HHMMSS.txt` for `report.txt`, at most 255 bytes long."""
    stem, dot, extension = name.rpartition(b".")
    if not stem or len(extension) > 32:
        stem, dot, extension = name, b"", b""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in host)
    mark = f".conflict-{safe[:64]}-{moment:%Y%m%d-%H%M%S}".encode()
    return stem[: 255 - len(mark) - len(dot) - len(extension)] + mark + dot + extension
