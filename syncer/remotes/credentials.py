"""Logins from a file that only its owner can read.

The file is TOML. A section is named by the prefix of the URLs that it is for, or by a host alone;
the longest prefix that fits wins, whole, and no section inherits from another:

    ["smb://nas/media"]
    user = "anna"
    password = "…"

    ["nas"]
    user = "guest"

A prefix fits by whole path components. Its scheme, user and port, where it has them, must be the
URL's. The file is read again when it has changed, so that a new password needs no restart.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from syncer.remotes.errors import BadUrl, Denied
from syncer.remotes.url import RemoteUrl

_SIZE_MAX = 1 << 20  # bytes; a longer file is another file


def default_path(home: Path | None = None) -> Path:
    """Return where the file is unless the configuration says otherwise."""
    return (home or Path.home()) / ".config" / "orbit" / "credentials.toml"


class Login(Mapping[str, str]):
    """What one section says: user, password, and whatever else the kind of remote asks for.

    Shows the names of its values only.
    """

    __slots__ = ("_values", "section")

    def __init__(self, values: Mapping[str, str], section: str = "") -> None:
        self._values = dict(values)
        self.section = section  # its name in the file; "" where no section fits

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Login({self.section!r}: {', '.join(sorted(self))})"


@dataclass(frozen=True, slots=True)
class _Section:
    """Whom a section is for. None: any."""

    name: str
    scheme: str | None
    user: str | None
    host: str
    port: int | None
    path: tuple[bytes, ...]
    login: Login

    def fits(self, url: RemoteUrl) -> bool:
        return (
            self.host.lower() == url.host.lower()
            and self.scheme in {None, url.scheme}
            and self.user in {None, url.user}
            and self.port in {None, url.port_or_default}
            and _components(url.path)[: len(self.path)] == self.path
        )

    @property
    def rank(self) -> tuple[int, bool, bool, bool]:
        return (
            len(self.path),
            self.user is not None,
            self.port is not None,
            self.scheme is not None,
        )


def _components(path: bytes) -> tuple[bytes, ...]:
    return tuple(part for part in path.split(b"/") if part)


def _section(path: Path, name: str, values: object) -> _Section:
    if not isinstance(values, dict):
        raise Denied(f"{path}: {name!r} stands outside a section; sections are named by URLs")
    for key, value in values.items():
        if isinstance(value, dict):
            raise Denied(f'{path}: write the section\'s name in quotes: ["{name}.{key}…"]')
        if not isinstance(value, str):
            raise Denied(f'{path}: {key} of ["{name}"] must be a string in quotes')
    try:
        url = RemoteUrl.parse(name if "://" in name else f"any://{name}")
    except BadUrl as error:
        raise Denied(f"{path}: a section is named by no URL: {error}") from None
    return _Section(
        name=name,
        scheme=url.scheme if "://" in name else None,
        user=url.user,
        host=url.host,
        port=url.port,
        path=_components(url.path),
        login=Login(values, name),
    )


class Credentials:
    """The file's sections; without a file, none."""

    def __init__(self, path: Path | None = None, *, required: bool = False) -> None:
        """`required`: the file was asked for, so its absence is an error."""
        self._path = path
        self._required = required
        self._read_as: tuple[int, ...] = ()  # the state of the file that `_sections` is from
        self._sections: tuple[_Section, ...] = ()

    def __repr__(self) -> str:
        return f"Credentials({str(self._path)!r})"

    def find(self, url: RemoteUrl) -> Login:
        """Return the login for `url`, empty where no section fits.

        Raises Denied for a file that others can read, or that makes no sense.
        """
        self.check()
        fitting = [section for section in self._sections if section.fits(url)]
        return max(fitting, key=lambda section: section.rank).login if fitting else Login({})

    def check(self) -> None:
        """Read the file if it has changed. Raises Denied as `find` does."""
        if self._path is None:
            return
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if self._required:
                raise Denied(f"{self._path}: there is no such credentials file") from None
            self._read_as, self._sections = (), ()
            return
        except OSError as error:
            raise Denied(f"{self._path}: cannot be read: {error.strerror}") from None
        try:
            found = os.fstat(handle)  # of what was opened, whatever the name stands for by now
            state = (
                found.st_dev,
                found.st_ino,
                found.st_size,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
            if state == self._read_as:
                return
            self._check_owner(found)
            content = os.pread(handle, _SIZE_MAX, 0)
        finally:
            os.close(handle)
        try:
            tables = tomllib.loads(content.decode())
        except tomllib.TOMLDecodeError as error:
            # Its message quotes no more than one character of the file.
            raise Denied(f"{self._path}: not TOML: {error}") from None
        except UnicodeDecodeError:
            raise Denied(f"{self._path}: not UTF-8") from None
        self._sections = tuple(_section(self._path, *each) for each in tables.items())
        self._read_as = state

    def _check_owner(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode) or found.st_size >= _SIZE_MAX:
            raise Denied(f"{self._path}: not a credentials file")
        if found.st_uid not in {os.geteuid(), 0}:
            raise Denied(f"{self._path}: belongs to another user: chown it to the daemon's")
        if found.st_mode & 0o077:
            raise Denied(
                f"{self._path}: others can read it (mode {stat.S_IMODE(found.st_mode):04o}): "
                f"chmod 600 {self._path}"
            )
