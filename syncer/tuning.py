"""How many files at a time, how many bytes at once, which codec. Pure.

Chosen from what both ends are, then corrected by what the run itself shows: nothing is sent to
find out. What the user asked for is never changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from syncer.options import Options
from syncer.tree import Features

MIB: Final = 1 << 20
PARALLEL_MAX: Final = 64
BLOCK_BYTES_MIN: Final = 4 * MIB
BLOCK_BYTES_MAX: Final = 16 * MIB
MEMORY_BYTES_MAX: Final = 256 * MIB  # of blocks under way

_PARALLEL_CHOSEN_MAX: Final = 32  # before anything is measured
_LOCAL_PARALLEL_MAX: Final = 4  # a disk gains little from more
_WIRE_PARALLEL_MIN: Final = 4
_FILES_PER_ROUND_TRIP_S: Final = 400  # 40 ms: 16 more; a small file takes 2 to 4 round trips
_WIRE_BYTES_PER_S: Final = 100 * MIB  # a gigabit

_GAIN_MIN: Final = 0.10  # smaller differences of speed are noise
_SAMPLE_S_MIN: Final = 2.0
_CPU_IDLE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a job runs with."""

    parallel: int  # files at a time
    block_bytes: int  # of each file that are read before they are asked for
    codec: str  # of what is stored: zstd, lz4, none; "": the store's own
    reasons: tuple[str, ...] = ()  # sentences, for --explain


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen during a while of the run."""

    seconds: float
    bytes_moved: int = 0
    files: int = 0
    cpu_share: float = 0.0  # of all cores, by this process
    busy_answers: int = 0  # the remote asked for patience


@dataclass(frozen=True, slots=True)
class Tuner:
    """A tuning on its way. `step` returns the next one; `settled` once nothing more is gained."""

    tuning: Tuning
    fixed_parallel: bool
    parallel_max: int
    speed: float = 0.0  # of the last sample, at `before` files at a time
    before: int = 0  # 0: nothing measured yet
    settled: bool = False


def _block_bytes(round_trip_s: float) -> int:
    """Enough to keep a gigabit busy for two round trips, in powers of two."""
    wanted = max(1.0, 2 * round_trip_s * _WIRE_BYTES_PER_S / MIB)
    power = math.ceil(math.log2(min(wanted, BLOCK_BYTES_MAX / MIB)))
    return max(BLOCK_BYTES_MIN, min(BLOCK_BYTES_MAX, MIB << power))


def _fitting(parallel: int, block_bytes: int) -> int:
    """The block, halved until all that is under way fits the memory."""
    while parallel * block_bytes > MEMORY_BYTES_MAX and block_bytes > BLOCK_BYTES_MIN:
        block_bytes //= 2
    return block_bytes


def _codec(options: Options, destination: Features, cores: int, *, own: bool) -> tuple[str, str]:
    if destination.chunked and own:
        return "", "codec: the daemon's own, as its configuration says"
    if not destination.chunked:
        return "none", "no compression: the destination keeps files as they are"
    if options.compression:
        return options.compression, f"codec {options.compression}: as asked for"
    if destination.local and cores == 1:
        return "lz4", "codec lz4: one core, and no wire that would gain from more"
    return "zstd", "codec zstd: the destination is a store"


def tune(
    options: Options,
    source: Features,
    destination: Features,
    cores: int,
    *,
    own_codec: bool = False,
) -> Tuner:
    """Choose what to begin with. `cores`: those that this process may use.

    The codec is chosen once: a store lasts longer than the minute in which the cores were busy.
    `own_codec`: a store has one already.
    """
    cores = max(1, cores)
    round_trip_s = max(source.round_trip_s, destination.round_trip_s)
    wire = not (source.local and destination.local)
    if options.parallel:
        parallel = min(options.parallel, PARALLEL_MAX)
        why = f"{parallel} files at a time: as asked for"
        if parallel < options.parallel:
            why = f"{parallel} files at a time: more than {PARALLEL_MAX} never helped"
    elif wire:
        parallel = min(
            _PARALLEL_CHOSEN_MAX,
            _WIRE_PARALLEL_MIN + math.ceil(round_trip_s * _FILES_PER_ROUND_TRIP_S),
        )
        why = f"{parallel} files at a time: a round trip is taken for {round_trip_s * 1000:g} ms"
    else:
        parallel = min(cores, _LOCAL_PARALLEL_MAX)
        why = f"{parallel} files at a time: {cores} cores, and both ends are local"
    block_bytes = _fitting(parallel, _block_bytes(round_trip_s) if wire else 4 * MIB)
    codec, why_codec = _codec(options, destination, cores, own=own_codec)
    why_block = f"{block_bytes // MIB} MiB of each file are read ahead: " + (
        "what a gigabit carries in two round trips, within the memory"
        if wire
        else "no wire has to be kept busy"
    )
    return Tuner(
        Tuning(parallel, block_bytes, codec, (why, why_block, why_codec)),
        # More files at a time than cores do not make two local ends faster.
        fixed_parallel=bool(options.parallel) or not wire,
        parallel_max=PARALLEL_MAX,
    )


def _with_parallel(tuning: Tuning, parallel: int, why: str) -> Tuning:
    block_bytes = _fitting(parallel, tuning.block_bytes)
    reason = f"{parallel} files at a time: {why}"
    return replace(
        tuning, parallel=parallel, block_bytes=block_bytes, reasons=(*tuning.reasons, reason)
    )


def _speed(sample: Sample) -> float:
    """Bytes and files a second in one number: a file costs about as much as 64 KiB."""
    return (sample.bytes_moved + sample.files * 65_536) / sample.seconds


def step(tuner: Tuner, sample: Sample) -> Tuner:
    """Take in what was seen.

    Half as many files as soon as the remote asks for patience; else twice as many for as long as
    each doubling makes it faster.
    """
    if sample.seconds <= 0:
        return tuner
    if sample.busy_answers and not tuner.fixed_parallel:
        parallel = max(1, tuner.tuning.parallel // 2)
        if parallel == tuner.tuning.parallel:
            return replace(tuner, settled=True, parallel_max=parallel)
        tuning = _with_parallel(tuner.tuning, parallel, "the remote asks for patience")
        # Not up again: where it asked once it will ask again.
        return replace(tuner, tuning=tuning, parallel_max=parallel, settled=True)
    if sample.seconds < _SAMPLE_S_MIN or not (sample.bytes_moved or sample.files):
        return tuner
    if tuner.fixed_parallel or tuner.settled:
        return tuner
    speed, parallel = _speed(sample), tuner.tuning.parallel
    if tuner.before and speed < tuner.speed * (1 + _GAIN_MIN):
        # The last doubling gained nothing: back to what did as well with less.
        tuning = _with_parallel(tuner.tuning, tuner.before, "more was not faster")
        return replace(tuner, tuning=tuning, settled=True)
    more = min(tuner.parallel_max, parallel * 2)
    if more == parallel or sample.cpu_share > _CPU_IDLE:
        return replace(tuner, settled=True)
    why = "it became faster" if tuner.before else "to see whether it becomes faster"
    tuning = _with_parallel(tuner.tuning, more, why)
    return replace(tuner, tuning=tuning, speed=speed, before=parallel)
