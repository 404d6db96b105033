"""The daemon as the control API sees it: `facade.Control` over the running parts.

Status and counters are read from memory by whichever thread asks; what takes long enters the
filesystem's loop, which hands it to worker threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from ghostd.census import Census
from ghostd.facade import (
    CheckReport,
    CollectReport,
    CommitStatus,
    DaemonState,
    FlushReport,
    OperationStats,
    Stats,
    Status,
)
from ghostd.flusher import Flusher
from ghostd.fuse import RequestCounters
from ghostd.in_loop import DaemonGone, InLoop
from ghostd.jobs_facade import JobControl
from ghostd.keeper import Keeper
from ghostd.projection_facade import ProjectionCalls
from ghostd.reader import Reader
from ghostd.snapshots_facade import SnapshotCalls

__all__ = ["DaemonControl", "DaemonGone", "Pulse"]

_VERSION = version("orbit-ghostfs")
_CENSUS_S = 0.3  # a status waits for it that long
_LAG_WARNING_S = 5.0
_COMMIT_WARNING_S = 30.0


class Pulse:
    """Ticked by the filesystem's loop, read by others: how long it has not answered."""

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()

    def tick(self) -> None:
        """The loop is alive."""
        self._last = time.monotonic()

    def lag_s(self) -> float:
        """Seconds since the last tick."""
        return time.monotonic() - self._last


class DaemonControl:
    """Implements `facade.Control`."""

    def __init__(
        self,
        *,
        mount: Path,
        folder: Path,
        keeper: Keeper,
        reader: Reader,
        flusher: Flusher,
        requests: RequestCounters,
        pulse: Pulse,
        waste_max: float,
        stop: Callable[[], None],
        projections: ProjectionCalls | None = None,
        snapshots: SnapshotCalls | None = None,
        jobs: JobControl | None = None,
    ) -> None:
        self.projections = projections
        self.snapshots = snapshots
        self.jobs = jobs
        self.state = DaemonState.STARTING
        self._mount = mount
        self._folder = folder
        self._keeper = keeper
        self._reader = reader
        self._flusher = flusher
        self._requests = requests
        self._pulse = pulse
        self._waste_max = waste_max
        self._stop = stop
        self._loop = InLoop()
        self._free_bytes = 0
        tree = keeper.tree
        self.census = Census(tree.namespace, lambda: tree.committed_epoch)

    def note_free_space(self) -> None:
        """Look at the disk; from the filesystem's loop, so that `status` never waits for it."""
        self._free_bytes = self._keeper.store.free_bytes()

    # --- from memory, any thread ----------------------------------------------------------------

    def status(self) -> Status:
        """See facade.Control."""
        tree, writeback = self._keeper.tree, self._keeper.writeback
        commits = writeback.stats
        store = self._keeper.store.stats()
        running = commits.running_since
        commit = CommitStatus(
            count=commits.commits,
            last_age_s=time.time() - commits.last_at if commits.last_at else None,
            last_duration_s=commits.last_s if commits.commits else None,
            last_error=commits.last_error or None,
            in_flight_s=time.monotonic() - running if running else None,
        )
        lag = self._pulse.lag_s()
        totals = self.census.totals(_CENSUS_S)
        return Status(
            state=self.state,
            mount=str(self._mount),
            state_folder=str(self._folder),
            version=_VERSION,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._pulse.started,
            loop_lag_s=lag,
            dirty_bytes=tree.unstored,
            dirty_ops=tree.dirty_ops,
            commit=commit,
            free_bytes=self._free_bytes,
            files=None if totals is None else totals.files,
            directories=None if totals is None else totals.directories,
            projected=None if totals is None else totals.projected,
            logical_bytes=None if totals is None else totals.bytes,
            stored_bytes=store.pack_bytes,
            damaged_chunks=store.damaged_chunks,
            damaged_files=len(self._reader.damaged_inodes),
            remotes=() if self.projections is None else self.projections.problems(),
            warnings=tuple(self._warnings(lag, commit)),
        )

    def _warnings(self, lag: float, commit: CommitStatus) -> list[str]:
        warnings = []
        if lag > _LAG_WARNING_S:
            warnings.append(f"the filesystem has not answered for {lag:.0f} s; look at its disk")
        if commit.in_flight_s is not None and commit.in_flight_s > _COMMIT_WARNING_S:
            warnings.append(
                f"a commit has been running for {commit.in_flight_s:.0f} s; look at the disk of "
                f"{self._folder}"
            )
        if commit.last_error:
            warnings.append(f"the last commit failed: {commit.last_error}")
        if self.jobs is not None and (trouble := self.jobs.trouble()):
            warnings.append(trouble)
        warnings += [
            f"inode {ino} is damaged: {why}"
            for ino, why in list(self._reader.damaged_inodes.items())[:5]
        ]
        return warnings

    def stats(self) -> Stats:
        """See facade.Control."""
        tree, writeback = self._keeper.tree, self._keeper.writeback
        store = self._keeper.store.stats()
        commits, reads = writeback.stats, self._reader.stats
        return Stats(
            operations={
                name: OperationStats(int(count), int(errors), seconds)
                for name, (count, errors, seconds) in sorted(self._requests.counts.items())
            },
            counters={
                "commits": commits.commits,
                "commit_failures": commits.failures,
                "commit_rows": commits.rows,
                "commit_seconds": commits.seconds,
                "ingested_bytes": commits.ingested_bytes,
                "reads_from_memory": reads.from_memory,
                "reads_from_page_cache": reads.from_page_cache,
                "reads_from_disk": reads.from_disk,
                "read_ahead_chunks": reads.ahead_chunks,
                "chunks_put": store.put_chunks,
                "chunks_put_bytes": store.put_bytes,
                "chunks_new": store.new_chunks,
                "chunks_new_raw_bytes": store.new_raw_bytes,
                "chunks_new_stored_bytes": store.new_stored_bytes,
                "dedup_hits": store.dedup_hits,
                "chunk_cache_hits": store.cache_hits,
                "chunk_cache_misses": store.cache_misses,
            }
            | ({} if self.projections is None else self.projections.counters()),
            gauges={
                "dirty_bytes": tree.unstored,
                "dirty_ops": tree.dirty_ops,
                "inodes": tree.inode_count,
                "inodes_in_memory": len(tree.cache),
                "inodes_held_by_kernel": len(tree.lookups),
                "chunks": store.chunks,
                "packs": store.packs,
                "pack_bytes": store.pack_bytes,
                "index_runs": store.index_runs,
                "chunk_cache_bytes": store.cache_bytes,
                "damaged_chunks": store.damaged_chunks,
                "resident_bytes": _resident_bytes(),
            }
            | ({} if self.projections is None else self.projections.gauges()),
        )

    # --- blocking, from the API's worker threads --------------------------------------------------

    def flush(self, timeout_s: float) -> FlushReport:
        """See facade.Control."""
        began = time.monotonic()
        self._loop.wait(self._flusher.flush, timeout_s)
        return FlushReport(time.monotonic() - began)

    def check(self, *, data: bool) -> CheckReport:
        """See facade.Control."""
        return self._loop.wait(lambda: self._keeper.check(data=data))

    def collect(self, *, dry_run: bool, waste_max: float | None) -> CollectReport:
        """See facade.Control."""
        limit = self._waste_max if waste_max is None else waste_max
        return self._loop.wait(lambda: self._keeper.collect(limit, dry_run=dry_run))

    def stop(self) -> None:
        """See facade.Control."""
        self._loop.soon(self._stop)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
