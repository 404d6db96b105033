"""What the control API may ask about snapshots, in plain values and without a loop.

`snapshots_control` implements `SnapshotCalls`. Paths are text as `orbit_paths` writes it: of the
tree from the root of the mount, in a snapshot from the snapshot's root; both begin with `/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot."""

    name: str
    id: str  # of its record, hexadecimal
    taken_ns: int  # nanoseconds since 1970
    host: str
    source: str  # what it was taken of
    tags: tuple[str, ...]
    expires_ns: int | None  # None: it stays until it is removed
    root: str  # id of its tree, hexadecimal: equal trees have equal ones
    files: int
    bytes: int  # of the files, holes included
    in_use: tuple[str, ...] = ()  # where it is projected


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """Snapshots, newest first. `cursor`: ask again with it for more; None: this is the end."""

    snapshots: tuple[SnapshotInfo, ...]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """A snapshot to be taken."""

    path: str = "/"
    name: str = ""  # chosen where it is empty
    tags: tuple[str, ...] = ()
    expires_s: float | None = None  # from now


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot, and what it cost."""

    snapshot: SnapshotInfo
    directories_written: int  # that had changed; the others were there already
    directories_left_out: tuple[str, ...]  # projections: recorded as empty directories
    paused_s: float  # how long no commit could run
    seconds: float


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """One name in a snapshot. None: not known."""

    name: str
    kind: str  # file, directory, symlink, fifo, socket, character device, block device
    bytes: int  # of a directory: of all files below
    files: int | None  # below a directory
    mode: int | None
    uid: int | None
    gid: int | None
    mtime_ns: int | None
    target: str | None  # of a symlink


@dataclass(frozen=True, slots=True)
class Shown:
    """A path in a snapshot, and a page of what is in it, by name."""

    snapshot: SnapshotInfo
    path: str
    entry: SnapshotEntry
    entries: tuple[SnapshotEntry, ...] = ()
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotChange:
    """One difference."""

    kind: str  # added, removed, content, metadata
    path: str
    old: SnapshotEntry | None  # None: added
    new: SnapshotEntry | None  # None: removed


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """A page of differences."""

    changes: tuple[SnapshotChange, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Keep:
    """How many snapshots of each kind stay, for each source."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    tags: tuple[str, ...] = ()  # with one of these a snapshot stays, whatever the numbers say


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one snapshot, and why."""

    snapshot: SnapshotInfo
    kept: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune has done, or would do."""

    dry_run: bool
    verdicts: tuple[Verdict, ...]  # newest first
    failed: tuple[str, ...]  # snapshots that could not be removed, with the reason


@dataclass(frozen=True, slots=True)
class Removed:
    """Snapshots that are gone."""

    snapshots: tuple[SnapshotInfo, ...]


class SnapshotCalls(Protocol):
    """Snapshots, seen from the API. Thread-neutral, blocking; raises OrbitError, TimeoutError."""

    def snapshots(self, *, cursor: str | None, limit: int) -> SnapshotPage:
        """A page of all snapshots."""

    def take(self, wanted: Take) -> Taken:
        """Take one; it is durable when this returns."""

    def show(self, name: str, path: str, *, cursor: str | None, limit: int) -> Shown:
        """A path in a snapshot. `name`: a name, the beginning of an id, latest, latest:TAG."""

    def diff(
        self, old: str, new: str, path: str, *, cursor: str | None, limit: int
    ) -> SnapshotDiff:
        """A page of what differs between two snapshots; `new` may be `live`: the tree as it is."""

    def remove(self, names: Sequence[str], *, force: bool) -> Removed:
        """Remove them; `force`: also what is projected, which then shows nothing more."""

    def prune(self, keep: Keep, *, source: str, dry_run: bool) -> Pruned:
        """Remove what no rule keeps; `source`: only of this source; empty: of all."""
