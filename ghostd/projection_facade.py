"""What the control API may ask about projections, in plain values and without a loop.

`projection_control` implements `ProjectionCalls`. Paths in calls and answers begin at the root of
the mount and are text as `orbit_paths` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RemoteProblem:
    """A projection whose remote does not answer, or not well."""

    url: str
    state: str  # stale: an old listing is shown; failing: what is not here cannot be had
    since_s: float  # how long ago the last call failed
    reason: str
    cure: str


@dataclass(frozen=True, slots=True)
class ProjectionInfo:
    """One projection."""

    url: str
    path: str
    mode: str  # ro, cow, rw
    ttl_s: float
    block_bytes: int
    options: dict[str, str]
    configured: bool  # it comes from the configuration file
    age_s: float  # since it was attached
    listed_age_s: float | None  # since the last complete listing of its root; None: never listed
    state: str  # ok, stale, failing
    since_s: float | None  # None: ok
    reason: str  # empty: ok
    cure: str
    left_out: int  # entries of listings of this run that cannot be shown
    conflicts: int  # files changed here and at the remote
    unpushed: int = 0  # files, directories and names changed here and not pushed
    unpushed_bytes: int = 0  # of the files among them
    pushing: bool = False  # rw: changes wait to be pushed, or are on their way
    push_error: str = ""  # rw: why the last push did not send everything; empty: it did
    pushed_age_s: float | None = None  # rw: since the last push ended; None: none has


@dataclass(frozen=True, slots=True)
class ProjectionList:
    """All projections, in the order they were made."""

    projections: tuple[ProjectionInfo, ...]


@dataclass(frozen=True, slots=True)
class Residency:
    """What of a path is here. Only what is known here is counted: no remote is asked."""

    path: str
    files: int
    directories: int
    unlisted_directories: int  # of which the content is not known here
    bytes: int  # of the files
    local_bytes: int  # read without a remote
    pinned_files: int
    pinned_bytes: int
    dirty_files: int  # made or changed here, in a projection
    dirty_bytes: int  # of these, written here: they are nowhere else


@dataclass(frozen=True, slots=True)
class ResidencyReport:
    """One answer for each path that was asked for."""

    paths: tuple[Residency, ...]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """Directories and files that were asked for again, or will be at the next look."""

    directories: int
    files: int
    waiting: str  # why the remote has not told yet; empty: it has
    seconds: float


@dataclass(frozen=True, slots=True)
class Evicted:
    """What eviction took from the cache."""

    files: int  # that had blocks
    blocks: int
    bytes: int
    pinned_files: int  # left alone
    seconds: float


@dataclass(frozen=True, slots=True)
class Unpinned:
    """Files that may be evicted again."""

    files: int


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between a cow projection and its remote, as far as it was made here."""

    kind: str  # added, modified, deleted, renamed, attributes
    path: str
    source: str | None  # renamed: where the remote has it
    directory: bool | None  # None: deleted, and what it was is not known any more
    bytes: int | None  # the size now; None: deleted
    written: bool  # its content was written here, too
    conflict: bool  # the remote has changed it as well; the one here is shown


@dataclass(frozen=True, slots=True)
class Diff:
    """A page of changes. `cursor`: ask again with it for more; None: this is the end."""

    changes: tuple[Change, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Reverted:
    """What revert dropped."""

    changes: int
    directories: int  # whose entries come back from the remote
    waiting: str  # why they come back later; empty: they are back
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkError:
    """A file or directory that a work could not deal with."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkProgress:
    """How far a warm-up or pin is. Totals grow until `listed`."""

    id: int
    kind: str  # warm, pin
    paths: tuple[str, ...]
    state: str  # running, done, stopped, failed
    listed: bool  # everything below the paths is known, and so are the totals
    files: int
    files_done: int
    bytes: int
    bytes_done: int  # here already, or fetched by now
    bytes_fetched: int
    errors: int
    last_errors: tuple[WorkError, ...]
    current: str  # a path that is being fetched
    reason: str  # failed: why
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkList:
    """Works that run, and the last ones that ended; newest first."""

    works: tuple[WorkProgress, ...]


@dataclass(frozen=True, slots=True)
class Attach:
    """A projection to be made."""

    url: str
    path: str
    mode: str = "ro"
    ttl_s: float = 60.0
    block_bytes: int = 1 << 20
    options: Mapping[str, str] = field(default_factory=dict)


class ProjectionCalls(Protocol):
    """Projections, seen from the API. Thread-neutral: any thread may call any method.

    Those of the first group answer from memory at once; the others may block, and raise
    `OrbitError` (the message is shown to the user).
    """

    def problems(self) -> tuple[RemoteProblem, ...]:
        """Return what is wrong with remotes."""

    def counters(self) -> dict[str, float]:
        """Return counters since the start, for `stats`."""

    def gauges(self) -> dict[str, float]:
        """Return what is now, for `stats`."""

    def works(self) -> WorkList:
        """Return all works that are remembered."""

    def work(self, number: int) -> WorkProgress:
        """Return the progress of one. Raises NoWork."""

    def projections(self) -> ProjectionList:
        """Return all projections."""

    def project(self, wanted: Attach) -> ProjectionInfo:
        """Attach a remote tree."""

    def unproject(self, path: str, *, force: bool) -> ProjectionInfo:
        """Detach a projection; with local changes only if `force`."""

    def refresh(self, path: str, *, recursive: bool) -> Refreshed:
        """Ask the remote again for a directory or file, or all that is known below."""

    def residency(self, paths: Sequence[str]) -> ResidencyReport:
        """Count what is here."""

    def start_work(self, kind: str, paths: Sequence[str]) -> WorkProgress:
        """Begin to fetch everything below the paths: `warm` or `pin`."""

    def stop_work(self, number: int) -> WorkProgress:
        """End a work. Raises NoWork."""

    def unpin(self, paths: Sequence[str]) -> Unpinned:
        """Allow eviction of everything below the paths again."""

    def evict(self, paths: Sequence[str]) -> Evicted:
        """Drop the blocks of everything below the paths, save pinned ones."""

    def diff(self, path: str, *, cursor: str | None, limit: int) -> Diff:
        """Return a page of the changes at and below a path of a projection."""

    def revert(self, path: str) -> Reverted:
        """Drop the changes at and below a path of a projection."""
