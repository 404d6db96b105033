"""The queue of blocks against a list that is searched from end to end, and what it promises."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ghostd.fetch_plan import FetchPlan, Limits, Priority, Request, blocks_wanted

MIB = 1 << 20
DEMAND, READ_AHEAD, PIN, WARM_UP, JOB = Priority

Plan = FetchPlan[str, int]
Sent = Request[str, int]


class Waiting(NamedTuple):
    due: float
    ticket: int
    priority: Priority
    remote: str
    version: int
    number: int


class Model:
    """What the plan should do, in the plainest way."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.queue: list[Waiting] = []
        self.flying: list[Sent] = []
        self.ticket = 0

    def of_class(self, remote: str, priority: Priority) -> list[Waiting]:
        return [w for w in self.queue if w.remote == remote and w.priority is priority]

    def find(self, remote: str, version: int, number: int) -> Waiting | None:
        wanted = (remote, version, number)
        return next((w for w in self.queue if (w.remote, w.version, w.number) == wanted), None)

    def full(self, remote: str, priority: Priority) -> bool:
        most = self.limits.blocks_max(priority)
        return most is not None and len(self.of_class(remote, priority)) >= most

    def offer(
        self, remote: str, version: int, numbers: list[int], priority: Priority, now: float
    ) -> list[int]:
        refused = []
        for number in numbers:
            old = self.find(remote, version, number)
            if old is not None and old.priority <= priority:
                continue
            if self.full(remote, priority):
                refused += [number] if old is None else []
                continue
            due = now + self.limits.step_s * priority
            if old is not None:
                self.queue.remove(old)
                due = min(due, old.due)
            self.ticket += 1
            self.queue.append(Waiting(due, self.ticket, priority, remote, version, number))
        return refused

    def withdraw(self, remote: str, version: int, numbers: list[int]) -> list[int]:
        gone = [n for n in numbers if self.find(remote, version, n)]
        self.queue = [w for w in self.queue if (w.remote, w.version) != (remote, version)
                      or w.number not in numbers]  # fmt: skip
        return gone

    def due(self, remote: str) -> Waiting | None:
        """What the remote is to be asked for next; None when its slots are taken."""
        flying = [r for r in self.flying if r.remote == remote]
        behind = [r for r in flying if r.priority is not DEMAND]
        if len(flying) >= self.limits.slots:
            return None
        full = len(behind) >= self.limits.slots - self.limits.reserved_slots
        return min(
            (w for w in self.queue if w.remote == remote and (w.priority is DEMAND or not full)),
            default=None,
        )

    def joined(self, due: Waiting, most: int) -> list[int]:
        """The longest run that the rules allow, found by trying all."""

        def classes(first: int, end: int) -> list[Priority] | None:
            found = [self.find(due.remote, due.version, n) for n in range(first, end)]
            return None if None in found else [w.priority for w in found if w]

        best: list[int] = []
        best_rank = (0, 0, 0)
        for first in range(max(due.number - most + 1, 0), due.number + 1):
            for end in range(due.number + 1, first + most + 1):
                run = classes(first, end)
                if run is None:
                    continue
                demanded = sum(1 for p in run if p is DEMAND)
                if due.priority is DEMAND:
                    head = next((i for i, p in enumerate(run) if p is not DEMAND), len(run))
                    # Everything up to the due one is demanded, the rest at most as much again.
                    allowed = first + head > due.number and len(run) <= 2 * head
                else:
                    head = 0
                    allowed = not demanded
                # As long as can be, demanded rather than not, reaching forwards rather than back.
                rank = (len(run), head, end)
                if allowed and rank > best_rank:
                    best, best_rank = list(range(first, end)), rank
        return best


remotes = st.sampled_from(["near", "far"])
versions = st.integers(1, 3)
numbers = st.lists(st.integers(0, 15), max_size=8, unique=True)
priorities = st.sampled_from(Priority)

BLOCK = {1: MIB, 2: MIB, 3: 128 << 10}  # bytes of a block, by version


class PlanAgainstModel(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 4),
        reserved=st.integers(0, 3),
        request_mib=st.integers(1, 4),
        room=st.integers(0, 6),
    )
    def begin(self, slots: int, reserved: int, request_mib: int, room: int) -> None:
        limits = Limits(
            slots=slots,
            reserved_slots=min(reserved, slots - 1),
            request_bytes_max=request_mib * MIB,
            step_s=4.0,
            read_ahead_blocks_max=room,
            background_blocks_max=room + 2,
        )
        self.plan: Plan = FetchPlan(limits)
        self.model = Model(limits)
        self.now = 100.0

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 4.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(remote=remotes, version=versions, blocks=numbers, priority=priorities)
    def offer(self, remote: str, version: int, blocks: list[int], priority: Priority) -> None:
        """What is under way is not offered: that is the fetcher's part."""
        flying = {
            n for r in self.model.flying if (r.remote, r.version) == (remote, version)
            for n in r.blocks
        }  # fmt: skip
        blocks = [n for n in blocks if n not in flying]
        refused = self.plan.offer(remote, version, blocks, priority, self.now, BLOCK[version])
        assert refused == self.model.offer(remote, version, blocks, priority, self.now)
        assert not (refused and priority is DEMAND)

    @rule(remote=remotes, version=versions, blocks=numbers)
    def withdraw(self, remote: str, version: int, blocks: list[int]) -> None:
        assert self.plan.withdraw(remote, version, blocks) == self.model.withdraw(
            remote, version, blocks
        )

    @rule(remote=remotes, version=versions)
    def withdraw_all(self, remote: str, version: int) -> None:
        gone = self.plan.withdraw(remote, version)
        assert sorted(gone) == self.model.withdraw(remote, version, list(range(16)))

    @rule()
    def send(self) -> None:
        request = self.plan.next_request()
        if request is None:
            assert self.model.due("near") is None
            assert self.model.due("far") is None
            return
        due = self.model.due(request.remote)
        assert due is not None
        assert request.version == due.version
        assert request.priority is due.priority
        most = max(self.model.limits.request_bytes_max // BLOCK[due.version], 1)
        assert list(request.blocks) == self.model.joined(due, most)
        self.model.withdraw(request.remote, request.version, list(request.blocks))
        self.model.flying.append(request)

    @precondition(lambda self: self.model.flying)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.model.flying))
        self.model.flying.remove(request)
        self.plan.finished(request)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.plan) == len(self.model.queue)
        for remote in ("near", "far"):
            for priority, count in self.plan.queued(remote).items():
                assert count == len(self.model.of_class(remote, priority))
                most = self.model.limits.blocks_max(priority)
                assert self.plan.room(remote, priority) == (None if most is None else most - count)

    def teardown(self) -> None:
        """Whatever was queued leaves, each block once."""
        if not hasattr(self, "plan"):
            return
        left = {(w.remote, w.version, w.number) for w in self.model.queue}
        for request in self.model.flying:
            self.plan.finished(request)
        while (request := self.plan.next_request()) is not None:
            for number in request.blocks:
                left.remove((request.remote, request.version, number))
            self.plan.finished(request)
        assert not left


TestPlanAgainstModel = PlanAgainstModel.TestCase
TestPlanAgainstModel.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def send_all(plan: Plan) -> list[Sent]:
    """Everything that may leave now."""
    sent = []
    while (request := plan.next_request()) is not None:
        sent.append(request)
    return sent


@settings(deadline=None)
@given(st.sampled_from([READ_AHEAD, PIN, WARM_UP, JOB]), st.integers(1, 5))
def test_nothing_starves_while_readers_never_stop(priority: Priority, per_second: int) -> None:
    """One slot for all, and more demanded each second than it can bring."""
    plan: Plan = FetchPlan(Limits(slots=1, reserved_slots=0, step_s=4.0))
    plan.offer("r", 1, [0], priority, 0.0)
    offered_at = {}
    for second in range(200):
        for n in range(per_second):
            plan.offer("r", 2, [2 * (second * 10 + n)], DEMAND, second)  # no neighbours
            offered_at[2 * (second * 10 + n)] = second
        [request] = send_all(plan)
        plan.finished(request)
        if request.version == 1:
            return  # none that was offered later than a step a class has passed it
        assert offered_at[request.first] <= 4.0 * priority
    pytest.fail("it starved")


def test_background_work_leaves_slots_to_readers() -> None:
    plan: Plan = FetchPlan(Limits(slots=8, reserved_slots=2))
    plan.offer("r", 1, range(0, 100, 2), JOB, 0.0)
    plan.offer("r", 2, range(0, 100, 2), READ_AHEAD, 0.0)
    assert len(send_all(plan)) == 6
    plan.offer("r", 3, [0, 2, 4], DEMAND, 1000.0)  # however old the others are
    assert [r.priority for r in send_all(plan)] == [DEMAND, DEMAND]


def test_remotes_take_turns_and_do_not_share_slots() -> None:
    plan: Plan = FetchPlan(Limits(slots=2, reserved_slots=1))
    for remote in ("a", "b", "c"):
        plan.offer(remote, 1, [0, 10, 20], DEMAND, 0.0)
    assert [r.remote for r in send_all(plan)] == ["a", "b", "c", "a", "b", "c"]


def test_a_demanded_block_leaves_alone_or_with_what_follows() -> None:
    plan: Plan = FetchPlan(Limits())
    plan.offer("r", 1, range(8), READ_AHEAD, 0.0)
    plan.offer("r", 1, [4], DEMAND, 0.0)
    first, *others = send_all(plan)
    assert list(first.blocks) == [4, 5]  # not what lies before, and no more than again as much
    assert sorted(n for r in others for n in r.blocks) == [0, 1, 2, 3, 6, 7]
    plan.offer("r", 2, range(8), DEMAND, 1.0)
    plan.offer("r", 2, range(8, 20), READ_AHEAD, 1.0)
    assert [list(r.blocks) for r in send_all(plan)] == [list(range(8)), list(range(8, 16)),
                                                       list(range(16, 20))]  # fmt: skip


def test_promotion_keeps_the_better_place() -> None:
    plan: Plan = FetchPlan(Limits(step_s=4.0))
    plan.offer("r", 1, [0], READ_AHEAD, 0.0)  # due at 4
    plan.offer("r", 2, [0], DEMAND, 6.0)
    plan.offer("r", 1, [0], DEMAND, 8.0)
    assert [r.version for r in send_all(plan)] == [1, 2]


@given(st.integers(0, 3 * MIB), st.integers(0, 3 * MIB), st.integers(0, 3 * MIB),
       st.sampled_from([128 << 10, MIB]))  # fmt: skip
def test_blocks_of_a_read(start: int, length: int, size: int, block_bytes: int) -> None:
    wanted = blocks_wanted(start, start + length, size, block_bytes)
    end = min(start + length, size)
    if start >= end:
        assert not wanted
    elif size <= MIB:
        assert wanted == range(-(-size // block_bytes))
    else:
        assert wanted.start * block_bytes <= start < (wanted.start + 1) * block_bytes
        assert (wanted.stop - 1) * block_bytes < end <= wanted.stop * block_bytes


def test_a_hundred_thousand_blocks_come_and_go() -> None:
    """Stale entries do not pile up: as much again as is queued, at most."""
    plan: Plan = FetchPlan(Limits(background_blocks_max=100_000))
    for priority in (JOB, PIN):  # all are promoted
        assert plan.offer("r", 1, range(100_000), priority, 0.0) == []
    assert len(plan) == 100_000
    assert plan.withdraw("r", 1, range(0, 100_000, 2)) == list(range(0, 100_000, 2))
    assert len(plan) == 50_000
    for version in range(2, 2_000):  # a reader that is promoted and withdrawn again and again
        plan.offer("r", version, range(50), WARM_UP, 1.0)
        plan.withdraw("r", version)
    heaps = plan._queues["r"]._heaps
    assert sum(map(len, heaps)) <= 2 * 50_000 + 5 * 64
    sent = []
    while (request := plan.next_request()) is not None:
        sent += request.blocks
        plan.finished(request)
    assert sent == list(range(1, 100_000, 2))
