"""Extended attributes of all namespaces, and POSIX ACLs compared with the machine's own
filesystem.
"""

import errno
import os
import struct
from pathlib import Path

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
    outcome,
    permission_bits,
)

pytestmark = needs_root
KIB = 1 << 10
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"u": 1, "user": 2, "g": 4, "group": 8, "m": 16, "o": 32}


# --- extended attributes -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("namespace", ["user", "trusted", "security"])
def test_values_of_all_namespaces(here, kind, namespace):
    path = here / "node"
    make_node(kind, path)
    name = f"{namespace}.name"
    for value in (b"", b"x", bytes(range(256)), os.urandom(2 * KIB)):
        os.setxattr(path, name, value)
        assert os.getxattr(path, name) == value
        assert [each for each in os.listxattr(path) if each != "security.selinux"] == [name]
    os.removexattr(path, name)
    with fails(errno.ENODATA):
        os.getxattr(path, name)
    with fails(errno.ENODATA):
        os.removexattr(path, name)


@pytest.mark.parametrize("namespace", ["trusted", "security"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_node_takes_attributes_of_the_system(here, kind, namespace):
    path = here / "node"
    make_node(kind, path)
    os.setxattr(path, f"{namespace}.a", b"b", follow_symlinks=False)
    assert os.getxattr(path, f"{namespace}.a", follow_symlinks=False) == b"b"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "character", "block"])
def test_user_attributes_are_for_files_and_directories(here, kind):
    path = here / "node"
    make_node(kind, path)
    assert outcome(lambda: os.setxattr(path, "user.a", b"b", follow_symlinks=False)) in (
        ("EPERM",) if kind != "socket" else ("EPERM", None)
    )


def test_create_and_replace(here):
    path = here / "file"
    path.touch()
    with fails(errno.ENODATA):
        os.setxattr(path, "user.a", b"b", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    assert os.getxattr(path, "user.a") == b"1"
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


def test_values_of_64_kib(shared, mnt):
    path = mnt / "file"
    path.touch()
    values = {f"user.{number}": os.urandom(64 * KIB) for number in range(5)}
    for name, value in values.items():
        os.setxattr(path, name, value)
    with fails(errno.E2BIG):
        os.setxattr(path, "user.large", b"x" * (64 * KIB + 1))
    shared.restart()
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == values


def test_many_attributes_are_listed(here):
    path = here / "file"
    path.touch()
    names = [f"user.{number:03}{'n' * 20}" for number in range(60)]
    for name in names:
        os.setxattr(path, name, b"v")
    assert sorted(os.listxattr(path)) == names
    for name in names[::2]:
        os.removexattr(path, name)
    assert sorted(os.listxattr(path)) == names[1::2]


def test_more_names_than_can_be_listed_are_refused(mnt):
    """listxattr cannot answer more than 64 KiB: what would exceed it is refused, not hidden."""
    path = mnt / "file"
    path.touch()
    made = 0
    while outcome(os.setxattr, path, f"user.{made:04}{'n' * 200}", b"v") is None:
        made += 1
    assert made >= 300
    assert len(os.listxattr(path)) == made


def test_names_of_255_bytes(here):
    path = here / "file"
    path.touch()
    name = "user." + "n" * 250
    os.setxattr(path, name, b"v")
    assert os.listxattr(path) == [name]
    with fails(errno.ERANGE):
        os.setxattr(path, name + "n", b"v")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(path, "nowhere.name", b"v")


def test_who_may_read_and_write_attributes(here):
    path = here / "file"
    path.touch()
    path.chmod(0o600)
    os.chown(path, OTHER_USER, GROUP)
    os.setxattr(path, "user.a", b"b")
    os.setxattr(path, "trusted.a", b"b")
    for uid, code in ((USER, "EACCES"), (OTHER_USER, None)):
        assert outcome(as_user, uid, os.setxattr, path, "user.a", b"c") == code
    assert outcome(as_user, OTHER_USER, os.getxattr, path, "trusted.a") == "ENODATA"
    assert outcome(as_user, OTHER_USER, os.setxattr, path, "trusted.a", b"c") == "EPERM"
    assert as_user(OTHER_USER, os.listxattr, path) == ["user.a"]
    assert sorted(os.listxattr(path)) == ["trusted.a", "user.a"]


def test_attributes_change_ctime_only(here):
    path = here / "node"
    path.mkdir()
    for call in (
        lambda: os.setxattr(path, "user.a", b"b"),
        lambda: os.setxattr(path, "user.a", b"c"),
        lambda: os.removexattr(path, "user.a"),
    ):
        before = path.stat()
        later_than(here, before.st_ctime_ns)
        call()
        assert path.stat().st_ctime_ns > before.st_ctime_ns
        assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_attributes_belong_to_the_inode(shared, mnt):
    path = mnt / "file"
    path.touch()
    os.setxattr(path, "user.a", b"b")
    os.link(path, mnt / "link")
    path.rename(mnt / "moved")
    assert os.getxattr(mnt / "link", "user.a") == b"b"
    os.setxattr(mnt / "link", "user.a", b"c")
    shared.restart()
    assert os.getxattr(mnt / "moved", "user.a") == b"c"
    (mnt / "moved").unlink()
    (mnt / "link").unlink()
    shared.check_clean()


# --- access control lists ------------------------------------------------------------------------


def acl(text: str) -> bytes:
    """The kernel's bytes for "u:rwx,user:65533:r--,g:…,m:…,o:…"."""
    value = struct.pack("<I", 2)
    for entry in text.split(","):
        tag, *who, permissions = entry.split(":")
        bits = sum(
            bit for letter, bit in zip("rwx", (4, 2, 1), strict=True) if letter in permissions
        )
        value += struct.pack("<HHI", TAGS[tag], bits, int(who[0]) if who else 0xFFFFFFFF)
    return value


FULL = f"u:rwx,user:{USER}:rw-,g:r-x,group:{GROUP}:rwx,m:rwx,o:r--"
ACLS = {
    "minimal": "u:rw-,g:r--,o:---",
    "one user": f"u:rwx,user:{USER}:r--,g:r-x,m:r-x,o:---",
    "full": FULL,
    "narrow mask": f"u:rwx,user:{USER}:rwx,g:rwx,group:{GROUP}:rwx,m:r--,o:--x",
    "nothing": f"u:---,user:{USER}:---,g:---,m:---,o:---",
}
INVALID = {
    "no mask": f"u:rwx,user:{USER}:r--,g:r-x,o:---",
    "no owner": "g:r-x,o:---",
    "twice": f"u:rwx,user:{USER}:r--,user:{USER}:rw-,g:r-x,m:rwx,o:---",
    "unordered": f"u:rwx,g:r-x,user:{USER}:r--,m:rwx,o:---",
}


def observed(path: Path):
    """Everything about ACLs that can be seen of a node."""
    return (
        oct(permission_bits(path)),
        outcome(os.getxattr, path, ACCESS),
        outcome(os.getxattr, path, DEFAULT),
        sorted(name for name in os.listxattr(path) if name.startswith("system.")),
    )


def both(mnt, machine, story):
    """Tell one story on both filesystems: what is seen must be the same."""
    seen = []
    for folder in (mnt, machine):
        folder.chmod(0o777)
        seen.append(story(folder))
    assert seen[0] == seen[1]
    return seen[0]


@pytest.mark.parametrize("text", [*ACLS.values(), *INVALID.values()], ids=[*ACLS, *INVALID])
@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_setting_lists(mnt, machine, kind, name, text):
    def story(folder):
        path = folder / "node"
        make_node(kind, path)
        seen = [outcome(os.setxattr, path, name, acl(text)), observed(path)]
        for mode in (0o640, 0o777, 0o2701):
            path.chmod(mode)
            seen.append(observed(path))
        seen += [outcome(os.removexattr, path, name), observed(path)]
        seen += [outcome(os.removexattr, path, name), observed(path)]
        return seen

    both(mnt, machine, story)


@pytest.mark.parametrize(
    "value", [b"", b"\x02", struct.pack("<I", 1), struct.pack("<I", 2), b"x" * 12]
)
def test_lists_that_are_none(mnt, machine, value):
    def story(folder):
        path = folder / "node"
        path.mkdir()
        os.setxattr(path, ACCESS, acl(FULL))
        return [
            outcome(os.setxattr, path, ACCESS, value),
            outcome(os.setxattr, path, DEFAULT, value),
            observed(path),
        ]

    both(mnt, machine, story)


@pytest.mark.parametrize("default", ACLS.values(), ids=ACLS)
@pytest.mark.parametrize("mode", [0o777, 0o666, 0o4755, 0o600, 0])
def test_new_entries_inherit_default_lists(mnt, machine, default, mode):
    both(mnt, machine, _inheriting(default, 0, mode))


@pytest.mark.parametrize("mode", [0o777, 0o666])
def test_a_default_list_overrules_the_umask(mnt, machine, mode):
    both(mnt, machine, _inheriting(FULL, 0o027, mode))


def _inheriting(default, umask, mode):
    def story(folder):
        parent = folder / "parent"
        parent.mkdir()
        os.setxattr(parent, DEFAULT, acl(default))
        parent.chmod(0o777)

        def make():
            os.close(os.open(parent / "file", os.O_CREAT | os.O_WRONLY, mode))
            os.mkdir(parent / "dir", mode)
            os.mkfifo(parent / "fifo", mode)
            os.symlink("target", parent / "link")

        as_user(0, make, umask=umask)
        (parent / "dir").chmod(0o777)
        as_user(0, os.mkdir, parent / "dir" / "deeper", mode, umask=umask)
        names = ("file", "dir", "fifo", "dir/deeper")
        return [observed(parent / name) for name in names], oct(permission_bits(parent / "link"))

    return story


@pytest.mark.parametrize("text", ACLS.values(), ids=ACLS)
def test_lists_decide_who_may(mnt, machine, text):
    def story(folder):
        path = folder / "file"
        path.write_bytes(b"x")
        os.chown(path, OTHER_USER, OTHER_GROUP)
        os.setxattr(path, ACCESS, acl(text))
        seen = []
        for uid, groups in (
            (OTHER_USER, []),
            (USER, []),
            (USER, [GROUP]),
            (60_000, [GROUP]),
            (60_000, [OTHER_GROUP]),
            (60_000, []),
        ):
            flags = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
            seen += [_tried(uid, path, flag, groups) for flag in flags]
        return seen

    both(mnt, machine, story)


def _tried(uid, path, flags, groups):
    try:
        as_user(uid, lambda: os.close(os.open(path, flags)), groups=groups)
    except PermissionError:
        return "EACCES"
    return None


def test_who_may_change_lists(mnt, machine):
    def story(folder):
        path = folder / "file"
        path.touch()
        os.chown(path, OTHER_USER, GROUP)
        seen = []
        for uid in (USER, OTHER_USER):
            seen.append(outcome(as_user, uid, os.setxattr, path, ACCESS, acl(FULL)))
            seen.append(observed(path))
        seen.append(outcome(as_user, USER, os.removexattr, path, ACCESS))
        return seen

    both(mnt, machine, story)


def test_setgid_goes_when_a_stranger_to_the_group_sets_a_list(mnt, machine):
    def story(folder):
        path = folder / "file"
        path.touch()
        os.chown(path, USER, GROUP)
        path.chmod(0o2775)
        as_user(USER, os.setxattr, path, ACCESS, acl(FULL))
        seen = [observed(path)]
        path.chmod(0o2775)
        os.setxattr(path, ACCESS, acl(ACLS["minimal"]))
        return [*seen, observed(path)]

    both(mnt, machine, story)


def test_lists_survive_a_restart(shared, mnt):
    parent = mnt / "parent"
    parent.mkdir()
    os.setxattr(parent, DEFAULT, acl(FULL))
    (parent / "file").touch()
    os.setxattr(parent / "file", ACCESS, acl(FULL))
    before = observed(parent), observed(parent / "file")
    shared.restart()
    assert (observed(parent), observed(parent / "file")) == before
    (parent / "new").touch()
    assert os.getxattr(parent / "new", ACCESS)
