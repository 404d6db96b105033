"""Probes a mount while a command runs: `python -m tests.bench.sync_latency FILE COUNT [COMMAND…]`.

One JSON object: medians and 99th percentiles of stats and of reads, in seconds. Without a command
COUNT of each; else until it ends, and at least COUNT.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import time

from tests.bench.processes import StepFailed

_AT_FDCWD, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS = -100, 0x2000, 0x7FF
_READ_BYTES = 128 << 10
_PACE_S = 0.001  # between two probes


def probe(path: str, count: int, command: list[str]) -> dict[str, float]:
    """Ask for attributes and for bytes, in turn, so that the kernel's memory does not answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(256)
    name = os.fsencode(path)
    rng = random.Random(1)
    stats: list[float] = []
    reads: list[float] = []
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    places = os.fstat(fd).st_size // _READ_BYTES
    page = mmap.mmap(-1, _READ_BYTES)  # aligned, as O_DIRECT wants it

    def read() -> None:
        got = os.preadv(fd, [page], rng.randrange(places) * _READ_BYTES)
        if got != _READ_BYTES:
            raise StepFailed(f"{path}: {got} bytes instead of {_READ_BYTES}")

    for _ in range(places):
        read()  # once, so that the idle figure is not of a cold file
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL) if command else None
    began = time.perf_counter()
    while job.poll() is None if job else len(reads) < count:
        started = time.perf_counter()
        if libc.statx(_AT_FDCWD, name, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, attributes):
            raise OSError(ctypes.get_errno(), "statx", path)
        stats.append(time.perf_counter() - started)
        time.sleep(_PACE_S)
        started = time.perf_counter()
        read()
        reads.append(time.perf_counter() - started)
        time.sleep(_PACE_S)
    seconds = time.perf_counter() - began
    if job is not None and (job.returncode or len(reads) < count):
        raise StepFailed(f"{command}: ended with {job.returncode} after {len(reads)} probes")
    return {
        "seconds": seconds,
        "stat-median": statistics.median(stats),
        "stat-p99": statistics.quantiles(stats, n=100)[98],
        "read-median": statistics.median(reads),
        "read-p99": statistics.quantiles(reads, n=100)[98],
    }


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
