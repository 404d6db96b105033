"""The other process of `walk_twin`: looks at open directories that it is sent, until nobody asks.

Run by its path, alone: it imports nothing of ours, so that it is there within milliseconds.
"""

import array
import marshal
import os
import socket
import struct
import sys


def look(handle: int, limit: int) -> dict[str, tuple[int, ...]] | int | None:
    """What is in a directory, by name; an error's number; None for more than `limit`."""
    found: dict[str, tuple[int, ...]] = {}
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
    except OSError as error:
        return error.errno
    return found


def main() -> None:
    """Answer one directory after the other."""
    handles = array.array("i")
    with socket.socket(fileno=int(sys.argv[1])) as link:
        while True:
            data, ancillary, _, _ = link.recvmsg(1, socket.CMSG_SPACE(handles.itemsize))
            if not data:
                return
            handle = array.array("i", ancillary[0][2])[0]
            try:
                answer = marshal.dumps(look(handle, int(sys.argv[2])))
            finally:
                os.close(handle)
            link.sendall(struct.pack("=Q", len(answer)) + answer)


if __name__ == "__main__":
    main()
