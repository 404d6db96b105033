"""Reading packs at a remote by blocks: each is read once however many ask, and kept for a while.

For threads. A block that is on its way is waited for; who fails to bring one leaves it to those
who wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from blockstore.ids import PackId
from syncer.portal import Portal
from syncer.remotes.remote import Remote, Version

BLOCK_BYTES = 512 << 10  # over a wire of 40 ms and 100 Mbit/s a request costs as much as this
AHEAD_BYTES_MAX = 8 << 20
CACHE_BYTES_MAX = 64 << 20
_READERS_MAX = 1_024


class Blocks:
    """Blocks of remote packs: each is read once however many ask for it, and kept for a while."""

    def __init__(
        self,
        remote: Remote,
        portal: Portal,
        key: Callable[[PackId], bytes],
        bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        """`key` tells where a pack lies at the remote."""
        self._remote = remote
        self._key = key
        self._portal = portal
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._bytes = 0
        self._blocks: OrderedDict[tuple[PackId, int], bytes] = OrderedDict()
        self._flights: dict[tuple[PackId, int], threading.Event] = {}
        self._reading_on: dict[PackId, tuple[int, int]] = {}  # end of the last read, bytes ahead

    def read(self, pack: PackId, version: Version, length: int, offset: int) -> bytes:
        """Up to `length` bytes of a pack; fewer only at its end. Raises as remotes do."""
        end = min(offset + length, version.size)
        if offset >= end:
            return b""
        needed = range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
        stop = self._stop(pack, offset, end, version.size)
        found: dict[int, bytes] = {}
        while len(found) < len(needed):
            missing = [number for number in needed if number not in found]
            mine, theirs = self._claim(pack, missing, found, stop)
            if mine:
                found.update(self._fetch(pack, version, mine))
            elif theirs is not None:
                theirs.wait()
        start = needed[0] * BLOCK_BYTES
        whole = found[needed[0]] if len(needed) == 1 else b"".join(found[n] for n in needed)
        return whole[offset - start : end - start]

    def _stop(self, pack: PackId, offset: int, end: int, size: int) -> int:
        """Up to which block to read: who reads on where he ended gets twice as much each time."""
        with self._lock:
            last, ahead = self._reading_on.get(pack, (-1, 0))
            goes_on = abs(offset - last) <= BLOCK_BYTES and end > last
            ahead = min(AHEAD_BYTES_MAX, 2 * ahead or BLOCK_BYTES) if goes_on else 0
            if len(self._reading_on) >= _READERS_MAX:
                self._reading_on.clear()
            self._reading_on[pack] = (end, ahead)
        return (min(size, max(end, offset + ahead)) - 1) // BLOCK_BYTES + 1

    def _claim(
        self, pack: PackId, missing: Sequence[int], found: dict[int, bytes], stop: int
    ) -> tuple[range, threading.Event | None]:
        """Add what is here to `found`; return blocks to be fetched, or whom to wait for."""
        with self._lock:
            for number in missing:
                block = self._blocks.get((pack, number))
                if block is not None:
                    self._blocks.move_to_end((pack, number))
                    found[number] = block
            first = next((number for number in missing if number not in found), None)
            if first is None:
                return range(0), None
            flight = self._flights.get((pack, first))
            if flight is not None:
                return range(0), flight
            last = first
            while last < stop and not (
                (pack, last) in self._flights or (pack, last) in self._blocks
            ):
                last += 1
            event = threading.Event()
            for number in range(first, last):
                self._flights[pack, number] = event
            return range(first, last), None

    def _fetch(self, pack: PackId, version: Version, blocks: range) -> dict[int, bytes]:
        start = blocks[0] * BLOCK_BYTES
        size = min(blocks.stop * BLOCK_BYTES, version.size) - start
        fetched: dict[int, bytes] = {}
        try:
            data = self._portal.call(self._remote.read, self._key(pack), version, start, size)
            view = memoryview(data)
            for number in blocks:
                at = number * BLOCK_BYTES - start
                fetched[number] = bytes(view[at : at + BLOCK_BYTES])
        finally:
            with self._lock:
                for number, block in fetched.items():
                    self._blocks[pack, number] = block
                    self._bytes += len(block)
                while self._bytes > self._bytes_max:
                    self._bytes -= len(self._blocks.popitem(last=False)[1])
                events = {self._flights.pop((pack, number)) for number in blocks}
            for event in events:
                event.set()
        return fetched

    def forget(self, pack: PackId) -> None:
        """Drop what is kept of a pack."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == pack]:
                self._bytes -= len(self._blocks.pop(key))
