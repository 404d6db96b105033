"""The plan of a copy, sync or restore: from two trees to steps that are kept, told or refused.

What the destination cannot hold by its name fails here, at once; with `--smart` steps get their
place in the queue, from names and, where that costs next to nothing, from the first bytes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from syncer.ends import Ends
from syncer.engine import Run
from syncer.events import Event, Report, shown
from syncer.guardian import End, Surroundings, check_space, name_check
from syncer.guidance import Severity
from syncer.local_tree import LocalTree
from syncer.options import Options, Verb
from syncer.plan import Plan, make_plan
from syncer.steps import Step, StepKind, StepResult, StepState
from syncer.transfer import EVENT_OF, count
from syncer.transfer_room import Room, may_clone
from syncer.transfer_single import plan_single
from syncer.tree import Node

if TYPE_CHECKING:
    from syncer.filters import Filters
    from syncer.walk_events import Problem

DELETIONS: Final = (StepKind.TRASH, StepKind.DELETE, StepKind.REPLACE)
_NAMING: Final = frozenset(
    {StepKind.MKDIR, StepKind.COPY, StepKind.SYMLINK, StepKind.SPECIAL, StepKind.LINK}
)

Add = Callable[[Sequence[Step]], Awaitable[None]]


def filters_of(options: Options, verb: Verb = Verb.SYNC) -> Filters:
    """The rules of a job; ages count from now. Raises FilterError."""
    from syncer.filters import Filters

    filters = Filters.parse(options.filters, now_ns=time.time_ns())
    # What an .orbitignore was to keep out is not in the snapshot; what is in it comes back.
    return filters.without(b".orbitignore") if verb is Verb.RESTORE else filters


class Planning:
    """What a job is going to do, while it is found out and afterwards."""

    def __init__(self, run: Run, ends: Ends, end: End, around: Surroundings, parallel: int) -> None:
        """`end`: the destination; `parallel`: files that are copied at a time."""
        self._run = run
        self._ends = ends
        self._end = end
        self._around = around
        self._options = run.options
        self._names = name_check(end, around)
        self._parallel = parallel
        self._room = Room(run.options, holes=ends.destination.features.holes)
        self.plan = Plan()

    async def make(self, add: Add) -> None:
        """Hand over all steps. Raises what the trees' roots raise."""
        from syncer.transfer_ranks import ranking

        ranks = ranking(self._options, self._ends, self._run.context.classes)

        async def take(steps: Sequence[Step]) -> None:
            kept = self._held_names(steps)
            if ranks is not None:
                kept = await ranks(kept)
            for step in kept:
                self._room.add(step)
            await add(kept)
            self.note()
            await trio.lowlevel.checkpoint()

        await self._steps(take)
        self.note()

    async def _steps(self, take: Add) -> None:
        options, ends = self._options, self._ends
        if ends.file is not None:
            await plan_single(self._run.spec, ends, take, self.plan)
            return
        rank: Callable[[bytes, Node], int] | None = None
        if ends.source.features.chunked and not options.smart:
            from syncer.restore import PackOrder

            order = PackOrder()

            def rank(path: bytes, _: Node) -> int:  # noqa: ARG001
                return order.next()

        await make_plan(
            ends.source,
            ends.destination,
            options,
            filters_of(options, self._run.spec.verb),
            take,
            verb=self._run.spec.verb,
            rank=rank,
            problem=self._problem,
            plan=self.plan,
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

    def note(self) -> None:
        """Take what is known of the plan into progress and report."""
        plan, meter, report = self.plan, self._run.meter, self._run.report
        making = plan.steps[StepKind.COPY] + plan.steps[StepKind.REPLACE]
        meter.files_total, meter.bytes_total = making, plan.bytes
        meter.files_equal = plan.equal
        report.files_seen, report.files_equal = plan.files, plan.equal + plan.newer + plan.existing
        report.files_left_out = plan.left_out

    async def show(self) -> None:
        """Tell the steps; nothing is written. They are those that a run would carry out."""
        report, run = self._run.report, self._run

        async def tell(steps: Sequence[Step]) -> None:
            for step in steps:
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
            await trio.lowlevel.checkpoint()

        await self.make(tell)
        self.refuse_deletions()
        if problem := await self.space():
            report.fail("", problem)

    def refuse_deletions(self) -> bool:
        """Whether what deletes may not be done; the report says why."""
        if not self.plan.refusal:
            return False
        self._run.report.deletions_withheld = sum(self.plan.steps[kind] for kind in DELETIONS)
        self._run.notice(self.plan.refusal)
        return True

    async def space(self) -> str:
        """Why what is left of the plan does not fit; "": it does, or nobody can say before."""
        meter = self._run.meter
        need = self._room.need(self._parallel, meter.bytes_done, meter.files_done)
        look = partial(check_space, self._end, need, self._options.reserve_bytes, self._around)
        found = await trio.to_thread.run_sync(look)
        problem = next((each.sentence for each in found if each.severity is Severity.ERROR), "")
        if problem and self._clones():
            self._run.notice(
                f"{problem}; it is tried all the same: on this file system copies share their "
                "blocks with the source"
            )
            return ""
        return problem

    def _clones(self) -> bool:
        source, target = self._ends.source, self._ends.destination
        if not (isinstance(source, LocalTree) and isinstance(target, LocalTree)):
            return False
        return may_clone(source.root.root, target.root.root, self._around.mounts)


def _count_planned(report: Report, step: Step) -> None:
    count(report, step, StepResult(0, StepState.DONE, bytes_moved=step.size))
