"""The periodic stats event: as often as asked, with what `stats` says."""

import structlog
import trio
from trio.testing import MockClock

from ghostd.stats_events import log_stats
from tests.api.double import DoubleControl


async def test_one_event_each_interval(autojump_clock: MockClock):
    with structlog.testing.capture_logs() as lines, trio.move_on_after(35):
        await log_stats(DoubleControl(), 10)
    assert len(lines) == 3
    assert lines[0]["event"] == "stats"
    assert lines[0]["operations"] == {"read": {"count": 5, "errors": 1, "seconds": 0.25}}
    assert lines[0]["counters"] == {"cache_hits": 42}
    assert lines[0]["gauges"] == {"cache_bytes": 1024}
