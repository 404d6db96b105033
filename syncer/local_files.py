"""What is done with single files below a local root. Blocks: for threads. Raises RemoteErrors."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from syncer import linux
from syncer.local_nodes import Owners, apply, node_of, read_xattrs, same
from syncer.local_parts import PartNames
from syncer.local_root import (
    OPEN_BELOW,
    OPEN_DIRECTORY,
    OPEN_FILE,
    OPEN_PATH,
    LocalRoot,
    Spot,
    move,
    opened,
    read_all,
    split,
    sync_directory,
)
from syncer.local_scan import remove_dead_parts
from syncer.remotes.errors import Changed, Exists, Garbled, Missing, Unreachable, Unsupported
from syncer.remotes.local import shown, system_errors
from syncer.tree import FORMAT_OF_KIND, ROOT, Metadata, Node, NodeKind

NOTHING: Final = Metadata()


def check_old(spot: Spot, where: bytes, old: Node) -> None:
    """Raise Changed when something else is there than `old`."""
    try:
        found = os.stat(spot[1], dir_fd=spot[0], follow_symlinks=False)
    except FileNotFoundError:
        raise Changed(f"{shown(where)} is gone: it was to be replaced") from None
    if not same(found, old):
        raise Changed(f"{shown(where)} is not what it was when it was listed") from None


def publish(spot: Spot, temporary: bytes, where: bytes, old: Node | None, *, replace: bool) -> None:
    """Give what was written its name. See Tree.write. Raises Changed, Exists, OSError."""
    if old is not None:
        check_old(spot, where, old)
    try:
        move((spot[0], temporary), spot, replace=replace or old is not None)
    except IsADirectoryError:
        raise Exists(f"{shown(where)} is a directory: remove it first") from None
    except FileExistsError:
        raise Exists(f"{shown(where)} is there already") from None


class LocalFiles:
    """Single files, directories, links and specials below a root. For any thread."""

    def __init__(
        self, root: LocalRoot, owners: Owners, parts: PartNames, touch: Callable[[int], None]
    ) -> None:
        """`touch` is called with the open directory before something in it is changed."""
        self._root = root
        self._owners = owners
        self._parts = parts
        self._touch = touch

    def _where(self, path: bytes) -> str:
        return shown(self._root.path(path))

    @contextlib.contextmanager
    def _spot(self, path: bytes, *, make: bool = False) -> Iterator[Spot]:
        with (
            system_errors(self._root.path(path)),
            self._root.spot(split(path), make=make) as spot,
        ):
            yield spot

    @contextlib.contextmanager
    def _changed(self, path: bytes, *, make: bool = False) -> Iterator[Spot]:
        with self._spot(path, make=make) as spot:
            self._touch(spot[0])
            yield spot

    def stat(self, path: bytes) -> Node:
        """See Tree."""
        name = path.rpartition(b"/")[2]
        try:
            with self._spot(path) as (folder, own), opened(own, OPEN_PATH, folder) as handle:
                found = os.fstat(handle)
                link = stat.S_ISLNK(found.st_mode)
                target = os.readlink(b"", dir_fd=handle) if link else None
                return node_of(name, found, self._owners, target)
        except Missing:
            if path != ROOT:
                raise
            # As far as anybody knows, nothing below it has been deleted.
            raise Unreachable(f"{self._where(ROOT)} is not there: is its disk mounted?") from None

    @contextlib.contextmanager
    def pinned(self, path: bytes, node: Node) -> Iterator[int]:
        """The open file, which is the one of `node` before and after. Raises Changed."""
        try:
            with self._spot(path) as (folder, name), opened(name, OPEN_FILE, folder) as handle:
                if not same(os.fstat(handle), node):
                    raise Changed(f"{self._where(path)} is not the file that was listed")
                yield handle
                if not same(os.fstat(handle), node):
                    raise Changed(f"{self._where(path)} changed while it was read")
        except Missing:
            raise Changed(f"{self._where(path)} is gone") from None

    def read(self, path: bytes, node: Node, offset: int, length: int) -> bytes:
        """See Tree."""
        with self.pinned(path, node) as handle:
            data = read_all(handle, offset, length)
        if len(data) != length:
            raise Garbled(f"{self._where(path)} gave {len(data)} of {length} bytes at {offset}")
        return data

    def data_ranges(self, path: bytes, node: Node) -> Sequence[tuple[int, int]]:
        """See Tree."""
        with self.pinned(path, node) as handle:
            return linux.data_runs(handle, node.size)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        """See Tree."""
        with self._spot(path) as (folder, name), opened(name, OPEN_PATH, folder) as handle:
            return read_xattrs(b"/proc/self/fd/%d" % handle)

    def mkdir(self, path: bytes, metadata: Metadata) -> None:
        """See Tree. The root itself is made with what is missing above it."""
        if path == ROOT:
            with system_errors(self._root.root):
                os.makedirs(self._root.root, exist_ok=True)  # noqa: PTH103 - a path of bytes
                with opened(self._root.root, OPEN_DIRECTORY) as handle:
                    self._touch(handle)
            return
        with self._changed(path, make=True) as (folder, name):
            try:
                os.mkdir(name, dir_fd=folder)
            except FileExistsError:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    raise Exists(f"{self._where(path)} is there, and no directory") from None
                return
            if metadata != NOTHING:
                with opened(name, OPEN_BELOW, folder) as handle:
                    apply(handle, metadata)

    def _place(self, path: bytes, make: Callable[[Spot], None], metadata: Metadata) -> None:
        """Make something under a temporary name, then put it in place of a file or symlink."""
        with self._changed(path, make=True) as spot:
            folder, temporary = spot[0], self._parts.new()
            make((folder, temporary))
            try:
                if metadata != NOTHING:
                    with opened(temporary, OPEN_PATH, folder) as handle:
                        apply(handle, metadata, path_only=True)
                publish(spot, temporary, self._root.path(path), None, replace=True)
            finally:
                # Gone already, but after a rename over another name of the same file.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)

    def symlink(self, path: bytes, target: bytes, metadata: Metadata) -> None:
        """See Tree."""
        self._place(
            path, lambda at: os.symlink(target, at[1], dir_fd=at[0]), metadata._replace(mode=None)
        )

    def hard_link(self, path: bytes, existing: bytes) -> None:
        """See Tree."""
        with self._spot(existing) as (folder, name):

            def make(at: Spot) -> None:
                os.link(name, at[1], src_dir_fd=folder, dst_dir_fd=at[0], follow_symlinks=False)

            self._place(path, make, NOTHING)

    def special(self, path: bytes, node: Node, metadata: Metadata) -> None:
        """See Tree."""
        if node.kind in {NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK}:
            raise Unsupported(f"{self._where(path)}: a {node.kind.value} is nothing special")
        format_ = FORMAT_OF_KIND[node.kind]
        self._place(
            path,
            lambda at: os.mknod(at[1], format_ | 0o600, node.rdev, dir_fd=at[0]),
            metadata if metadata.mode is not None else metadata._replace(mode=node.mode),
        )

    def set_metadata(self, path: bytes, metadata: Metadata) -> None:
        """See Tree."""
        with self._changed(path) as (folder, name), opened(name, OPEN_PATH, folder) as handle:
            apply(handle, metadata, path_only=True)

    def delete(self, path: bytes, node: Node) -> None:
        """See Tree. Of a directory, what dead writers left in it goes too."""
        with self._changed(path) as spot:
            folder, name = spot
            if node.kind is not NodeKind.DIRECTORY:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not same(found, node):
                    raise Changed(f"{self._where(path)} is not what was to be deleted")
                os.unlink(name, dir_fd=folder)
                return
            if path == ROOT:
                raise Unsupported(f"{self._where(ROOT)}: the root stays where it is")
            try:
                os.rmdir(name, dir_fd=folder)
            except NotADirectoryError:
                raise Changed(f"{self._where(path)} is no directory any more") from None
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                with opened(name, OPEN_BELOW, folder) as handle:
                    removed = remove_dead_parts(handle, self._parts.boot)
                if not removed:
                    raise linux.system_error(errno.ENOTEMPTY) from None
                os.rmdir(name, dir_fd=folder)

    def rename(self, path: bytes, new_path: bytes) -> None:
        """See Tree."""
        if ROOT in {path, new_path}:
            raise Unsupported(f"{self._where(ROOT)}: the root stays where it is")
        with self._changed(path) as spot:
            os.stat(spot[1], dir_fd=spot[0], follow_symlinks=False)
            with self._changed(new_path, make=True) as new_spot:
                move(spot, new_spot, replace=False)

    def clean(self, path: bytes) -> int:
        """Remove what dead writers left in a directory; how many files."""
        with (
            system_errors(self._root.path(path)),
            self._root.directory(split(path)) as handle,
        ):
            removed = remove_dead_parts(handle, self._parts.boot)
            if removed:
                sync_directory(handle)
            return removed
