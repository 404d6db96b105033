"""Brings the projections in line with the configuration file, at start."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence

import structlog

from blockstore.errors import OrbitError
from ghostd.attached_paths import AttachedPaths
from ghostd.config_projections import ProjectionConfig
from ghostd.filesystem import Caller, Filesystem
from ghostd.inodes import ROOT_INO
from ghostd.projection import Projection
from ghostd.projections import Projections, Wanted

log = structlog.get_logger(__name__)


def _wanted(each: ProjectionConfig) -> Wanted:
    return Wanted(
        url=each.url,
        path=os.fsencode(each.path),
        mode=each.mode,
        ttl_s=each.ttl_s,
        block_bytes=each.block_bytes,
        options=each.options,
        configured=True,
    )


def _same(projection: Projection, path: bytes, wanted: Wanted) -> bool:
    row = projection.row
    return (path, row.url, row.mode, row.ttl_ms, row.block_bytes, json.loads(row.options)) == (
        wanted.path,
        wanted.url,
        wanted.mode,
        int(wanted.ttl_s * 1_000),
        wanted.block_bytes,
        dict(wanted.options),
    )


async def reconcile(
    projections: Projections,
    filesystem: Filesystem,
    paths: AttachedPaths,
    configs: Sequence[ProjectionConfig],
) -> None:
    """Attach what the file names, detach what it named before; failures are logged."""
    missing = {wanted.path: wanted for wanted in map(_wanted, configs)}
    for projection in projections.all():
        if not projection.row.configured:
            continue
        path = await paths.path_of(projection.row.id)
        wanted = missing.get(path)
        if wanted is not None and _same(projection, path, wanted):
            del missing[path]
            continue
        try:
            await projections.unproject(path, force=False)
        except OrbitError as error:
            missing.pop(path, None)
            _complain(projection.url, path, error)
    for wanted in missing.values():
        try:
            _make_parents(filesystem, wanted.path)
            await projections.project(wanted)
        except OrbitError as error:
            _complain(wanted.url, wanted.path, error)


def _complain(url: str, path: bytes, error: OrbitError) -> None:
    log.warning(
        "a projection of the configuration file is not as the file says",
        url=url,
        path=os.fsdecode(path),
        error=str(error),
    )


def _make_parents(filesystem: Filesystem, path: bytes) -> None:
    daemon = Caller(os.geteuid(), os.getegid(), os.getpid(), 0o022)
    find: Callable[[int, bytes], tuple[int, int] | None] = filesystem.tree.find
    ino: int = ROOT_INO
    for part in [part for part in path.split(b"/") if part][:-1]:
        found = find(ino, part)
        if found is None:
            ino = filesystem.create(ino, part, stat.S_IFDIR | 0o755, daemon).ino
        else:
            ino = found[1]
