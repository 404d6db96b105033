"""What remotes that are only read have in common: all that changes something is refused."""

from __future__ import annotations

from typing import NoReturn

import trio

from syncer.remotes.errors import Unsupported
from syncer.remotes.remote import Attributes, ByteSource, Entry, Version


class ReadOnly:
    """The changing half of Remote: each method raises Unsupported."""

    def _refusal(self, key: bytes) -> str:
        """What is refused, and why, for people."""
        raise NotImplementedError

    async def write(
        self,
        key: bytes,
        source: ByteSource,  # noqa: ARG002 - the protocol's
        attributes: Attributes | None = None,  # noqa: ARG002
        *,
        if_version: Version | None = None,  # noqa: ARG002
        replace: bool = True,  # noqa: ARG002
    ) -> Entry:
        """Raise Unsupported."""
        await self._refuse(key)

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse(key)

    async def delete(self, key: bytes) -> None:
        """Raise Unsupported."""
        await self._refuse(key)

    async def mkdir(self, key: bytes) -> None:
        """Raise Unsupported."""
        await self._refuse(key)

    async def symlink(self, key: bytes, target: bytes) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse(key)

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:  # noqa: ARG002
        """Raise Unsupported."""
        await self._refuse(key)

    async def _refuse(self, key: bytes) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise Unsupported(self._refusal(key))
