"""Reading and listing through an SFTP session, in as few turns as there can be.

For the bridge's loop. Handles of files that are read in ranges stay open for a while, so that the
next range costs one round trip; where the server's next handle can be guessed, the first one does
too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass

from syncer.remotes.errors import Changed, Garbled, Missing, RemoteError, Unsupported
from syncer.remotes.remote import ROOT, Entry, Kind, Version
from syncer.remotes.sftp_session import Opening, SftpSession
from syncer.remotes.sftp_wire import (
    READ_FLAG,
    Attrs,
    Code,
    Fields,
    Packet,
    Status,
    meaning,
    string,
    take_names,
)

_log = logging.getLogger(__name__)

_OPEN_MAX = 32  # handles kept; servers allow hundreds to a login
_IDLE_S = 15.0  # until they are closed
_FIRST_BYTES = 1 << 20  # of a file whose size is not known yet: five requests
_TRIES = 3  # to read a file whole while somebody writes it
_READDIRS = 10  # in flight; OpenSSH gives 100 names a time


def stat_path(session: SftpSession, path: bytes, *, follow: bool = False) -> asyncio.Future[bytes]:
    """LSTAT or STAT: take it with `attrs_of`."""
    kind = Packet.STAT if follow else Packet.LSTAT
    return session.ask(kind, string(path), Packet.ATTRS)


async def attrs_of(answer: asyncio.Future[bytes]) -> Attrs:
    """The attributes in an answer. Raises Status."""
    return Attrs.take(Fields(await answer))


async def readlink(session: SftpSession, path: bytes) -> bytes | None:
    """A symlink's target; None where it is none any more."""
    try:
        names = take_names(await session.ask(Packet.READLINK, string(path), Packet.NAME))
    except Status:
        return None
    return names[0].name if names else None


@dataclass(slots=True)
class _Open:
    """A file that is open, or about to be."""

    session: SftpSession
    opening: Opening
    users: int = 0
    used_at: float = 0.0  # of the loop's clock
    unwanted: bool = False  # to be closed by its last user


class OpenFiles:
    """Files that are open for reading: the ones used last, by path and version."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: OrderedDict[tuple[bytes, Version], _Open] = OrderedDict()
        self._sweeping: asyncio.TimerHandle | None = None

    async def read(
        self, session: SftpSession, path: bytes, version: Version, offset: int, length: int
    ) -> bytes:
        """See Remote.read."""
        file = self._acquire(session, path, version)
        keep = True
        try:
            return await self._read_checked(file, path, version, offset, length)
        except (Status, RemoteError) as error:
            keep = False
            if not isinstance(error, Status):
                raise
            where = f"{self._where}: {path!r}"
            refused = meaning(error, where, Garbled)
            if isinstance(refused, Missing):
                refused = Changed(f"{where} is gone")
            raise refused from None
        finally:
            self._release((path, version), file, keep=keep)

    async def _read_checked(
        self, file: _Open, path: bytes, version: Version, offset: int, length: int
    ) -> bytes:
        data, attrs, error = await _read(file, offset, length)
        if attrs.entry(path).version != version or attrs.kind is not Kind.FILE:
            raise Changed(f"{self._where}: {path!r} is not the version that was listed")
        if error is not None:
            raise error
        if len(data) != length:
            got = f"{len(data)} of {length} bytes at {offset}"
            raise Garbled(f"{self._where}: {path!r} gave {got}")
        return data

    def _acquire(self, session: SftpSession, path: bytes, version: Version) -> _Open:
        file = self._open.get((path, version))
        if file is None or file.session is not session:
            opening = session.open(path, READ_FLAG)
            file = self._open[path, version] = _Open(session, opening)
        self._open.move_to_end((path, version))
        file.users += 1
        return file

    def _release(self, name: tuple[bytes, Version], file: _Open, *, keep: bool) -> None:
        file.users -= 1
        file.used_at = asyncio.get_running_loop().time()
        if not keep:
            file.unwanted = True
            if self._open.get(name) is file:
                del self._open[name]
        if file.unwanted and not file.users:
            _close(file)
        self._sweep()

    def _sweep(self) -> None:
        """Close those that are too many or have been idle too long, and come back."""
        loop = asyncio.get_running_loop()
        idle = [each for each in self._open.items() if not each[1].users]  # oldest first
        too_many = len(self._open) - _OPEN_MAX
        for number, (name, file) in enumerate(idle):
            if number < too_many or file.used_at + _IDLE_S <= loop.time():
                del self._open[name]
                _close(file)
        if self._sweeping is None and self._open:
            self._sweeping = loop.call_later(_IDLE_S, self._swept)

    def _swept(self) -> None:
        self._sweeping = None
        self._sweep()

    def close(self) -> None:
        """Forget them; the session ends anyway."""
        self._open.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()


def _close(file: _Open) -> None:
    """CLOSE, also when the handle is still to come."""
    handle = file.opening.handle
    if not handle.done():
        handle.cancel()
    elif not handle.cancelled() and handle.exception() is None:
        file.session.close(handle.result())


async def _read(
    file: _Open, offset: int, length: int
) -> tuple[bytes, Attrs, Status | Garbled | None]:
    """Read a file that is open, or being opened: then by its guessed handle if there is one."""
    handle = file.opening.handle
    if handle.done():
        return await file.session.read(handle.result(), offset, length).finish()
    reading, guess = None, file.opening.guess
    if guess is not None:
        reading = file.session.read(guess, offset, length)
    try:
        true = await asyncio.shield(handle)  # others may wait for it too
        if reading is not None and true == guess:
            return await reading.finish()
    except BaseException:
        if reading is not None:
            reading.give_up()
        raise
    if reading is not None:
        reading.give_up()
    return await file.session.read(true, offset, length).finish()


async def read_whole(
    session: SftpSession, where: str, key: bytes, path: bytes, size_max: int
) -> tuple[Entry, bytes]:
    """See Remote.read_whole."""
    try:
        for _ in range(_TRIES):
            # OPEN follows symlinks, and only the root may be one.
            found = stat_path(session, path, follow=key == ROOT)
            file = _Open(session, session.open(path, READ_FLAG))
            try:
                length = min(size_max, _FIRST_BYTES)
                data, attrs, error = await _read(file, 0, length)
                if (await attrs_of(found)).kind is not Kind.FILE or attrs.kind is not Kind.FILE:
                    raise Unsupported(f"{where} is no file")
                entry = before = attrs.entry(key)
                if entry.size > size_max:
                    raise Unsupported(f"{where} is larger than {size_max} bytes")
                if error is None and entry.size > length:
                    more, attrs, error = await _read(file, length, entry.size - length)
                    data += more
                    entry = attrs.entry(key)
                if error is not None:
                    raise error
                if entry.version == before.version and len(data) == entry.size:
                    return entry, data
            finally:
                _close(file)
    except Status as status:
        raise meaning(status, where, Garbled) from None
    raise Changed(f"{where} is being written")


class Listing:
    """A directory that is being listed; `close` it."""

    def __init__(self, session: SftpSession, where: str, key: bytes, path: bytes) -> None:
        self.session = session
        self._where = where
        self._key = key
        self._path = path
        self._opening: Opening | None = None
        self._over = False

    async def page(self) -> list[Entry]:
        """The next entries, in one turn; empty when there are none left."""
        page: list[Entry] = []
        while not page and not self._over:
            try:
                names = await self._names()
            except Status as status:
                raise meaning(status, self._where, Garbled) from None
            page = await self._entries(names)
        return page

    async def _names(self) -> list[tuple[bytes, Attrs]]:
        if self._opening is not None:
            return await self._read(self._readdirs(await self._opening.handle))
        # OPENDIR follows symlinks, and only the root may be one.
        found = stat_path(self.session, self._path, follow=self._key == ROOT)
        self._opening = self.session.open_directory(self._path)
        guess = self._opening.guess
        answers = [] if guess is None else self._readdirs(guess)
        if (await attrs_of(found)).kind is not Kind.DIRECTORY:
            raise Unsupported(f"{self._where} is no directory")
        handle = await self._opening.handle
        if handle != guess:
            answers = self._readdirs(handle)
        return await self._read(answers)

    def _readdirs(self, handle: bytes) -> list[asyncio.Future[bytes]]:
        body = string(handle)
        return [self.session.ask(Packet.READDIR, body, Packet.NAME) for _ in range(_READDIRS)]

    async def _read(self, answers: list[asyncio.Future[bytes]]) -> list[tuple[bytes, Attrs]]:
        found = []
        for answer in answers:
            try:
                names = take_names(await answer)
            except Status as status:
                if status.code != Code.EOF:
                    raise
                self._over = True
                break
            for each in names:
                if not each.name or b"/" in each.name or b"\0" in each.name:
                    _log.warning("%s: a name is left out: %r", self._where, each.name)
                elif each.name not in {b".", b".."}:
                    found.append((each.name, each.attrs))
        return found

    async def _entries(self, names: list[tuple[bytes, Attrs]]) -> list[Entry]:
        prefix = self._key if not self._key or self._key.endswith(b"/") else self._key + b"/"
        base = self._path + b"/"
        links = {
            name: asyncio.ensure_future(readlink(self.session, base + name))
            for name, attrs in names
            if attrs.kind is Kind.SYMLINK
        }
        try:
            await asyncio.gather(*links.values())
        except BaseException:
            for link in links.values():
                link.cancel()
            raise
        return [
            attrs.entry(prefix + name, links[name].result() if name in links else None)
            for name, attrs in names
        ]

    def close(self) -> None:
        """Let go of the directory."""
        if self._opening is not None:
            _close(_Open(self.session, self._opening))
