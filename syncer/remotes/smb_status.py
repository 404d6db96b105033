"""What a server's NTSTATUS means for the caller. Numbers from MS-ERREF 2.3.1. Pure."""

from __future__ import annotations

from syncer.remotes.errors import (
    Busy,
    Denied,
    Exists,
    Full,
    Garbled,
    Missing,
    NotEmpty,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.url import CREDENTIALS_CURE

END_OF_FILE = 0xC0000011
NO_MORE_FILES = 0x80000006
ACCESS_DENIED = 0xC0000022
OBJECT_NAME_COLLISION = 0xC0000035
OBJECT_PATH_NOT_FOUND = 0xC000003A
FILE_IS_A_DIRECTORY = 0xC00000BA
NOT_A_DIRECTORY = 0xC0000103

MISSING = frozenset(
    {
        0xC000000F,  # NO_SUCH_FILE
        0xC0000033,  # OBJECT_NAME_INVALID
        0xC0000034,  # OBJECT_NAME_NOT_FOUND
        0xC0000039,  # OBJECT_PATH_INVALID
        OBJECT_PATH_NOT_FOUND,
        0xC000003B,  # OBJECT_PATH_SYNTAX_BAD
        0xC0000056,  # DELETE_PENDING
        0xC0000225,  # NOT_FOUND
    }
)
SESSION_GONE = frozenset(
    {
        0xC00000C9,  # NETWORK_NAME_DELETED
        0xC0000203,  # USER_SESSION_DELETED
        0xC000035C,  # NETWORK_SESSION_EXPIRED
    }
)
_LOGIN = {
    0xC0000064: "there is no such user",
    0xC000006A: "the password is wrong",
    0xC000006D: "the user or the password is wrong",
    0xC000006E: "the account is restricted",
    0xC000006F: "the account may not log in at this time",
    0xC0000071: "the password has expired",
    0xC0000072: "the account is disabled",
    0xC000015B: "the account may not log in over the network",
    0xC0000224: "the password must be changed first",
    0xC0000234: "the account is locked",
}
_FORBIDDEN = frozenset(
    {
        ACCESS_DENIED,
        0xC0000061,  # PRIVILEGE_NOT_HELD
        0xC00000A2,  # MEDIA_WRITE_PROTECTED
        0xC0000121,  # CANNOT_DELETE
    }
)
_BUSY = frozenset(
    {
        0xC0000043,  # SHARING_VIOLATION
        0xC0000054,  # FILE_LOCK_CONFLICT
        0xC0000055,  # LOCK_NOT_GRANTED
        0xC000009A,  # INSUFFICIENT_RESOURCES
        0xC00000D0,  # REQUEST_NOT_ACCEPTED
        0xC000011F,  # TOO_MANY_OPENED_FILES
        0xC0000205,  # INSUFF_SERVER_RESOURCES
        0xC000022D,  # RETRY
    }
)
_FULL = frozenset(
    {
        0xC0000044,  # QUOTA_EXCEEDED
        0xC000007F,  # DISK_FULL
    }
)
_GONE = SESSION_GONE | {
    0xC00000B5,  # IO_TIMEOUT
    0xC000020C,  # CONNECTION_DISCONNECTED
    0xC0000466,  # SERVER_UNAVAILABLE
}
_UNSUPPORTED = {
    0x8000002D: "it lies behind a symlink, which is shown, not followed",
    0xC0000010: "the server cannot do it",
    0xC00000BB: "the server cannot do it",
    0xC00000D4: "it would move to another disk of the server",
    0xC0000106: "the name is too long",
    0xC0000257: "it lies on another server (DFS): project that one",
    0xC000026D: "DFS is not available",
}


def refused(status: int, where: str, user: str) -> RemoteError:
    """The error for what the server answered about `where`, which names it for people."""
    if status in MISSING or status == NOT_A_DIRECTORY:
        return Missing(f"{where}: there is no such file or directory")
    if status == 0xC00000CC:
        return Missing(f"{where}: the server has no share of this name")
    if status in _LOGIN:
        return Denied(f"{where}: cannot log in as {user}: {_LOGIN[status]}: {CREDENTIALS_CURE}")
    if status in _FORBIDDEN:
        return Denied(f"{where}: the server does not allow it to {user}")
    if status == OBJECT_NAME_COLLISION:
        return Exists(f"{where}: is there already")
    if status == 0xC0000101:
        return NotEmpty(f"{where}: has entries")
    if status in _BUSY:
        return Busy(f"{where}: somebody else uses it, or the server has too much to do")
    if status in _FULL:
        return Full(f"{where}: the server's disk or quota is full")
    if status in _GONE:
        return Unreachable(f"{where}: the server ended the session")
    if status == FILE_IS_A_DIRECTORY:
        return Unsupported(f"{where}: is a directory")
    if status in _UNSUPPORTED:
        return Unsupported(f"{where}: {_UNSUPPORTED[status]}")
    return Garbled(f"{where}: the server answered NTSTATUS 0x{status:08x}")
