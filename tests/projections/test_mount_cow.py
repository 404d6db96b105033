"""Programs at work on projections that take changes; the remote never sees one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess

from tests.mount.harness import run
from tests.mount.manifest import manifest
from tests.projections.mounts import MIB, content, on, some_files, whole_tree

GIT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "@1 +0000",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_COMMITTER_DATE": "@1 +0000", "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def repository(path) -> None:
    """A repository with a history, packed and not."""
    run("git", "init", "-q", "-b", "main", path, env=GIT)
    for number in range(12):
        (path / f"file{number % 5}").write_text("line\n" * (number + 1))
        folder = path / f"folder{number % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}").write_bytes(content(number, 20_000))
        run("git", "add", "-A", cwd=path, env=GIT)
        run("git", "commit", "-q", "-m", f"change {number}", cwd=path, env=GIT)
        if number == 7:
            run("git", "gc", "-q", cwd=path, env=GIT)


def changes(far) -> list[str]:
    """The paths that `orbit-ctl diff` names."""
    return [each["path"] for each in far.call("diff", path="/far")["changes"]]


def test_git_in_a_projected_repository(folder, projector):
    source = folder.path / "repository"
    repository(source)
    before = manifest(folder.path)
    far = projector(folder, mode="cow", config="")
    tree = far.far / "repository"

    def git(*arguments: str) -> str:
        return run("git", *arguments, cwd=tree, env=GIT)

    assert git("log", "--format=%s").split("\n")[0] == "change 11"
    assert git("status", "--porcelain") == ""
    git("fsck", "--full", "--strict")
    (tree / "file1").write_text("changed here\n")
    (tree / "new").write_bytes(content("new", 2 * MIB))
    git("rm", "-q", "-r", "folder0")
    git("mv", "folder1", "moved")
    git("add", "-A")
    git("commit", "-q", "-m", "made here")
    head = git("rev-parse", "HEAD")
    git("checkout", "-q", "-b", "other", "HEAD~4")
    git("merge", "-q", "--no-edit", "main")
    git("gc", "-q", "--prune=now")
    git("fsck", "--full", "--strict")
    run("git", "clone", "-q", tree, far.daemon.mount / "clone", env=GIT)
    assert run("git", "rev-parse", "HEAD", cwd=far.daemon.mount / "clone", env=GIT) == head
    far.call("refresh", path="/far", recursive=True)
    assert git("status", "--porcelain") == ""
    far.daemon.check_clean(data=True)
    far.daemon.flush()
    far.crash()
    assert git("rev-parse", "main") == head
    assert git("status", "--porcelain") == ""
    git("fsck", "--full", "--strict")
    assert changes(far)
    far.daemon.check_clean(data=True)
    assert manifest(folder.path) == before, "the remote has seen a change"
    far.call("revert", path="/far")
    assert changes(far) == []
    assert git("log", "--format=%s").split("\n")[0] == "change 11"
    assert git("status", "--porcelain") == ""
    far.daemon.check_clean(data=True)
    far.stop()


@on("s3")
def test_tar_and_rsync_of_a_projected_tree(site, projector, machine):
    files = some_files(60, seed=3)
    site.fill(files)
    far = projector(site, mode="cow", config="")
    archive = machine / "tree.tar"
    run("tar", "cf", archive, "-C", far.far, ".")
    (machine / "unpacked").mkdir()
    run("tar", "xf", archive, "-C", machine / "unpacked")
    assert whole_tree(machine / "unpacked") == files
    # Into the projection: over what is there, beside it, and away.
    newer = {**files, "more/one": b"1", "d1/two": content(2, 500_000), "large": b"small now"}
    gone = sorted(files)[3:9]
    for name in gone:
        newer.pop(name, None)
    for name, data in newer.items():
        path = machine / "newer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    rsync = ("rsync", "-r", "-t", "--checksum", "--delete", f"{machine}/newer/", f"{far.far}/")
    run(*rsync)
    assert whole_tree(far.far) == newer
    assert run(*rsync, "--dry-run", "--itemize-changes") == ""
    far.call("refresh", path="/far", recursive=True)
    assert whole_tree(far.far) == newer
    far.daemon.check_clean(data=True)
    far.stop()
    far.start()
    assert whole_tree(far.far) == newer
    run("tar", "xf", archive, "-C", far.far)
    assert whole_tree(far.far) == {**newer, **files}
    far.call("revert", path="/far")
    assert whole_tree(far.far) == files
    far.daemon.check_clean(data=True)
    far.stop()


@on("sftp")
def test_sqlite_in_a_projected_database(site, projector, machine):
    """Its pages are mixed from the remote's blocks and from what was written here."""
    path = machine / "data.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB)")
    connection.executemany(
        "INSERT INTO t VALUES (?, ?)", ((n, content(n, 3_000)) for n in range(2_000))
    )
    connection.commit()
    connection.close()
    source = path.read_bytes()
    site.fill({"data.db": source})
    far = projector(site, mode="cow", config="", block_size="128 KiB")
    shown = far.far / "data.db"
    for journal in ("DELETE", "WAL"):
        database = sqlite3.connect(shown, isolation_level=None)
        assert database.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal.lower(),)
        database.execute("BEGIN")
        for n in range(0, 2_000, 97):
            database.execute("UPDATE t SET b = ? WHERE n = ?", (content((journal, n), 2_000), n))
        database.execute("COMMIT")
        database.execute("BEGIN")
        database.execute("DELETE FROM t")
        database.execute("ROLLBACK")
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM t").fetchone() == (2_000,)
        (found,) = database.execute("SELECT b FROM t WHERE n = 97").fetchone()
        assert found == content((journal, 97), 2_000)
        database.close()
    far.daemon.flush()
    far.crash()
    database = sqlite3.connect(shown)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("SELECT b FROM t WHERE n = 98").fetchone() == (content(98, 3_000),)
    database.close()
    far.daemon.check_clean(data=True)
    far.call("revert", path="/far")
    assert shown.read_bytes() == source
    far.stop()


def test_appending_to_a_large_file_fetches_a_block_at_most(site, projector):
    data = content("large", 40 * MIB)
    site.fill({"large": data})
    far = projector(site, mode="cow", config="")
    with (far.far / "large").open("ab") as file:
        file.write(b"more")
    assert far.counters()["fetched_bytes"] <= MIB
    with (far.far / "large").open("rb") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-6:] + b"more"
    assert far.counters()["fetched_bytes"] <= 2 * MIB
    far.stop()


def test_a_copy_of_a_projected_tree_is_like_the_source(folder, projector, machine):
    """Times, modes and links arrive; the daemon's own attributes do not."""
    files = some_files(20, seed=9)
    folder.fill(files)
    for number, name in enumerate(sorted(files)):
        os.chmod(folder.path / name, (0o600, 0o644, 0o755, 0o400)[number % 4])
    os.symlink("large", folder.path / "link")
    os.utime(folder.path / "link", (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    os.chmod(folder.path, 0o755)
    for root, folders, _ in os.walk(folder.path):
        for name in [*folders, "."]:
            os.utime(os.path.join(root, name), (1_500_000_000, 1_500_000_000))
    far = projector(folder, config="")
    subprocess.run(["cp", "-a", far.far, machine / "copy"], check=True)

    def wanted(root):
        found = manifest(root)
        for entry in found.values():
            entry.pop("links")  # of directories, which differ between filesystems
        return found

    assert wanted(machine / "copy") == wanted(folder.path)
    assert not shutil.rmtree(machine / "copy")
    far.stop()
