"""The worker process: started while there is something to do, ended with the daemon.

A job must not hold the interpreter's lock against FUSE requests, so jobs have a process of their
own (docs/syncer.md). It reaches the store and the namespace through the door, and ends by itself
when no job waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from ghostd.door_server import DoorServer
from ghostd.threads import Threads
from syncer.jobs import Jobs
from syncer.remotes.policy import RemotePolicy

log = structlog.get_logger(__name__)

_NICE: Final = 5  # with both busy, three quarters of a core are left for the mount
_GRACE_S: Final = 5.0  # to give its jobs back when the daemon stops
_LOOK_S: Final = 60.0  # between two looks at the schedules, at most
_CRASHED_S: Final = 1.0  # before it is started again; doubles
_CRASHED_MAX_S: Final = 60.0
_LIVED_S: Final = 30.0  # who lives longer has not crashed at once


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the daemon's configuration says of jobs."""

    at_once: int = 2
    bandwidth: str = ""  # of all jobs together: a rate or timetable
    classes: tuple[tuple[str, str], ...] = ()  # globs and semantic classes
    audit_keep_days: int = 0  # of the audit trail; 0: all
    credentials: str = ""  # the file of the remotes' credentials; "": where it usually is
    policy: RemotePolicy = field(default_factory=RemotePolicy)  # towards remotes


class JobWorker:
    """Owned by the filesystem's loop; `wake` is for any thread."""

    def __init__(
        self,
        jobs: Jobs,
        state: Path,
        mount: Path,
        door: DoorServer,
        threads: Threads,
        options: WorkerOptions,
    ) -> None:
        self._threads = threads
        self._jobs = jobs
        self._state = state
        self._mount = mount
        self._door = door
        self._options = options
        self._token: trio.lowlevel.TrioToken | None = None
        self._woken = trio.Event()
        self._failed = 0  # the exit code of the last worker, if it failed
        self._began_s = 0.0  # the last one, by the clock of time.monotonic
        self.pid = 0  # 0: no worker runs
        self.starts = 0  # so far

    def wake(self) -> None:
        """Something was queued, or is wanted of a job."""
        if self._token is not None:
            self._token.run_sync_soon(self._woken.set)

    @property
    def trouble(self) -> str:
        """Why jobs may not be carried out, for people; "": nothing is known. For any thread."""
        if not self._failed or (self.pid and self._lives_s() >= _LIVED_S):
            return ""
        return (
            f"jobs wait: their worker has failed with code {self._failed}, and is started again; "
            "the daemon's log says why"
        )

    def _lives_s(self) -> float:
        return time.monotonic() - self._began_s

    async def run(self) -> None:
        """Keep a worker running while jobs wait, until cancelled; then end it."""
        self._token = trio.lowlevel.current_trio_token()
        pause_s = 0.0
        while True:
            due_s = await trio.to_thread.run_sync(self._jobs.next_due_s)
            if due_s is None or due_s > 0:
                with trio.move_on_after(min(_LOOK_S, due_s or _LOOK_S)):
                    await self._woken.wait()
                self._woken = trio.Event()
                continue
            self._woken = trio.Event()
            self._began_s = time.monotonic()
            code = self._failed = await self._work()
            if not code or self._lives_s() >= _LIVED_S:
                pause_s = 0.0
            else:
                pause_s = min(_CRASHED_MAX_S, max(_CRASHED_S, 2 * pause_s))
            if code:
                log.warning("the worker of jobs has failed and is started again", code=code)
                await trio.sleep(pause_s)

    async def _work(self) -> int:
        """One life of a worker process; its exit code."""
        connections = self._door.open()
        numbers = [connection.fileno() for connection in connections]
        command = [sys.executable, "-m", "syncer.worker", "--parent", str(os.getpid())]
        command += ["--state", str(self._state), "--mount", str(self._mount)]
        command += ["--door", ",".join(map(str, numbers))]
        command += ["--jobs", str(self._options.at_once)]
        command += [f"--bandwidth={self._options.bandwidth}"]
        command += ["--classes", json.dumps(self._options.classes)]
        command += ["--audit-keep-days", str(self._options.audit_keep_days)]
        command += [f"--credentials={self._options.credentials}"]
        command += ["--policy", json.dumps(asdict(self._options.policy))]
        try:
            # The kernel ends it with the *thread* that started it: one that lives as long as we.
            process = await self._threads.run("keep", _start, command, numbers)
        finally:
            for connection in connections:
                connection.close()
        self.pid, self.starts = process.pid, self.starts + 1
        try:
            return await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_end, process)
            raise
        finally:
            self.pid = 0


def _start(command: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    # Its threads, which it has not begun yet, inherit it; one that has ended already may keep its.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """It gives its jobs back, or is killed."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
