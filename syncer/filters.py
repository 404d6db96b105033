"""Which paths a job takes part in: rules, limits, and ignore files of directories. Pure.

The first rule that matches decides; then the deepest ignore file that has something to say; else
the path is kept. Limits of size and age hold for files whatever the rules say. A directory that is
left out is not descended into, so that every decision presumes that of the path's parents.

    filters = Filters.parse(["+ *.c", "- build/", "max-size 1G"], now_ns=time.time_ns())
    filters.decide(b"src/main.c", node).keep
    below = filters.enter(b"src", {b".orbitignore": b"*.o"})  # for what is in src

Filters never change: `enter` returns others, for the walk to hold as long as it is in there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from syncer.tree import ROOT, Node, NodeKind

if TYPE_CHECKING:
    from syncer.filter_ignore import IgnoreFile, IgnoreLine
    from syncer.filter_patterns import PatternSet
    from syncer.filter_rules import Reader, Rule, RuleBook


class Verdict(enum.Enum):
    """What becomes of a path."""

    KEEP = "kept"
    LEAVE_OUT = "left out"
    PRUNE = "left out with all that is in it"


class Decision(NamedTuple):
    """A verdict, and what it rests on."""

    verdict: Verdict
    rule: Rule | IgnoreLine | None = None  # None: nothing matched

    @property
    def keep(self) -> bool:
        """Whether the path is kept."""
        return self.verdict is Verdict.KEEP


KEEP = Decision(Verdict.KEEP)


class FilterTest(NamedTuple):
    """What `orbit filter-test` tells."""

    path: bytes
    decision: Decision
    at: bytes  # the path that was decided on: `path`, or the directory above it that is left out

    def __str__(self) -> str:
        def shown(path: bytes) -> str:
            return path.decode("utf-8", "backslashreplace")

        if self.decision.rule is None:
            return f"{shown(self.path)}: kept, no rule matches"
        because = f"rule: {self.decision.rule}"
        if self.at != self.path:
            return f"{shown(self.path)}: left out, as {shown(self.at)}/ is; {because}"
        return f"{shown(self.path)}: {self.decision.verdict.value}; {because}"


def _regex(rule: Rule, *, directory: bool) -> str | None:
    """What a rule matches; None: nothing of this kind."""
    from syncer.filter_patterns import glob_regex, regex_anywhere

    if rule.glob is not None:
        return glob_regex(_rule_text(rule.glob), directory=directory)
    if rule.regex is not None:
        return regex_anywhere(_rule_text(rule.regex))
    return ".*"


class _Rules:
    """Rules for one kind of paths: directories, or all others."""

    def __init__(self, book: RuleBook, *, directory: bool) -> None:
        from syncer.filter_patterns import FilterError, PatternSet

        taken: list[Rule] = []
        regexes: list[str] = []
        for rule in book.rules:
            try:
                regex = _regex(rule, directory=directory)
            except FilterError as error:
                raise FilterError(f"filter rule {rule}: {error}") from None
            # Sizes and ages are those of files.
            if regex is not None and not (directory and rule.conditions):
                taken.append(rule)
                regexes.append(regex)
        left_out = Verdict.PRUNE if directory else Verdict.LEAVE_OUT
        self._decisions = [_decision(rule, left_out) for rule in taken]
        self._conditions = [rule.conditions for rule in taken]
        self._conditional = any(self._conditions)
        self._set: PatternSet | None = None
        if taken:
            self._set = PatternSet(regexes, ignore_case=book.ignore_case)

    def decide(self, text: bytes, node: Node, now_ns: int) -> Decision | None:
        """The decision of the first rule that matches; None: none does."""
        if self._set is None:
            return None
        found = self._set.match(text)
        if not found:
            return None
        if not self._conditional:
            return self._decisions[min(found)]
        age_s = _age_s(node, now_ns)
        for number in sorted(found):
            conditions = self._conditions[number]
            if not conditions or (
                node.kind is NodeKind.FILE
                and all(condition.holds(node.size, age_s) for condition in conditions)
            ):
                return self._decisions[number]
        return None


def _rule_text(rule: str) -> str:
    """The characters of a rule as those of paths are matched."""
    from syncer.filter_patterns import text_of

    return text_of(rule.encode("utf-8", "surrogateescape"))


def _matchable(path: bytes) -> bytes:
    from syncer.filter_patterns import matchable

    return matchable(path)


def _decision(rule: Rule, left_out: Verdict) -> Decision:
    from syncer.filter_rules import Action

    return Decision(Verdict.KEEP if rule.action is Action.KEEP else left_out, rule)


def _age_s(node: Node, now_ns: int) -> float | None:
    return None if node.mtime_ns is None else (now_ns - node.mtime_ns) / 1e9


class _Compiled:
    """All that does not change from directory to directory."""

    def __init__(self, book: RuleBook, now_ns: int) -> None:
        self.directories = _Rules(book, directory=True)
        self.others = _Rules(book, directory=False)
        self.limits = tuple(
            (rule.conditions, Decision(Verdict.LEAVE_OUT, rule)) for rule in book.limits
        )
        self.now_ns = now_ns
        self.ignore_case = book.ignore_case


class Filters:
    """The rules of a job, and the ignore files of the directories that a walk is in."""

    def __init__(
        self,
        compiled: _Compiled | None,
        ignore_names: tuple[bytes, ...],
        ignores: tuple[IgnoreFile, ...] = (),
    ) -> None:
        """See `parse`."""
        self._compiled = compiled
        self._ignores = ignores  # deepest first
        self.ignore_names = ignore_names  # files that the walk gives to `enter` where it finds them

    @classmethod
    def parse(cls, rules: Sequence[str], *, now_ns: int, read: Reader | None = None) -> Filters:
        """Read rules. `now_ns`: what ages are counted from; the same for a whole job.

        `read` gives the content of files named by `merge FILE`. Raises FilterError.
        """
        if not rules:
            return cls(None, (b".orbitignore",))
        from syncer.filter_rules import parse

        book = parse(rules, read)
        compiled = _Compiled(book, now_ns) if book.rules or book.limits else None
        if compiled is None and book.ignore_case:
            compiled = _Compiled(book, now_ns)
        return cls(compiled, book.ignore_files)

    @property
    def trivial(self) -> bool:
        """Whether everything is kept, in this directory and below until an ignore file is found."""
        return self._compiled is None and not self._ignores

    def without(self, *names: bytes) -> Filters:
        """The same, but files of these names are no ignore files."""
        left = tuple(name for name in self.ignore_names if name not in names)
        return Filters(self._compiled, left, self._ignores)

    def enter(self, directory: bytes, contents: Mapping[bytes, bytes]) -> Filters:
        """Return the filters for what is in a directory that has files of `ignore_names`.

        `contents`: by name. Names that are not asked for are passed over. Raises FilterError.
        """
        from syncer.filter_ignore import IgnoreFile

        ignore_case = self._compiled is not None and self._compiled.ignore_case
        here = tuple(
            IgnoreFile(directory, name, contents[name], ignore_case=ignore_case)
            for name in reversed(self.ignore_names)
            if name in contents
        )
        return Filters(self._compiled, self.ignore_names, here + self._ignores) if here else self

    def decide(self, path: bytes, node: Node) -> Decision:
        """Decide on a path, whose parents are kept; about 2 µs with twenty rules."""
        compiled = self._compiled
        if path == ROOT or (compiled is None and not self._ignores):
            return KEEP
        text = path if path.isascii() else _matchable(path)
        directory = node.kind is NodeKind.DIRECTORY
        decision = None
        if compiled is not None:
            rules = compiled.directories if directory else compiled.others
            decision = rules.decide(text, node, compiled.now_ns)
        if decision is None:
            decision = self._ignored(text, directory=directory)
        if (
            compiled is not None
            and compiled.limits
            and node.kind is NodeKind.FILE
            and decision.verdict is Verdict.KEEP
        ):
            return self._limited(compiled, node, decision)
        return decision

    def leaves_out(self, path: bytes) -> bool:
        """Whether a directory, or one above it, is left out, as far as is known here."""
        names = path.split(b"/") if path else []
        return any(
            not self.decide(
                b"/".join(names[: depth + 1]), Node(names[depth], NodeKind.DIRECTORY)
            ).keep
            for depth in range(len(names))
        )

    def _ignored(self, text: bytes, *, directory: bool) -> Decision:
        for ignore in self._ignores:
            line = ignore.decide(text, directory=directory)
            if line is not None:
                if not line.leaves_out:
                    return Decision(Verdict.KEEP, line)
                return Decision(Verdict.PRUNE if directory else Verdict.LEAVE_OUT, line)
        return KEEP

    @staticmethod
    def _limited(compiled: _Compiled, node: Node, decision: Decision) -> Decision:
        age_s = _age_s(node, compiled.now_ns)
        for conditions, left_out in compiled.limits:
            # What has no known age is kept: better too much than too little in silence.
            if any(condition.holds(node.size, age_s) is False for condition in conditions):
                return left_out
        return decision


def filter_test(
    path: bytes,
    rules: Sequence[str],
    *,
    node: Node,
    now_ns: int,
    read: Reader | None = None,
    ignore_files: Mapping[bytes, Mapping[bytes, bytes]] | None = None,
) -> FilterTest:
    """Return what becomes of a path, and which rule decided.

    `node`: what it is. `ignore_files`: contents by name, by directory. Raises FilterError.
    """
    filters = Filters.parse(rules, now_ns=now_ns, read=read)
    names = path.split(b"/") if path else []
    for depth in range(len(names)):
        above = b"/".join(names[:depth])
        if depth:
            decision = filters.decide(above, Node(names[depth - 1], NodeKind.DIRECTORY))
            if not decision.keep:
                return FilterTest(path, decision, above)
        contents = (ignore_files or {}).get(above)
        if contents:
            filters = filters.enter(above, contents)
    return FilterTest(path, filters.decide(path, node), path)
