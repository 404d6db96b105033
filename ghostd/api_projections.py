"""The routes of projections, version 1. Imported in the API's thread only (FastAPI is slow)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, Literal, TypeVar

import trio
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from ghostd import projection_facade as facade
from ghostd.errors import FilesystemError
from ghostd.facade import Control

CALLS_MAX: Final = 8  # at a time that change or count something
QUESTIONS_MAX: Final = 4
PATHS_MAX: Final = 1_000
PATH_CHARS_MAX: Final = 3 * 4_096  # each byte may be written as %XX
DIFF_PAGE_MAX: Final = 5_000
_QUESTION_S: Final = 6.0
_HOUR_S: Final = 3_600.0

T = TypeVar("T")

Path = Annotated[str, Field(min_length=1, max_length=PATH_CHARS_MAX)]
Paths = Annotated[list[Path], Field(min_length=1, max_length=PATHS_MAX)]


class ProjectionsAbsent(FilesystemError):
    """The daemon runs without projections."""


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProjectCall(_Call):
    """A projection to be made."""

    url: Annotated[str, Field(min_length=1, max_length=4_096)]
    path: Path
    mode: Literal["ro", "cow", "rw"] = "ro"
    ttl_s: Annotated[float, Field(ge=0, le=365 * 86_400)] = 60.0
    block_bytes: int = 1 << 20
    options: Annotated[dict[str, str], Field(max_length=100)] = {}


class UnprojectCall(_Call):
    """A projection to be taken away."""

    path: Path
    force: bool = False


class RefreshCall(_Call):
    """What is to be asked for again."""

    path: Path
    recursive: bool = False


class PathsCall(_Call):
    """What a call is about."""

    paths: Paths


class DiffCall(_Call):
    """Which changes, and how many at a time."""

    path: Path
    cursor: Annotated[str, Field(max_length=64 * 1_024)] | None = None
    limit: Annotated[int, Field(ge=1, le=DIFF_PAGE_MAX)] = 1_000


class RevertCall(_Call):
    """What is to be as the remote has it."""

    path: Path


class Caller:
    """Makes blocking calls in threads. A client that goes away does not end the call."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._calls = trio.CapacityLimiter(CALLS_MAX)
        self._questions = trio.CapacityLimiter(QUESTIONS_MAX)

    @property
    def parts(self) -> facade.ProjectionCalls:
        """Where the calls go. Raises ProjectionsAbsent."""
        if self._control.projections is None:
            raise ProjectionsAbsent("this daemon runs without projections")
        return self._control.projections

    async def call(self, work: Callable[[], T]) -> T:
        """The result of a call that may take long."""
        return await self._run(work, self._calls, _HOUR_S)

    async def ask(self, work: Callable[[], T]) -> T:
        """The answer to a question, which does not wait behind long calls."""
        return await self._run(work, self._questions, _QUESTION_S)

    @staticmethod
    async def _run(work: Callable[[], T], limiter: trio.CapacityLimiter, timeout_s: float) -> T:
        with trio.move_on_after(timeout_s):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
        raise TimeoutError(f"no answer within {timeout_s:g} s: the filesystem is busy or stuck")


def add_projections(app: FastAPI, control: Control) -> None:
    """Add the routes."""
    caller = Caller(control)
    _add_tree(app, caller)
    _add_cache(app, caller)
    _add_changes(app, caller)


def _add_tree(app: FastAPI, caller: Caller) -> None:
    @app.get("/v1/projections", operation_id="projections")
    async def projections() -> facade.ProjectionList:
        """Give all projections and how their remotes are."""
        return await caller.ask(caller.parts.projections)

    @app.post("/v1/project", operation_id="project", status_code=201)
    async def project(call: ProjectCall) -> facade.ProjectionInfo:
        """Attach a remote tree; answers within a second or two, whatever the remote does."""
        wanted = facade.Attach(**call.model_dump())
        return await caller.call(partial(caller.parts.project, wanted))

    @app.post("/v1/unproject", operation_id="unproject")
    async def unproject(call: UnprojectCall) -> facade.ProjectionInfo:
        """Detach a projection."""
        return await caller.call(partial(caller.parts.unproject, call.path, force=call.force))

    @app.post("/v1/refresh", operation_id="refresh")
    async def refresh(call: RefreshCall) -> facade.Refreshed:
        """Ask the remote again for a directory or a file."""
        work = partial(caller.parts.refresh, call.path, recursive=call.recursive)
        return await caller.call(work)


def _add_cache(app: FastAPI, caller: Caller) -> None:
    @app.post("/v1/residency", operation_id="residency")
    async def residency(call: PathsCall) -> facade.ResidencyReport:
        """Count which share of the paths is here."""
        return await caller.call(partial(caller.parts.residency, call.paths))

    @app.post("/v1/warm", operation_id="warm", status_code=202)
    async def warm(call: PathsCall) -> facade.WorkProgress:
        """Begin to fetch everything below the paths."""
        return await caller.call(partial(caller.parts.start_work, "warm", call.paths))

    @app.post("/v1/pin", operation_id="pin", status_code=202)
    async def pin(call: PathsCall) -> facade.WorkProgress:
        """Begin to fetch everything below the paths, never to be evicted."""
        return await caller.call(partial(caller.parts.start_work, "pin", call.paths))

    @app.get("/v1/warm", operation_id="works")
    async def works() -> facade.WorkList:
        """List warm-ups and pins that run or ended lately; answered from memory."""
        return caller.parts.works()

    @app.get("/v1/warm/{number}", operation_id="work")
    async def work(number: int) -> facade.WorkProgress:
        """Give the progress of a warm-up or pin; answered from memory."""
        return caller.parts.work(number)

    @app.delete("/v1/warm/{number}", operation_id="stop_work")
    async def stop_work(number: int) -> facade.WorkProgress:
        """Stop a warm-up or pin; what has been fetched stays."""
        return await caller.ask(partial(caller.parts.stop_work, number))

    @app.post("/v1/unpin", operation_id="unpin")
    async def unpin(call: PathsCall) -> facade.Unpinned:
        """Let everything below the paths be evicted again."""
        return await caller.call(partial(caller.parts.unpin, call.paths))

    @app.post("/v1/evict", operation_id="evict")
    async def evict(call: PathsCall) -> facade.Evicted:
        """Drop what is cached of everything below the paths, save what is pinned."""
        return await caller.call(partial(caller.parts.evict, call.paths))


def _add_changes(app: FastAPI, caller: Caller) -> None:
    @app.post("/v1/diff", operation_id="diff")
    async def diff(call: DiffCall) -> facade.Diff:
        """Give a page of what was changed here at and below a path."""
        work = partial(caller.parts.diff, call.path, cursor=call.cursor, limit=call.limit)
        return await caller.call(work)

    @app.post("/v1/revert", operation_id="revert")
    async def revert(call: RevertCall) -> facade.Reverted:
        """Drop what was changed here at and below a path."""
        return await caller.call(partial(caller.parts.revert, call.path))
