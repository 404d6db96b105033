"""Groups on one big file: sequential, random, overwritten, stored again."""

from __future__ import annotations

from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.systems import OURS, System

ALL = ("ext4", "passthrough_ll", "juicefs", "juicefs-zstd", "rclone", OURS)
LIMIT_S = 300.0
_OVERWRITES = 1000


def _step(*words: str | int | Path) -> float:
    step, *arguments = words
    return work.call(str(step), *arguments, limit_s=LIMIT_S)["seconds"]


def _write(system: System, source: Path, name: str) -> float:
    """Until stored."""
    return _step("write", source, system.mount / name) + system.settle()


# --- sequential ----------------------------------------------------------------------------------


def _sequential(bench: Bench) -> None:
    size = bench.size(1 << 30, 256 << 20)
    sources = {"random": bench.inputs.random_data(size, 1), "text": bench.inputs.text_data(size)}
    systems = bench.systems(ALL)
    with bench.cleared(systems):
        for system in bench.in_turn(systems):
            with bench.attempt(system):
                for kind, source in sources.items():
                    _sequential_one(bench, system, kind, source)


def _sequential_one(bench: Bench, system: System, kind: str, source: Path) -> None:
    size = source.stat().st_size
    path = system.mount / "big"
    system.start()
    bench.timed(f"write-{kind}", system, lambda: _write(system, source, "big"), amount=size)
    system.cold()
    bench.timed(f"read-{kind}", system, lambda: _step("read", path, source), amount=size)
    system.stop()
    system.clear()


SEQUENTIAL = Group(
    "seq",
    "One big file, written until stored and read cold (full run: 1 GiB)",
    (
        Row("write-random", "random data, written until stored", "MB/s"),
        Row("read-random", "random data, read cold", "MB/s"),
        Row("write-text", "text, written until stored", "MB/s"),
        Row("read-text", "text, read cold", "MB/s"),
    ),
    _sequential,
    ALL,
)


# --- random --------------------------------------------------------------------------------------


def _random(bench: Bench) -> None:
    size = bench.size(1 << 30, 256 << 20)
    source = bench.inputs.random_data(size, 1)
    reads = {"4k": (4 << 10, bench.size(4000, 1000)), "128k": (128 << 10, bench.size(2000, 500))}
    systems = bench.systems(ALL)
    with bench.cleared(systems):
        for system in systems:
            with bench.attempt(system):
                system.start()
                _write(system, source, "big")
                system.stop()
        for number, system in enumerate(bench.in_turn(systems)):
            with bench.attempt(system):
                system.start()
                for key, (block, count) in reads.items():
                    _random_reads(bench, system, key, (count, block, number))
                _overwrites(bench, system, number)
                system.stop()


def _random_reads(bench: Bench, system: System, key: str, what: tuple[int, int, int]) -> None:
    path = system.mount / "big"
    system.cold()
    step = ("random-read", path, *what)
    bench.timed(f"read-{key}", system, lambda: _step(*step), amount=what[0])


def _overwrites(bench: Bench, system: System, seed: int) -> None:
    system.cold()
    before = system.stored_bytes()
    bench.timed("overwrite", system, lambda: _overwrite(bench, system, seed))
    if system.name == OURS:
        bench.note("growth", system, (system.stored_bytes() - before) / _OVERWRITES)


def _overwrite(bench: Bench, system: System, seed: int) -> float:
    path = system.mount / "big"
    answer = work.call("overwrite", path, _OVERWRITES, 4096, seed, limit_s=LIMIT_S)
    bench.note("overwrite-writer", system, answer["writer_s"])
    return answer["seconds"] + system.settle()


RANDOM = Group(
    "random",
    "Random access to one big file of random data (full run: 1 GiB)",
    (
        Row("read-4k", "4 KiB reads, cold, one at a time", "/s"),
        Row("read-128k", "128 KiB reads, cold, one at a time", "/s"),
        Row("overwrite-writer", "1,000 overwrites of 4 KiB: to the writer", "s"),
        Row("overwrite", "1,000 overwrites of 4 KiB: until stored", "s"),
        Row("growth", "growth of the store for each overwrite", "KiB"),
    ),
    _random,
    ALL,
    note="The places do not repeat; the reader and the writer are one thread each.",
)


# --- stored again --------------------------------------------------------------------------------


def _again(bench: Bench) -> None:
    size = bench.size(1 << 30, 256 << 20)
    sources = {"random": bench.inputs.random_data(size, 1), "text": bench.inputs.text_data(size)}
    systems = bench.systems(("ext4", OURS))
    with bench.cleared(systems):
        for system in bench.in_turn(systems):
            with bench.attempt(system):
                for kind, source in sources.items():
                    system.start()
                    _again_one(bench, system, kind, source)
                    system.stop()
                    system.clear()


def _again_one(bench: Bench, system: System, kind: str, source: Path) -> None:
    size = source.stat().st_size

    def inserted() -> float:
        step = ("write-with-insertion", source, system.mount / "changed", size // 3, 5)
        return _step(*step) + system.settle()

    steps = {
        "first": lambda: _write(system, source, "first"),
        "again": lambda: _write(system, source, "again"),
        "inserted": inserted,
    }
    first = 0
    for key, step in steps.items():
        # Nothing is left in memory that the next step could profit from.
        system.cold()
        before = system.stored_bytes()
        bench.timed(f"{key}-{kind}", system, step, amount=size)
        grown = system.stored_bytes() - before
        first = first or grown
        if key != "first" and system.name == OURS:
            bench.note(f"{key}-{kind}-growth", system, grown / first)


AGAIN = Group(
    "again",
    "The same big file again (full run: 1 GiB)",
    tuple(
        row
        for kind, label in (("random", "random data"), ("text", "text"))
        for row in (
            Row(f"first-{kind}", f"{label}, for the first time", "MB/s"),
            Row(f"again-{kind}", f"{label}, again under another name", "MB/s"),
            Row(f"again-{kind}-growth", f"{label}, again: growth of the store", "%"),
            Row(f"inserted-{kind}", f"{label}, with 5 bytes inserted", "MB/s"),
            Row(f"inserted-{kind}-growth", f"{label}, inserted: growth of the store", "%"),
        )
    ),
    _again,
    ("ext4", OURS),
    note="Each step begins cold. ext4 stands for a system that stores everything again.",
)
