"""Writing and changing through an SFTP session. For the bridge's loop.

FAILURE is all that servers of version 3 say of most refusals: what it means is found out by a
second look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import replace

from syncer.local_parts import new_part
from syncer.remotes.errors import Changed, Exists, Full, NotEmpty, RemoteError, Unsupported
from syncer.remotes.remote import Attributes, Entry, Kind, Version
from syncer.remotes.sftp_reads import attrs_of, stat_path
from syncer.remotes.sftp_session import SftpSession
from syncer.remotes.sftp_wire import (
    CREATE_FLAG,
    EXCLUSIVE_FLAG,
    FSYNC,
    LSETSTAT,
    NS,
    POSIX_RENAME,
    STATVFS,
    WRITE_FLAG,
    Attrs,
    Code,
    Fields,
    Packet,
    Status,
    meaning,
    string,
    take_names,
    u64,
)

_UNWRITTEN_MAX = 8 << 20  # bytes sent and not answered: 40 ms of 200 MB/s


def _attrs(attributes: Attributes, old: Attrs) -> Attrs:
    """What is to be set. Owners and times go in pairs: the other one stays as it is."""
    new = Attrs(mode=None if attributes.mode is None else attributes.mode & 0o7777)
    if attributes.uid is not None or attributes.gid is not None:
        uid = old.uid if attributes.uid is None else attributes.uid
        new = replace(new, uid=uid, gid=old.gid if attributes.gid is None else attributes.gid)
    if attributes.mtime_ns is not None or attributes.atime_ns is not None:
        mtime = old.mtime if attributes.mtime_ns is None else attributes.mtime_ns // NS
        atime = old.atime if attributes.atime_ns is None else attributes.atime_ns // NS
        new = replace(new, mtime=mtime, atime=atime)
    return new


async def _look(session: SftpSession, path: bytes) -> Attrs | None:
    """What is there; None: nothing, or nobody can tell."""
    with contextlib.suppress(Status):
        return await attrs_of(stat_path(session, path))
    return None


class Upload:
    """A file that is being written under a temporary name beside its own; `close` it."""

    def __init__(
        self, session: SftpSession, where: str, key: bytes, path: bytes, attributes: Attributes
    ) -> None:
        self.session = session
        self._where = where
        self._key = key
        self._path = path
        self._attributes = attributes
        folder, slash, _ = path.rpartition(b"/")
        self._temporary = folder + slash + new_part()
        self._begun = False
        self._handle: bytes | None = None
        self._offset = 0
        self._unanswered: deque[tuple[int, asyncio.Future[bytes]]] = deque()
        self._unanswered_bytes = 0
        self._published = False

    async def begin(self, parents: list[bytes]) -> None:
        """Open it; `parents`, from the top, are made where they are missing."""
        try:
            try:
                self._handle = await self._open()
            except Status as status:
                if status.code not in {Code.NO_SUCH_FILE, Code.NO_SUCH_PATH} or not parents:
                    raise
                for parent in parents:
                    body = string(parent) + Attrs().encode()
                    with contextlib.suppress(Status):  # it is there
                        await self.session.ask(Packet.MKDIR, body)
                self._handle = await self._open()
        except Status as status:
            raise await self._refused(status) from None

    async def _open(self) -> bytes:
        # Not readable by more than it will be.
        attrs = Attrs() if self._attributes.mode is None else Attrs(mode=0o600)
        flags = WRITE_FLAG | CREATE_FLAG | EXCLUSIVE_FLAG
        self._begun = True
        return await self.session.open(self._temporary, flags, attrs).handle

    async def append(self, data: bytes) -> None:
        """Send the next bytes; waits only while too many are on their way."""
        assert self._handle is not None
        length = self.session.write_length
        try:
            for start in range(0, len(data), length):
                part = data[start : start + length]
                while self._unanswered_bytes + len(part) > _UNWRITTEN_MAX and self._unanswered:
                    await self._answered()
                body = string(self._handle) + u64(self._offset) + string(part)
                self._unanswered.append((len(part), self.session.ask(Packet.WRITE, body)))
                self._unanswered_bytes += len(part)
                self._offset += len(part)
        except Status as status:
            raise await self._refused(status) from None

    async def _answered(self) -> None:
        length, answer = self._unanswered.popleft()
        await answer
        self._unanswered_bytes -= length

    async def publish(self, if_version: Version | None, *, replace: bool) -> Entry:
        """Bring it to the disk and give it its name. See Remote.write."""
        try:
            return await self._publish(if_version, replace=replace)
        except Status as status:
            raise await self._refused(status) from None

    async def _publish(self, if_version: Version | None, *, replace: bool) -> Entry:
        session, handle = self.session, self._handle
        assert handle is not None
        given = self._attributes
        if any(each is not None for each in (given.uid, given.gid, given.mtime_ns, given.atime_ns)):
            old = await attrs_of(session.stat_open(handle))
        else:
            old = Attrs()
        body = string(handle) + _attrs(given, old).encode()
        answers = [session.ask(Packet.FSETSTAT, body)]
        if FSYNC in session.extensions:
            answers.append(session.ask(Packet.EXTENDED, string(FSYNC) + string(handle)))
        written = session.stat_open(handle)
        there = None if if_version is None else stat_path(session, self._path)
        while self._unanswered:
            await self._answered()
        for answer in answers:
            await answer
        entry = (await attrs_of(written)).entry(self._key)
        if there is not None and if_version is not None:
            await self._check(there, if_version)
        await move(session, self._where, self._temporary, self._path, replace=replace)
        self._published = True
        return entry

    async def _check(self, there: asyncio.Future[bytes], version: Version) -> None:
        try:
            found = (await attrs_of(there)).entry(self._key)
        except Status as status:
            if status.code not in {Code.NO_SUCH_FILE, Code.NO_SUCH_PATH}:
                raise
            raise Changed(f"{self._where} is gone") from None
        if found.version != version:
            raise Changed(f"{self._where} is not the version that was to be replaced")

    async def _refused(self, status: Status) -> RemoteError:
        """What a refusal means; FAILURE may be a full disk."""
        if status.code == Code.FAILURE and STATVFS in self.session.extensions:
            folder = self._path.rpartition(b"/")[0] or b"/"
            with contextlib.suppress(Status):
                body = string(STATVFS) + string(folder)
                fields = Fields(
                    await self.session.ask(Packet.EXTENDED, body, Packet.EXTENDED_REPLY)
                )
                values = [fields.u64() for _ in range(5)]
                if values[4] == 0:  # blocks that we may use
                    return Full(f"{self._where}: the server has no space left")
        return meaning(status, self._where)

    def close(self) -> None:
        """Let go of it; what was not published is removed, as soon as the server gets to it."""
        if self.session.lost is not None or not self._begun:
            return
        if self._handle is not None:
            self.session.close(self._handle)
        if not self._published:  # behind an OPEN whose answer is still to come, too
            self.session.ask(Packet.REMOVE, string(self._temporary))
        self._begun = False


async def move(session: SftpSession, where: str, old: bytes, new: bytes, *, replace: bool) -> None:
    """RENAME; over what is there only with OpenSSH's extension, which is atomic."""
    names = string(old) + string(new)
    try:
        if replace and POSIX_RENAME in session.extensions:
            await session.ask(Packet.EXTENDED, string(POSIX_RENAME) + names)
        else:
            await session.ask(Packet.RENAME, names)
    except Status as status:
        there = await _look(session, new) if status.code == Code.FAILURE else None
        if there is None:
            raise
        if replace and there.kind is not Kind.DIRECTORY and POSIX_RENAME not in session.extensions:
            raise Unsupported(f"{where}: the server cannot replace a file atomically") from None
        raise Exists(f"{where} is there already") from None


async def delete(session: SftpSession, where: str, path: bytes, *, directory: bool) -> None:
    """REMOVE or RMDIR."""
    try:
        await session.ask(Packet.RMDIR if directory else Packet.REMOVE, string(path))
    except Status as status:
        if directory and status.code == Code.FAILURE and await _has_entries(session, path):
            raise NotEmpty(f"{where} has entries") from None
        there = None if directory else await _look(session, path)
        if there is not None and there.kind is Kind.DIRECTORY:
            raise Unsupported(f"{where} is a directory") from None
        raise


async def _has_entries(session: SftpSession, path: bytes) -> bool:
    handle = await session.open_directory(path).handle
    try:
        while True:
            names = take_names(await session.ask(Packet.READDIR, string(handle), Packet.NAME))
            if any(each.name not in {b".", b".."} for each in names):
                return True
    except Status as status:
        if status.code != Code.EOF:
            raise
        return False
    finally:
        session.close(handle)


async def mkdir(session: SftpSession, where: str, path: bytes) -> None:
    """MKDIR."""
    try:
        await session.ask(Packet.MKDIR, string(path) + Attrs().encode())
    except Status as status:
        if status.code == Code.FAILURE and await _look(session, path) is not None:
            raise Exists(f"{where} is there already") from None
        raise


async def symlink(session: SftpSession, where: str, path: bytes, target: bytes) -> None:
    """SYMLINK."""
    names = (target, path) if session.openssh else (path, target)
    try:
        await session.ask(Packet.SYMLINK, string(names[0]) + string(names[1]))
    except Status as status:
        if status.code == Code.FAILURE and await _look(session, path) is not None:
            raise Exists(f"{where} is there already") from None
        raise


async def set_attributes(
    session: SftpSession, where: str, path: bytes, attributes: Attributes
) -> None:
    """SETSTAT, which follows symlinks, and so is not for them."""
    if attributes.metadata is not None:
        raise Unsupported(f"{where}: SFTP keeps no metadata")
    old = await attrs_of(stat_path(session, path))
    encoded = _attrs(attributes, old).encode()
    if old.kind is not Kind.SYMLINK:
        await session.ask(Packet.SETSTAT, string(path) + encoded)
    elif LSETSTAT in session.extensions:
        await session.ask(Packet.EXTENDED, string(LSETSTAT) + string(path) + encoded)
    else:
        raise Unsupported(f"{where}: the server cannot set a symlink's attributes")
