"""Groups on reading a remote tree: over loopback as it is, and with round trips of 40 ms."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.processes import run
from tests.bench.remote_systems import (
    BOTH,
    FAST,
    SMALL_READS,
    Contender,
    Projection,
    RcloneMount,
    RemoteMount,
    S3Fs,
    Sshfs,
)
from tests.bench.served import BIG, STREAM, Link, Place, Served, served
from tests.bench.systems import OURS
from tests.bench.targets import SMALL_BLOCKS

RCLONE, RCLONE_SMALL, RCLONE_FAST = "rclone", "rclone-small", "rclone-fast"
ROUND_TRIP_S = 0.04
LIMIT_S = 240.0
_MIB = 1 << 20
_ONE_AT = 50 * _MIB
_ONES = 4  # times the one read is made, each time from nothing
_TEN, _TEN_BYTES = 10, 4096
_FEW = {"found": 0.1, "copied": 1 / 64}  # the share that peers get over the slow link

Mount = RemoteMount | Projection

CONTENDERS = (
    Contender("sshfs", ("sftp",), partial(Sshfs, "sshfs"), works="one ten seq find copy"),
    Contender("s3fs", ("s3",), partial(S3Fs, "s3fs"), works="one ten seq find copy"),
    Contender(RCLONE, BOTH, partial(RcloneMount, RCLONE), works="one ten seq find copy"),
    Contender(
        RCLONE_SMALL,
        BOTH,
        partial(RcloneMount, RCLONE_SMALL, options=SMALL_READS),
        works="one ten",
    ),
    Contender(
        RCLONE_FAST, BOTH, partial(RcloneMount, RCLONE_FAST, options=FAST), works="seq find copy"
    ),
    Contender(OURS, BOTH, Projection, works="one ten seq find copy"),
    Contender(
        SMALL_BLOCKS,
        BOTH,
        partial(Projection, name=SMALL_BLOCKS, block_size="128 KiB"),
        works="ten",
    ),
)
NAMES = tuple(contender.name for contender in CONTENDERS)


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is served."""

    big: Path  # the same bytes
    stream: Path
    files: int  # in each folder
    folders: dict[str, int]  # in each tree, by its name

    @classmethod
    def fill(cls, bench: Bench, what: Served, *, far: bool) -> _Contents:
        """Serve it."""
        folders = {"found": bench.size(100, 10)}
        if far:
            folders["copied"] = bench.size(64, 8)
            for name, share in _FEW.items():
                folders[f"few-{name}"] = max(1, round(folders[name] * share))
        files = bench.size(100, 20)
        for name, count in folders.items():
            what.add_tree(name, count, files)
        big = what.add_big(BIG, bench.size(1 << 30, 96 << 20), 31)
        stream = what.add_big(STREAM, bench.size(256 << 20, 32 << 20), 32) if far else big
        return cls(big, stream, files, folders)


@dataclass(frozen=True, slots=True)
class _Way:
    """How one kind of server is reached in a group."""

    timed: Place
    counted: Link

    @property
    def same(self) -> bool:
        """Whether one run is timed and counted; else each has a run of its own."""
        return self.timed == self.counted.place


class _Reads:
    """One contender over one kind of place, in one round."""

    def __init__(
        self, bench: Bench, contents: _Contents, contender: Contender, kind: str, way: _Way
    ) -> None:
        self._bench = bench
        self._contents = contents
        self._contender = contender
        self._kind = kind
        self._way = way
        self._far = way.same

    def run(self) -> None:
        """Everything that it takes part in."""
        steps = {
            "one": self._one,
            "ten": self._ten,
            "seq": self._sequential,
            "find": self._find,
            "copy": self._copy,
        }
        for name, step in steps.items():
            if name in self._contender.works.split():
                step()

    @property
    def _ours(self) -> bool:
        return self._contender.name == OURS

    def _note(self, row: str, cost: float, amount: float = 1.0, cpu_s: float | None = None) -> None:
        row = f"{self._kind}-{row}"
        self._bench.note(row, self._contender.name, cost, amount=amount, cpu_s=cpu_s)

    @contextlib.contextmanager
    def _fresh(self, place: Place) -> Iterator[Mount]:
        """Mounted, with nothing known and nothing kept."""
        bench = self._bench
        system = self._contender.at(place, bench.disk, bench.peers)
        with bench.cleared([system]):
            system.start()
            yield system

    def _restart(self, system: Mount) -> None:
        """Keeps what is on its disk and nothing else."""
        system.stop()
        self._bench.disk.drop_caches()
        system.start()

    def _cold(
        self,
        row: str,
        step: Callable[[Mount], float],
        *,
        prepare: Callable[[Mount], object] = lambda _: None,
        amount: float = 1.0,
        trips_for: float = 1.0,
    ) -> None:
        """Time a step from nothing; count what it moves, read-ahead included."""
        if not self._way.same:
            with self._fresh(self._way.timed) as system:
                prepare(system)
                before_s = system.cpu_s()
                seconds = step(system)
                self._note(row, seconds, amount, system.cpu_s() - before_s)
        link = self._way.counted
        with self._fresh(link.place) as system:
            prepare(system)
            before = link.settled()
            before_s = system.cpu_s()
            seconds = step(system)
            cpu_s = system.cpu_s() - before_s
            passed = link.settled() - before
        if self._way.same:
            self._note(row, seconds, amount, cpu_s)
        self._note(f"{row}-moved", passed.up + passed.down)
        trips = passed.requests if self._kind == "s3" else passed.turns
        self._note(f"{row}-trips", trips, trips_for)

    # --- few bytes of a big file -----------------------------------------------------------------

    def _one(self) -> None:
        def step(system: Mount) -> float:
            return _first_reads(system.top / BIG, self._contents.big, _MIB, [_ONE_AT])

        def look(system: Mount) -> None:
            run("ls", "-l", system.top, limit_s=LIMIT_S)

        self._cold("one", step)
        self._cold("known", step, prepare=look)

    def _ten(self) -> None:
        size = self._contents.big.stat().st_size
        places = random.Random(9).sample(range(size // _TEN_BYTES), _TEN)
        offsets = [_TEN_BYTES * place for place in places]
        self._cold(
            "ten",
            lambda system: _first_reads(system.top / BIG, self._contents.big, _TEN_BYTES, offsets),
        )

    # --- all bytes of a big file -----------------------------------------------------------------

    def _sequential(self) -> None:
        name, source = (STREAM, self._contents.stream) if self._far else (BIG, self._contents.big)
        size = source.stat().st_size
        link = self._way.counted

        def read(path: Path) -> float:
            return work.call("read", path, source, limit_s=LIMIT_S)["seconds"]

        with self._fresh(self._way.timed) as system:
            before_s = system.cpu_s()
            seconds = read(system.top / name)
            self._note("seq", seconds, size, system.cpu_s() - before_s)
            if not self._ours:
                return
            system.settle()
            self._restart(system)
            before = link.settled()
            self._note("again", read(system.top / name), size)
            if self._far:
                passed = link.settled() - before
                self._note("again-moved", passed.up + passed.down)
                return
            work.call("write", source, system.mount / "own", limit_s=LIMIT_S)
            system.settle()
            self._restart(system)
            self._note("own", read(system.mount / "own"), size)

    # --- many files ------------------------------------------------------------------------------

    def _tree(self, name: str) -> tuple[str, int]:
        """The name of a tree, and its directories."""
        if self._far and not self._ours:
            name = f"few-{name}"
        return name, self._contents.folders[name]

    def _find(self) -> None:
        name, folders = self._tree("found")
        files = folders * self._contents.files
        self._cold(
            "find",
            lambda system: _find(system.top / name, files),
            amount=files,
            trips_for=folders + 1,
        )
        if not self._ours:
            return
        link = self._way.counted
        with self._fresh(link.place) as system:
            _find(system.top / name, files)
            system.settle()
            self._restart(system)
            before = link.settled()
            self._note("find-again", _find(system.top / name, files), files)
            passed = link.settled() - before
        self._note("find-again-trips", passed.requests if self._kind == "s3" else passed.turns)

    def _copy(self) -> None:
        if not self._far:
            return
        name, folders = self._tree("copied")
        files = folders * self._contents.files
        out = self._bench.disk.root / "out"
        try:
            self._cold("copy", lambda system: _copy(system.top / name, out, files), amount=files)
        finally:
            shutil.rmtree(out, ignore_errors=True)


def _first_reads(path: Path, source: Path, block: int, offsets: list[int]) -> float:
    places = ",".join(map(str, offsets))
    return work.call("first-reads", path, source, block, places, limit_s=LIMIT_S)["seconds"]


def _find(top: Path, files: int) -> float:
    done = run("find", top, "-printf", "%y %s %T@\n", limit_s=LIMIT_S)
    found = sum(line.startswith("f 4096 ") for line in done.output.splitlines())
    assert found == files, f"find showed {found} files instead of {files}"
    return done.seconds


def _copy(top: Path, out: Path, files: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    done = run("cp", "-r", top, out, limit_s=LIMIT_S)
    sizes = [path.stat().st_size for path in out.rglob("f*")]
    assert sizes == [4096] * files, f"{len(sizes)} files of {sum(sizes)} bytes, wanted {files}"
    return done.seconds


def _measure(bench: Bench, delay_s: float) -> None:
    contenders = [each for each in CONTENDERS if bench.wants(each.name)]
    with served(bench) as what, what.links(delay_s) as links:
        contents = _Contents.fill(bench, what, far=delay_s > 0)
        for contender in bench.in_turn(contenders):
            with bench.attempt(contender.name):
                for kind in contender.kinds:
                    link = links[kind]
                    timed = link.place if delay_s else what.direct[kind]
                    _Reads(bench, contents, contender, kind, _Way(timed, link)).run()


def _rows(*, far: bool) -> tuple[Row, ...]:
    found = []
    for kind, label in (("sftp", "SFTP"), ("s3", "S3")):
        rows = [
            Row("one", "1 MiB at 50 MiB, nothing known", "ms"),
            Row("one-moved", "the same: moved", "MiB"),
            Row("one-trips", "the same: round trips", "times"),
            Row("known", "1 MiB at 50 MiB, after ls -l", "ms"),
            Row("known-moved", "the same: moved", "MiB"),
            Row("known-trips", "the same: round trips", "times"),
            Row("ten", "ten random 4 KiB reads, nothing known", "ms"),
            Row("ten-moved", "the same: moved", "MiB"),
            Row("ten-trips", "the same: round trips", "times"),
            Row("seq", "big file from start to end, cold", "MB/s"),
            Row("again", "the same after a restart", "MB/s"),
            *([Row("again-moved", "the same after a restart: moved", "MiB")] if far else []),
            *([] if far else [Row("own", "a stored file of ours, after a restart", "MB/s")]),
            Row("find", "find with stat, nothing known: files", "/s"),
            Row("find-moved", "the same: moved", "MiB"),
            Row("find-trips", "the same: round trips for each directory", "each"),
            Row("find-again", "the same after a restart: files", "/s"),
            Row("find-again-trips", "the same after a restart: round trips", "times"),
            *([Row("copy", "cp -r of files of 4 KiB, nothing known: files", "/s")] if far else []),
            *([Row("copy-moved", "the same: moved", "MiB")] if far else []),
            *([Row("copy-trips", "the same: round trips", "times")] if far else []),
        ]
        found += [Row(f"{kind}-{row.key}", f"{label}: {row.label}", row.show) for row in rows]
    return tuple(found)


REMOTE = Group(
    "remote",
    "Remote trees over loopback (full run: 1 GiB, 10,000 files)",
    _rows(far=False),
    lambda bench: _measure(bench, 0.0),
    NAMES,
    note="Bytes and round trips are counted by a proxy in runs of their own. "
    "Round trips over S3 are requests; over SFTP, how often the client spoke after the server had.",
)

FAR = Group(
    "far",
    "Remote trees with round trips of 40 ms (full run: 256 MiB in turn, 6,400 files copied)",
    _rows(far=True),
    lambda bench: _measure(bench, ROUND_TRIP_S / 2),
    NAMES,
    note="Timed and counted in the same run. Peers list a tenth of the files and copy one in 64, "
    "since they take minutes for all: rates are compared. Round trips as above.",
)
