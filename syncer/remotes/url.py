"""URLs of remotes: taken apart once, with one rule for all kinds. Pure.

`scheme://[user@]host[:port][/path]`. The path is percent-decoded; a `%` that no two hex digits
follow stands for itself. `?` and `#` are letters of a path like any other, save in http and https,
which have queries and refuse fragments. `fsspec+PROTOCOL://…` with a chain (`::`) is all path.
No URL may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from syncer.remotes.errors import BadUrl

CREDENTIALS_CURE = "put it into the credentials file (~/.config/orbit/credentials.toml, mode 0600)"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST = re.compile(
    r"(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^\s\x00-\x20\x7f/\\@:\[\]<>\"'`{|}^]*)(?::(\d*))?"
)
_LOGIN = re.compile(r"//[^/@]*:[^/]*@")  # somebody's password in a chained URL
_PORTLESS = re.compile(r":(?!\d*\Z)[^\]]*\Z")  # ends in what looks like a port and is none
_CASED = frozenset({"s3", "az", "gs"})  # their host is a bucket: its case counts
_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|signature|^sig$|credential|(api|access|account|private)_?key"
)
_DEFAULT_PORTS = {"sftp": 22, "smb": 445, "http": 80, "https": 443}


def is_secret_name(name: str) -> bool:
    """Whether an option or query parameter of this name holds a secret."""
    return _SECRET.search(name.lower().replace("-", "_")) is not None


def check_options(url: RemoteUrl, options: Mapping[str, str], known: Collection[str]) -> None:
    """Raise BadUrl for an option that is unknown to this kind, or that is a secret."""
    for name in options:
        if name in known:
            continue
        if is_secret_name(name):
            raise BadUrl(f"{url}: the option {name!r} is a secret: {CREDENTIALS_CURE}")
        knows = ", ".join(sorted(known)) or "none"
        raise BadUrl(f"{url}: unknown option {name!r}; {url.scheme} knows: {knows}")


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """One remote's URL; `str` of it is what people and logs see."""

    scheme: str  # lower case
    user: str | None
    host: (
        str  # "" where there is none; IPv6 without brackets; the bucket or container of s3, az, gs
    )
    port: int | None  # as given
    path: bytes  # decoded; empty or starting with a slash (chained fsspec: all there is)
    query: str  # http(s): as spelled, without the question mark
    text: str  # as given

    def __str__(self) -> str:
        return self.text

    @property
    def port_or_default(self) -> int | None:
        """The port, or the scheme's usual one."""
        return self.port if self.port is not None else _DEFAULT_PORTS.get(self.scheme)

    @property
    def origin(self) -> str:
        """Whom failures and rates are counted for: scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = self.port_or_default
        return f"{self.scheme}://{host}" + (f":{port}" if port is not None else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a URL apart. Raises BadUrl, which never repeats a password."""
        matched = _SCHEME.fullmatch(text)
        if matched is None:
            raise BadUrl(f"{_shown(text)} is no URL: expected scheme://host/path")
        scheme, rest = matched[1].lower(), matched[2]
        if "\0" in text:
            raise BadUrl(f"{scheme}://…: a URL cannot hold a NUL")
        if scheme.startswith("fsspec+") and "::" in rest:
            if _LOGIN.search("//" + rest):
                raise BadUrl(f"{scheme}://… has a password in it: {CREDENTIALS_CURE}")
            return cls(scheme, None, "", None, _decoded(rest), "", text)
        authority, slash, path = rest.partition("/")
        if "@" in path and _PORTLESS.search(authority):
            # A password with a slash in it: what stands before the slash is no host and port.
            raise BadUrl(f"{scheme}://… has a password in it: {CREDENTIALS_CURE}")
        user, host, port = _parse_authority(scheme, authority)
        query = ""
        if scheme in {"http", "https"}:
            path, query = _parse_http(text, path)
        return cls(scheme, user, host, port, _decoded(slash + path), query, text)


def _shown(text: str) -> str:
    """`text` for a message, without what may be a password."""
    return repr(text if "@" not in text else "…@" + text.rpartition("@")[2])


def _decoded(path: str) -> bytes:
    return unquote_to_bytes(path.encode("utf-8", "surrogateescape"))


def _parse_authority(scheme: str, authority: str) -> tuple[str | None, str, int | None]:
    """User, host and port."""
    login, at, place = authority.rpartition("@")
    user: str | None = None
    if at:
        if ":" in login:
            raise BadUrl(f"{scheme}://…@{place} has a password in it: {CREDENTIALS_CURE}")
        user = unquote(login)
        if not user or user.startswith("-") or any(ord(c) < 32 for c in user):
            raise BadUrl(f"{scheme}://…@{place}: no user name stands before the @")
    matched = _HOST.fullmatch(place)
    # A leading dash would be an option to a program that is given the host.
    if matched is None or place.startswith("-"):
        shown = place if place.startswith("[") else place.partition(":")[0]
        raise BadUrl(f"{scheme}://{shown}…: expected a host, or a host and a port, before the path")
    host, digits = matched[1], matched[2]
    if scheme not in _CASED:
        host = host.lower()
    if digits is None:
        port = None
    elif digits and 0 < int(digits) < 65536:
        port = int(digits)
    else:
        raise BadUrl(f"{scheme}://{place}: a port is a number from 1 to 65535")
    return user, host.removeprefix("[").removesuffix("]"), port


def _parse_http(text: str, path: str) -> tuple[str, str]:
    """Path and query."""
    if "#" in path:
        raise BadUrl(f"{text.partition('?')[0]}: write a # in a path as %23")
    path, _, query = path.partition("?")
    for name, _value in parse_qsl(query, keep_blank_values=True):
        if is_secret_name(name):
            raise BadUrl(f"{text.partition('?')[0]}?…: {name} is a secret, and URLs are logged")
    return path, query
