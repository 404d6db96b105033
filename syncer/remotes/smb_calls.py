"""What is asked of an SMB server for each operation. All of it blocks, in a worker thread.

Each raises RemoteError and SmbStatus, as Link does. Paths are relative to the share, with
backslashes.
"""

from __future__ import annotations

from typing import Any

from smbprotocol.connection import Request
from smbprotocol.file_info import (
    FileBasicInformation,
    FileDispositionInformation,
    FileInformationClass,
    FileRenameInformation,
)
from smbprotocol.ioctl import CtlCode, IOCTLFlags, SMB2IOCTLRequest
from smbprotocol.open import (
    CloseFlags,
    CreateDisposition,
    CreateOptions,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    QueryDirectoryFlags,
    SMB2CloseRequest,
    SMB2FlushRequest,
    SMB2QueryDirectoryRequest,
    SMB2ReadRequest,
    SMB2SetInfoRequest,
    SMB2WriteRequest,
)

from syncer.remotes import smb_wire
from syncer.remotes.errors import Unreachable, Unsupported
from syncer.remotes.remote import Attributes, Entry, Kind, Version
from syncer.remotes.smb_link import RELATED, Call, Link, SmbStatus
from syncer.remotes.smb_status import (
    END_OF_FILE,
    MISSING,
    NO_MORE_FILES,
    NOT_A_DIRECTORY,
    OBJECT_NAME_COLLISION,
    OBJECT_PATH_NOT_FOUND,
)
from syncer.remotes.smb_wire import Found

_LISTING_BYTES = 1 << 20  # of one answer: some 6,000 entries
# Of one read or write. 8 MiB read in parts of 256 KiB, 512 KiB, 1, 4, 8 MiB over loopback, signed:
# 297, 547, 625, 354, 276 MB/s.
_PART_BYTES = 1 << 20
_PARTS_AHEAD = 8
_FIRST_BYTES = 1 << 20  # what read_whole asks for before it knows the size
_REPARSE_BYTES = 16 << 10  # MS-FSCC 2.1.2: no reparse data is longer

_Access = FilePipePrinterAccessMask
_SEE = _Access.FILE_READ_ATTRIBUTES | _Access.SYNCHRONIZE
_READ = _SEE | _Access.FILE_READ_DATA
_WRITE = _SEE | _Access.FILE_WRITE_DATA | _Access.FILE_WRITE_ATTRIBUTES | _Access.DELETE
_SHARE_ALL = 7  # others may read, write and delete meanwhile


class AnotherVersion(Exception):
    """The file is not of the version that was asked for; the message says what it is."""


def version_of(found: Found) -> Version:
    """The state of a file."""
    return Version(found.size, "", smb_wire.time_ns(found.written) or 0)


def entry_of(key: bytes, found: Found, target: bytes | None = None) -> Entry:
    """The entry for what the server said of `key`; `target` of a reparse point that is a link."""
    directory = bool(found.attributes & smb_wire.ATTRIBUTE_DIRECTORY)
    bare = key.removesuffix(b"/")
    if target is not None:
        kind = Kind.SYMLINK
    elif directory:
        kind = Kind.DIRECTORY
    else:
        kind = Kind.FILE
    return Entry(
        bare + b"/" if kind is Kind.DIRECTORY and bare else bare,
        kind,
        size=found.size if kind is Kind.FILE else 0,
        mtime_ns=smb_wire.time_ns(found.written),
        atime_ns=smb_wire.time_ns(found.accessed),
        target=target,
    )


# Requests. Without a handle they speak of the file that their chain opens.


def _create(
    link: Link,
    path: str,
    access: int,
    *,
    disposition: int = CreateDisposition.FILE_OPEN,
    options: int = 0,
) -> Any:
    request, _ = Open(link.tree, path).create(
        ImpersonationLevel.Impersonation,
        access,
        0,
        _SHARE_ALL,
        disposition,
        options,
        send=False,
    )
    return request


def _close(handle: bytes = RELATED) -> Any:
    request = SMB2CloseRequest()
    request["file_id"] = handle
    request["flags"] = CloseFlags.SMB2_CLOSE_FLAG_POSTQUERY_ATTRIB
    return request


def _read_request(offset: int, length: int, handle: bytes = RELATED) -> Any:
    request = SMB2ReadRequest()
    request["file_id"] = handle
    request["offset"] = offset
    request["length"] = length
    return request


def _set(information: Any, handle: bytes = RELATED) -> Any:
    request = SMB2SetInfoRequest()
    request["info_type"] = information.INFO_TYPE
    request["file_info_class"] = information.INFO_CLASS
    request["file_id"] = handle
    request["buffer"] = information
    return request


def _times(attributes: Attributes, handle: bytes = RELATED) -> Any:
    information = FileBasicInformation()  # zeros leave what is there
    if attributes.mtime_ns is not None:
        information["last_write_time"] = smb_wire.time_ticks(attributes.mtime_ns)
    if attributes.atime_ns is not None:
        information["last_access_time"] = smb_wire.time_ticks(attributes.atime_ns)
    return _set(information, handle)


def _mark_deleted(*, deleted: bool, handle: bytes = RELATED) -> Any:
    information = FileDispositionInformation()
    information["delete_pending"] = deleted
    return _set(information, handle)


def _rename(new_path: str, *, replace: bool, handle: bytes = RELATED) -> Any:
    information = FileRenameInformation()
    information["replace_if_exists"] = replace
    information["file_name"] = new_path
    return _set(information, handle)


def _body(answer: Any) -> bytes:
    data: bytes = answer["data"].get_value()
    return data


# Finding.


def stat(path: str, key: bytes, call: Call, link: Link) -> Entry:
    """One entry; symlinks not followed."""
    options = CreateOptions.FILE_OPEN_REPARSE_POINT
    answers = link.exchange(call, _create(link, path, _SEE, options=options), _close())
    _, found = smb_wire.parse_created(_body(answers[0]))
    if not found.attributes & smb_wire.ATTRIBUTE_REPARSE_POINT:
        return entry_of(key, found)
    request = SMB2IOCTLRequest()
    request["ctl_code"] = CtlCode.FSCTL_GET_REPARSE_POINT
    request["file_id"] = RELATED
    request["max_output_response"] = _REPARSE_BYTES
    request["flags"] = IOCTLFlags.SMB2_0_IOCTL_IS_FSCTL
    answers = link.exchange(call, _create(link, path, _SEE, options=options), request, _close())
    target = smb_wire.parse_link(smb_wire.parse_controlled(_body(answers[1])))
    return entry_of(key, found, target)


class Listing:
    """One pass over a directory; `step` by `step` until it is `complete`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._link: Link | None = None
        self._handle = b""
        self.complete = False

    def step(self, call: Call, link: Link) -> list[Found]:
        """The next entries."""
        if self._link is None:
            try:
                opened, answer = link.exchange(
                    call,
                    _create(
                        link,
                        self._path,
                        _READ,  # of a directory: to list it
                        options=CreateOptions.FILE_DIRECTORY_FILE,
                    ),
                    _query(link),
                    opens=True,
                )
            except SmbStatus as error:
                if error.status == NOT_A_DIRECTORY:
                    raise Unsupported(f"{self._path!r} is no directory") from None
                raise
            self._link = link
            self._handle, _ = smb_wire.parse_created(_body(opened))
        else:
            if link is not self._link:
                raise Unreachable("the connection was cut while a directory was listed")
            try:
                (answer,) = link.exchange(call, _query(link, self._handle))
            except SmbStatus as error:
                if error.status != NO_MORE_FILES:
                    raise
                self.complete = True
                return []
        return list(smb_wire.parse_directory(smb_wire.parse_queried(_body(answer))))

    def leave(self, call: Call) -> None:
        """Close the directory."""
        if self._link is not None and self._link.alive:
            self._link.exchange(call, _close(self._handle))


def _query(link: Link, handle: bytes = RELATED) -> Any:
    request = SMB2QueryDirectoryRequest()
    request["file_information_class"] = FileInformationClass.FILE_ID_FULL_DIRECTORY_INFORMATION
    request["flags"] = QueryDirectoryFlags.SMB2_RESTART_SCANS if handle == RELATED else 0
    request["file_id"] = handle
    request["output_buffer_length"] = min(_LISTING_BYTES, link.transact_bytes_max)
    request["buffer"] = "*".encode("utf-16-le")
    return request


# Reading.


def _check(found: Found, version: Version) -> None:
    if found.attributes & smb_wire.ATTRIBUTE_DIRECTORY:
        raise AnotherVersion("a directory")
    if version_of(found) != version:
        raise AnotherVersion(str(version_of(found)))


def read(path: str, version: Version, offset: int, length: int, call: Call, link: Link) -> bytes:
    """Bytes of a version, fewer at the file's end. Raises AnotherVersion."""
    part = min(_PART_BYTES, link.read_bytes_max)
    opening = _create(link, path, _READ, options=CreateOptions.FILE_NON_DIRECTORY_FILE)
    if length > part:
        return _read_parts(opening, version, offset, length, part, call, link)
    middle = [_read_request(offset, length)] if length else []
    answers = link.exchange(call, opening, *middle, _close(), keep=True)
    _check(smb_wire.parse_created(_kept(answers[0]))[1], version)
    data = smb_wire.parse_read(_kept(answers[1])) if length else b""
    _check(smb_wire.parse_closed(_kept(answers[-1])), version)
    return data


def _read_parts(
    opening: Any,
    version: Version,
    offset: int,
    length: int,
    part: int,
    call: Call,
    link: Link,
) -> bytes:
    (opened,) = link.exchange(call, opening, opens=True)
    handle, found = smb_wire.parse_created(_body(opened))
    sent: list[list[Request]] = []
    try:
        _check(found, version)
        starts = iter(range(offset, offset + length, part))
        parts: list[bytes] = []
        while True:
            while len(sent) < _PARTS_AHEAD and (start := next(starts, None)) is not None:
                size = min(part, offset + length - start)
                sent.append(link.send(call, _read_request(start, size, handle)))
            if not sent:
                break
            (answer,) = link.collect(call, sent.pop(0))
            parts.append(smb_wire.parse_read(_body(answer)))
        data = b"".join(parts)
    except BaseException:
        for requests in sent:
            link.drop(requests)
        link.leave(handle)  # with the next request
        raise
    (closed,) = link.exchange(call, _close(handle))
    _check(smb_wire.parse_closed(_body(closed)), version)
    return data


def _kept(answer: Any) -> bytes:
    if isinstance(answer, SmbStatus):
        raise answer
    return _body(answer)


def read_whole(path: str, size_max: int, call: Call, link: Link) -> tuple[Found, bytes | None]:
    """A file and its bytes, None where it is larger. Raises AnotherVersion."""
    first = max(min(size_max, _FIRST_BYTES, link.read_bytes_max), 1)
    answers = link.exchange(
        call,
        _create(link, path, _READ, options=CreateOptions.FILE_NON_DIRECTORY_FILE),
        _read_request(0, first),
        _close(),
        keep=True,
    )
    _, found = smb_wire.parse_created(_kept(answers[0]))
    if found.size > size_max:
        return found, None
    if isinstance(answers[1], SmbStatus) and answers[1].status == END_OF_FILE:
        data = b""  # all that an empty file has
    else:
        data = smb_wire.parse_read(_kept(answers[1]))
    version = version_of(found)
    _check(smb_wire.parse_closed(_kept(answers[2])), version)
    if first <= len(data) < found.size:
        data += read(path, version, len(data), found.size - len(data), call, link)
    return found, data


# Changing.


def rename(
    path: str, new_path: str, call: Call, link: Link, *, directory: bool, replace: bool
) -> None:
    """Move a file or directory."""
    options = CreateOptions.FILE_OPEN_REPARSE_POINT
    if directory:
        options |= CreateOptions.FILE_DIRECTORY_FILE
    link.exchange(
        call,
        _create(link, path, _SEE | _Access.DELETE, options=options),
        _rename(new_path, replace=replace),
        _close(),
    )


def delete(path: str, directory: bool, call: Call, link: Link) -> None:
    """Remove a file, symlink or empty directory."""
    options = CreateOptions.FILE_OPEN_REPARSE_POINT
    options |= (
        CreateOptions.FILE_DIRECTORY_FILE if directory else CreateOptions.FILE_NON_DIRECTORY_FILE
    )
    link.exchange(
        call,
        _create(link, path, _SEE | _Access.DELETE, options=options),
        _mark_deleted(deleted=True),
        _close(),
    )


def mkdir(path: str, call: Call, link: Link) -> None:
    """Make a directory whose parent is there."""
    link.exchange(
        call,
        _create(
            link,
            path,
            _SEE,
            disposition=CreateDisposition.FILE_CREATE,
            options=CreateOptions.FILE_DIRECTORY_FILE,
        ),
        _close(),
    )


def set_times(path: str, attributes: Attributes, call: Call, link: Link) -> None:
    """Set what is given."""
    access = _SEE | _Access.FILE_WRITE_ATTRIBUTES
    link.exchange(call, _create(link, path, access), _times(attributes), _close())


class Writing:
    """A file that is being written under a temporary name: `begin`, `put`…, `finish`.

    Until the end it is marked as deleted: whatever happens to us, the server removes it.
    """

    def __init__(
        self,
        temporary: str,
        path: str,
        attributes: Attributes | None,
        *,
        replace: bool,
        if_version: Version | None,
    ) -> None:
        self._temporary = temporary
        self._path = path
        self._attributes = attributes
        self._replace = replace
        self._if_version = if_version
        self._link: Link | None = None
        self._handle = b""

    def begin(self, call: Call, link: Link) -> None:
        """Make the temporary file, and its parents where they are missing."""
        request = _create(
            link,
            self._temporary,
            _WRITE,
            disposition=CreateDisposition.FILE_CREATE,
            options=CreateOptions.FILE_NON_DIRECTORY_FILE,
        )
        for attempt in range(2):
            try:
                opened, _ = link.exchange(call, request, _mark_deleted(deleted=True), opens=True)
                break
            except SmbStatus as error:
                if error.status != OBJECT_PATH_NOT_FOUND or attempt:
                    raise
            _make_parents(self._temporary, call, link)
        self._handle, _ = smb_wire.parse_created(_body(opened))
        self._link = link

    def put(self, offset: int, data: bytes, call: Call, link: Link) -> None:
        """Write a run of bytes, several requests under way at a time."""
        self._same(link)
        part = min(_PART_BYTES, link.write_bytes_max)
        starts = iter(range(0, len(data), part))
        sent: list[list[Request]] = []
        try:
            while True:
                while len(sent) < _PARTS_AHEAD and (start := next(starts, None)) is not None:
                    request = SMB2WriteRequest()
                    request["file_id"] = self._handle
                    request["offset"] = offset + start
                    piece = data[start : start + part]
                    request["length"] = len(piece)
                    request["buffer"] = piece
                    sent.append(link.send(call, request))
                if not sent:
                    return
                link.collect(call, sent.pop(0))
        except BaseException:
            for requests in sent:
                link.drop(requests)
            raise

    def finish(self, call: Call, link: Link) -> Found:
        """Make it durable, give it its name, and return what it is like.

        Raises AnotherVersion. The version is compared just before, not in the same step: SMB has
        no such request.
        """
        self._same(link)
        flush = SMB2FlushRequest()
        flush["file_id"] = self._handle
        link.exchange(call, flush)
        if self._attributes is not None:
            link.exchange(call, _times(self._attributes, self._handle))
        if self._if_version is not None:
            _compare(self._path, self._if_version, call, link)
        call = Call()  # from here on the caller cannot go: nobody would know how it ended
        try:
            link.exchange(
                call,
                _mark_deleted(deleted=False, handle=self._handle),
                _rename(self._path, replace=self._replace),
            )
        except SmbStatus:
            link.exchange(call, _mark_deleted(deleted=True, handle=self._handle))
            raise
        (closed,) = link.exchange(call, _close(self._handle))
        self._link = None
        return smb_wire.parse_closed(_body(closed))

    def leave(self, call: Call) -> None:
        """Close what was begun and not finished: the server removes it."""
        if self._link is not None and self._link.alive:
            self._link.exchange(call, _close(self._handle))

    def _same(self, link: Link) -> None:
        if link is not self._link:
            raise Unreachable("the connection was cut while a file was written")


def _compare(path: str, version: Version, call: Call, link: Link) -> None:
    options = CreateOptions.FILE_OPEN_REPARSE_POINT
    try:
        answers = link.exchange(call, _create(link, path, _SEE, options=options), _close())
    except SmbStatus as error:
        if error.status not in MISSING:
            raise
        raise AnotherVersion("gone") from None
    _check(smb_wire.parse_created(_body(answers[0]))[1], version)


def _make_parents(path: str, call: Call, link: Link) -> None:
    names = path.split("\\")[:-1]
    for depth in range(1, len(names) + 1):
        try:
            mkdir("\\".join(names[:depth]), call, link)
        except SmbStatus as error:
            if error.status != OBJECT_NAME_COLLISION:
                raise
