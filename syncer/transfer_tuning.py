"""Tuning while a job runs: what passes anyway is measured, and the number of files follows it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import trio

from syncer.engine import Run
from syncer.transfer import Transfer
from syncer.tuning import Sample, Tuner, step

SAMPLE_S: Final = 3.0  # of the run; shorter ones are noise


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def explain(run: Run, reasons: tuple[str, ...]) -> None:
    """Say what was chosen, and why."""
    for reason in reasons:
        run.say("explained", message=reason)


class _Watch:
    """What has passed since it was last asked."""

    def __init__(self, run: Run, clock: Callable[[], float]) -> None:
        self._run = run
        self._clock = clock
        self._seen = self._now()

    def _now(self) -> tuple[float, int, int, float, int]:
        meter = self._run.meter
        return (
            self._clock(), meter.bytes_done, meter.files_done, time.process_time(),
            self._run.context.busy_answers,
        )  # fmt: skip

    def sample(self) -> Sample:
        """The time since the last one."""
        before, self._seen = self._seen, self._now()
        seconds, count, files, cpu_s, busy = (
            now - then for now, then in zip(self._seen, before, strict=True)
        )
        share = cpu_s / seconds / cores() if seconds > 0 else 0.0
        return Sample(seconds, int(count), int(files), min(1.0, share), int(busy))


async def tune_while_running(run: Run, tuner: Tuner, transfer: Transfer) -> None:
    """Follow what the run shows until cancelled.

    Not while the bandwidth is limited: then the limit is what is measured.
    """
    watch = _Watch(run, trio.current_time)
    while not tuner.fixed_parallel:
        await trio.sleep(SAMPLE_S)
        sample = watch.sample()
        if run.limit.limited and not sample.busy_answers:
            continue
        before, tuner = tuner, step(tuner, sample)
        explain(run, tuner.tuning.reasons[len(before.tuning.reasons) :])
        transfer.set_parallel(tuner.tuning.parallel, tuner.tuning.block_bytes)
