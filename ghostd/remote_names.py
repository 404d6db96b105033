"""Names from a remote, as names that can stand in a directory. Pure.

A name of 1 to 255 bytes without `/` and NUL, which is neither `.` nor `..` and does not begin with
the marker, is shown as it is, undecodable bytes included. Every other one is shown *escaped*: the
marker, then the name with `/`, NUL and `%` percent-encoded, then `%2F` for a directory. An escaped
form of more than 255 bytes is *shortened*: the marker, a head of the escaped form, `%~` (which no
encoding produces), and a hash of kind and name.

No two of the three forms coincide, and each gives different names to different (name, is a
directory): up to collisions of 128 bits of BLAKE3 in the shortened form, where the second comer is
left out. The shortened form cannot be read back; it need not be, since the namespace keeps the key
beside every name: what counts is that it is unique and the same in every listing.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

from blake3 import blake3

MARKER = b"@orbit:"
NAME_BYTES_MAX = 255

_SLASH = b"%2F"
_SHORTENED = b"%~"
_HASH_BYTES = 16
_HEAD_BYTES = NAME_BYTES_MAX - len(MARKER) - len(_SHORTENED) - 2 * _HASH_BYTES
_ESCAPES = {b"%00": b"\0", b"%25": b"%", _SLASH: b"/"}
_ESCAPE = re.compile(rb"%..", re.DOTALL)
# An escape at the very end that was cut, and a UTF-8 sequence that may have been.
_CUT = re.compile(rb"(?:%.?|[\xc0-\xff][\x80-\xbf]{0,2})\Z", re.DOTALL)


class RemoteName(NamedTuple):
    """What a local name stands for; `is_dir` is None where the name does not tell."""

    name: bytes
    is_dir: bool | None


def local_name(name: bytes, is_dir: bool, taken: Container[bytes]) -> bytes | None:
    """The name under which a remote's entry is shown: 1 to 255 bytes, safe in a directory.

    `taken` holds the names shown so far in this listing. The result depends on it for the pair of a
    file and a directory of one name (keys `a` and `a/`) only: the first comer has the plain name,
    the second the escaped one. Object stores list `a` before `a/`; whoever wants the same names
    from every remote passes files before directories. None: both forms are taken, because the
    remote listed the entry twice; it is to be left out.
    """
    if _plain(name) and name not in taken:
        return name
    escaped = _escaped(name, is_dir)
    return None if escaped in taken else escaped


def remote_name(local: bytes) -> RemoteName | None:
    """The inverse of `local_name`.

    None for a shortened name, whose key only the namespace knows, and for a name that `local_name`
    never gives.
    """
    if _plain(local):
        return RemoteName(local, is_dir=None)
    if not local.startswith(MARKER) or len(local) > NAME_BYTES_MAX:
        return None
    encoded = local.removeprefix(MARKER)
    is_dir = encoded.endswith(_SLASH)
    name = _decoded(encoded.removesuffix(_SLASH))
    if name is None or _escaped(name, is_dir) != local:
        return None
    return RemoteName(name, is_dir)


def _plain(name: bytes) -> bool:
    return (
        0 < len(name) <= NAME_BYTES_MAX
        and b"/" not in name
        and b"\0" not in name
        and name not in {b".", b".."}
        and not name.startswith(MARKER)
    )


def _escaped(name: bytes, is_dir: bool) -> bytes:
    encoded = name.replace(b"%", b"%25").replace(b"/", _SLASH).replace(b"\0", b"%00")
    whole = MARKER + encoded + (_SLASH if is_dir else b"")
    # A file's name that ends in `/`, which no remote should list, would read as a directory's.
    ambiguous = not is_dir and name.endswith(b"/")
    if len(whole) <= NAME_BYTES_MAX and not ambiguous:
        return whole
    head = _CUT.sub(b"", encoded[:_HEAD_BYTES])
    digest = blake3((b"d" if is_dir else b"f") + name).hexdigest(_HASH_BYTES).encode()
    return MARKER + head + _SHORTENED + digest


def _decoded(encoded: bytes) -> bytes | None:
    """The bytes behind the escapes; None where there are others than ours."""
    if not all(escape in _ESCAPES for escape in _ESCAPE.findall(encoded)):
        return None
    return _ESCAPE.sub(lambda escape: _ESCAPES[escape.group()], encoded)
