"""Errors as answers of the control API: a status, a word for programs, and what to do."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from blockstore.errors import OrbitError, StorageFull
from ghostd import (
    errors,
    flights,
    keeper,
    projections,
    snapshots,
    snapshots_roots,
    snapshots_writing,
    warming,
)
from syncer import catalogue, jobs_errors
from syncer.remotes import errors as remotes


class Answer(NamedTuple):
    """What goes out for an error."""

    status: int
    word: str
    hint: str


_STATUS_HINT: Final = "`orbit-ctl status` shows what is wrong"
_LIST_HINT: Final = "`orbit-ctl projections` lists them"

# By the nearest class of the error; the messages say what happened, to what.
_ANSWERS: Final[dict[type[OrbitError], Answer]] = {
    OrbitError: Answer(500, "", _STATUS_HINT),
    StorageFull: Answer(507, "storage_full", "free space on the disk of the state folder"),
    flights.Busy: Answer(409, "busy", ""),
    # of jobs
    jobs_errors.NoSuchJob: Answer(404, "no_such_job", "`orbit-ctl jobs` lists them"),
    jobs_errors.BadJob: Answer(422, "bad_job", ""),
    jobs_errors.NotNow: Answer(409, "not_now", ""),
    # of remotes
    remotes.RemoteError: Answer(502, "remote_failed", "the daemon's log may say more"),
    remotes.Denied: Answer(
        403, "denied", "give the daemon's user the right credentials (never in the URL)"
    ),
    remotes.Missing: Answer(404, "missing", "look at the URL and at the remote"),
    remotes.BadUrl: Answer(422, "bad_url", "`orbit-ctl project --help` shows URLs"),
    remotes.Unreachable: Answer(
        504, "unreachable", "see whether the server runs and can be reached from here"
    ),
    remotes.Busy: Answer(503, "remote_busy", "the server asks for patience: try again later"),
    remotes.Garbled: Answer(
        502, "garbled", "does the URL name the right kind of server? its log may say more"
    ),
    remotes.Unsupported: Answer(422, "unsupported", ""),
    remotes.Exists: Answer(409, "exists", ""),
    remotes.NotEmpty: Answer(409, "not_empty", ""),
    remotes.Changed: Answer(409, "changed", "`orbit-ctl refresh` it, then try again"),
    remotes.Full: Answer(507, "remote_full", "free space or raise the quota at the remote"),
    # of the namespace
    errors.FilesystemError: Answer(409, "", ""),
    errors.NotFound: Answer(
        404, "not_found", "`ls` of its directory asks the remote; then try again"
    ),
    errors.StaleHandle: Answer(404, "not_found", "it has just gone; look again"),
    errors.InvalidArgument: Answer(422, "invalid_argument", ""),
    errors.NameTooLong: Answer(422, "name_too_long", ""),
    errors.NoSpaceLeft: Answer(507, "no_space_left", "free space on the state folder's disk"),
    projections.NoProjection: Answer(404, "no_projection", _LIST_HINT),
    projections.ProjectionRefused: Answer(422, "projection_refused", ""),
    projections.LocalChanges: Answer(
        409, "local_changes", "look at them with `orbit-ctl diff`, or drop them with --force"
    ),
    snapshots.SnapshotInUse: Answer(409, "snapshot_in_use", ""),
    snapshots_writing.SnapshotRefused: Answer(422, "snapshot_refused", ""),
    catalogue.BadName: Answer(422, "bad_name", ""),
    keeper.CollectionRefused: Answer(409, "collection_refused", ""),
    snapshots_roots.SnapshotDamaged: Answer(
        409, "snapshot_damaged", "`orbit-ctl check --data` says what is lost"
    ),
    warming.NoWork: Answer(404, "no_work", "`orbit-ctl works` lists them"),
    warming.TooManyWorks: Answer(409, "too_many_works", "`orbit-ctl works --stop ID` stops one"),
}


def answer_of(error: OrbitError) -> Answer:
    """Return the answer that stands for an error."""
    for kind in type(error).__mro__:
        found = _ANSWERS.get(kind)
        if found is not None:
            return found._replace(word=found.word or _word(error))
    raise AssertionError(error)


def _word(error: Exception) -> str:
    """StorageFull -> storage_full."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
