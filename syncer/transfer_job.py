"""Copy, sync and restore: from two places to steps, from steps to a tree that is like the other.

Nothing is written before guidance and guardian have looked. Copying begins when the plan is
complete, or has taken long enough. Deletions come when everything else is done, and only if all of
it was: a file that could not be copied may be the last copy of what would be deleted.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from syncer.ends import Ends, open_ends
from syncer.engine import Run, remote_options_of
from syncer.events import FAILURES_KEPT, Event, shown
from syncer.guardian import (
    End,
    Need,
    Surroundings,
    check_space,
    inspect,
    name_check,
    refuse_findings,
)
from syncer.guidance import Severity, check, refuse_errors
from syncer.local_tree import LocalTree
from syncer.location import Location, LocationKind, parse
from syncer.options import Options
from syncer.plan import Plan, make_plan
from syncer.remotes.errors import RemoteError
from syncer.steps import Step, StepKind, StepResult, StepState
from syncer.transfer import COUNTED_AS, EVENT_OF, MAKING, Feed, Mover, Transfer, count
from syncer.transfer_ledger import Ledger, MemoryLedger
from syncer.transfer_single import plan_single
from syncer.transfer_steps import Steps
from syncer.tree import Node, Tree
from syncer.tuning import tune

if TYPE_CHECKING:
    from syncer.bandwidth import Bandwidth
    from syncer.filters import Filters
    from syncer.local_bytes import Method
    from syncer.walk import Problem

_PLAN_FIRST_S: Final = 1.0  # before copying begins though the plan is not complete
_SPACE_EVERY_S: Final = 1.0
_DELETIONS: Final = (StepKind.TRASH, StepKind.DELETE, StepKind.REPLACE)
_NAMING: Final = frozenset(
    {StepKind.MKDIR, StepKind.COPY, StepKind.SYMLINK, StepKind.SPECIAL, StepKind.LINK}
)


def end_of(tree: Tree, location: Location) -> End:
    """One side of a job, as the guardian sees it."""
    if isinstance(tree, LocalTree):
        return End(tree.features, tree.root.root)
    kind = location.place.partition("://")[0] if location.kind is LocationKind.REMOTE else ""
    return End(tree.features, None, kind)


def filters_of(options: Options) -> Filters:
    """The rules of a job; ages count from now. Raises FilterError."""
    from syncer.filters import Filters

    return Filters.parse(options.filters, now_ns=time.time_ns())


async def run_trees(run: Run) -> None:
    """See engine.Runner."""
    spec = run.spec
    source, destination = parse(spec.source, b"/"), parse(spec.destination, b"/")
    context = run.context.with_remote_options(*remote_options_of(spec.options, source, destination))
    async with open_ends(source, destination, context, spec.options) as ends:
        run.report.source, run.report.destination = ends.source.label, ends.destination.label
        ends_seen = end_of(ends.source, source), end_of(ends.destination, destination)
        around = await _look(run, ends, *ends_seen)
        job = _TreesJob(run, ends, ends_seen[1], around)
        job.explain()
        if run.dry_run:
            await job.show_plan()
        else:
            await job.carry_out()


async def _look(run: Run, ends: Ends, source: End, destination: End) -> Surroundings:
    """Guidance and guardian. Raises Refused."""
    advice = check(run.spec, ends.source.features, ends.destination.features)
    for each in refuse_errors(advice):
        run.notice(each.sentence)
    own = [os.fsencode(run.context.state), os.fsencode(run.context.cache)]
    around = await trio.to_thread.run_sync(Surroundings.look, own)
    if ends.file is None:
        found = await trio.to_thread.run_sync(inspect, run.spec, source, destination, around)
        for finding in refuse_findings(found):
            run.notice(finding.sentence)
    return around


class _TreesJob:
    """One run."""

    def __init__(self, run: Run, ends: Ends, end: End, around: Surroundings) -> None:
        self._run = run
        self._ends = ends
        self._end = end
        self._around = around
        self._options = run.options
        self._names = name_check(end, around)
        self._plan = Plan()
        self._feed = Feed()
        self._ready = trio.Event()  # copying may begin
        self._ledger: Ledger = run.held or MemoryLedger(run.overflow)
        self._bandwidth: Bandwidth | None = None
        self._tuner = tune(
            run.options,
            ends.source.features,
            ends.destination.features,
            len(os.sched_getaffinity(0)),
        )

    def explain(self) -> None:
        """Say what was chosen."""
        for reason in self._tuner.tuning.reasons:
            self._run.say("explained", message=reason)

    # --- the plan -----------------------------------------------------------------------------

    async def _make_plan(self, add: Any) -> None:
        options, ends = self._options, self._ends
        if ends.file is not None:
            await plan_single(self._run.spec, ends, add, self._plan)
            return
        rank = None
        if options.smart:
            from syncer.semantic import Classes

            classes = Classes(self._run.context.classes)

            def rank(path: bytes, _: Node) -> int:
                return classes.classify(path).rank
        elif ends.source.features.chunked:
            from syncer.restore import PackOrder

            order = PackOrder()

            def rank(path: bytes, _: Node) -> int:  # noqa: ARG001
                return order.next()

        await make_plan(
            ends.source,
            ends.destination,
            options,
            filters_of(options),
            add,
            verb=self._run.spec.verb,
            rank=rank,
            problem=self._problem,
            plan=self._plan,
        )

    def _problem(self, problem: Problem) -> None:
        path = shown(problem.path)
        self._run.report.fail(path, str(problem.error))
        self._run.meter.files_failed += 1
        self._run.tell.event(
            Event(
                "file.failed",
                time.time_ns(),
                source=path if problem.side.value == "source" else "",
                destination=path if problem.side.value == "destination" else "",
                message=str(problem.error),
            )
        )

    def _held_names(self, steps: Sequence[Step]) -> list[Step]:
        """Those whose names the destination can hold; the others fail at once."""
        kept = []
        for step in steps:
            problem = self._names.check(step.path) if step.kind in _NAMING else None
            if problem is None:
                kept.append(step)
                continue
            self._run.report.fail(shown(step.path), problem.sentence)
            self._run.say("file.failed", message=f"{shown(step.path)}: {problem.sentence}")
        return kept

    def _note_plan(self) -> None:
        """Take what is known of the plan into progress and report."""
        plan, meter, report = self._plan, self._run.meter, self._run.report
        making = plan.steps[StepKind.COPY] + plan.steps[StepKind.REPLACE]
        meter.files_total, meter.bytes_total = making, plan.bytes
        meter.files_equal = plan.equal
        report.files_seen, report.files_equal = plan.files, plan.equal + plan.newer + plan.existing
        report.files_left_out = plan.left_out

    async def show_plan(self) -> None:
        """Tell the steps; nothing is written. They are those that a run would carry out."""
        report, run = self._run.report, self._run

        async def show(steps: Sequence[Step]) -> None:
            for step in self._held_names(steps):
                run.tell.event(
                    Event(
                        f"would.{EVENT_OF[step.kind]}",
                        time.time_ns(),
                        source=shown(step.source_path) if step.node is not None else "",
                        destination=shown(step.path),
                        bytes=step.size,
                        message=step.reason,
                    )
                )
                _count_planned(report, step)
            self._note_plan()
            await trio.lowlevel.checkpoint()

        await self._make_plan(show)
        self._note_plan()
        self._refuse_deletions()
        if problem := await self._space():
            report.fail("", problem)

    def _refuse_deletions(self) -> bool:
        """Whether what deletes may not be done; the report says why."""
        if not self._plan.refusal:
            return False
        self._run.report.deletions_withheld = sum(self._plan.steps[kind] for kind in _DELETIONS)
        self._run.notice(self._plan.refusal)
        return True

    async def _space(self) -> str:
        """Why what is left of the plan does not fit; "": it does."""
        meter = self._run.meter
        need = Need(max(0, self._plan.bytes - meter.bytes_done), 0)
        look = partial(check_space, self._end, need, self._options.reserve_bytes, self._around)
        found = await trio.to_thread.run_sync(look)
        return next((each.sentence for each in found if each.severity is Severity.ERROR), "")

    # --- carrying it out ------------------------------------------------------------------------

    async def carry_out(self) -> None:
        """Plan and copy at the same time, then finish."""
        async with AsyncExitStack() as stack:
            if self._options.bandwidth:
                self._bandwidth = await stack.enter_async_context(limited(self._options))
            transfer = self._transfer()
            async with trio.open_nursery() as nursery:
                if (earlier := self._earlier_plan()) is not None:
                    self._go_on(earlier)
                else:
                    nursery.start_soon(self._plan_all, transfer)
                    nursery.start_soon(self._begin_anyway)
                nursery.start_soon(self._watch_space, transfer)
                await self._ready.wait()
                self._run.meter.phase = "copying"
                await transfer.run(MAKING, self._feed)
                nursery.cancel_scope.cancel()
            await self._finish(transfer)

    async def _begin_anyway(self) -> None:
        await trio.sleep(_PLAN_FIRST_S)
        self._ready.set()

    def _earlier_plan(self) -> Plan | None:
        """What an earlier run has planned to the end; None: plan anew.

        What could not be looked at then, or was refused, is looked at again.
        """
        held = self._run.held
        if held is None or held.attempt == 1 or not held.planned:
            return None
        saved: dict[str, Any] = json.loads(held.checkpoint(0) or b"{}")
        if not saved or saved["problems"] or saved["refusal"]:
            return None
        steps = {StepKind(int(kind)): count for kind, count in saved.pop("steps").items()}
        return Plan(steps=steps, **saved)

    def _go_on(self, earlier: Plan) -> None:
        """With that plan."""
        self._plan = earlier
        self._note_plan()
        _count_done(self._run)
        self._run.meter.planned = True
        self._feed.end()
        self._ready.set()

    async def _plan_all(self, transfer: Transfer) -> None:
        held = self._run.held
        if held is not None and held.attempt > 1:
            await trio.to_thread.run_sync(held.drop_plan)

        async def add(steps: Sequence[Step]) -> None:
            kept = self._held_names(steps)
            if held is not None:
                await trio.to_thread.run_sync(held.add_steps, kept)
            else:
                self._ledger.add_steps(kept)
            self._note_plan()
            if self._ready.is_set():
                self._feed.more()
            await trio.lowlevel.checkpoint()

        await self._make_plan(add)
        self._note_plan()
        if problem := await self._space():
            transfer.full = problem
        if held is not None:
            held.save_checkpoint(0, json.dumps(asdict(self._plan)).encode())
            await trio.to_thread.run_sync(held.flush)  # the plan is not complete without it
            await trio.to_thread.run_sync(held.end_plan)
        self._run.meter.planned = True
        self._run.say("job.planned", count=self._plan.bytes)
        self._feed.end()
        self._ready.set()

    async def _watch_space(self, transfer: Transfer) -> None:
        """What others write counts, too: the reserve stays free whoever fills the disk."""
        while self._end.path is not None and not transfer.full:
            await trio.sleep(_SPACE_EVERY_S)
            look = partial(
                check_space, self._end, Need(1, 0), self._options.reserve_bytes, self._around
            )
            if found := await trio.to_thread.run_sync(look):
                transfer.full = found[0].sentence

    def _transfer(self) -> Transfer:
        run, ends = self._run, self._ends
        bandwidth, meter = self._bandwidth, run.meter
        take = bandwidth.take if bandwidth is not None else None

        def moved(count: int) -> None:
            meter.bytes_done += count

        steps = Steps(ends.source, ends.destination, run.options, take=take, moved=moved)
        mover: Mover | None = None
        if isinstance(ends.source, LocalTree) and isinstance(ends.destination, LocalTree):
            from syncer.semantic import Classes
            from syncer.transfer_local import LocalMover, LocalSteps

            steps = LocalSteps(
                ends.source,
                ends.destination,
                run.options,
                how=self._how,
                save=self._ledger.save_checkpoint,
                classes=Classes(run.context.classes),
                take=take,
                moved=moved,
            )
            if bandwidth is None:
                mover = LocalMover(ends.source, ends.destination, run.options, meter, self._how)
        elif isinstance(ends.destination, LocalTree):
            from syncer.snapshot_tree import SnapshotTree

            if isinstance(ends.source, SnapshotTree):
                from blockstore.chunker import Chunker, ChunkerParams
                from syncer.restore import RestoreMover

                mover = RestoreMover(
                    ends.source,
                    ends.destination,
                    run.options,
                    meter,
                    cut=Chunker(ChunkerParams()).cut,
                    take=take,
                )
        local = ends.source.features.local and ends.destination.features.local
        return Transfer(
            steps,
            self._ledger,
            run.report,
            meter,
            run.tell,
            parallel=self._tuner.tuning.parallel,
            wait_s=0.0 if local else run.context.wait_s,
            durable=run.held is not None,
            mover=mover,
            keep=self._keep if run.context.audited else None,
        )

    def _how(self, method: Method, files: int) -> None:
        how = self._run.report.how
        how[method.value] = how.get(method.value, 0) + files

    def _keep(self, results: Sequence[tuple[Step, StepResult]]) -> None:
        """Into the audit trail. Blocks; not for the trio thread."""
        from syncer.audit import AuditRecord

        audit = self._run.context.audit
        if audit is None:
            return
        source, target = self._run.report.source, self._run.report.destination
        codec = self._tuner.tuning.codec if self._ends.destination.features.chunked else ""
        audit.append(
            self._run.job,
            (
                AuditRecord(
                    EVENT_OF[step.kind],
                    f"{source}/{shown(step.source_path)}" if step.node is not None else "",
                    f"{target}/{shown(step.path)}",
                    result.bytes_moved,
                    result.seconds * 1000,
                    result.checksum,
                    codec,
                    f"failed: {result.error}" if result.state is StepState.FAILED else "done",
                )
                for step, result in results
                if result.state is not StepState.SKIPPED
            ),
        )

    # --- the end ----------------------------------------------------------------------------------

    async def _finish(self, transfer: Transfer) -> None:
        """Links, metadata, deletions, directories: each when what it needs is there."""
        run = self._run
        run.meter.phase = "finishing"
        if not transfer.stopped:
            await transfer.run((StepKind.LINK, StepKind.METADATA))
        if not transfer.stopped:
            await self._delete(transfer)
        if not transfer.stopped:
            run.meter.phase = "finishing"
            await transfer.run_levels(StepKind.DIRECTORY_METADATA)
        await self._sync()

    async def _delete(self, transfer: Transfer) -> None:
        planned = sum(self._plan.steps[kind] for kind in _DELETIONS)
        if not planned or self._refuse_deletions():
            return
        run = self._run
        if run.report.failed and not run.options.force:
            run.report.deletions_withheld = planned
            run.notice(
                f"{planned} deletions are left for another time: {run.report.failed} files could "
                "not be copied or looked at; --force deletes all the same"
            )
            return
        run.meter.phase = "deleting"
        await transfer.run((StepKind.TRASH,))
        await transfer.run_levels(StepKind.DELETE)
        await transfer.run((StepKind.REPLACE,))

    async def _sync(self) -> None:
        if not self._options.durable:
            return
        try:
            await self._ends.destination.sync()
        except RemoteError as error:
            self._run.report.fail("", f"what was written may not be on the disk: {error}")


def _count_planned(report: Any, step: Step) -> None:
    count(report, step, StepResult(0, StepState.DONE, bytes_moved=step.size))


def _count_done(run: Run) -> None:
    """What earlier runs of the job have done."""
    held, report, meter = run.held, run.report, run.meter
    assert held is not None
    for failure in held.failures(limit=FAILURES_KEPT):
        report.fail(shown(failure.path), failure.error, transient=failure.transient)
    report.failed = 0
    for (kind, state), tally in held.tallies().items():
        if state is StepState.FAILED:
            report.failed += tally.steps
        elif state is StepState.DONE:
            if kind in COUNTED_AS:
                name = COUNTED_AS[kind]
                setattr(report, name, getattr(report, name) + tally.steps)
            if kind in {StepKind.COPY, StepKind.REPLACE}:
                meter.files_done += tally.steps
                meter.bytes_done += tally.bytes
    report.bytes_moved, report.bytes_saved = held.bytes_moved, held.bytes_saved


@asynccontextmanager
async def limited(options: Options) -> AsyncIterator[Bandwidth]:
    """A bucket that follows its timetable."""
    from syncer.bandwidth import Bandwidth, follow, parse_timetable, rate_at
    from syncer.metered import metered

    timetable = parse_timetable(options.bandwidth)
    bandwidth = Bandwidth(rate_at(timetable, dt.datetime.now().astimezone()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(follow, bandwidth, lambda: timetable, metered=metered))
        yield bandwidth
        nursery.cancel_scope.cancel()
