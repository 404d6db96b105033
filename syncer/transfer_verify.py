"""Verify: two trees compared by their contents, or a snapshot read whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from syncer.ends import Ends, open_ends
from syncer.engine import Run, remote_options_of
from syncer.events import Event, shown
from syncer.guidance import check, refuse_errors
from syncer.location import Location, LocationKind, parse
from syncer.options import Mode, Verb
from syncer.plan import Plan
from syncer.remotes.errors import Missing
from syncer.steps import Step
from syncer.transfer_backup import open_store
from syncer.transfer_plan import filters_of
from syncer.tree import ROOT
from syncer.verify import Difference, Verified, What, verify

_SHOW_EVERY_S: Final = 0.25
# For people; of the others the detail says it.
_WORDS: Final = {
    What.MISSING: "only at the source",
    What.EXTRA: "only at the destination",
    What.CONTENT: "content differs",
    What.DEVICE: "it is another device",
}


async def run_verify(run: Run) -> None:
    """See engine.Runner."""
    spec = run.spec
    source = parse(spec.source, b"/")
    if spec.destination:
        await _compare(run, source, parse(spec.destination, b"/"))
    else:
        await _check_snapshots(run, source)


def _differs(run: Run, path: bytes, message: str) -> None:
    run.report.differences += 1
    if run.report.differences <= 100:
        run.report.fail(shown(path), message)
    else:
        run.report.failed += 1
    run.tell.event(
        Event(
            "difference",
            time.time_ns(),
            source=shown(path),
            destination=shown(path),
            message=message,
        )
    )


async def _compare(run: Run, source: Location, destination: Location) -> None:
    """Names, kinds, sizes and contents; metadata as far as the options name them."""
    spec, options = run.spec, run.options
    context = run.context.with_remote_options(*remote_options_of(options, source, destination))
    async with open_ends(source, destination, context, options) as ends:
        run.report.source, run.report.destination = ends.source.label, ends.destination.label
        for each in refuse_errors(check(spec, ends.source.features, ends.destination.features)):
            run.notice(each.sentence)
        run.meter.phase = "comparing"
        if ends.file is not None:
            await _compare_file(run, ends)
            return
        try:
            await ends.destination.stat(ROOT)
        except Missing:
            raise Missing(f"{destination} is not there: nothing to compare with") from None
        found = Verified()

        async def tell(difference: Difference) -> None:
            _differs(run, difference.path, _WORDS.get(difference.what, "") or difference.detail)
            await trio.lowlevel.checkpoint()

        async def show() -> None:
            while True:
                run.meter.files_equal, run.meter.bytes_done = found.files, found.bytes_read
                await trio.sleep(_SHOW_EVERY_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            await verify(
                ends.source,
                ends.destination,
                options,
                filters_of(options),
                tell,
                metadata=options.modes or options.times or options.owners or options.xattrs,
                verified=found,
                parallel=options.parallel,
                take=run.limit.take,
            )
            nursery.cancel_scope.cancel()
        different = found.count - found.counts[What.MISSING] - found.counts[What.EXTRA]
        run.report.files_seen = found.files + found.counts[What.MISSING]
        run.report.files_equal = run.meter.files_equal = max(0, found.files - different)
        run.report.files_left_out = found.left_out


async def _compare_file(run: Run, ends: Ends) -> None:
    """A single file: every step that would make it alike is a difference."""
    from syncer.transfer_single import plan_single

    options = replace(
        run.options, mode=Mode.MIRROR, checksum=True, force=True, trash="", ignore_existing=False
    )
    plan = Plan()

    async def take(steps: Sequence[Step]) -> None:
        for step in steps:
            _differs(run, step.path, "only at the source" if step.old is None else step.reason)
        await trio.lowlevel.checkpoint()

    await plan_single(replace(run.spec, verb=Verb.SYNC, options=options), ends, take, plan)
    run.report.files_seen, run.report.files_equal = plan.files, plan.equal


async def _check_snapshots(run: Run, source: Location) -> None:
    """A snapshot, or all of a repository: every chunk is read and its hash compared."""
    from syncer.catalogue import select
    from syncer.remotes.errors import Unsupported
    from syncer.snapshot_check import damaged_paths, snapshot_check

    run = replace(
        run,
        context=run.context.with_remote_options(*remote_options_of(run.options, source, None)),
        dry_run=True,  # it is only read
    )
    if source.kind is LocationKind.SNAPSHOT and run.context.repository:
        source = replace(source, kind=LocationKind.REPOSITORY, place=run.context.repository)
    if source.kind not in {LocationKind.REPOSITORY, LocationKind.SNAPSHOT}:
        raise Unsupported(f"{source}: with what is it to be compared? Name a second place")
    wanted = source.snapshot
    where = replace(source, snapshot="", path=b"") if source.place else None
    async with open_store(run, where) as (store, catalogue, label):
        run.report.source = str(source)
        listing = await catalogue.list()
        for name in listing.damaged:
            _differs(run, name.encode(), "the record of this snapshot is damaged")
        chosen = [select(listing.snapshots, wanted)] if wanted else listing.snapshots
        run.meter.phase = f"reading {label}"
        roots = [(each.root, each.tokens) for each in chosen]
        found = await trio.to_thread.run_sync(
            partial(snapshot_check, store, roots, data=True), abandon_on_cancel=True
        )
        run.report.files_seen = sum(each.sums.files for each in chosen)
        for each in chosen if found.problems else ():
            for path, reason in await trio.to_thread.run_sync(
                lambda: list(damaged_paths(store, each.root, found.problems))  # noqa: B023
            ):
                _differs(run, each.name.encode() + b"/" + path, reason)
        if found.problems and not run.report.differences:
            for reason in found.problems.values():
                _differs(run, b"", reason)
        run.report.files_equal = max(0, run.report.files_seen - run.report.differences)
