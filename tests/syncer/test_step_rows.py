"""Steps as rows: everything comes back, the order is right, damage is noticed."""

from __future__ import annotations

import enum
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.remotes.remote import Checksum, Version
from syncer.step_rows import (
    StepUnreadable,
    decode_step,
    encode_step,
    kind_of,
    turn_of,
    turns_of,
)
from syncer.steps import Step, StepKind
from syncer.tree import Node, NodeKind

_numbers = st.integers(-(1 << 70), 1 << 70)
_text = st.text(st.characters(codec=None), max_size=8)  # lone surrogates too
_plain = st.one_of(st.none(), st.booleans(), _numbers, _text, st.binary(max_size=8))
_versions = st.builds(Version, _numbers, _text, _numbers)
_tokens = st.recursive(
    st.one_of(_plain, st.floats(allow_nan=False), _versions),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
_names = st.binary(max_size=6)


def _maybe(strategy):
    return st.one_of(st.none(), strategy)


_nodes = st.builds(
    Node,
    name=_names,
    kind=st.sampled_from(NodeKind),
    size=_numbers,
    mtime_ns=_maybe(_numbers),
    mode=_maybe(_numbers),
    uid=_maybe(_numbers),
    gid=_maybe(_numbers),
    token=_tokens,
    link=_tokens,
    target=_maybe(st.binary(max_size=8)),
    rdev=_numbers,
    allocated=_maybe(_numbers),
    owner=_maybe(_text),
    group=_maybe(_text),
    checksum=_maybe(st.builds(Checksum, _text, st.binary(max_size=8))),
    content=_maybe(st.binary(max_size=8)),
    atime_ns=_maybe(_numbers),
    exact=st.booleans(),
)


@st.composite
def steps(draw):
    name = draw(_names)
    path = draw(st.sampled_from([name, b"a/" + name, b"", b"x"]))
    return Step(
        kind=draw(st.sampled_from(StepKind)),
        path=path,
        reason=draw(_text),
        rank=draw(st.integers(-3, 300)),
        size=draw(st.one_of(st.integers(0, 1 << 20), _numbers)),
        source_path=draw(st.sampled_from([path, b"", b"other"])),
        node=draw(_maybe(_nodes.map(lambda node: node._replace(name=name)))),
        old=draw(_maybe(_nodes)),
    )


def same(one: object, other: object) -> bool:
    """Equal, and of the same types all the way down: True is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(steps())
def test_a_step_comes_back_as_it_was(step):
    turn, path, checksum, detail = encode_step(step)
    assert -(1 << 63) <= turn < 1 << 63
    assert same(decode_step(turn, path, checksum, detail), step)


@given(steps(), st.randoms(use_true_random=False))
def test_every_damaged_row_is_noticed(step, rng: random.Random):
    turn, path, checksum, detail = encode_step(step)
    damaged = bytearray(detail)
    damaged[rng.randrange(len(damaged))] ^= rng.randint(1, 255)
    with pytest.raises(StepUnreadable):
        decode_step(turn, path, checksum, bytes(damaged))
    with pytest.raises(StepUnreadable):
        decode_step(turn, path + b"x", checksum, detail)
    with pytest.raises(StepUnreadable):
        decode_step(turn, path, checksum, detail[: rng.randrange(len(detail))])


class _Named(enum.IntEnum):
    ONE = 1


def test_enums_and_named_tuples_come_back_equal():
    token = (_Named.ONE, NodeKind.FILE.value, Step(StepKind.COPY, b"p"))
    step = Step(StepKind.COPY, b"f", node=Node(b"f", NodeKind.FILE, token=token))
    assert decode_step(*encode_step(step)) == step


def test_what_no_row_can_hold_is_refused():
    step = Step(StepKind.COPY, b"f", node=Node(b"f", NodeKind.FILE, token=Path("x")))
    with pytest.raises(TypeError, match="PosixPath"):
        encode_step(step)


_DEEPEST_FIRST = (StepKind.TRASH, StepKind.DELETE, StepKind.DIRECTORY_METADATA)


def _order(step: Step) -> tuple[int, int, int]:
    depth = len(step.path.split(b"/")) if step.path else 0
    if step.kind in _DEEPEST_FIRST:
        return step.kind, -depth, 0
    if step.kind is StepKind.MKDIR:
        return step.kind, depth, 0
    return step.kind, step.rank, step.size


_ordinary = st.builds(
    Step,
    kind=st.sampled_from(StepKind),
    path=st.sampled_from([b"", b"a", b"a/b", b"a/b/c", b"d/e"]),
    rank=st.integers(0, 4),
    size=st.integers(0, 1 << 50),
)


@given(st.lists(_ordinary, max_size=20))
def test_turns_are_the_order(found):
    by_turn = sorted(found, key=turn_of)
    assert [_order(step) for step in by_turn] == sorted(map(_order, found))


@given(steps())
def test_turns_of_a_kind_stay_among_themselves(step):
    low, high = turns_of(step.kind)
    assert low <= turn_of(step) <= high
    assert kind_of(turn_of(step)) is step.kind
