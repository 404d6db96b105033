"""What ignore files of directories (.orbitignore, .gitignore) say of the paths below them. Pure.

The syntax is gitignore(5)'s, read by the pathspec library: in a file the last line that matches
decides, and of the files that of the deepest directory which has something to say. The library's
expressions also match what lies below a match. A walk never gets there, unless a later line took
the directory back, and then git no longer counts the earlier one: so they are cut down here to the
path itself. What else the library and git disagree on is put right, too; a test compares with git.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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


_PIECES = re.compile(r"\\.|\[(\^?)(\]?(?:\\.|[^\]\\])*)\]|.", re.DOTALL)


def _within_names(regex: str) -> str:
    """The expression with classes such as [^a] that never take a slash."""
    return _PIECES.sub(lambda found: f"[^/{found[2]}]" if found[1] else found[0], regex)


def _itself(regex: str) -> tuple[str, bool]:
    """The library's expression for the path itself, and whether for directories only."""
    if regex.endswith(_DIRECTORY_OR_END):
        return regex.removesuffix(_DIRECTORY_OR_END) + "$", False
    if regex.endswith(_DIRECTORY):
        below = regex.removesuffix(_DIRECTORY)
        return (below + "$" if below else "."), True
    if regex.endswith(_BELOW):
        return regex + ".", False
    return regex, False


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: str
    leaves_out: bool
    only_directories: bool


def _read(line: str) -> _Pattern | None:
    """What a line means; None: nothing, as for git."""
    bare = line.rstrip()
    if bare == "!/":  # names nothing, as `/` does; the library takes it for everything
        return None
    # All directories in a directory: the library takes that for the directory itself.
    directories_below = bare.endswith("/**/")
    try:
        regex, leaves_out = GitIgnoreSpecPattern.pattern_to_regex(
            bare[:-1] if directories_below else line
        )
    except GitIgnorePatternError:
        return None
    if regex is None or leaves_out is None:
        return None
    itself, only_directories = _itself(regex)
    return _Pattern(_within_names(itself), leaves_out, only_directories or directories_below)


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
        patterns: list[tuple[IgnoreLine, _Pattern]] = []
        for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            line = text_of(raw.removesuffix(b"\r"))
            if found := _read(line):
                patterns.append((IgnoreLine(path, number, line, found.leaves_out), found))
        self._directories = _Lines(patterns, ignore_case=ignore_case)
        self._others = _Lines(
            [one for one in patterns if not one[1].only_directories], ignore_case=ignore_case
        )

    def decide(self, text: bytes, *, directory: bool) -> IgnoreLine | None:
        """Return the line that decides; None: this file has nothing to say.

        `text`: a path below the file's directory, matchable, relative to the root of the walk.
        """
        return (self._directories if directory else self._others).last(text[self._below :])


class _Lines:
    """The lines for one kind of paths: directories, or all others."""

    def __init__(
        self, patterns: Sequence[tuple[IgnoreLine, _Pattern]], *, ignore_case: bool
    ) -> None:
        self._lines = [line for line, _ in patterns]
        regexes = [pattern.regex for _, pattern in patterns]
        self._set = PatternSet(regexes, ignore_case=ignore_case, anywhere=True)

    def last(self, text: bytes) -> IgnoreLine | None:
        """The last line that matches."""
        found = self._set.match(text)
        return self._lines[max(found)] if found else None
