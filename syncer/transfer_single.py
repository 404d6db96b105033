"""The plan of a job about a single file: one step, judged as one of many would be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from syncer.diff import NO_FACTS, Action, Facts, Finding, Need, compare, rules_of
from syncer.ends import Ends
from syncer.options import JobSpec
from syncer.plan import Plan
from syncer.remotes.errors import Exists, Missing, Unsupported
from syncer.steps import Step, StepKind
from syncer.tree import ROOT, Node


async def _there(ends: Ends, root: Node | None) -> Node | None:
    if root is None:
        return None  # not even the folder
    try:
        return await ends.destination.stat(ends.file_as)
    except Missing:
        return None


async def plan_single(
    spec: JobSpec, ends: Ends, add: Callable[[Sequence[Step]], Awaitable[None]], plan: Plan
) -> None:
    """Hand over the step, if one is needed. Raises what is in the way."""
    from syncer.walk import root_of

    path = ends.file
    assert path is not None
    root = await root_of(ends.destination, may_lack=True)
    rules = rules_of(spec.verb, spec.options, ends.source.features, ends.destination.features)
    source, there = await ends.source.stat(path), await _there(ends, root)
    plan.files = 1
    facts = NO_FACTS
    verdict = compare(rules, source, there, facts)
    while isinstance(verdict, Need):
        assert there is not None
        if verdict is Need.STAT:
            source, there = source._replace(exact=True), there._replace(exact=True)
        else:
            facts = await _found_out(ends, path, source, there, facts, verdict)
        verdict = compare(rules, source, there, facts)
    if isinstance(verdict, Action):
        size = source.size if verdict.kind is StepKind.COPY else 0
        step = Step(verdict.kind, ends.file_as, verdict.reason, 0, size, path, source, there)
        plan.steps[verdict.kind] += 1
        plan.bytes += size
        steps = [step]
        if root is None and ends.destination.features.directories:
            steps.insert(0, Step(StepKind.MKDIR, ROOT, verdict.reason))
            plan.steps[StepKind.MKDIR] += 1
        await add(steps)
    elif verdict is Finding.IN_THE_WAY:
        raise Exists(f"{ends.destination.label}: a directory is in the way")
    elif verdict is Finding.LEFT_OUT:
        raise Unsupported(f"{ends.destination.label} keeps no {source.kind.value}")
    else:
        plan.equal += verdict is Finding.EQUAL
        plan.newer += verdict is Finding.NEWER
        plan.existing += verdict is Finding.EXISTS


async def _found_out(
    ends: Ends, path: bytes, source: Node, there: Node, facts: Facts, need: Need
) -> Facts:
    from syncer.verify import same_content, same_xattrs

    if need is Need.CONTENT:
        same = await same_content(ends.source, path, source, ends.destination, ends.file_as, there)
        return Facts(same, facts.same_xattrs)
    same = await same_xattrs(ends.source, path, ends.destination, ends.file_as)
    return Facts(facts.same_content, same)
