"""Opens a remote by its URL. A kind's libraries are loaded when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping

from syncer.remotes.errors import BadUrl
from syncer.remotes.machinery import Machinery
from syncer.remotes.remote import Remote
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl, is_secret_name

Opener = Callable[[str, Mapping[str, str], Machinery], Awaitable[Remote]]

FSSPEC = "fsspec+"

MODULES: dict[str, str] = {
    "file": "file",
    "sftp": "sftp",
    "smb": "smb",
    "s3": "s3",
    "az": "azure",
    "gs": "gcs",
    "http": "http",
    "https": "http",
}


def _module(url: RemoteUrl) -> str:
    if url.scheme.startswith(FSSPEC):
        return "fsspec_remote"
    if url.scheme not in MODULES:
        known = ", ".join(f"{scheme}://" for scheme in MODULES)
        raise BadUrl(
            f"{url}: unknown scheme {url.scheme!r}; known are {known}, {FSSPEC}PROTOCOL://"
        )
    return MODULES[url.scheme]


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """Open the remote that `url` names, without asking its server anything.

    Raises BadUrl for what makes no sense or holds a secret, Denied for credentials that cannot be
    read.
    """
    parsed = RemoteUrl.parse(url)
    module = _module(parsed)
    for name in options:
        if is_secret_name(name):
            raise BadUrl(f"{parsed}: the option {name!r} is a secret: {CREDENTIALS_CURE}")
    opener: Opener = importlib.import_module(f"syncer.remotes.{module}").open_remote
    return await opener(url, options, machinery)
