"""Groups on the block store as a library, beside the backup programs: ingest and sizes."""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.inputs import RELEASES
from tests.bench.peers import Peers
from tests.bench.processes import Finished, run
from tests.bench.systems import OURS

LIMIT_S = 600.0


class Repository(ABC):
    """What a program keeps in a folder, and its cache beside it."""

    name: str

    def __init__(self, folder: Path, peers: Peers) -> None:
        self.folder = folder / self.name
        self.cache = folder / f"{self.name}-cache"
        self.peers = peers

    @abstractmethod
    def create(self) -> None:
        """Make it, empty."""

    def stored_bytes(self) -> int:
        """Everything in its folder, in bytes of file sizes (blocks would reward few files)."""
        return sum(
            os.lstat(os.path.join(folder, name)).st_size
            for folder, _, names in os.walk(self.folder)
            for name in names
        )

    def clear(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)

    def run(self, *words: str | Path, cwd: Path | None = None) -> Finished:
        """Run one of the peers' commands to its end. Raises StepFailed."""
        # Their caches lie on the same disk and go with them.
        env = {
            "BORG_BASE_DIR": str(self.cache),
            "RESTIC_CACHE_DIR": str(self.cache),
            "RESTIC_PASSWORD": "bench",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        return run(*words, limit_s=LIMIT_S, cwd=cwd, env=env)


class Store(Repository):
    """A deduplicating store in a folder."""

    @abstractmethod
    def save(self, files: Sequence[Path], label: str) -> tuple[float, float]:
        """Store files durably; wall and processor seconds."""

    def _command(self, *words: str | Path) -> tuple[float, float]:
        done = self.run(*words)
        synced = run("sync", "-f", self.folder, limit_s=LIMIT_S)
        return done.seconds + synced.seconds, done.cpu_s


class Ours(Store):
    """`BlockStore.ingest` with two workers, sync, close; a process of its own, as the others."""

    name = OURS
    level = 1

    def create(self) -> None:
        """Made on first use."""

    def save(self, files: Sequence[Path], label: str) -> tuple[float, float]:
        """As one run of the library."""
        del label
        done = work.start("ingest", self.folder, self.level, *files, limit_s=LIMIT_S)
        return done.seconds, done.cpu_s


class OursLevel3(Ours):
    """The same with more effort, for sizes: restic and casync use zstd's default, 3."""

    name = "ghostfs zstd,3"
    level = 3


class Borg(Store):
    """No encryption, zstd level 1."""

    name = "borg zstd,1"
    compression = "zstd,1"

    def create(self) -> None:
        """A repository."""
        self._command(self.peers.debian("borg"), "init", "--encryption=none", self.folder)

    def save(self, files: Sequence[Path], label: str) -> tuple[float, float]:
        """An archive."""
        options = ["create", "--compression", self.compression]
        archive = f"{self.folder}::{label}"
        return self._command(self.peers.debian("borg"), *options, archive, *files)


class BorgLevel3(Borg):
    """zstd's default level."""

    name = "borg zstd,3"
    compression = "zstd,3"


class Restic(Store):
    """Format 2, compression as it comes; it always encrypts."""

    name = "restic"

    def create(self) -> None:
        """A repository."""
        self._command(*self._restic(), "init", "--repository-version", "2")

    def save(self, files: Sequence[Path], label: str) -> tuple[float, float]:
        """A snapshot."""
        return self._command(*self._restic(), "backup", "--quiet", "--tag", label, *files)

    def _restic(self) -> list[str | Path]:
        return [self.peers.debian("restic"), "--repo", self.folder]


class Casync(Store):
    """A chunk store with an index for each file."""

    name = "casync"

    def create(self) -> None:
        """A folder for both."""
        self.folder.mkdir(parents=True)

    def save(self, files: Sequence[Path], label: str) -> tuple[float, float]:
        """An index."""
        wall = cpu = 0.0
        for number, file in enumerate(files):
            index = self.folder / f"{label}-{number}.caibx"
            store = f"--store={self.folder / 'default.castr'}"
            one = self._command(self.peers.debian("casync"), "make", store, index, file)
            wall, cpu = wall + one[0], cpu + one[1]
        return wall, cpu


@contextlib.contextmanager
def _made(bench: Bench, store: Store) -> Iterator[None]:
    try:
        with bench.attempt(store.name):
            store.create()
            yield
    finally:
        store.clear()


# --- ingest --------------------------------------------------------------------------------------


def _ingest(bench: Bench) -> None:
    size = bench.size(1 << 30, 256 << 20)
    new = bench.inputs.mixed_data(size, 2)
    half = bench.inputs.half_known_data(new, size, 3)
    known = new.with_name("known")
    known.unlink(missing_ok=True)
    os.link(new, known)  # the same bytes under a name that no file cache knows
    try:
        folder = bench.disk.root / "stores"
        stores = [kind(folder, bench.peers) for kind in (Ours, Borg, Restic)]
        folder.mkdir()
        for store in bench.in_turn(stores):
            with _made(bench, store):
                for key, path in (("new", new), ("known", known), ("mixed", half)):
                    bench.disk.drop_caches()
                    wall, cpu = store.save([path], key)
                    bench.note(f"{key}", store.name, wall, amount=size)
                    bench.note(f"{key}-cpu", store.name, cpu)
    finally:
        for path in (new, half, known):
            bench.inputs.forget(path)
        shutil.rmtree(bench.disk.root / "stores", ignore_errors=True)


INGEST = Group(
    "ingest",
    "Ingest through the block store library, one file of half random, half text (full run: 1 GiB)",
    tuple(
        row
        for key, label in (
            ("new", "new"),
            ("known", "known, under another name"),
            ("mixed", "every second 16 MiB known"),
        )
        for row in (Row(key, label, "MB/s"), Row(f"{key}-cpu", "… processor time"))
    ),
    _ingest,
    (OURS, Borg.name, Restic.name),
    note="Until durable, read from memory; whole processes, their start included. "
    "borg: no encryption. restic: zstd, always encrypts.",
)


# --- sizes ---------------------------------------------------------------------------------------

_KINDS: tuple[type[Store], ...] = (Ours, OursLevel3, Borg, BorgLevel3, Restic, Casync)


def _sizes(bench: Bench) -> None:
    databases = bench.inputs.databases(bench.size(600_000, 60_000), 5)
    releases = [bench.inputs.tarball(version) for version in RELEASES[: bench.size(16, 4)]]
    folder = bench.disk.root / "stores"
    try:
        folder.mkdir()
        for key, files in (("sqlite", databases), ("releases", releases)):
            bench.note(f"{key}-input", OURS, sum(path.stat().st_size for path in files))
            for kind in _KINDS:
                store = kind(folder, bench.peers)
                with _made(bench, store):
                    # One after the other, as they come into being.
                    for number, path in enumerate(files):
                        store.save([path], str(number))
                    bench.note(key, store.name, store.stored_bytes())
    finally:
        for path in [*databases, *releases]:
            bench.inputs.forget(path)
        shutil.rmtree(folder, ignore_errors=True)


SIZES = Group(
    "sizes",
    "Sizes of stores that hold versions of the same thing",
    (
        Row("sqlite-input", "five versions of a SQLite file: their size", "MiB"),
        Row("sqlite", "five versions of a SQLite file: the store", "MiB"),
        Row("releases-input", "releases of Django (full run: 16) as tar files: their size", "MiB"),
        Row("releases", "releases of Django (full run: 16) as tar files: the store", "MiB"),
    ),
    _sizes,
    tuple(kind.name for kind in _KINDS),
    note="Sizes do not depend on chance: one round. The versions are stored one after the other.",
)
