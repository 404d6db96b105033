"""How far a job is: counts, the rate of late, what is left. Pure but for the clock it is given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from syncer.events import Progress

_RATE_OVER_S: Final = 5.0  # what is older hardly counts
_CURRENT_SHOWN: Final = 8


class Meter:
    """Counters of one run; `progress` may be asked for at any time, by one caller."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = self._seen_s = clock()
        self._seen_bytes = 0
        self._rate = 0.0
        self._seen_once = False
        self.phase = "planning"
        self.planned = False
        self.files_total = 0
        self.files_done = 0
        self.files_equal = 0
        self.files_failed = 0
        self.bytes_total = 0
        self.bytes_done = 0
        self.current: dict[str, None] = {}  # in the order in which they were begun

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return self._clock() - self._began_s

    def _measure(self) -> None:
        now = self._clock()
        passed = now - self._seen_s
        if passed <= 0:
            return
        rate = (self.bytes_done - self._seen_bytes) / passed
        weight = 1 - math.exp(-passed / _RATE_OVER_S) if self._seen_once else 1.0
        self._rate = max(0.0, self._rate + (rate - self._rate) * weight)
        self._seen_s, self._seen_bytes, self._seen_once = now, self.bytes_done, True

    def progress(self) -> Progress:
        """As of now."""
        self._measure()
        left = self.bytes_total - self.bytes_done
        eta_s = None
        if self.planned and self._rate > 0:
            eta_s = max(0.0, left / self._rate)
        return Progress(
            phase=self.phase,
            planned=self.planned,
            files_total=self.files_total,
            files_done=self.files_done,
            files_equal=self.files_equal,
            files_failed=self.files_failed,
            bytes_total=self.bytes_total,
            bytes_done=self.bytes_done,
            bytes_per_s=self._rate,
            eta_s=eta_s,
            current=tuple(self.current)[:_CURRENT_SHOWN],
            elapsed_s=self.elapsed_s,
        )
