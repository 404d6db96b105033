"""A `Control` for tests of the API: answers with given values, and blocks where a test says so."""

import threading
from dataclasses import replace

from ghostd.facade import (
    CheckItem,
    CheckReport,
    CollectReport,
    CommitStatus,
    DaemonState,
    FlushReport,
    OperationStats,
    Stats,
    Status,
)
from tests.api.double_projections import DoubleProjections

STATUS = Status(
    state=DaemonState.READY,
    mount="/mnt/orbit",
    state_folder="/var/lib/orbit",
    version="0.1.0",
    pid=4711,
    uptime_s=12.5,
    loop_lag_s=0.01,
    dirty_bytes=4096,
    dirty_ops=3,
    commit=CommitStatus(count=7, last_age_s=0.4, last_duration_s=0.02),
    free_bytes=10 * 2**30,
    files=100,
    directories=10,
    projected=0,
    logical_bytes=2**30,
    stored_bytes=2**28,
)
HEALTHY = CheckReport.of(
    [CheckItem("pack-headers", "every pack begins with a valid header", ok=True)],
    [],
    data=False,
    seconds=0.1,
)
DAMAGED = CheckReport.of(
    [
        CheckItem("pack-headers", "every pack begins with a valid header", ok=True),
        CheckItem("chunks", "bytes match their ids", ok=False, problems=("abc: pack 3",)),
    ],
    ["/a/b.txt", "/a/\x1b[31mred"],
    data=True,
    seconds=0.1,
)


class DoubleControl:
    """Counts its calls. `gate` is open unless a test closes it; blocking calls wait at it."""

    def __init__(self) -> None:
        self.current = STATUS
        self.report = HEALTHY
        self.error: Exception | None = None
        self.calls: list[tuple] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)  # released by every blocking call that begins
        self.projections = DoubleProjections(self)
        self.jobs = None

    def _pass(self, *call) -> None:
        self.calls.append(call)
        self.entered.release()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error

    def status(self) -> Status:
        return self.current

    def with_remotes(self) -> Status:
        """The status with what the projections say is wrong."""
        return replace(self.current, remotes=self.projections.problems())

    def stats(self) -> Stats:
        return Stats(
            operations={"read": OperationStats(count=5, errors=1, seconds=0.25)},
            counters={"cache_hits": 42},
            gauges={"cache_bytes": 1024},
        )

    def flush(self, timeout_s: float) -> FlushReport:
        self._pass("flush", timeout_s)
        return FlushReport(seconds=0.5)

    def check(self, *, data: bool) -> CheckReport:
        self._pass("check", data)
        return replace(self.report, data=data)

    def collect(self, *, dry_run: bool, waste_max: float | None) -> CollectReport:
        self._pass("collect", dry_run, waste_max)
        return CollectReport(
            dry_run=dry_run,
            live_chunks=9,
            packs_condemned=2,
            packs_removed=1,
            bytes_freed=1000,
            bytes_copied=500,
            seconds=0.2,
        )

    def stop(self) -> None:
        self._pass("stop")
        self.current = replace(self.current, state=DaemonState.STOPPING)
