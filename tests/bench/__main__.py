"""`python -m tests.bench`: measure groups, keep the values, render docs/benchmarks.md.

Everything is made below one folder: the disk image, the peers' programs, the inputs, the values.
At the end, however it comes, what was started has ended and what was mounted is not.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.bench import report
from tests.bench.bench import Bench, Group, say
from tests.bench.catalogue import GROUPS
from tests.bench.disk import Disk
from tests.bench.record import Run, load_runs, machine, now, revision

_ROOT = Path(__file__).parents[2]
_SYSTEMS = sorted({name for group in GROUPS.values() for name in group.systems})
_DOCS = _ROOT / "docs" / "benchmarks.md"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--groups", default=",".join(GROUPS), help="of: " + ", ".join(GROUPS))
    parser.add_argument("--systems", default="", help="only these of: " + ", ".join(_SYSTEMS))
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one round")
    parser.add_argument("--rounds", type=int, help="default: 3; quick: 1")
    parser.add_argument("--folder", type=Path, default=_ROOT / "build" / "bench")
    parser.add_argument(
        "--docs", action="store_true", help="put the newest values into docs/benchmarks.md, and end"
    )
    given = parser.parse_args()
    given.groups = [name for name in given.groups.split(",") if name]
    given.systems = [name for name in given.systems.split(",") if name]
    if unknown := (set(given.groups) - set(GROUPS)) | (set(given.systems) - set(_SYSTEMS)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return given


def main() -> int:
    """Run what the arguments ask for."""
    given = _arguments()
    results = given.folder / "results.jsonl"
    if given.docs:
        return _write_docs(results)
    given.folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    run = Run(
        date=now(),
        command="python -m tests.bench " + shlex.join(sys.argv[1:]),
        quick=given.quick,
        revision=revision(_ROOT),
        machine=machine(),
        disk="",
        partial=bool(given.systems),
    )
    groups = [GROUPS[name] for name in given.groups]
    rounds = given.rounds or (1 if given.quick else 3)
    interrupted = False
    try:
        _measure(given.folder.resolve(), run, groups, rounds, given.systems)
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted; what was measured is kept")
    finally:
        if run.samples or run.facts or run.failures:
            run.append_to(results)
        for group in groups:
            print(report.section(group, run), end="\n\n")
    return 130 if interrupted else int(bool(run.failures))


def _measure(folder: Path, run: Run, groups: list[Group], rounds: int, only: list[str]) -> None:
    with ExitStack() as stack:
        disk = Disk(folder)
        stack.callback(disk.detach)
        disk.attach()
        run.disk = disk.kind
        if not disk.can_drop_caches:
            run.disk += "; without root the kernel's caches stay warm"
        say(f"disk: {run.disk}")
        bench = Bench(folder, disk, run, rounds=rounds, only=only)
        stack.callback(bench.inputs.close)
        for group in groups:
            bench.measure(group)
        run.peers = bench.peers.versions()


def _write_docs(results: Path) -> int:
    runs = list(load_runs(results))
    text = _DOCS.read_text()
    before, _, rest = text.partition(report.BEGIN)
    _, _, after = rest.partition(report.END)
    body = report.render(GROUPS.values(), runs)
    _DOCS.write_text(f"{before}{report.BEGIN}\n\n{body}\n\n{report.END}{after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
