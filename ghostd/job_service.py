"""Jobs of the daemon, put together: `jobs.db`, the door, the worker, what the API asks."""

from __future__ import annotations

from pathlib import Path

from blockstore.store import BlockStore
from ghostd.door_server import DoorServer, SnapshotRecords
from ghostd.door_tree import DoorTree
from ghostd.in_loop import InLoop
from ghostd.job_worker import JobWorker, WorkerOptions
from ghostd.jobs_facade import JobControl
from ghostd.threads import Threads
from syncer.jobs import Jobs

DATABASE = "jobs.db"
AUDIT = "audit"  # a folder of the state folder, as syncer.context has it


class JobService:
    """Made in the filesystem's loop, which `run` is a task of."""

    def __init__(
        self,
        state: Path,
        mount: Path,
        store: BlockStore,
        tree: DoorTree,
        snapshots: SnapshotRecords,
        threads: Threads,
        options: WorkerOptions,
    ) -> None:
        """Raises FormatTooNew, JobsDamaged, StorageFull, StorageFailed."""
        self.jobs = self._jobs = Jobs.open(state / DATABASE)
        self.door = DoorServer(store, tree, snapshots, InLoop(), mount)
        self.worker = JobWorker(self._jobs, state, mount, self.door, threads, options)
        self.control = JobControl(
            self._jobs, self.worker.wake, state / AUDIT, lambda: self.worker.trouble
        )

    async def run(self) -> None:
        """See JobWorker.run."""
        await self.worker.run()

    def close(self) -> None:
        """After the loop's tasks have ended."""
        self.door.close()
        self._jobs.close()
