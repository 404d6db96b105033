"""Whether the line costs by the byte, as far as NetworkManager knows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import trio

_ROUTES: Final = Path("/proc/net/route")
_TIMEOUT_S: Final = 3.0
_FLAG_UP: Final = 1


def default_interface(routes: str) -> str:
    """Return the interface of the default route in /proc/net/route's text; "": there is none."""
    best: tuple[int, str] | None = None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 6 and fields[1] == "00000000" and int(fields[3], 16) & _FLAG_UP:
            route = (int(fields[6]), fields[0])  # the lowest metric is used
            best = route if best is None else min(best, route)
    return best[1] if best else ""


def says_metered(answer: str) -> bool:
    """Whether `nmcli -g GENERAL.METERED` answered yes: `yes`, or `yes (guessed)`."""
    return answer.strip().lower().startswith("yes")


async def metered() -> bool:
    """Whether the default route is over a metered line; False where nobody knows."""
    program = shutil.which("nmcli")
    if program is None:
        await trio.lowlevel.checkpoint()
        return False
    try:
        interface = default_interface(_ROUTES.read_text("ascii"))
        with trio.move_on_after(_TIMEOUT_S):
            done = await trio.run_process(
                [program, "-g", "GENERAL.METERED", "device", "show", interface],
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            return says_metered(done.stdout.decode("utf-8", "replace"))
    except OSError:
        pass
    return False
