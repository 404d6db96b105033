"""What a filesystem operation can answer instead of doing its work.

Named by what the caller can do about it; the FUSE layer alone knows errno (`ghostd.fuse`).
"""

from blockstore.errors import OrbitError


class FilesystemError(OrbitError):
    """Root of the answers below."""


class NotFound(FilesystemError):
    """No entry of that name, or the inode is gone."""


class AlreadyExists(FilesystemError):
    """An entry of that name is there already."""


class NotADirectory(FilesystemError):
    """A directory was needed."""


class IsADirectory(FilesystemError):
    """Anything but a directory was needed."""


class DirectoryNotEmpty(FilesystemError):
    """The directory still has entries."""


class NameTooLong(FilesystemError):
    """A name of more than 255 bytes, or a symlink target of more than 4,095."""


class TooManyLinks(FilesystemError):
    """The inode has as many links as it may have."""


class FileTooLarge(FilesystemError):
    """An offset or size beyond 2^63 - 1 bytes."""


class NoSpaceLeft(FilesystemError):
    """The state folder's disk has no room for this and its reserve."""


class NotPermitted(FilesystemError):
    """The operation is not allowed on this object."""


class InvalidArgument(FilesystemError):
    """The arguments contradict each other or the object."""


class NoAttribute(FilesystemError):
    """No extended attribute of that name."""


class AttributeTooLarge(FilesystemError):
    """An attribute value of more than 64 KiB, or a name of more than 255 bytes."""


class NotSupported(FilesystemError):
    """This filesystem does not offer the operation."""


class StaleHandle(FilesystemError):
    """The inode number names nothing (any more)."""


class ReadOnly(FilesystemError):
    """The file lies in a projection that takes no changes."""


class OtherProjection(FilesystemError):
    """Two places that no rename or link may join: copy instead."""


class ProjectionRoot(FilesystemError):
    """The root of a projection goes with `orbit-ctl unproject` only."""


class RemoteVersionGone(FilesystemError):
    """The remote has another version now, and the block was not here: open the file again."""
