"""From two trees to steps.

`make_plan` walks both trees, judges what it finds (`diff`) and hands steps to a sink in batches: to
`jobs.db` for a run, to the terminal for a dry run, so that both are the same. What looking alone
does not tell (contents, extended attributes, what a listing left vague) is found out on the way.

Deletions are steps like all others, which are carried out when all else is done. Whether they may
be is known when the walk has ended: `Plan.refusal` says why not, and then no TRASH, DELETE or
REPLACE step may be carried out. A directory is deleted only when everything in it is: not where the
filters protect anything below it, nor where anything below it could not be listed.

With a trash, files that are to be deleted are moved there, under the path that they had
(`Step.source_path`); directories that this empties are deleted. What is replaced by a COPY goes
there, too: that is the transfer's business, since the new one must be whole first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from syncer.diff import (
    NO_FACTS,
    Action,
    Facts,
    Finding,
    Need,
    Rules,
    compare,
    deletions_max,
    rules_of,
    step_kind,
)
from syncer.filters import Filters
from syncer.options import Options, Verb
from syncer.remotes.errors import Exists, RemoteError, Unsupported
from syncer.steps import Step, StepKind
from syncer.tree import Node, NodeKind, Tree
from syncer.walk import lists_ahead, walk
from syncer.walk_events import Directory, Enter, Equal, Event, Leave, Pair, Problem, Side
from syncer.walk_scratch import Links, Scratch

STEPS_MAX: Final = 1_000  # handed to the sink at a time

StepSink = Callable[[Sequence[Step]], Awaitable[None]]
ProblemSink = Callable[[Problem], None]
Rank = Callable[[bytes, Node], int]
Sides = Directory | Pair
Verdict = Action | Finding | Need | RemoteError


@dataclass(slots=True)
class Plan:
    """What a job would do, summed up. Complete when `make_plan` has returned."""

    steps: dict[StepKind, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    bytes: int = 0  # to be moved at most
    files: int = 0  # of the source, kept by the filters; all that is no directory
    directories: int = 0  # likewise
    equal: int = 0  # files that need nothing
    equal_bytes: int = 0
    left_out: int = 0  # names at the source, by filters or options
    newer: int = 0  # files left because the destination's is newer
    existing: int = 0  # files left because something is there
    not_held: int = 0  # what the destination cannot hold; each is a problem, too
    problems: int = 0
    destination_files: int = 0  # as far as the walk went there
    deletions: int = 0  # files among them that would be deleted or trashed
    refusal: str = ""  # why TRASH, DELETE and REPLACE steps must not be carried out


async def make_plan(
    source: Tree,
    destination: Tree,
    options: Options,
    filters: Filters,
    sink: StepSink,
    *,
    verb: Verb = Verb.SYNC,
    rank: Rank | None = None,
    problem: ProblemSink | None = None,
    plan: Plan | None = None,
) -> Plan:
    """Find out what makes `destination` like `source`; nothing is written.

    `rank` gives the semantic rank of a file that is copied, by path. `plan` is filled in while the
    walk goes on, for whoever shows progress. Raises what the trees' roots raise.
    """
    rules = rules_of(verb, options, source.features, destination.features)
    planner = _Planner(
        source, destination, options, rules, sink, rank, problem, Plan() if plan is None else plan
    )
    try:
        await walk(source, destination, options, rules, filters, planner.take)
        return await planner.end()
    finally:
        planner.close()


def trash_path(options: Options, path: bytes) -> bytes:
    """Where a name goes that is put into the trash, relative to the destination's root."""
    return options.trash.strip("/").encode("utf-8", "surrogateescape") + b"/" + path


def refusal(options: Options, deletions: int, files: int) -> str:
    """Why so many of the destination's files may not be deleted; "": they may."""
    allowed = deletions_max(options, files)
    if allowed is None or deletions <= allowed:
        return ""
    return (
        f"{deletions} of the destination's {files} files would be deleted, and at most {allowed} "
        "may be: nothing is deleted. If that is right, allow more with --delete-max, or any "
        "number with --force"
    )


@dataclass(slots=True)
class _Frame:
    """A directory that the walk is in."""

    directory: Sides
    verdict: Verdict
    deleting: bool  # the source has no directory here
    touched: bool = False  # something in it is made, replaced or deleted
    survivors: bool = False  # something below it stays; where it would be deleted


class _Planner:
    def __init__(
        self,
        source: Tree,
        destination: Tree,
        options: Options,
        rules: Rules,
        sink: StepSink,
        rank: Rank | None,
        problem: ProblemSink | None,
        plan: Plan,
    ) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._rules = rules
        self._sink = sink
        self._rank = rank
        self._problem = problem
        self._plan = plan
        self._steps: list[Step] = []
        self._frames: list[_Frame] = []
        self._at_once = lists_ahead(source, destination)
        self._scratch = Scratch()
        # By the source's link: the first path that has it, and the destination's link of that.
        self._leaders = Links(self._scratch)
        # By the destination's link: which file of the source it is.
        self._taken = Links(self._scratch)

    def close(self) -> None:
        self._scratch.close()

    async def take(self, events: Sequence[Event]) -> None:
        """See walk.EventSink."""
        judged = await self._judge(events)
        for number, event in enumerate(events):
            if type(event) is Pair:
                self._pair(*judged.get(number, (event, None)))
            elif type(event) is Equal:
                self._equal(event)
            elif type(event) is Enter:
                self._enter(*judged.get(number, (event.directory, None)))
            elif type(event) is Leave:
                self._leave(event)
            elif type(event) is Problem:
                self._tell(event)
        if len(self._steps) >= STEPS_MAX:
            await self._hand_over()

    async def _hand_over(self) -> None:
        while self._steps:
            steps, self._steps = self._steps[:STEPS_MAX], self._steps[STEPS_MAX:]
            await self._sink(steps)

    async def end(self) -> Plan:
        await self._hand_over()
        plan = self._plan
        if plan.deletions:
            plan.refusal = refusal(self._options, plan.deletions, plan.destination_files)
        return plan

    # Judging: first by looking, then by asking.

    async def _judge(self, events: Sequence[Event]) -> Mapping[int, tuple[Sides, Verdict]]:
        """What is to be done for each event about a node of the source, by its number.

        With both sides as they are known by then.
        """
        rules = self._rules
        judged: dict[int, tuple[Sides, Verdict]] = {}
        asked: list[tuple[int, Sides, Need]] = []
        for number, event in enumerate(events):
            if type(event) is Pair:
                pair: Sides = event
                if not event.kept:
                    continue
            elif type(event) is Enter:
                pair = event.directory
            else:
                continue
            if pair.source is None:
                continue
            verdict = compare(rules, pair.source, pair.destination)
            judged[number] = (pair, verdict)
            if isinstance(verdict, Need):
                asked.append((number, pair, verdict))
        if asked:
            waiting = iter(asked)
            async with trio.open_nursery() as nursery:
                for _ in range(min(self._at_once, len(asked))):
                    nursery.start_soon(self._ask, waiting, judged)
        return judged

    async def _ask(
        self,
        waiting: Iterator[tuple[int, Sides, Need]],
        judged: dict[int, tuple[Sides, Verdict]],
    ) -> None:
        """Find out what is needed, one after the other."""
        for number, pair, need in waiting:
            try:
                judged[number] = await self._find_out(pair, need)
            except RemoteError as error:
                judged[number] = (pair, error)

    async def _find_out(self, pair: Sides, need: Need) -> tuple[Sides, Verdict]:
        facts = NO_FACTS
        verdict: Verdict = need
        while isinstance(verdict, Need):
            from syncer.verify import same_content, same_xattrs  # most plans ask for neither

            source, destination = pair.source, pair.destination
            assert source is not None
            assert destination is not None
            if verdict is Need.STAT:
                if not source.exact:
                    found = await self._source.stat(pair.source_path)
                    source = found._replace(name=source.name, exact=True)
                if not destination.exact:
                    found = await self._destination.stat(pair.path)
                    destination = found._replace(exact=True)
                pair = pair._replace(source=source, destination=destination)
            elif verdict is Need.CONTENT:
                same = await same_content(
                    self._source,
                    pair.source_path,
                    source,
                    self._destination,
                    pair.path,
                    destination,
                )
                facts = Facts(same, facts.same_xattrs)
            else:
                same = await same_xattrs(
                    self._source, pair.source_path, self._destination, pair.path
                )
                facts = Facts(facts.same_content, same)
            verdict = compare(self._rules, source, destination, facts)
        return pair, verdict

    # Taking down what follows.

    def _tell(self, problem: Problem) -> None:
        self._plan.problems += 1
        if self._problem is not None:
            self._problem(problem)

    def _add(self, step: Step) -> None:
        self._steps.append(step)
        self._plan.steps[step.kind] += 1
        self._plan.bytes += step.size
        if self._frames and step.kind is not StepKind.METADATA:
            self._frames[-1].touched = True

    def _equal(self, event: Equal) -> None:
        plan = self._plan
        plan.files += event.files
        plan.equal += event.files
        plan.equal_bytes += event.bytes
        plan.destination_files += event.files

    def _pair(self, pair: Sides, verdict: Verdict | None) -> None:
        plan = self._plan
        source, destination = pair.source, pair.destination
        if destination is not None and destination.kind is not NodeKind.DIRECTORY:
            plan.destination_files += 1
        if type(pair) is Pair and not pair.kept:
            if source is not None:
                plan.left_out += 1
            if destination is not None and self._frames:
                self._frames[-1].survivors = True
            return
        if source is None:
            assert destination is not None
            if self._rules.deletes:
                self._delete(pair.path, destination, "not at the source")
            return
        plan.files += 1
        assert verdict is not None
        self._make(pair, source, verdict)

    def _make(self, pair: Sides, source: Node, verdict: Verdict) -> None:
        """A node of the source that is no directory and stands in no directory's place."""
        plan, path, destination = self._plan, pair.path, pair.destination
        if isinstance(verdict, RemoteError):
            self._tell(Problem(path, Side.SOURCE, verdict))
            return
        if source.link is not None or (destination is not None and destination.link is not None):
            verdict, leader = self._linked(pair, source, verdict)
            if leader is not None:
                reason = "another name of a file"
                self._add(Step(StepKind.LINK, path, reason, 0, 0, leader, source, destination))
                return
        if isinstance(verdict, Action):
            size = rank = 0
            if verdict.kind is StepKind.COPY:
                size = source.size
                rank = self._rank(path, source) if self._rank is not None else 0
            self._add(
                Step(
                    verdict.kind,
                    path,
                    verdict.reason,
                    rank,
                    size,
                    pair.source_path,
                    source,
                    destination,
                )
            )
        elif verdict is Finding.EQUAL:
            plan.equal += 1
            plan.equal_bytes += source.size
        elif verdict is Finding.NEWER:
            plan.newer += 1
        elif verdict is Finding.EXISTS:
            plan.existing += 1
        elif verdict is Finding.LEFT_OUT:
            plan.not_held += 1
            error = Unsupported(f"{self._destination.label} keeps no {source.kind.value}")
            self._tell(Problem(path, Side.DESTINATION, error))
        else:
            self._in_the_way(path)

    def _in_the_way(self, path: bytes) -> None:
        why = (
            "something in it stays"
            if self._rules.deletes
            else "remove it, or let a mirror delete it"
        )
        self._tell(Problem(path, Side.DESTINATION, Exists(f"a directory is in the way: {why}")))

    def _linked(self, pair: Sides, source: Node, verdict: Verdict) -> tuple[Verdict, bytes | None]:
        """Judge anew what has several names; with the path that it is to be linked to.

        The first name whose file is, or will be, what the source has leads; the others are linked
        to it. A name at the destination that is linked to another file than at the source is
        copied, which parts the two.
        """
        if not self._rules.hard_links:
            return verdict, None
        destination = pair.destination
        settled = isinstance(verdict, Action) or verdict is Finding.EQUAL
        if not settled:
            return verdict, None
        link = source.link
        leader = None if link is None else self._leaders.get(link)
        if leader is not None:
            leader_path, leader_there = leader
            if (
                destination is not None
                and destination.link is not None
                and destination.link == leader_there
            ):
                return Finding.EQUAL, None
            return verdict, leader_path
        there: Hashable = None
        if destination is not None and destination.link is not None:
            stays = verdict is Finding.EQUAL or (
                isinstance(verdict, Action) and verdict.kind is StepKind.METADATA
            )
            if stays:
                mine = ("link", link) if link is not None else ("path", pair.path)
                whose = self._taken.get(destination.link)
                if whose is None:
                    self._taken.set(destination.link, mine)
                    there = destination.link
                else:
                    kind = step_kind(self._rules, source)
                    assert not isinstance(kind, Finding)
                    verdict = Action(kind, "linked to another file there")
        if link is not None:
            self._leaders.set(link, (pair.path, there))
        return verdict, None

    def _delete(self, path: bytes, node: Node, reason: str) -> None:
        directory = node.kind is NodeKind.DIRECTORY
        if directory and not self._rules.directories:
            return  # it is gone with what is in it
        if not directory:
            self._plan.deletions += 1
        if self._options.trash and not directory:
            kind, source_path = StepKind.TRASH, trash_path(self._options, path)
        else:
            kind, source_path = StepKind.DELETE, b""
        self._add(Step(kind, path, reason, source_path=source_path, old=node))

    # Directories.

    def _enter(self, directory: Sides, verdict: Verdict | None) -> None:
        plan, source, destination = self._plan, directory.source, directory.destination
        if destination is not None and destination.kind is not NodeKind.DIRECTORY:
            plan.destination_files += 1
        deleting = source is None or source.kind is not NodeKind.DIRECTORY
        if source is not None:
            if deleting:
                plan.files += 1
            else:
                plan.directories += 1
        if isinstance(verdict, RemoteError):
            self._tell(Problem(directory.path, Side.SOURCE, verdict))
        made = isinstance(verdict, Action) and verdict.kind is not StepKind.METADATA
        if made and isinstance(verdict, Action):
            self._add(
                Step(
                    verdict.kind,
                    directory.path,
                    verdict.reason,
                    source_path=directory.source_path,
                    node=source,
                    old=destination,
                )
            )
        frame = _Frame(directory, verdict if verdict is not None else Finding.EQUAL, deleting)
        frame.touched = made
        self._frames.append(frame)

    def _leave(self, event: Leave) -> None:
        frame = self._frames.pop()
        if not event.complete:
            frame.survivors = True
        if frame.deleting:
            self._leave_deleted(frame)
        else:
            self._leave_kept(frame)

    def _leave_deleted(self, frame: _Frame) -> None:
        directory = frame.directory
        source, destination = directory.source, directory.destination
        if frame.survivors:
            if self._frames:
                self._frames[-1].survivors = True
            if source is not None:
                self._in_the_way(directory.path)
            return
        if destination is None:  # it went while we walked
            if source is not None:
                kind = step_kind(self._rules, source)
                verdict = kind if isinstance(kind, Finding) else Action(kind, "new")
                self._make(directory, source, verdict)
            return
        if source is None:
            self._delete(directory.path, destination, "not at the source")
            return
        self._delete(directory.path, destination, f"a {source.kind.value} takes its name")
        regular = source.kind is NodeKind.FILE
        self._add(
            Step(
                StepKind.REPLACE,
                directory.path,
                "in place of a directory",
                self._rank(directory.path, source) if regular and self._rank is not None else 0,
                source.size if regular else 0,
                directory.source_path,
                source,
            )
        )

    def _leave_kept(self, frame: _Frame) -> None:
        directory, rules = frame.directory, self._rules
        source = directory.source
        assert source is not None
        if frame.survivors and self._frames:
            self._frames[-1].survivors = True
        if not rules.directories or isinstance(frame.verdict, RemoteError):
            return
        reason = ""
        if isinstance(frame.verdict, Action):
            reason = frame.verdict.reason
        elif frame.touched and rules.times and source.mtime_ns is not None:
            reason = "its contents change"
        if reason and (rules.times or rules.modes or rules.owners or rules.xattrs):
            self._steps.append(
                Step(
                    StepKind.DIRECTORY_METADATA,
                    directory.path,
                    reason,
                    source_path=directory.source_path,
                    node=source,
                    old=directory.destination,
                )
            )
            self._plan.steps[StepKind.DIRECTORY_METADATA] += 1
