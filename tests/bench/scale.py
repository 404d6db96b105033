"""Groups on growth: the daemon's start and memory, the chunk index, shifted data."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.bench import trees
from tests.bench.bench import Bench, Group, Row
from tests.bench.populate import populate
from tests.bench.processes import run
from tests.bench.systems import OURS, GhostFS

_FOLDERS = 100


def _scale(bench: Bench) -> None:
    for files in (100_000, bench.size(1_000_000, 200_000)):
        system = GhostFS(bench.disk, bench.peers)
        with bench.cleared([system]), bench.attempt(f"{OURS} with {files:,} files"):
            system.start()
            system.stop()
            populate(system.data, "many", _FOLDERS, files // _FOLDERS)
            for _ in bench.in_turn([system]):
                _scale_one(bench, system, files)


def _scale_one(bench: Bench, system: GhostFS, files: int) -> None:
    key = "few" if files == 100_000 else "many"
    bench.disk.drop_caches()
    # Once with the interpreter's files in memory again, as after any earlier start.
    system.start()
    system.stop()
    started = time.perf_counter()
    system.start()
    bench.note(f"mount-{key}", system, time.perf_counter() - started)
    bench.note(f"rss-{key}", system, system.rss_bytes())
    seconds = trees.find(system.mount / "many", files)
    bench.note(f"find-{key}", system, seconds, amount=files + _FOLDERS)
    bench.note(f"rss-found-{key}", system, system.rss_bytes())
    started = time.perf_counter()
    system.stop()
    bench.note(f"stop-{key}", system, time.perf_counter() - started)


SCALE = Group(
    "scale",
    "The daemon with 100,000 files, and with 1,000,000 (quick: 200,000)",
    tuple(
        Row(f"{what}-{key}", f"{label}, {count} files", show)
        for what, label, show in (
            ("mount", "start until ready", "s"),
            ("rss", "resident memory after the start", "MiB"),
            ("find", "find with stat", "/s"),
            ("rss-found", "resident memory after find", "MiB"),
            ("stop", "stop", "s"),
        )
        for key, count in (("few", "100,000"), ("many", "1,000,000"))
    ),
    _scale,
    (OURS,),
    note="Filled through the namespace library; 100 directories. "
    "The start includes the interpreter's.",
)


def _index(bench: Bench) -> None:
    sizes = ["1e5", "1e6"] + ([] if bench.quick else ["1e7"])
    folder = bench.disk.root / "index"
    folder.mkdir()
    bench.record.facts["index"] = _program("tests.bench.index_scale", folder, *sizes)


INDEX = Group("index", "The chunk index as it grows", (), _index)


def _shift(bench: Bench) -> None:
    bench.record.facts["shift"] = _program("tests.bench.shift_resilience")


SHIFT = Group("shift", "What stays the same when bytes are inserted", (), _shift)


def _program(module: str, *arguments: str | Path) -> str:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", module, *arguments]
    return run(*command, limit_s=3600, cwd=root, stderr=False).output.strip()
