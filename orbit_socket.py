"""Where the daemon listens and `orbit-ctl` calls: the one rule that both sides share.

It stands outside the layers, imports nothing of Orbit and little else, so that neither side has to
import the other and the command line starts fast.
"""

import os
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "ghostd.sock"
SOCKET_PATH_BYTES_MAX = 107  # sun_path has 108 bytes on Linux, the last one is NUL


def default_socket(env: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """Return the socket's path when no `--socket` is given.

    `$ORBIT_SOCKET`; else `/run/orbit/ghostd.sock` for root; else
    `$XDG_RUNTIME_DIR/orbit/ghostd.sock`; else, without a login session,
    `~/.cache/orbit/ghostd.sock` (a name in /tmp could be squatted).
    """
    if chosen := env.get("ORBIT_SOCKET"):
        return Path(chosen)
    if (os.geteuid() if uid is None else uid) == 0:
        return Path("/run/orbit", SOCKET_NAME)
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "orbit", SOCKET_NAME)
    return Path(env.get("HOME") or "~", ".cache", "orbit", SOCKET_NAME).expanduser()
