"""Filters: against rsync and git, against the rules one by one, and by hand."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncer.filter_patterns import FilterError, glob_regex
from syncer.filter_rules import expand
from syncer.filters import KEEP, Filters, Verdict, filter_test
from syncer.tree import Node, NodeKind

FILE, DIRECTORY = NodeKind.FILE, NodeKind.DIRECTORY
DAY_NS = 86_400 * 10**9
NOW_NS = 20_000 * DAY_NS


def file(size: int = 0, age_days: float | None = 0) -> Node:
    mtime_ns = None if age_days is None else NOW_NS - int(age_days * DAY_NS)
    return Node(b"", FILE, size=size, mtime_ns=mtime_ns)


A_FILE = file()
A_DIRECTORY = Node(b"", DIRECTORY)


def parse(*rules: str, files: dict[str, bytes] | None = None) -> Filters:
    return Filters.parse(rules, now_ns=NOW_NS, read=None if files is None else files.__getitem__)


def keeps(filters: Filters, path: str | bytes, node: Node = A_FILE) -> bool:
    return filters.decide(path.encode() if isinstance(path, str) else path, node).keep


# A tree in which many patterns match something: every path of one to three of these names.

NAMES = ("a", "b", "ab", "a.o", "[x]", "a b")


def make_tree(root: Path) -> None:
    """Directories three deep; on each level there are files beside them."""
    for depth in range(3):
        for names in itertools.product(NAMES[:3], repeat=depth):
            folder = root.joinpath(*(f"{name}d" if name == "a.o" else name for name in names))
            folder.mkdir(parents=True, exist_ok=True)
            for name in (*NAMES[3:], "ba", "B"):
                (folder / name).touch()
            if depth == 2:
                (folder / "a").touch()
                (folder / "b").mkdir()


def walk(root: Path, filters: Filters, *, ignore: bytes = b"") -> set[bytes]:
    """What a walk with the filters keeps; directories end in a slash."""
    kept: set[bytes] = set()

    def go(path: bytes, filters: Filters) -> None:
        folder = os.path.join(os.fsencode(root), path)
        if ignore and os.path.exists(os.path.join(folder, ignore)):
            with open(os.path.join(folder, ignore), "rb") as content:
                filters = filters.enter(path, {ignore: content.read()})
        for entry in os.scandir(folder):
            below = path + b"/" + entry.name if path else entry.name
            directory = entry.is_dir(follow_symlinks=False)
            decision = filters.decide(below, A_DIRECTORY if directory else A_FILE)
            assert decision.verdict is not (Verdict.LEAVE_OUT if directory else Verdict.PRUNE)
            if decision.keep:
                kept.add(below + b"/" * directory)
                if directory:
                    go(below, filters)

    go(b"", filters)
    return kept


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    make_tree(root)
    return root


BRACKETS = ("[ab]", "[!a]", "[^b]", "[a-c]", "[]a]", "[[:alpha:]]", "[[:punct:]]", "[b-]", r"[\]x]")
PIECES = (
    "a",
    "b",
    "ab",
    "a.o",
    "B",
    " ",
    ".",
    "*",
    "*",
    "?",
    "**",
    "***",
    "/",
    "/",
    r"\[",
    *BRACKETS,
)
globs = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6)
    .map("".join)
    .filter(lambda glob: glob.strip("/") and "//" not in glob)
)
rsync_rules = st.lists(
    st.tuples(st.sampled_from("+-"), globs).map(" ".join), min_size=1, max_size=6
)


def rsync_keeps(root: Path, rules: list[str]) -> set[bytes]:
    done = subprocess.run(
        ["rsync", "-rn", "--out-format=%n", *(f"--filter={rule}" for rule in rules),
         f"{root}/", "nowhere/"],
        capture_output=True, check=True, cwd=root.parent,
    )  # fmt: skip
    return {line for line in done.stdout.splitlines() if line not in {b"./", b""}}


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rules=rsync_rules)
def test_rules_leave_out_what_they_do_in_rsync(tree: Path, rules: list[str]) -> None:
    assert walk(tree, parse(*rules)) == rsync_keeps(tree, rules)


@pytest.mark.soak
@settings(
    max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rules=rsync_rules)
def test_rules_leave_out_what_they_do_in_rsync_at_length(tree: Path, rules: list[str]) -> None:
    assert walk(tree, parse(*rules)) == rsync_keeps(tree, rules)


GIT_PIECES = (
    "a", "b", "ab", "a.o", ".", "*", "*", "?", "**", "/", "/", "[ab]", "[!a]", "[a-c]", r"\[",
    r"\ ", " ", "!", "#", r"\!",
)  # fmt: skip
git_lines = st.tuples(
    st.sampled_from(("", "", "!", "/")),
    st.lists(st.sampled_from(GIT_PIECES), min_size=1, max_size=5).map("".join),
    st.sampled_from(("", "", "/", "/**", "/*", " ", "\r")),
).map("".join)
# Two stars beside something else than slashes: git before 2.41 compares pointers to different
# strings there, and the outcome depends on where they lie.
git_lines = git_lines.filter(lambda line: not re.search(r"[^/]\*\*|\*\*[^/\s]", line.lstrip("!")))
git_files = st.lists(git_lines, min_size=1, max_size=5).map("\n".join)


def check_against_git(root: Path, contents: tuple[str, ...]) -> None:
    places = (root, root / "a", root / "a" / "b")
    try:
        for place, content in zip(places, contents, strict=True):
            (place / ".orbitignore").write_text(content, newline="")
        done = subprocess.run(
            ["git", f"--git-dir={root}.git", f"--work-tree={root}", "ls-files", "-z", "--others",
             "--exclude-per-directory=.orbitignore"],
            capture_output=True, check=True, cwd=root,
            env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"},
        )  # fmt: skip
        expected = {path for path in done.stdout.split(b"\0") if path}
        kept = walk(root, parse(), ignore=b".orbitignore")
        assert {path for path in kept if not path.endswith(b"/")} == expected
    finally:
        for place in places:
            (place / ".orbitignore").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository") / "tree"
    make_tree(root)
    subprocess.run(["git", "init", "-q", "--bare", f"{root}.git"], check=True)
    return root


ignore_contents = st.tuples(git_files, st.just("") | git_files, st.just("") | git_files)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=ignore_contents)
def test_ignore_files_leave_out_what_they_do_in_git(
    repository: Path, contents: tuple[str, ...]
) -> None:
    check_against_git(repository, contents)


@pytest.mark.soak
@settings(
    max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=ignore_contents)
def test_ignore_files_leave_out_what_they_do_in_git_at_length(
    repository: Path, contents: tuple[str, ...]
) -> None:
    check_against_git(repository, contents)


# Names of any bytes.

components = st.binary(min_size=1, max_size=12).map(
    lambda raw: raw.replace(b"/", b"|").replace(b"\0", b"?")
)
any_paths = st.lists(components, min_size=1, max_size=4).map(b"/".join)


@settings(deadline=None)
@given(path=any_paths, other=any_paths, directory=st.booleans())
def test_a_name_spelled_out_matches_itself_and_nothing_else(
    path: bytes, other: bytes, directory: bool
) -> None:
    # As JSON: rules are stored with the job.
    literal = "".join(f"\\{c}" if c in "\\*?[" else c for c in os.fsdecode(path))
    if not any(c in literal for c in "*?["):
        literal = os.fsdecode(path)  # without wildcards a backslash stands for itself
    rule = json.loads(json.dumps(f"- /{literal}" if not path.endswith(b"/") else "- /x"))
    filters = parse(rule)
    node = A_DIRECTORY if directory else A_FILE
    assert not filters.decide(path, node).keep
    assert filters.decide(other, node).keep is (other != path)


@settings(deadline=None)
@given(path=any_paths)
def test_a_star_for_each_name_matches_any_path(path: bytes) -> None:
    stars = "/".join("*" * (path.count(b"/") + 1))
    assert not keeps(parse(f"- /{stars}"), path)
    assert not keeps(parse("- **"), path)
    assert not keeps(parse("- re:."), path)
    assert keeps(parse(f"- /{stars}/*"), path)


def test_a_question_mark_is_a_character_or_a_byte_that_is_none() -> None:
    filters = parse("- ?")
    assert not keeps(filters, "é")
    assert not keeps(filters, b"\xe9")
    assert not keeps(filters, b"\n")
    assert keeps(filters, b"\xe9\xff")
    assert not keeps(parse("- [ä-ü]"), "é")
    assert not keeps(parse("- x\udce9y"), b"x\xe9y")


def test_case_is_ignored_on_request() -> None:
    assert keeps(parse("- *.JPG"), "a/photo.jpg")
    filters = parse("- *.JPG", "- É*", "- re:^Q", "ignore-case")
    assert not keeps(filters, "a/photo.jpg")
    assert not keeps(filters, "école")
    assert not keeps(filters, "q")
    below = filters.enter(b"", {b".orbitignore": b"MakeFile"})
    assert not keeps(below, "makefile")
    assert keeps(parse().enter(b"", {b".orbitignore": b"MakeFile"}), "makefile")


# Rules together.


@settings(deadline=None)
@given(
    rules=st.lists(st.tuples(st.sampled_from("+-"), globs), max_size=8),
    path=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join),
    directory=st.booleans(),
)
def test_the_first_rule_that_matches_decides(
    rules: list[tuple[str, str]], path: str, directory: bool
) -> None:
    texts = [" ".join(rule) for rule in rules]
    node = A_DIRECTORY if directory else A_FILE
    decision = parse(*texts).decide(path.encode(), node)
    for (sign, _), text in zip(rules, texts, strict=True):
        # By itself a rule that leaves out shows whether it matches.
        if not keeps(parse("-" + text[1:]), path, node):
            assert decision.keep is (sign == "+")
            assert str(decision.rule) == text
            return
    assert decision is KEEP


def test_a_directory_that_is_left_out_is_not_entered() -> None:
    filters = parse("- build/", "- *.o")
    assert filters.decide(b"a/build", A_DIRECTORY).verdict is Verdict.PRUNE
    assert filters.decide(b"a/build", A_FILE).verdict is Verdict.KEEP
    assert filters.decide(b"a/x.o", A_FILE).verdict is Verdict.LEAVE_OUT
    assert filters.decide(b"", A_DIRECTORY).keep
    assert parse("- *").decide(b"", A_DIRECTORY).keep
    assert filters.leaves_out(b"a/build/c/d")
    assert not filters.leaves_out(b"a/built/c")


def test_expressions_are_searched_for_in_the_path() -> None:
    filters = parse(r"- re:^src/.*\.(o|a)$", "- re:tmp[0-9]{2}")
    assert not keeps(filters, "src/x/y.o")
    assert keeps(filters, "lib/src/y.o")
    assert not keeps(filters, "x/mytmp07/z")
    assert keeps(filters, "x/tmp7")


@pytest.mark.parametrize("name", ["a" * 5000 + "!", "a/" * 2000 + "b"])
@pytest.mark.parametrize(
    "rule", ["- re:(a+)+$", "- re:(a|aa)+$", "- " + "*a" * 30 + "b", "- " + "**a" * 30 + "c"]
)
def test_no_rule_takes_forever(rule: str, name: str) -> None:
    # The exponential time that a backtracking matcher takes here would end with the universe.
    assert keeps(parse(rule), name)


# Sizes and ages.


def test_rules_with_conditions() -> None:
    filters = parse("+ size<1K *.iso", "- size>=1G age>30d *.iso", "- size>10M", "- age<=1d *.tmp")
    assert filters.decide(b"a.iso", file(1023)).rule is not None
    assert keeps(filters, "a.iso", file(5 << 20, 40))
    assert not keeps(filters, "a.iso", file(1 << 30, 40))
    assert not keeps(filters, "b", file((10 << 20) + 1))
    assert keeps(filters, "b", file(10 << 20))
    assert not keeps(filters, "x.tmp", file(1, 1))
    assert keeps(filters, "x.tmp", file(1, 1.1))
    assert keeps(filters, "x.tmp", file(1, None))  # how old it is nobody knows
    assert keeps(filters, "x.tmp", A_DIRECTORY)
    assert keeps(filters, "x.tmp", Node(b"", NodeKind.SYMLINK, size=1 << 40, mtime_ns=NOW_NS))


@pytest.mark.parametrize(
    ("rule", "kept", "left_out"),
    [
        ("max-size 1.5K", file(1536), file(1537)),
        ("min-size 1K", file(1024), file(1023)),
        ("size>1K", file(1025), file(1024)),
        ("size<=1K", file(1024), file(1025)),
        ("min-age 1w", file(0, 7), file(0, 6.9)),
        ("max-age 1d12h", file(0, 1.5), file(0, 1.6)),
        ("age<30d", file(0, 29.9), file(0, 30)),
    ],
)
def test_limits_hold_whatever_the_rules_say(rule: str, kept: Node, left_out: Node) -> None:
    for filters in (parse(rule), parse("+ *", rule), parse(rule, "+ *")):
        assert keeps(filters, "a", kept)
        assert not keeps(filters, "a", left_out)
        assert str(filters.decide(b"a", left_out).rule) == rule
        assert keeps(filters, "a", A_DIRECTORY)
    assert not keeps(parse("- a", rule), "a", kept)
    assert keeps(parse("max-age 1d"), "a", file(0, None))


# Files of rules, and ignore files.


def test_rules_from_files() -> None:
    files = {
        "one": b"\xef\xbb\xbf# what is not kept\n- *.o\r\n\n; and\nmerge two\n- last\n",
        "two": b"+ x.a\n- *.a\n",
        "names": b"tmp/\n*.bak\n",
    }
    rules = ("+ keep.o", "merge one", "exclude-from names", "include-from names")
    filters = parse(*rules, files=files)
    for path in ("x.o", "y.a", "last", "z.bak"):
        assert not keeps(filters, path)
    for path in ("keep.o", "x.a"):
        assert keeps(filters, path)
    assert str(filters.decide(b"y.a", A_FILE).rule) == "- *.a (two, line 2)"
    flat = expand(rules, files.__getitem__)
    assert flat == (
        "+ keep.o", "- *.o", "+ x.a", "- *.a", "- last", "- tmp/", "- *.bak", "+ tmp/", "+ *.bak",
    )  # fmt: skip
    assert keeps(parse(*flat), "x.a")
    assert not keeps(parse(*flat), "y.a")


def test_rules_before_a_clear_do_not_count() -> None:
    assert keeps(parse("- a", "!", "- b"), "a")
    assert not keeps(parse("- a", "clear", "- b"), "b")


def test_the_deepest_ignore_file_decides_and_rules_go_first() -> None:
    top = parse("+ must.o", "- never").enter(b"", {b".orbitignore": b"*.o\n/only\nlogs/\n"})
    below = top.enter(b"a", {b".orbitignore": b"!x.o\nnever"})
    assert not keeps(top, "x.o")
    assert keeps(below, "a/x.o")
    assert not keeps(below, "a/y.o")
    assert keeps(below, "a/must.o")
    assert not keeps(below, "a/never")
    assert not keeps(top, "only")
    assert keeps(below, "a/only")
    assert below.decide(b"a/logs", A_DIRECTORY).verdict is Verdict.PRUNE
    assert str(below.decide(b"a/y.o", A_FILE).rule) == "*.o (.orbitignore, line 1)"
    # What one directory says holds for no other.
    assert not keeps(top.enter(b"b", {}), "b/x.o")


def test_which_files_are_ignore_files() -> None:
    assert parse().ignore_names == (b".orbitignore",)
    assert parse("gitignore").ignore_names == (b".orbitignore", b".gitignore")
    assert parse("ignore-file .stignore", "gitignore", "gitignore").ignore_names == (
        b".orbitignore",
        b".stignore",
        b".gitignore",
    )
    assert parse("no-ignore-files").ignore_names == ()
    assert parse("no-ignore-files", "gitignore").ignore_names == (b".gitignore",)
    filters = parse("gitignore")
    both = {b".orbitignore": b"!a", b".gitignore": b"a\nb", b".other": b"c"}
    below = filters.enter(b"", both)
    assert [keeps(below, name) for name in ("a", "b", "c")] == [False, False, True]
    assert filters.trivial
    assert not below.trivial
    assert filters.enter(b"", {b".other": b"c"}) is filters


@pytest.mark.parametrize("line", ["!/", "!/ ", "/", "!", "", "# a", "!#", "a//b"])
def test_lines_that_name_nothing_say_nothing(line: str) -> None:
    below = parse().enter(b"", {b".orbitignore": f"a\n{line}\n".encode()})
    assert not keeps(below, "a")
    assert keeps(below, "b")


def test_stars_at_the_end_are_what_is_in_a_directory() -> None:
    """As in git; the library takes the first two for the directory as well."""
    inside = parse().enter(b"", {b".orbitignore": b"a/**"})
    assert keeps(inside, "a", A_DIRECTORY)
    assert not keeps(inside, "a/b")
    folders = parse().enter(b"", {b".orbitignore": b"a/**/"})
    assert keeps(folders, "a", A_DIRECTORY)
    assert keeps(folders, "a/b")
    assert not keeps(folders, "a/b", A_DIRECTORY)


def test_ignore_files_know_names_of_any_bytes() -> None:
    below = parse().enter(b"", {b".orbitignore": b"x\xe9\n?\n"})
    assert not keeps(below, b"x\xe9")
    assert not keeps(below, b"\xff")
    assert not keeps(below, "ä")
    assert keeps(below, b"xe")


# What is refused, and what it says.


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("*.tmp", "write `- *.tmp`"),
        ("-", "pattern is missing"),
        ("+ ", "pattern is missing"),
        ("- /", "names nothing"),
        ("- a[b", "never closed"),
        ("- a*\\", "ends in a backslash"),
        ("- [[:vowel:]]", "no class"),
        ("- re:", "expression is missing"),
        ("- re:(a", "missing )"),
        ("- re:(?=a)", "lookarounds"),
        ("- re:a)(b", "unexpected )"),
        ("max-size big", "no size"),
        ("size>1X", "no size"),
        ("- age<3q *.o", "no duration"),
        ("min-age 1 2", "no duration"),
        ("ignore-file a/b", "without a folder"),
        ("gitignore x", "no such rule"),
        ("merge rules", "when the job is made"),
        ("merge", "missing"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: str, said: str) -> None:
    with pytest.raises(FilterError) as error:
        parse(rule)
    assert said in str(error.value)


def test_files_that_name_each_other_are_refused() -> None:
    with pytest.raises(FilterError, match="16 deep"):
        parse("merge a", files={"a": b"merge b", "b": b". a"})
    with pytest.raises(FilterError, match=r"rule - \[ \(a, line 2\): .*never closed"):
        parse("merge a", files={"a": b"- x\n- ["})


def test_too_many_patterns_are_refused_not_ignored() -> None:
    with pytest.raises(FilterError, match="MiB together"):
        parse(*(f"- re:(x{number}.{{999}}y){{1,1}}" for number in range(600)))


# What is shown.


def test_the_rule_that_decided_is_shown() -> None:
    def shown(path: bytes, *rules: str) -> str:
        return str(
            filter_test(
                path,
                rules,
                node=A_FILE,
                now_ns=NOW_NS,
                ignore_files={b"": {b".orbitignore": b"*.log"}, b"a": {b".orbitignore": b"!k.log"}},
            )
        )

    assert shown(b"x/y", "- z") == "x/y: kept, no rule matches"
    assert shown(b"x/y", "+ y", "- *") == "x/y: left out, as x/ is; rule: - *"
    assert shown(b"y", "+ y", "- *") == "y: kept; rule: + y"
    assert shown(b"x/y.log") == "x/y.log: left out; rule: *.log (.orbitignore, line 1)"
    assert shown(b"a/k.log") == "a/k.log: kept; rule: !k.log (a/.orbitignore, line 1)"


def test_globs_of_directories_match_no_files() -> None:
    assert glob_regex("a/", directory=False) is None
    assert glob_regex("a/", directory=True) is not None
