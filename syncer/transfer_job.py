"""Copy, sync and restore: from two places to steps, from steps to a tree that is like the other.

Nothing is written before guidance and guardian have looked. Copying begins when the plan is
complete, or has taken long enough. Deletions come when everything else is done, and only if all of
it was: a file that could not be copied may be the last copy of what would be deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import trio

from syncer.ends import Ends, open_ends
from syncer.engine import Run, remote_options_of
from syncer.events import FAILURES_KEPT, shown
from syncer.guardian import End, Need, Surroundings, check_space, inspect, refuse_findings
from syncer.guidance import check, refuse_errors
from syncer.local_tree import LocalTree
from syncer.location import Location, LocationKind, parse
from syncer.plan import Plan
from syncer.remotes.errors import RemoteError
from syncer.steps import Step, StepKind, StepState
from syncer.transfer import COUNTED_AS, MAKING, Feed, Transfer
from syncer.transfer_ledger import Ledger, MemoryLedger
from syncer.transfer_plan import DELETIONS, Planning
from syncer.transfer_tuning import cores, explain, tune_while_running
from syncer.transfer_way import transfer_of
from syncer.tree import Tree
from syncer.tuning import tune

_PLAN_FIRST_S: Final = 1.0  # before copying begins though the plan is not complete
_SPACE_EVERY_S: Final = 1.0


def end_of(tree: Tree, location: Location) -> End:
    """One side of a job, as the guardian sees it."""
    if isinstance(tree, LocalTree):
        return End(tree.features, tree.root.root)
    kind = location.place.partition("://")[0] if location.kind is LocationKind.REMOTE else ""
    mounted = location.path if location.kind is LocationKind.LOCAL else None
    return End(tree.features, None, kind, mounted)


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
            await job.planning.show()
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
        self._feed = Feed()
        self._ready = trio.Event()  # copying may begin
        self._ledger: Ledger = run.held or MemoryLedger(run.overflow)
        self._tuner = tune(
            run.options, ends.source.features, ends.destination.features, cores(), own_codec=True
        )
        self.planning = Planning(run, ends, end, around, self._tuner.tuning.parallel)

    def explain(self) -> None:
        """Say what was chosen."""
        explain(self._run, self._tuner.tuning.reasons)

    # --- carrying it out ------------------------------------------------------------------------

    async def carry_out(self) -> None:
        """Plan and copy at the same time, then finish."""
        transfer = transfer_of(self._run, self._ends, self._ledger, self._tuner.tuning)
        async with trio.open_nursery() as nursery:
            if (earlier := self._earlier_plan()) is not None:
                self._go_on(earlier)
            else:
                nursery.start_soon(self._plan_all, transfer)
                nursery.start_soon(self._begin_anyway)
            nursery.start_soon(self._watch_space, transfer)
            await self._ready.wait()
            self._run.meter.phase = "copying"
            nursery.start_soon(tune_while_running, self._run, self._tuner, transfer)
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
        self.planning.plan = earlier
        self.planning.note()
        _count_done(self._run)
        self._run.meter.planned = True
        self._feed.end()
        self._ready.set()

    async def _plan_all(self, transfer: Transfer) -> None:
        held = self._run.held
        if held is not None and held.attempt > 1:
            await trio.to_thread.run_sync(held.drop_plan)

        async def add(steps: Sequence[Step]) -> None:
            if held is not None:
                await trio.to_thread.run_sync(held.add_steps, steps)
            else:
                self._ledger.add_steps(steps)
            if self._ready.is_set():
                self._feed.more()

        await self.planning.make(add)
        if problem := await self.planning.space():
            transfer.full = problem
        if held is not None:
            held.save_checkpoint(0, json.dumps(asdict(self.planning.plan)).encode())
            await trio.to_thread.run_sync(held.flush)  # the plan is not complete without it
            await trio.to_thread.run_sync(held.end_plan)
        self._run.meter.planned = True
        self._run.say("job.planned", count=self.planning.plan.bytes)
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
        planned = sum(self.planning.plan.steps[kind] for kind in DELETIONS)
        if not planned or self.planning.refuse_deletions():
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
