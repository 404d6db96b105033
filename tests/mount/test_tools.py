"""Real programs on a real mount: what people do all day has to work, and to be there after a
restart.
"""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.harness import run
from tests.mount.manifest import manifest
from tests.mount.posix import KINDS, USER, make_node, needs_root
from tests.mount.sources import source

MIB = 1 << 20
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    # Maintenance in the background would keep the mount busy.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "maintenance.auto",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def unpack(name: str, folder: Path) -> Path:
    """Unpack a source distribution with tar; returns its only folder."""
    folder.mkdir(exist_ok=True)
    run("tar", "xf", source(name), "--no-same-owner", "-C", folder)
    (root,) = folder.iterdir()
    return root


def test_a_large_source_tree_under_git(own, machine):
    tree = unpack("django", own.mount / "in")
    wanted = manifest(unpack("django", machine / "in"))
    assert len(wanted) > 10_000
    assert manifest(tree) == wanted
    own.restart()
    assert manifest(tree) == wanted

    def git(*command: str) -> str:
        return run("git", *command, cwd=tree, env=GIT)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "all of it")
    assert git("status", "--porcelain") == ""
    own.restart()
    assert git("status", "--porcelain") == ""
    git("fsck", "--full", "--strict")
    (tree / "new file").write_text("new")
    (tree / "tox.ini").write_text("changed")
    (tree / "README.rst").unlink()
    changes = git("status", "--porcelain").splitlines()
    assert sorted(changes) == [" D README.rst", " M tox.ini", '?? "new file"']
    git("add", "-A")
    git("commit", "-q", "-m", "changes")
    git("gc", "-q", "--prune=now")
    git("checkout", "-q", "HEAD~1")
    git("fsck", "--full")
    assert git("status", "--porcelain") == ""
    shutil.rmtree(tree / ".git")
    found = manifest(tree)
    for path, entry in wanted.items():
        if "content" in entry:
            assert found[path]["content"] == entry["content"]
    own.check_clean()


def check_copies(own, name: str, count: int) -> None:
    """Copies cost names and recipes, some 500 bytes an entry and SQLite's log of them."""
    tree = unpack(name, own.mount / "in")
    own.flush()
    wanted = manifest(tree)
    before, packs = own.state_bytes(), pack_bytes(own)
    copies = [own.mount / f"copy{number}" for number in range(count)]
    for copy in copies:
        run("cp", "-a", tree, copy)
    own.flush()
    assert pack_bytes(own) - packs < 2 * MIB
    assert own.state_bytes() - before < 2_000 * len(wanted) * count + 64 * MIB
    own.restart()
    assert manifest(copies[0]) == manifest(copies[-1]) == wanted
    run("rm", "-r", *copies[1:])
    own.check_clean()
    assert manifest(copies[0]) == wanted


def pack_bytes(own) -> int:
    """What all packs hold."""
    return sum(path.stat().st_size for path in (own.state / "packs").iterdir())


def test_ten_copies_of_a_tree_cost_next_to_nothing(own):
    check_copies(own, "markdown", 10)


@pytest.mark.soak
def test_ten_copies_of_a_large_tree_cost_next_to_nothing(own):
    check_copies(own, "django", 10)


@pytest.fixture
def rich(machine):
    """A tree with everything that tools are asked to keep, made on the machine's own filesystem."""
    root = machine / "rich"
    root.mkdir()
    unpack("markdown", root / "sources")
    make_rich(root)
    return root


def make_rich(root: Path) -> None:
    """Links, nodes, lists, attributes, odd names, sparse files and odd times below `root`."""
    folder = root / "odd"
    folder.mkdir()
    for kind in KINDS:
        if kind != "socket":  # archives do not hold them
            make_node(kind, folder / kind)
    for number in range(20):
        path = folder / f"{number}"
        path.write_bytes(os.urandom(number * 3_000))
        os.link(path, folder / f"link{number}")
        path.chmod((0o600, 0o755, 0o4755, 0o2711, 0o444)[number % 5])
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number))
        os.setxattr(path, f"user.n{number}", os.urandom(number * 50))
    run("setfacl", "-m", f"u:{USER}:rw,g:{USER}:r", folder / "3", folder / "4")
    run("setfacl", "-d", "-m", f"u:{USER}:rwx", folder / "directory")
    run("setfacl", "-m", f"u:{USER}:rwx", folder / "directory")
    os.setxattr(folder / "directory", "user.of_a_directory", b"x" * 1_000)
    os.setxattr(folder / "7", "trusted.of_root", b"y")
    os.lchown(folder / "symlink", USER, USER)
    os.chown(folder / "9", USER, USER + 1)
    for name in (b"\xff\xfe not utf-8", b"n" * 255, "ünï\ncode".encode(), b" -rf *"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)
    with (folder / "sparse").open("wb") as file:
        for position in (0, 10 * MIB, 500 * MIB, 900 * MIB):
            file.seek(position)
            file.write(b"data" * 1_000)
        file.truncate(1_000 * MIB)
    (folder / "hole").touch()
    os.truncate(folder / "hole", 300 * MIB)


@needs_root
def test_rsync_has_nothing_left_to_do(own, rich, machine):
    inside, outside = own.mount / "in", machine / "out"
    copy = ("rsync", "-aHAX", "--sparse", "--devices", "--specials", "--numeric-ids", "--checksum")

    def again(source: Path, target: Path) -> str:
        return run(*copy, "--delete", "--itemize-changes", f"{source}/", f"{target}/")

    run(*copy, f"{rich}/", f"{inside}/")
    assert again(rich, inside) == ""
    own.restart()
    assert again(rich, inside) == ""
    run(*copy, f"{inside}/", f"{outside}/")
    assert again(inside, outside) == ""
    assert manifest(outside) == manifest(rich) == manifest(inside)
    assert (inside / "odd" / "sparse").stat().st_blocks * 512 < 5 * MIB
    own.check_clean(data=True)


@needs_root
def test_tar_keeps_every_attribute(own, rich, machine):
    options = ("--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner")
    one, two = machine / "one.tar", own.mount / "two.tar"
    inside, outside = own.mount / "in", machine / "out"
    inside.mkdir()
    outside.mkdir()
    # tar keeps nanoseconds in its own format only.
    run("tar", "--format=posix", *options, "-cf", one, "-C", rich, ".")
    run("tar", *options, "-xpf", one, "-C", inside)
    own.restart()
    wanted = manifest(rich)
    assert manifest(inside) == wanted
    run("tar", "--format=posix", *options, "-cf", two, "-C", inside, ".")
    run("tar", *options, "-xpf", two, "-C", outside)
    assert manifest(outside) == wanted
    assert (inside / "odd" / "sparse").stat().st_blocks * 512 < 5 * MIB
    own.check_clean(data=True)


def test_a_virtual_environment_runs_the_tests_of_a_package(own):
    tree = unpack("markdown", own.mount / "in")
    home = own.mount / "venv"
    run(sys.executable, "-m", "venv", home)
    run(home / "bin" / "python", "-m", "pip", "install", "--quiet", tree)
    own.restart()
    (tree / "markdown").rename(tree / "not the installed one")
    tests = ("-m", "unittest", "discover", "-s", "tests/test_syntax", "-t", ".")
    output = run(home / "bin" / "python", *tests, cwd=tree)
    assert output.rstrip().splitlines()[-1].startswith("OK")
    assert str(home) in run(home / "bin" / "python", "-c", "import markdown; print(markdown)")


def test_compiling_and_running_a_program(own):
    folder = own.mount / "c"
    folder.mkdir()
    for number in range(20):
        (folder / f"part{number}.c").write_text(
            f"int part{number}(int x) {{ return x + {number}; }}\n"
        )
    calls = "".join(f"x = part{number}(x);" for number in range(20))
    names = "".join(f"int part{number}(int);" for number in range(20))
    (folder / "main.c").write_text(
        f"#include <stdio.h>\n{names}int main(void){{int x=0;{calls}"
        'printf("%d\\n", x);return 0;}\n'
    )
    run("gcc", "-g", "-c", *sorted(folder.glob("*.c")), cwd=folder)
    run("ar", "rcs", "libparts.a", *sorted(folder.glob("part*.o")), cwd=folder)
    run("gcc", "-o", "program", "main.o", "-L.", "-lparts", cwd=folder)
    run("gcc", "-shared", "-fPIC", "-o", "libparts.so", *sorted(folder.glob("part*.c")), cwd=folder)
    assert run(folder / "program") == "190\n"
    own.restart()
    assert run(folder / "program") == "190\n"
    load = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).part7(1))"
    assert run(sys.executable, "-c", load, folder / "libparts.so") == "8\n"


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_sqlite_with_thousands_of_transactions(own, journal):
    """Two processes write by turns; every committed row is there, before and after a restart."""
    path = own.mount / "data.db"
    count = 1_000
    with sqlite3.connect(path) as connection:
        assert connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal.lower()
        connection.execute("CREATE TABLE t (writer, number, blob, UNIQUE (writer, number))")
    connection.close()
    script = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)\n"
        "c.execute('PRAGMA synchronous=OFF')\n"
        "for n in range(int(sys.argv[3])):\n"
        "    c.execute('BEGIN IMMEDIATE')\n"
        "    c.execute('INSERT INTO t VALUES (?, ?, randomblob(?))', (sys.argv[2], n, n % 3000))\n"
        "    if n % 10 == 9: c.execute('DELETE FROM t WHERE writer=? AND number=?',"
        " (sys.argv[2], n - 5))\n"
        "    c.execute('COMMIT')\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, path, name, str(count)]) for name in "ab"
    ]
    assert [writer.wait(200) for writer in writers] == [0, 0]
    for restart in (False, True):
        if restart:
            own.restart()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT writer, count(*), sum(number) FROM t GROUP BY 1")
        kept = [number for number in range(count) if number % 10 != 4]
        assert rows.fetchall() == [(name, len(kept), sum(kept)) for name in "ab"]
        connection.close()


def test_sqlite_with_full_synchronisation(own):
    path = own.mount / "data.db"
    for journal in ("DELETE", "WAL"):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(f"PRAGMA journal_mode={journal}")
        # EXTRA: without it SQLite itself does not sync the folder after removing its journal.
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("CREATE TABLE IF NOT EXISTS t (n)")
        for number in range(100):
            connection.execute("INSERT INTO t VALUES (?)", (number,))
        own.crash()
        connection.close()  # it died with the mount; every INSERT had returned
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = 100 if journal == "DELETE" else 200
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (rows,)
        connection.close()


FIO = {
    "sequential": ("--rw=write", "--bs=128k", "--ioengine=psync"),
    "random": ("--rw=randwrite", "--bs=512-64k", "--bs_unaligned=1", "--ioengine=psync"),
    "mmap": ("--rw=randwrite", "--bs=4k", "--ioengine=mmap"),
    "direct": ("--rw=randwrite", "--bs=16k", "--direct=1", "--ioengine=psync"),
    "asynchronous": (
        "--rw=randwrite",
        "--bs=16k",
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=16",
    ),
    "synced": ("--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fsync=64"),
}


@pytest.mark.parametrize("kind", FIO)
def test_fio_verifies_what_it_wrote(shared, mnt, kind):
    """Four jobs write, read back and compare checksums; then again after a restart."""
    common = (
        "fio", "--name=job", "--numjobs=4", "--size=24m", f"--directory={mnt}", "--verify=xxhash",
        "--randseed=7", "--verify_fatal=1", "--verify_state_save=0", "--fallocate=none",
        "--unlink=0", *FIO[kind],
    )  # fmt: skip
    run(*common, "--do_verify=1", cwd=mnt)
    shared.restart()
    run(*common, "--verify_only", cwd=mnt)


@needs_root
def test_a_filesystem_inside_a_file(own):
    image = own.mount / "image"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    assert image.stat().st_blocks * 512 < 64 * MIB
    device = run("losetup", "--find", "--show", image).strip()
    point = own.folder / "inner"
    point.mkdir()
    try:
        run("mount", device, point)
        try:
            tree = unpack("markdown", point / "in")
            wanted = manifest(tree)
            (point / "large").write_bytes(os.urandom(30 * MIB))
            large = (point / "large").read_bytes()
        finally:
            run("umount", point)
        run("fsck.ext4", "-f", "-n", device)
    finally:
        run("losetup", "--detach", device)
    own.restart()
    run("fsck.ext4", "-f", "-n", image)
    device = run("losetup", "--find", "--show", "--read-only", image).strip()
    try:
        run("mount", "-o", "ro,noload", device, point)
        try:
            assert manifest(tree) == wanted
            assert (point / "large").read_bytes() == large
        finally:
            run("umount", point)
    finally:
        run("losetup", "--detach", device)


def sync_folder(folder: Path) -> None:
    """fsync(2) of a directory."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def test_editors_save_by_rename(own):
    """Write beside, fsync, rename over: readers see the old or the new text, and the mode stays."""
    path, new, backup = (own.mount / name for name in ("text", ".text.new", "text~"))
    path.write_text("version 0")
    path.chmod(0o640)
    for number in range(1, 200):
        with path.open() as reader:
            with new.open("w") as file:
                file.write(f"version {number}" * number)
                file.flush()
                os.fsync(file.fileno())
            new.chmod(stat.S_IMODE(path.stat().st_mode))
            backup.unlink(missing_ok=True)
            os.link(path, backup)
            new.rename(path)
            assert reader.read() == f"version {number - 1}" * max(1, number - 1)
        assert backup.read_text() == f"version {number - 1}" * max(1, number - 1)
    sync_folder(own.mount)
    own.crash()
    assert path.read_text() == "version 199" * 199
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_logs_appended_to_by_several_processes(own):
    """With the shell's >>, under rotation: every line is whole and in the order of its writer."""
    folder = own.mount / "logs"
    folder.mkdir()
    script = 'for n in $(seq 500); do echo "$1 $n line" >> "$2"; done'
    writers = [
        subprocess.Popen(["sh", "-c", script, "sh", f"w{number}", folder / "log"])
        for number in range(4)
    ]
    rotations = 0
    while any(writer.poll() is None for writer in writers):
        if (folder / "log").exists():
            (folder / "log").rename(folder / f"log.{rotations}")
            rotations += 1
    assert [writer.returncode for writer in writers] == [0] * 4
    own.restart()
    lines = [line for path in folder.iterdir() for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"w{w} {n} line" for w in range(4) for n in range(1, 501))
