"""Making, linking, renaming and removing names: what changes, what is refused, and by whom."""

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
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    USER,
    as_user,
    fails,
    later_than,
    link_descriptor,
    make_node,
    needs_root,
    outcome,
    permission_bits,
    remove_node,
    renameat2,
)

pytestmark = needs_root
NOT_DIRECTORIES = [kind for kind in KINDS if kind != "directory"]


# --- making --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_node_has_the_attributes_of_its_maker(here, kind):
    here.chmod(0o777)
    path = here / "new"
    if kind in ("character", "block"):
        with fails(errno.EPERM):
            as_user(USER, make_node, kind, path)
        return
    as_user(USER, make_node, kind, path, gid=GROUP, umask=0o027)
    found = path.lstat()
    assert (found.st_uid, found.st_gid) == (USER, GROUP)
    expected = {"file": 0o640, "directory": 0o750, "symlink": 0o777, "fifo": 0o640, "socket": 0o750}
    assert stat.S_IMODE(found.st_mode) == expected[kind]
    assert found.st_nlink == (2 if kind == "directory" else 1)
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
    # ext4 looks at the clock once more for the directory.
    assert found.st_ctime_ns <= here.lstat().st_ctime_ns == here.lstat().st_mtime_ns


@pytest.mark.parametrize("kind", ["character", "block", "fifo", "socket"])
def test_nodes_keep_their_kind_and_number(here, kind):
    make_node(kind, here / "node")
    found = (here / "node").lstat()
    kinds = {
        "character": stat.S_ISCHR,
        "block": stat.S_ISBLK,
        "fifo": stat.S_ISFIFO,
        "socket": stat.S_ISSOCK,
    }
    assert kinds[kind](found.st_mode)
    numbers = {"character": os.makedev(1, 3), "block": os.makedev(7, 200)}
    assert found.st_rdev == numbers.get(kind, 0)


def test_large_device_numbers(here):
    for number in (os.makedev(255, 255), os.makedev(4095, 1_048_575), os.makedev(300, 70_000)):
        os.mknod(here / "node", stat.S_IFBLK | 0o600, number)
        assert (here / "node").lstat().st_rdev == number
        (here / "node").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_setgid_directory_passes_its_group_on(here, kind):
    os.chown(here, -1, GROUP)
    here.chmod(0o2777)
    if kind in ("character", "block"):
        make_node(kind, here / "new")
    else:
        as_user(USER, make_node, kind, here / "new", gid=OTHER_GROUP)
    assert (here / "new").lstat().st_gid == GROUP
    assert bool(permission_bits(here / "new") & stat.S_ISGID) == (kind == "directory")


@pytest.mark.parametrize("mode", [0o2755, 0o2775, 0o2711, 0o6777])
@pytest.mark.parametrize("member", [True, False])
def test_a_setgid_file_made_in_a_setgid_directory(here, mode, member):
    """Who is not in the group loses the bit, when the group may run the file."""
    os.chown(here, -1, GROUP)
    here.chmod(0o2777)

    def make():
        os.close(os.open(here / "new", os.O_CREAT | os.O_WRONLY, mode))

    as_user(USER, make, gid=OTHER_GROUP, groups=[GROUP] if member else [], umask=0)
    assert permission_bits(here / "new") == (mode if member else mode & ~stat.S_ISGID)


def test_modes_of_new_files_keep_all_bits_that_umask_leaves(here):
    for mode, umask in itertools.product((0o7777, 0o4755, 0o1644, 0o000), (0, 0o022, 0o777)):

        def make(mode=mode):
            os.close(os.open(here / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))
            os.mkdir(here / "dir", mode)

        here.chmod(0o777)
        as_user(0, make, umask=umask)
        assert permission_bits(here / "new") == mode & ~umask
        # mkdir(2): of the bits beyond rwx, Linux keeps the sticky one.
        assert permission_bits(here / "dir") == mode & ~umask & 0o1777
        (here / "new").unlink()
        (here / "dir").rmdir()


def test_a_file_made_read_only_can_be_written_through_its_first_descriptor(here):
    here.chmod(0o777)

    def write():
        with open(os.open(here / "new", os.O_CREAT | os.O_RDWR, 0o000), "r+b") as file:
            file.write(b"x")
        with fails(errno.EACCES):
            os.open(here / "new", os.O_RDONLY)

    as_user(USER, write)
    assert (here / "new").read_bytes() == b"x"


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_links_share_one_inode(here, kind):
    one, two = here / "one", here / "two"
    make_node(kind, one)
    before = one.lstat()
    later_than(here, before.st_ctime_ns)
    os.link(one, two, follow_symlinks=False)
    after = one.lstat()
    assert after == two.lstat()
    assert after.st_nlink == 2
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    os.chmod(one, 0o600) if kind != "symlink" else os.lchown(one, USER, GROUP)
    assert one.lstat() == two.lstat()
    later_than(here, after.st_ctime_ns)
    one.unlink()
    last = two.lstat()
    assert last.st_nlink == 1
    assert last.st_ctime_ns > after.st_ctime_ns


def test_directories_are_not_linked(here):
    (here / "dir").mkdir()
    with fails(errno.EPERM):
        os.link(here / "dir", here / "other")


def test_an_unlinked_file_cannot_be_linked_again(here):
    (here / "other").touch()
    with open(here / "file", "wb") as file:
        link_descriptor(file.fileno(), here / "second")
        (here / "file").unlink()
        (here / "second").unlink()
        with fails(errno.ENOENT):
            link_descriptor(file.fileno(), here / "back")
        os.link(here / "other", here / "back")


@pytest.mark.soak
def test_too_many_links(here):
    (here / "file").touch()

    def link_all():
        for number in itertools.count():
            refused = outcome(os.link, here / "file", here / f"{number}")
            if refused:
                return refused, number
        raise AssertionError("counting ended")

    assert link_all() == ("EMLINK", 64_999)
    assert (here / "file").stat().st_nlink == 65_000
    (here / "0").unlink()
    os.link(here / "file", here / "0")


def test_directories_count_their_subdirectories(here):
    for number in range(5):
        (here / f"{number}").mkdir()
        (here / f"file{number}").touch()
        assert here.stat().st_nlink == 3 + number
    (here / "0" / "1").mkdir()
    assert (here / "0").stat().st_nlink == 3
    (here / "0" / "1").rename(here / "1" / "1")
    assert (here / "0").stat().st_nlink == 2
    assert (here / "1").stat().st_nlink == 3
    renameat2(here / "1" / "1", here / "file0", RENAME_EXCHANGE)
    assert (here / "1").stat().st_nlink == 2
    assert here.stat().st_nlink == 8
    for path in (here / "2", here / "file0"):
        path.rmdir()
    assert here.stat().st_nlink == 6


# --- unlink and rmdir ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_removing(here, kind):
    path = here / "node"
    make_node(kind, path)
    before = here.stat()
    later_than(here, before.st_ctime_ns)
    wrong = outcome(path.unlink if kind == "directory" else path.rmdir)
    assert wrong == ("EISDIR" if kind == "directory" else "ENOTDIR")
    remove_node(path)
    with fails(errno.ENOENT):
        path.lstat()
    after = here.stat()
    assert after.st_mtime_ns == after.st_ctime_ns > before.st_ctime_ns
    assert after.st_nlink == before.st_nlink - (kind == "directory")


def test_only_empty_directories_are_removed(here):
    path = here / "dir"
    for kind in KINDS:
        path.mkdir()
        make_node(kind, path / "in")
        with fails(errno.ENOTEMPTY, errno.EEXIST):
            path.rmdir()
        remove_node(path / "in")
        path.rmdir()


def test_a_removed_directory_takes_no_new_names(here):
    (here / "dir").mkdir()
    (here / "file").touch()
    fd = os.open(here / "dir", os.O_RDONLY | os.O_DIRECTORY)
    (here / "dir").rmdir()
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    for call in (
        lambda: os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)),
        lambda: os.mkdir("x", dir_fd=fd),
        lambda: os.symlink("target", "x", dir_fd=fd),
        lambda: os.mkfifo("x", dir_fd=fd),
        lambda: os.link(here / "file", "x", dst_dir_fd=fd),
        lambda: os.rename(here / "file", "x", dst_dir_fd=fd),
        lambda: os.stat("x", dir_fd=fd),
    ):
        with fails(errno.ENOENT):
            call()
    os.close(fd)


def test_an_unlinked_open_file_lives_until_it_is_closed(here):
    with open(here / "file", "w+b", buffering=0) as file:
        file.write(b"before")
        (here / "file").unlink()
        assert os.listdir(here) == []
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size) == (0, 12)
        os.ftruncate(file.fileno(), 3)
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
        os.setxattr(file.fileno(), "user.a", b"b")
        assert os.getxattr(file.fileno(), "user.a") == b"b"
        file.seek(0)
        assert file.read() == b"bef"
        (here / "file").write_bytes(b"another")
        file.seek(0)
        assert file.read() == b"bef"


# --- who may remove from a sticky directory ------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
@pytest.mark.parametrize("action", ["remove", "rename", "replace"])
def test_sticky_directories(here, action, kind):
    """Only the owner of the entry or of the directory may take a name from it."""
    source = here / "source"
    source.mkdir()
    source.chmod(0o777)
    folder = here / "sticky"
    for folder_owner, owner in itertools.product((USER, OTHER_USER), repeat=2):
        folder.mkdir()
        os.chown(folder, folder_owner, -1)
        folder.chmod(0o1777)
        path = folder / "entry"
        make_node(kind, path)
        os.lchown(path, owner, -1)
        (source / "new").mkdir() if kind == "directory" else (source / "new").touch()
        os.chown(source / "new", USER, -1)
        moved = source / "moved"
        call, arguments = {
            "remove": (remove_node, (path,)),
            "rename": (os.rename, (path, moved)),
            "replace": (os.rename, (source / "new", path)),
        }[action]
        if USER in (folder_owner, owner):
            if action == "rename" and kind == "directory" and owner != USER:
                with fails(errno.EACCES):  # its ".." would change, and it is not writable
                    as_user(USER, call, *arguments)
            else:
                as_user(USER, call, *arguments)
        else:
            with fails(errno.EPERM):
                as_user(USER, call, *arguments)
            assert path.lstat().st_uid == owner
        for left in (path, moved, source / "new"):
            if left.is_symlink() or left.exists():
                remove_node(left)
        folder.rmdir()


# --- rename --------------------------------------------------------------------------------------

RENAMES = {
    (old, new): (
        None
        if (old == "directory") == (new == "directory")
        else "ENOTDIR"
        if old == "directory"
        else "EISDIR"
    )
    for old in KINDS
    for new in KINDS
}


@pytest.mark.parametrize(("old", "new"), RENAMES)
def test_renaming_over_something(here, old, new):
    (here / "a").mkdir()
    (here / "b").mkdir()
    make_node(old, here / "a" / "old")
    make_node(new, here / "b" / "new")
    inode = (here / "a" / "old").lstat().st_ino
    other = (here / "b" / "new").lstat().st_ino
    found = outcome(os.rename, here / "a" / "old", here / "b" / "new")
    assert found == RENAMES[old, new]
    if found is None:
        assert os.listdir(here / "a") == []
        assert (here / "b" / "new").lstat().st_ino == inode
    else:
        assert (here / "a" / "old").lstat().st_ino == inode
        assert (here / "b" / "new").lstat().st_ino == other


@pytest.mark.parametrize("kind", KINDS)
def test_renaming_changes_times_and_nothing_else(here, kind):
    (here / "a").mkdir()
    (here / "b").mkdir()
    make_node(kind, here / "a" / "old")
    before = (here / "a" / "old").lstat()
    later_than(here, before.st_ctime_ns)
    os.rename(here / "a" / "old", here / "b" / "new")
    after = (here / "b" / "new").lstat()
    assert after.st_ctime_ns > before.st_ctime_ns
    same = ("st_ino", "st_mode", "st_uid", "st_gid", "st_nlink", "st_size", "st_mtime_ns")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    for folder in (here / "a", here / "b"):
        assert folder.stat().st_mtime_ns == folder.stat().st_ctime_ns > before.st_ctime_ns


def test_a_full_directory_is_not_replaced(here):
    (here / "old").mkdir()
    (here / "new").mkdir()
    (here / "new" / "in").touch()
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(here / "old", here / "new")
    (here / "new" / "in").unlink()
    os.rename(here / "old", here / "new")
    assert os.listdir(here) == ["new"]


def test_a_directory_does_not_move_into_itself(here):
    (here / "a" / "b" / "c").mkdir(parents=True)
    for target in ("a/x", "a/b/x", "a/b/c/x"):
        with fails(errno.EINVAL):
            os.rename(here / "a", here / target)
    with fails(errno.ENOTEMPTY):
        os.rename(here / "a" / "b" / "c", here / "a")
    os.rename(here / "a", here / "a")


def test_renaming_one_link_to_another_does_nothing(here):
    (here / "one").touch()
    os.link(here / "one", here / "two")
    os.rename(here / "one", here / "two")
    assert sorted(os.listdir(here)) == ["one", "two"]
    assert (here / "one").stat().st_nlink == 2


def test_a_replaced_open_file_lives_on(here):
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new")
    with open(here / "old", "rb") as file:
        os.rename(here / "new", here / "old")
        assert file.read() == b"old"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert (here / "old").read_bytes() == b"new"


@pytest.mark.parametrize("new", KINDS)
def test_noreplace(here, new):
    (here / "old").write_bytes(b"x")
    renameat2(here / "old", here / "free", RENAME_NOREPLACE)
    make_node(new, here / "taken")
    before = (here / "taken").lstat()
    with fails(errno.EEXIST):
        renameat2(here / "free", here / "taken", RENAME_NOREPLACE)
    assert (here / "taken").lstat() == before


@pytest.mark.parametrize(("one", "two"), list(itertools.combinations_with_replacement(KINDS, 2)))
def test_exchange(here, one, two):
    (here / "a").mkdir()
    (here / "b").mkdir()
    first, second = here / "a" / "first", here / "b" / "second"
    make_node(one, first)
    make_node(two, second)
    inodes = first.lstat().st_ino, second.lstat().st_ino
    for _ in range(3):
        renameat2(first, second, RENAME_EXCHANGE)
        inodes = inodes[::-1]
        assert (first.lstat().st_ino, second.lstat().st_ino) == inodes
    links = [(here / name).stat().st_nlink for name in ("a", "b")]
    assert links == [2 + (two == "directory"), 2 + (one == "directory")]
    if two == "directory":
        assert (first / "..").stat().st_ino == (here / "a").stat().st_ino


def test_exchange_is_refused(here):
    (here / "a" / "b").mkdir(parents=True)
    (here / "file").touch()
    for one, two in ((here / "a", here / "a" / "b"), (here / "a" / "b", here / "a")):
        with fails(errno.EINVAL, errno.ENOTEMPTY):
            renameat2(one, two, RENAME_EXCHANGE)
    with fails(errno.ENOENT):
        renameat2(here / "file", here / "missing", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(here / "file", here / "a", RENAME_EXCHANGE | RENAME_NOREPLACE)


def test_rename_and_link_do_not_leave_the_filesystem(mnt, machine):
    (mnt / "file").touch()
    with fails(errno.EXDEV):
        os.rename(mnt / "file", machine / "file")
    with fails(errno.EXDEV):
        os.link(mnt / "file", machine / "file")
    with fails(errno.EXDEV):
        renameat2(machine, mnt / "file", RENAME_EXCHANGE)


def test_moving_a_directory_of_others_needs_write_permission_on_it(here):
    for name in ("from", "to"):
        (here / name).mkdir()
        (here / name).chmod(0o777)
    moved = here / "from" / "dir"
    moved.mkdir()
    moved.chmod(0o755)
    with fails(errno.EACCES):
        as_user(USER, os.rename, moved, here / "to" / "dir")
    as_user(USER, os.rename, moved, here / "from" / "same folder")
