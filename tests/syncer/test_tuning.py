"""Tuning: bounded, monotone, and at rest in the end."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.options import Options
from syncer.tree import Features
from syncer.tuning import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    MEMORY_BYTES_MAX,
    PARALLEL_MAX,
    Sample,
    Tuner,
    step,
    tune,
)

LOCAL = Features(local=True, write=True)
STORE = Features(local=True, chunked=True, write=True)
S3 = Features(round_trip_s=0.04, write=True)

features = st.builds(
    Features,
    local=st.booleans(),
    chunked=st.booleans(),
    round_trip_s=st.floats(0, 5, allow_subnormal=False),
)
options = st.builds(
    Options,
    parallel=st.integers(0, 500),
    compression=st.sampled_from(("", "zstd", "lz4", "none")),
)
samples = st.builds(
    Sample,
    seconds=st.floats(0, 100),
    bytes_moved=st.integers(0, 10**12),
    files=st.integers(0, 10**6),
    cpu_share=st.floats(0, 1),
    busy_answers=st.just(0) | st.integers(0, 5),
)


def check_bounds(tuner: Tuner) -> None:
    tuning = tuner.tuning
    assert 1 <= tuning.parallel <= PARALLEL_MAX
    assert BLOCK_BYTES_MIN <= tuning.block_bytes <= BLOCK_BYTES_MAX
    assert tuning.block_bytes & (tuning.block_bytes - 1) == 0
    assert tuning.parallel * tuning.block_bytes <= MEMORY_BYTES_MAX
    assert tuning.codec in {"zstd", "lz4", "none"}
    assert len(tuning.reasons) < 40


@settings(deadline=None)
@given(options, features, features, st.integers(0, 1000), st.lists(samples, max_size=60))
def test_whatever_is_seen_the_tuning_is_within_its_bounds(
    options: Options, source: Features, destination: Features, cores: int, seen: list[Sample]
) -> None:
    tuner = tune(options, source, destination, cores)
    check_bounds(tuner)
    for sample in seen:
        before, tuner = tuner, step(tuner, sample)
        check_bounds(tuner)
        if tuner.tuning != before.tuning:
            assert len(tuner.tuning.reasons) > len(before.tuning.reasons)
    if options.parallel:
        assert tuner.tuning.parallel == min(options.parallel, PARALLEL_MAX)
    if options.compression and destination.chunked:
        assert tuner.tuning.codec == options.compression


@settings(deadline=None)
@given(features, st.floats(0, 5), st.floats(0, 5), st.integers(1, 64))
def test_longer_round_trips_never_mean_less_at_once(
    source: Features, one: float, other: float, cores: int
) -> None:
    short, long = sorted((one, other))
    near = tune(Options(), source, replace(S3, round_trip_s=short), cores).tuning
    far = tune(Options(), source, replace(S3, round_trip_s=long), cores).tuning
    assert near.parallel <= far.parallel
    assert near.parallel * near.block_bytes <= far.parallel * far.block_bytes


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 64))
def test_more_cores_never_mean_fewer_files_at_a_time(one: int, other: int) -> None:
    few, many = sorted((one, other))
    assert (
        tune(Options(), LOCAL, LOCAL, few).tuning.parallel
        <= tune(Options(), LOCAL, LOCAL, many).tuning.parallel
    )


@settings(deadline=None)
@given(st.floats(1, 10**9), st.floats(0, 1), st.integers(1, 64))
def test_a_line_that_is_full_is_left_alone_soon(
    bytes_per_s: float, cpu_share: float, cores: int
) -> None:
    """Whatever is tried, the speed stays the same: back to the first choice, and at rest."""
    tuner = tune(Options(), LOCAL, S3, cores)
    first = tuner.tuning.parallel
    for _ in range(3):
        tuner = step(tuner, Sample(5.0, bytes_moved=int(bytes_per_s * 5), cpu_share=cpu_share))
    assert tuner.settled
    assert tuner.tuning.parallel == first
    for _ in range(5):
        again = step(tuner, Sample(5.0, bytes_moved=int(bytes_per_s * 5), cpu_share=cpu_share))
        assert again.tuning == tuner.tuning


@settings(deadline=None)
@given(st.integers(1, 64))
def test_as_many_as_make_it_faster(useful: int) -> None:
    """Each file brings its share, up to `useful` at a time."""
    tuner = tune(Options(), LOCAL, replace(S3, round_trip_s=0), 4)
    for _ in range(20):
        at_work = min(useful, tuner.tuning.parallel)
        tuner = step(tuner, Sample(5.0, bytes_moved=at_work * 10**6, files=at_work))
    assert tuner.settled
    # At least half of what it would take, and never more than twice.
    assert min(useful, 4) <= tuner.tuning.parallel <= max(4, useful * 2)
    assert tuner.tuning.parallel * 2 > useful or tuner.tuning.parallel == PARALLEL_MAX


def test_fewer_at_once_when_the_remote_asks_for_patience() -> None:
    tuner = tune(Options(), LOCAL, S3, 2)
    assert tuner.tuning.parallel == 20
    tuner = step(tuner, Sample(0.1, busy_answers=1))
    assert tuner.tuning.parallel == 10
    faster = step(tuner, Sample(5.0, bytes_moved=10**9))
    assert faster.tuning.parallel == 10  # it would only ask again
    for _ in range(10):
        tuner = step(tuner, Sample(0.1, busy_answers=3))
    assert tuner.tuning.parallel == 1
    asked_for = tune(Options(parallel=7), LOCAL, S3, 2)
    assert step(asked_for, Sample(0.1, busy_answers=9)) == asked_for


def test_the_codec_is_that_of_the_store() -> None:
    assert tune(Options(), LOCAL, STORE, 4).tuning.codec == "zstd"
    assert tune(Options(), LOCAL, STORE, 1).tuning.codec == "lz4"
    assert tune(Options(), LOCAL, S3, 4).tuning.codec == "none"
    assert tune(Options(compression="lz4"), LOCAL, STORE, 4).tuning.codec == "lz4"
    assert tune(Options(compression="lz4"), LOCAL, STORE, 4, own_codec=True).tuning.codec == ""


def test_every_choice_is_explained() -> None:
    reasons = " / ".join(tune(Options(), LOCAL, S3, 2).tuning.reasons)
    assert "20 files at a time: a round trip is taken for 40 ms" in reasons
    assert "8 MiB of each file are read ahead" in reasons
    assert "no compression" in reasons
    assert "as asked for" in " ".join(tune(Options(parallel=3), LOCAL, S3, 2).tuning.reasons)
    assert "64" in tune(Options(parallel=300), LOCAL, S3, 2).tuning.reasons[0]
