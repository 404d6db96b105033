"""Random trees with everything that Linux keeps, random changes, and what can be seen of them."""

import errno
import os
import socket
import stat
import struct

NAMES = [
    b"a", b"b", b"file", b"-rf", b"--delete", b"new\nline", b"\xff\xfe", b"sp ace", b"*", b"..x",
    b"x" * 255, "ünïcode".encode(), b".hidden", b"%41", b"tab\t", b"'quote\"", b"\\back",
]  # fmt: skip
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permission, number)
    for tag, permission, number in (
        (0x01, 6, 0xFFFFFFFF), (0x02, 4, 12345), (0x04, 4, 0xFFFFFFFF), (0x10, 6, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    )
)  # fmt: skip
ROOT = os.geteuid() == 0


def make_tree(root, random, entries=40):
    """Fill an empty directory."""
    directories = [root]
    files = []
    for _ in range(entries):
        parent = random.choice(directories)
        path = parent + b"/" + random.choice(NAMES) + random.choice([b"", b"1", b"2"])[:255]
        if len(os.path.basename(path)) > 255 or os.path.lexists(path):
            continue
        make_node(path, random, directories, files)
    for path in directories[1:] + files:
        decorate(path, random)
    settle(root, random)


def settle(root, random):
    """Give whatever was changed just now a time of its own: rsync takes equal seconds for equal."""
    for path in [*sorted(walk(root), key=len, reverse=True), root]:
        found = os.lstat(path)
        if found.st_mtime_ns > 10**18 and not stat.S_ISLNK(found.st_mode):
            os.utime(path, ns=(10**18, random.randrange(10**18)))


def make_node(path, random, directories, files):
    what = random.randrange(12)
    if what < 3:
        os.mkdir(path)
        directories.append(path)
    elif what == 3 and files:
        try:
            os.link(random.choice(files), path, follow_symlinks=False)
        except FileNotFoundError:
            return
    elif what == 4:
        os.symlink(random.choice([b"a", b"/nowhere", b"../x", b"\xff", b"y" * 200]), path)
    elif what == 5:
        os.mkfifo(path)
    elif what == 6:
        make_socket(path)
    elif what == 7 and ROOT:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, random.randrange(3, 9)))
    else:
        write(path, random)
        files.append(path)


def make_socket(path):
    here = os.open(os.path.dirname(path), os.O_RDONLY)
    old = os.getcwd()
    try:
        os.fchdir(here)
        with socket.socket(socket.AF_UNIX) as made:
            try:
                made.bind(os.path.basename(path))
            except OSError as error:  # names of sockets are short
                if error.errno not in {errno.ENAMETOOLONG, None}:
                    raise
    finally:
        os.chdir(old)
        os.close(here)


def write(path, random):
    with open(path, "wb") as file:
        kind = random.randrange(4)
        if kind == 0:
            file.write(random.randbytes(random.randrange(200)))
        elif kind == 1:
            file.write(random.randbytes(random.randrange(200_000)))
        elif kind == 2:  # holes
            for _ in range(random.randrange(1, 4)):
                file.seek(random.randrange(0, 1 << 20) & ~4095)
                file.write(random.randbytes(random.randrange(1, 5000)))
            file.truncate(random.randrange(1 << 20, 2 << 20))


def decorate(path, random):
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return
    if ROOT and random.randrange(3) == 0:
        os.chown(path, random.randrange(5), random.randrange(5))
    os.chmod(path, random.choice([0o644, 0o600, 0o755, 0o400, 0o4755, 0o1777]) | 0o400)
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        if random.randrange(3) == 0:
            os.setxattr(path, b"user.note", random.randbytes(random.randrange(50)))
        if random.randrange(4) == 0:
            os.setxattr(path, b"system.posix_acl_access", _ACL)
        if stat.S_ISDIR(found.st_mode) and random.randrange(4) == 0:
            os.setxattr(path, b"system.posix_acl_default", _ACL)
    os.utime(path, ns=(10**18, random.randrange(10**18)))


def change_tree(root, random, changes=15):
    """Change, remove, replace and add."""
    for _ in range(changes):
        paths = sorted(walk(root))
        if not paths:
            break
        path = random.choice(paths)
        mode = os.lstat(path).st_mode
        what = random.randrange(6)
        if what == 0:
            remove(path)
        elif what == 1 and stat.S_ISREG(mode):
            write(path, random)
            os.utime(path, ns=(10**18, random.randrange(10**18)))
        elif what == 2:  # something else under its name
            remove(path)
            make_node(path, random, [], [each for each in paths if os.path.isfile(each)][:1])
        elif what == 3 and not stat.S_ISLNK(mode):
            decorate(path, random)
        elif what == 4:
            new = os.path.dirname(path) + b"/" + random.choice(NAMES)
            if not os.path.lexists(new) and not new.startswith(path + b"/"):
                os.rename(path, new)
        else:
            parent = path if stat.S_ISDIR(mode) else os.path.dirname(path)
            new = parent + b"/" + random.choice(NAMES)
            if not os.path.lexists(new):
                make_node(new, random, [], [])
    settle(root, random)


def remove(path):
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for each in os.listdir(path):
            remove(path + b"/" + each)
        os.rmdir(path)
    else:
        os.unlink(path)


def walk(root):
    for name in os.listdir(root):
        path = root + b"/" + name
        yield path
        if stat.S_ISDIR(os.lstat(path).st_mode):
            yield from walk(path)


def seen(root):
    """All that can be seen of a tree, by path."""
    links = {}
    result = {b"": attributes(root, b"", links)}
    for path in sorted(walk(root)):
        name = path[len(root) + 1 :]
        result[name] = attributes(path, name, links)
    return result


def attributes(path, name, links):
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    fields = {"mode": oct(found.st_mode), "owner": (found.st_uid, found.st_gid)}
    if kind != stat.S_IFLNK:
        fields["mtime_ns"] = found.st_mtime_ns
        fields["xattrs"] = {
            each: os.getxattr(path, each, follow_symlinks=False)
            for each in sorted(os.listxattr(path, follow_symlinks=False))
        }
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            fields["content"] = file.read()
    elif kind == stat.S_IFLNK:
        fields["target"] = os.readlink(path)
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        fields["device"] = found.st_rdev
    if kind != stat.S_IFDIR:
        fields["first name"] = links.setdefault((found.st_dev, found.st_ino), name)
    return fields


def holes_kept(source, target):
    """Files of the source with holes, and whether the target's take about as little."""
    for path in walk(source):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_blocks * 512 < found.st_size - 65536:
            there = os.lstat(target + path[len(source) :])
            yield path, there.st_blocks <= found.st_blocks + 64
