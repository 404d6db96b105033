"""Every call that takes a path, against every way in which a path can be wrong.

Each test runs on the machine's own filesystem too: the expectations are its behaviour, not our
memory of it.
"""

import errno
import os
from pathlib import Path

import pytest

from tests.mount.posix import KINDS, as_user, fails, make_node, needs_root

# Calls on something that must exist. `path.parent` of the arguments may be wrong, so nothing else
# is touched.
NEEDING = {
    "access": lambda path: os.stat(path, follow_symlinks=False),
    "chmod": lambda path: os.chmod(path, 0o700),
    "chown": lambda path: os.chown(path, -1, -1),
    "listxattr": os.listxattr,
    "lchown": lambda path: os.lchown(path, -1, -1),
    "link_from": lambda path: os.link(path, b"/proc/self/nowhere", follow_symlinks=False),
    "lstat": os.lstat,
    "open": lambda path: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)),
    "opendir": os.listdir,
    "readlink": os.readlink,
    "rename_from": lambda path: os.rename(path, os.path.dirname(path) + b"/to"),
    "rmdir": os.rmdir,
    "setxattr": lambda path: os.setxattr(path, b"user.a", b"b"),
    "stat": os.stat,
    "statvfs": os.statvfs,
    "truncate": lambda path: os.truncate(path, 10),
    "unlink": os.unlink,
    "utime": lambda path: os.utime(path, ns=(1, 2)),
}
# Calls that make a new name.
MAKING = {
    "create": lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
    "link": lambda path: os.link(_root(path) + b"/file", path),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "rename_to": lambda path: os.rename(_root(path) + b"/file", path),
    "symlink": lambda path: os.symlink(b"target", path),
}
ALL = {**NEEDING, **MAKING}


def _root(path: bytes) -> bytes:
    """The test's own folder: what lies before the mark."""
    return path.split(b"/@/")[0]


@pytest.fixture
def folder(here):
    """A folder with a file, a subfolder and symlinks that lead in a circle."""
    (here / "file").write_bytes(b"x")
    (here / "@").mkdir()
    (here / "@" / "file").write_bytes(b"x")
    (here / "@" / "loop").symlink_to("loop")
    (here / "@" / "ping").symlink_to("pong")
    (here / "@" / "pong").symlink_to("ping")
    return os.fsencode(here) + b"/@/"


def _calls(table):
    return pytest.mark.parametrize("call", [pytest.param(table[n], id=n) for n in sorted(table)])


@_calls(ALL)
def test_a_file_is_no_directory(folder, call):
    with fails(errno.ENOTDIR):
        call(folder + b"file/x")


@_calls(ALL)
def test_a_component_is_missing(folder, call):
    with fails(errno.ENOENT):
        call(folder + b"missing/x")


@_calls(ALL)
def test_components_lead_in_a_circle(folder, call):
    for name in (b"loop/x", b"ping/x"):
        with fails(errno.ELOOP):
            call(folder + name)


@_calls(ALL)
def test_a_name_has_256_bytes(folder, call):
    with fails(errno.ENAMETOOLONG):
        call(folder + b"n" * 256)
    with fails(errno.ENAMETOOLONG):
        call(folder + b"n" * 256 + b"/x")


@_calls(ALL)
def test_a_path_has_4096_bytes(folder, call):
    path = folder + b"./" * 2048
    with fails(errno.ENAMETOOLONG):
        call(path[:4095] + b"x")


@_calls(NEEDING)
def test_the_last_component_is_missing(folder, call):
    with fails(errno.ENOENT):
        call(folder + b"missing")
    with fails(errno.ENOENT):
        call(folder + b"n" * 255)


@_calls(MAKING)
def test_names_of_255_bytes_are_made(folder, call):
    name = b"\x01\xff\xfe\x80" + b"n" * 251
    call(folder + name)
    assert name in os.listdir(folder)
    assert os.lstat(folder + name).st_nlink >= 1


@_calls({n: c for n, c in MAKING.items() if n != "rename_to"})
@pytest.mark.parametrize("kind", KINDS)
@needs_root
def test_nothing_is_made_over_what_is_there(folder, kind, call):
    path = Path(os.fsdecode(folder + b"there"))
    make_node(kind, path)
    before = path.lstat()
    with fails(errno.EEXIST):
        call(os.fsencode(path))
    assert path.lstat() == before


@_calls({n: ALL[n] for n in ALL if n != "link_from"})
@needs_root
def test_a_folder_that_may_not_be_searched(folder, call):
    os.chmod(os.path.dirname(folder), 0o700)
    with fails(errno.EACCES):
        as_user(65_533, call, folder + b"file")


@_calls({**MAKING, **{n: NEEDING[n] for n in ("unlink", "rename_from")}})
@needs_root
def test_a_folder_that_may_not_be_written(folder, call):
    path = folder + (b"new" if call in MAKING.values() else b"file")
    os.chmod(_root(folder) + b"/file", 0o666)  # else linking to it is refused (protected_hardlinks)
    before = os.listdir(folder)
    with fails(errno.EACCES):
        as_user(65_533, call, path)
    assert os.listdir(folder) == before


@pytest.mark.parametrize("name", [b".", b".."])
def test_dot_and_dot_dot_are_not_removed(folder, name):
    os.mkdir(folder + b"sub")
    path = folder + b"sub/" + name
    with fails(errno.EINVAL if name == b"." else errno.ENOTEMPTY):
        os.rmdir(path)
    with fails(errno.EISDIR, errno.EINVAL):
        os.unlink(path)
    with fails(errno.EBUSY, errno.EINVAL):
        os.rename(path, folder + b"elsewhere")
    with fails(errno.EBUSY, errno.EINVAL, errno.EEXIST, errno.ENOTEMPTY):
        os.rename(folder + b"file", path)


def test_a_trailing_slash_asks_for_a_directory(folder):
    with fails(errno.ENOTDIR):
        os.stat(folder + b"file/")
    with fails(errno.ENOTDIR):
        os.unlink(folder + b"file/")
    with fails(errno.EISDIR):
        os.open(folder + b"new/", os.O_CREAT | os.O_WRONLY)
    os.mkdir(folder + b"new/")
    os.rename(folder + b"new/", folder + b"newer/")
    os.rmdir(folder + b"newer/")


def test_names_are_bytes(folder):
    names = [bytes([n]) for n in range(1, 256) if n not in b"/."]
    for name in names:
        os.close(os.open(folder + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert set(names) <= set(os.listdir(folder))
    for name in names:
        os.unlink(folder + name)
    assert sorted(os.listdir(folder)) == [b"file", b"loop", b"ping", b"pong"]


def test_symlinks_hold_any_target(folder):
    for target in (b"x", b"\xff" * 300, b"a/" * 1000, b"x" * 4095):
        os.symlink(target, folder + b"link")
        assert os.readlink(folder + b"link") == target
        assert os.lstat(folder + b"link").st_size == len(target)
        os.unlink(folder + b"link")
    with fails(errno.ENOENT):
        os.symlink(b"", folder + b"link")
    with fails(errno.ENAMETOOLONG):
        os.symlink(b"x" * 4096, folder + b"link")


def test_forty_symlinks_are_followed(folder):
    os.symlink(b"file", folder + b"0")
    for number in range(1, 41):
        os.symlink(b"%d" % (number - 1), folder + b"%d" % number)
    assert os.stat(folder + b"39").st_size == 1
    with fails(errno.ELOOP):
        os.stat(folder + b"40")
