"""What the URLs and options of all object stores have in common. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from syncer.remotes.errors import BadUrl, Unsupported
from syncer.remotes.remote import Capabilities
from syncer.remotes.url import RemoteUrl

_ENDPOINT = re.compile(r"https?://[\w.-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_YES, _NO = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def bucket_and_path(url: RemoteUrl, what: str) -> tuple[str, bytes]:
    """Bucket and key of the root. Raises BadUrl; `what`: the word for a bucket."""
    if not url.host or url.user is not None or url.port is not None:
        raise BadUrl(
            f"{url}: expected {url.scheme}://{what}/prefix; "
            "the server's address goes into the option endpoint"
        )
    return url.host, url.path.removeprefix(b"/")


def yes_or_no(url: RemoteUrl, options: Mapping[str, str], name: str, default: bool) -> bool:
    """An option that is true or false."""
    text = options.get(name, "").strip().lower()
    if text not in _YES | _NO | {""}:
        raise BadUrl(f"{url}: the option {name} is true or false")
    return default if not text else text in _YES


def checked_endpoint(url: RemoteUrl, text: str, where: str = "the option endpoint") -> str:
    """Scheme, host and port of a server."""
    if not _ENDPOINT.fullmatch(text.rstrip("/")):
        raise BadUrl(f"{url}: {where} must look like https://host or http://host:port")
    return text.rstrip("/")


def object_capabilities(*, read_only_reason: str = "") -> Capabilities:
    """What every object store can."""
    return Capabilities(
        write=not read_only_reason,
        write_if=not read_only_reason,
        rename=not read_only_reason,
        metadata=not read_only_reason,
        etag=True,
        write_reason=read_only_reason,
    )


def split_metadata(metadata: Mapping[str, bytes], place: str) -> tuple[str, dict[str, str]]:
    """Content type, and the user's metadata as headers carry it. Raises Unsupported."""
    kind, user = "application/octet-stream", {}
    for name, value in metadata.items():
        text = value.decode("latin-1")
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise Unsupported(f"{place}: metadata {name!r}: the store keeps printable ASCII only")
        if name.lower() == "content-type":
            kind = text
        elif not _TOKEN.fullmatch(name) or not name.isascii():
            raise Unsupported(f"{place}: metadata {name!r}: no name that a header can have")
        else:
            user[name.lower()] = text
    return kind, user
