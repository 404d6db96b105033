"""Many small files, written under temporary names, brought to the disk at once, then named.

One sync of the file system before the renames of a batch promises what an fsync of each file
would, for a hundredth of the journal's commits. Blocks: for threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from syncer.local_bytes import Method
from syncer.local_files import publish
from syncer.local_nodes import read_xattrs
from syncer.local_root import OPEN_NEW, Directories
from syncer.options import Options
from syncer.remotes.errors import Full, RemoteError
from syncer.remotes.local import remote_error, system_errors
from syncer.tree import Node

if TYPE_CHECKING:
    from syncer.local_tree import LocalTree


class CopyOutcome(NamedTuple):
    """What became of one file of a batch."""

    error: RemoteError | None = None  # None: it is there, whole
    method: Method = Method.NOTHING
    bytes_copied: int = 0  # holes are not counted


class Place(NamedTuple):
    """Where a file of a batch goes."""

    path: bytes
    old: Node | None  # what may be replaced
    replace: bool  # where `old` is None: whatever is there, or nothing at all


UNDONE: Final = CopyOutcome()
_PRIVATE: Final = 0o600


class Fresh(NamedTuple):
    """What a file that was just made in a directory has, and so the next one made alike."""

    found: os.stat_result
    bare: bool  # no extended attributes


class NewFiles:
    """What files of a batch are made with, and have then. For any thread."""

    def __init__(self, options: Options) -> None:
        self._options = options
        # By the directory and the mode that is asked for.
        self._seen: dict[tuple[bytes, int], Fresh] = {}

    def mode(self, path: bytes, node: Node) -> int:
        """What to make a file with: its own mode, unless it is, or may be, to be somebody else's.

        Then it need not be set again.
        """
        options = self._options
        if node.mode is None:
            return _PRIVATE
        if options.owners:
            new = self._seen.get((path.rpartition(b"/")[0], _PRIVATE))
            if new is None or new.found.st_uid != node.uid or new.found.st_gid != node.gid:
                return _PRIVATE
        return node.mode & 0o777 if options.modes else 0o666

    def made(self, path: bytes, mode: int, handle: int) -> Fresh:
        """What a new file has; asked of the system for the first of a directory and mode."""
        like = (path.rpartition(b"/")[0], mode)
        new = self._seen.get(like)
        if new is None:
            bare = not (self._options.xattrs and read_xattrs(handle))
            new = self._seen[like] = Fresh(os.fstat(handle), bare)
        return new


class Batch:
    """Files that get their names together. `write` them, then `publish`; `close` it in any case.

    `write` may be called from several threads, each with its own Directories of the target.
    """

    def __init__(self, target: LocalTree, places: Sequence[Place], *, durable: bool) -> None:
        self._target = target
        self._places = places
        self._durable = durable
        self._written: list[tuple[int, bytes]] = []  # numbers of places, temporary names
        self._writers = threading.Condition()
        self._running = 0
        self._stopped = False
        self._full: Full | None = None
        self.outcomes: list[CopyOutcome] = [UNDONE] * len(places)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._writers:
            self._running += 1
        try:
            yield
        finally:
            with self._writers:
                self._running -= 1
                self._writers.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Directories]:
        """The target's directories for one thread's writing; `close` waits until it has ended."""
        with (
            self._at_work(),
            contextlib.closing(
                Directories(self._target.root, self._target.touched.note)
            ) as directories,
        ):
            yield directories

    @property
    def stopped(self) -> bool:
        """Whether whoever writes should end."""
        return self._stopped

    def stop(self) -> None:
        """Have everything end soon, with nothing published that is not yet."""
        self._stopped = True

    def fail(self, number: int, error: RemoteError) -> None:
        """Say that a file could not be written. A full disk fails all that come after."""
        self.outcomes[number] = CopyOutcome(error)
        if isinstance(error, Full):
            self._full = error

    def write(
        self,
        directories: Directories,
        number: int,
        fill: Callable[[int], CopyOutcome],
        mode: int = 0o600,
    ) -> None:
        """Make a new file and have it filled; it is one of the batch if nothing is raised.

        `fill` gets the file, open for writing and reading; RemoteErrors and OSErrors that it raises
        become the file's outcome. `mode`: what it is made with, readable by no more than it is to
        be in the end.
        """
        place = self._places[number]
        try:
            if self._full is not None:
                raise self._full
            folder, _ = directories.spot(place.path, make=True)
            temporary = self._target.parts.new()
            handle = os.open(temporary, OPEN_NEW, mode, dir_fd=folder)
            try:
                outcome = fill(handle)
            except BaseException:
                self._remove(directories, place.path, temporary)
                raise
            finally:
                os.close(handle)
            self.outcomes[number] = outcome
            self._written.append((number, temporary))
        except OSError as error:
            self.fail(number, remote_error(self._target.root.path(place.path), error))
        except RemoteError as error:
            self.fail(number, error)

    def _remove(self, directories: Directories, path: bytes, temporary: bytes) -> None:
        with contextlib.suppress(OSError, RemoteError):
            os.unlink(temporary, dir_fd=directories.spot(path)[0])

    def publish(self) -> list[CopyOutcome]:
        """Bring all to the disk, and give them their names; what became of each.

        The names are on the disk after the tree's next `sync`.
        """
        self.store()
        self.name()
        return self.outcomes

    def store(self) -> None:
        """Bring what was written to the disk. If that fails, nothing is published."""
        with self._at_work():
            if not (self._durable and self._written) or self._stopped:
                return
            try:
                with system_errors(self._target.root.root):
                    self._target.touched.sync()
            except RemoteError as error:
                for number, _ in self._written:  # none of them is known to be on the disk
                    self.fail(number, error)
                self.stop()  # `close` removes the files

    def name(self) -> None:
        """Give all that is stored its names."""
        with (
            self._at_work(),
            contextlib.closing(Directories(self._target.root)) as directories,
        ):
            while self._written and not self._stopped:
                number, temporary = self._written.pop()
                self._name(directories, number, temporary)

    def _name(self, directories: Directories, number: int, temporary: bytes) -> None:
        place = self._places[number]
        where = self._target.root.path(place.path)
        try:
            spot = directories.spot(place.path)
            publish(spot, temporary, where, place.old, replace=place.replace)
        except OSError as error:
            self.fail(number, remote_error(where, error))
        except RemoteError as error:
            self.fail(number, error)
        else:
            return
        self._remove(directories, place.path, temporary)

    def close(self) -> None:
        """Wait until nobody writes any more, and remove what was not published."""
        self._stopped = True
        with self._writers:
            self._writers.wait_for(lambda: not self._running)
        with contextlib.closing(Directories(self._target.root)) as directories:
            while self._written:
                number, temporary = self._written.pop()
                self._remove(directories, self._places[number].path, temporary)
