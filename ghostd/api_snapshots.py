"""The routes of snapshots, version 1. Imported in the API's thread only (FastAPI is slow)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from ghostd import snapshots_facade as facade
from ghostd.api_projections import PATH_CHARS_MAX, Caller
from ghostd.errors import FilesystemError
from ghostd.facade import Control

PAGE_MAX: Final = 5_000
_NAMES_MAX: Final = 1_000
_TAGS_MAX: Final = 100
_YEARS_100_S: Final = 100 * 366 * 86_400.0

Name = Annotated[str, Field(min_length=1, max_length=400)]
Path = Annotated[str, Field(max_length=PATH_CHARS_MAX)]
Cursor = Annotated[str, Field(max_length=PATH_CHARS_MAX)] | None
Limit = Annotated[int, Field(ge=1, le=PAGE_MAX)]
Tags = Annotated[list[Name], Field(max_length=_TAGS_MAX)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class SnapshotsAbsent(FilesystemError):
    """The daemon runs without snapshots."""


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TakeCall(_Call):
    """A snapshot to be taken."""

    path: Path = "/"
    name: Annotated[str, Field(max_length=400)] = ""
    tags: Tags = []
    expires_s: Annotated[float, Field(gt=0, le=_YEARS_100_S)] | None = None


class ShowCall(_Call):
    """A path in a snapshot, and how many of its entries at a time."""

    name: Name
    path: Path = "/"
    cursor: Cursor = None
    limit: Limit = 1_000


class DiffCall(_Call):
    """Two snapshots, of which one may be `live`."""

    old: Name
    new: Name
    path: Path = "/"
    cursor: Cursor = None
    limit: Limit = 1_000


class RemoveCall(_Call):
    """Snapshots to be removed."""

    names: Annotated[list[Name], Field(min_length=1, max_length=_NAMES_MAX)]
    force: bool = False


class PruneCall(_Call):
    """How many stay, of each source."""

    last: Count = 0
    hourly: Count = 0
    daily: Count = 0
    weekly: Count = 0
    monthly: Count = 0
    yearly: Count = 0
    tags: Tags = []
    source: Path = ""
    dry_run: bool = False


def add_snapshots(app: FastAPI, control: Control) -> None:
    """Add the routes."""
    caller = Caller(control)

    def parts() -> facade.SnapshotCalls:
        if control.snapshots is None:
            raise SnapshotsAbsent("this daemon runs without snapshots")
        return control.snapshots

    @app.get("/v1/snapshots", operation_id="snapshots")
    async def snapshots(cursor: Cursor = None, limit: Limit = 1_000) -> facade.SnapshotPage:
        """Give a page of all snapshots, newest first."""
        return await caller.ask(partial(parts().snapshots, cursor=cursor, limit=limit))

    @app.post("/v1/snapshots", operation_id="take_snapshot", status_code=201)
    async def take(call: TakeCall) -> facade.Taken:
        """Take a snapshot of a directory; it is durable when this answers."""
        wanted = facade.Take(call.path, call.name, tuple(call.tags), call.expires_s)
        return await caller.call(partial(parts().take, wanted))

    @app.post("/v1/snapshots/show", operation_id="show_snapshot")
    async def show(call: ShowCall) -> facade.Shown:
        """Give a path in a snapshot and a page of what is in it."""
        work = partial(parts().show, call.name, call.path, cursor=call.cursor, limit=call.limit)
        return await caller.call(work)

    @app.post("/v1/snapshots/diff", operation_id="diff_snapshots")
    async def diff(call: DiffCall) -> facade.SnapshotDiff:
        """Give a page of what differs between two snapshots."""
        work = partial(
            parts().diff, call.old, call.new, call.path, cursor=call.cursor, limit=call.limit
        )
        return await caller.call(work)

    @app.post("/v1/snapshots/remove", operation_id="remove_snapshots")
    async def remove(call: RemoveCall) -> facade.Removed:
        """Remove snapshots; none where a name is wrong."""
        return await caller.call(partial(parts().remove, call.names, force=call.force))

    @app.post("/v1/snapshots/prune", operation_id="prune_snapshots")
    async def prune(call: PruneCall) -> facade.Pruned:
        """Remove what no rule keeps, or say what that would be."""
        numbers = call.model_dump(exclude={"tags", "source", "dry_run"})
        keep = facade.Keep(**numbers, tags=tuple(call.tags))
        work = partial(parts().prune, keep, source=call.source, dry_run=call.dry_run)
        return await caller.call(work)
