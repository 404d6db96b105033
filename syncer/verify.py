"""Whether two trees are alike: names, kinds, sizes and contents, and metadata on request.

Contents are compared by what both trees know of them (checksums of one kind, content ids), else by
reading both sides in ranges, several files at a time. Nothing is written.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import trio

from syncer.diff import Rules, metadata_reason, rules_of, same_checksum
from syncer.filters import Filters
from syncer.options import Mode, Options, Verb
from syncer.remotes.errors import RemoteError
from syncer.small_reads import Wanted, read_small, reads_together
from syncer.tree import Node, NodeKind, Tree, Whole
from syncer.walk import lists_ahead, walk
from syncer.walk_events import Directory, Enter, Event, Pair, Problem, Side

BLOCK_BYTES: Final = 4 << 20  # compared at a time
BLOCKS_AHEAD: Final = 4  # of one file, from both sides: 32 MiB
FILES_AT_ONCE_MAX: Final = 8  # 256 MiB in all
SMALL_BYTES_MAX: Final = 1 << 20  # files that are read with others
GROUP_FILES: Final = 256
DIFFERENCES_KEPT: Final = 100  # by the summary; all are told

_FILE: Final = NodeKind.FILE
_DIRECTORY: Final = NodeKind.DIRECTORY
_SYMLINK: Final = NodeKind.SYMLINK


class What(enum.StrEnum):
    """How a name differs."""

    MISSING = "missing"  # at the second tree
    EXTRA = "extra"  # there only
    KIND = "kind"
    SIZE = "size"
    CONTENT = "content"
    TARGET = "target"  # of a symlink
    DEVICE = "device"
    METADATA = "metadata"
    UNREADABLE = "unreadable"  # nobody knows whether it differs


class Difference(NamedTuple):
    """One name at which the trees are not alike."""

    path: bytes
    what: What
    detail: str = ""  # for people


Take = Callable[[int], Awaitable[None]]
_Group = list[Pair | Directory]
_Wholes = tuple[Whole, Whole]  # of both sides
DifferenceSink = Callable[[Difference], Awaitable[None]]


@dataclass(slots=True)
class Verified:
    """What was compared, and what was found; complete when `verify` has returned."""

    files: int = 0  # on both sides; all that is no directory
    directories: int = 0
    bytes_known: int = 0  # compared by checksums or ids
    bytes_read: int = 0  # of one side
    left_out: int = 0  # by filters or options
    counts: dict[What, int] = field(default_factory=lambda: dict.fromkeys(What, 0))
    differences: list[Difference] = field(default_factory=list)  # the first of them

    @property
    def count(self) -> int:
        """Differences in all."""
        return sum(self.counts.values())

    @property
    def alike(self) -> bool:
        """Whether everything could be compared and was equal. If not, the data did not verify."""
        return not self.count


async def verify(
    one: Tree,
    other: Tree,
    options: Options,
    filters: Filters,
    sink: DifferenceSink,
    *,
    metadata: bool = False,
    verified: Verified | None = None,
    parallel: int = 0,
    take: Take | None = None,
) -> Verified:
    """Compare `one` with `other`, which is to be its copy, and tell `sink` where they differ.

    `metadata`: also modes, owners, times and extended attributes, as far as the options ask for
    them and both trees know them. Otherwise names, kinds and contents alone. `parallel`: files at a
    time; 0: chosen. `take` waits for bandwidth. Raises what the trees' roots raise.
    """
    summary = Verified() if verified is None else verified
    run = _Verification(one, other, options, sink, summary, metadata=metadata, take=take)
    if parallel:
        run.at_once = parallel
    # Everything is looked at on both sides; nothing is skipped for being there already.
    looking = replace(options, mode=Mode.MIRROR, ignore_existing=False, force=True)
    rules = rules_of(Verb.SYNC, looking, one.features, other.features)
    everything = replace(rules, symlinks=True, specials=True, directories=True)
    await walk(one, other, looking, everything, filters, run.take, quick=False)
    return summary


class _Verification:
    def __init__(
        self,
        one: Tree,
        other: Tree,
        options: Options,
        sink: DifferenceSink,
        summary: Verified,
        *,
        metadata: bool,
        take: Take | None,
    ) -> None:
        self._take = take
        self._one = one
        self._other = other
        self._sink = sink
        self._summary = summary
        self._rules: Rules | None = None
        if metadata:
            self._rules = rules_of(Verb.SYNC, options, one.features, other.features)
        self._together = reads_together(one) or reads_together(other)
        self._with_xattrs = self._rules is not None and self._rules.xattrs
        self.at_once = min(FILES_AT_ONCE_MAX, max(4, lists_ahead(one, other)))

    async def take(self, events: Sequence[Event]) -> None:
        """See walk.EventSink."""
        pairs: list[Pair | Directory] = []
        for event in events:
            if isinstance(event, Problem):
                await self._tell(event.path, What.UNREADABLE, f"{event.side.value}: {event.error}")
            elif isinstance(event, Enter):
                pairs.append(event.directory)
            elif isinstance(event, Pair):
                if event.kept:
                    pairs.append(event)
                else:
                    self._summary.left_out += 1
        groups = self._groups(pairs)
        waiting = iter(groups)
        async with trio.open_nursery() as nursery:
            for _ in range(min(self.at_once, len(groups))):
                nursery.start_soon(self._compare_some, waiting)

    async def _compare_some(self, waiting: Iterator[_Group]) -> None:
        for group in waiting:
            both = await self._read(group) if len(group) > 1 else [None]
            for pair, wholes in zip(group, both, strict=True):
                try:
                    await self._compare(pair, wholes)
                except RemoteError as error:
                    await self._tell(pair.path, What.UNREADABLE, str(error))

    def _groups(self, pairs: Sequence[Pair | Directory]) -> list[_Group]:
        """Small files that are to be read, some at a time; each of the others alone."""
        groups: list[_Group] = []
        group: _Group = []
        size = 0
        for pair in pairs:
            if not self._small(pair):
                groups.append([pair])
                continue
            assert pair.source is not None
            if len(group) == GROUP_FILES or size + pair.source.size > BLOCK_BYTES:
                groups.append(group)
                group, size = [], 0
            group.append(pair)
            size += pair.source.size
        if group:
            groups.append(group)
        return groups

    def _small(self, pair: Pair | Directory) -> bool:
        one, other = pair.source, pair.destination
        return (
            self._together
            and one is not None
            and other is not None
            and one.kind is other.kind is _FILE
            and one.exact
            and other.exact
            and one.size == other.size <= SMALL_BYTES_MAX
            and known_same(one, other) is None
        )

    async def _read(self, group: _Group) -> list[_Wholes | None]:
        """Both sides of small files; None where one could not be read like this."""
        sides: dict[Side, Sequence[Whole | RemoteError]] = {}
        take_one, take_other = _takes(self._one, self._other, self._take)

        async def read(side: Side, tree: Tree, wanted: Sequence[Wanted], take: Take | None) -> None:
            if take is not None:
                await take(sum(node.size for _, node in wanted))
            sides[side] = await read_small(tree, wanted, xattrs=self._with_xattrs)

        ones = [(pair.source_path, pair.source) for pair in group if pair.source is not None]
        others = [(pair.path, pair.destination) for pair in group if pair.destination is not None]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, Side.SOURCE, self._one, ones, take_one)
            nursery.start_soon(read, Side.DESTINATION, self._other, others, take_other)
        return [
            (one, other) if isinstance(one, Whole) and isinstance(other, Whole) else None
            for one, other in zip(sides[Side.SOURCE], sides[Side.DESTINATION], strict=True)
        ]

    async def _tell(self, path: bytes, what: What, detail: str = "") -> None:
        difference = Difference(path, what, detail)
        summary = self._summary
        summary.counts[what] += 1
        if len(summary.differences) < DIFFERENCES_KEPT:
            summary.differences.append(difference)
        await self._sink(difference)

    async def _compare(self, pair: Pair | Directory, wholes: _Wholes | None) -> None:
        one, other, path = pair.source, pair.destination, pair.path
        if one is None or other is None:
            node = one or other
            # Where directories do not exist by themselves, only what is in them counts.
            side = self._other if other is None else self._one
            assert node is not None
            if node.kind is not _DIRECTORY or side.features.directories:
                await self._tell(path, What.MISSING if other is None else What.EXTRA)
            return
        if one.kind is not other.kind:
            await self._tell(path, What.KIND, f"{one.kind.value}, {other.kind.value} there")
            return
        if one.kind is _DIRECTORY:
            self._summary.directories += 1
        else:
            self._summary.files += 1
        if one.kind is _FILE:
            if one.size != other.size:
                await self._tell(path, What.SIZE, f"{one.size} bytes, {other.size} there")
                return
            if not await self._same_content(pair, one, other, wholes):
                await self._tell(path, What.CONTENT)
                return
        elif one.kind is _SYMLINK and one.target != other.target:
            await self._tell(path, What.TARGET, f"{one.target!r}, {other.target!r} there")
            return
        elif one.rdev != other.rdev:
            await self._tell(path, What.DEVICE)
            return
        if self._rules is not None:
            await self._compare_metadata(self._rules, pair, one, other, wholes)

    async def _same_content(
        self, pair: Pair | Directory, one: Node, other: Node, wholes: _Wholes | None
    ) -> bool:
        if wholes is not None:
            self._summary.bytes_read += one.size
            return wholes[0].data == wholes[1].data
        known = known_same(one, other)
        if known is not None:
            self._summary.bytes_known += one.size
            return known
        same = await same_bytes(
            self._one, pair.source_path, one, self._other, pair.path, other, take=self._take
        )
        self._summary.bytes_read += one.size
        return same

    async def _compare_metadata(
        self,
        rules: Rules,
        pair: Pair | Directory,
        one: Node,
        other: Node,
        wholes: _Wholes | None,
    ) -> None:
        if not one.exact:
            one = await self._one.stat(pair.source_path)
        if not other.exact:
            other = await self._other.stat(pair.path)
        reason = metadata_reason(rules, one, other)
        if not reason and rules.xattrs and one.kind is not _SYMLINK:
            if wholes is not None:
                same = wholes[0].xattrs == wholes[1].xattrs
            else:
                same = await same_xattrs(self._one, pair.source_path, self._other, pair.path)
            reason = "" if same else "extended attributes differ"
        if reason:
            await self._tell(pair.path, What.METADATA, reason)


async def same_xattrs(one: Tree, one_path: bytes, other: Tree, other_path: bytes) -> bool:
    """Whether two names have equal extended attributes."""
    return dict(await one.xattrs(one_path)) == dict(await other.xattrs(other_path))


def known_same(one: Node, other: Node) -> bool | None:
    """Whether two files have equal bytes by what their trees know of them; None: nobody knows."""
    if one.size != other.size:
        return False
    if one.content is not None and one.content == other.content:
        return True
    return same_checksum(one.checksum, other.checksum)


async def same_content(
    one: Tree, one_path: bytes, node: Node, other: Tree, other_path: bytes, there: Node
) -> bool:
    """Whether two files have equal bytes: by what both trees know, else by reading both.

    Raises Changed, and what reading raises.
    """
    known = known_same(node, there)
    if known is not None:
        return known
    return await same_bytes(one, one_path, node, other, other_path, there)


async def same_bytes(
    one: Tree,
    one_path: bytes,
    node: Node,
    other: Tree,
    other_path: bytes,
    there: Node,
    *,
    take: Take | None = None,
) -> bool:
    """Read two files of one size in ranges, several at once, until they differ.

    `take` waits for bandwidth: for what comes over a wire, if anything does. Raises Changed, and
    what reading raises.
    """
    here, far = _takes(one, other, take)
    if not node.exact:
        node = await one.stat(one_path)
    if not there.exact:
        there = await other.stat(other_path)
    if node.size != there.size:
        return False
    differs = False
    failed: RemoteError | None = None
    offsets = iter(range(0, node.size, BLOCK_BYTES))

    async def fetch(blocks: list[bytes], read: Callable[[], Awaitable[bytes]]) -> None:
        nonlocal failed
        try:
            blocks.append(await read())
        except RemoteError as error:
            failed = error
            scope.cancel()

    async def compare_blocks() -> None:
        nonlocal differs
        for offset in offsets:
            at, length = offset, min(BLOCK_BYTES, node.size - offset)
            blocks: list[bytes] = []
            async with trio.open_nursery() as both:
                both.start_soon(fetch, blocks, _reader(one, one_path, node, at, length, here))
                both.start_soon(fetch, blocks, _reader(other, other_path, there, at, length, far))
            if len(blocks) < 2:
                return
            if blocks[0] != blocks[1]:
                differs = True
                scope.cancel()

    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        for _ in range(min(BLOCKS_AHEAD, -(-node.size // BLOCK_BYTES))):
            nursery.start_soon(compare_blocks)
    if failed is not None and not differs:
        raise failed
    return not differs


def _takes(one: Tree, other: Tree, take: Take | None) -> tuple[Take | None, Take | None]:
    """What each side waits for."""
    if one.features.local is other.features.local:
        return take, take
    return (None, take) if one.features.local else (take, None)


def _reader(
    tree: Tree, path: bytes, node: Node, offset: int, length: int, take: Take | None
) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        if take is not None:
            await take(length)
        return await tree.read(path, node, offset, length)

    return read
