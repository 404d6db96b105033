"""Who carries out the steps of a job best, by what its two trees are; and who notes what was done.

See the table in docs/syncer.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from syncer.ends import Ends
from syncer.engine import Run
from syncer.events import shown
from syncer.local_bytes import Method
from syncer.local_tree import LocalTree
from syncer.remote_tree import RemoteTree
from syncer.steps import Step, StepResult, StepState
from syncer.transfer import EVENT_OF, Light, Mover, Transfer
from syncer.transfer_ledger import Ledger
from syncer.transfer_steps import Steps
from syncer.transfer_tidy import Tidy
from syncer.tree import Tree
from syncer.tuning import Tuning

if TYPE_CHECKING:
    from syncer.door import DoorTree


def transfer_of(run: Run, ends: Ends, ledger: Ledger, tuning: Tuning) -> Transfer:
    """One run of a job's steps."""
    limit, meter, options = run.limit, run.meter, run.options

    def moved(count: int) -> None:
        meter.bytes_done += count

    def how(method: Method, files: int) -> None:
        ways = run.report.how
        ways[method.value] = ways.get(method.value, 0) + files

    steps = Steps(
        ends.source,
        ends.destination,
        options,
        take=limit.take,
        moved=moved,
        ahead_bytes=tuning.block_bytes,
    )
    mover: Mover | None = None
    light: Light | None = None
    if isinstance(ends.source, LocalTree) and isinstance(ends.destination, LocalTree):
        from syncer.transfer_light import LightSteps
        from syncer.transfer_local import LocalMover, LocalSteps

        light = LightSteps(ends.source, ends.destination, options)

        steps = LocalSteps(
            ends.source,
            ends.destination,
            options,
            how=how,
            save=ledger.save_checkpoint,
            take=limit.take,
            moved=moved,
        )
        mover = LocalMover(
            ends.source, ends.destination, options, meter, how, limited=lambda: limit.limited
        )
    elif isinstance(ends.destination, LocalTree):
        from syncer.snapshot_tree import SnapshotTree

        if isinstance(ends.source, SnapshotTree):
            from blockstore.chunker import Chunker, ChunkerParams
            from syncer.restore import RestoreMover

            mover = RestoreMover(
                ends.source,
                ends.destination,
                options,
                meter,
                cut=Chunker(ChunkerParams()).cut,
                take=limit.take,
            )
    if mover is None and run.context.door is not None:
        mover = _through_the_door(run, ends)
    tidy: Tidy | None = None
    if isinstance(ends.destination, LocalTree | RemoteTree):
        resumed = run.held is not None and run.held.attempt > 1
        tidy = Tidy(ends.destination, resumed=resumed)
    local = ends.source.features.local and ends.destination.features.local
    return Transfer(
        steps,
        ledger,
        run.report,
        meter,
        run.tell,
        parallel=tuning.parallel,
        wait_s=0.0 if local else run.context.wait_s,
        durable=run.held is not None,
        mover=mover,
        light=light,
        keep=partial(keep, run, tuning.codec) if run.context.audited else None,
        tidy=tidy,
        turns=ends.destination.turns if isinstance(ends.destination, LocalTree) else None,
    )


def _through_the_door(run: Run, ends: Ends) -> Mover | None:
    from syncer.door import DoorTree
    from syncer.transfer_many import ManyMover, ManyWriter

    source, target = ends.source, ends.destination
    writer: ManyWriter
    if isinstance(target, DoorTree):
        writer = target
    elif not isinstance(source, DoorTree):
        return None
    elif isinstance(target, LocalTree):
        from syncer.transfer_writers import LocalWriter

        writer = LocalWriter(target, durable=run.options.durable)
    else:
        from syncer.transfer_writers import EachWriter

        writer = EachWriter(target)
    mover = ManyMover(
        source,
        writer,
        run.options,
        run.meter,
        take=run.limit.take,
        limited=lambda: run.limit.limited,
    )
    return mover if not isinstance(target, DoorTree) else _cloning(run, source, target, mover)


def _cloning(run: Run, source: Tree, target: DoorTree, rest: Mover) -> Mover:
    """What the daemon's store has is not moved into its namespace."""
    from syncer.door import DoorTree
    from syncer.snapshot_tree import SnapshotTree
    from syncer.transfer_clone import WAY, CloneMover, Cloner, NamespaceCloner, SnapshotCloner

    cloner: Cloner
    if isinstance(source, DoorTree):
        cloner = NamespaceCloner(source, target)
    elif isinstance(source, SnapshotTree) and target.has(source.store):
        cloner = SnapshotCloner(source, target)
    else:
        return rest

    def cloned(files: int) -> None:
        ways = run.report.how
        ways[WAY] = ways.get(WAY, 0) + files

    return CloneMover(cloner, target.features, run.options, run.meter, cloned, rest)


def keep(run: Run, codec: str, results: Sequence[tuple[Step, StepResult]]) -> None:
    """Append what was done to the audit trail. Blocks; not for the trio thread."""
    from syncer.audit import AuditRecord

    audit = run.context.audit
    if audit is None:
        return
    source, target = run.report.source, run.report.destination
    audit.append(
        run.job,
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
