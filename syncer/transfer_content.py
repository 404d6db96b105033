"""The bytes of a source's file on their way to a destination.

`SourceContent` reads ahead, so that both wires are busy, takes its bandwidth from the job's bucket,
and hashes what has passed where somebody wants to know.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio
from blake3 import blake3

from syncer.remotes.errors import TRANSIENT, Changed, Exists, Full, RemoteError
from syncer.tree import Node, Tree

BLOCK_BYTES = 1 << 20  # unit of reading ahead
_HASH_INLINE_BYTES = 64 << 10  # more is hashed in a thread: 64 KiB take 11 us, a hop takes 81

# What fails like this is left to the way of single steps, which tries again and says why.
LATER: Final[tuple[type[RemoteError], ...]] = (*TRANSIENT, Changed, Exists, Full)

Pass = Callable[[int], Awaitable[None]]  # bytes that are about to be read: waits for bandwidth


class _Flight:
    """A block that is being read, or has been."""

    __slots__ = ("data", "end", "error", "landed", "start")

    def __init__(self, start: int, end: int) -> None:
        self.landed = trio.Event()
        self.start = start  # in the file
        self.end = end
        self.data = b""
        self.error: Exception | None = None


def _start_of(run: tuple[int, int]) -> int:
    return run[0]


def _end_of(run: tuple[int, int]) -> int:
    return run[0] + run[1]


class SourceContent:
    """A `Content`. Open it with `source_content`.

    Reads in sequence are expected; others work, each starts the reading ahead anew.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        source: Tree,
        path: bytes,
        node: Node,
        *,
        ahead: int,
        block_bytes: int = BLOCK_BYTES,
        before: Pass | None = None,
        after: Callable[[int], None] | None = None,
        hashed: bool = False,
        ranges: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """`ahead`: blocks that are read before they are asked for. `after`: counts what came.

        `ranges`: what is not a hole, ascending; nothing else is read unless it is asked for.
        """
        self._ranges = ranges
        self._nursery = nursery
        self._source = source
        self._path = path
        self._node = node
        self._ahead = ahead
        self._block_bytes = block_bytes
        self._before = before
        self._after = after
        self._flights: dict[int, _Flight] = {}
        self._blocks = math.ceil(node.size / block_bytes)
        self._hash = blake3() if hashed else None
        self._hashed_bytes = 0
        self.bytes_read = 0

    @property
    def size(self) -> int:
        """See Content."""
        return self._node.size

    async def read(self, offset: int, length: int) -> bytes:
        """See Content."""
        if length == 0:
            return b""
        first, last = offset // self._block_bytes, (offset + length - 1) // self._block_bytes
        for index in [each for each in self._flights if each < first]:
            del self._flights[index]  # passed
        for index in range(first, min(last + 1 + self._ahead, self._blocks)):
            if index not in self._flights and (span := self._span(index)) is not None:
                flight = self._flights[index] = _Flight(*span)
                self._nursery.start_soon(self._fly, flight)
        parts = []
        for index in range(first, last + 1):
            low = max(offset, index * self._block_bytes)
            high = min(offset + length, (index + 1) * self._block_bytes)
            # Held here: a read elsewhere in the file may drop it from the table meanwhile.
            flight = self._flights.get(index) or await self._again(index)
            await flight.landed.wait()
            if flight.error is not None:
                self._flights.pop(index, None)  # a retry reads it again
                raise flight.error
            if flight.start <= low and high <= flight.end:
                parts.append(flight.data[low - flight.start : high - flight.start])
            else:  # a hole, or a part of one
                parts.append(await self._source.read(self._path, self._node, low, high - low))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        await self._digest(offset, data)
        return data

    def _span(self, index: int) -> tuple[int, int] | None:
        """Where in a block, from the first to the last byte, there is data; None: nowhere."""
        start = index * self._block_bytes
        end = min(start + self._block_bytes, self._node.size)
        ranges = self._ranges
        if ranges is None:
            return start, end
        first = bisect_right(ranges, start, key=_end_of)
        behind = bisect_left(ranges, end, lo=first, key=_start_of)
        if first == behind:
            return None
        return max(start, _start_of(ranges[first])), min(end, _end_of(ranges[behind - 1]))

    async def _again(self, index: int) -> _Flight:
        flight = self._flights[index] = _Flight(*(self._span(index) or (0, 0)))
        if flight.end:
            await self._fly(flight)
        else:
            flight.landed.set()
        return flight

    async def _fly(self, flight: _Flight) -> None:
        offset, length = flight.start, flight.end - flight.start
        try:
            if self._before is not None:
                await self._before(length)
            flight.data = await self._source.read(self._path, self._node, offset, length)
            self.bytes_read += length
            if self._after is not None:
                self._after(length)
        except Exception as error:  # noqa: BLE001  it is raised where the block is asked for
            flight.error = error
        finally:
            flight.landed.set()

    async def _digest(self, offset: int, data: bytes) -> None:
        if self._hash is None or offset > self._hashed_bytes:
            return
        if offset < self._hashed_bytes:
            if offset:
                return  # a part that is sent again
            self._hash, self._hashed_bytes = blake3(), 0
        if len(data) <= _HASH_INLINE_BYTES:
            self._hash.update(data)
        else:
            await trio.to_thread.run_sync(self._hash.update, data)
        self._hashed_bytes += len(data)

    @property
    def digest(self) -> bytes | None:
        """BLAKE3 of the whole content, when all of it was read in order; else None."""
        if self._hash is None or self._hashed_bytes != self._node.size:
            return None
        return self._hash.digest()


@asynccontextmanager
async def source_content(
    source: Tree,
    path: bytes,
    node: Node,
    *,
    ahead: int,
    before: Pass | None = None,
    after: Callable[[int], None] | None = None,
    hashed: bool = False,
    ranges: Sequence[tuple[int, int]] | None = None,
) -> AsyncIterator[SourceContent]:
    """A content whose reading ahead ends with the block. Errors come out as they were raised."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield SourceContent(
                nursery,
                source,
                path,
                node,
                ahead=ahead,
                before=before,
                after=after,
                hashed=hashed,
                ranges=ranges,
            )
        except Exception as error:  # noqa: BLE001  a nursery would put it into a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def digest_of(
    tree: Tree, path: bytes, node: Node, *, ahead: int, before: Pass | None = None
) -> bytes:
    """BLAKE3 of a file as the tree reads it now."""
    async with source_content(tree, path, node, ahead=ahead, before=before, hashed=True) as content:
        offset = 0
        while offset < node.size:
            length = min(BLOCK_BYTES, node.size - offset)
            await content.read(offset, length)
            offset += length
        digest = content.digest
    assert digest is not None
    return digest
