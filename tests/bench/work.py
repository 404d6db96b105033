"""The work itself, in a process of its own: `python -m tests.bench.work STEP ARGUMENTS`.

A step prints one JSON object. Its clock starts when its input is in memory; what it has read is
compared with the input after the clock has stopped. The parent kills it at a limit.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blockstore.store import BlockStore, StoreOptions
from tests.bench.processes import Finished, StepFailed, run

_CHUNK = 1 << 20
_PROBES = 64
_PACE_S = 0.001  # between two stats
_AT_FDCWD, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS = -100, 0x2000, 0x7FF
Answer = dict[str, float]


def write(source: Path, target: Path) -> Answer:
    """Write a file in calls of 1 MiB, fsync, close."""
    data = memoryview(source.read_bytes())
    started = time.perf_counter()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for start in range(0, len(data), _CHUNK):
        part = data[start : start + _CHUNK]
        assert os.write(fd, part) == len(part)
    writer_s = time.perf_counter() - started
    os.fsync(fd)
    os.close(fd)
    return {"seconds": time.perf_counter() - started, "writer_s": writer_s}


def write_with_insertion(source: Path, target: Path, at: int, inserted: int) -> Answer:
    """The same file with a few bytes inserted."""
    data = source.read_bytes()
    changed = data[:at] + random.Random(at).randbytes(inserted) + data[at:]
    del data
    started = time.perf_counter()
    with open(target, "wb", buffering=0) as file:
        view = memoryview(changed)
        file.writelines(view[start : start + _CHUNK] for start in range(0, len(view), _CHUNK))
        os.fsync(file.fileno())
    return {"seconds": time.perf_counter() - started}


def read(path: Path, source: Path) -> Answer:
    """Read a file in calls of 1 MiB; a sample is then compared with what was written."""
    buffer = bytearray(_CHUNK)
    total = 0
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    seconds = time.perf_counter() - started
    if total != source.stat().st_size:
        raise StepFailed(f"{path}: {total} bytes instead of {source.stat().st_size}")
    rng = random.Random(total)
    with open(path, "rb", buffering=0) as left, open(source, "rb", buffering=0) as right:
        for _ in range(_PROBES):
            at = rng.randrange(total)
            if os.pread(left.fileno(), 4096, at) != os.pread(right.fileno(), 4096, at):
                raise StepFailed(f"{path}: wrong bytes at {at}")
    return {"seconds": seconds}


def _places(path: Path, count: int, block: int, seed: int) -> list[int]:
    blocks = path.stat().st_size // block
    return [block * number for number in random.Random(seed).sample(range(blocks), count)]


def random_read(path: Path, count: int, block: int, seed: int) -> Answer:
    """Read blocks at random places, one after the other."""
    buffer = [bytearray(block)]
    places = _places(path, count, block, seed)
    fd = os.open(path, os.O_RDONLY)
    started = time.perf_counter()
    for place in places:
        if os.preadv(fd, buffer, place) != block:
            raise StepFailed(f"{path}: short read at {place}")
    seconds = time.perf_counter() - started
    os.close(fd)
    return {"seconds": seconds}


def first_reads(path: Path, source: Path, block: int, places: str) -> Answer:
    """Open a file and read blocks at these places, which are then compared with what is true."""
    offsets = [int(place) for place in places.split(",")]
    parts = []
    started = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    for offset in offsets:
        got = 0
        while got < block:
            parts.append((offset + got, os.pread(fd, block - got, offset + got)))
            if not parts[-1][1]:
                raise StepFailed(f"{path}: short read at {offset + got}")
            got += len(parts[-1][1])
    seconds = time.perf_counter() - started
    os.close(fd)
    with open(source, "rb", buffering=0) as right:
        for offset, part in parts:
            if os.pread(right.fileno(), len(part), offset) != part:
                raise StepFailed(f"{path}: wrong bytes at {offset}")
    return {"seconds": seconds}


def overwrite(path: Path, count: int, block: int, seed: int) -> Answer:
    """Write new blocks at random places, fsync, close."""
    rng = random.Random(seed)
    parts = [(place, rng.randbytes(block)) for place in _places(path, count, block, seed)]
    started = time.perf_counter()
    fd = os.open(path, os.O_WRONLY)
    for place, part in parts:
        assert os.pwrite(fd, part, place) == block
    writer_s = time.perf_counter() - started
    os.fsync(fd)
    os.close(fd)
    return {"seconds": time.perf_counter() - started, "writer_s": writer_s}


def create(folder: Path, folders: int, files: int, size: int, seed: int) -> Answer:
    """Make `files` different files in each of `folders` folders."""
    rng = random.Random(seed)
    contents = [[rng.randbytes(size) for _ in range(files)] for _ in range(folders)]
    started = time.perf_counter()
    os.mkdir(folder)
    for number, parts in enumerate(contents):
        inner = f"{folder}/d{number:03}"
        os.mkdir(inner)
        for index, part in enumerate(parts):
            fd = os.open(f"{inner}/f{index:04}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, part)
            os.close(fd)
    return {"seconds": time.perf_counter() - started}


def read_tree(folder: Path) -> Answer:
    """List a tree and read every file of it."""
    count = total = 0
    started = time.perf_counter()
    for path in _files(str(folder)):
        fd = os.open(path, os.O_RDONLY)
        while part := os.read(fd, 128 << 10):
            total += len(part)
        os.close(fd)
        count += 1
    return {"seconds": time.perf_counter() - started, "files": count, "bytes": total}


def _files(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path


def stat_latency(path: Path, count: int, stream: Path) -> Answer:
    """Ask for a file's attributes again and again, and that the kernel's memory does not answer.

    `stream` is read from its start to its end meanwhile, and so long; else it is no file.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    name = os.fsencode(path)
    seconds = []
    reader = None
    if stream.is_file():
        # A process of its own, which asks for nothing but the bytes.
        command = ["dd", f"if={stream}", "of=/dev/null", "bs=1M", "status=none"]
        reader = subprocess.Popen(command)
    began = time.perf_counter()
    while reader.poll() is None if reader else len(seconds) < count:
        started = time.perf_counter()
        if libc.statx(_AT_FDCWD, name, _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer):
            raise OSError(ctypes.get_errno(), "statx", str(path))
        seconds.append(time.perf_counter() - started)
        time.sleep(_PACE_S)
    streamed_s = time.perf_counter() - began
    if reader is not None and (reader.returncode or len(seconds) < count):
        raise StepFailed(f"{stream}: dd ended with {reader.returncode} after {len(seconds)} stats")
    return {
        "median_s": statistics.median(seconds),
        "p99_s": statistics.quantiles(seconds, n=100)[98],
        "seconds": streamed_s,
    }


def ingest(folder: Path, level: int, files: list[Path]) -> Answer:
    """Store files through the block store library, durably."""
    started = time.perf_counter()
    store = BlockStore.open(folder, StoreOptions(level=level))
    for path in files:
        with path.open("rb", buffering=0) as file:
            store.ingest(file)
    store.sync()
    store.close()
    return {"seconds": time.perf_counter() - started}


def start(step: str, *arguments: str | int | Path, limit_s: float) -> Finished:
    """Run a step in a process of its own (for the parent). Raises StepFailed."""
    command = [sys.executable, "-m", "tests.bench.work", step, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return run(*command, limit_s=limit_s, cwd=root)


def call(step: str, *arguments: str | int | Path, limit_s: float) -> Answer:
    """The same for its answer."""
    answer: Answer = json.loads(start(step, *arguments, limit_s=limit_s).output.splitlines()[-1])
    return answer


STEPS: dict[str, tuple[Callable[..., Answer], list[type]]] = {
    "write": (write, [Path, Path]),
    "write-with-insertion": (write_with_insertion, [Path, Path, int, int]),
    "read": (read, [Path, Path]),
    "random-read": (random_read, [Path, int, int, int]),
    "first-reads": (first_reads, [Path, Path, int, str]),
    "overwrite": (overwrite, [Path, int, int, int]),
    "stat-latency": (stat_latency, [Path, int, Path]),
    "create": (create, [Path, int, int, int, int]),
    "read-tree": (read_tree, [Path]),
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=[*STEPS, "ingest"])
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    if given.step == "ingest":
        folder, level, *files = given.arguments
        answer = ingest(Path(folder), int(level), [Path(file) for file in files])
    else:
        function, types = STEPS[given.step]
        values = [kind(text) for kind, text in zip(types, given.arguments, strict=True)]
        answer = function(*values)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
