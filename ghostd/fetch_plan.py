"""Which blocks to ask a remote for next. Pure: no clock, no tasks; times are passed in (seconds).

Blocks wait in one queue for each remote, ordered by *due time*: when they were offered, plus a step
for each class below demand. So a waiting block gains a class every step, equal ones go first come
first served, and nothing starves: a job's block is passed by no block that is demanded more than
four steps later. Only demand may use the last slots of a remote, however old the others are: each
kind then waits for its own slots, so demand never finds all connections taken.

Neighbours of one file leave as one request. What waits behind a demanded block goes with it, up to
as many bytes again, which at most doubles its transfer; what lies before it does not.

A block takes about 250 bytes here; offering, promoting, withdrawing and sending one costs O(log n).
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)  # what names a remote
V = TypeVar("V", bound=Hashable)  # what names a version of a file of that remote

MIB = 1 << 20


class Priority(enum.IntEnum):
    """Why a block is wanted, most urgent first."""

    DEMAND = 0  # a reader waits
    READ_AHEAD = 1
    PIN = 2
    WARM_UP = 3
    JOB = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """For each remote."""

    slots: int = 8  # requests under way
    reserved_slots: int = 2  # of them, for demand only
    request_bytes_max: int = 8 * MIB
    step_s: float = 4.0  # waiting so long is worth a class
    read_ahead_blocks_max: int = 1_024  # queued; likewise below
    background_blocks_max: int = 32_768  # pin, warm-up and job, each

    def __post_init__(self) -> None:
        assert 0 <= self.reserved_slots < self.slots, "background work needs a slot too"

    def blocks_max(self, priority: Priority) -> int | None:
        """How many blocks of a class may be queued. Demand is bounded by the readers there are."""
        if priority is Priority.DEMAND:
            return None
        if priority is Priority.READ_AHEAD:
            return self.read_ahead_blocks_max
        return self.background_blocks_max


@dataclass(frozen=True, slots=True)
class Request(Generic[R, V]):
    """`count` blocks of one version, from number `first` on, in one request."""

    remote: R
    version: V
    first: int
    count: int
    priority: Priority  # of the block that was due

    @property
    def blocks(self) -> range:
        """The blocks' numbers."""
        return range(self.first, self.first + self.count)


def blocks_wanted(
    start: int, end: int, size: int, block_bytes: int, whole_bytes_max: int = MIB
) -> range:
    """The blocks that a read of [start, end) wants of a file of `size` bytes.

    Of a file of up to `whole_bytes_max` all of them: it comes in one request anyway.
    """
    end = min(end, size)
    if start >= end:
        return range(0)
    if size <= whole_bytes_max:
        start, end = 0, size
    return range(start // block_bytes, (end - 1) // block_bytes + 1)


# Due time, ticket (unique, rising), class, version, block number.
_Waiting = tuple[float, int, Priority, V, int]


class _File(Generic[V]):
    """The queued blocks of one version."""

    __slots__ = ("block_bytes", "waiting")

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.waiting: dict[int, _Waiting[V]] = {}


class _Queue(Generic[R, V]):
    """The blocks queued for one remote, and its slots."""

    def __init__(self, remote: R, limits: Limits) -> None:
        self._remote = remote
        self._limits = limits
        self._files: dict[V, _File[V]] = {}
        # One heap a class; entries that are not their file's any more are skipped.
        self._heaps: tuple[list[_Waiting[V]], ...] = tuple([] for _ in Priority)
        self.counts = [0 for _ in Priority]
        self._ticket = 0
        self._busy = 0
        self._busy_behind = 0  # of them, not demanded

    @property
    def idle(self) -> bool:
        return not self._files and not self._busy

    def offer(
        self, version: V, numbers: Iterable[int], priority: Priority, now: float, block_bytes: int
    ) -> list[int]:
        due = now + priority * self._limits.step_s
        file = self._files.get(version)
        if file is None:
            file = _File(block_bytes)
        assert file.block_bytes == block_bytes, "a version has blocks of one size"
        waiting, heap = file.waiting, self._heaps[priority]
        room = self.room(priority)
        refused = []
        for number in numbers:
            old = waiting.get(number)
            if old is not None and old[2] <= priority:
                continue
            if room is not None and room <= 0:
                if old is None:
                    refused.append(number)
                continue
            if old is not None:
                self._drop(old[2])
            self._ticket += 1
            earlier = due if old is None else min(due, old[0])
            waiting[number] = entry = (earlier, self._ticket, priority, version, number)
            heapq.heappush(heap, entry)
            self.counts[priority] += 1
            if room is not None:
                room -= 1
        if waiting:
            self._files[version] = file
        return refused

    def room(self, priority: Priority) -> int | None:
        most = self._limits.blocks_max(priority)
        return None if most is None else most - self.counts[priority]

    def withdraw(self, version: V, numbers: Iterable[int] | None) -> list[int]:
        file = self._files.get(version)
        if file is None:
            return []
        gone = []
        for number in list(file.waiting) if numbers is None else numbers:
            entry = file.waiting.pop(number, None)
            if entry is not None:
                self._drop(entry[2])
                gone.append(number)
        if not file.waiting:
            del self._files[version]
        return gone

    def take(self) -> Request[R, V] | None:
        limits = self._limits
        if self._busy >= limits.slots:
            return None
        behind = self._busy_behind < limits.slots - limits.reserved_slots
        entry = min(
            (
                heap[0]
                for priority, heap in enumerate(self._heaps)
                if (behind or priority == Priority.DEMAND) and self._prune(heap)
            ),
            key=lambda waiting: waiting[:2],
            default=None,
        )
        if entry is None:
            return None
        _, _, priority, version, number = entry
        file = self._files[version]
        blocks = self._joined(file, number, priority)
        for block in blocks:
            self._drop(file.waiting.pop(block)[2])
        if not file.waiting:
            del self._files[version]
        self._busy += 1
        self._busy_behind += priority is not Priority.DEMAND
        return Request(self._remote, version, blocks.start, len(blocks), priority)

    def finished(self, request: Request[R, V]) -> None:
        self._busy -= 1
        self._busy_behind -= request.priority is not Priority.DEMAND
        assert self._busy >= self._busy_behind >= 0, "a request was finished twice"

    def _joined(self, file: _File[V], number: int, priority: Priority) -> range:
        """The blocks that leave with `number`, which is due."""
        waiting = file.waiting
        most = max(self._limits.request_bytes_max // file.block_bytes, 1)
        demand = priority is Priority.DEMAND

        def alike(block: int) -> bool:
            entry = waiting.get(block)
            return entry is not None and (entry[2] is Priority.DEMAND) == demand

        first, end = number, number + 1
        while end - first < most and alike(end):
            end += 1
        while end - first < most and alike(first - 1):
            first -= 1
        if demand:
            most = min(most, 2 * (end - first))
            while end - first < most and end in waiting:
                end += 1
        return range(first, end)

    def _drop(self, priority: Priority) -> None:
        """One entry of this class is not its file's any more. Keeps the heap in proportion."""
        self.counts[priority] -= 1
        heap = self._heaps[priority]
        if len(heap) > 2 * self.counts[priority] + 64:
            heap[:] = [entry for entry in heap if self._live(entry)]
            heapq.heapify(heap)

    def _prune(self, heap: list[_Waiting[V]]) -> bool:
        """Whether anything waits in the heap; its first entry then does."""
        while heap and not self._live(heap[0]):
            heapq.heappop(heap)
        return bool(heap)

    def _live(self, entry: _Waiting[V]) -> bool:
        file = self._files.get(entry[3])
        return file is not None and file.waiting.get(entry[4]) is entry


class FetchPlan(Generic[R, V]):
    """What is queued for all remotes. Each has its own slots and limits; they take turns."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[R, _Queue[R, V]] = {}
        self._ready: dict[R, None] = {}  # those that may have something to send, in turn

    def __len__(self) -> int:
        return sum(sum(queue.counts) for queue in self._queues.values())

    def queued(self, remote: R) -> dict[Priority, int]:
        """Blocks queued for a remote, by class."""
        queue = self._queues.get(remote)
        return {p: 0 if queue is None else queue.counts[p] for p in Priority}

    def offer(
        self,
        remote: R,
        version: V,
        numbers: Iterable[int],
        priority: Priority,
        now: float,
        block_bytes: int = MIB,
    ) -> list[int]:
        """Queue blocks; the numbers of those for which the class has no room.

        Who pins, warms up or runs a job waits and offers them again; read-ahead forgets them;
        demand is never refused. A block that is queued already is promoted where this is a higher
        class, and else left as it is. What is under way must not be offered. To try a failed block
        again without losing its place, pass the time of the first offer.
        """
        queue = self._queues.get(remote)
        if queue is None:
            queue = self._queues[remote] = _Queue(remote, self._limits)
        self._ready.setdefault(remote)
        refused = queue.offer(version, numbers, priority, now, block_bytes)
        self._forget_if_idle(remote, queue)
        return refused

    def room(self, remote: R, priority: Priority) -> int | None:
        """How many more blocks of a class would be taken; None: any number."""
        queue = self._queues.get(remote)
        return self._limits.blocks_max(priority) if queue is None else queue.room(priority)

    def withdraw(self, remote: R, version: V, numbers: Iterable[int] | None = None) -> list[int]:
        """Remove blocks that nobody wants any more (None: all of the version).

        Those that were queued, and are not any more.
        """
        queue = self._queues.get(remote)
        if queue is None:
            return []
        gone = queue.withdraw(version, numbers)
        self._forget_if_idle(remote, queue)
        return gone

    def next_request(self) -> Request[R, V] | None:
        """The next request to send, which takes a slot until `finished`; None: nothing now.

        Ask again after an offer or `finished`, until it is None.
        """
        while self._ready:
            remote = next(iter(self._ready))
            del self._ready[remote]
            request = self._queues[remote].take()
            if request is not None:
                self._ready[remote] = None  # behind the others
                return request
        return None

    def finished(self, request: Request[R, V]) -> None:
        """A request has ended, in whichever way: its slot is free."""
        queue = self._queues[request.remote]
        queue.finished(request)
        self._ready.setdefault(request.remote)
        self._forget_if_idle(request.remote, queue)

    def _forget_if_idle(self, remote: R, queue: _Queue[R, V]) -> None:
        if queue.idle:
            del self._queues[remote]
            self._ready.pop(remote, None)
