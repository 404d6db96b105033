"""Backup: a tree into a repository or the daemon's store, recorded as a snapshot."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import trio

from blockstore.ids import Buffer, ChunkId
from blockstore.options import StoreOptions
from syncer.backup import Failure, Previous, Progress, backup
from syncer.catalogue import Catalogue, Snapshot, check_name, choose_name
from syncer.chunks import ChunkStore
from syncer.ends import HasSnapshots, open_tree
from syncer.engine import Run, remote_options_of
from syncer.events import Event, shown
from syncer.guidance import check, refuse_errors
from syncer.limit import Limit
from syncer.location import Location, LocationKind, parse
from syncer.options import Mode
from syncer.plan import Plan, make_plan
from syncer.remotes.errors import Exists, Missing, Unsupported
from syncer.snapshot_check import snapshot_check
from syncer.steps import Step, StepKind
from syncer.transfer_kept import Kept
from syncer.transfer_plan import filters_of
from syncer.transfer_tuning import cores, explain
from syncer.tree import Features, Node, PageSink, Tree
from syncer.tuning import tune
from syncer.units import parse_duration

if TYPE_CHECKING:
    from blockstore.codec import CompressionName

STORE: Final = Features(
    write=True, symlinks=True, hard_links=True, specials=True, mode=True, owner=True, xattrs=True,
    holes=True, chunked=True,
)  # fmt: skip


@asynccontextmanager
async def open_store(
    run: Run, destination: Location | None, codec: str = ""
) -> AsyncIterator[tuple[ChunkStore, Catalogue, str]]:
    """Where snapshots are kept, and its name. Raises Unsupported, RemoteError, OrbitError.

    `codec`: of what is new in a repository; the daemon's store has its own.
    """
    door = run.context.door
    if destination is None:
        if not isinstance(door, HasSnapshots):
            raise Unsupported("into which repository? Name one: backup SRC repo:LOCATION")
        async with door.holding():
            yield door.store, door.catalogue, "the daemon's store"
        return
    if destination.kind is not LocationKind.REPOSITORY or destination.snapshot:
        raise Unsupported(f"{destination}: a backup goes into a repository: write repo:LOCATION")
    from syncer.repository import Access, Repository

    access = Access.READ if run.dry_run else Access.WRITE
    options = StoreOptions(compression=cast("CompressionName", codec or "zstd"))
    async with Repository.open(
        destination.place, run.context, access, create=not run.dry_run, options=options
    ) as repository:
        yield repository.store, repository.catalogue, repository.label


async def run_backup(run: Run) -> None:
    """See engine.Runner."""
    spec = run.spec
    source = parse(spec.source, b"/")
    destination = parse(spec.destination, b"/") if spec.destination else None
    run = replace(
        run,
        context=run.context.with_remote_options(
            *remote_options_of(spec.options, source, destination)
        ),
    )
    if spec.options.name:
        check_name(spec.options.name)
    async with open_tree(source, run.context, spec.options) as tree:
        features = replace(STORE, local=tree.features.local)
        for each in refuse_errors(check(spec, tree.features, features)):
            run.notice(each.sentence)
        local = destination is None or destination.place.startswith("/")
        there, own = replace(STORE, local=local), destination is None
        tuning = tune(spec.options, tree.features, there, cores(), own_codec=own).tuning
        async with open_store(run, destination, tuning.codec) as (store, catalogue, label):
            run.report.source, run.report.destination = tree.label, label
            explain(run, tuning.reasons[-1:])  # the others are about copying file by file
            job = _BackupJob(run, tree, store, catalogue, tuning.codec)
            if run.dry_run:
                await job.show_plan()
            else:
                await job.carry_out()


class _Limited:
    """A store that takes new bytes no faster than the job may go. See ChunkStore."""

    def __init__(self, store: ChunkStore, limit: Limit) -> None:
        self._store = store
        self._limit = limit
        self.cut = store.cut
        self.contains = store.contains
        self.fetch = store.fetch
        self.sync = store.sync

    def put(self, chunks: Sequence[Buffer]) -> list[ChunkId]:
        """See ChunkStore. In a thread of trio's."""
        if self._limit.limited:
            trio.from_thread.run(self._limit.take, sum(map(len, chunks)))
        return self._store.put(chunks)


class _BackupJob:
    """One run."""

    def __init__(
        self, run: Run, tree: Tree, store: ChunkStore, catalogue: Catalogue, codec: str
    ) -> None:
        """`codec`: of new chunks; "": the store's own."""
        self._run = run
        self._codec = codec
        self._tree = tree
        self._store = store
        self._catalogue = catalogue
        self._host = socket.gethostname()

    async def _previous(self) -> Snapshot | None:
        """The last snapshot of the same place."""
        listing = await self._catalogue.list()
        name = self._run.options.name
        if name and any(each.name == name for each in listing.snapshots):
            raise Exists(f"there is a snapshot {name!r} already: choose another name")
        ours = [
            each
            for each in listing.snapshots
            if (each.host, each.source) == (self._host, self._tree.label)
        ]
        return ours[-1] if ours else None

    async def carry_out(self) -> None:
        """Read, write, record."""
        run, began_ns = self._run, time.time_ns()
        previous = await self._previous()
        run.meter.phase = "backing up"
        kept = Kept(self._tree, filters_of(run.options))
        made = await backup(
            self._tree,
            _Limited(self._store, run.limit),
            Previous(previous.root, previous.tokens) if previous is not None else None,
            run.options,
            keeps=kept.keeps,
            ignores=kept.ignores,
            progress=self._progress,
            failed=self._failed,
        )
        self._progress(made.progress)
        run.meter.phase = "storing"
        await trio.to_thread.run_sync(self._store.sync)
        taken = {each.name for each in (await self._catalogue.list()).snapshots}
        options = run.options
        expires_ns = None
        if options.expires:
            expires_ns = began_ns + round(parse_duration(options.expires) * 10**9)
        snapshot = Snapshot(
            name=options.name or choose_name(self._tree.label, began_ns, taken),
            time_ns=began_ns,
            root=made.root,
            sums=made.sums,
            host=self._host,
            source=self._tree.label,
            tags=options.tags,
            expires_ns=expires_ns,
            tokens=made.tokens,
            failed=made.progress.failed,
        )
        await self._catalogue.add(snapshot)
        run.report.snapshot = snapshot.name
        if options.verify:
            await self._verify(snapshot)
        await trio.to_thread.run_sync(self._audit, snapshot)

    async def _verify(self, snapshot: Snapshot) -> None:
        """Read the snapshot back, whole: chunks that were there before count like new ones."""
        self._run.meter.phase = "verifying"
        look = partial(snapshot_check, self._store, [(snapshot.root, snapshot.tokens)], data=True)
        found = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        for reason in found.problems.values():
            self._run.report.differences += 1
            self._run.report.fail("", reason)

    def _audit(self, snapshot: Snapshot) -> None:
        from syncer.audit import AuditRecord

        audit = self._run.context.audit
        if audit is None:
            return
        report = self._run.report
        audit.append(
            self._run.job,
            [
                AuditRecord(
                    "backup",
                    report.source,
                    f"{report.destination}#{snapshot.name}",
                    report.bytes_moved,
                    self._run.meter.elapsed_s * 1000,
                    f"blake3:{snapshot.root.hex()}",
                    self._codec,
                )
            ],
        )

    def _progress(self, progress: Progress) -> None:
        meter, report = self._run.meter, self._run.report
        meter.files_done, meter.files_equal = progress.files_read, progress.files_unchanged
        meter.bytes_done = progress.bytes_read
        meter.files_failed = progress.failed
        meter.current.clear()
        if progress.path:
            meter.current[shown(progress.path)] = None
        report.files_seen, report.files_equal = progress.files, progress.files_unchanged
        report.files_copied, report.bytes_moved = progress.files_read, progress.bytes_read
        report.bytes_saved = progress.file_bytes - progress.bytes_read

    def _failed(self, failure: Failure) -> None:
        run = self._run
        run.report.fail(shown(failure.path), str(failure.error))
        run.tell.event(
            Event(
                "file.failed", time.time_ns(), source=shown(failure.path),
                message=str(failure.error),
            )
        )  # fmt: skip

    async def show_plan(self) -> None:
        """What differs from the last snapshot, by the rules of sync; nothing is written."""
        from syncer.snapshot_tree import SnapshotTree

        run, previous = self._run, await self._previous()
        there = cast("Tree", _Nothing())  # nothing else of it is asked for
        if previous is not None:
            there = SnapshotTree(self._store, previous.root, label=previous.name)

        async def show(steps: Sequence[Step]) -> None:
            for step in steps:
                if step.kind is StepKind.DIRECTORY_METADATA:
                    continue
                run.tell.event(
                    Event(
                        "would.file.copied" if step.kind is StepKind.COPY else "would.note",
                        time.time_ns(),
                        source=shown(step.source_path or step.path),
                        bytes=step.size,
                        message=step.reason,
                    )
                )
            await trio.lowlevel.checkpoint()

        plan = Plan()
        options = replace(run.options, mode=Mode.MIRROR, force=True, trash="")
        await make_plan(self._tree, there, options, filters_of(options), show, plan=plan)
        run.report.files_seen, run.report.files_equal = plan.files, plan.equal
        run.report.files_copied, run.report.bytes_moved = plan.steps[StepKind.COPY], plan.bytes


class _Nothing:
    """A tree without anything, to compare a first backup with."""

    label = "nothing"
    features = STORE

    async def list(self, path: bytes, sink: PageSink) -> None:  # noqa: ARG002
        """See Tree."""
        await trio.lowlevel.checkpoint()
        raise Missing("there is nothing")

    async def stat(self, path: bytes) -> Node:  # noqa: ARG002
        """See Tree."""
        await trio.lowlevel.checkpoint()
        raise Missing("there is nothing")

    async def close(self) -> None:
        """See Tree."""
        await trio.lowlevel.checkpoint()
