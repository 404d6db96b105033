"""MD5s as object stores send and want them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib

from syncer.remotes.remote import Data

IN_LOOP_BYTES_MAX = 1 << 16  # hashing so much takes less than handing it to a thread


def md5(data: Data) -> bytes:
    """The MD5; of no use against those who mean harm."""
    return hashlib.md5(data, usedforsecurity=False).digest()


async def md5_aside(data: Data) -> bytes:
    """The MD5, in a thread where it takes long; for asyncio's loop."""
    return md5(data) if len(data) <= IN_LOOP_BYTES_MAX else await asyncio.to_thread(md5, data)


def md5_of_header(text: str) -> bytes | None:
    """The MD5 that a server tells in base64; None where that is no MD5."""
    with contextlib.suppress(binascii.Error):
        digest = base64.b64decode(text, validate=True)
        return digest if len(digest) == 16 else None
    return None
