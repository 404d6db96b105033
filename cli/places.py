"""Places as they are written, understood alike by `orbit` and `orbit-ctl`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import click

_REPOSITORY: Final = "repo:"
_NO_NAMES: Final = (_REPOSITORY, "snapshot:", "/", ".")
_LATEST: Final = "latest"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://", re.ASCII)


def absolute(text: str) -> str:
    """Return a place that means the same from any folder. Raises UsageError."""
    from syncer import location
    from syncer.remotes.errors import BadUrl

    try:
        return location.absolute(text, os.fsencode(Path.cwd()))
    except BadUrl as error:
        raise click.UsageError(str(error)) from error
    except FileNotFoundError:
        raise click.UsageError("the current directory is gone") from None


def repository(text: str) -> str:
    """Return `repo:LOCATION` for a repository, which may be written without the word."""
    return text if text.startswith(_REPOSITORY) else _REPOSITORY + text


def snapshot(text: str, prefix: str) -> str:
    """Return `NAME[:PATH]`, a snapshot of the store that `prefix` names, as a place.

    `latest:WORD` is a path; `latest:TAG:PATH` is in the newest snapshot with that tag, and all of
    it where PATH is empty. `NAME/PATH` does as well. Paths from the root or with a dot, URLs and
    places of snapshots stay as they are: no name looks like them.
    """
    if text.startswith(_NO_NAMES) or _URL.match(text):
        return text
    name, _, path = text.partition(":")
    if "/" in name:
        return prefix + text
    tag, colon, rest = path.partition(":")
    if name == _LATEST and colon and tag and "/" not in tag:
        name, path = f"{_LATEST}:{tag}", rest
    return prefix + name + (f"/{path.lstrip('/')}" if path else "")
