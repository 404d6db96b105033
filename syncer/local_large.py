"""One large file between local folders: cloned, or copied by the kernel piece by piece.

Holes stay holes. What has been copied after a while is brought to the disk and hashed, by a second
thread while the first goes on; the *checkpoint* that is saved then lets a later call go on there,
when the source is still the same and the bytes of the temporary file have that hash.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import trio
from blake3 import blake3

from syncer import linux
from syncer.local_batch import CopyOutcome
from syncer.local_bytes import Method, Ways
from syncer.local_copy import CopyItem, metadata_of
from syncer.local_draft import Draft, umask
from syncer.local_nodes import same
from syncer.local_parts import is_part, kept_name
from syncer.local_root import Directories
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import Changed, RemoteError
from syncer.remotes.local import remote_error, shown, system_errors
from syncer.tree import Node

PIECE_BYTES: Final = 64 << 20  # copied between two looks at whether it is cancelled
PIECE_MIN: Final = 4 << 20
PIECE_S: Final = 0.25  # a piece that takes longer is followed by a smaller one
CHECKPOINT_S: Final = 10.0  # of copying that a crash may cost
_EXTENTS_MAX: Final = 4_096  # in one piece
_HASH_BYTES: Final = 4 << 20

Saver = Callable[[bytes], None]


class Checkpoint(NamedTuple):
    """How far a copy is."""

    temporary: str  # name of the file that is being written
    offset: int  # its bytes that are good
    digest: str  # BLAKE3 of these
    size: int  # of the source; likewise below
    mtime_ns: int
    inode: int
    ctime_ns: int

    def encode(self) -> bytes:
        """As it is stored."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint | None:
        """The other way round; None for what is no checkpoint of this program."""
        try:
            fields: dict[str, Any] = json.loads(data)
            found = cls(**fields)
        except (ValueError, TypeError):
            return None
        numbers = (found.offset, *found[3:])
        if not all(type(each) is int for each in numbers) or found.offset < 0:
            return None
        return found if is_part(found.temporary.encode()) else None

    def of(self, node: Node) -> bool:
        """Whether the source is the one that was copied."""
        token = (self.inode, self.ctime_ns)
        return (self.size, self.mtime_ns, token) == (node.size, node.mtime_ns, node.token)


class _Copy:
    """One copy. For one thread at a time: others wait. Raises RemoteErrors."""

    def __init__(self, source: LocalTree, item: CopyItem, draft: Draft, options: Options) -> None:
        self._source = source
        self._item = item
        self._draft = draft
        self._options = options
        self._where = source.root.path(item.source_path)
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        self._handle = -1
        self._found: os.stat_result | None = None
        self._ways = Ways()
        self._closed = False
        self.offset = 0
        self.copied = 0
        self.method = Method.NOTHING

    @contextlib.contextmanager
    def _mine(self) -> Iterator[tuple[int, int, os.stat_result]]:
        """The open source and temporary file."""
        with self._lock:
            if self._closed:
                raise Changed(f"{shown(self._where)}: copying it was given up")
            if self._found is None:
                self._found = self._begin()
            with self._draft.mine() as target:
                yield self._handle, target, self._found

    def _begin(self) -> os.stat_result:
        try:
            with contextlib.closing(Directories(self._source.root)) as directories:
                self._handle = directories.open_file(self._item.source_path)
            self._open.callback(os.close, self._handle)
            found = os.fstat(self._handle)
        except FileNotFoundError:
            raise Changed(f"{shown(self._where)} is gone") from None
        except OSError as error:
            raise remote_error(self._where, error) from error
        if not same(found, self._item.node):
            raise Changed(f"{shown(self._where)} is not the file that was listed")
        return found

    def clone(self) -> bool:
        """Share all blocks at once, where that can be done."""
        with self._mine() as (source, target, found):
            devices = (found.st_dev, os.fstat(target).st_dev)
            if not found.st_size or not self._ways.clone(source, target, devices):
                return False
            self.method, self.copied, self.offset = Method.REFLINK, found.st_size, found.st_size
            return True

    def advance(self, budget: int, *, flush: bool) -> int:
        """Copy about `budget` bytes more; how many of them were no hole."""
        with self._mine() as (source, target, found):
            devices = (found.st_dev, os.fstat(target).st_dev)
            begun, copied = self.offset, 0
            for _ in range(_EXTENTS_MAX):
                left = budget - copied
                start, length = linux.next_data(source, self.offset, found.st_size, left)
                if length:
                    self.method = self._ways.copy(source, target, start, length, devices)
                self.offset = start + length
                copied += length
                if copied >= budget or self.offset >= found.st_size:
                    break
            if flush and copied:
                linux.start_writing(target, begun, self.offset - begun)
            self.copied += copied
            return copied

    def publish(self, *, durable: bool) -> None:
        """Compare the source with what it was, set metadata, and give the file its name."""
        with self._mine() as (source, _, found):
            metadata = metadata_of(source, found, self._options, mask=umask(), user=os.geteuid())
            if not same(os.fstat(source), self._item.node):
                raise Changed(f"{shown(self._where)} changed while it was copied")
        item = self._item
        self._draft.publish(
            found.st_size, metadata, item.old, replace=item.replace, durable=durable
        )

    def follower(self) -> int:
        """The temporary file once more, for a thread beside; for the caller to close."""
        with self._mine() as (_, target, _):
            return os.dup(target)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._closed = True
            self._open.close()
        self._draft.close()


class _Hasher:
    """The hash of what is in the temporary file, some steps behind its writer."""

    def __init__(self, handle: int, where: bytes) -> None:
        self._handle = handle
        self._where = where
        self._lock = threading.Lock()
        self._hash = blake3(max_threads=1)
        self.offset = 0

    def follow(self, end: int) -> bool:
        """Hash what comes next, up to `end`, a piece at a time; whether that is all."""
        with self._lock, system_errors(self._where):
            stop = min(end, self.offset + PIECE_BYTES)
            while self.offset < stop:
                data = os.pread(self._handle, min(_HASH_BYTES, stop - self.offset), self.offset)
                if not data:
                    raise linux.system_error(errno.EIO)  # shorter than what was written
                self._hash.update(data)
                self.offset += len(data)
            return self.offset >= end

    def flush(self, end: int) -> None:
        """Bring what is written to the disk, holes at its end too."""
        with self._lock, system_errors(self._where):
            if os.fstat(self._handle).st_size < end:
                os.ftruncate(self._handle, end)
            os.fdatasync(self._handle)

    @property
    def digest(self) -> str:
        """Of the bytes up to `offset`."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            os.close(self._handle)


async def copy_large(
    source: LocalTree,
    target: LocalTree,
    item: CopyItem,
    options: Options,
    *,
    checkpoint: bytes | None = None,
    save: Saver | None = None,
    take: Callable[[int], Awaitable[None]] | None = None,
    moved: Callable[[int], None] | None = None,
) -> CopyOutcome:
    """Copy one file; what it took. Its name is on the disk after the target's `sync`.

    `checkpoint`: what was given to `save` in an earlier call; worthless ones are passed over.
    `take` is awaited before so many bytes are moved, `moved` called after. All three are called in
    the trio thread. When this is cancelled or fails, what was saved last still holds; `discard` it
    when nobody will go on. Raises Changed (then nothing is left to go on with), Exists, Full,
    Denied, Unreachable, Unsupported.
    """
    resumed = await _resume(target, item, checkpoint) if options.resume else None
    temporary = resumed[0].temporary.encode() if resumed else b""
    draft = target.draft(item.path, temporary, new=resumed is None)
    copy = _Copy(source, item, draft, options)
    durable = options.durable and target.durable
    hasher = resumed[1] if resumed else None
    try:
        if resumed is not None:
            draft.keep(temporary)
            copy.offset = resumed[0].offset
        if resumed is None and await target.wait(copy.clone):
            if moved is not None:
                moved(copy.copied)
        else:
            if hasher is None and save is not None and options.resume:
                hasher = _Hasher(await target.wait(copy.follower), target.root.path(item.path))
            pieces = partial(_pieces, target, copy, item.node.size, durable, take, moved)
            if hasher is not None and save is not None:
                saver = _Saver(target, copy, draft, hasher, item.node, temporary, save)
                await _beside(pieces, saver.run)
            else:
                await pieces()
        await target.wait(partial(copy.publish, durable=durable))
        return CopyOutcome(None, copy.method, copy.copied)
    except Changed:
        draft.forget()
        raise
    finally:
        if hasher is not None:
            await target.finish(hasher.close)
        await target.finish(copy.close)


async def _beside(
    work: Callable[[], Awaitable[None]], helper: Callable[[], Awaitable[None]]
) -> None:
    """Do the work, with the helper running until it is done. The first error of either is raised.

    Alone: who asked for one file wants no group of errors.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(helper)
            await work()
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _pieces(
    target: LocalTree,
    copy: _Copy,
    size: int,
    durable: bool,
    take: Callable[[int], Awaitable[None]] | None,
    moved: Callable[[int], None] | None,
) -> None:
    budget = PIECE_MIN
    while copy.offset < size:
        if take is not None:
            await take(min(budget, size - copy.offset))
        begun = trio.current_time()
        copied = await target.wait(partial(copy.advance, budget, flush=durable))
        took_s = trio.current_time() - begun
        if moved is not None:
            moved(copied)
        budget = min(budget * 2, PIECE_BYTES) if took_s < PIECE_S / 2 else budget
        budget = max(budget // 2, PIECE_MIN) if took_s > PIECE_S else budget


class _Saver:
    """Saves a checkpoint every now and then while a file is copied.

    The part gets the name that is kept one checkpoint after that has told of it: before, it dies
    with its process, so that nothing is left of which nobody knows.
    """

    def __init__(
        self,
        target: LocalTree,
        copy: _Copy,
        draft: Draft,
        hasher: _Hasher,
        node: Node,
        kept: bytes,
        save: Saver,
    ) -> None:
        """`kept`: the name under which the part was kept before; empty: none."""
        self._target = target
        self._copy = copy
        self._draft = draft
        self._hasher = hasher
        self._node = node
        self._kept = kept
        self._save = save

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(CHECKPOINT_S)
            await self.once()

    async def once(self) -> None:
        """Hash what is there by now, and save how far it is."""
        end = self._copy.offset
        if end <= self._hasher.offset:
            return
        await self._target.wait(self._hasher.flush, end)
        while not await self._target.wait(self._hasher.follow, end):
            pass
        token = self._node.token
        if not isinstance(token, tuple):
            return
        if self._kept:
            await self._target.wait(self._draft.settle)
        else:
            self._kept = kept_name()
        point = Checkpoint(
            self._kept.decode(),
            end,
            self._hasher.digest,
            self._node.size,
            self._node.mtime_ns or 0,
            *token,
        )
        self._draft.keep(self._kept)
        self._save(point.encode())


async def _resume(
    target: LocalTree, item: CopyItem, data: bytes | None
) -> tuple[Checkpoint, _Hasher] | None:
    """What an earlier call left, when it is still good; what is not is removed."""
    found = Checkpoint.decode(data) if data is not None else None
    if found is None:
        return None
    if found.of(item.node):
        hasher = await target.wait(_open_part, target, item.path, found)
        if hasher is not None:
            good = False
            try:
                with contextlib.suppress(RemoteError):
                    while not await target.wait(hasher.follow, found.offset):
                        pass
                    good = hasher.digest == found.digest
            finally:
                if not good:
                    await target.finish(hasher.close)
            if good:
                return found, hasher
    await discard(target, item.path, found.encode())
    return None


def _open_part(target: LocalTree, path: bytes, point: Checkpoint) -> _Hasher | None:
    with contextlib.suppress(OSError, RemoteError):
        with contextlib.closing(Directories(target.root)) as directories:
            folder, _ = directories.spot(path)
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(point.temporary, flags, dir_fd=folder)
        found = os.fstat(handle)
        # Ours, and nobody else's: not one that was put in its place.
        if (
            stat.S_ISREG(found.st_mode)
            and found.st_nlink == 1
            and found.st_uid == os.geteuid()
            and found.st_size >= point.offset
        ):
            return _Hasher(handle, target.root.path(path))
        os.close(handle)
    return None


async def discard(target: LocalTree, path: bytes, checkpoint: bytes) -> None:
    """Remove what a copy to `path` left that nobody will go on with."""
    found = Checkpoint.decode(checkpoint)
    if found is not None:
        await target.run(_unlink_part, target, path, found.temporary.encode())


def _unlink_part(target: LocalTree, path: bytes, temporary: bytes) -> None:
    with (
        contextlib.suppress(OSError, RemoteError),
        contextlib.closing(Directories(target.root)) as directories,
    ):
        os.unlink(temporary, dir_fd=directories.spot(path)[0])
