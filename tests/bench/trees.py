"""Groups on many files: small files, a source tree, a hundred thousand entries."""

from __future__ import annotations

from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.populate import populate
from tests.bench.processes import run
from tests.bench.systems import OURS, GhostFS, System

PEERS = ("ext4", "passthrough_ll", "juicefs", "rclone", OURS)
LIMIT_S = 600.0
_SMALL = 4096


# --- small files ---------------------------------------------------------------------------------


def _small(bench: Bench) -> None:
    folders, files = 100, bench.size(100, 20)
    systems = bench.systems(PEERS)
    with bench.cleared(systems):
        for number, system in enumerate(bench.in_turn(systems)):
            with bench.attempt(system):
                system.start()
                _small_one(bench, system, folders, files, number)
                system.stop()
                system.clear()


def _small_one(bench: Bench, system: System, folders: int, files: int, seed: int) -> None:
    top = system.mount / "small"
    count = folders * files

    def create() -> float:
        step = ("create", top, folders, files, _SMALL, seed)
        return work.call(*step, limit_s=LIMIT_S)["seconds"]

    def read() -> float:
        answer = work.call("read-tree", top, limit_s=LIMIT_S)
        assert answer["files"] == count
        assert answer["bytes"] == count * _SMALL
        return answer["seconds"]

    bench.timed_stored("create", "stored", system, create)
    system.cold()
    bench.timed("find", system, lambda: find(top, count))
    system.cold()
    bench.timed("read", system, read)
    system.cold()
    bench.timed("remove", system, lambda: run("rm", "-rf", top, limit_s=LIMIT_S).seconds)


def find(top: Path, count: int) -> float:
    """List a tree and stat everything in it; there must be `count` files."""
    # -printf %s needs the attributes of every entry; counting happens after the clock.
    done = run("find", top, "-printf", "%y %s %T@\n", limit_s=LIMIT_S)
    found = sum(line.startswith("f") for line in done.output.splitlines())
    assert found == count, f"find showed {found} files instead of {count}"
    return done.seconds


SMALL = Group(
    "small",
    "Files of 4 KiB in 100 directories (full run: 10,000 files)",
    (
        Row("create", "create"),
        Row("stored", "create, until stored"),
        Row("find", "find with stat, cold"),
        Row("read", "read all, cold"),
        Row("remove", "rm -rf, cold"),
    ),
    _small,
    PEERS,
)


# --- a source tree -------------------------------------------------------------------------------

_GIT = {
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@example.org",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
}


def _source(bench: Bench) -> None:
    tarball = bench.inputs.tarball("4.2.16")
    systems = bench.systems(PEERS)
    with bench.cleared(systems):
        for system in bench.in_turn(systems):
            with bench.attempt(system):
                system.start()
                _source_one(bench, system, tarball)
                system.stop()
                system.clear()


def _source_one(bench: Bench, system: System, tarball: Path) -> None:
    top = system.mount / tarball.stem
    inner = f"{tarball.stem}/django/contrib/admin" if bench.quick else tarball.stem
    copy = system.mount / "copy"

    def command(*words: str | Path, codes: tuple[int, ...] = (0,)) -> float:
        done = run(*words, limit_s=LIMIT_S, cwd=system.mount, env=_GIT, codes=codes)
        return done.seconds

    # git refuses to work in a folder that belongs to somebody else.
    untar = ("tar", "xf", tarball, "--no-same-owner", inner)
    bench.timed_stored("untar", "untar-stored", system, lambda: command(*untar))
    command("git", "init", "-q", top)
    # Collecting in the background would run into the next step.
    command("git", "-C", top, "config", "gc.auto", "0")
    bench.timed("git-add", system, lambda: command("git", "-C", top, "add", "-A"))
    commit = ("git", "-C", top, "commit", "-qm", "all")
    bench.timed("git-commit", system, lambda: command(*commit))
    bench.timed("git-status", system, lambda: command("git", "-C", top, "status", "--short"))
    system.cold()
    bench.timed("git-status-cold", system, lambda: command("git", "-C", top, "status", "--short"))
    system.cold()
    # Without .git: passthrough_ll has no descriptors for so many files.
    copy.mkdir()
    names = [path for path in sorted(top.iterdir()) if path.name != ".git"]
    bench.timed("copy", system, lambda: command("cp", "-r", *names, copy))
    system.settle()
    system.cold()
    grep = ("grep", "-rc", "--include=*.py", "no such text here", copy)
    bench.timed("grep", system, lambda: command(*grep, codes=(1,)))
    bench.timed("remove", system, lambda: command("rm", "-rf", copy))


SOURCE = Group(
    "tree",
    "A source tree: Django 4.2.16, 9,917 entries, 54 MB (quick: its admin)",
    (
        Row("untar", "tar x"),
        Row("untar-stored", "tar x, until stored"),
        Row("git-add", "git add -A"),
        Row("git-commit", "git commit"),
        Row("git-status", "git status"),
        Row("git-status-cold", "git status, cold"),
        Row("copy", "cp -r without .git, cold"),
        Row("grep", "grep -r of the copy, cold"),
        Row("remove", "rm -rf of the copy"),
    ),
    _source,
    PEERS,
)


# --- many entries --------------------------------------------------------------------------------


def _find(bench: Bench) -> None:
    folders, files = 100, bench.size(1000, 100)
    systems = bench.systems(PEERS)
    with bench.cleared(systems):
        for system in systems:
            with bench.attempt(system):
                _fill(system, folders, files)
        for system in bench.in_turn(systems):
            with bench.attempt(system):
                system.start()
                _find_one(bench, system, folders, files)
                system.stop()


def _find_one(bench: Bench, system: System, folders: int, files: int) -> None:
    top = system.mount / "many"
    system.cold()
    entries = folders * (files + 1)
    bench.timed("find", system, lambda: find(top, folders * files), amount=entries)


def _fill(system: System, folders: int, files: int) -> None:
    """Make the entries the fast way, where there is one below the mount."""
    system.start()
    if isinstance(system, GhostFS):
        system.stop()
        populate(system.data, "many", folders, files)
        return
    # JuiceFS knows only what came through its mount; the others show the folder under them.
    top = (system.mount if system.name.startswith("juicefs") else system.data) / "many"
    work.call("create", top, folders, files, 0, 0, limit_s=LIMIT_S * 2)
    system.settle()
    system.stop()


FIND = Group(
    "find",
    "find with stat of a tree that nothing has in memory (full run: 100,000 entries)",
    (Row("find", "entries", "/s"),),
    _find,
    PEERS,
    note="Ours was filled through the namespace library, the others' entries are empty files.",
)
