"""The periodic event of `ORBIT_TELEMETRY=json`: one log line that holds what `stats` answers."""

from __future__ import annotations

from dataclasses import asdict

import structlog
import trio

from ghostd.facade import Control

log = structlog.get_logger("ghostd.stats")


async def log_stats(control: Control, interval_s: float) -> None:
    """Log an event `stats` every `interval_s` seconds, until cancelled; made for a nursery.

    Operations without requests are left out. The line's other keys are those of the log.
    """
    while True:
        await trio.sleep(interval_s)
        stats = control.stats()
        operations = {
            name: asdict(operation)
            for name, operation in stats.operations.items()
            if operation.count
        }
        log.info("stats", operations=operations, counters=stats.counters, gauges=stats.gauges)
