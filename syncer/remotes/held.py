"""Bytes at hand, as something to be written."""

from __future__ import annotations

import trio


class Held:
    """A ByteSource, and a Content, in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """See ByteSource."""
        return len(self._data)

    async def read(self, offset: int, length: int) -> bytes:
        """See ByteSource."""
        await trio.lowlevel.checkpoint()
        assert 0 <= offset <= offset + length <= len(self._data)
        return self._data[offset : offset + length]
