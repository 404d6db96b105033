"""Pushes from real mounts to real servers: programs at work, servers that go away, daemons too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.mount.harness import run
from tests.mount.manifest import manifest
from tests.projections.mounts import (
    MIB,
    PATIENT,
    Bucket,
    Folder,
    Projector,
    content,
    on,
    orbit_ctl,
    some_files,
    until,
    whole_tree,
)
from tests.projections.test_mount_cow import GIT, repository

QUICK = f"{PATIENT}push_delay_s = 0.2\n"


def there(site: Folder | Bucket) -> dict[str, bytes]:
    """Every file that the server has."""
    if isinstance(site, Folder):
        return whole_tree(site.path)
    found: dict[str, bytes] = {}
    for page in site.store.list(site.prefix):
        for each in page:
            key = each["path"]
            found[key.removeprefix(site.prefix)] = bytes(site.store.get(key).bytes())
    return found


def push(far: Projector, *arguments: str) -> tuple[int, dict]:
    """`orbit-ctl push`: its exit code and report."""
    command = orbit_ctl(far, "push", os.fspath(far.far), "--json", *arguments)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def changes(far: Projector) -> list[str]:
    """The paths that `orbit-ctl diff` names."""
    return [each["path"] for each in far.call("diff", path="/far")["changes"]]


def pushed(far: Projector) -> bool:
    """Whether nothing is left to be pushed."""
    found = far.projection()
    assert found is not None
    return not (found["pushing"] or found["unpushed"] or found["push_error"])


@on("sftp")
def test_a_push_sends_what_was_changed(site, projector):
    files = some_files(30)
    site.fill(files)
    far = projector(site, mode="cow", config=PATIENT)
    names = sorted(files)
    (far.far / names[0]).write_bytes(b"changed")
    with (far.far / "large").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"in the middle")
    (far.far / names[1]).unlink()
    (far.far / names[2]).rename(far.far / "renamed")
    (far.far / "d1").rename(far.far / "d2/renamed, too")
    (far.far / "new folder/deep").mkdir(parents=True)
    (far.far / "new folder/deep/file").write_bytes(content("new", 3 * MIB))
    shown = whole_tree(far.far)
    code, _ = push(far, "--dry-run")
    assert code == 0
    assert there(site) == files
    code, report = push(far)
    assert code == 0, report
    assert there(site) == shown
    assert changes(far) == []
    assert os.getxattr(far.far / "renamed", "user.orbit.pushed") == b"1"
    assert whole_tree(far.far) == shown
    far.call("refresh", path="/far", recursive=True)
    assert whole_tree(far.far) == shown


@pytest.mark.soak
def test_a_conflict_is_refused_and_resolved(folder, projector):
    folder.fill({"a": b"first", "b": b"b"})
    far = projector(folder, mode="cow", config=PATIENT)
    (far.far / "a").write_bytes(b"ours")
    (far.far / "b").write_bytes(b"also ours")
    folder.put("a", b"theirs, longer")
    code, _ = push(far)
    assert code == 1
    assert there(folder) == {"a": b"theirs, longer", "b": b"also ours"}
    assert (far.far / "a").read_bytes() == b"ours"
    code, _ = push(far, "--on-conflict", "both")
    assert code == 0
    found = there(folder)
    beside = next(name for name in found if name.startswith("a.conflict-"))
    assert found == {"a": b"theirs, longer", "b": b"also ours", beside: b"ours"}
    assert whole_tree(far.far) == found


def test_git_clones_into_a_projection_that_pushes_itself(folder, projector, tmp_path):
    repository(tmp_path / "origin")
    far = projector(folder, mode="rw", config=QUICK)
    run("git", "clone", "-q", os.fspath(tmp_path / "origin"), far.far / "clone", env=GIT)
    (far.far / "clone/file1").write_text("changed here\n")
    run("git", "commit", "-q", "-a", "-m", "made here", cwd=far.far / "clone", env=GIT)
    until(lambda: pushed(far), "not everything was pushed")
    assert there(folder) == whole_tree(far.far)
    run("git", "fsck", "--full", "--strict", cwd=folder.path / "clone", env=GIT)
    assert run("git", "status", "--porcelain", cwd=folder.path / "clone", env=GIT) == ""


@on("s3")
def test_rsync_and_editors_in_a_projection_that_pushes_itself(site, projector, tmp_path):
    source = tmp_path / "origin"
    for key, data in some_files(40).items():
        (source / key).parent.mkdir(parents=True, exist_ok=True)
        (source / key).write_bytes(data)
    far = projector(site, mode="rw", config=QUICK)
    run("rsync", "-a", f"{source}/", f"{far.far}/")
    until(lambda: pushed(far), "not everything was pushed")
    assert there(site) == whole_tree(source) == whole_tree(far.far)
    edited = far.far / "large"
    for text in (b"one", b"two"):  # as editors save: a new file is renamed over the old one
        (far.far / ".large.swp").write_bytes(text)
        (far.far / ".large.swp").rename(edited)
    shutil.rmtree(next(path for path in far.far.iterdir() if path.is_dir()))
    shown = whole_tree(far.far)
    until(lambda: pushed(far) and there(site) == shown, "what was edited was not pushed")


@on("sftp")
def test_a_server_that_goes_away_gets_everything_when_it_is_back(site, projector):
    site.put("before", b"before")
    far = projector(site, mode="rw", config=QUICK)
    assert os.listdir(far.far) == ["before"]
    with site.away():
        (far.far / "made").write_bytes(content("made", MIB))
        (far.far / "before").write_bytes(b"after")
        until(lambda: far.projection()["push_error"], "nobody noticed that the server is away")
        assert far.projection()["unpushed"] == 2
        assert (far.far / "made").read_bytes() == content("made", MIB)
    until(lambda: pushed(far), "the push was not tried again")
    assert there(site) == {"before": b"after", "made": content("made", MIB)}


def test_what_a_killed_daemon_had_not_pushed_is_pushed_by_the_next(folder, projector):
    folder.put("before", b"before")
    far = projector(folder, mode="rw", config=QUICK)
    assert os.listdir(far.far) == ["before"]
    with folder.away():
        for number in range(20):
            (far.far / f"f{number}").write_bytes(content(number, 100_000))
        far.call("flush", timeout_s=30.0)
        far.daemon.kill()
    far.start()
    until(lambda: pushed(far), "the next daemon did not push")
    assert there(folder) == {
        "before": b"before", **{f"f{number}": content(number, 100_000) for number in range(20)}
    }  # fmt: skip


@on("sftp")
def test_what_was_pushed_does_not_fill_the_disk(site, projector):
    """More than the cache holds is written, pushed and read again; a daemon is killed meanwhile."""
    cache = f"{QUICK}cache_bytes_max = {64 * MIB}\ncache_free_floor_bytes = 0\n"
    far = projector(site, mode="rw", config=cache)
    files = {f"f{number}": content(number, MIB) for number in range(160)}
    for number, (name, data) in enumerate(files.items()):
        (far.far / name).write_bytes(data)
        if number == 80:
            until(lambda: there(site), "nothing was pushed")
            far.call("flush", timeout_s=30.0)
            far.crash()

    def shrunk() -> bool:
        far.call("collect")
        return far.daemon.state_bytes() < 100 * MIB

    until(lambda: pushed(far), "not everything was pushed")
    until(shrunk, "what was pushed still takes its space")
    assert changes(far) == []
    # Temporary files of the push that was killed may be left.
    found = {key: data for key, data in there(site).items() if not key.startswith(".orbit-")}
    assert found == files
    assert whole_tree(far.far) == files
    assert far.daemon.state_bytes() < 110 * MIB


def test_a_daemon_that_is_stopped_pushes_first(folder, projector):
    far = projector(folder, mode="rw", config=f"{PATIENT}push_delay_s = 3600\n")
    (far.far / "f").write_bytes(b"written just now")
    far.stop()
    assert there(folder) == {"f": b"written just now"}


@pytest.mark.soak
def test_a_projection_with_unpushed_changes_stays(folder, projector):
    far = projector(folder, mode="rw", config=f"{PATIENT}push_delay_s = 3600\n")
    (far.far / "f").write_bytes(b"f")
    command = orbit_ctl(far, "unproject", os.fspath(far.far))
    refused = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "local changes" in refused.stderr
    assert push(far)[0] == 0
    assert subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0
    assert manifest(folder.path)
