"""Long work on the whole state: copies of the namespace, collection, checks. One at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import apsw
import trio

from blockstore.check import CheckResult
from blockstore.collect import CollectReport as StoreReport
from blockstore.disk import Disk, DiskFile
from blockstore.errors import OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd import fsck
from ghostd.copies import take_copy
from ghostd.facade import CheckItem, CheckReport, CollectReport, printable_path
from ghostd.namespace import FILE_NAME, Namespace, chunk_roots, translated
from ghostd.snapshots_roots import check_snapshots, chunks_of
from ghostd.snapshots_rows import drop_unreached, suspect, trust, unreached
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.writeback import Writeback
from syncer.catalogue import Listing, Snapshot, SnapshotFolder
from syncer.snapshot_check import ObjectWalk

SNAPSHOTS_FOLDER = "snapshots"  # of the state folder: their records
_COPIES_KEPT = 3  # as many root records as the store keeps


class CopyNotPossible(OrbitError):
    """The database file could not be brought to one consistent state."""


class CollectionRefused(OrbitError):
    """What is live cannot be told now; nothing was removed."""


class Keeper:
    """Keeps the state folder in order. Owned by the filesystem's loop."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        *,
        store: BlockStore,
        namespace: Namespace,
        tree: Tree,
        writeback: Writeback,
        threads: Threads,
    ) -> None:
        self.store = store
        self.tree = tree
        self.writeback = writeback
        self._namespace = namespace
        self._threads = threads
        self._lock = trio.Lock()
        # Kept open until the end: closing any descriptor of the file would drop SQLite's locks on
        # it.
        self._database: DiskFile = disk.open(folder / FILE_NAME)
        self.records = SnapshotFolder(folder / SNAPSHOTS_FOLDER, disk)
        # How many of somebody's jobs store chunks that nothing names yet.
        self.holds: list[Callable[[], int]] = []
        self._copied_epoch = 0
        self._records_copied = True

    def close(self) -> None:
        """After the namespace has been closed."""
        self._database.close()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """No copy, collection or check runs inside."""
        async with self._lock:
            yield

    # --- copies --------------------------------------------------------------------------------

    @property
    def copy_due(self) -> bool:
        """Something has changed since the last copy."""
        return self.tree.committed_epoch > self._copied_epoch or not self._records_copied

    def snapshots_changed(self) -> None:
        """A snapshot was recorded or removed: copies carry their records."""
        self._records_copied = False

    async def copy_namespace(self) -> None:
        """Put a copy of the namespace, as of the last commit, into the packs."""
        async with self._lock:
            snapshot = await self._copy(keep=_COPIES_KEPT)
            self._namespace.end_snapshot(snapshot)

    async def _copy(self, *, keep: int) -> apsw.Connection:
        """A copy, and a snapshot of the very state that is in it.

        Commits go on meanwhile, checkpoints wait.
        """
        writeback, threads = self.writeback, self._threads
        async with writeback.paused():
            if not await threads.run("commit", self._namespace.checkpoint):
                raise CopyNotPossible(
                    "the namespace was not copied: something still reads an older state of it; "
                    "the next round tries again"
                )
            writeback.checkpoints_held = True
            epoch = self.tree.committed_epoch
            snapshot = await threads.run("maintenance", self._namespace.snapshot)
        try:
            taken = time.time_ns()
            self._records_copied = True
            records = await threads.run("maintenance", self.records.list)
            _, needed = await threads.run(
                "maintenance", take_copy, self.store, self._database, records.snapshots, taken
            )
            async with writeback.paused():
                await threads.run("commit", self._namespace.record_copy, taken, needed, keep)
        except BaseException:
            self._namespace.end_snapshot(snapshot)
            self._records_copied = False
            raise
        finally:
            writeback.checkpoints_held = False
        self._copied_epoch = epoch
        return snapshot

    # --- collection ----------------------------------------------------------------------------

    async def collect(self, waste_max: float, *, dry_run: bool) -> CollectReport:
        """Free the chunks that neither the tree, nor its newest copy, nor a snapshot needs.

        Live is what one state of the database names, what recorded snapshots reach, and whatever
        was stored or bound since before both were looked at (`begin_touch`). The state is the one
        that a fresh copy holds, so that `--recover` finds every chunk; older copies are given up.

        Raises CollectionRefused while chunks are being stored that nothing names yet, or where a
        snapshot's record cannot be read.
        """
        began = time.monotonic()
        async with self._lock:
            await self._threads.run("maintenance", self.store.begin_touch)
            try:
                self._check_holds()
                await self.writeback.commit()
                records = await self._records()
                if not dry_run:
                    await self._threads.run("commit", self._namespace.write, suspect)
                if dry_run:
                    snapshot = await self._threads.run("maintenance", self._namespace.snapshot)
                else:
                    snapshot = await self._copy(keep=1)
                try:
                    report, lost = await self._threads.run(
                        "maintenance", self._collect, snapshot, records, waste_max, dry_run
                    )
                finally:
                    self._namespace.end_snapshot(snapshot)
            finally:
                self.store.end_touch()
            if not dry_run:
                for some in lost:
                    await self._threads.run(
                        "commit", self._namespace.write, lambda c, s=some: drop_unreached(c, s)
                    )
                await self._threads.run("commit", self._namespace.write, trust)
        return CollectReport(
            dry_run=dry_run,
            live_chunks=report.live_chunks,
            packs_condemned=len(report.plan.condemned),
            packs_removed=report.packs_removed,
            bytes_freed=report.plan.bytes_to_free if dry_run else report.bytes_freed,
            bytes_copied=report.plan.bytes_to_copy if dry_run else report.bytes_copied,
            seconds=time.monotonic() - began,
        )

    def _check_holds(self) -> None:
        """After begin_touch: what is begun from now on is noted."""
        if any(held() for held in self.holds):
            raise CollectionRefused(
                "a job is storing chunks that no file or snapshot names yet: collect when it has"
                " ended (`orbit-ctl jobs` lists them)"
            )

    async def _records(self) -> list[Snapshot]:
        listing = await self._threads.run("maintenance", self.records.list)
        if listing.damaged:
            raise CollectionRefused(
                f"{listing.damaged[0]} in {SNAPSHOTS_FOLDER}/ of the state folder, the record of a"
                " snapshot, is damaged: what it holds cannot be known. Bring it back from a copy,"
                " or remove that file to give the snapshot up"
            )
        return listing.snapshots

    def _collect(
        self,
        snapshot: apsw.Connection,
        records: list[Snapshot],
        waste_max: float,
        dry_run: bool,
    ) -> tuple[StoreReport, list[list[int]]]:
        """The report, and the directories whose tree objects no snapshot reaches any more."""
        try:
            with closing(ObjectWalk(self.store)) as walk:
                live = itertools.chain(_as_ids(chunk_roots(snapshot)), chunks_of(walk, records))
                report = self.store.collect(live, dry_run=dry_run, waste_max=waste_max)
                return report, list(unreached(snapshot, walk.reached))
        except apsw.Error as error:
            raise translated(error, self._namespace.path) from error

    # --- checks --------------------------------------------------------------------------------

    async def check(self, *, data: bool) -> CheckReport:
        """Every named check, over the state as of now; `data` reads every chunk back."""
        began = time.monotonic()
        async with self._lock:
            await self.writeback.commit()
            snapshot = await self._threads.run("maintenance", self._namespace.snapshot)
            try:
                records = await self._threads.run("maintenance", self.records.list)
                checks, damaged = await self._threads.run(
                    "maintenance", self._check, snapshot, records, data
                )
            finally:
                self._namespace.end_snapshot(snapshot)
        paths = [printable_path(path) for path in damaged]
        return CheckReport.of(checks, paths, data=data, seconds=time.monotonic() - began)

    def _check(
        self, snapshot: apsw.Connection, records: Listing, data: bool
    ) -> tuple[list[CheckItem], list[bytes]]:
        try:
            findings = fsck.check_tree(snapshot) + fsck.check_content(snapshot, self.store)
            stored: list[CheckResult] = self.store.check(data=data)
            lost = set(self.store.damaged())
            for result in stored:
                lost.update(ChunkId(chunk) for chunk in result.damaged)
            with closing(ObjectWalk(self.store)) as walk:
                findings.append(check_snapshots(self.store, walk, records, lost))
            missing = any(f.problems for f in findings if f.name == fsck.CHUNKS_STORED)
            damaged: list[bytes] = []
            if lost or missing:
                damaged = fsck.damaged_files(
                    snapshot,
                    lambda ids: (
                        bool(lost.intersection(ids)) or len(self.store.contains(ids)) < len(ids)
                    ),
                )
        except apsw.Error as error:
            raise translated(error, self._namespace.path) from error
        items = [CheckItem(r.name, r.promise, r.ok, tuple(r.problems)) for r in stored]
        items += [CheckItem(f.name, f.promise, not f.problems, f.problems) for f in findings]
        return items, damaged


def _as_ids(groups: Iterator[list[bytes]]) -> Iterator[Sequence[ChunkId]]:
    for group in groups:
        yield [ChunkId(chunk_id) for chunk_id in group]
