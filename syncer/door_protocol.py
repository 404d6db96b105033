"""What goes through the door between the daemon and its worker process.

A connection is a stream socket that carries one request and its answer at a time; a worker has
several. A message is a frame of 16 bytes (magic, length of the head, length of the body), a head in
JSON and a body of raw bytes. Bytes in a head are written as Latin-1 text, one character a byte.
Both ends are of one installation, so there is one version.

An answer has `error` and `message` in its head where the request failed: the name of a class of
`syncer.remotes.errors` and its text.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from blockstore.ids import ID_BYTES, Buffer, ChunkId
from syncer.remotes import errors
from syncer.remotes.errors import Garbled, RemoteError, Unreachable
from syncer.tree import Metadata, Node, NodeKind

_FRAME = struct.Struct("<4sIQ")
_MAGIC = b"ODor"
HEAD_BYTES_MAX: Final = 64 << 20
BODY_BYTES_MAX: Final = 256 << 20
_IOV_MAX: Final = 512

EXTENT: Final = struct.Struct("<QII32s")  # offset in the file, length, offset in the chunk, chunk

Head = dict[str, Any]
Extent = tuple[int, int, int, bytes]


class Message(NamedTuple):
    """A request or an answer."""

    head: Head
    body: bytearray


class DoorClosed(Unreachable):
    """The other side has gone."""


def text(data: bytes) -> str:
    """Bytes for a head."""
    return data.decode("latin-1")


def data(text: str) -> bytes:
    """The inverse of `text`."""
    return text.encode("latin-1")


# --- messages ----------------------------------------------------------------------------------


def send(connection: socket.socket, head: Head, body: Sequence[Buffer] = ()) -> None:
    """Send a message. Raises DoorClosed."""
    encoded = json.dumps(head, separators=(",", ":")).encode()
    frame = _FRAME.pack(_MAGIC, len(encoded), sum(len(part) for part in body))
    parts = [memoryview(frame + encoded), *(memoryview(part) for part in body if len(part))]
    try:
        while parts:
            sent = connection.sendmsg(parts[:_IOV_MAX])
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]
    except OSError as error:
        raise DoorClosed(f"the daemon and its worker have lost each other: {error}") from error


def receive(connection: socket.socket) -> Message | None:
    """The next message; None: the other side has closed. Raises DoorClosed, Garbled."""
    frame = _exactly(connection, _FRAME.size, may_end=True)
    if frame is None:
        return None
    magic, head_bytes, body_bytes = _FRAME.unpack(frame)
    if magic != _MAGIC or head_bytes > HEAD_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
        raise Garbled("the daemon and its worker do not understand each other: is one older?")
    head = _exactly(connection, head_bytes)
    body = _exactly(connection, body_bytes)
    assert head is not None
    assert body is not None
    return Message(json.loads(head), body)


def _exactly(connection: socket.socket, length: int, *, may_end: bool = False) -> bytearray | None:
    buffer = bytearray(length)
    view = memoryview(buffer)
    got = 0
    try:
        while got < length:
            count = connection.recv_into(view[got:])
            if not count:
                if may_end and not got:
                    return None
                raise DoorClosed("the daemon and its worker have lost each other")
            got += count
    except OSError as error:
        raise DoorClosed(f"the daemon and its worker have lost each other: {error}") from error
    return buffer


# --- errors ------------------------------------------------------------------------------------


def error_head(error: RemoteError) -> Head:
    """The head of an answer that failed."""
    name = type(error).__name__
    known = isinstance(getattr(errors, name, None), type)
    return {"error": name if known else "RemoteError", "message": str(error)}


def error_of(head: Mapping[str, Any]) -> RemoteError | None:
    """The error that a head tells of; None: none."""
    name = head.get("error")
    if name is None:
        return None
    kind = getattr(errors, str(name), RemoteError)
    assert issubclass(kind, RemoteError)
    return cast("RemoteError", kind(head["message"]))


# --- values ------------------------------------------------------------------------------------


def node_to_wire(node: Node) -> list[Any]:
    """For a head."""
    return [
        text(node.name),
        node.kind.value,
        node.size,
        node.mtime_ns,
        node.mode,
        node.uid,
        node.gid,
        node.token,
        node.link,
        None if node.target is None else text(node.target),
        node.rdev,
        node.allocated,
        node.atime_ns,
    ]


def node_from_wire(values: Sequence[Any]) -> Node:
    """The inverse of `node_to_wire`."""
    name, kind, size, mtime_ns, mode, uid, gid, token, link, target, rdev, allocated, atime = values
    return Node(
        name=data(name),
        kind=NodeKind(kind),
        size=size,
        mtime_ns=mtime_ns,
        mode=mode,
        uid=uid,
        gid=gid,
        token=_hashable(token),
        link=_hashable(link),
        target=None if target is None else data(target),
        rdev=rdev,
        allocated=allocated,
        atime_ns=atime,
    )


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


def metadata_to_wire(metadata: Metadata) -> Head:
    """For a head."""
    return {
        "mode": metadata.mode,
        "uid": metadata.uid,
        "gid": metadata.gid,
        "mtime_ns": metadata.mtime_ns,
        "atime_ns": metadata.atime_ns,
        "xattrs": None if metadata.xattrs is None else xattrs_to_wire(metadata.xattrs),
    }


def metadata_from_wire(head: Mapping[str, Any]) -> Metadata:
    """The inverse of `metadata_to_wire`."""
    xattrs = head["xattrs"]
    return Metadata(
        head["mode"],
        head["uid"],
        head["gid"],
        head["mtime_ns"],
        head["atime_ns"],
        None if xattrs is None else xattrs_from_wire(xattrs),
    )


def xattrs_to_wire(xattrs: Mapping[bytes, bytes]) -> dict[str, str]:
    """For a head."""
    return {text(name): text(value) for name, value in xattrs.items()}


def xattrs_from_wire(xattrs: Mapping[str, str]) -> dict[bytes, bytes]:
    """The inverse of `xattrs_to_wire`."""
    return {data(name): data(value) for name, value in xattrs.items()}


def ids_of(body: Buffer) -> list[ChunkId]:
    """Chunk ids, one after the other."""
    raw = bytes(body)
    return [ChunkId(raw[at : at + ID_BYTES]) for at in range(0, len(raw), ID_BYTES)]


def split(body: Buffer, lengths: Sequence[int]) -> list[memoryview]:
    """The parts of a body, which are as long as told. Raises Garbled."""
    view = memoryview(body)
    if sum(lengths) != len(view):
        raise Garbled("a message through the door has the wrong length")
    parts = []
    at = 0
    for length in lengths:
        parts.append(view[at : at + length])
        at += length
    return parts
