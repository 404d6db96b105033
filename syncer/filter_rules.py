"""Filter rules as text: read, and taken apart. Pure but for the reader of files that it is given.

A rule is a line. What rsync's mean the same as there; see docs/filters.md.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from syncer.filter_patterns import FilterError
from syncer.units import parse_duration, parse_size

ORBIT_IGNORE: Final = b".orbitignore"
GIT_IGNORE: Final = b".gitignore"

_DEPTH_MAX: Final = 16  # files that name files
_FILE_BYTES_MAX: Final = 4 << 20
_RULES_MAX: Final = 100_000

Reader = Callable[[str], bytes]

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"(size|age)(<=|>=|<|>)([0-9][^\s]*)(?:\s+|$)")
_LIMITS: Final = {
    "min-size": ("size", ">="),
    "max-size": ("size", "<="),
    "min-age": ("age", ">="),
    "max-age": ("age", "<="),
}


class Action(enum.Enum):
    """What a rule does with what it matches."""

    KEEP = "+"
    LEAVE_OUT = "-"
    LIMIT = "limit"  # leaves out the files for which its condition does not hold


@dataclass(frozen=True, slots=True)
class Condition:
    """Of a file's size in bytes, or of its age in seconds."""

    what: str  # size, age
    sign: str  # <, <=, >, >=
    value: float

    def holds(self, size: int, age_s: float | None) -> bool | None:
        """Whether it is so; None: the age is not known."""
        found = size if self.what == "size" else age_s
        return None if found is None else _COMPARE[self.sign](found, self.value)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    action: Action
    text: str  # as written
    origin: str = ""  # the file and line that it comes from; "": the job's own options
    glob: str | None = None  # None: any name
    regex: str | None = None  # instead of a glob
    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} ({self.origin})" if self.origin else self.text


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All that the rules say."""

    rules: tuple[Rule, ...] = ()  # the first that matches decides
    limits: tuple[Rule, ...] = ()  # all must hold
    ignore_files: tuple[bytes, ...] = (ORBIT_IGNORE,)  # names; later ones overrule earlier ones
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    origin: str


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _file_lines(path: str, read: Reader, prefix: str) -> Iterator[_Line]:
    raw = read(path)
    if len(raw) > _FILE_BYTES_MAX:
        raise FilterError(f"{path} is larger than {_FILE_BYTES_MAX >> 20} MiB: no file of rules")
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        text = _text(line.removesuffix(b"\r"))
        if text and text[0] not in "#;":
            yield _Line(prefix + text, f"{path}, line {number}")


def _lines(lines: Iterable[_Line], read: Reader | None, depth: int) -> Iterator[_Line]:
    """The lines, and in place of those that name files, theirs."""
    for line in lines:
        verb, _, path = line.text.partition(" ")
        prefix = {"merge": "", ".": "", "exclude-from": "- ", "include-from": "+ "}.get(verb)
        if prefix is None:
            yield line
            continue
        if not path or read is None or depth == _DEPTH_MAX:
            why = (
                "the name of a file is missing" if not path
                else "rules from files are read when the job is made" if read is None
                else f"files of rules that name each other, {_DEPTH_MAX} deep"
            )  # fmt: skip
            raise FilterError(f"{line.text!r}: {why}")
        yield from _lines(_file_lines(path, read, prefix), read, depth + 1)


def expand(rules: Sequence[str], read: Reader) -> tuple[str, ...]:
    """Return the rules with those of files in the place of `merge FILE`.

    For whoever makes a job: it may run later, elsewhere. `read` may raise FilterError.
    """
    return tuple(line.text for line in _lines((_Line(rule, "") for rule in rules), read, 0))


def _conditions(text: str) -> tuple[tuple[Condition, ...], str]:
    """The conditions that a rule begins with, and what follows."""
    found = []
    while match := _CONDITION.match(text):
        what, sign, value = match[1], match[2], match[3]
        number = parse_size(value) if what == "size" else parse_duration(value)
        found.append(Condition(what, sign, number))
        text = text[match.end() :]
    return tuple(found), text


def _rule(action: Action, line: _Line, rest: str) -> Rule:
    if not rest:
        raise FilterError("a pattern is missing")
    conditions, pattern = _conditions(rest)
    if pattern.startswith("re:"):
        regex = pattern.removeprefix("re:")
        if not regex:
            raise FilterError("an expression is missing after re:")
        return Rule(action, line.text, line.origin, regex=regex, conditions=conditions)
    return Rule(action, line.text, line.origin, glob=pattern or None, conditions=conditions)


def _limit(line: _Line, what: str, sign: str, value: str) -> Rule:
    number = parse_size(value) if what == "size" else parse_duration(value)
    return Rule(Action.LIMIT, line.text, line.origin, conditions=(Condition(what, sign, number),))


class _Reading:
    """What has been read so far."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.limits: list[Rule] = []
        self.ignore_files = [ORBIT_IGNORE]
        self.ignore_case = False

    def _ignore_file(self, name: bytes) -> None:
        if not name or b"/" in name:
            raise FilterError("the name of a file is wanted, without a folder")
        if name in self.ignore_files:
            self.ignore_files.remove(name)
        self.ignore_files.append(name)

    def _word(self, word: str, rest: str) -> bool:
        """Do what a rule of one word, or a word and a name, says; False: there is no such rule."""
        match word, bool(rest):
            case (("!" | "clear"), False):
                self.rules.clear()
            case "ignore-case", False:
                self.ignore_case = True
            case "gitignore", False:
                self._ignore_file(GIT_IGNORE)
            case "ignore-file", True:
                self._ignore_file(rest.encode("utf-8", "surrogateescape"))
            case "no-ignore-files", False:
                self.ignore_files.clear()
            case _:
                return False
        return True

    def take(self, line: _Line) -> None:
        """Read one rule. Raises FilterError, ValueError."""
        word, _, rest = line.text.partition(" ")
        if word in {"+", "include"}:
            self.rules.append(_rule(Action.KEEP, line, rest))
        elif word in {"-", "exclude"}:
            self.rules.append(_rule(Action.LEAVE_OUT, line, rest))
        elif word in _LIMITS:
            self.limits.append(_limit(line, *_LIMITS[word], rest))
        elif limit := _CONDITION.fullmatch(line.text):
            self.limits.append(_limit(line, limit[1], limit[2], limit[3]))
        elif not self._word(word, rest):
            raise FilterError(
                f"no such rule: write `- {line.text}` to leave it out, `+ {line.text}` to keep it"
            )
        if len(self.rules) > _RULES_MAX:
            raise FilterError(f"more than {_RULES_MAX} rules")


def parse(rules: Sequence[str], read: Reader | None = None) -> RuleBook:
    """Read the rules. `read` gives the content of files that they name. Raises FilterError."""
    reading = _Reading()
    for line in _lines((_Line(rule, "") for rule in rules), read, 0):
        try:
            reading.take(line)
        except (FilterError, ValueError) as error:
            where = f" ({line.origin})" if line.origin else ""
            raise FilterError(f"filter rule {line.text!r}{where}: {error}") from None
    return RuleBook(
        tuple(reading.rules),
        tuple(reading.limits),
        tuple(reading.ignore_files),
        reading.ignore_case,
    )
