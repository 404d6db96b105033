"""What goes wrong around the daemon: full disks, flipped bytes, lost databases, wrong places."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.client import DaemonAbsent
from tests.mount.harness import DaemonEnded, is_mounted, run
from tests.mount.posix import fails, outcome

MIB = 1 << 20


# --- starting and stopping -----------------------------------------------------------------------


def test_a_clean_stop_keeps_everything_and_unmounts(own):
    (own.mount / "file").write_bytes(b"kept" * 1000)
    own.restart()
    assert (own.mount / "file").read_bytes() == b"kept" * 1000
    own.check_clean(data=True)
    own.stop()
    assert os.listdir(own.mount) == []
    with pytest.raises(DaemonAbsent):
        own.status()
    own.start()


def test_stopping_with_open_files(own):
    """What was written to them is kept; their next use is an error, and nothing hangs."""
    fd = os.open(own.mount / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"written")
    own.stop()
    assert outcome(os.write, fd, b"more") in ("ENOTCONN", 4)  # 4: the kernel cached it
    assert outcome(os.fsync, fd) in ("ENOTCONN", "EIO")
    outcome(os.close, fd)
    assert "the mount is in use" in own.expect_quiet("the mount is in use")
    own.start()
    assert (own.mount / "file").read_bytes() == b"written"


def test_stopping_through_the_socket(own):
    (own.mount / "file").write_bytes(b"x" * MIB)
    own.client.post("/v1/stop", {}, 10.0)
    assert own.wait() == 0
    assert not is_mounted(own.mount)
    own.start()
    assert (own.mount / "file").stat().st_size == MIB


def test_unmounting_ends_the_daemon(own):
    (own.mount / "file").write_bytes(b"x" * MIB)
    run("umount" if os.geteuid() == 0 else "fusermount3", *["-u"][os.geteuid() == 0 :], own.mount)
    assert own.wait() == 0
    own.start()
    assert (own.mount / "file").read_bytes() == b"x" * MIB


def test_a_killed_daemon_leaves_an_answering_mount_and_is_replaced(own):
    (own.mount / "file").write_bytes(b"x")
    own.flush()
    own.kill()
    with fails(errno.ENOTCONN):
        os.stat(own.mount / "missing")
    os.stat(own.mount)  # from the kernel's cache: the mount looks alive
    own.start()
    assert (own.mount / "file").read_bytes() == b"x"
    assert "clearing a dead mount" in own.expect_quiet("clearing a dead mount")


def test_a_second_daemon_on_the_same_state_is_refused(own, new_daemon):
    (own.mount / "file").write_bytes(b"x")
    second = new_daemon(state=own.state)
    with pytest.raises(DaemonEnded, match=str(own.state)):
        second.start()
    assert not is_mounted(second.mount)
    assert (own.mount / "file").read_bytes() == b"x"


def test_a_mount_point_that_is_not_empty_is_refused(new_daemon):
    daemon = new_daemon()
    (daemon.mount / "precious").write_text("kept")
    with pytest.raises(DaemonEnded, match="not empty"):
        daemon.start()
    assert (daemon.mount / "precious").read_text() == "kept"


def test_a_mount_point_that_is_mounted_is_refused(own, new_daemon):
    second = new_daemon()
    second.mount.rmdir()
    second.mount = own.mount
    with pytest.raises(DaemonEnded, match="mounted already"):
        second.start()
    second.mount = second.folder / "mnt"
    (own.mount / "file").touch()


@pytest.mark.parametrize("place", ["missing", "file", "around the state"])
def test_wrong_mount_points_are_named(new_daemon, place):
    daemon = new_daemon()
    if place == "missing":
        daemon.mount.rmdir()
    elif place == "file":
        daemon.mount.rmdir()
        daemon.mount.write_text("x")
    else:
        daemon.state = daemon.mount / "state"
    with pytest.raises(DaemonEnded, match=str(daemon.mount)):
        daemon.start()
    assert not is_mounted(daemon.mount)


AS_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")


@pytest.fixture
def user_prefix(workplace):
    """Starts a command as nobody, who may use /dev/fuse: where the machine does not allow it, in a
    mount namespace.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    python = [*AS_USER, sys.executable, "-c", "import ghostd.main"]
    if subprocess.run(
        python, cwd=Path(__file__).parents[2], capture_output=True, check=False
    ).returncode:
        pytest.skip("other users may not run this Python")
    device = workplace / "fuse"
    os.mknod(device, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    device.chmod(0o666)
    yield (
        *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
        'mount --bind "$0" /dev/fuse && exec "$@"',
        str(device),
        *AS_USER,
    )
    device.unlink()


def test_an_ordinary_user_mounts(user_prefix, new_daemon):
    """Through fusermount3, with the user's own folders; the user uses it, root cannot look in."""
    daemon = new_daemon(prefix=user_prefix)
    for path in (daemon.folder, daemon.mount, daemon.log):
        os.chown(path, 65_534, 65_534)
    script = (
        'cd "$1" && echo hello > a && ln a b && mkdir d && mv a d/ && cat d/a b && id -u && '
        "stat -c %u b && ! touch /etc/orbit-was-here 2>&1"
    )
    daemon.start()
    inside = ("nsenter", f"--target={daemon.pid}", "--mount")
    output = run(*inside, *AS_USER, "sh", "-c", script, "sh", daemon.mount).split()
    assert output[:4] == ["hello", "hello", "65534", "65534"]
    assert "Permission denied" in run(*inside, "ls", daemon.mount, codes=(2,))
    daemon.stop()
    daemon.start()
    inside = ("nsenter", f"--target={daemon.pid}", "--mount")
    assert run(*inside, *AS_USER, "cat", daemon.mount / "b") == "hello\n"
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    daemon.start()
    inside = ("nsenter", f"--target={daemon.pid}", "--mount")
    assert run(*inside, *AS_USER, "cat", daemon.mount / "b") == "hello\n"
    daemon.stop()
    daemon.expect_quiet()


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(workplace):
    """A tmpfs of 160 MiB for a state folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = workplace / f"small{time.monotonic_ns()}"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=160m", "none", folder)
    yield folder
    run("umount", "-l", folder)
    folder.rmdir()


def put(path: Path, content: bytes) -> None:
    """Write a file and fsync it."""
    with path.open("wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def fill(folder: Path, rng: random.Random, size: int) -> dict[Path, bytes]:
    """Write and fsync random files until the disk is full; what was acknowledged."""
    kept: dict[Path, bytes] = {}
    for number in range(5000):
        path, content = folder / f"{number}", rng.randbytes(size)
        refused = outcome(put, path, content)
        if refused:
            assert refused == "ENOSPC"
            return kept
        kept[path] = content
    raise AssertionError("it never became full")


@pytest.mark.parametrize("size", [4 * MIB, 70_000])
def test_a_full_disk_refuses_writers_and_loses_nothing(small_disk, new_daemon, size):
    daemon = new_daemon(state=small_disk / "state", config='[write]\nreserve_bytes = "8 MiB"\n')
    daemon.start()
    folder = daemon.mount / "files"
    folder.mkdir()
    rng = random.Random(size)
    kept = fill(folder, rng, size)
    assert sum(map(len, kept.values())) > 60 * MIB
    for path, content in kept.items():
        assert path.read_bytes() == content
    statfs = os.statvfs(daemon.mount)
    assert statfs.f_bavail * statfs.f_frsize <= 10 * MIB
    assert outcome((folder / "another").write_bytes, b"x" * 30 * MIB) == "ENOSPC"
    daemon.crash()
    for path, content in kept.items():
        assert path.read_bytes() == content
    # Deleting works on a full disk, and makes room once the packs have been collected.
    for path in kept:
        path.unlink()
    assert daemon.collect()["bytes_freed"] > 50 * MIB
    kept = {folder / "another": rng.randbytes(20 * MIB)}
    (folder / "another").write_bytes(kept[folder / "another"])
    daemon.check_clean(data=True)
    daemon.restart()
    for path, content in kept.items():
        assert path.read_bytes() == content
    daemon.stop()


# What is live in a pack has to fit into the reserve, as it does with the defaults of both.
SMALL_PACKS = '[write]\nreserve_bytes = "8 MiB"\n[store]\npack_bytes_max = "4 MiB"\n'


def test_scattered_deletions_make_room_on_a_full_disk(small_disk, new_daemon):
    daemon = new_daemon(state=small_disk / "state", config=SMALL_PACKS)
    daemon.start()
    kept = fill(daemon.mount, random.Random(1), 4 * MIB)
    for path in list(kept)[::2]:
        path.unlink()
        del kept[path]
    assert daemon.collect()["bytes_freed"] > 40 * MIB
    for path, content in kept.items():
        assert path.read_bytes() == content


def test_a_disk_that_others_fill_and_empty(small_disk, new_daemon):
    """Writers get ENOSPC while the disk is full; the daemon lives, and takes writes when space
    returns.
    """
    daemon = new_daemon(state=small_disk / "state", config='[write]\nreserve_bytes = "8 MiB"\n')
    daemon.start()
    (daemon.mount / "before").write_bytes(b"before" * 1000)
    daemon.flush()
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        space = os.statvfs(small_disk)
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)
    for number in range(20):
        assert outcome(put, daemon.mount / f"during{number}", os.urandom(200_000)) == "ENOSPC"
    assert (daemon.mount / "before").read_bytes() == b"before" * 1000
    assert daemon.status()["state"] == "ready"
    ballast.unlink()
    deadline = time.monotonic() + 30
    while outcome((daemon.mount / "after").write_bytes, b"after") == "ENOSPC":
        assert time.monotonic() < deadline, "the space never came back"
    daemon.flush()
    daemon.check_clean(data=True)
    daemon.crash()
    assert (daemon.mount / "before").read_bytes() == b"before" * 1000
    assert (daemon.mount / "after").read_bytes() == b"after"
    daemon.stop()


# --- flipped bytes -------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 0x10]))


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_give_errors_never_wrong_bytes(own, seed):
    rng = random.Random(seed)
    files = {f"{number}": rng.randbytes(rng.randrange(1, 600_000)) for number in range(60)}
    for name, content in files.items():
        (own.mount / name).write_bytes(content)
    own.stop()
    own.expect_quiet()
    packs = sorted((own.state / "packs").iterdir(), key=lambda path: -path.stat().st_size)
    for _ in range(8):
        flip(packs[0], rng.randrange(200, packs[0].stat().st_size))
    own.start()
    damaged = set()
    for name, content in files.items():
        found = outcome((own.mount / name).read_bytes)
        if found != content:
            assert found == "EIO"
            damaged.add(name)
    report = own.check(data=True)
    # A flipped byte may lie between the records, where it damages no file.
    assert damaged <= set(report["damaged_files"])
    for name in set(files) - set(report["damaged_files"]):
        assert (own.mount / name).read_bytes() == files[name]
    assert len(report["damaged_files"]) <= 8
    assert (damaged == set()) or not report["ok"]
    # The rest keeps working, and what is written again is whole.
    for name in report["damaged_files"]:
        (own.mount / name).write_bytes(files[name])
    own.flush()
    for name, content in files.items():
        assert (own.mount / name).read_bytes() == content
    own.restart()
    for name, content in files.items():
        assert (own.mount / name).read_bytes() == content
    own.news()  # it has logged every damaged read


def test_a_flipped_byte_in_every_chunk_is_found(own):
    content = os.urandom(20 * MIB)
    (own.mount / "file").write_bytes(content)
    (own.mount / "other").write_bytes(b"small and in the same pack" * 10)
    own.stop()
    pack = max((own.state / "packs").iterdir(), key=lambda path: path.stat().st_size)
    for position in range(5_000, 19 * MIB, 8_192):
        flip(pack, position)
    own.start()
    with fails(errno.EIO):
        (own.mount / "file").read_bytes()
    report = own.check(data=True)
    assert not report["ok"]
    assert report["damaged_files"] == ["file"]
    own.news()


# --- lost databases ------------------------------------------------------------------------------


@pytest.fixture
def filled(own):
    """A daemon with some files in it, and what is in them."""
    rng = random.Random(1)
    contents = {}
    for folder in ("a", "b"):
        (own.mount / folder).mkdir()
        for number in range(20):
            name = f"{folder}/{number}"
            contents[name] = rng.randbytes(rng.randrange(300_000))
            (own.mount / name).write_bytes(contents[name])
    return own, contents


def assert_contents(daemon, contents):
    """All files have their content, and nothing is wrong."""
    for name, content in contents.items():
        assert (daemon.mount / name).read_bytes() == content
    daemon.check_clean(data=True)


@pytest.mark.parametrize("how", ["removed", "garbage", "truncated", "middle"])
@pytest.mark.parametrize("after", ["stop", "kill"])
def test_a_lost_chunk_index_is_rebuilt(filled, how, after):
    own, contents = filled
    own.flush()
    own.stop() if after == "stop" else own.kill()
    wreck(own.state / "chunks.db", how)
    own.start()
    assert_contents(own, contents)
    own.news()


def wreck(path: Path, how: str) -> None:
    """Damage a database: the file and its log."""
    for part in path.parent.glob(f"{path.name}-*"):
        part.unlink()
    if how == "removed":
        path.unlink()
    elif how == "garbage":
        path.write_bytes(os.urandom(50_000))
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 3)
            file.write(os.urandom(size // 3))


@pytest.mark.parametrize("how", ["removed", "garbage", "truncated"])
def test_a_lost_namespace_is_named_and_recovered(filled, how):
    own, contents = filled
    own.stop()  # the last thing it did was to put a copy of the namespace into the packs
    own.expect_quiet()
    wreck(own.state / "namespace.db", how)
    with pytest.raises(DaemonEnded, match="ghostd --recover"):
        own.start()
    assert not is_mounted(own.mount)
    output = run(*own.command(), "--recover", cwd=Path(__file__).parents[2])
    assert "the namespace is back" in output
    own.start()
    assert_contents(own, contents)
    assert sorted(os.listdir(own.mount)) == ["a", "b"]
    own.news()


def test_recovery_needs_neither_database(filled):
    own, contents = filled
    own.stop()
    for path in own.state.glob("*.db*"):
        path.unlink()
    run(*own.command(), "--recover", cwd=Path(__file__).parents[2])
    own.start()
    assert_contents(own, contents)
    own.news()
