"""Group on what the mount's latency is while a job of the daemon runs flat out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.processes import run
from tests.bench.sync_local import scratch
from tests.bench.sync_tools import LIMIT_S, ROOT
from tests.bench.systems import OURS, GhostFS

_PROBES = 3000  # of each kind, idle
_BUSY_PROBES = 200  # at least; as many as fit beside the job
_READ_FILE_BYTES = 64 << 20
_JOBS = {
    "in": "beside a big copy into the mount",
    "out": "beside a big copy out of the mount",
    "local": "beside a copy of small files, local to local",
}


def _beside(bench: Bench) -> None:
    with scratch(bench) as folder:
        big, small = folder / "big", folder / "small"
        big.mkdir()
        size = bench.size(2 << 30, 512 << 20)
        for number in range(4):
            source = bench.inputs.random_data(size // 4, 40 + number)
            (big / f"f{number}").write_bytes(source.read_bytes())
            bench.inputs.forget(source)
        work.call("create", small, 100, bench.size(400, 100), 4096, 1, limit_s=LIMIT_S)
        system = GhostFS(bench.disk, bench.peers)
        with bench.cleared([system]):
            for _ in bench.in_turn([system]):
                with bench.attempt(system):
                    _beside_one(bench, system, {"big": big, "small": small})
                    system.clear()


def _beside_one(bench: Bench, system: GhostFS, sources: dict[str, Path]) -> None:
    system.start()
    own = system.mount / "own"
    own.write_bytes(bench.inputs.random_data(_READ_FILE_BYTES, 50).read_bytes())
    system.settle()
    out = next(iter(sources.values())).parent
    copied = system.mount / "copied"
    jobs = {
        "idle": None,
        "in": (sources["big"], copied),
        "out": (copied, out / "out"),
        "local": (sources["small"], out / "local"),
    }
    for key, places in jobs.items():
        bench.disk.sync()
        command = [] if places is None else [*_control(system), "copy", "--quiet", *places]
        probes = _BUSY_PROBES if places else _PROBES
        probing = [sys.executable, "-m", "tests.bench.sync_latency", own, str(probes), *command]
        done = run(*probing, limit_s=LIMIT_S, cwd=ROOT)
        answer: dict[str, float] = json.loads(done.output.splitlines()[-1])
        for row in ("stat-median", "stat-p99", "read-median", "read-p99"):
            bench.note(f"{key}-{row}", system, answer[row], amount=1)
        if places:
            bench.note(f"{key}-job", system, answer["seconds"])
    system.stop()


def _control(system: GhostFS) -> list[str | Path]:
    return [sys.executable, "-m", "cli.orbit_ctl", "--socket", system.daemon.socket]


SYNC_BESIDE = Group(
    "sync-beside",
    "Latency of the mount beside a job of the daemon (full run: 2 GiB, 40,000 files)",
    tuple(
        Row(f"{key}-{row}", f"{what}, {label}", "ms")
        for row, what in (
            ("stat-median", "stat, median"),
            ("stat-p99", "stat, 99th percentile"),
            ("read-median", "128 KiB read, median"),
            ("read-p99", "128 KiB read, 99th percentile"),
        )
        for key, label in (("idle", "idle"), *_JOBS.items())
    )
    + tuple(
        Row(f"{key}-job", f"the job {label.partition(' a ')[2]}", "s")
        for key, label in _JOBS.items()
    ),
    _beside,
    (OURS,),
    note="statx with AT_STATX_FORCE_SYNC and reads with O_DIRECT at random places of a file of 64 "
    "MiB, in turn, a millisecond apart: the kernel answers none from memory. The job is "
    "`orbit-ctl copy`, in the daemon's worker process.",
)
