"""What ignore files of directories (.orbitignore, .gitignore) say of the paths below them. Pure.

The syntax is gitignore(5)'s, read by the pathspec library: in a file the last line that matches
decides, and of the files that of the deepest directory which has something to say. The library's
expressions also match what lies below a match. A walk never gets there, unless a later line took
the directory back, and then git no longer counts the earlier one: so they are cut down here to the
path itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pathspec.patterns.gitignore.base import GitIgnorePatternError
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from syncer.filter_patterns import FilterError, PatternSet, text_of

FILE_BYTES_MAX: Final = 1 << 20

# How the library's expressions end.
_DIRECTORY_OR_END: Final = "(?:(?P<ps_d>/)|$)"  # a name
_DIRECTORY: Final = "(?P<ps_d>/)"  # a directory's name
_BELOW: Final = "/"  # what is in a directory


@dataclass(frozen=True, slots=True)
class IgnoreLine:
    """A line that decided."""

    file: bytes  # path of the ignore file
    number: int
    text: str
    leaves_out: bool

    def __str__(self) -> str:
        return f"{self.text} ({self.file.decode('utf-8', 'backslashreplace')}, line {self.number})"


def _itself(regex: str) -> str:
    """The library's expression, for the path itself; directories end in a slash."""
    if regex.endswith(_DIRECTORY_OR_END):
        return regex.removesuffix(_DIRECTORY_OR_END) + "/?$"
    if regex.endswith(_DIRECTORY):
        return regex.removesuffix(_DIRECTORY) + "/$"
    if regex.endswith(_BELOW):
        return regex + "."
    return regex


def _read(line: str) -> tuple[str, bool] | None:
    """An expression, and whether it leaves out; None: the line says nothing, as for git."""
    try:
        regex, leaves_out = GitIgnoreSpecPattern.pattern_to_regex(line)
    except GitIgnorePatternError:
        return None
    return None if regex is None or leaves_out is None else (_itself(regex), leaves_out)


class IgnoreFile:
    """One file, for the paths below its directory."""

    def __init__(
        self, directory: bytes, name: bytes, content: bytes, *, ignore_case: bool = False
    ) -> None:
        """Raises FilterError when it is too large."""
        path = directory + b"/" + name if directory else name
        if len(content) > FILE_BYTES_MAX:
            shown = path.decode("utf-8", "backslashreplace")
            raise FilterError(f"{shown} is larger than {FILE_BYTES_MAX >> 20} MiB: make it smaller")
        self._below = len(directory) + 1 if directory else 0
        self._lines: list[IgnoreLine] = []
        regexes = []
        for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            line = text_of(raw.removesuffix(b"\r"))
            if found := _read(line):
                regexes.append(found[0])
                self._lines.append(IgnoreLine(path, number, line, found[1]))
        self._set = PatternSet(regexes, ignore_case=ignore_case, anywhere=True)

    def decide(self, text: bytes, *, directory: bool) -> IgnoreLine | None:
        """Return the line that decides; None: this file has nothing to say.

        `text`: a path below the file's directory, matchable, relative to the root of the walk.
        """
        below = text[self._below :]
        found = self._set.match(below + b"/" if directory else below)
        return self._lines[max(found)] if found else None
