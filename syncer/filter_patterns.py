"""Patterns of filter rules: what they mean, and many of them matched at once. Pure.

Globs are those of rsync(1), "PATTERN MATCHING RULES", with two differences: `?` and `[…]` take a
character, not a byte, and a bracket that is not closed is an error instead of a rule that never
matches. They become regular expressions for RE2, which needs time in proportion to the path
whatever the pattern is: no rule of a user can hang a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from syncer.remotes.errors import RemoteError

if TYPE_CHECKING:
    import re2  # 8 ms, which jobs without rules do not need

_MEMORY_BYTES_MAX: Final = 64 << 20  # of one compiled set; a thousand rules take about a tenth
# A byte that is not UTF-8 is matched as one character: a private one, which no name has in earnest.
_INVALID_FIRST: Final = 0x10FF00
_SURROGATES: Final = {0xDC00 + byte: _INVALID_FIRST + byte for byte in range(0x80, 0x100)}
_SLASH: Final = ord("/")
_NEVER: Final = r"[^\x00-\x{10ffff}]"

_POSIX: Final = {
    "alnum": "09AZaz",
    "alpha": "AZaz",
    "blank": "  \t\t",
    "cntrl": "\x00\x1f\x7f\x7f",
    "digit": "09",
    "graph": "!~",
    "lower": "az",
    "print": " ~",
    "punct": "!/:@[`{~",
    "space": "\t\r  ",
    "upper": "AZ",
    "xdigit": "09AFaf",
}


class FilterError(RemoteError):
    """A rule makes no sense; the message says which one and what would."""


def matchable(path: bytes) -> bytes:
    """Return the path as UTF-8, whatever it is."""
    if path.isascii():
        return path
    try:
        path.decode()
    except UnicodeDecodeError:
        return text_of(path).encode()
    return path


def text_of(raw: bytes) -> str:
    """Return the characters that a path or pattern consists of."""
    return raw.decode("utf-8", "surrogateescape").translate(_SURROGATES)


def _options(*, ignore_case: bool = False) -> re2.Options:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES_MAX
    options.case_sensitive = not ignore_case
    return options


def _literal(text: str) -> str:
    return "".join(
        character
        if character.isascii() and (character.isalnum() or character == "/")
        else f"\\x{{{ord(character):x}}}"
        for character in text
    )


class _Bracket:
    """Reads one `[…]` as wildmatch does."""

    def __init__(self, pattern: str, at: int) -> None:
        """`at`: behind the opening bracket."""
        self._pattern = pattern
        self.at = at

    def _next(self) -> str:
        if self.at >= len(self._pattern):
            raise FilterError(
                f"{self._pattern!r}: a [ is never closed; write [[] for the character itself"
            )
        self.at += 1
        return self._pattern[self.at - 1]

    def _one(self) -> str:
        character = self._next()
        return self._next() if character == "\\" else character

    def _class(self) -> Iterator[tuple[int, int]]:
        end = self._pattern.find(":]", self.at + 1)
        name = self._pattern[self.at + 1 : end] if end >= 0 else ""
        if name not in _POSIX:
            raise FilterError(f"{self._pattern!r}: [:{name}:] is no class of characters")
        self.at = end + 2
        ends = [ord(character) for character in _POSIX[name]]
        return iter(zip(ends[::2], ends[1::2], strict=True))

    def _ranges(self) -> Iterator[tuple[int, int]]:
        first, previous = True, ""
        while True:
            character = self._next()
            if character == "]" and not first:
                return
            first = False
            rest = self._pattern[self.at : self.at + 1]
            if character == "[" and rest == ":":
                yield from self._class()
                previous = ""
            elif character == "-" and previous and rest != "]":
                last = self._one()
                yield ord(previous), ord(last)
                previous = ""
            else:
                previous = self._next() if character == "\\" else character
                yield ord(previous), ord(previous)

    def regex(self) -> str:
        """The class for RE2, which never takes a `/`; `at` is then behind the bracket."""
        negated = self._pattern[self.at : self.at + 1] in {"!", "^"}
        self.at += negated
        ranges = list(self._ranges())
        if negated:
            ranges.append((_SLASH, _SLASH))
            sign = "^"
        else:
            sign = ""
            below = [(low, min(high, _SLASH - 1)) for low, high in ranges]
            ranges = below + [(max(low, _SLASH + 1), high) for low, high in ranges]
        ranges = [(low, high) for low, high in ranges if low <= high]
        if not ranges:
            return _NEVER
        inside = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges)
        return f"[{sign}{inside}]"


def _wild(glob: str) -> str:
    """A glob without its slashes at either end, as a regular expression."""
    parts = []
    at = 0
    while at < len(glob):
        character = glob[at]
        at += 1
        if character == "*":
            stars = len(glob) - at + 1 - len(glob[at - 1 :].lstrip("*"))
            at += stars - 1
            parts.append("[^/]*" if stars == 1 else ".*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[":
            bracket = _Bracket(glob, at)
            parts.append(bracket.regex())
            at = bracket.at
        elif character == "\\":
            if at == len(glob):
                raise FilterError(f"{glob!r} ends in a backslash: write \\\\ for the character")
            parts.append(_literal(glob[at]))
            at += 1
        else:
            parts.append(_literal(character))
    return "".join(parts)


def glob_regex(glob: str, *, directory: bool) -> str | None:
    """Return the regular expression for whole paths that a glob means; None: matches none.

    `directory`: for the paths of directories; a glob that ends in `/` matches nothing else.
    Raises FilterError.
    """
    inner = glob.removesuffix("/")
    only_directories = inner != glob
    anchored = inner.startswith("/")
    inner = inner[anchored:]
    if not inner:
        raise FilterError(f"{glob!r} names nothing: the root itself is never left out")
    if not any(character in inner for character in "*?["):
        body = _literal(inner)  # then a backslash is a character like any other
    elif inner.endswith("***") and inner.rstrip("*").endswith("/"):
        # `dir/***` is the directory and all that is in it.
        body = _wild(inner.rstrip("*")[:-1]) + ("(?:/.*)?" if directory else "/.*")
    else:
        body = _wild(inner)
    if only_directories and not directory:
        return None
    if anchored:
        return body
    if inner.startswith("**"):
        # Matched as if the path began with a slash, which the stars may take.
        return "(?:.*/)?" + body.removeprefix(".*/") if body.startswith(".*/") else body
    return "(?:.*/)?" + body


def regex_anywhere(expression: str) -> str:
    """Return the regular expression for whole paths in which `expression` is found.

    Raises FilterError where RE2 does not know it.
    """
    import re2

    try:
        re2.compile(expression, _options())
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise FilterError(
            f"re:{expression}: {why}; lookarounds and backreferences do not exist here"
        ) from None
    return f".*(?:{expression}).*"


class PatternSet:
    """Many patterns, matched at once."""

    def __init__(
        self, regexes: Iterable[str], *, ignore_case: bool = False, anywhere: bool = False
    ) -> None:
        """`anywhere`: each is searched for; else the whole text must match.

        Raises FilterError when they are too many.
        """
        import re2

        make = re2.Set.SearchSet if anywhere else re2.Set.FullMatchSet
        self._set = make(_options(ignore_case=ignore_case))
        for regex in regexes:
            self._set.Add(f"(?s:{regex})")
        try:
            self._set.Compile()
        except re2.error:
            raise FilterError(
                f"the patterns need more than {_MEMORY_BYTES_MAX >> 20} MiB together: "
                "write fewer, or simpler ones"
            ) from None

    def match(self, text: bytes) -> Sequence[int]:
        """Return the numbers of the patterns that match, in no order."""
        return self._set.Match(text) or ()
