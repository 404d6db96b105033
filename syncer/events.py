"""What a job tells while it runs: events, progress, and the report at its end. Pure values.

An event is one JSON object a line, with the same fields as the records of the audit trail:
timestamp, event, source, destination, bytes, duration_ms, checksum, compression.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from orbit_paths import path_to_text

FAILURES_KEPT: Final = 100  # of a report; the rest is counted, and in the log of the job
REASONS_KEPT: Final = 100  # likewise


class Event(NamedTuple):
    """One thing that happened. Events of files are many: a tuple."""

    event: str  # a word from EVENTS
    time_ns: int  # since 1970
    source: str = ""
    destination: str = ""
    bytes: int = 0
    duration_ms: float = 0.0
    checksum: str = ""  # algorithm:hex, where one was computed
    compression: str = ""
    message: str = ""  # for people: why, or what went wrong


EVENTS: Final = {
    "job.started": "a job begins, or goes on",
    "job.planned": "both trees have been compared; what is to be done is known",
    "job.finished": "with its report",
    "notice": "something that the user should know before or during the job",
    "explained": "what was chosen for the job, and why",
    "directory.made": "",
    "file.copied": "",
    "file.linked": "",
    "file.failed": "with the reason",
    "file.retried": "a file is tried again, with the reason",
    "metadata.set": "",
    "name.deleted": "",
    "name.trashed": "",
    "difference": "verify: the two sides are not alike here",
    "progress": "how far the job is",
}


def timestamp(time_ns: int) -> str:
    """UTC in ISO 8601, with microseconds."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{_whole_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=16)
def _whole_second(seconds: int) -> str:
    """Thousands of records have the same."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}"


def event_fields(event: Event) -> dict[str, Any]:
    """The design's fields; what is empty but for these eight is left out."""
    fields: dict[str, Any] = {
        "timestamp": timestamp(event.time_ns),
        "event": event.event,
        "source": event.source,
        "destination": event.destination,
        "bytes": event.bytes,
        "duration_ms": round(event.duration_ms, 3),
        "checksum": event.checksum,
        "compression": event.compression,
    }
    if event.message:
        fields["message"] = event.message
    return fields


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. Totals grow until `planned`."""

    phase: str = "planning"  # then copying, finishing, deleting; or what the verb does
    planned: bool = False
    files_total: int = 0
    files_done: int = 0
    files_equal: int = 0  # looked at, nothing to do
    files_failed: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    bytes_per_s: float = 0.0  # of late
    eta_s: float | None = None  # None: not known
    current: tuple[str, ...] = ()  # files being moved, some of them
    elapsed_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


class Failure(NamedTuple):
    """One thing that could not be done."""

    path: str
    error: str
    transient: bool = False


@dataclass(slots=True)
class Report:
    """What became of a job. Counts are of this run and those before it of the same job."""

    verb: str
    source: str
    destination: str
    outcome: str = "done"  # done, partly, failed, differs, cancelled, paused
    dry_run: bool = False
    files_seen: int = 0
    files_copied: int = 0
    files_equal: int = 0
    files_left_out: int = 0  # by filters
    links_made: int = 0
    directories_made: int = 0
    specials_made: int = 0
    metadata_set: int = 0
    deleted: int = 0
    trashed: int = 0
    deletions_withheld: int = 0
    failed: int = 0
    retried: int = 0
    bytes_moved: int = 0
    bytes_saved: int = 0  # cloned, deduplicated, found there already
    seconds: float = 0.0
    differences: int = 0  # verify
    snapshot: str = ""  # backup: its name
    how: dict[str, int] = field(default_factory=dict)  # files by way of copying
    notices: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)  # the first of them
    reasons: dict[str, int] = field(default_factory=dict)  # why, and how often; the first of them

    def fail(self, path: str, error: str, *, transient: bool = False) -> None:
        """Count a failure, and keep it while there is room."""
        self.failed += 1
        if error in self.reasons or len(self.reasons) < REASONS_KEPT:
            self.reasons[error] = self.reasons.get(error, 0) + 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(Failure(path, error, transient))

    @property
    def exit_code(self) -> int:
        """0 done, 1 partly, 2 nothing done, 3 data did not verify."""
        return EXIT_CODES[self.outcome]

    def as_json(self) -> dict[str, Any]:
        """A JSON object; paths and text as they are shown."""
        fields = asdict(self)
        fields["failures"] = [each._asdict() for each in self.failures]
        return fields | {"exit_code": self.exit_code}


EXIT_CODES: Final = {
    "done": 0,
    "partly": 1,
    "paused": 1,
    "detached": 0,  # goes on in another process
    "failed": 2,
    "cancelled": 2,
    "differs": 3,
}


class Tell(Protocol):
    """Who is told. Methods return at once and never raise."""

    files: bool  # whether events of single files are wanted; they cost time

    def event(self, event: Event) -> None:
        """Something happened."""

    def progress(self, progress: Progress) -> None:
        """Some time has passed; at most four times a second."""


class Silence:
    """Tells nobody."""

    files = False

    def event(self, event: Event) -> None:
        """See Tell."""

    def progress(self, progress: Progress) -> None:
        """See Tell."""


def shown(path: bytes) -> str:
    """A path for events and reports: text that JSON can carry, and that leads back."""
    return path_to_text(path)
