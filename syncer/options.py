"""What a job is to do, as values that can be stored and sent: JSON of `JobSpec`.

Every flag of the command line ends up here, and nowhere else. What goes together is decided by
`guidance`, what a destination can take by `guardian`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

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
    force: bool = False  # delete however many, also where files failed
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

    dry_run: bool = False  # only tell what would be done

    # Snapshots.
    name: str = ""
    tags: tuple[str, ...] = ()
    expires: str = ""  # a duration
    on_conflict: OnConflict = OnConflict.REFUSE
    closed_only: bool = False  # push: what somebody has open waits for another time

    # NAME=VALUE, of the remotes that are opened; source.NAME and dest.NAME are one end's.
    remote_options: tuple[str, ...] = ()


_DEFAULTS: Final = {
    # A snapshot has everything: it comes back.
    Verb.RESTORE: Options(owners=True, xattrs=True),
    # Names, kinds, sizes and contents; what else is compared is asked for.
    Verb.VERIFY: Options(modes=False, times=False),
}


def default_options(verb: Verb) -> Options:
    """Return how a verb is carried out unless the job says otherwise."""
    return _DEFAULTS.get(verb, Options())


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
