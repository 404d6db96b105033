"""What the filesystem should be: files, names and attributes in plain Python, as POSIX has them.

Written from the standard's point of view, not from the product's: no overlay, no epochs, no
extents. A node's content is one `bytes`; a clone of the whole model is a state to compare with.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace

from ghostd.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotPermitted,
)
from ghostd.filesystem import (
    NAME_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AttributeChanges,
    Caller,
)

ROOT_NODE = 1
_DAY_NS = 86_400 * 10**9


@dataclass
class Node:
    """One inode."""

    mode: int
    uid: int
    gid: int
    atime: int
    mtime: int
    ctime: int
    nlink: int = 1
    rdev: int = 0
    content: bytes = b""
    target: bytes | None = None
    parent: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[bytes, int] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def size(self) -> int:
        return len(self.target if self.target is not None else self.content)

    def clone(self) -> Node:
        return replace(self, xattrs=dict(self.xattrs), names=dict(self.names))


# What can be seen of one name: mode, owner, group, links, device, size, content, target,
# attributes, times, and the first name of the same inode.
Seen = tuple[object, ...]
Image = dict[bytes, Seen]


class Model:
    """The tree as it should be."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.next_node = ROOT_NODE + 1
        self.nodes = {ROOT_NODE: Node(0o40755, 0, 0, now, now, now, nlink=2, parent=ROOT_NODE)}
        self.handles: list[int] = []

    def clone(self) -> Model:
        copy = Model.__new__(Model)
        copy.now = self.now
        copy.next_node = self.next_node
        copy.nodes = {number: node.clone() for number, node in self.nodes.items()}
        copy.handles = list(self.handles)
        return copy

    def restart(self) -> None:
        """The process ends: nobody has anything open."""
        self.handles = []
        self.nodes = {number: node for number, node in self.nodes.items() if node.nlink}

    def image(self) -> Image:
        """Everything a user can see, by path."""
        found: Image = {}
        first: dict[int, bytes] = {}
        todo = [(b"", ROOT_NODE)]
        while todo:
            path, number = todo.pop()
            node = self.nodes[number]
            found[path] = (
                node.mode,
                node.uid,
                node.gid,
                node.nlink,
                node.rdev,
                0 if node.is_dir else node.size,
                node.content,
                node.target,
                tuple(sorted(node.xattrs.items())),
                (node.atime, node.mtime, node.ctime),
                first.setdefault(number, path),
            )
            todo += sorted((path + b"/" + name, child) for name, child in node.names.items())
        return found

    # --- names ---------------------------------------------------------------------------------

    def directory(self, number: int) -> Node:
        node = self.nodes[number]
        if not node.is_dir:
            raise NotADirectory
        return node

    def lookup(self, parent: int, name: bytes) -> int:
        directory = self.directory(parent)
        if len(name) > NAME_MAX:
            raise NameTooLong
        if name not in directory.names:
            raise NotFound
        return directory.names[name]

    def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> int:
        directory = self.directory(parent)
        if len(name) > NAME_MAX:
            raise NameTooLong
        if not directory.nlink:
            raise NotFound
        if name in directory.names:
            raise AlreadyExists
        if target is None:
            mode &= ~caller.umask
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        number = self.next_node
        self.next_node += 1
        now = self.now
        node = Node(mode, caller.uid, gid, now, now, now, rdev=rdev, target=target)
        if node.is_dir:
            node.nlink = 2
            node.parent = parent
            directory.nlink += 1
        self.nodes[number] = node
        directory.names[name] = number
        self._changed(directory)
        return number

    def _changed(self, directory: Node) -> None:
        directory.mtime = directory.ctime = self.now

    def link(self, number: int, parent: int, name: bytes) -> None:
        node, directory = self.nodes[number], self.directory(parent)
        if node.is_dir:
            raise NotPermitted
        if len(name) > NAME_MAX:
            raise NameTooLong
        if not node.nlink or not directory.nlink:
            raise NotFound
        if name in directory.names:
            raise AlreadyExists
        node.nlink += 1
        node.ctime = self.now
        directory.names[name] = number
        self._changed(directory)

    def unlink(self, parent: int, name: bytes) -> None:
        number = self.lookup(parent, name)
        if self.nodes[number].is_dir:
            raise IsADirectory
        del self.nodes[parent].names[name]
        self._changed(self.nodes[parent])
        self._name_lost(number)

    def rmdir(self, parent: int, name: bytes) -> None:
        number = self.lookup(parent, name)
        node = self.nodes[number]
        if not node.is_dir:
            raise NotADirectory
        if node.names:
            raise DirectoryNotEmpty
        del self.nodes[parent].names[name]
        self.nodes[parent].nlink -= 1
        self._changed(self.nodes[parent])
        self._name_lost(number)

    def _name_lost(self, number: int) -> None:
        node = self.nodes[number]
        node.nlink = 0 if node.is_dir else node.nlink - 1
        node.ctime = self.now
        self._reap(number)

    def _reap(self, number: int) -> None:
        if not self.nodes[number].nlink and number not in self.handles:
            del self.nodes[number]

    def _below(self, number: int, ancestor: int) -> bool:
        while number not in (ancestor, ROOT_NODE):
            number = self.nodes[number].parent
        return number == ancestor

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        number = self.lookup(parent, name)
        target_dir = self.directory(new_parent)
        if len(new_name) > NAME_MAX:
            raise NameTooLong
        if not target_dir.nlink:
            raise NotFound
        node = self.nodes[number]
        if node.is_dir and self._below(new_parent, number):
            raise InvalidArgument
        other = target_dir.names.get(new_name)
        if flags & RENAME_EXCHANGE:
            if other is None:
                raise NotFound
            if self.nodes[other].is_dir and self._below(parent, other):
                raise InvalidArgument
            if other != number:
                self._put(parent, name, other)
                self._put(new_parent, new_name, number)
                self._relinked(parent, new_parent, node, self.nodes[other])
            return
        if other is not None:
            if flags & RENAME_NOREPLACE:
                raise AlreadyExists
            if other == number:
                return
            self._check_replaceable(node, self.nodes[other])
        del self.nodes[parent].names[name]
        self._put(new_parent, new_name, number)
        self._relinked(parent, new_parent, node, None)
        if other is not None:
            if self.nodes[other].is_dir:
                target_dir.nlink -= 1
            self._name_lost(other)

    @staticmethod
    def _check_replaceable(node: Node, other: Node) -> None:
        if node.is_dir and not other.is_dir:
            raise NotADirectory
        if other.is_dir and not node.is_dir:
            raise IsADirectory
        if other.names:
            raise DirectoryNotEmpty

    def _put(self, parent: int, name: bytes, number: int) -> None:
        self.nodes[parent].names[name] = number
        if self.nodes[number].is_dir:
            self.nodes[number].parent = parent
        self.nodes[number].ctime = self.now

    def _relinked(self, parent: int, new_parent: int, node: Node, other: Node | None) -> None:
        moved = int(node.is_dir) - int(other is not None and other.is_dir)
        self.nodes[parent].nlink -= moved
        self.nodes[new_parent].nlink += moved
        self._changed(self.nodes[parent])
        self._changed(self.nodes[new_parent])

    # --- files ---------------------------------------------------------------------------------

    def open(self, number: int, *, truncate: bool = False) -> None:
        node = self.nodes[number]
        if node.is_dir:
            raise IsADirectory
        if truncate:
            node.content = b""
            node.mtime = node.ctime = self.now
        self.handles.append(number)

    def release(self, number: int) -> None:
        self.handles.remove(number)
        self._reap(number)

    def read(self, number: int, offset: int, size: int) -> bytes:
        node = self.nodes[number]
        if node.atime <= max(node.mtime, node.ctime) or self.now - node.atime > _DAY_NS:
            node.atime = self.now
        return node.content[offset : offset + size]

    def write(self, number: int, offset: int, data: bytes) -> None:
        node = self.nodes[number]
        if not data:
            return
        content = node.content
        if len(content) < offset:
            content += bytes(offset - len(content))
        node.content = content[:offset] + data + content[offset + len(data) :]
        node.mtime = node.ctime = self.now

    def setattr(self, number: int, changes: AttributeChanges) -> None:
        node = self.nodes[number]
        if changes.size is not None:
            self._truncate(node, changes.size)
        if changes.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes.mode)
        node.uid = node.uid if changes.uid is None else changes.uid
        node.gid = node.gid if changes.gid is None else changes.gid
        node.atime = node.atime if changes.atime_ns is None else changes.atime_ns
        node.mtime = node.mtime if changes.mtime_ns is None else changes.mtime_ns
        node.ctime = self.now if changes.ctime_ns is None else changes.ctime_ns

    def _truncate(self, node: Node, size: int) -> None:
        if node.is_dir:
            raise IsADirectory
        if not stat.S_ISREG(node.mode):
            raise InvalidArgument
        if size < 0:
            raise FileTooLarge
        if size != node.size:
            node.mtime = self.now
        node.content = node.content[:size] + bytes(max(0, size - len(node.content)))

    # --- attributes ----------------------------------------------------------------------------

    def getxattr(self, number: int, name: bytes) -> bytes:
        try:
            return self.nodes[number].xattrs[name]
        except KeyError:
            raise NoAttribute from None

    def setxattr(self, number: int, name: bytes, value: bytes) -> None:
        self.nodes[number].xattrs[name] = value
        self.nodes[number].ctime = self.now

    def removexattr(self, number: int, name: bytes) -> None:
        if self.nodes[number].xattrs.pop(name, None) is None:
            raise NoAttribute
        self.nodes[number].ctime = self.now
