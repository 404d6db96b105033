"""Snapshots of a real mount: taken under writers, shown, cloned, removed, and after kill -9."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.disk import OsDisk
from syncer.catalogue import SnapshotFolder
from tests.mount.harness import Daemon, run

FIELDS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_rdev", "st_blocks",
          "st_mtime_ns", "st_ctime_ns")  # fmt: skip
ACL = bytes.fromhex("0200000001000700ffffffff020007000100000004000500ffffffff"
                    "10000700ffffffff20000500ffffffff")  # fmt: skip


def take(daemon: Daemon, path: str = "/", name: str = "") -> dict:
    """`orbit-ctl snapshot create`."""
    return daemon.client.post("/v1/snapshots", {"path": path, "name": name}, 60.0)


def remove(daemon: Daemon, *names: str, force: bool = False) -> None:
    """`orbit-ctl snapshot remove`."""
    body: dict[str, object] = {"names": list(names), "force": force}
    daemon.client.post("/v1/snapshots/remove", body, 60.0)


def image(root: Path, *, skip: tuple[str, ...] = ()) -> dict[str, tuple]:
    """Everything that a tree shows, by path; names of one file are told by the first of them."""
    found: dict[str, tuple] = {}
    links: dict[int, str] = {}
    todo = [""]
    while todo:
        path = todo.pop()
        here = root / path if path else root
        info = os.lstat(here)
        content: object = None
        if stat.S_ISREG(info.st_mode):
            content = hashlib.blake2b(here.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(here)
        xattrs = {
            name: os.getxattr(here, name, follow_symlinks=False)
            for name in sorted(os.listxattr(here, follow_symlinks=False))
        }
        first = None
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            first = links.setdefault(info.st_ino, path)
        found[path] = (*(getattr(info, field) for field in FIELDS), content, xattrs, first)
        if stat.S_ISDIR(info.st_mode):
            names = sorted(os.listdir(here), reverse=True)
            todo += [os.path.join(path, name) for name in names if name not in skip]
            # Until a directory has been listed its subdirectories are not known.
            found[path] = (found[path][0], os.lstat(here).st_nlink, *found[path][2:])
    return found


def some_tree(root: Path) -> None:
    """What a mount can hold."""
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "file").write_bytes(b"content " * 5_000)
    os.link(root / "deep" / "file", root / "deep" / "er" / "second")
    os.link(root / "deep" / "file", root / "third")
    (root / "large").write_bytes(os.urandom(5 << 20))
    with (root / "sparse").open("wb") as file:
        file.seek(6 << 20)
        file.write(b"end")
    (root / "empty").touch()
    (root / "a name\n\udcff").write_text("odd")
    os.symlink("deep/file", root / "link")
    os.symlink("nowhere", root / "broken")
    os.mkfifo(root / "pipe")
    os.setxattr(root / "deep", "user.colour", b"blue")
    os.setxattr(root / "large", "user.much", os.urandom(30_000))
    os.chmod(root / "third", 0o4751)
    os.setxattr(root, "user.top", b"of all")
    os.chmod(root, 0o2750)
    os.utime(root / "large", ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o660 | stat.S_IFBLK, os.makedev(7, 200))
        os.chown(root / "empty", 1234, 5678)
        os.setxattr(root / "deep", "system.posix_acl_default", ACL)
        os.setxattr(root / "large", "system.posix_acl_access", ACL)


def test_it_shows_everything_as_it_was(own):
    root = own.mount / "tree"
    root.mkdir()
    some_tree(root)
    before = image(root)
    taken = take(own, "/tree", "one")
    assert taken["directories_written"] == 3
    shown = own.mount / ".snapshots" / "one"
    assert image(shown) == before
    # What happens to the tree does not show.
    (root / "deep" / "file").write_bytes(b"other")
    shutil.rmtree(root / "deep" / "er")
    (root / "large").unlink()
    assert image(shown) == before
    assert image(root) != before
    own.collect()
    assert image(shown) == before
    with pytest.raises(OSError) as refused:
        (shown / "new").touch()
    assert refused.value.errno == errno.EROFS
    own.restart()
    assert image(shown) == before
    own.check_clean(data=True)


def test_it_is_hidden_in_the_root(own):
    (own.mount / "file").touch()
    before = os.lstat(own.mount).st_mtime_ns
    take(own, name="one")
    (own.mount / "dir").mkdir()
    assert sorted(os.listdir(own.mount)) == ["dir", "file"]
    assert sorted(os.listdir(own.mount / ".snapshots" / "one")) == ["file"]
    assert os.lstat(own.mount / ".snapshots" / "one").st_mtime_ns == before
    take(own, name="two")
    assert sorted(os.listdir(own.mount / ".snapshots" / "two")) == ["dir", "file"]
    assert own.client.get("/v1/projections", 10.0)["projections"] == []
    with pytest.raises(OSError) as refused:
        (own.mount / ".snapshots").rmdir()
    assert refused.value.errno == errno.EBUSY


WRITER = """
import os, sys
folder, stop = sys.argv[1:]
number = 0
while not os.path.exists(stop):
    number += 1
    # At every moment `pair/a` is the same as `pair/b` or one ahead, and the log says more or as
    # much as both.
    with open(f"{folder}/log", "a") as log:
        log.write(f"{number}\\n")
    for name in "ab":
        with open(f"{folder}/{name}.new", "w") as file:
            file.write(f"{number}\\n" * 3000)
        os.rename(f"{folder}/{name}.new", f"{folder}/{name}")
    print(number, flush=True)
"""


def test_under_writers_each_shows_one_moment(own):
    folder, stop = own.mount / "busy", own.folder / "stop"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, folder, stop], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            last = 0
            for number in range(12):
                for _ in range(5):
                    done = int(writer.stdout.readline())
                take(own, "/busy", f"s{number}")
                shown = own.mount / ".snapshots" / f"s{number}"
                one, two = ((shown / name).read_text().split() for name in "ab")
                assert len(set(one)) == len(set(two)) == 1
                assert len(one) == len(two) == 3_000
                assert int(one[0]) - int(two[0]) in {0, 1}
                assert int(one[0]) >= done > last  # all that was done before is in it
                log = (shown / "log").read_text().split()
                assert log == [str(each + 1) for each in range(len(log))]
                last = done
        finally:
            stop.touch()
            writer.stdout.read()
    own.check_clean()


def test_what_an_open_file_was_given_is_in_it(own):
    with (own.mount / "open").open("wb") as file:
        file.write(b"written, neither synced nor closed")
        file.flush()
        take(own, name="one")
        found = (own.mount / ".snapshots" / "one" / "open").read_bytes()
        assert found == b"written, neither synced nor closed"


def test_a_clone_is_written_into_and_the_snapshot_stays(own):
    root = own.mount / "tree"
    root.mkdir()
    some_tree(root)
    before = image(root)
    take(own, "/tree", "one")
    call = {"url": "snapshot:one", "path": "/clone", "mode": "cow"}
    own.client.post("/v1/project", call, 10.0)
    clone, shown = own.mount / "clone", own.mount / ".snapshots" / "one"
    assert image(clone) == before
    with (clone / "large").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    large = bytearray((root / "large").read_bytes())
    large[1_000_000:1_000_007] = b"changed"
    assert (clone / "large").read_bytes() == large
    (clone / "third").write_bytes(b"one of three")
    assert (clone / "deep" / "er" / "second").read_bytes() == b"one of three"
    os.truncate(clone / "sparse", 5 << 20)
    shutil.rmtree(clone / "deep" / "er")
    os.rename(clone / "empty", clone / "deep" / "moved")
    (clone / "new").write_bytes(b"new")
    changed = image(clone)
    assert image(shown) == before
    with pytest.raises(Exception, match="projected at /clone"):
        remove(own, "one")
    own.collect()
    own.restart()
    assert image(clone) == changed
    assert image(shown) == before
    # One file of a snapshot can be projected, too.
    own.client.post("/v1/project", {"url": "snapshot:one/third", "path": "/alone"}, 10.0)
    assert (own.mount / "alone").read_bytes() == (shown / "third").read_bytes()
    assert os.lstat(own.mount / "alone").st_nlink == 1
    # Nothing was fetched into the cache: it was all here.
    assert own.client.get("/v1/stats", 10.0)["counters"]["cache_put_blocks"] == 0
    own.check_clean(data=True)
    # Of a clone without its snapshot what was written into it is left.
    remove(own, "one", force=True)
    own.client.post("/v1/collect", {"waste_max": 0.0}, 60.0)
    assert (clone / "new").read_bytes() == b"new"
    for path in ("/clone", "/alone"):
        own.client.post("/v1/unproject", {"path": path, "force": True}, 60.0)
    own.check_clean(data=True)
    own.expect_quiet("request failed", "could not be listed")


def rest_of(file) -> object:
    """What is left to be read, or the number of the error."""
    try:
        return file.read()
    except OSError as error:
        return error.errno


def test_removing_takes_it_out_of_sight(own):
    root = own.mount / "tree"
    root.mkdir()
    some_tree(root)
    content = (root / "large").read_bytes()
    take(own, "/tree", "one")
    take(own, "/tree", "two")
    shown = own.mount / ".snapshots"
    kept = image(shown / "two")
    image(shown / "one")
    with (shown / "one" / "large").open("rb") as file:
        assert file.read(10) == content[:10]
        remove(own, "one")
        assert os.listdir(shown) == ["two"]
        assert not (shown / "one").exists()
        # Who has it open reads on, or is told that it has gone.
        assert rest_of(file) in (content[10:], errno.ESTALE)
    assert image(shown / "two") == kept
    # The name is free for another one.
    (root / "large").write_bytes(b"short")
    take(own, "/tree", "one")
    assert (shown / "one" / "large").read_bytes() == b"short"
    own.check_clean(data=True)
    own.expect_quiet("request failed")


def test_a_projection_below_is_left_out_and_named(own, machine):
    (machine / "far").write_text("far away")
    (own.mount / "tree").mkdir()
    (own.mount / "tree" / "near").write_text("near")
    call = {"url": f"file://{machine}", "path": "/tree/projected"}
    own.client.post("/v1/project", call, 10.0)
    taken = take(own, name="one")
    assert taken["directories_left_out"] == ["/tree/projected"]
    shown = own.mount / ".snapshots" / "one" / "tree"
    assert sorted(os.listdir(shown)) == ["near", "projected"]
    assert os.listdir(shown / "projected") == []
    with pytest.raises(Exception, match="lies in a projection"):
        take(own, "/tree/projected")


def test_a_thousand_snapshots(own):
    for number in range(10):
        (own.mount / "file").write_bytes(b"%d" % number)
        take(own, name=f"s{number:03}")
    own.stop()
    # The others show what these do.
    folder = own.state / "snapshots"
    for each in SnapshotFolder(folder, OsDisk()).list().snapshots:
        for number in range(int(each.name[1:]) + 10, 1_000, 10):
            time_ns = each.time_ns + number * 10**9
            record = replace(each, name=f"s{number:03}", time_ns=time_ns)
            (folder / f"{record.name}.snapshot").write_bytes(record.encode())
    own.start()
    shown = own.mount / ".snapshots"
    # Nothing of them was looked at to start.
    assert own.client.get("/v1/stats", 10.0)["counters"]["listings"] == 0
    assert (shown / "s503" / "file").read_bytes() == b"3"
    assert len(os.listdir(shown)) == 1_000
    page = own.client.get("/v1/snapshots?limit=600", 10.0)
    rest = own.client.get(f"/v1/snapshots?limit=600&cursor={page['cursor']}", 10.0)
    names = [each["name"] for each in page["snapshots"] + rest["snapshots"]]
    assert names == [f"s{number:03}" for number in reversed(range(1_000))]
    assert rest["cursor"] is None
    call = {"last": 995, "dry_run": False}
    own.client.post("/v1/snapshots/prune", call, 120.0)
    assert sorted(os.listdir(shown)) == [f"s{number:03}" for number in range(5, 1_000)]
    own.check_clean()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 8))]
)
def test_kill_9_while_snapshots_are_taken_and_removed(own, seed):
    root = own.mount / "tree"
    root.mkdir()
    some_tree(root)
    images: dict[str, dict] = {}
    there: set[str] = set()
    killed = threading.Event()

    def work() -> None:
        number = 0
        try:
            while not killed.is_set():
                name = f"s{number}"
                (root / "deep" / f"new{number}").write_bytes(os.urandom(10_000))
                images[name] = image(root)
                take(own, "/tree", name)
                there.add(name)
                done.release()
                if number % 3 == 2:
                    there.discard(f"s{number - 1}")
                    remove(own, f"s{number - 1}")
                number += 1
        except Exception:  # noqa: BLE001  the daemon was killed
            done.release()

    done = threading.Semaphore(0)
    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(4 + seed):
        done.acquire()
    own.kill()
    killed.set()
    worker.join()
    own.start()
    found = {each["name"] for each in own.client.get("/v1/snapshots", 10.0)["snapshots"]}
    assert there <= found <= images.keys()
    for name in found:
        assert image(own.mount / ".snapshots" / name) == images[name]
    take(own, "/tree", "after")
    assert image(own.mount / ".snapshots" / "after") == image(root)
    own.check_clean(data=True)


def test_orbit_ctl(own):
    program = Path(sys.executable).with_name("orbit-ctl")

    def ctl(*arguments: str, code: int = 0) -> str:
        return run(program, "--socket", own.socket, *arguments, codes=(code,))

    (own.mount / "d").mkdir()
    (own.mount / "d" / "f").write_text("1")
    out = ctl("snapshot", "create", str(own.mount / "d"), "--name", "n", "--tag", "t")
    assert out.startswith("n: 1 file, 1 B of ")
    (own.mount / "d" / "g").write_text("22")
    assert "+ /g" in ctl("snapshot", "diff", "n", "live").splitlines()
    assert "- /g" in ctl("snapshot", "diff", "live", "latest:t").splitlines()
    assert "n  1 file, 1 B" in ctl("snapshot", "list")
    assert ctl("snapshot", "show", "n").splitlines()[-1].endswith(" f")
    assert "would go" in ctl("snapshot", "prune", "--keep-last", "0", "--keep-tag", "x",
                             "--dry-run")  # fmt: skip
    ctl("project", "snapshot:latest", str(own.mount / "clone"), "--mode", "cow")
    assert "snapshot:n" in ctl("projections")
    assert "projected at" in ctl("snapshot", "remove", "n", code=1)
    ctl("unproject", str(own.mount / "clone"))
    assert ctl("snapshot", "remove", "n") == "n is removed\n"
    assert "no snapshots" in ctl("snapshot", "list")
    assert "there is no snapshot" in ctl("project", "snapshot:n", str(own.mount / "x"), code=1)
