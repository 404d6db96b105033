"""One suite for every Disk: the real one and the simulated one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import resource
from pathlib import Path

import apsw
import pytest

from blockstore.disk import DIRECT_ALIGN, Disk, OsDisk
from blockstore.errors import StorageFailed, StorageFull, StoreLocked
from tests.simdisk import SimDisk, SimulatedCrash


@pytest.fixture(params=["os", "sim"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return OsDisk() if request.param == "os" else SimDisk(1)


def test_files(disk: Disk, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    disk.mkdir(folder)
    disk.mkdir(folder)
    path = folder / "file"
    with pytest.raises(FileNotFoundError):
        disk.open(path)
    file = disk.open(path, create=True)
    with pytest.raises(StorageFailed):
        disk.open(path, create=True)
    many = [b"%04d" % n for n in range(3000)]  # more buffers than one system call takes
    file.pwritev([b"head", bytearray(b"er"), memoryview(b"!")], 0)
    file.pwritev(many, 7)
    file.fdatasync()
    assert file.size() == 7 + 12000
    assert file.pread(7, 0) == b"header!"
    assert file.pread(10**6, 7) == b"".join(many)
    assert file.pread(5, 10**6) == b""
    assert file.pread_nowait(6, 1) in (b"eader!", None)
    assert file.pread_nowait(10**6, 0) is None
    file.truncate(3)
    file.pwritev([b"x"], 5)
    assert file.pread(9, 0) == b"hea\0\0x"
    file.close()
    other = disk.open(path)
    assert other.size() == 6
    other.close()
    disk.rename(path, folder / "moved")
    disk.fsync_dir(folder)
    assert disk.listdir(folder) == ["moved"]
    assert disk.exists(folder / "moved")
    assert not disk.exists(path)
    disk.unlink(folder / "moved")
    with pytest.raises(FileNotFoundError):
        disk.unlink(folder / "moved")
    assert disk.listdir(folder) == []
    assert 0 < disk.free_bytes(folder) <= disk.total_bytes(folder)


def test_lock(disk: Disk, tmp_path: Path) -> None:
    disk.mkdir(tmp_path)
    lock = disk.lock(tmp_path / "lock")
    with pytest.raises(StoreLocked):
        disk.lock(tmp_path / "lock")
    lock.close()
    disk.lock(tmp_path / "lock").close()


def test_the_kernels_errors_are_translated(tmp_path: Path) -> None:
    disk = OsDisk()
    with pytest.raises(StorageFailed, match="opening"):
        disk.open(tmp_path, writable=True)  # a folder
    full = Path("/dev/full")
    file = disk.open(full, writable=True)
    with pytest.raises(StorageFull, match="no space left while writing /dev/full"):
        file.pwritev([b"x"], 0)
    file.close()


def test_a_short_write_is_completed_or_raised(tmp_path: Path) -> None:
    """The limit on file sizes makes the kernel write half of it first."""
    disk = OsDisk()
    file = disk.open(tmp_path / "f", create=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageFailed):
            file.pwritev([b"a" * 600, b"b" * 600], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.pread(2000, 0) == b"a" * 600 + b"b" * 400
    file.close()


def test_simulated_crash_stops_everything() -> None:
    disk = SimDisk(2)
    folder = Path("/f")
    disk.mkdir(folder)
    file = disk.open(folder / "a", create=True)
    disk.crash_at(2)
    file.pwritev([b"one"], 0)
    with pytest.raises(SimulatedCrash):
        file.pwritev([b"two"], 3)
    for again in (file.fdatasync, lambda: disk.exists(folder), lambda: file.pread(1, 0)):
        with pytest.raises(SimulatedCrash):
            again()


def test_the_same_seed_crashes_the_same() -> None:
    def after(seed: int) -> list[bytes]:
        disk = SimDisk(seed)
        disk.mkdir(Path("/f"))
        for name in "abcdef":
            file = disk.open(Path("/f") / name, create=True)
            file.pwritev([name.encode() * 3000], 0)
        disk.fsync_dir(Path("/f"))
        survivor = disk.crash()
        files = survivor.listdir(Path("/f"))
        return [survivor.open(Path("/f") / name).pread(9999, 0) for name in files]

    results = [after(seed) for seed in range(20)]
    assert results == [after(seed) for seed in range(20)]
    assert len({tuple(result) for result in results}) > 10


@pytest.mark.parametrize("seed", range(60))
def test_sqlite_keeps_its_promises_on_the_simulated_disk(seed: int) -> None:
    """WAL with synchronous=FULL loses no committed transaction; ghostd's namespace relies on it."""
    disk = SimDisk(seed)
    folder = Path("/d")
    disk.mkdir(folder)

    def connect(on: SimDisk) -> apsw.Connection:
        connection = apsw.Connection(str(folder / "x.db"), vfs=on.sqlite_vfs)
        connection.pragma("locking_mode", "exclusive")
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", 2)
        connection.pragma("wal_autocheckpoint", 5)
        return connection

    db = connect(disk)
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)")
    disk.fsync_dir(folder)
    disk.crash_at(1 + seed * 3)
    committed = 0
    try:
        for number in range(1, 200):
            db.execute("INSERT INTO t VALUES (?, zeroblob(700))", (number,))
            committed = number
    except apsw.IOError:
        assert disk.crashed
    survivor = disk.crash()
    with contextlib.suppress(apsw.IOError):
        db.close()
    after = connect(survivor)
    rows = [row[0] for row in after.execute("SELECT n FROM t ORDER BY n")]
    assert rows in (list(range(1, committed + 1)), list(range(1, committed + 2)))
    assert after.pragma("integrity_check") == "ok"
    after.close()


@pytest.mark.parametrize("seed", range(6))
def test_long_writes_and_reads_at_any_place(disk: Disk, tmp_path: Path, seed: int) -> None:
    """Whatever way they take to the disk: the bytes are where they belong."""
    rng = random.Random(seed)
    disk.mkdir(tmp_path)
    file = disk.open(tmp_path / "file", create=True)
    expected = bytearray()
    for _ in range(4):
        offset = rng.choice((len(expected), rng.randrange(len(expected) + 1)))
        total = rng.choice((1 << 20, 3_000_000, 5_000))
        cuts = sorted(rng.randrange(total) for _ in range(rng.choice((0, 3, 60))))
        data = rng.randbytes(total)
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
        file.pwritev(parts, offset)
        expected[offset : offset + total] = data
        assert file.size() == len(expected)
        # A short one after it shares a block with its end.
        file.pwritev([b"end"], len(expected))
        expected += b"end"
    assert file.pread(len(expected), 0) == bytes(expected)
    buffer = memoryview(mmap.mmap(-1, (2 << 20) + 2 * DIRECT_ALIGN))
    for _ in range(20):
        offset = rng.randrange(len(expected))
        length = rng.choice((10, 300_000, 2 << 20))
        assert file.pread_run(buffer, length, offset) == expected[offset : offset + length]
    file.fdatasync()
    file.close()


def test_a_filesystem_without_direct_reads_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such thing here")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    test_long_writes_and_reads_at_any_place(OsDisk(), tmp_path, 0)


def test_a_disk_that_wants_other_alignments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, read = os.pwrite, os.preadv

    def direct(fd: int) -> bool:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if direct(fd):
            raise OSError(errno.EINVAL, "not aligned")
        return written(fd, data, offset)

    def preadv(fd: int, *rest: object) -> int:
        if direct(fd):
            raise OSError(errno.EINVAL, "not aligned")
        return read(fd, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "preadv", preadv)
    test_long_writes_and_reads_at_any_place(OsDisk(), tmp_path, 1)
