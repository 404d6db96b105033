"""The other process of `walk_twin`: looks at open directories that it is sent, until nobody asks.

Run by its path, alone: it imports nothing of ours, so that it is there within milliseconds.
"""

import array
import marshal
import os
import socket
import struct
import sys

Found = tuple[dict[str, tuple[int, ...]], list[str]]


def look(handle: int, limit: int, *, xattrs: bool) -> Found | int | None:
    """What is in a directory, by name; an error's number; None for more than `limit`.

    `xattrs`: and the files that have extended attributes, or of which nobody can tell.
    """
    found: dict[str, tuple[int, ...]] = {}
    dressed: list[str] = []
    try:
        with os.scandir(handle) as entries:
            for entry in entries:
                try:
                    each = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found[entry.name] = (
                    each.st_mode,
                    each.st_nlink,
                    each.st_uid,
                    each.st_gid,
                    each.st_size,
                    each.st_mtime_ns,
                )
                if len(found) > limit:
                    return None
        if xattrs:
            os.fchdir(handle)  # the shortest way to its names
            dressed = [name for name, each in found.items() if _has_xattrs(name, each[0])]
    except OSError as error:
        return error.errno
    return found, dressed


def _has_xattrs(name: str, mode: int) -> bool:
    if mode & 0o170000 != 0o100000:  # no regular file: nobody asks
        return False
    try:
        return bool(os.listxattr(name, follow_symlinks=False))
    except OSError:
        return True


def main() -> None:
    """Answer one directory after the other."""
    handles = array.array("i")
    limit, xattrs = int(sys.argv[2]), sys.argv[3] == "xattrs"
    with socket.socket(fileno=int(sys.argv[1])) as link:
        while True:
            data, ancillary, _, _ = link.recvmsg(1, socket.CMSG_SPACE(handles.itemsize))
            if not data:
                return
            handle = array.array("i", ancillary[0][2])[0]
            try:
                answer = marshal.dumps(look(handle, limit, xattrs=xattrs))
            finally:
                os.close(handle)
            link.sendall(struct.pack("=Q", len(answer)) + answer)


if __name__ == "__main__":
    main()
