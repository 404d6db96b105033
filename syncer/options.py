"""What a job is to do, as values that can be stored and sent: JSON of `JobSpec`.

Every flag of the command line ends up here, and nowhere else. What goes together is decided by
`guidance`, what a destination can take by `guardian`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from blockstore.errors import OrbitError

DELETE_SHARE_MAX: Final = 0.1  # of the destination's files that a mirror deletes unless told more


class Verb(enum.StrEnum):
    """What a job does."""

    COPY = "copy"  # SRC to DST; what is there and newer or equal stays; nothing is deleted
    SYNC = "sync"  # make DST like SRC, see Mode
    BACKUP = "backup"  # SRC into a store, as a snapshot
    RESTORE = "restore"  # a snapshot to DST
    VERIFY = "verify"  # compare two trees, or read a snapshot whole
    PUSH = "push"  # local changes of a projection back to its remote


class Mode(enum.StrEnum):
    """What sync does with what differs."""

    SYNC = "sync"  # changed files are replaced; nothing is deleted
    UPDATE = "update"  # likewise, but what is newer at the destination stays
    MIRROR = "mirror"  # likewise, and what the source has not is deleted


class Symlinks(enum.StrEnum):
    """What is done with symlinks."""

    KEEP = "keep"
    FOLLOW = "follow"  # what they lead to, inside the source; loops and escapes are refused
    SKIP = "skip"


class OnConflict(enum.StrEnum):
    """What push does where the remote changed meanwhile."""

    REFUSE = "refuse"
    OURS = "ours"  # replace what is there
    THEIRS = "theirs"  # drop the local change
    BOTH = "both"  # keep theirs under its name, push ours beside it


@dataclass(frozen=True, slots=True)
class Options:
    """How it is done."""

    # What.
    recursive: bool = True
    filters: tuple[str, ...] = ()  # rules in order, as `filters` parses them
    symlinks: Symlinks = Symlinks.KEEP
    specials: bool = True  # pipes, sockets, devices
    hard_links: bool = True  # kept within the job
    one_file_system: bool = False

    # What is kept of each file besides its bytes; `archive` on the command line sets all.
    modes: bool = True
    times: bool = True
    owners: bool = False
    numeric_ids: bool = False  # owners by number, not by name
    xattrs: bool = False  # ACLs among them

    # Comparing.
    mode: Mode = Mode.SYNC
    checksum: bool = False  # compare contents, not sizes and times
    ignore_existing: bool = False
    mtime_window_ns: int = 0  # times that differ by less are equal; the trees' resolution is added

    # Deleting.
    delete_max: float | None = None  # None: DELETE_SHARE_MAX; below 1: a share; else files
    force: bool = False  # delete however many
    trash: str = ""  # a folder at the destination that takes what would be deleted or replaced

    # Moving.
    smart: bool = False
    parallel: int = 0  # files at a time; 0: chosen
    bandwidth: str = ""  # a rate or timetable, as `bandwidth` parses it
    compression: str = ""  # of what goes over a wire or into a store: zstd, lz4, none; "": chosen
    verify: bool = False  # read the destination back
    resume: bool = True  # go on in partly copied files
    fail_fast: bool = False
    durable: bool = True  # sync before a file gets its name
    reserve_bytes: int = 64 << 20  # that stay free at the destination

    # Snapshots.
    name: str = ""
    tags: tuple[str, ...] = ()
    expires: str = ""  # a duration
    on_conflict: OnConflict = OnConflict.REFUSE


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job. Locations are as the user wrote them, made absolute: see `location`."""

    verb: Verb
    source: str
    destination: str = ""
    options: Options = field(default_factory=Options)
    priority: int = 0  # higher first
    after: tuple[int, ...] = ()  # jobs that must be done before
    schedule: str = ""  # cron's five fields, or @daily and the like; "": once, now


class BadSpec(OrbitError):
    """The JSON is no job; the message says where."""


def spec_to_json(spec: JobSpec) -> dict[str, Any]:
    """Return what `spec_from_json` reads; options that are as always are left out."""
    usual, found = asdict(Options()), asdict(spec.options)
    options = {name: value for name, value in found.items() if value != usual[name]}
    return asdict(spec) | {"options": options}


def spec_from_json(value: Mapping[str, Any]) -> JobSpec:
    """Read a job. Raises BadSpec for unknown fields and values of a wrong kind."""
    given = dict(value)
    options = given.pop("options", {})
    if not isinstance(options, Mapping):
        raise BadSpec("options: write an object")
    read = _checked(Options(), options)
    spec = _checked(JobSpec(Verb.COPY, ""), given, without=("options",))
    if "verb" not in spec or not spec.get("source"):
        raise BadSpec("a job needs a verb and a source")
    return JobSpec(**spec, options=Options(**read))


def _checked(
    usual: Options | JobSpec, given: Mapping[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    known = {each.name: getattr(usual, each.name) for each in fields(usual)}
    checked = {}
    for name, value in given.items():
        if name not in known or name in without:
            raise BadSpec(f"{name}: there is no such option")
        checked[name] = _value(name, known[name], value)
    return checked


def _value(name: str, usual: object, value: Any) -> Any:
    """`value` as the kind of thing that it usually is."""
    if name == "delete_max":
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
    elif name == "after":
        if isinstance(value, list | tuple) and all(type(each) is int for each in value):
            return tuple(value)
    elif isinstance(usual, enum.StrEnum):
        if isinstance(value, str) and value in list(type(usual)):
            return type(usual)(value)
    elif isinstance(usual, tuple):
        if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            return tuple(value)
    elif type(value) is type(usual):
        return value
    raise BadSpec(f"{name}: {value!r} is not what this option takes")
