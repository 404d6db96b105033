"""Group on backups into a repository in a folder, and on what is brought back."""

from __future__ import annotations

import random
import shutil
import time
from abc import abstractmethod
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.peers import Peers
from tests.bench.processes import Finished
from tests.bench.stores import Borg, Repository, Restic
from tests.bench.sync_local import scratch
from tests.bench.sync_tools import LIMIT_S, Orbit, compare, remove, until_stored
from tests.bench.systems import OURS

_BIG = 16  # files
_CHANGED = 0.01  # of each of them
_REST_S = 3.0  # `orbit backup` reads again what had changed within two seconds before the last one


class _Backups(Repository):
    """A repository that takes folders and gives them back."""

    @abstractmethod
    def back_up(self, source: Path, label: str) -> Finished:
        """All of a folder."""

    @abstractmethod
    def restore(self, source: Path, label: str, target: Path) -> tuple[Finished, Path]:
        """All of it into a new folder; where what was `source` is then."""


class _Ours(_Backups):
    """`orbit backup`, zstd."""

    name = OURS

    def __init__(self, folder: Path, peers: Peers) -> None:
        super().__init__(folder, peers)
        self._orbit = Orbit(self.cache)

    def create(self) -> None:
        """Before the clock starts, as the others."""
        self._orbit("init", self.folder)

    def back_up(self, source: Path, label: str) -> Finished:
        """A snapshot."""
        options = ["--quiet", "--compression", "zstd", "--name", label, "--repo", self.folder]
        return self._orbit("backup", *options, source)

    def restore(self, source: Path, label: str, target: Path) -> tuple[Finished, Path]:
        """With attributes."""
        options = ["--quiet", "--repo", self.folder]
        return self._orbit("restore", *options, label, target), target


class _Borg(Borg, _Backups):
    def back_up(self, source: Path, label: str) -> Finished:
        """An archive."""
        options = ["create", "--compression", self.compression]
        return self.run(self.peers.debian("borg"), *options, f"{self.folder}::{label}", source)

    def restore(self, source: Path, label: str, target: Path) -> tuple[Finished, Path]:
        """It extracts into the working folder."""
        target.mkdir()
        done = self.run(self.peers.debian("borg"), "extract", f"{self.folder}::{label}", cwd=target)
        return done, target / source.relative_to("/")


class _Restic(Restic, _Backups):
    def back_up(self, source: Path, label: str) -> Finished:
        """A snapshot; `--quiet` spares it the counting beforehand."""
        return self.run(*self._restic(), "backup", "--quiet", "--tag", label, source)

    def restore(self, source: Path, label: str, target: Path) -> tuple[Finished, Path]:
        """Of the newest with this tag."""
        words = ["restore", "--quiet", "latest", "--tag", label, "--target", target]
        return self.run(*self._restic(), *words), target / source.relative_to("/")


_KINDS: tuple[type[_Backups], ...] = (_Borg, _Restic, _Ours)


def _backup(bench: Bench) -> None:
    size = bench.size(1 << 30, 256 << 20)
    files = bench.size(200, 50)
    mixed = bench.inputs.mixed_data(size, 2)
    with scratch(bench) as folder:
        big, small = folder / "big", folder / "small"
        work.call("create", small, 100, files, 1000, 1, limit_s=LIMIT_S)
        stores = [kind(folder, bench.peers) for kind in _KINDS if bench.wants(kind.name)]
        for store in bench.in_turn(stores):
            _fill(big, mixed)
            try:
                with bench.attempt(store.name):
                    store.create()
                    _big(bench, store, big, size)
                    _small(bench, store, small, 100 * files)
            finally:
                store.clear()


def _fill(folder: Path, source: Path) -> None:
    """The big input, in several files."""
    remove(folder)
    folder.mkdir()
    with source.open("rb") as file:
        part = source.stat().st_size // _BIG
        for number in range(_BIG):
            (folder / f"f{number:02}").write_bytes(file.read(part))


def _change(folder: Path) -> None:
    """One stretch in the middle of each file; then nothing for a while."""
    rng = random.Random(3)
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(rng.randbytes(int(size * _CHANGED)))
    time.sleep(_REST_S)


def _big(bench: Bench, store: _Backups, folder: Path, size: int) -> None:
    for key in ("new", "changed", "same"):
        if key == "changed":
            _change(folder)
        _save(bench, store, folder, key, amount=size if key == "new" else 1)
        bench.note(f"{key}-size", store.name, store.stored_bytes())
    _bring_back(bench, store, folder, "same", "restore", amount=size)


def _small(bench: Bench, store: _Backups, folder: Path, files: int) -> None:
    before = store.stored_bytes()
    _save(bench, store, folder, "small", amount=files)
    bench.note("small-size", store.name, store.stored_bytes() - before)
    _save(bench, store, folder, "small-same")
    _bring_back(bench, store, folder, "small-same", "small-restore", amount=files)


def _save(bench: Bench, store: _Backups, folder: Path, key: str, *, amount: float = 1.0) -> None:
    bench.disk.sync()
    done = store.back_up(folder, key)
    seconds = until_stored(bench, done)
    bench.note(key, store.name, seconds, amount=amount, cpu_s=done.cpu_s)


def _bring_back(
    bench: Bench, store: _Backups, folder: Path, label: str, key: str, *, amount: float
) -> None:
    target = folder.parent / "restored"
    shutil.rmtree(target, ignore_errors=True)
    bench.disk.sync()
    done, found = store.restore(folder, label, target)
    seconds = until_stored(bench, done)
    bench.note(key, store.name, seconds, amount=amount, cpu_s=done.cpu_s)
    compare(folder, found)
    remove(target)


SYNC_BACKUP = Group(
    "sync-backup",
    "orbit backup into a repository in a folder: 16 files, half random, half text, then files of "
    "1,000 bytes (full run: 1 GiB, 20,000 files)",
    (
        Row("new", "big files, new", "MB/s"),
        Row("new-size", "the repository", "MiB"),
        Row("changed", "1 % changed in the middle of each", "s"),
        Row("changed-size", "the repository", "MiB"),
        Row("same", "nothing changed", "s"),
        Row("same-size", "the repository", "MiB"),
        Row("restore", "restored, until stored", "MB/s"),
        Row("small", "small files, new", "/s"),
        Row("small-size", "growth of the repository", "MiB"),
        Row("small-same", "small files, nothing changed", "s"),
        Row("small-restore", "small files restored, until stored", "/s"),
    ),
    _backup,
    tuple(kind.name for kind in _KINDS),
    note="Whole commands, until stored; sources in memory. borg: zstd 1, no encryption. restic: "
    "format 2, zstd, always encrypts. orbit: zstd. After a change nothing happens for 3 s.",
)
