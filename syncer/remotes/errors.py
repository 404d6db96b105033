"""What a remote can answer instead of doing its work, named by what the caller can do about it.

Every message says what happened, to which URL or key, and what to do next. None holds a secret.
"""

from __future__ import annotations

from blockstore.errors import OrbitError


class RemoteError(OrbitError):
    """Root of the errors below."""


class Missing(RemoteError):
    """No such key. Only ever raised when the remote itself said so."""


class Exists(RemoteError):
    """The key is there already, and was not to be replaced."""


class NotEmpty(RemoteError):
    """The directory still has entries."""


class Denied(RemoteError):
    """The remote refused the credentials, its host key is not trusted, or the key is forbidden."""


class Changed(RemoteError):
    """The version asked for is not there any more: list or stat again."""


class Full(RemoteError):
    """The remote has no space or quota left."""


class Busy(RemoteError):
    """The remote asks for patience (429, 503, too many sessions): try again later."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(RemoteError):
    """No answer: connection refused, cut or timed out. The remote may come back."""


class Garbled(RemoteError):
    """The answer breaks the protocol: short or long data, a wrong checksum, no listing."""


class Unsupported(RemoteError):
    """This kind of remote, or this server, cannot do it. Trying again is of no use."""


class OtherFileSystem(Unsupported):
    """A directory on another file system, which was not to be entered: its names are not known."""


class BadUrl(RemoteError):
    """The URL or an option of it makes no sense; the message says what would."""


# Worth another try: the same request may succeed a moment later.
TRANSIENT: tuple[type[RemoteError], ...] = (Busy, Unreachable, Garbled)
