"""How fast one job may go: its bucket, below its process's, changeable while it runs."""

from __future__ import annotations

import datetime as dt
from functools import partial

import trio

from syncer.bandwidth import BadRate, Bandwidth, Timetable, follow, parse_timetable, rate_at
from syncer.metered import metered


class Limit:
    """A bucket that keeps to a timetable. `tend` it while the job runs."""

    def __init__(self, text: str = "", above: Bandwidth | None = None) -> None:
        """`text`: a rate or timetable; what makes no sense limits nothing, and guidance refuses it.

        `above`: the bucket of all jobs of the process.
        """
        try:
            self._timetable = parse_timetable(text)
        except BadRate:
            self._timetable = Timetable()
        self.bucket = Bandwidth(self._rate(), above)
        self._changed = trio.Event()

    def _rate(self) -> float | None:
        return rate_at(self._timetable, dt.datetime.now().astimezone())

    @property
    def limited(self) -> bool:
        """Whether anybody waits, now."""
        return self.bucket.limited

    def change(self, text: str) -> None:
        """Go by another rate or timetable from now on; those who wait, too. Raises BadRate."""
        self._timetable = parse_timetable(text)
        self.bucket.set_rate(self._rate())
        self._changed.set()
        self._changed = trio.Event()

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may be moved."""
        await self.bucket.take(count)

    async def tend(self) -> None:
        """Follow the timetable until cancelled."""
        while True:
            changed = self._changed
            if self._timetable.fixed:
                await changed.wait()
                continue
            async with trio.open_nursery() as nursery:
                table = self._timetable
                nursery.start_soon(partial(follow, self.bucket, lambda: table, metered=metered))  # noqa: B023
                await changed.wait()
                nursery.cancel_scope.cancel()
