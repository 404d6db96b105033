"""Between a run and its row in `jobs.db`: what is wanted goes in, what it tells and its end go out.

Light, for processes that open `jobs.db` only if a job takes long.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from syncer.bandwidth import BadRate
from syncer.engine import Control
from syncer.events import Event, Progress, Report, event_fields
from syncer.job_states import JobState, Wanted
from syncer.options import JobSpec

if TYPE_CHECKING:
    from syncer.jobs_held import HeldJob

CLEAN_DAYS: Final = 30.0  # steps and logs of jobs that ended are kept for so long
CLEAN_JOBS_MAX: Final = 200  # and of so many, which may have a million steps each

STATE_OF: Final = {
    "done": JobState.DONE,
    "partly": JobState.PARTLY,
    "failed": JobState.FAILED,
    "differs": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}


class JobTell:
    """What a job tells goes into its log. See Tell."""

    def __init__(self, held: HeldJob) -> None:
        self._held = held
        # Not each of a million files that are copied, the audit trail has them; but a plan.
        self.files = held.spec.options.dry_run

    def event(self, event: Event) -> None:
        """See Tell."""
        self._held.tell(event_fields(event))

    def progress(self, progress: Progress) -> None:
        """See Tell."""
        self._held.show(progress.as_json())


def obey(control: Control, wanted: Wanted) -> None:
    """Do what people want."""
    if wanted is Wanted.CANCEL:
        control.stop("cancelled")
    elif wanted is Wanted.PAUSE:
        control.stop("paused")


def adopt(control: Control, spec: JobSpec) -> None:
    """Go by what people have changed of a job that runs: its bandwidth."""
    with contextlib.suppress(BadRate):  # `Jobs.change` refuses those
        control.throttle(spec.options.bandwidth)


def reason_of(report: Report) -> str:
    """Why a job did not get done, in a line."""
    if report.outcome == "differs":
        return f"{report.differences} differences: the data did not verify"
    if report.outcome in {"failed", "partly"} and report.failures:
        first = report.failures[0]
        where = f"{first.path}: " if first.path else ""
        more = f" (and {report.failed - 1} more)" if report.failed > 1 else ""
        return f"{where}{first.error}{more}"
    if report.deletions_withheld:
        return f"{report.deletions_withheld} deletions were not carried out"
    return ""


def end(held: HeldJob, report: Report) -> JobState:
    """Give a job back as its report says. Blocks. Raises JobError, StorageFull, StorageFailed."""
    if report.outcome == "paused":
        return held.release("paused")
    state = STATE_OF[report.outcome]
    held.finish(state, report.as_json(), reason_of(report))
    return state
