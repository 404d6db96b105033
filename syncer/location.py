"""What a user's SRC or DST means. Pure; `ends` opens the trees.

| written | means |
|---|---|
| `/path`, `path`, `./path` | a local file or folder; below the daemon's mount: its namespace |
| `sftp://…`, `s3://…`, `file:///…`, … | a remote (`file:///path` is the local path) |
| `snapshot:NAME[/path]` | a snapshot of the daemon's store, or of the repository that was named |
| `repo:LOCATION#NAME[/path]` | a snapshot of a repository; LOCATION is a local path or a URL |
| `repo:LOCATION` | the repository itself: what `backup` writes to |

NAME is what the catalogue selects by: a name, the beginning of an id, `latest`, `latest:TAG`. The
first `#` ends LOCATION (in a URL write `%23` for another). A relative path whose first component
holds a `:` is refused, since it is nearly always a URL with a slash missing or a host of rsync's:
`./a:b` says that it is a file. Nothing here ever makes a folder that is named like a URL.

SRC is mapped onto DST: what lies in SRC will lie in DST under the same names, as `cp -aT` does it,
whether or not SRC or DST ends in a slash. If SRC is a single file it gets the name DST, unless DST
is an existing directory or ends in a slash: then it goes into it under its own name. Symlinks that
SRC or DST themselves are, are followed.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from syncer.remotes.errors import BadUrl

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_SCHEMES = ("file", "sftp", "smb", "s3", "az", "gs", "http", "https")
_SNAPSHOT, _REPOSITORY = "snapshot:", "repo:"


class LocationKind(enum.Enum):
    """What a location is."""

    LOCAL = "local"
    REMOTE = "remote"
    SNAPSHOT = "snapshot"  # of the daemon's store, or of a repository that was named apart
    REPOSITORY = "repository"  # or a snapshot in it


@dataclass(frozen=True, slots=True)
class Location:
    """One SRC or DST. `str` of it is absolute and means the same anywhere."""

    kind: LocationKind
    path: bytes = b""  # LOCAL: absolute; of snapshots: in the snapshot, without slashes around it
    place: str = ""  # REMOTE: the URL; REPOSITORY: a URL or an absolute local path
    snapshot: str = ""  # selector; "": none was named
    slash: bool = False  # it ended in one: a directory

    def __str__(self) -> str:
        match self.kind:
            case LocationKind.LOCAL:
                # Two slashes after a root would be another place on some systems.
                text = os.fsdecode(self.path)
                return text + "/" if self.slash and text != "/" else text
            case LocationKind.REMOTE:
                return self.place
            case LocationKind.SNAPSHOT:
                return _SNAPSHOT + self._inside()
            case LocationKind.REPOSITORY:
                inside = f"#{self._inside()}" if self.snapshot else ""
                return f"{_REPOSITORY}{self.place}{inside}"

    def _inside(self) -> str:
        path = os.fsdecode(self.path)
        return self.snapshot + (f"/{path}" if path else "") + ("/" if self.slash else "")


def parse(text: str, folder: bytes) -> Location:
    """Understand a location; relative paths begin at `folder`. Raises BadUrl with what to write.

    Pure: nothing is looked at.
    """
    if not text:
        raise BadUrl("an empty location: write a path or a URL")
    if "\0" in text:
        raise BadUrl(f"{text!r}: a location cannot hold a NUL")
    if text.startswith(_SNAPSHOT):
        return _parse_snapshot(text)
    if text.startswith(_REPOSITORY):
        return _parse_repository(text, folder)
    return _parse_place(text, folder)


def _parse_place(text: str, folder: bytes) -> Location:
    matched = _SCHEME.match(text)
    if matched is not None:
        return _parse_url(text, matched[1].lower())
    first = text.partition("/")[0]
    if ":" in first:
        raise BadUrl(f"{text!r}: {_cure(text, first)}")
    path = os.fsencode(text)
    return _local(path if path.startswith(b"/") else folder + b"/" + path)


def _local(path: bytes) -> Location:
    """`..` stays: what it means is the file system's business, where there are symlinks."""
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    slash = path.endswith((b"/", b"/.")) or parts[-1:] in ([], [b".."])
    return Location(LocationKind.LOCAL, b"/" + b"/".join(parts), slash=slash)


def _parse_url(text: str, scheme: str) -> Location:
    from syncer.remotes.url import RemoteUrl

    url = RemoteUrl.parse(text)
    if scheme == "file":
        if url.host not in {"", "localhost"} or not url.path.startswith(b"/") or b"\0" in url.path:
            raise BadUrl(f"{text}: write file:///path, from the root of the file system")
        return _local(url.path)
    if scheme not in _SCHEMES and not scheme.startswith("fsspec+"):
        known = ", ".join(f"{known}://" for known in _SCHEMES)
        raise BadUrl(f"{text}: unknown scheme {scheme!r}; known are {known}, fsspec+PROTOCOL://")
    return Location(LocationKind.REMOTE, place=text, slash=text.endswith("/"))


def _cure(text: str, first: str) -> str:
    """What to write instead of a path that looks like something else."""
    word, _, rest = text.partition(":")
    if word.lower() in _SCHEMES:
        return (
            f"is this a URL? Write {word.lower()}://{rest.lstrip('/')}; "
            f"for a local file of that name, ./{text}"
        )
    if "@" in word or rest.startswith(("/", "~")) or not rest:
        return (
            f"is {word!r} a host? Write sftp://{word}/{rest.lstrip('/')}; "
            f"for a local file of that name, ./{text}"
        )
    return f"what is {first!r}? For a local file of that name write ./{text}"


def _parse_snapshot(text: str) -> Location:
    name, path, slash = _inside(text.removeprefix(_SNAPSHOT), text)
    return Location(LocationKind.SNAPSHOT, path, snapshot=name, slash=slash)


def _parse_repository(text: str, folder: bytes) -> Location:
    written, mark, inside = text.removeprefix(_REPOSITORY).partition("#")
    if not written:
        raise BadUrl(f"{text!r}: no repository is named: write repo:LOCATION#SNAPSHOT[/path]")
    if written.startswith((_SNAPSHOT, _REPOSITORY)):
        raise BadUrl(f"{text!r}: a repository is a local folder or a URL")
    place = str(_parse_place(written, folder)).rstrip("/") or "/"
    if not mark:
        return Location(LocationKind.REPOSITORY, place=place)
    name, path, slash = _inside(inside, text)
    return Location(LocationKind.REPOSITORY, path, place, name, slash)


def _inside(text: str, whole: str) -> tuple[str, bytes, bool]:
    """The snapshot's name, the path in it, and whether it ended in a slash."""
    name, _, rest = text.partition("/")
    if not name:
        raise BadUrl(f"{whole!r}: which snapshot? Write its name, or latest")
    path = os.fsencode(rest)
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise BadUrl(f"{whole!r}: a path in a snapshot has no '..'")
    return name, b"/".join(parts), text.endswith(("/", "/."))


def absolute(text: str, folder: bytes) -> str:
    """`text` as it can be stored in a job: it means the same from any folder. Raises BadUrl."""
    return str(parse(text, folder))


def split(location: Location) -> tuple[Location, bytes]:
    """The folder that a location lies in, and its name there. Raises BadUrl for a root. Pure."""
    if location.kind is LocationKind.REMOTE:
        url = location.place.rstrip("/")
        folder, _, name = url.rpartition("/")
        if folder.endswith("/") or not name:  # scheme://host
            raise BadUrl(f"{location} is no file: it names nothing but a server")
        decoded = unquote_to_bytes(name.encode("utf-8", "surrogateescape"))
        return Location(location.kind, place=f"{folder}/", slash=True), decoded
    parent, _, name_bytes = location.path.rpartition(b"/")
    if not name_bytes:
        raise BadUrl(f"{location} is no file: it is the root")
    if location.kind is LocationKind.LOCAL:
        parent = parent or b"/"
    return Location(location.kind, parent, location.place, location.snapshot, True), name_bytes
