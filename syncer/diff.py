"""What two nodes of one name, one of each tree, are to each other, and what follows. Pure.

`Rules` are what a job's options and both trees' features come to. `compare` judges what stands at
one path; where looking is not enough it says what must be found out first, and is asked again with
that. What follows from a directory as a whole (deleting it, its metadata) is the plan's business,
since it depends on what is in it.

When something else stands where a node is to go:

- a file, symlink or special gives way to another of them in one move, as a changed file does;
- a file, symlink or special gives way to a directory by MKDIR, which removes it first: what is lost
  is one node, as when it is replaced. Where directories do not exist by themselves it is deleted;
- a directory gives way only where the job deletes, after all that is in it has been deleted, which
  counts against what may be deleted: nothing takes its place before that (REPLACE). Where anything
  in it stays (the filters protect it, or it could not be listed), and in jobs that delete nothing,
  it is in the way, and that is a problem of this path alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

from syncer.options import DELETE_SHARE_MAX, Mode, Options, Verb
from syncer.remotes.remote import Checksum
from syncer.steps import StepKind
from syncer.tree import Features, Node, NodeKind

_FILE: Final = NodeKind.FILE
_DIRECTORY: Final = NodeKind.DIRECTORY
_SYMLINK: Final = NodeKind.SYMLINK
_DEVICES: Final = frozenset({NodeKind.CHARACTER, NodeKind.BLOCK})


@dataclass(frozen=True, slots=True)
class Rules:
    """What a job compares and does. Make them with `rules_of`."""

    deletes: bool  # what the source has not
    keeps_newer: bool  # what is newer at the destination stays
    keeps_existing: bool  # whatever is there stays
    by_content: bool  # not by size and time
    times: bool  # both trees know them, the job keeps them, the destination can
    window_ns: int  # times that are this far apart, or less, are equal
    modes: bool
    owners: bool
    numeric_ids: bool
    xattrs: bool
    directories: bool  # the destination has them by themselves
    symlinks: bool  # the destination has them
    specials: bool
    hard_links: bool


def rules_of(verb: Verb, options: Options, source: Features, destination: Features) -> Rules:
    """Return what `options` come to between these two trees.

    `copy` keeps what is newer at the destination and deletes nothing, whatever the mode.
    """
    mode = Mode.UPDATE if verb is Verb.COPY else options.mode
    # A tree with coarse times cuts off: within one unit nothing can be told.
    resolution_ns = max(source.mtime_resolution_ns, destination.mtime_resolution_ns, 1)
    return Rules(
        deletes=mode is Mode.MIRROR,
        keeps_newer=mode is Mode.UPDATE,
        keeps_existing=options.ignore_existing,
        by_content=options.checksum,
        times=options.times and destination.mtime_resolution_ns > 0,
        window_ns=max(resolution_ns - 1, options.mtime_window_ns),
        modes=options.modes and destination.mode,
        owners=options.owners and destination.owner,
        numeric_ids=options.numeric_ids,
        xattrs=options.xattrs and destination.xattrs,
        directories=destination.directories,
        symlinks=destination.symlinks,
        specials=options.specials and destination.specials,
        hard_links=options.hard_links and destination.hard_links,
    )


class Need(enum.Enum):
    """What must be found out before a pair can be judged."""

    STAT = "stat of the nodes that are not exact"
    CONTENT = "whether the contents are equal"
    XATTRS = "whether the extended attributes are equal"


class Facts(NamedTuple):
    """What was found out; None: not asked yet."""

    same_content: bool | None = None
    same_xattrs: bool | None = None


class Finding(enum.Enum):
    """What follows for one path, where it is not a step."""

    EQUAL = "there is nothing to do"
    NEWER = "what is there is newer, and stays"
    EXISTS = "something is there already, and stays"
    LEFT_OUT = "the destination cannot hold it"
    IN_THE_WAY = "a directory is in the way: only a mirror deletes it"


class Action(NamedTuple):
    """What is to be done for one path: a step without its paths."""

    kind: StepKind
    reason: str


NO_FACTS: Final = Facts()


def same_time(rules: Rules, one_ns: int | None, other_ns: int | None) -> bool:
    """Whether two times are the same as far as anybody can tell."""
    return one_ns is None or other_ns is None or abs(one_ns - other_ns) <= rules.window_ns


def _same_owner(
    number: int | None, name: str | None, there: int | None, name_there: str | None
) -> bool:
    if name is not None and name_there is not None:
        return name == name_there
    return number is None or there is None or number == there


def metadata_reason(rules: Rules, source: Node, destination: Node) -> str:
    """What of the metadata differs, xattrs aside, in words; "": nothing.

    What either tree does not know is no difference.
    """
    if (
        rules.modes
        and source.mode != destination.mode
        and source.kind is not _SYMLINK
        and source.mode is not None
        and destination.mode is not None
    ):
        return "mode differs"
    if rules.owners:
        by_number = rules.numeric_ids
        owner, owner_there = (None, None) if by_number else (source.owner, destination.owner)
        if not _same_owner(source.uid, owner, destination.uid, owner_there):
            return "owner differs"
        group, group_there = (None, None) if by_number else (source.group, destination.group)
        if not _same_owner(source.gid, group, destination.gid, group_there):
            return "group differs"
    if rules.times and not same_time(rules, source.mtime_ns, destination.mtime_ns):
        return "time differs"
    return ""


def _is_newer(rules: Rules, source: Node, destination: Node) -> bool:
    """Whether the destination's is newer than the source's for certain."""
    return (
        source.mtime_ns is not None
        and destination.mtime_ns is not None
        and destination.mtime_ns > source.mtime_ns + rules.window_ns
    )


def same_checksum(one: Checksum | None, other: Checksum | None) -> bool | None:
    """Whether two checksums are equal; None where they do not tell."""
    if one is None or other is None or one.algorithm != other.algorithm:
        return None
    return one.digest == other.digest


def _content_reason(rules: Rules, source: Node, destination: Node, facts: Facts) -> str | Need:
    """Why a file's bytes must be copied; "": they need not."""
    if source.content is not None and source.content == destination.content:
        return ""
    if source.size != destination.size:
        return "size differs"
    if rules.by_content:
        same = same_checksum(source.checksum, destination.checksum)
        if same is None:
            same = facts.same_content
        if same is None:
            return Need.CONTENT
        return "" if same else "content differs"
    if source.mtime_ns is None or destination.mtime_ns is None:
        return ""
    if rules.times:
        return "" if same_time(rules, source.mtime_ns, destination.mtime_ns) else "time differs"
    # The destination's time is when it was written: it must have been after the last change.
    older = destination.mtime_ns + rules.window_ns < source.mtime_ns
    return "older than the source" if older else ""


def step_kind(rules: Rules, source: Node) -> StepKind | Finding:
    """Return the step that makes such a node where nothing is."""
    kind = source.kind
    if kind is _DIRECTORY:
        return StepKind.MKDIR if rules.directories else Finding.EQUAL
    if kind is _FILE:
        return StepKind.COPY
    if kind is _SYMLINK:
        return StepKind.SYMLINK if rules.symlinks else Finding.LEFT_OUT
    return StepKind.SPECIAL if rules.specials else Finding.LEFT_OUT


def compare(
    rules: Rules, source: Node, destination: Node | None, facts: Facts = NO_FACTS
) -> Action | Finding | Need:
    """Judge what stands at one path of both trees.

    Of directories their metadata only: a METADATA action stands for DIRECTORY_METADATA. A directory
    in the way of something else is IN_THE_WAY, also where the plan may delete it.
    """
    if destination is None:
        kind = step_kind(rules, source)
        return kind if isinstance(kind, Finding) else Action(kind, "new")
    if source.kind is not destination.kind:
        return _compare_kinds(rules, source, destination)
    if rules.keeps_existing and source.kind is not _DIRECTORY:
        return Finding.EXISTS
    if source.kind is _FILE:
        return _compare_files(rules, source, destination, facts)
    if source.kind is _SYMLINK:
        if source.target != destination.target:
            return Action(StepKind.SYMLINK, "target differs")
    elif source.kind in _DEVICES and source.rdev != destination.rdev:
        return Action(StepKind.SPECIAL, "device differs")
    return _compare_metadata(rules, source, destination, facts)


def _compare_kinds(rules: Rules, source: Node, destination: Node) -> Action | Finding:
    if rules.keeps_existing:
        return Finding.EXISTS
    if destination.kind is _DIRECTORY:
        kind = step_kind(rules, source)
        return kind if isinstance(kind, Finding) else Finding.IN_THE_WAY
    reason = f"in place of a {destination.kind.value}"
    if source.kind is _DIRECTORY and not rules.directories:
        return Action(StepKind.DELETE, "a directory takes its name")
    kind = step_kind(rules, source)
    return kind if isinstance(kind, Finding) else Action(kind, reason)


def _compare_files(
    rules: Rules, source: Node, destination: Node, facts: Facts
) -> Action | Finding | Need:
    if not (source.exact and destination.exact) and (
        rules.keeps_newer or source.size == destination.size
    ):
        return Need.STAT
    reason = _content_reason(rules, source, destination, facts)
    if isinstance(reason, Need):
        return reason
    if rules.keeps_newer and _is_newer(rules, source, destination):
        return Finding.NEWER
    if reason:
        return Action(StepKind.COPY, reason)
    return _compare_metadata(rules, source, destination, facts)


def _compare_metadata(
    rules: Rules, source: Node, destination: Node, facts: Facts
) -> Action | Finding | Need:
    if reason := metadata_reason(rules, source, destination):
        return Action(StepKind.METADATA, reason)
    if rules.xattrs and source.kind is not _SYMLINK:
        if facts.same_xattrs is None:
            return Need.XATTRS
        if not facts.same_xattrs:
            return Action(StepKind.METADATA, "extended attributes differ")
    return Finding.EQUAL


def deletions_max(options: Options, files: int) -> int | None:
    """How many of the destination's files may be deleted; None: any number.

    `files`: how many there are. See Options.delete_max.
    """
    if options.force:
        return None
    limit = DELETE_SHARE_MAX if options.delete_max is None else options.delete_max
    return int(limit * files + 1e-9) if limit < 1 else int(limit)
