"""orbit-ctl snapshot, against the real API over a double: what it calls, prints and returns."""

import json
from dataclasses import replace

import pytest

from ghostd.snapshots import SnapshotInUse
from ghostd.snapshots_facade import (
    Keep,
    Pruned,
    Removed,
    Shown,
    SnapshotChange,
    SnapshotDiff,
    SnapshotEntry,
    SnapshotInfo,
    SnapshotPage,
    Take,
    Taken,
    Verdict,
)

INFO = SnapshotInfo(
    name="nightly",
    id="ab" * 32,
    taken_ns=1_700_000_000_000_000_000,
    host="nas",
    source="/mnt/orbit/caf%E9",
    tags=("kept", "two"),
    expires_ns=1_800_000_000_000_000_000,
    root="cd" * 32,
    files=3,
    bytes=4096,
    in_use=("/clone",),
)
OTHER = replace(INFO, name="other", tags=(), expires_ns=None, in_use=())
FILE = SnapshotEntry("f\x1b%FF", "file", 10, None, 0o644, 1, 2, 0, None)
LINK = SnapshotEntry("l", "symlink", 0, None, 0o777, 0, 0, 0, "to/x")
FOLDER = SnapshotEntry("", "directory", 10, 1, 0o755, 0, 0, 0, None)


class DoubleSnapshots:
    """Answers in pages of one; fails where a test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.error: Exception | None = None

    def _pass(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def snapshots(self, *, cursor, limit):
        self._pass("list", cursor)
        return SnapshotPage((INFO,), "more") if cursor is None else SnapshotPage((OTHER,))

    def take(self, wanted):
        self._pass("take", wanted)
        return Taken(INFO, 2, ("/far",), 0.001, 0.5)

    def show(self, name, path, *, cursor, limit):
        self._pass("show", name, path, cursor)
        page = (FILE,) if cursor is None else (LINK,)
        return Shown(INFO, path, FOLDER, page, "more" if cursor is None else None)

    def diff(self, old, new, path, *, cursor, limit):
        self._pass("diff", old, new, path, cursor)
        if cursor is None:
            return SnapshotDiff((SnapshotChange("added", "/a", None, FOLDER),), "more")
        return SnapshotDiff((SnapshotChange("content", "/b", FILE, replace(FILE, bytes=20)),), None)

    def remove(self, names, *, force):
        self._pass("remove", names, force)
        return Removed((INFO,))

    def prune(self, keep, *, source, dry_run):
        self._pass("prune", keep, source, dry_run)
        verdicts = (
            Verdict(INFO, kept=True, reasons=("last 1 of 1",)),
            Verdict(OTHER, kept=False, reasons=("no rule keeps it",)),
        )
        return Pruned(dry_run, verdicts, () if dry_run else ("other: it is projected",))


@pytest.fixture
def double(control):
    control.snapshots = DoubleSnapshots()
    return control.snapshots


@pytest.fixture
def ctl(orbit_ctl, socket_path, double):
    return lambda *arguments: orbit_ctl("--socket", socket_path, *arguments)


def test_create(ctl, double):
    options = ("--name", "nightly", "--tag", "kept", "--tag", "two", "--expires", "2d")
    ran = ctl("snapshot", "create", "/mnt/orbit/x", *options)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[0] == "nightly: 3 files, 4.0 KiB of /mnt/orbit/caf\\xe9"
    assert lines[1].endswith("read it at /mnt/orbit/.snapshots/nightly")
    assert lines[2].endswith("a projection: /mnt/orbit/far")
    assert double.calls == [("take", Take("/x", "nightly", ("kept", "two"), 172_800.0))]
    ctl("snapshot", "create")
    assert double.calls[1] == ("take", Take())


def test_list_takes_all_pages(ctl, double):
    first, second = ctl("snapshot", "list").stdout.splitlines()
    assert "nightly  3 files, 4.0 KiB  of /mnt/orbit/caf\\xe9  [kept, two]  until 20" in first
    assert first.endswith("projected at /clone")
    assert second.endswith("/mnt/orbit/caf\\xe9")
    assert double.calls == [("list", None), ("list", "more")]
    found = json.loads(ctl("--json", "snapshot", "list").stdout)["snapshots"]
    assert [each["name"] for each in found] == ["nightly", "other"]


def test_show_takes_all_pages(ctl, double):
    lines = ctl("snapshot", "show", "latest:x", "a/b").stdout.splitlines()
    assert lines[0] == "nightly"
    assert lines[-2].startswith("-rw-r--r--")
    assert lines[-2].endswith("f\\x1b\\xff")
    assert lines[-1].endswith("l -> to/x")
    assert double.calls == [
        ("show", "latest:x", "/a/b", None),
        ("show", "latest:x", "/a/b", "more"),
    ]


def test_diff_takes_all_pages(ctl, double):
    ran = ctl("snapshot", "diff", "one", "live", "p")
    assert ran.stdout.splitlines() == ["+ /a/", "M /b (10 B -> 20 B)"]
    assert double.calls[1] == ("diff", "one", "live", "/p", "more")
    changes = json.loads(ctl("--json", "snapshot", "diff", "one", "two").stdout)["changes"]
    assert [each["kind"] for each in changes] == ["added", "content"]
    assert ctl("snapshot", "diff", "live", "live").returncode == 2


def test_remove(ctl, double):
    assert ctl("snapshot", "remove", "a", "b", "--force").stdout == "nightly is removed\n"
    assert double.calls == [("remove", ["a", "b"], True)]
    double.error = SnapshotInUse("snapshot 'a' is projected at /clone")
    ran = ctl("snapshot", "remove", "a")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "projected at /clone" in ran.stderr


def test_prune_says_why(ctl, double):
    rules = ("--keep-last", "1", "--keep-hourly", "2", "--keep-daily", "3", "--keep-weekly", "4",
             "--keep-monthly", "5", "--keep-yearly", "6", "--keep-tag", "t")  # fmt: skip
    ran = ctl("snapshot", "prune", *rules, "--source", "/mnt/orbit", "--dry-run")
    assert ran.returncode == 0
    stays, goes = ran.stdout.splitlines()
    assert stays.startswith("stays")
    assert stays.endswith("last 1 of 1")
    assert goes.startswith("would go")
    keep = Keep(last=1, hourly=2, daily=3, weekly=4, monthly=5, yearly=6, tags=("t",))
    assert double.calls == [("prune", keep, "/mnt/orbit", True)]
    ran = ctl("snapshot", "prune", "--keep-last", "1")
    assert ran.returncode == 1
    assert ran.stdout.splitlines()[-1] == "not removed: other: it is projected"


@pytest.mark.parametrize(
    "arguments",
    [("create", "--expires", "soon"), ("prune", "--keep-last", "-1"), ("remove",), ("show",)],
)
def test_a_wrong_command_line_calls_nothing(ctl, double, arguments):
    assert ctl("snapshot", *arguments).returncode == 2
    assert double.calls == []


def test_a_daemon_without_snapshots_says_so(orbit_ctl, socket_path, control):
    control.snapshots = None
    ran = orbit_ctl("--socket", socket_path, "snapshot", "list")
    assert ran.returncode == 1
    assert "runs without snapshots" in ran.stderr
