"""What is written and stored: the same bytes in every run, made here or fetched from PyPI.

Big inputs lie in memory (/dev/shm, where there is one), so that dropping the caches leaves them
there and reading them costs no disk.
"""

from __future__ import annotations

import gzip
import itertools
import random
import shutil
import sqlite3
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.bench.peers import PeerMissing, Peers
from tests.bench.processes import StepFailed

_PART = 16 << 20
_WORDS = 20_000
RELEASES = [f"4.2.{number}" for number in range(1, 17)]
SOURCE = "Django"


def _text_part(seed: int) -> bytes:
    """16 MiB of lines of made-up words that are as unequally common as a language's.

    zstd -1 shrinks it 2.6 times; nothing in it repeats over a longer stretch than a few words.
    """
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    maker = random.Random(7)
    weights = [1 / (rank + 2) for rank in range(len(letters))]
    words = ["".join(maker.choices(letters, weights, k=maker.randint(2, 9))) for _ in range(_WORDS)]
    common = list(itertools.accumulate(1 / (rank + 3) for rank in range(_WORDS)))
    rng = random.Random(seed)
    lines: list[str] = []
    length = 0
    while length < _PART:
        drawn = rng.choices(words, cum_weights=common, k=12_000)
        lines += [" ".join(drawn[at : at + 12]) for at in range(0, len(drawn), 12)]
        length += sum(map(len, lines[-1000:])) + 1000
    return "\n".join(lines).encode()[: _PART - 1] + b"\n"


class Inputs:
    """Files by what they hold. `close` removes those in memory."""

    def __init__(self, folder: Path, peers: Peers) -> None:
        self._sdists = folder / "sdists"
        self._kept = folder / "inputs"
        self._peers = peers
        shm = Path("/dev/shm")
        self._memory = Path(
            tempfile.mkdtemp(prefix="orbit-bench-", dir=shm if shm.is_dir() else folder)
        )

    def close(self) -> None:
        """Give the memory back."""
        shutil.rmtree(self._memory, ignore_errors=True)

    def memory_folder(self, name: str) -> Path:
        """An empty folder beside the big inputs, in memory like them."""
        folder = self._memory / name
        folder.mkdir()
        return folder

    def random_data(self, size: int, seed: int) -> Path:
        """A file that does not compress, another one for each seed."""
        path = self._memory / f"random-{size}-{seed}"
        if not path.exists():
            rng = random.Random(seed)
            with path.open("wb", buffering=0) as file:
                for start in range(0, size, _PART):
                    file.write(rng.randbytes(min(_PART, size - start)))
        return path

    def text_data(self, size: int) -> Path:
        """A file that compresses like text."""
        path = self._memory / f"text-{size}"
        if not path.exists():
            with path.open("wb") as file:
                for part in self._text_parts(size):
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file, _PART)
                file.truncate(size)
        return path

    def _text_parts(self, size: int) -> list[Path]:
        """Made once, by all cores: it takes about a minute a GiB and core."""
        self._kept.mkdir(parents=True, exist_ok=True)
        count = -(-size // _PART)
        parts = [self._kept / f"text-{number:03}" for number in range(count)]
        missing = [number for number, part in enumerate(parts) if not part.exists()]
        with ProcessPoolExecutor() as pool:
            for number, data in zip(missing, pool.map(_text_part, missing), strict=True):
                part = parts[number].with_suffix(".part")
                part.write_bytes(data)
                part.rename(parts[number])
        return parts

    def mixed_data(self, size: int, seed: int) -> Path:
        """Half random, half text, in turns of 4 MiB."""
        path = self._memory / f"mixed-{size}-{seed}"
        if not path.exists():
            stretch = 4 << 20
            with path.open("wb") as file:
                rng = random.Random(seed)
                with self.text_data(size).open("rb") as text:
                    text.seek(seed % 2 * stretch)
                    while file.tell() < size:
                        file.write(rng.randbytes(stretch))
                        file.write(text.read(stretch))
                        text.seek(stretch, 1)
                file.truncate(size)
        return path

    def half_known_data(self, known: Path, size: int, seed: int) -> Path:
        """Every second stretch of 16 MiB is from `known`, the others are like it, but new."""
        fresh = self.mixed_data(size, seed)
        path = self._memory / f"half-{size}-{seed}"
        if not path.exists():
            with path.open("wb") as file, known.open("rb") as old, fresh.open("rb") as new:
                for number, start in enumerate(range(0, size, _PART)):
                    source = (old, new)[number % 2]
                    source.seek(start)
                    file.write(source.read(_PART))
        fresh.unlink()
        return path

    def forget(self, path: Path) -> None:
        """It is not needed any more."""
        path.unlink(missing_ok=True)

    # --- releases of a real project --------------------------------------------------------------

    def sdist(self, version: str) -> Path:
        """A release of Django as PyPI has it, fetched once. Raises PeerMissing."""
        path = self._sdists / f"{SOURCE}-{version}.tar.gz"
        if not path.exists():
            self._sdists.mkdir(parents=True, exist_ok=True)
            options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
            try:
                wanted = f"{SOURCE}=={version}"
                self._peers.pip("download", *options, "--dest", self._sdists, wanted)
            except StepFailed as error:
                raise PeerMissing(f"{SOURCE} {version} cannot be fetched: {error}") from error
            if not path.exists():
                raise PeerMissing(f"{SOURCE} {version}: its file is not called {path.name}")
        return path

    def tarball(self, version: str) -> Path:
        """The release as a plain tar file."""
        path = self._memory / f"{SOURCE}-{version}.tar"
        if not path.exists():
            with gzip.open(self.sdist(version)) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        return path

    # --- versions of a database ------------------------------------------------------------------

    def databases(self, rows: int, versions: int) -> list[Path]:
        """A SQLite file after each of a few days of work: rows changed, added and deleted."""
        live = self._memory / "live.db"
        rng = random.Random(11)
        words = _text_part(0)[: 4 << 20].decode().split()
        found = []
        connection = sqlite3.connect(live)
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute(
            "CREATE TABLE notes(id INTEGER PRIMARY KEY, name TEXT, body TEXT, at REAL)"
        )
        connection.execute("CREATE INDEX by_name ON notes(name)")

        def note() -> tuple[str, str, float]:
            body = " ".join(rng.choices(words, k=rng.randint(10, 80)))
            return f"{rng.getrandbits(64):016x}", body, rng.random()

        insert = "INSERT INTO notes(name, body, at) VALUES(?, ?, ?)"
        connection.executemany(insert, (note() for _ in range(rows)))
        for version in range(versions):
            if version:
                few = rows // 100
                ids = [(rng.randrange(1, rows),) for _ in range(3 * few)]
                connection.executemany(
                    "UPDATE notes SET body = ? WHERE id = ?",
                    ((note()[1], number) for (number,) in ids[: 2 * few]),
                )
                connection.executemany("DELETE FROM notes WHERE id = ?", ids[2 * few :])
                connection.executemany(insert, (note() for _ in range(2 * few)))
            connection.commit()
            path = self._memory / f"version-{version}.db"
            shutil.copyfile(live, path)
            found.append(path)
        connection.close()
        live.unlink()
        return found
