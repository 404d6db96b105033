"""What the local system says of files, as nodes, and the other way round. Blocks: for threads."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Mapping
from typing import Final

from syncer.remotes.local import by_handle
from syncer.tree import KIND_OF_FORMAT, Metadata, Node, NodeKind

BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system's own are
NAMES_MAX: Final = 10_000  # owners remembered

ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_PRIVILEGED: Final = ("trusted.", "security.")
# Labels that a policy gives, and hashes that only the kernel may write.
_NOT_OURS: Final = frozenset({"security.evm", "security.selinux"})
_GONE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM})

_new_node = tuple.__new__  # a third of the time of Node(…), which checks its arguments


def is_root() -> bool:
    """Whether owners, devices and privileged attributes can be set."""
    return os.geteuid() == 0


class _Users(dict[int, str | None]):
    """Names of users; None where there is none."""

    def __missing__(self, uid: int) -> str | None:
        name = None
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(uid).pw_name
        if len(self) >= NAMES_MAX:
            self.clear()
        self[uid] = name
        return name


class _Groups(dict[int, str | None]):
    """Names of groups, likewise."""

    def __missing__(self, gid: int) -> str | None:
        name = None
        with contextlib.suppress(KeyError):
            name = grp.getgrgid(gid).gr_name
        if len(self) >= NAMES_MAX:
            self.clear()
        self[gid] = name
        return name


class Owners:
    """The names of users and groups, remembered. For any thread."""

    def __init__(self) -> None:
        # Dictionaries that fill themselves: a method's call for each node would cost a tenth of it.
        self.users = _Users()
        self.groups = _Groups()


def node_of(
    name: bytes, found: os.stat_result, owners: Owners, target: bytes | None = None
) -> Node:
    """The node that `stat` found. Its token tells changes that put the old times back."""
    mode = found.st_mode
    kind = KIND_OF_FORMAT[mode & 0o170000]
    inode = found.st_ino
    regular = kind is NodeKind.FILE
    several = found.st_nlink > 1 and kind is not NodeKind.DIRECTORY
    return _new_node(
        Node,
        (
            name,
            kind,
            found.st_size if regular else 0,
            found.st_mtime_ns,
            mode & 0o7777,
            found.st_uid,
            found.st_gid,
            (inode, found.st_ctime_ns),
            (found.st_dev, inode) if several else None,
            target,
            found.st_rdev,
            found.st_blocks * BLOCK_BYTES if regular else None,
            owners.users[found.st_uid],
            owners.groups[found.st_gid],
            None,
            None,
            found.st_atime_ns,
            True,
        ),
    )


def same(found: os.stat_result, node: Node) -> bool:
    """Whether what was found is still what `node` tells of, as far as it does.

    The token alone knows of a change that put size and times back; a node without one is believed
    by the rest.
    """
    if KIND_OF_FORMAT[stat.S_IFMT(found.st_mode)] is not node.kind:
        return False
    if node.kind is NodeKind.FILE and found.st_size != node.size:
        return False
    if node.token is not None and node.exact:
        return node.token == (found.st_ino, found.st_ctime_ns)
    return node.mtime_ns is None or not node.exact or found.st_mtime_ns == node.mtime_ns


def _kept(name: str) -> bool:
    """Whether an extended attribute is one that a tree is made of."""
    if name.startswith("user."):
        return True
    if name.startswith("system."):
        return os.fsencode(name) in ACLS
    return name.startswith(_PRIVILEGED) and name not in _NOT_OURS and is_root()


def read_xattrs(what: int | bytes) -> dict[bytes, bytes]:
    """The extended attributes of an open file, or of what a path leads to; ACLs among them.

    `user.*` and ACLs; for root `trusted.*` and `security.*`, but for what a policy or the kernel
    itself gives (SELinux labels, EVM).
    """
    found: dict[bytes, bytes] = {}
    try:
        names = os.listxattr(what)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return found
    for name in names:
        if _kept(name):
            try:
                found[os.fsencode(name)] = os.getxattr(what, name)
            except OSError as error:  # gone meanwhile, or forbidden
                if error.errno not in _GONE:
                    raise
    return found


def _write_xattrs(what: int | bytes, new: Mapping[bytes, bytes], mode: int) -> bool:
    """Make them these and no others; whether there was something to do.

    One that cannot be kept by this user is left out.
    """
    old = read_xattrs(what)
    if old == new:
        return False
    if not mode & 0o200 and not stat.S_ISLNK(mode) and not is_root():
        os.chmod(what, stat.S_IMODE(mode) | 0o200)  # noqa: PTH101 - user.* want write permission
    for name in old.keys() - new.keys():
        os.removexattr(what, name)
    for name, value in new.items():
        if old.get(name) != value and _kept(os.fsdecode(name)):
            os.setxattr(what, name, value)
    return True


def _chown(what: int | bytes, uid: int, gid: int) -> bool:
    """Give it to somebody (-1: leave); False when this user may not."""
    try:
        os.chown(what, uid, gid)
    except PermissionError:
        if is_root():
            raise
        return False
    return True


def apply(
    handle: int,
    metadata: Metadata,
    *,
    path_only: bool = False,
    old: os.stat_result | None = None,
    bare: bool = False,
) -> None:
    """Set what is given on what is open. `path_only`: the handle is an O_PATH one.

    `old`: what fstat says of its owners and mode, where that is known. `bare`: it is known to have
    no extended attributes.

    Who is not root keeps what they may: not owners, nor the setuid bits of a file that stays
    theirs, nor privileged attributes. Raises OSError.
    """
    mode, uid, gid, mtime_ns, atime_ns, xattrs = metadata
    if old is None:
        old = os.fstat(handle)
    what = by_handle(handle) if path_only else handle
    given, touched = True, False
    # The owner first, whose change takes capabilities and setuid bits away; the mode after the
    # attributes, whose ACL may change it; the times last.
    if uid is not None and uid != old.st_uid:
        given, touched = _chown(what, uid, -1), True
    if gid is not None and gid != old.st_gid:
        given, touched = _chown(what, -1, gid) and given, True
    if xattrs is not None and (xattrs or not bare):
        touched = _write_xattrs(what, xattrs, old.st_mode) or touched
        if mode is None and not old.st_mode & 0o200:
            mode = old.st_mode  # it may have been made writable meanwhile
    if mode is not None and not stat.S_ISLNK(old.st_mode):
        if not given and not stat.S_ISDIR(old.st_mode):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if touched or mode & 0o7777 != stat.S_IMODE(old.st_mode):
            os.chmod(what, mode & 0o7777)  # noqa: PTH101 - no path
    if mtime_ns is not None or atime_ns is not None:
        atime_ns = old.st_atime_ns if atime_ns is None else atime_ns
        mtime_ns = old.st_mtime_ns if mtime_ns is None else mtime_ns
        os.utime(what, ns=(atime_ns, mtime_ns))
