"""Content: reading, writing, truncating, sparse files, maps, flags and locks."""

import errno
import faulthandler
import fcntl
import mmap
import os
import random
import signal
import stat
import struct
import subprocess

import pytest

from tests.mount.harness import run
from tests.mount.posix import USER, as_user, fails, make_node, needs_root, outcome

SIZE_MAX = (1 << 63) - 1
MIB = 1 << 20


# --- open ----------------------------------------------------------------------------------------


def test_open_flags(here):
    path = here / "file"
    path.write_bytes(b"content")
    with fails(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with fails(errno.EISDIR):
        os.open(here, os.O_WRONLY)
    with fails(errno.EISDIR):
        os.open(here, os.O_RDONLY | os.O_CREAT)
    with fails(errno.ENOTDIR):
        os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    (here / "link").symlink_to("file")
    with fails(errno.ELOOP):
        os.open(here / "link", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.EEXIST):
        os.open(here / "link", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (here / "dangling").symlink_to("target")
    with fails(errno.EEXIST):
        os.open(here / "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(here / "dangling", os.O_CREAT | os.O_WRONLY))
    assert (here / "target").exists()
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    for kind in ("fifo", "socket"):
        make_node(kind, here / kind)
    with fails(errno.ENXIO):
        os.open(here / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    with fails(errno.ENXIO):
        os.open(here / "socket", os.O_RDONLY)


def test_descriptors_do_what_they_were_opened_for(here):
    (here / "file").write_bytes(b"content")
    reading = os.open(here / "file", os.O_RDONLY)
    writing = os.open(here / "file", os.O_WRONLY)
    with fails(errno.EBADF):
        os.write(reading, b"x")
    with fails(errno.EBADF):
        os.read(writing, 1)
    with fails(errno.EINVAL):
        os.ftruncate(reading, 0)
    folder = os.open(here, os.O_RDONLY)
    with fails(errno.EISDIR):
        os.read(folder, 1)
    for fd in (reading, writing, folder):
        os.close(fd)


@needs_root
def test_a_running_program_is_not_written(here):
    path = here / "program"
    path.write_bytes(b"#!/bin/sh\n")
    run("cp", "/bin/sleep", path)
    path.chmod(0o755)
    with subprocess.Popen([path, "600"]) as process:
        # The exec has happened once the kernel shows the program's name.
        while os.path.basename(os.readlink(f"/proc/{process.pid}/exe")) != "program":
            pass
        with fails(errno.ETXTBSY):
            os.open(path, os.O_WRONLY)
        with fails(errno.ETXTBSY):
            os.truncate(path, 0)
        process.kill()
    with path.open("r+b") as file:
        file.write(b"x")
        assert outcome(subprocess.run, [path]) == "ETXTBSY"


# --- reading and writing -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_random_writes_and_truncations_against_bytes_in_memory(here, seed):
    """The file's content equals a model in memory after every step, through several descriptors."""
    rng = random.Random(seed)
    model = bytearray()
    path = here / "file"
    limit = 9 * MIB if seed % 2 else 100_000
    with path.open("w+b", buffering=0) as one, path.open("r+b", buffering=0) as two:
        for _ in range(150):
            file = rng.choice((one, two))
            offset = rng.choice((rng.randrange(limit), len(model)))
            length = rng.choice((1, 100, 4_096, 70_000, limit // 8))
            if rng.random() < 0.7:
                data = rng.randbytes(length)
                os.pwrite(file.fileno(), data, offset)
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + length] = data
            else:
                os.ftruncate(file.fileno(), offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            if rng.random() < 0.1:
                os.fsync(file.fileno())
            start = rng.randrange(len(model) + 1)
            assert os.pread(two.fileno(), 50_000, start) == model[start : start + 50_000]
        assert path.read_bytes() == model


def test_reading_at_and_beyond_the_end(here):
    (here / "file").write_bytes(b"12345")
    fd = os.open(here / "file", os.O_RDONLY)
    assert os.pread(fd, 10, 3) == b"45"
    assert os.pread(fd, 10, 5) == b""
    assert os.pread(fd, 10, SIZE_MAX - 10) == b""
    with fails(errno.EINVAL):
        os.pread(fd, 10, -1)
    os.close(fd)


def test_an_interrupted_append_is_whole(here):
    """O_APPEND: processes that append lines at the same time never overwrite or split one."""
    script = (
        "import os, sys\n"
        "name = sys.argv[2].encode()\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for number in range(1000):\n"
        "    os.write(fd, b'%s %06d %s\\n' % (name, number, b'.' * (number % 99)))\n"
    )
    path = here / "log"
    writers = [
        subprocess.Popen(["python3", "-c", script, path, f"writer{number}"]) for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = path.read_bytes().splitlines()
    assert len(lines) == 4000
    expected = {
        b"writer%d %06d %s" % (w, n, b"." * (n % 99)) for w in range(4) for n in range(1000)
    }
    assert set(lines) == expected


def test_append_ignores_the_offset_and_sees_truncation(here):
    fd = os.open(here / "file", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"abc")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"def")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 6
    os.truncate(here / "file", 2)
    os.write(fd, b"X")
    os.close(fd)
    assert (here / "file").read_bytes() == b"abX"


@pytest.mark.parametrize("flag", ["O_DIRECT", "O_SYNC", "O_DSYNC"])
def test_direct_and_synchronous_writes(here, flag):
    buffer = mmap.mmap(-1, 16_384)
    buffer[:] = os.urandom(16_384)
    content = buffer[:]
    fd = os.open(here / "file", os.O_RDWR | os.O_CREAT | getattr(os, flag))
    assert os.writev(fd, [buffer]) == 16_384
    assert os.pwritev(fd, [buffer], 32_768) == 16_384
    assert (here / "file").read_bytes() == content + bytes(16_384) + content
    assert os.preadv(fd, [buffer], 16_384) == 16_384
    assert buffer[:] == bytes(16_384)
    os.close(fd)
    buffer.close()


def test_direct_and_buffered_descriptors_see_each_other(here):
    buffer = mmap.mmap(-1, 4_096)
    direct = os.open(here / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with (here / "file").open("r+b", buffering=0) as file:
        for number in range(50):
            buffer[:] = bytes([number]) * 4_096
            os.pwritev(direct, [buffer], 4_096 * number)
            assert os.pread(file.fileno(), 4_096, 4_096 * number) == buffer[:]
            os.pwrite(file.fileno(), b"buffered", 4_096 * number)
            os.preadv(direct, [buffer], 4_096 * number)
            assert buffer[:8] == b"buffered"
    os.close(direct)
    buffer.close()


# --- sizes ---------------------------------------------------------------------------------------


@needs_root
def test_truncate_is_refused(here):
    make_node("file", here / "file")
    with fails(errno.EISDIR):
        os.truncate(here, 0)
    with fails(errno.EINVAL):
        os.truncate(here / "file", -1)
    make_node("fifo", here / "fifo")
    with fails(errno.EINVAL):
        os.truncate(here / "fifo", 0)
    with fails(errno.EACCES):
        as_user(USER, os.truncate, here / "file", 0)


def test_the_file_size_limit_of_a_process(here):
    path = here / "file"

    def write():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        path.write_bytes(b"x" * 10_000)
        with fails(errno.EFBIG):
            os.truncate(path, 10_001)
        with path.open("ab") as file, fails(errno.EFBIG):
            os.write(file.fileno(), b"x")

    as_user(os.getuid(), write, gid=os.getgid())
    assert path.stat().st_size == 10_000


def test_files_of_8_eib(mnt):
    path = mnt / "file"
    path.touch()
    os.truncate(path, SIZE_MAX)
    assert path.stat().st_size == SIZE_MAX
    assert path.stat().st_blocks == 0
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", SIZE_MAX - 4_096)
        assert os.pread(file.fileno(), 8_192, SIZE_MAX - 8_192) == bytes(4_096) + b"end" + bytes(
            4_093
        )
        with fails(errno.EFBIG, errno.EINVAL):
            os.pwrite(file.fileno(), b"x", SIZE_MAX)
    run("truncate", "-s", "999999999999999", mnt / "other")
    assert path.stat().st_blocks <= 16
    path.unlink()
    (mnt / "other").unlink()


def test_holes_cost_nothing(shared, mnt):
    before = shared.state_bytes()
    with (mnt / "file").open("wb", buffering=0) as file:
        for number in range(100):
            os.pwrite(file.fileno(), b"data", number << 40)
        file.truncate(1 << 50)
        os.fsync(file.fileno())
    found = (mnt / "file").stat()
    assert found.st_size == 1 << 50
    assert found.st_blocks * 512 <= 100 * 4_096
    shared.flush()
    assert shared.state_bytes() - before < 2 * MIB
    with (mnt / "file").open("rb", buffering=0) as file:
        for number in range(100):
            assert os.pread(file.fileno(), 8, (number << 40) - 2 if number else 0)[:8] == (
                b"\0\0data\0\0" if number else b"data\0\0\0\0"
            )


def test_seek_data_and_hole_name_no_data_a_hole(here):
    """Whatever SEEK_DATA skips is zeros; SEEK_HOLE never ends behind the file's end."""
    with (here / "file").open("w+b", buffering=0) as file:
        fd = file.fileno()
        for number in range(5):
            os.pwrite(fd, b"x" * 65_536, number * MIB)
        os.ftruncate(fd, 6 * MIB)
        os.fsync(fd)
        position, data = 0, b""
        while position < 6 * MIB:
            start = outcome(os.lseek, fd, position, os.SEEK_DATA)
            if start == "ENXIO":
                break
            assert start >= position
            data += bytes(start - position)
            position = os.lseek(fd, start, os.SEEK_HOLE)
            assert start < position <= 6 * MIB
            data += os.pread(fd, position - start, start)
        data += bytes(6 * MIB - position)
        assert data == (here / "file").read_bytes()
        with fails(errno.ENXIO):
            os.lseek(fd, 6 * MIB, os.SEEK_DATA)
        with fails(errno.ENXIO):
            os.lseek(fd, 6 * MIB, os.SEEK_HOLE)


def test_posix_fallocate(here):
    with (here / "file").open("w+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
        assert (here / "file").stat().st_size == 100_000
        os.pwrite(file.fileno(), b"x", 50_000)
        os.posix_fallocate(file.fileno(), 40_000, 200_000)
        assert (here / "file").read_bytes() == bytes(50_000) + b"x" + bytes(189_999)
        with fails(errno.EINVAL):
            os.posix_fallocate(file.fileno(), 0, 0)


def test_shrinking_and_growing_leaves_zeros(here):
    path = here / "file"
    for size in (10, 4_095, 4_096, 4_097, 100_000):
        path.write_bytes(b"\xff" * 200_000)
        os.truncate(path, size)
        os.truncate(path, 200_000)
        assert path.read_bytes() == b"\xff" * size + bytes(200_000 - size)


# --- maps ----------------------------------------------------------------------------------------


def test_shared_maps_and_writes_see_each_other(here):
    with (here / "file").open("w+b", buffering=0) as file:
        file.truncate(10 * 4_096)
        with mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as two:
            one[5_000:5_005] = b"hello"
            assert two[5_000:5_005] == b"hello"
            assert os.pread(file.fileno(), 5, 5_000) == b"hello"
            os.pwrite(file.fileno(), b"there", 9_000)
            assert one[9_000:9_005] == b"there"
            one.flush()
        content = (here / "file").read_bytes()
    assert content[5_000:5_005] + content[9_000:9_005] == b"hellothere"


def test_a_map_beyond_the_end_of_the_file_raises_sigbus(here):
    with (here / "file").open("w+b", buffering=0) as file:
        file.write(b"x" * 8_192)

        def touch():
            with mmap.mmap(file.fileno(), 8_192) as mapped:
                file.truncate(4_096)
                mapped[5_000] = 1

        child = os.fork()
        if child == 0:
            faulthandler.disable()
            touch()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGBUS


def test_maps_survive_a_restart(shared, mnt):
    with (mnt / "file").open("w+b", buffering=0) as file:
        file.truncate(3 * MIB)
        with mmap.mmap(file.fileno(), 0) as mapped:
            for position in range(0, 3 * MIB, 10_000):
                mapped[position : position + 4] = struct.pack("<I", position)
    shared.restart()
    content = (mnt / "file").read_bytes()
    assert len(content) == 3 * MIB
    assert all(
        content[position : position + 4] == struct.pack("<I", position)
        for position in range(0, 3 * MIB, 10_000)
    )


# --- locks, fifos, space -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks_exclude_other_processes(here, kind):
    path = here / "file"
    path.touch()
    lock = getattr(fcntl, kind)

    def try_lock(how):
        with path.open("r+b") as other:
            lock(other, how | fcntl.LOCK_NB)

    uid = os.getuid()
    with path.open("r+b") as file:
        lock(file, fcntl.LOCK_EX)
        with fails(errno.EAGAIN, errno.EACCES):
            as_user(uid, try_lock, fcntl.LOCK_EX, gid=os.getgid())
        with fails(errno.EAGAIN, errno.EACCES):
            as_user(uid, try_lock, fcntl.LOCK_SH, gid=os.getgid())
        lock(file, fcntl.LOCK_SH)
        as_user(uid, try_lock, fcntl.LOCK_SH, gid=os.getgid())
        lock(file, fcntl.LOCK_UN)
        as_user(uid, try_lock, fcntl.LOCK_EX, gid=os.getgid())


def test_a_fifo_carries_bytes(here):
    os.mkfifo(here / "fifo")
    with subprocess.Popen(["cat", here / "fifo"], stdout=subprocess.PIPE) as reader:
        (here / "fifo").write_bytes(b"through the pipe")
        assert reader.stdout is not None
        assert reader.stdout.read() == b"through the pipe"
    assert stat.S_ISFIFO((here / "fifo").stat().st_mode)


def test_statfs_tells_the_truth(shared, mnt):
    found, below = os.statvfs(mnt), os.statvfs(shared.state)
    assert found.f_namemax == 255
    assert found.f_blocks * found.f_frsize == below.f_blocks * below.f_frsize
    assert 0 < found.f_bavail * found.f_frsize <= below.f_bavail * below.f_frsize
    before = os.statvfs(mnt)
    for number in range(10):
        (mnt / f"{number}").touch()
    after = os.statvfs(mnt)
    assert (after.f_files - after.f_ffree) - (before.f_files - before.f_ffree) == 10


def test_copy_file_range_and_sendfile(here):
    content = os.urandom(300_000)
    (here / "file").write_bytes(content)
    with (here / "file").open("rb") as source, (here / "copy").open("w+b") as target:
        copied = 0
        while copied < len(content):
            copied += os.copy_file_range(source.fileno(), target.fileno(), len(content) - copied)
    assert (here / "copy").read_bytes() == content
    with (here / "file").open("rb") as source, (here / "sent").open("w+b") as target:
        while os.sendfile(target.fileno(), source.fileno(), None, 1 << 20):
            pass
    assert (here / "sent").read_bytes() == content


def test_inode_numbers_are_stable(shared, mnt):
    for number in range(100):
        (mnt / f"{number}").touch()
    before = {entry.name: entry.inode() for entry in os.scandir(mnt)}
    assert before == {name: (mnt / name).stat().st_ino for name in before}
    shared.restart()
    assert before == {entry.name: entry.inode() for entry in os.scandir(mnt)}
