"""The routes of the control API, version 1. Imported in the API's thread only (FastAPI is slow).

Every answer that is not a success has the body {"error", "message", "hint"}: a word for programs, a
sentence for people, and what to do, which may be empty.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

import structlog
import trio
from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from blockstore.errors import OrbitError
from ghostd import facade
from ghostd.api_audit import add_audit
from ghostd.api_gate import problem
from ghostd.api_jobs import add_jobs
from ghostd.api_problems import answer_of
from ghostd.api_projections import add_projections
from ghostd.api_snapshots import add_snapshots
from ghostd.facade import Control
from ghostd.flights import SingleFlight
from ghostd.metrics import exposition

DAY_S: Final = 86_400.0
FLUSHES_MAX: Final = 8  # threads that wait for a commit; callers beyond queue for one
_LOOP_GRACE_S: Final = 0.5  # for the filesystem's loop to say that the time is over

log = structlog.get_logger("ghostd.api")


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FlushCall(_Call):
    """The body of a flush."""

    timeout_s: Annotated[float, Field(gt=0, le=600)] = 60.0


class CheckCall(_Call):
    """The body of a check."""

    data: bool = False
    timeout_s: Annotated[float, Field(gt=0, le=DAY_S)] = DAY_S


class CollectCall(_Call):
    """The body of a collection."""

    dry_run: bool = False
    waste_max: Annotated[float, Field(ge=0, le=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=DAY_S)] = DAY_S


class Problem(BaseModel):
    """Every answer that is not a success."""

    error: str
    message: str
    hint: str


class Accepted(BaseModel):
    """The stop has begun."""

    stopping: bool


def build_app(control: Control, nursery: trio.Nursery) -> FastAPI:
    """Return the ASGI application; long calls live in `nursery` and outlive their request."""
    app = FastAPI(
        title="Orbit control API",
        version="1",
        description="Steers a running ghostd over its unix socket.",
        docs_url=None,  # its pages load scripts from a CDN
        redoc_url=None,
        responses={"default": {"model": Problem, "description": "Anything but success."}},
    )
    _add_questions(app, control)
    _add_calls(app, control, nursery)
    add_projections(app, control)
    add_snapshots(app, control)
    add_jobs(app, control)
    add_audit(app, control)
    _add_problems(app)
    return app


def _add_questions(app: FastAPI, control: Control) -> None:
    render = exposition(control)
    render_limiter = trio.CapacityLimiter(1)
    status_limiter = trio.CapacityLimiter(4)

    @app.get("/v1/status", operation_id="status")
    async def status() -> facade.Status:
        """Say how the daemon is; waits neither for the filesystem nor for its disk."""
        return await trio.to_thread.run_sync(
            control.status, abandon_on_cancel=True, limiter=status_limiter
        )

    @app.get("/v1/stats", operation_id="stats")
    async def stats() -> facade.Stats:
        """Give counters since the start and gauges of now."""
        return control.stats()

    @app.get("/metrics", operation_id="metrics", response_class=Response)
    async def metrics() -> Response:
        """Give status and stats in Prometheus' text format."""
        text = await trio.to_thread.run_sync(render, abandon_on_cancel=True, limiter=render_limiter)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_calls(app: FastAPI, control: Control, nursery: trio.Nursery) -> None:
    flush_limiter = trio.CapacityLimiter(FLUSHES_MAX)
    checks: SingleFlight[facade.CheckReport] = SingleFlight("check", nursery)
    collections: SingleFlight[facade.CollectReport] = SingleFlight("collection", nursery)
    stop_limiter = trio.CapacityLimiter(1)

    @app.post("/v1/flush", operation_id="flush")
    async def flush(
        call: Annotated[FlushCall, Body(default_factory=FlushCall)],
    ) -> facade.FlushReport:
        """Make everything done so far durable, and answer when it is."""
        # The filesystem's own answer to a late flush says more than ours: wait for it.
        with trio.move_on_after(call.timeout_s + _LOOP_GRACE_S):
            return await trio.to_thread.run_sync(
                control.flush, call.timeout_s, abandon_on_cancel=True, limiter=flush_limiter
            )
        raise TimeoutError(
            f"not done within {call.timeout_s:g} s: the filesystem does not answer, or other "
            "flushes are before this one"
        )

    @app.post("/v1/check", operation_id="check")
    async def check(
        call: Annotated[CheckCall, Body(default_factory=CheckCall)],
    ) -> facade.CheckReport:
        """Look at every invariant; equal calls share one run."""
        work = partial(control.check, data=call.data)
        return await checks.call(call.data, work, call.timeout_s)

    @app.post("/v1/collect", operation_id="collect")
    async def collect(
        call: Annotated[CollectCall, Body(default_factory=CollectCall)],
    ) -> facade.CollectReport:
        """Remove chunks that nothing names; equal calls share one run."""
        work = partial(control.collect, dry_run=call.dry_run, waste_max=call.waste_max)
        key = (call.dry_run, call.waste_max)
        return await collections.call(key, work, call.timeout_s)

    @app.post("/v1/stop", operation_id="stop", status_code=202)
    async def stop() -> Accepted:
        """Begin a clean stop: flush, commit, unmount."""
        await trio.to_thread.run_sync(control.stop, abandon_on_cancel=True, limiter=stop_limiter)
        return Accepted(stopping=True)


def _answer(status: int, error: str, message: str, hint: str = "") -> Response:
    return Response(problem(error, message, hint), status, media_type="application/problem+json")


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(OrbitError)
    async def expected(_request: Request, error: OrbitError) -> Response:
        answer = answer_of(error)
        return _answer(answer.status, answer.word, str(error), answer.hint)

    @app.exception_handler(TimeoutError)
    async def timeout(_request: Request, error: TimeoutError) -> Response:
        hint = "`orbit-ctl status` shows what is going on"
        return _answer(504, "timeout", str(error) or "the call took too long", hint)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        return _answer(422, "invalid_request", faults, "GET /openapi.json describes every call")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        word = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _answer(error.status_code, word, message, "GET /openapi.json lists the calls")

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        # Logged with its traceback where it arrives, in the gate.
        message = f"a bug in the daemon: {type(error).__name__}: {error}"
        return _answer(500, "internal", message, "the daemon's log has the details")


def _fault(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}"
