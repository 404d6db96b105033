"""The routes of the audit trail of the daemon's jobs, version 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import trio
from fastapi import FastAPI, Query

from ghostd.api_jobs import JobsAbsent
from ghostd.facade import Control
from syncer.audit_verify import AuditFilter, AuditReport, show, verify

PAGE_MAX: Final = 5_000
_THREADS_MAX: Final = 2
_LIMIT_S: Final = 3_600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Records, oldest first."""

    records: tuple[Mapping[str, Any], ...]
    after: int  # ask for what comes behind it


def add_audit(app: FastAPI, control: Control) -> None:
    """Add the routes."""
    threads = trio.CapacityLimiter(_THREADS_MAX)

    async def call(work: Callable[[Path], T]) -> T:
        if control.jobs is None:
            raise JobsAbsent("this daemon runs without jobs")
        folder = control.jobs.audit_folder
        with trio.move_on_after(_LIMIT_S):
            return await trio.to_thread.run_sync(
                work, folder, abandon_on_cancel=True, limiter=threads
            )
        raise TimeoutError(f"no answer within {_LIMIT_S:g} s: the disk is slow or stuck")

    @app.get("/v1/audit/verify", operation_id="verify_audit")
    async def verify_audit() -> AuditReport:
        """Look whether every record is there and unchanged."""
        return await call(verify)

    @app.get("/v1/audit", operation_id="audit")
    async def audit(
        job: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        path: str = "",
        after: int = 0,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 1_000,
    ) -> AuditPage:
        """Give records, oldest first, behind one of them."""
        wanted = AuditFilter(job, since_ns, until_ns, path)

        def page(folder: Path) -> AuditPage:
            found = (each for each in show(folder, wanted) if each["sequence"] > after)
            records = tuple(islice(found, limit))
            return AuditPage(records, records[-1]["sequence"] if records else after)

        return await call(page)
