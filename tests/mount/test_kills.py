"""kill -9 of the daemon under load, at seeded moments: everything acknowledged by fsync is there,
nothing is mixed.

Writers append to a ledger on the machine's own filesystem what the mount has acknowledged;
after the kill the ledger is compared with the mount. The moment of the kill is a number of
acknowledgements, not a time.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.harness import run
from tests.mount.manifest import manifest
from tests.mount.sources import source
from tests.mount.test_tools import GIT

# Writes files that are never changed, replaces one by rename, overwrites blocks of another, and
# appends to a log, each with
# fsync; prints what was acknowledged. Content follows from the names, so that the ledger is short.
WRITER = """
import hashlib, os, random, sys
folder, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
def content(tag, size):
    return random.Random(f"{seed} {tag}").randbytes(size)
def put(path, data):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
    os.fsync(fd)
    os.close(fd)
def told(*words):
    print(*words, flush=True)
blocks = os.open(f"{folder}/blocks", os.O_CREAT | os.O_RDWR)
log = os.open(f"{folder}/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
number = 0
while True:
    number += 1
    kind = rng.choice(("new", "new", "rename", "block", "log", "unsynced"))
    if kind == "new":
        size = rng.choice((0, 1, 5_000, 100_000, 3_000_000))
        put(f"{folder}/new{number}", content(number, size))
        told("new", number, size)
    elif kind == "rename":
        size = rng.randrange(1, 200_000)
        put(f"{folder}/.next", b"%d " % number + content(number, size))
        os.rename(f"{folder}/.next", f"{folder}/current")
        told("renamed", number, size)
        if rng.random() < 0.5:
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            told("synced", number, size)
    elif kind == "block":
        place = rng.randrange(200)
        told("writing", place, number)
        os.pwrite(blocks, hashlib.blake2b(b"%d %d" % (place, number)).digest() * 128, place * 8192)
        os.fsync(blocks)
        told("block", place, number)
    elif kind == "log":
        os.write(log, b"%d %s\\n" % (number, b"." * rng.randrange(3000)))
        os.fsync(log)
        told("log", number, 0)
    else:
        with open(f"{folder}/loose{number}", "wb") as file:
            file.write(content(number, 50_000))
        told("loose", number, 50_000)
"""


def the_rest(process: subprocess.Popen[str]) -> list[str]:
    """Lines that a process has printed after those that were read with readline().

    Not communicate(): with a time limit it passes over what readline() has taken in already.
    """
    with process:
        return process.stdout.read().splitlines()


def content(seed: int, tag: object, size: int) -> bytes:
    """What WRITER puts into a file."""
    return random.Random(f"{seed} {tag}").randbytes(size)


def check_ledger(folder: Path, seed: int, ledger: list[tuple[str, int, int]]) -> None:
    """Compare the folder with what was acknowledged before the kill."""
    least_current, renamed, synced_log = 0, {}, 0
    blocks: dict[int, set[int]] = {}  # place: the numbers whose content may be there; 0: nothing
    for kind, number, size in ledger:
        if kind == "new":
            assert (folder / f"new{number}").read_bytes() == content(seed, number, size)
        elif kind == "renamed":
            renamed[number] = size
        elif kind == "synced":
            least_current = number
        elif kind == "writing":
            blocks.setdefault(number, {0}).add(size)
        elif kind == "block":
            blocks[number] = {size}
        elif kind == "log":
            synced_log = number
        elif kind == "loose" and (folder / f"loose{number}").exists():
            # Never synced: whatever of it is there is a beginning of it.
            found = (folder / f"loose{number}").read_bytes()
            assert content(seed, number, size).startswith(found)
    check_current(folder / "current", seed, renamed, least_current)
    content_of = (folder / "blocks").read_bytes() if (folder / "blocks").exists() else b""
    for place, numbers in blocks.items():
        found = content_of[place * 8192 : (place + 1) * 8192].ljust(8192, b"\0")
        allowed = [
            hashlib.blake2b(b"%d %d" % (place, n)).digest() * 128 if n else bytes(8192)
            for n in numbers
        ]
        # A write that was not acknowledged may have arrived, or one of its pages.
        for page in (slice(0, 4096), slice(4096, 8192)):
            assert found[page] in [block[page] for block in allowed], (place, numbers)
    if synced_log:
        lines = (folder / "log").read_bytes().split(b"\n")
        assert any(line.startswith(b"%d " % synced_log) for line in lines[:-1])
        assert all(line.split(b" ")[1].strip(b".") == b"" for line in lines[:-1])


def check_current(path: Path, seed: int, renamed: dict[int, int], least: int) -> None:
    """The file replaced by rename is one version, whole, none older than the last synced."""
    if not path.exists():
        assert least == 0
        return
    found = path.read_bytes()
    number = int(found.split(b" ", 1)[0])
    assert number >= least
    if number in renamed:
        assert found == b"%d " % number + content(seed, number, renamed[number])


def write_and_kill(daemon, seed: int) -> None:
    """Start two writers and a tar, kill the daemon after so many acknowledgements, and look."""
    rng = random.Random(seed)
    folders = [daemon.mount / f"w{seed}-{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir()
    daemon.flush()
    after = rng.choice((1, 5, 20, 60, 120))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, folder, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for folder in folders
    ]
    load = subprocess.Popen(
        ["tar", "xf", source("markdown"), "-C", daemon.mount],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = [writers[0].stdout.readline() for _ in range(after)]
    daemon.kill()
    ledgers = []
    for writer, before in zip(writers, (lines, []), strict=True):
        rest = the_rest(writer)
        words = [line.split() for line in [*before, *rest]]
        ledgers.append([(kind, int(one), int(two)) for kind, one, two in words])
    load.wait(60)
    daemon.start()
    daemon.check_clean(data=True)
    assert len(ledgers[0]) >= after
    for folder, ledger in zip(folders, ledgers, strict=True):
        check_ledger(folder, seed, ledger)
        shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(12))
def test_what_was_synced_survives_a_kill(own, seed):
    write_and_kill(own, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 130))
def test_what_was_synced_survives_many_kills(own, seed):
    for round_ in range(10):
        write_and_kill(own, seed * 100 + round_)


# --- programs under the kill ---------------------------------------------------------------------

SQLITE = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
c.execute(f"PRAGMA journal_mode={sys.argv[2]}")
c.execute("PRAGMA synchronous=EXTRA")
c.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, b BLOB)")
n = c.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()[0]
while True:
    n += 1
    c.execute("INSERT INTO t VALUES (?, randomblob(?))", (n, n * 37 % 9000))
    print(n, flush=True)
"""


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_sqlite_keeps_what_it_committed(own, journal):
    path = own.mount / "data.db"
    rng = random.Random(journal)
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", SQLITE, path, journal],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        told = [writer.stdout.readline() for _ in range(rng.randrange(1, 150))]
        own.kill()
        told += the_rest(writer)
        committed = int(told[-1])
        own.start()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT max(n), count(*) FROM t").fetchone()
        connection.close()
        assert found[0] == found[1] >= committed
        own.check_clean()


def test_git_keeps_its_commits(own, machine):
    """With core.fsync=all every commit that git reported is there, whole, after a kill."""
    tree = own.mount / "repository"
    run("git", "init", "-q", tree, env=GIT)
    run("git", "config", "core.fsync", "all", cwd=tree, env=GIT)
    script = (
        "n=0; while true; do n=$((n+1)); date +%N > file$((n%7)); git add -A && "
        "git commit -q -m $n && git rev-parse HEAD || exit; done"
    )
    rng = random.Random(1)
    for _ in range(3):
        worker = subprocess.Popen(
            ["sh", "-c", script],
            cwd=tree,
            env={**os.environ, **GIT},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        told = [worker.stdout.readline() for _ in range(rng.randrange(1, 12))]
        own.kill()
        os.killpg(worker.pid, signal.SIGKILL)
        told += the_rest(worker)
        reported = [line.strip() for line in told if re.fullmatch("[0-9a-f]{40}\n?", line)]
        own.start()
        for lock in (tree / ".git").rglob("*.lock"):
            lock.unlink()
        run("git", "fsck", "--full", cwd=tree, env=GIT)
        for commit in reported:
            assert run("git", "cat-file", "-t", commit, cwd=tree, env=GIT) == "commit\n"
        own.check_clean()


def test_killed_while_unpacking_and_removing_trees(own):
    """What tar had unpacked and sync(1) had made durable is whole."""
    rng = random.Random(3)
    (own.mount / "kept").mkdir()
    run("tar", "xf", source("markdown"), "--no-same-owner", "-C", own.mount / "kept")
    own.flush()
    wanted = manifest(own.mount / "kept")
    for number in range(4):
        folder = own.mount / f"again{number}"
        folder.mkdir()
        worker = subprocess.Popen(
            ["sh", "-c", 'tar xvf "$1" -C "$2" && rm -rv "$2"', "sh", source("markdown"), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        for _ in range(rng.randrange(10, 700)):
            worker.stdout.readline()
        own.kill()
        worker.communicate(timeout=60)
        own.start()
        own.check_clean()
        assert manifest(own.mount / "kept") == wanted


def test_killed_while_fio_writes(own):
    """fio's own checksums of what it had synced hold after the kill."""
    job = (
        "fio", "--name=job", "--size=16m", f"--directory={own.mount}", "--rw=randwrite", "--bs=8k",
        "--ioengine=psync", "--fsync=1", "--verify=crc32c", "--do_verify=0",
        "--verify_state_save=0",
        "--fallocate=none", "--unlink=0", "--time_based", "--runtime=100", "--status-interval=1",
    )  # fmt: skip
    with (own.mount / "before").open("wb") as file:
        file.write(b"b" * 5_000_000)
        file.flush()
        os.fsync(file.fileno())
    worker = subprocess.Popen(
        job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while "write: IOPS" not in worker.stdout.readline():
        assert worker.poll() is None
    own.kill()
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate(timeout=60)
    own.start()
    assert (own.mount / "before").read_bytes() == b"b" * 5_000_000
    assert len((own.mount / "job.0.0").read_bytes()) == (own.mount / "job.0.0").stat().st_size
    own.check_clean(data=True)
