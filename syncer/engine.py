"""Runs one job from its words to its report.

`run_job` is what `orbit` and the daemon's worker call. Verbs are a table: each entry runs one verb
and fills in the report.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Final

import trio

from blockstore.errors import OrbitError
from syncer.context import Context
from syncer.events import Event, Report, Tell
from syncer.limit import Limit
from syncer.options import JobSpec, Options, Verb
from syncer.transfer_meter import Meter

if TYPE_CHECKING:
    from syncer.jobs_held import HeldJob
    from syncer.location import Location
    from syncer.transfer_ledger import Ledger

_PROGRESS_EVERY_S: Final = 0.25

# Where each verb is carried out: a module, loaded when it is needed, and its function.
VERBS: Final[dict[Verb, tuple[str, str]]] = {
    Verb.COPY: ("syncer.transfer_job", "run_trees"),
    Verb.SYNC: ("syncer.transfer_job", "run_trees"),
    Verb.RESTORE: ("syncer.transfer_job", "run_trees"),
    Verb.BACKUP: ("syncer.transfer_backup", "run_backup"),
    Verb.VERIFY: ("syncer.transfer_verify", "run_verify"),
    Verb.PUSH: ("syncer.push", "run_push"),
}


class Control:
    """Steers a job from outside: ends it, within a second, or changes how fast it goes."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()  # what is to end
        self.outcome = ""
        self._limit: Limit | None = None
        self._bandwidth: str | None = None  # what was wanted before the job began

    def attach(self, limit: Limit) -> None:
        """The job has begun, and goes by this."""
        self._limit = limit
        if self._bandwidth is not None:
            limit.change(self._bandwidth)

    def throttle(self, bandwidth: str) -> None:
        """Go by another rate or timetable from now on. Raises BadRate."""
        self._bandwidth = bandwidth
        if self._limit is not None:
            self._limit.change(bandwidth)

    def stop(self, outcome: str) -> None:
        """Have it end as "paused" or "cancelled". What was done stays done."""
        if not self.outcome:
            self.outcome = outcome
            self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job: what a verb is given."""

    spec: JobSpec
    context: Context
    tell: Tell
    report: Report
    meter: Meter
    dry_run: bool
    held: HeldJob | None  # the job in `jobs.db`, where it has one
    overflow: Callable[[], Ledger] | None  # opens a place for more steps than the memory takes
    limit: Limit = field(default_factory=Limit)
    notices: set[str] = field(default_factory=set)

    @property
    def options(self) -> Options:
        """The job's."""
        return self.spec.options

    @property
    def job(self) -> int:
        """Its number; 0: it has none."""
        return self.held.number if self.held is not None else 0

    def notice(self, sentence: str) -> None:
        """Tell the user something, once."""
        if sentence not in self.notices:
            self.notices.add(sentence)
            self.report.notices.append(sentence)
            self.say("notice", message=sentence)

    def say(self, event: str, *, message: str = "", count: int = 0) -> None:
        """Tell of something that concerns the whole job."""
        self.tell.event(
            Event(
                event,
                time.time_ns(),
                source=self.report.source,
                destination=self.report.destination,
                bytes=count,
                duration_ms=self.meter.elapsed_s * 1000,
                message=message,
            )
        )


Runner = Callable[[Run], Awaitable[None]]


def runner_of(verb: Verb) -> Runner | None:
    """What carries out a verb; None: it is not known here."""
    if verb not in VERBS:
        return None
    module, name = VERBS[verb]
    found: Runner = getattr(import_module(module), name)
    return found


async def run_job(
    spec: JobSpec,
    context: Context,
    tell: Tell,
    *,
    held: HeldJob | None = None,
    overflow: Callable[[], Ledger] | None = None,
    control: Control | None = None,
    dry_run: bool = False,
) -> Report:
    """Do what `spec` says and return what became of it; cancelled like any trio call.

    Expected errors end in the report. Raises nothing but bugs and cancellation.
    """
    report = Report(spec.verb, _without_secrets(spec.source), _without_secrets(spec.destination))
    report.dry_run = dry_run
    limit = Limit(spec.options.bandwidth, context.bandwidth)
    run = Run(spec, context, tell, report, Meter(), dry_run, held, overflow, limit)
    control = control or Control()
    control.attach(limit)
    run.say("job.started", message=spec.verb)
    with control.scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_progress, run)
            nursery.start_soon(limit.tend)
            await _carry_out(run)
            nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await _seal(run)
    report.seconds = run.meter.elapsed_s
    report.outcome = control.outcome or outcome_of(report)
    tell.progress(run.meter.progress())
    run.say("job.finished", message=report.outcome, count=report.bytes_moved)
    return report


async def _seal(run: Run) -> None:
    """What the job has done is in the audit trail for good."""
    audit = run.context.audit_begun
    if audit is None:
        return
    try:
        await trio.to_thread.run_sync(audit.sync)
    except OrbitError as error:
        run.notice(f"the audit trail could not be brought to the disk: {error}")


def outcome_of(report: Report) -> str:
    """What the counts come to."""
    if report.differences:
        return "differs"
    if not report.failed and not report.deletions_withheld:
        return "done"
    return "partly" if did_anything(report) else "failed"


def did_anything(report: Report) -> bool:
    """Whether any of what was asked for is as it was asked for."""
    if report.verb == Verb.BACKUP and not report.dry_run:
        return bool(report.snapshot)  # files that nothing names are of no use
    return any(
        (
            report.files_copied, report.files_equal, report.links_made, report.directories_made,
            report.specials_made, report.metadata_set, report.deleted, report.trashed,
        )
    )  # fmt: skip


async def _carry_out(run: Run) -> None:
    runner = runner_of(run.spec.verb)
    if runner is None:
        run.report.fail("", f"`{run.spec.verb}` is not carried out here")
        return
    try:
        await runner(run)
    except OrbitError as error:
        run.report.fail("", str(error))
        run.say("file.failed", message=str(error))
    except BaseExceptionGroup as group:
        # Tasks side by side: expected errors are told, anything else is a bug, or cancellation.
        expected, rest = group.split(OrbitError)
        for each in _leaves(expected):
            run.report.fail("", str(each))
            run.say("file.failed", message=str(each))
        if rest is not None:
            raise rest from None


def _leaves(group: BaseExceptionGroup[OrbitError] | None) -> list[OrbitError]:
    found: list[OrbitError] = []
    for each in group.exceptions if group is not None else ():
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


async def _tell_progress(run: Run) -> None:
    while True:
        await trio.sleep(_PROGRESS_EVERY_S)
        run.tell.progress(run.meter.progress())


def _without_secrets(place: str) -> str:
    """A location for logs; one that makes no sense is refused later, with a reason."""
    if "://" not in place:
        return place
    from syncer.remotes.errors import BadUrl
    from syncer.remotes.url import RemoteUrl

    prefix, _, url = place.partition(":") if place.startswith("repo:") else ("", "", place)
    try:
        return (f"{prefix}:" if prefix else "") + str(RemoteUrl.parse(url))
    except BadUrl:
        return place.partition("://")[0] + "://…"


def remote_options_of(
    options: Options, source: Location, destination: Location | None
) -> list[tuple[str, Mapping[str, str]]]:
    """What each end's remote is opened with. Raises BadUrl."""
    from syncer.remotes.errors import BadUrl

    found: dict[str, dict[str, str]] = {"source": {}, "dest": {}}
    for text in options.remote_options:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadUrl(f"--option {text}: write NAME=VALUE")
        end, dot, rest = name.partition(".")
        for each in (end,) if dot and end in found else tuple(found):
            found[each][rest if dot and end in found else name] = value
    ends = [(source.place, found["source"])]
    if destination is not None:
        ends.append((destination.place, found["dest"]))
    return [(place, given) for place, given in ends if place and given]
