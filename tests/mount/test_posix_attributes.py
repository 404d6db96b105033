"""chmod, chown, times: what they change, who may, and which operations move which time."""

import errno
import itertools
import os
import stat

import pytest

from tests.mount.posix import (
    GROUP,
    KINDS,
    OTHER_GROUP,
    OTHER_USER,
    USER,
    as_user,
    fails,
    later_than,
    make_node,
    needs_root,
    permission_bits,
)

pytestmark = needs_root
BITS = (0o7777, 0o6755, 0o4711, 0o2771, 0o1777, 0o644, 0)


# --- chmod ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "symlink"])
def test_chmod_sets_all_twelve_bits(here, kind):
    path = here / "node"
    make_node(kind, path)
    for mode in BITS:
        before = path.stat()
        later_than(here, before.st_ctime_ns)
        path.chmod(mode)
        after = path.stat()
        assert stat.S_IMODE(after.st_mode) == mode
        assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode)
        assert after.st_ctime_ns > before.st_ctime_ns
        assert after.st_mtime_ns == before.st_mtime_ns


def test_chmod_is_for_the_owner(here):
    (here / "file").touch()
    os.chown(here / "file", OTHER_USER, GROUP)
    with fails(errno.EPERM):
        as_user(USER, os.chmod, here / "file", 0o777)
    as_user(OTHER_USER, os.chmod, here / "file", 0o600)
    assert permission_bits(here / "file") == 0o600


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_setgid_is_for_members_of_the_group(here, kind):
    make_node(kind, here / "node")
    os.chown(here / "node", USER, GROUP)
    as_user(USER, os.chmod, here / "node", 0o2755, gid=OTHER_GROUP)
    assert permission_bits(here / "node") == 0o755
    as_user(USER, os.chmod, here / "node", 0o2755, gid=OTHER_GROUP, groups=[GROUP])
    assert permission_bits(here / "node") == 0o2755


# --- chown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_chown_sets_owner_and_group(here, kind):
    path = here / "node"
    make_node(kind, path)
    for uid, gid in ((USER, GROUP), (-1, OTHER_GROUP), (OTHER_USER, -1), (-1, -1), (0, 0)):
        before = path.lstat()
        later_than(here, before.st_ctime_ns)
        os.lchown(path, uid, gid)
        after = path.lstat()
        assert after.st_uid == (before.st_uid if uid == -1 else uid)
        assert after.st_gid == (before.st_gid if gid == -1 else gid)
        assert after.st_ctime_ns > before.st_ctime_ns
    os.lchown(path, 4_294_967_294, 4_294_967_294)
    assert path.lstat().st_uid == path.lstat().st_gid == 4_294_967_294


def test_chown_follows_symlinks_and_lchown_does_not(here):
    (here / "file").touch()
    (here / "link").symlink_to("file")
    os.chown(here / "link", USER, GROUP)
    assert (here / "file").stat().st_uid == USER
    assert (here / "link").lstat().st_uid == 0
    os.lchown(here / "link", OTHER_USER, -1)
    assert (here / "file").stat().st_uid == USER
    assert (here / "link").lstat().st_uid == OTHER_USER


def test_chown_by_users(here):
    (here / "file").touch()
    os.chown(here / "file", USER, OTHER_GROUP)
    with fails(errno.EPERM):
        as_user(USER, os.chown, here / "file", OTHER_USER, -1)
    with fails(errno.EPERM):
        as_user(USER, os.chown, here / "file", -1, GROUP)
    with fails(errno.EPERM):
        as_user(OTHER_USER, os.chown, here / "file", -1, OTHER_USER)
    as_user(USER, os.chown, here / "file", -1, GROUP, groups=[GROUP])
    assert (here / "file").stat().st_gid == GROUP
    as_user(USER, os.chown, here / "file", USER, GROUP, groups=[GROUP])


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("by", [0, USER])
@pytest.mark.parametrize("mode", [0o6555, 0o6755, 0o2745, 0o4711, 0o6644])
def test_chown_takes_setuid_and_setgid(here, mode, by, kind):
    """From files always; the group's bit stays where the group may not execute; directories keep
    theirs.
    """
    make_node(kind, here / "node")
    os.chown(here / "node", USER, OTHER_GROUP)
    os.chmod(here / "node", mode)
    if by == 0:
        os.chown(here / "node", OTHER_USER, GROUP)
    else:
        as_user(USER, os.chown, here / "node", -1, GROUP, groups=[GROUP, OTHER_GROUP])
    kept = mode & 0o1777
    if mode & stat.S_ISGID and not mode & stat.S_IXGRP:
        kept |= stat.S_ISGID
    assert permission_bits(here / "node") == (mode if kind == "directory" else kept)


@pytest.mark.parametrize("change", ["write", "truncate", "ftruncate", "append"])
@pytest.mark.parametrize("by", [0, USER, OTHER_USER])
@pytest.mark.parametrize("mode", [0o6777, 0o4777, 0o2777, 0o1777])
def test_changing_content_takes_setuid_and_setgid(here, mode, by, change):
    path = here / "file"
    path.write_bytes(b"content")
    os.chown(path, USER, GROUP)
    path.chmod(mode)

    def do():
        if change == "truncate":
            os.truncate(path, 3)
            return
        fd = os.open(path, os.O_WRONLY | (os.O_APPEND if change == "append" else 0))
        if change == "ftruncate":
            os.ftruncate(fd, 3)
        else:
            os.write(fd, b"new")
        os.close(fd)

    as_user(by, do)
    assert permission_bits(path) == (mode if by == 0 else mode & 0o1777)


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_kept_to_the_nanosecond(here, kind):
    path = here / "node"
    make_node(kind, path)
    for atime, mtime in (
        (1, 2),
        (1_234_567_890_123_456_789, 987_654_321_987_654_321),
        (2**32 * 10**9 + 7, 2**33 * 10**9 + 999_999_999),
        (0, 0),
        (-1_000_000_001, -2_147_483_648 * 10**9),
    ):
        os.utime(path, ns=(atime, mtime), follow_symlinks=False)
        found = path.lstat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (atime, mtime)


def test_utimensat_now_and_omit(here):
    path = here / "file"
    path.touch()
    os.utime(path, ns=(1, 2))
    before = path.stat()
    later_than(here, before.st_ctime_ns)
    os.utime(path)
    after = path.stat()
    assert after.st_atime_ns == after.st_mtime_ns >= before.st_ctime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_who_may_set_times(here):
    path = here / "file"
    path.touch()
    os.chown(path, OTHER_USER, GROUP)
    path.chmod(0o644)
    with fails(errno.EACCES):
        as_user(USER, os.utime, path)
    with fails(errno.EPERM):
        as_user(USER, lambda: os.utime(path, ns=(1, 1)))
    path.chmod(0o666)
    as_user(USER, os.utime, path)
    with fails(errno.EPERM):
        as_user(USER, lambda: os.utime(path, ns=(1, 1)))
    as_user(OTHER_USER, lambda: os.utime(path, ns=(1, 1)))


def _write(path):
    with path.open("r+b", buffering=0) as file:
        file.write(b"new")


# What each operation on `node` in `folder` does to (mtime, ctime) of the node and of the folder.
# m: moves, -: stays, ?: the node is gone.
MOVED = {
    "chmod": (lambda p: p.chmod(0o600), "-m", "--"),
    "chown": (lambda p: os.chown(p, USER, GROUP), "-m", "--"),
    "utime": (lambda p: os.utime(p, ns=(5, p.stat().st_mtime_ns)), "-m", "--"),
    "link": (lambda p: os.link(p, p.parent / "link"), "-m", "mm"),
    "unlink": (lambda p: p.unlink(), "??", "mm"),
    "rename": (lambda p: p.rename(p.parent / "moved"), "-m", "mm"),
    "write": (_write, "mm", "--"),
    "truncate_less": (lambda p: os.truncate(p, 2), "mm", "--"),
    "truncate_more": (lambda p: os.truncate(p, 20), "mm", "--"),
    "truncate_same": (lambda p: os.truncate(p, 7), "mm", "--"),
    "open_trunc": (lambda p: p.open("wb").close(), "mm", "--"),
    "setxattr": (lambda p: os.setxattr(p, b"user.a", b"b"), "-m", "--"),
    "read": (lambda p: p.read_bytes(), "--", "--"),
    "stat": (lambda p: p.stat(), "--", "--"),
    "open_create": (lambda p: p.open("ab").close(), "--", "--"),
    "create_beside": (lambda p: (p.parent / "other").touch(), "--", "mm"),
    "mkdir_beside": (lambda p: (p.parent / "other").mkdir(), "--", "mm"),
    "symlink_beside": (lambda p: (p.parent / "other").symlink_to("x"), "--", "mm"),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("size", [0, 7])
def test_which_operation_moves_which_time(here, name, size):
    call, of_node, of_folder = MOVED[name]
    folder = here / "folder"
    folder.mkdir()
    path = folder / "node"
    path.write_bytes(b"content"[:size])
    if name == "truncate_same" and size == 7 and "mnt" in here.parts:
        of_node = "--"  # the kernel takes no notice of it on FUSE with write-back caching
    fd = os.open(path, os.O_RDONLY)
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    before, folder_before = os.fstat(fd), folder.stat()
    later_than(here, before.st_ctime_ns)
    call(path)
    after, folder_after = os.fstat(fd), folder.stat()
    os.close(fd)
    if of_node != "??":
        assert _moved(before, after) == of_node
    assert _moved(folder_before, folder_after) == of_folder


def _moved(before, after):
    assert after.st_mtime_ns >= before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns
    return "".join(
        "m" if getattr(after, name) > getattr(before, name) else "-"
        for name in ("st_mtime_ns", "st_ctime_ns")
    )


def test_relatime(here):
    path = here / "file"
    path.write_bytes(b"x")
    old = 1_000_000_000_000_000_000
    for atime, mtime, moves in (
        (old, old + 1, True),  # read for the first time since it was changed
        (path.stat().st_ctime_ns + 10**15, old, False),  # later than both, in the future
    ):
        os.utime(path, ns=(atime, mtime))
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            # What lies in the kernel's cache is read without asking the daemon, and moves nothing.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read()
        assert (path.stat().st_atime_ns != atime) == moves


def test_times_survive_the_write_back_cache(shared, mnt):
    """The kernel keeps the times of written files for itself: they must arrive, and stay."""
    files = [mnt / f"{number}" for number in range(300)]
    for path in files:
        path.write_bytes(b"x" * 10_000)
    for path in files[::2]:
        with path.open("ab") as file:
            file.write(b"more")
    os.utime(files[0], ns=(123, 456))
    found = [(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in files]
    shared.restart()
    assert found == [(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in files]
    assert (files[0].stat().st_atime_ns, files[0].stat().st_mtime_ns) == (123, 456)


# --- access --------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["owner", "group", "other"])
def test_only_the_class_of_the_caller_counts(here, who):
    path = here / "file"
    path.write_bytes(b"x")
    os.chown(path, USER, GROUP)
    shift = {"owner": 6, "group": 3, "other": 0}[who]
    uid, groups = {
        "owner": (USER, [GROUP]),
        "group": (OTHER_USER, [GROUP]),
        "other": (OTHER_USER, []),
    }[who]
    for bits, others in itertools.product(range(8), (0, 7)):
        mode = 0o111 * others & ~(7 << shift) | bits << shift
        path.chmod(mode)

        def try_all():
            found = 0
            for flag, bit in ((os.O_RDONLY, 4), (os.O_WRONLY, 2)):
                try:
                    os.close(os.open(path, flag))
                    found |= bit
                except PermissionError:
                    pass
            return found | os.access(path, os.X_OK)

        assert as_user(uid, try_all, groups=groups) == bits
