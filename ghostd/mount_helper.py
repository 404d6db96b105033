"""The helper that mount(8) calls for the type fuse.orbit: `mount -t fuse.orbit STATE MNT -o …`.

mount(8) runs `/sbin/mount.fuse.orbit SPEC DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`; its exit
codes are those of mount(8). The flags that the kernel keeps per mount (ro, nosuid …) are set by a
bind remount after the daemon is ready, before mount(8) returns.
"""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ghostd.launch import Launch, LaunchFailed, start
from ghostd.mountpoint import serves

EXIT_USAGE: Final = 1
EXIT_FAILED: Final = 32

# For the kernel, per mount point.
KERNEL_FLAGS: Final = frozenset(
    {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "strictatime"}
)
# For mount(8), systemd or the reader of fstab; or what is so anyway.
FOR_OTHERS: Final = frozenset(
    {
        *("rw", "defaults", "auto", "noauto", "nofail", "_netdev", "exec", "suid", "dev", "async"),
        *("user", "nouser", "users", "owner", "group", "atime", "diratime", "norelatime"),
        *("nostrictatime", "loud", "silent"),
    }
)
FOR_OTHERS_PREFIXES: Final = ("x-", "X-", "comment=", "user=")


class UsageError(Exception):
    """A command line or an option that cannot be meant."""


@dataclass(frozen=True, slots=True)
class Request:
    """What mount(8) asked for."""

    launch: Launch
    flags: tuple[str, ...]  # of KERNEL_FLAGS, in the order given
    fake: bool  # mount -f: say only whether it could be meant


def parse_options(options: Iterable[str], *, sloppy: bool) -> tuple[dict[str, str], list[str]]:
    """Split options into ours (config, socket) and the kernel's flags; others' are dropped.

    Raises UsageError for an unknown one, unless `sloppy`.
    """
    ours: dict[str, str] = {}
    flags: list[str] = []
    for option in options:
        name, has_value, value = option.partition("=")
        if name in ("config", "socket"):
            if not has_value or not value.startswith("/"):
                raise UsageError(f"option {name} needs an absolute path: {name}=/…")
            ours[name] = value
        elif option in KERNEL_FLAGS:
            flags.append(option)
        elif option == "rw":
            flags = [flag for flag in flags if flag != "ro"]  # the last one counts
        elif option in FOR_OTHERS or option.startswith(FOR_OTHERS_PREFIXES) or sloppy:
            continue
        else:
            known = ", ".join(["config=", "socket=", *sorted(KERNEL_FLAGS), "rw"])
            raise UsageError(f"unknown option {option}; known are {known}")
    return ours, flags


def parse_request(arguments: Sequence[str]) -> Request:
    """Return what the command line asks for. Raises UsageError."""
    try:
        flags, places = getopt.gnu_getopt(list(arguments), "sfnvN:o:t:")
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from error
    if len(places) != 2:
        raise UsageError("two arguments are needed: the state folder and the mount point")
    state, mount = (Path(place) for place in places)
    if not state.is_absolute():
        raise UsageError(f"the state folder must be an absolute path, not {state}")
    given = [flag for flag, _ in flags]
    options = [
        option for flag, text in flags if flag == "-o" for option in text.split(",") if option
    ]
    ours, kernel_flags = parse_options(options, sloppy="-s" in given)
    paths = {name: Path(value) for name, value in ours.items()}
    # Not resolve(), which would touch a dead mount.
    launch = Launch(Path(os.path.abspath(mount)), state, paths.get("config"), paths.get("socket"))  # noqa: PTH100
    return Request(launch, tuple(kernel_flags), fake="-f" in given)


def _mount(request: Request) -> None:
    mount = request.launch.mount
    if serves(mount):
        raise LaunchFailed(f"{mount} is mounted already")
    start(request.launch)
    if request.flags:
        options = ",".join(["remount", "bind", *request.flags])
        # -i: without helpers, which would bring us here again.
        done = subprocess.run(
            ["mount", "-i", "-o", options, str(mount)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            # Mounted with more rights than were asked for is worse than not mounted.
            subprocess.run(["fusermount3", "-u", str(mount)], check=False)
            raise LaunchFailed(f"the options could not be set: {done.stderr.strip()}")


def main() -> int:
    """Mount, and return mount(8)'s exit code."""
    try:
        request = parse_request(sys.argv[1:])
        if not request.fake:
            _mount(request)
    except UsageError as error:
        print(f"mount.fuse.orbit: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (LaunchFailed, OSError) as error:
        print(f"mount.fuse.orbit: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
