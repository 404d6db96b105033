"""Measured values, and the runs they belong to: JSON lines in the build folder."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one system. `cost` is better when it is smaller."""

    group: str
    row: str
    system: str
    round: int
    cost: float  # seconds or bytes
    amount: float = 1.0  # of what was done in `cost`: bytes, files, …
    cpu_s: float | None = None  # of the system's daemon


@dataclass(frozen=True, slots=True)
class Failure:
    """A measurement that could not be made, and why."""

    group: str
    system: str
    message: str


@dataclass(slots=True)
class Run:
    """One run of the bench."""

    date: str
    command: str
    quick: bool
    revision: str
    machine: str
    disk: str
    partial: bool = False  # only some systems were asked for
    finished: list[str] = field(default_factory=list)  # groups
    peers: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # tables and remarks, by group

    def append_to(self, path: Path) -> None:
        """Add the run as one line."""
        with path.open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def load_runs(path: Path) -> Iterator[Run]:
    """All runs, the oldest first."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        fields["samples"] = [Sample(**sample) for sample in fields["samples"]]
        fields["failures"] = [Failure(**failure) for failure in fields["failures"]]
        yield Run(**fields)


def now() -> str:
    """Date and time, to the minute."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")


def revision(root: Path) -> str:
    """The commit that is measured, "+" where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", "blockstore", "ghostd", "syncer")
    return f"{commit}+" if changed else commit


def machine() -> str:
    """Processor, cores, memory, kernel."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    kernel = platform.release().partition("-")[0]
    return (
        f"{model}, {cores} cores, {memory_kib / (1 << 20):.0f} GiB, Linux {kernel}, "
        f"Python {platform.python_version()}"
    )
