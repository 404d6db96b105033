"""Carries out single steps by the Tree protocol alone, whatever the two trees are.

What it raises are the trees' errors; who calls it decides whether to try again.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Mapping
from functools import lru_cache

import trio

from syncer.options import Options
from syncer.plan import trash_path
from syncer.remotes.errors import (
    Changed,
    Exists,
    Missing,
    NotEmpty,
    RemoteError,
    Unsupported,
)
from syncer.steps import Step, StepKind, StepResult, StepState
from syncer.transfer_content import BLOCK_BYTES, Pass, digest_of, source_content
from syncer.tree import Features, Metadata, Node, NodeKind, Tree

CHANGED_MAX = 3  # times that a file is read again because it changed meanwhile
SPOILED_MAX = 2  # times that a file is written which then does not verify
_SAME_NAMES_MAX = 1_000  # in the trash
_AHEAD_BYTES = 8 << 20  # of one file that are read before they are asked for


class NotVerified(RemoteError):
    """The destination does not give back what was written: it was removed."""


@lru_cache(maxsize=4096)
def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _gid_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def wanted_metadata(
    node: Node, options: Options, keeps: Features, xattrs: Mapping[bytes, bytes] | None = None
) -> Metadata:
    """What is to be set at the destination for a node of the source.

    Owners go by name where the name is known here, as rsync does it, else by number.
    """
    uid = gid = None
    if options.owners and keeps.owner:
        uid, gid = node.uid, node.gid
        if not options.numeric_ids:
            if node.owner is not None and (known := _uid_of(node.owner)) is not None:
                uid = known
            if node.group is not None and (known := _gid_of(node.group)) is not None:
                gid = known
    times = options.times and keeps.mtime_resolution_ns > 0
    return Metadata(
        mode=node.mode if options.modes and keeps.mode else None,
        uid=uid,
        gid=gid,
        mtime_ns=node.mtime_ns if times else None,
        atime_ns=None,
        xattrs=xattrs if options.xattrs and keeps.xattrs else None,
    )


def private_mode(options: Options, target: Tree) -> int | None:
    """What a directory is made with; None: as anybody's.

    Nobody else may look in before its metadata say so, which they do when all is in it.
    """
    return 0o700 if options.modes and target.features.mode else None


def _same(one: Node, other: Node | None) -> bool:
    return other is not None and (one.size, one.mtime_ns, one.token) == (
        other.size,
        other.mtime_ns,
        other.token,
    )


def _linkable(node: Node) -> bool:
    return node.kind in {NodeKind.FILE, NodeKind.SYMLINK}


class Steps:
    """The trees of one job, and what its steps do to them."""

    def __init__(
        self,
        source: Tree,
        target: Tree,
        options: Options,
        *,
        take: Pass | None = None,
        moved: Callable[[int], None] | None = None,
        ahead_bytes: int = _AHEAD_BYTES,
    ) -> None:
        """`take` waits for bandwidth; `moved` counts bytes as they pass."""
        self.source = source
        self.target = target
        self.options = options
        self.checkpoints: dict[int, bytes] = {}  # of the steps that are being carried out
        self._take = take
        self._moved = moved
        self._ahead = 0
        self.read_ahead(ahead_bytes)

    def read_ahead(self, count: int) -> None:
        """Read so many bytes of each file before they are asked for, from the next file on."""
        self._ahead = max(1, count // BLOCK_BYTES)

    async def metadata(self, step: Step) -> Metadata:
        """What the destination of a step gets."""
        node = step.node
        assert node is not None
        keeps = self.target.features
        xattrs = None
        if self.options.xattrs and keeps.xattrs:
            xattrs = await self.source.xattrs(step.source_path)
        return wanted_metadata(node, self.options, keeps, xattrs)

    async def carry_out(
        self, number: int, step: Step, checkpoint: bytes | None = None
    ) -> StepResult:
        """Do it. `checkpoint`: what was saved when it was last begun. Raises the trees' errors."""
        if checkpoint is not None:
            self.checkpoints[number] = checkpoint
        try:
            return await _TABLE[step.kind](self, number, step)
        finally:
            self.checkpoints.pop(number, None)

    async def mkdir(self, number: int, step: Step) -> StepResult:
        """A directory, in place of a file if need be; its metadata come last."""
        if step.old is not None and step.old.kind is not NodeKind.DIRECTORY:
            step = await self._to_trash(step)
            await self.delete(number, step)
        mode = private_mode(self.options, self.target)
        await self.target.mkdir(step.path, Metadata(mode=mode))
        return StepResult(number, StepState.DONE)

    async def copy(self, number: int, step: Step) -> StepResult:
        """A file. One that changes meanwhile is read again, as it is then."""
        assert step.node is not None
        changes = spoiled = 0
        if not step.node.exact:
            step = step._replace(node=await self._as_it_is(step))
        while True:
            try:
                return await self._copy(number, step)
            except NotVerified:
                spoiled += 1
                if spoiled == SPOILED_MAX:
                    raise
                step = step._replace(old=None)  # what was written has been removed
            except (Changed, Exists) as error:
                now = await self._as_it_is(step)
                if _same(now, step.node):
                    fresh = await self._relinked(step)
                    if fresh is not None and changes < CHANGED_MAX:
                        changes += 1
                        step = step._replace(old=fresh)
                        continue
                    # It is the destination that is another one: by us, before a crash?
                    if await self._is_there(step):
                        return StepResult(number, StepState.DONE, bytes_saved=now.size)
                    if step.old is not None and await self._is_gone(step.path):
                        step = step._replace(old=None)  # nothing is lost by writing it
                        continue
                    raise type(error)(f"{error}; run the job again to compare anew") from None
                changes += 1
                if changes > CHANGED_MAX:
                    raise Changed("it changes again and again while it is read") from None
                step = step._replace(node=now)

    async def _relinked(self, step: Step) -> Node | None:
        """What is there now, if it is what was there but for its other names.

        Making or deleting one name of a file changes what the others show of it.
        """
        old = step.old
        if old is None or old.link is None:
            return None
        try:
            now = await self.target.stat(step.path)
        except Missing:
            return None
        if now.token == old.token or (now.kind, now.size, now.mtime_ns) != (
            old.kind,
            old.size,
            old.mtime_ns,
        ):
            return None
        # A link is named by the file that it is; with its last name that is not told any more.
        return now if now.link in {old.link, None} else None

    async def _is_gone(self, path: bytes) -> bool:
        try:
            await self.target.stat(path)
        except Missing:
            return True
        return False

    async def _is_there(self, step: Step) -> bool:
        """Whether the destination has the content, and the time, that this step would give it."""
        assert step.node is not None
        try:
            there = await self.target.stat(step.path)
        except Missing:
            return False
        if there.kind is not NodeKind.FILE or there.size != step.node.size:
            return False
        resolution_ns = self.target.features.mtime_resolution_ns
        if self.options.times and resolution_ns and not self.options.verify:
            wanted_ns, found_ns = step.node.mtime_ns, there.mtime_ns
            if wanted_ns is None or found_ns is None:
                return False
            return abs(found_ns - wanted_ns) < resolution_ns
        return await self._digest(self.source, step.source_path, step.node) == await self._digest(
            self.target, step.path, there
        )

    async def _digest(self, tree: Tree, path: bytes, node: Node) -> bytes:
        return await digest_of(tree, path, node, ahead=self._ahead)

    async def _as_it_is(self, step: Step) -> Node:
        node = await self.source.stat(step.source_path)
        if node.kind is not NodeKind.FILE:
            raise Unsupported("the source is no file any more; run the job again")
        return node

    async def _copy(self, number: int, step: Step) -> StepResult:
        """Once. Raises Changed, NotVerified."""
        node, began = step.node, trio.current_time()
        assert node is not None
        step = await self._to_trash(step)
        ranges = None
        if self.target.features.holes and (node.allocated is None or node.allocated < node.size):
            ranges = await self.source.data_ranges(step.source_path, node)
        metadata = await self.metadata(step)
        async with source_content(
            self.source,
            step.source_path,
            node,
            ahead=self._ahead,
            before=self._take,
            after=self._moved,
            hashed=self.options.verify,
            ranges=ranges,
        ) as content:
            written = await self.target.write(
                step.path,
                content,
                metadata,
                ranges=ranges,
                old=step.old,
                replace=step.old is not None,
            )
            checksum = ""
            if self.options.verify:
                checksum = await self._verify(step, content.digest, written)
        return StepResult(
            number,
            StepState.DONE,
            bytes_moved=content.bytes_read,
            bytes_saved=max(0, node.size - content.bytes_read),
            checksum=checksum,
            seconds=trio.current_time() - began,
        )

    async def _to_trash(self, step: Step) -> Step:
        """Give what is replaced a second name in the trash, or move it there; the step afterwards.

        Where there are no second names, the file is away for as long as the new one takes.
        """
        old = step.old
        if not self.options.trash or old is None or old.kind is NodeKind.DIRECTORY:
            return step
        place = trash_path(self.options, step.path)
        if not (self.target.features.hard_links and _linkable(old)):
            await self._into_trash(step.path, place, link=False)
            return step._replace(old=None)
        await self._into_trash(step.path, place, link=True)
        now = await self.target.stat(step.path)
        if (now.kind, now.size, now.mtime_ns) != (old.kind, old.size, old.mtime_ns):
            raise Changed("it is not what it was when it was listed")
        return step._replace(old=now)  # having one name more shows in its token

    async def _into_trash(self, path: bytes, place: bytes, *, link: bool) -> bool:
        """False: there is nothing."""
        parent = place.rpartition(b"/")[0]
        if parent:
            await self.target.mkdir(parent, Metadata())
        chosen = place
        for number in range(1, _SAME_NAMES_MAX):
            try:
                if link:
                    await self._free(chosen)
                    await self.target.hard_link(chosen, path)
                else:
                    await self.target.rename(path, chosen)
            except Missing:
                return False
            except Exists:
                chosen = b"%s.%d" % (place, number)
            else:
                return True
        raise Exists(f"the trash has {_SAME_NAMES_MAX} files of this name: empty it")

    async def _free(self, path: bytes) -> None:
        """Raise Exists when a name is taken: hard_link would replace it."""
        try:
            await self.target.stat(path)
        except Missing:
            return
        raise Exists("taken")

    async def _verify(self, step: Step, sent: bytes | None, written: Node) -> str:
        """Read the destination back. `sent`: BLAKE3 of what was; None: the source is read again."""
        assert step.node is not None
        if sent is None:
            sent = await self._digest(self.source, step.source_path, step.node)
        if not written.exact:
            written = await self.target.stat(step.path)
        kept = b""
        if written.size == step.node.size:
            kept = await self._digest(self.target, step.path, written)
        if kept != sent:
            # As it is now: somebody else may have spoilt it.
            await self.target.delete(step.path, await self.target.stat(step.path))
            raise NotVerified(
                "the destination gave back other bytes than were written, and was removed"
            )
        return f"blake3:{kept.hex()}"

    async def symlink(self, number: int, step: Step) -> StepResult:
        """A symlink."""
        assert step.node is not None
        if step.node.target is None:
            raise Unsupported("the source does not say where the symlink leads")
        target = step.node.target
        step = await self._to_trash(step)
        await self.target.symlink(step.path, target, await self.metadata(step))
        return StepResult(number, StepState.DONE)

    async def special(self, number: int, step: Step) -> StepResult:
        """A pipe, socket or device."""
        node = step.node
        assert node is not None
        step = await self._to_trash(step)
        await self.target.special(step.path, node, await self.metadata(step))
        return StepResult(number, StepState.DONE)

    async def link(self, number: int, step: Step) -> StepResult:
        """One more name."""
        step = await self._to_trash(step)
        await self.target.hard_link(step.path, step.source_path)
        size = step.node.size if step.node is not None else 0
        return StepResult(number, StepState.DONE, bytes_saved=size)

    async def set_metadata(self, number: int, step: Step) -> StepResult:
        """Of what has the right content."""
        await self.target.set_metadata(step.path, await self.metadata(step))
        return StepResult(number, StepState.DONE)

    async def trash(self, number: int, step: Step) -> StepResult:
        """Move a name out of the way; what the trash has under that name stays, too."""
        found = await self._into_trash(step.path, step.source_path, link=False)
        return StepResult(number, StepState.DONE if found else StepState.SKIPPED)

    async def delete(self, number: int, step: Step) -> StepResult:
        """A name, or an empty directory."""
        assert step.old is not None
        try:
            try:
                await self.target.delete(step.path, step.old)
            except Changed:
                fresh = await self._relinked(step)
                if fresh is None:
                    raise
                await self.target.delete(step.path, fresh)
        except Missing:
            return StepResult(number, StepState.SKIPPED)
        except NotEmpty:
            raise NotEmpty(
                "it is not empty: something in it was kept, left out, or came meanwhile"
            ) from None
        return StepResult(number, StepState.DONE)

    async def replace(self, number: int, step: Step) -> StepResult:
        """Where a directory was until now."""
        assert step.node is not None
        if step.node.kind is NodeKind.FILE:
            return await self.copy(number, step)
        if step.node.kind is NodeKind.SYMLINK:
            return await self.symlink(number, step)
        return await self.special(number, step)


_TABLE = {
    StepKind.MKDIR: Steps.mkdir,
    StepKind.COPY: Steps.copy,
    StepKind.SYMLINK: Steps.symlink,
    StepKind.SPECIAL: Steps.special,
    StepKind.LINK: Steps.link,
    StepKind.METADATA: Steps.set_metadata,
    StepKind.TRASH: Steps.trash,
    StepKind.DELETE: Steps.delete,
    StepKind.REPLACE: Steps.replace,
    StepKind.DIRECTORY_METADATA: Steps.set_metadata,
}
