"""Backup: a tree into a repository or the daemon's store, recorded as a snapshot."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final, cast

import trio

from syncer.backup import Failure, Previous, Progress, backup
from syncer.catalogue import Catalogue, Snapshot, check_name, choose_name
from syncer.chunks import ChunkStore
from syncer.ends import HasSnapshots, open_tree
from syncer.engine import Run, remote_options_of
from syncer.events import Event, shown
from syncer.filters import Filters
from syncer.guidance import check, refuse_errors
from syncer.local_tree import LocalTree
from syncer.location import Location, LocationKind, parse
from syncer.options import Mode
from syncer.plan import Plan, make_plan
from syncer.remotes.errors import Missing, RemoteError, Unsupported
from syncer.steps import Step, StepKind
from syncer.transfer_plan import filters_of
from syncer.tree import ROOT, Features, Node, NodeKind, PageSink, Tree
from syncer.units import parse_duration

_IGNORE_BYTES_MAX: Final = 1 << 20
_KEPT_MAX: Final = 64  # directories whose filters are remembered; a walk is in one at a time

STORE: Final = Features(
    write=True, symlinks=True, hard_links=True, specials=True, mode=True, owner=True, xattrs=True,
    holes=True, chunked=True,
)  # fmt: skip


@asynccontextmanager
async def open_store(
    run: Run, destination: Location | None
) -> AsyncIterator[tuple[ChunkStore, Catalogue, str]]:
    """Where snapshots are kept, and its name. Raises Unsupported, RemoteError, OrbitError."""
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
    async with Repository.open(
        destination.place, run.context, access, create=not run.dry_run
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
    async with (
        open_tree(source, run.context, spec.options) as tree,
        open_store(run, destination) as (store, catalogue, label),
    ):
        run.report.source, run.report.destination = tree.label, label
        features = replace(STORE, local=tree.features.local)
        for each in refuse_errors(check(spec, tree.features, features)):
            run.notice(each.sentence)
        job = _BackupJob(run, tree, store, catalogue)
        if run.dry_run:
            await job.show_plan()
        else:
            await job.carry_out()


class _BackupJob:
    """One run."""

    def __init__(self, run: Run, tree: Tree, store: ChunkStore, catalogue: Catalogue) -> None:
        self._run = run
        self._tree = tree
        self._store = store
        self._catalogue = catalogue
        self._host = socket.gethostname()

    async def _previous(self) -> Snapshot | None:
        """The last snapshot of the same place."""
        listing = await self._catalogue.list()
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
        keeps = None
        if run.options.filters or isinstance(self._tree, LocalTree):
            keeps = _Kept(self._tree, filters_of(run.options)).keeps
        made = await backup(
            self._tree,
            self._store,
            Previous(previous.root, previous.tokens) if previous is not None else None,
            run.options,
            keeps=keeps,
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
        await trio.to_thread.run_sync(self._audit, snapshot)

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
                    self._run.options.compression or "zstd",
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


class _Kept:
    """Filters as a backup asks for them: path by path, in the order of a walk."""

    def __init__(self, tree: Tree, filters: Filters) -> None:
        self._tree = tree
        self._top = filters
        self._known: dict[bytes, Filters] = {}

    def keeps(self, path: bytes, node: Node) -> bool:
        """Whether a path belongs to the backup; its parents do."""
        return self._of(path.rpartition(b"/")[0]).decide(path, node).keep

    def _of(self, directory: bytes) -> Filters:
        """What holds in a directory."""
        known = self._known.get(directory)
        if known is None:
            above = self._top
            if directory != ROOT:
                above = self._of(directory.rpartition(b"/")[0])
            known = above
            if above.ignore_names and isinstance(self._tree, LocalTree):
                known = above.enter(directory, self._contents(self._tree, directory, above))
            while len(self._known) >= _KEPT_MAX:
                del self._known[next(iter(self._known))]
            self._known[directory] = known
        return known

    def _contents(self, tree: LocalTree, directory: bytes, filters: Filters) -> dict[bytes, bytes]:
        """The ignore files there: small, and read where they lie; a hop would cost more."""
        found = {}
        for name in filters.ignore_names:
            path = directory + b"/" + name if directory else name
            with suppress(RemoteError):
                node = tree.files.stat(path)
                if node.kind is NodeKind.FILE and node.size <= _IGNORE_BYTES_MAX:
                    found[name] = tree.files.read(path, node, 0, node.size)
        return found


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
