"""Small files fetched before they are opened: for who opens them in order, and nobody else."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ghostd.directory_policy import SEVERAL, DirectoryPattern, DirectoryPolicy

KIB = 1 << 10
MIB = 1 << 20


class Opener:
    """Who opens files of one directory, and what was wanted ahead of them."""

    def __init__(self, policy: DirectoryPolicy | None = None) -> None:
        self.policy = policy or DirectoryPolicy()
        self.pattern = DirectoryPattern()
        self.wanted: list[int] = []

    def open(self, index: int, size: int = 4 * KIB) -> list[int]:
        self.pattern, wanted = self.policy.observe_open(self.pattern, index, size)
        assert len(wanted) <= self.policy.files_max
        self.wanted += wanted
        return list(wanted)


@given(st.integers(0, 20))
def test_files_opened_in_order_are_there_before(first: int) -> None:
    opener = Opener()
    for index in range(first, first + 500):
        assert (index in opener.wanted) == (index >= first + SEVERAL)
        opener.open(index)
        ahead = max(opener.wanted, default=index) - index
        assert ahead <= max(index + 1 - first, 2)  # never further ahead than was opened
        assert index < first + 200 or ahead >= 31
    assert len(set(opener.wanted)) == len(opener.wanted)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40))
def test_random_openers_cause_none(indexes: list[int]) -> None:
    opener = Opener()
    last = -100
    for index in indexes:
        if abs(index - last) > 70:
            assert opener.open(index) == []
            last = index


def test_disorder_begins_anew() -> None:
    opener = Opener()
    for index in range(100):
        opener.open(index)
    assert opener.open(5000) == []
    assert opener.open(5001) == []
    assert opener.open(5002) != []
    assert opener.open(20) == []


@given(st.integers(2, 4), st.integers(0, 1 << 32))
def test_parallel_workers_are_in_order(workers: int, seed: int) -> None:
    opener = Opener()
    dice = random.Random(seed)
    for first in range(0, 400, workers):
        few = range(first, first + workers)
        for index in dice.sample(few, workers):
            assert first < 32 or index in opener.wanted
            opener.open(index)
    assert len(set(opener.wanted)) == len(opener.wanted)


def test_directories_and_large_files_between_are_passed_over() -> None:
    opener = Opener()
    for index in range(0, 90, 3):
        opener.open(index)
        opener.open(index + 1, size=100 * MIB)  # index + 2 is a directory, never opened
    assert set(range(12, 90)) <= set(opener.wanted)


def test_large_files_alone_cause_none() -> None:
    opener = Opener()
    for index in range(100):
        assert opener.open(index, size=MIB + 1) == []


@given(st.integers(0, MIB), st.integers(1, 64), st.integers(0, 64 * MIB))
def test_limits_hold(size: int, files_max: int, bytes_max: int) -> None:
    opener = Opener(DirectoryPolicy(files_max=files_max, bytes_max=bytes_max))
    for index in range(300):
        opener.open(index, size)
        ahead = max(opener.wanted, default=index) - index
        assert ahead <= files_max
        assert ahead <= 1 or ahead * size <= bytes_max


def test_the_next_directory_begins_where_this_one_ended() -> None:
    opener = Opener()
    for index in range(100):
        opener.open(index)
    window = opener.pattern.window
    opener.pattern, opener.wanted = opener.policy.successor(opener.pattern), []
    assert opener.open(0) == list(range(1, 1 + window))
    # But not for who begins in its middle, or has not read the last one in order.
    opener.pattern = opener.policy.successor(opener.pattern)
    assert opener.open(50) == []
    stranger = Opener()
    stranger.open(7)
    stranger.pattern = stranger.policy.successor(stranger.pattern)
    assert stranger.open(0) == []
