"""What the control API may ask of the daemon, in plain values and without a loop.

`main` implements `Control`; `api` calls it. `status` and `stats` are called from the API's own loop
and answer from memory at once; the other calls may block and are made from worker threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ghostd.jobs_facade import JobControl
from ghostd.projection_facade import ProjectionCalls, RemoteProblem
from ghostd.snapshots_facade import SnapshotCalls


class DaemonState(StrEnum):
    """Where the daemon is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class CommitStatus:
    """How the data reaches the disk; times are seconds, ages count back from now."""

    count: int = 0  # commits that succeeded in this run
    last_age_s: float | None = None  # None: none yet in this run
    last_duration_s: float | None = None
    last_error: str | None = None  # of the last attempt; None when it succeeded
    in_flight_s: float | None = None  # how long the running one has taken; None: none is running


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to "how are you": small, and available while everything else is stuck."""

    state: DaemonState
    mount: str
    state_folder: str
    version: str
    pid: int
    uptime_s: float
    loop_lag_s: float  # seconds since the filesystem's loop last ticked
    dirty_bytes: int
    dirty_ops: int
    commit: CommitStatus
    free_bytes: int  # in the state folder, as of the last look
    files: int | None = None  # None: not counted yet; as of some commit
    directories: int | None = None
    projected: int | None = None  # entries of projections that are known
    logical_bytes: int | None = None  # what was written here, holes not counted
    stored_bytes: int | None = None  # what the packs occupy, with snapshots and cached blocks
    damaged_chunks: int = 0  # found in this run
    damaged_files: int = 0
    remotes: tuple[RemoteProblem, ...] = ()  # those that do not answer, or not well
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperationStats:
    """One kind of FUSE request since the daemon started."""

    count: int
    errors: int  # answered with an errno, expected ones (ENOENT …) included
    seconds: float  # summed over the requests, waiting included


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters (they only grow) and gauges (what is now), by name; units last in the names.

    Names are lower case with underscores, so that they become metric names as they are.
    """

    operations: dict[str, OperationStats]
    counters: dict[str, float]
    gauges: dict[str, float]


@dataclass(frozen=True, slots=True)
class FlushReport:
    """Everything done before the call is on the disk."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One named invariant."""

    name: str
    promise: str  # what it means, in words
    ok: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Every check that ran, and the files whose content is lost."""

    data: bool  # all stored data was read back
    checks: tuple[CheckItem, ...]
    damaged_files: tuple[str, ...]  # paths from the root of the mount, by `printable_path`
    seconds: float
    ok: bool  # every check passed and no file is damaged

    @classmethod
    def of(
        cls,
        checks: Sequence[CheckItem],
        damaged_files: Sequence[str],
        *,
        data: bool,
        seconds: float,
    ) -> CheckReport:
        """Return the report whose verdict follows from what was found."""
        ok = not damaged_files and all(item.ok for item in checks)
        return cls(data, tuple(checks), tuple(damaged_files), seconds, ok)


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection freed, or would free."""

    dry_run: bool
    live_chunks: int  # what the tree and its newest copy need
    packs_condemned: int  # with too large a dead part
    packs_removed: int  # 0 in a dry run
    bytes_freed: int  # of the state folder, net of what was copied
    bytes_copied: int  # live records of condemned packs
    seconds: float


def printable_path(path: bytes) -> str:
    r"""Return a path as text that JSON can carry: bytes that are not UTF-8 become `\xNN`."""
    return path.decode("utf-8", "backslashreplace")


class Control(Protocol):
    """The daemon, seen from the API. Thread-neutral: any thread may call any method.

    The blocking methods raise `OrbitError` (the message is shown to the user) and `TimeoutError`.
    """

    projections: ProjectionCalls | None  # None: this daemon has none and takes none
    snapshots: SnapshotCalls | None  # likewise
    jobs: JobControl | None  # likewise

    def status(self) -> Status:
        """Return at once, from memory, without taking a lock that I/O is done under."""

    def stats(self) -> Stats:
        """Return at once, like `status`."""

    def flush(self, timeout_s: float) -> FlushReport:
        """Block until everything done so far is durable; TimeoutError after `timeout_s`."""

    def check(self, *, data: bool) -> CheckReport:
        """Block until every invariant has been looked at; `data` reads every chunk back."""

    def collect(self, *, dry_run: bool, waste_max: float | None) -> CollectReport:
        """Block until unused chunks are gone.

        `waste_max` (0 to 1): the share of dead bytes up to which a pack is left alone; None takes
        the configured one.
        """

    def stop(self) -> None:
        """Begin a clean stop (flush, commit, unmount) and return without waiting for it."""
