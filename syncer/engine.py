"""Runs one job from its words to its report.

`run_job` is what `orbit` and the daemon's worker call. Verbs are a table: each entry runs one verb
and fills in the report.
"""

from __future__ import annotations

from syncer.context import Context
from syncer.events import Report, Tell
from syncer.options import JobSpec


class Refused(Exception):
    """The job was not begun: what was asked makes no sense, or would do harm."""


async def run_job(
    spec: JobSpec,
    context: Context,
    tell: Tell,
    *,
    dry_run: bool = False,
) -> Report:
    """Do what `spec` says and return what became of it; cancelled like any trio call.

    Expected errors end in the report. Raises nothing but bugs and cancellation.
    """
    raise NotImplementedError
