"""Groups on copying between local folders: one big file, many small ones, and nothing new."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.sync_tools import (
    COPIERS,
    LIMIT_S,
    Copier,
    Cp,
    OrbitCopy,
    RcloneCopy,
    Rsync,
    compare,
    remove,
    until_stored,
    warmed,
)

_SMALL = 4096
_NAMES = tuple(kind.name for kind in COPIERS)


@contextlib.contextmanager
def scratch(bench: Bench) -> Iterator[Path]:
    """An empty folder on the disk."""
    folder = bench.disk.root / "sync"
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


# --- copying -------------------------------------------------------------------------------------


def _copy(bench: Bench) -> None:
    size = bench.size(1 << 30, 256 << 20)
    files = bench.size(100, 20)
    with scratch(bench) as folder:
        one, small = folder / "one", folder / "small"
        one.mkdir()
        shutil.copyfile(bench.inputs.random_data(size, 1), one / "big")
        work.call("create", small, 100, files, _SMALL, 1, limit_s=LIMIT_S)
        copiers = [kind(folder, bench.peers) for kind in COPIERS if bench.wants(kind.name)]
        for copier in bench.in_turn(copiers):
            with bench.attempt(copier.name):
                _copy_one(bench, copier, folder, "one", one, size)
                _copy_one(bench, copier, folder, "small", small, 100 * files)


def _copy_one(
    bench: Bench, copier: Copier, folder: Path, key: str, source: Path, amount: int
) -> None:
    bench.disk.drop_caches()
    warmed(copier, folder)
    target = _fresh(folder, key)
    done = copier.copy(source, target)
    stored_s = until_stored(bench, done)
    bench.note(f"{key}-cold", copier.name, stored_s, amount=amount, cpu_s=done.cpu_s)
    compare(source, target)
    target = _fresh(folder, key)
    bench.disk.sync()
    done = copier.copy(source, target)
    bench.note(f"{key}-done", copier.name, done.seconds, amount=amount, cpu_s=done.cpu_s)
    bench.note(f"{key}-warm", copier.name, until_stored(bench, done), amount=amount)
    _fresh(folder, key)
    bench.disk.sync()


def _fresh(folder: Path, key: str) -> Path:
    """Where nothing is. Many files stay to the end: for minutes after they are deleted ext4 makes
    new ones several times more slowly, whoever asks for them.
    """
    if key == "one":
        remove(folder / "copy")
        return folder / "copy"
    return folder / f"copy-{sum(1 for _ in folder.iterdir())}"


SYNC_COPY = Group(
    "sync-copy",
    "orbit copy of a big file and of files of 4 KiB, on one ext4 (full run: 1 GiB, 10,000 files)",
    tuple(
        Row(f"{key}-{row}", f"{label}, {what}", show)
        for key, label, show in (("one", "big file", "MB/s"), ("small", "small files", "/s"))
        for row, what in (
            ("cold", "source cold: until stored"),
            ("warm", "source in memory: until stored"),
            ("done", "source in memory: until the command ends"),
        )
    ),
    _copy,
    _NAMES,
    note="Whole commands. Until stored: with syncfs of the disk, which `orbit copy` has already "
    "done for what it copied when it ends; the others leave their data in the kernel's memory.",
)


# --- nothing new ---------------------------------------------------------------------------------


def _again(bench: Bench) -> None:
    folders, files = 100, bench.size(1000, 100)
    kinds = [kind for kind in (Rsync, RcloneCopy, OrbitCopy) if bench.wants(kind.name)]
    with scratch(bench) as folder:
        source = folder / "source"
        work.call("create", source, folders, files, 100, 1, limit_s=LIMIT_S)
        copiers = [kind(folder, bench.peers) for kind in kinds]
        for copier in copiers:
            with bench.attempt(copier.name):
                _again_first(bench, copier, source, _kept(folder, copier), folders * files)
        for copier in bench.in_turn(copiers):
            with bench.attempt(copier.name):
                _again_one(bench, copier, source, _kept(folder, copier), folders * files)


def _kept(folder: Path, copier: Copier) -> Path:
    return folder / f"copy-{copier.name}"


def _again_first(bench: Bench, copier: Copier, source: Path, target: Path, files: int) -> None:
    bench.disk.sync()
    done = copier.copy(source, target)
    stored_s = until_stored(bench, done)
    bench.note("first", copier.name, stored_s, amount=files, cpu_s=done.cpu_s)
    compare(source, target)


def _again_one(bench: Bench, copier: Copier, source: Path, target: Path, files: int) -> None:
    bench.disk.drop_caches()
    warmed(copier, source.parent)
    for key in ("cold", "warm"):
        done = copier.copy(source, target)
        bench.note(f"again-{key}", copier.name, done.seconds, amount=files, cpu_s=done.cpu_s)


SYNC_AGAIN = Group(
    "sync-again",
    "A second copy of a tree that has not changed (full run: 100,000 files)",
    (
        Row("first", "first copy, until stored: files", "/s"),
        Row("again-cold", "second, nothing in memory"),
        Row("again-warm", "third, attributes in memory"),
    ),
    _again,
    tuple(name for name in _NAMES if name != Cp.name),
    note="`orbit copy -a`, `rsync -a`, `rclone copy`: whole commands.",
)
