"""Steps as rows of `jobs.db`, and back. Pure.

What only a step's executor needs is one blob. It is `marshal`'s (version 2: no references, the same
in every Python since 2.3): 1.0 µs a step, where JSON takes 3.6 and cannot hold bytes. It is only
ever read after its checksum was found right, since `marshal` may crash on what it did not write.
"""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Sequence
from typing import Any, Final

from syncer.jobs_errors import JobsDamaged
from syncer.remotes.remote import Checksum, Version
from syncer.steps import Step, StepKind
from syncer.tree import Node, NodeKind

_MARSHAL: Final = 2
_KINDS: Final = tuple(NodeKind)
_CODE_OF_KIND: Final = {kind: code for code, kind in enumerate(_KINDS)}
_FILE: Final = NodeKind.FILE
_FILE_CODE: Final = _CODE_OF_KIND[_FILE]

# A turn is kind, rank and size (or depth) in one number, by which steps are ordered.
_KIND_SHIFT: Final = 59
_RANK_SHIFT: Final = 51
_RANK_MAX: Final = 255
_SIZE_MAX: Final = (1 << _RANK_SHIFT) - 1

# By kind: 0: by rank and size, 1: shallowest first, -1: deepest first. A tuple: hashing an enum
# costs as much as all the rest of a turn.
_BY_DEPTH: Final = tuple(
    {
        StepKind.MKDIR: 1,
        StepKind.TRASH: -1,
        StepKind.DELETE: -1,
        StepKind.DIRECTORY_METADATA: -1,
    }.get(StepKind(kind), 0)
    if kind
    else 0
    for kind in range(max(StepKind) + 1)
)


class StepUnreadable(JobsDamaged):
    """A row's content is not what was written."""


# turn (the order), path, checksum of path and detail, detail. Plain tuples: millions are made.
StepRow = tuple[int, bytes, int, bytes]


def turn_of(step: Step) -> int:
    """Where a step stands in the order: by kind, then by rank and size, or by depth."""
    kind = step.kind
    by_depth = _BY_DEPTH[kind]
    if not by_depth:
        rank = step.rank
        size = step.size
        if not (0 <= rank <= _RANK_MAX and 0 <= size <= _SIZE_MAX):
            rank = min(max(rank, 0), _RANK_MAX)
            size = min(max(size, 0), _SIZE_MAX)
        return kind << _KIND_SHIFT | rank << _RANK_SHIFT | size
    depth = _depth(step.path)
    return kind << _KIND_SHIFT | (depth if by_depth > 0 else _SIZE_MAX - depth)


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1 if path else 0


def turns_of(kind: StepKind) -> tuple[int, int]:
    """Return the lowest and the highest turn of a kind."""
    return kind << _KIND_SHIFT, ((kind + 1) << _KIND_SHIFT) - 1


def kind_of(turn: int) -> StepKind:
    """Return the kind of the step with this turn."""
    return StepKind(turn >> _KIND_SHIFT)


def encode_step(step: Step) -> StepRow:
    """Return the row of a step. Raises TypeError for a token or link that no row can hold."""
    path = step.path
    source = step.source_path
    node = step.node
    old = step.old
    detail = (
        step.rank,
        step.size,
        step.reason,
        None if source == path else source,
        None if node is None else _pack_node(node, path),
        None if old is None else _pack_node(old, path),
    )
    try:
        blob = marshal.dumps(detail, _MARSHAL)
    except ValueError:  # a token or link that is not made of plain values alone
        blob = marshal.dumps(_plain(detail), _MARSHAL)
    return turn_of(step), path, zlib.crc32(blob, zlib.crc32(path)), blob


def _pack_node(node: Node, path: bytes) -> tuple[Any, ...]:
    name = node.name
    kind = node.kind
    checksum = node.checksum
    return (
        # The name is nearly always the end of the path: its length will do.
        len(name) if path.endswith(name) else name,
        _FILE_CODE if kind is _FILE else _CODE_OF_KIND[kind],
        None if checksum is None else (checksum.algorithm, checksum.digest),
        node[2:] if checksum is None else (*node[2:14], None, *node[15:]),
    )


def _plain(value: Any) -> Any:
    """Return the value in terms of what `marshal` knows.

    Lists are free to stand for other things: nothing that is hashable has one in it.
    """
    kind = type(value)
    if kind in {type(None), bool, int, float, str, bytes}:
        return value
    if isinstance(value, Version):
        return [value.size, value.etag, value.mtime_ns]
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, int):  # an enum, or another subclass that is equal to its base
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes(value)
    raise TypeError(f"a step's node has a {kind.__name__}, which cannot be stored")


def _unplain(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return Version(*value)
    if kind is tuple:
        return tuple(_unplain(each) for each in value)
    return value


def decode_step(turn: int, path: bytes, checksum: int, detail: bytes) -> Step:
    """Return the step of a row. Raises StepUnreadable."""
    if zlib.crc32(detail, zlib.crc32(path)) != checksum:
        raise StepUnreadable(
            f"the step for {path!r} in the job's database is damaged: remove the job and start it "
            "again; what it has copied stays"
        )
    rank, size, reason, source, node, old = marshal.loads(detail)  # noqa: S302  checked above
    return Step(
        kind_of(turn),
        path,
        reason,
        rank,
        size,
        path if source is None else source,
        None if node is None else _unpack_node(node, path),
        None if old is None else _unpack_node(old, path),
    )


def _unpack_node(fields: Sequence[Any], path: bytes) -> Node:
    name, kind, checksum, rest = fields
    if type(name) is int:
        name = path[len(path) - name :]
    node = Node(name, _KINDS[kind], *rest)
    if checksum is not None:
        node = node._replace(checksum=Checksum(*checksum))
    token: Any = node.token
    if type(token) is list or type(token) is tuple:
        node = node._replace(token=_unplain(token))
    if node.link is not None:
        node = node._replace(link=_unplain(node.link))
    return node
