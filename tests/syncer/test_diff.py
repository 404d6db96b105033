"""What two nodes of one name are to each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.diff import (
    Action,
    Facts,
    Finding,
    Need,
    Rules,
    compare,
    deletions_max,
    rules_of,
)
from syncer.options import Mode, Options, Verb
from syncer.remotes.remote import Checksum
from syncer.steps import StepKind
from syncer.tree import Features, Node, NodeKind

SECOND = 10**9
FULL = Features(
    write=True, symlinks=True, hard_links=True, specials=True, mode=True, owner=True, xattrs=True
)
FEATURES = st.builds(
    Features,
    directories=st.booleans(),
    symlinks=st.booleans(),
    hard_links=st.booleans(),
    specials=st.booleans(),
    mode=st.booleans(),
    owner=st.booleans(),
    xattrs=st.booleans(),
    mtime_resolution_ns=st.sampled_from([0, 1, 100, SECOND, 2 * SECOND]),
)
OPTIONS = st.builds(
    Options,
    mode=st.sampled_from(Mode),
    checksum=st.booleans(),
    ignore_existing=st.booleans(),
    modes=st.booleans(),
    times=st.booleans(),
    owners=st.booleans(),
    numeric_ids=st.booleans(),
    xattrs=st.booleans(),
    mtime_window_ns=st.sampled_from([0, SECOND]),
)
MAYBE_TIME = st.none() | st.integers(0, 5).map(lambda s: s * SECOND // 2)
NODES = st.builds(
    Node,
    st.just(b"name"),
    st.sampled_from(NodeKind),
    size=st.integers(0, 2),
    mtime_ns=MAYBE_TIME,
    mode=st.sampled_from([None, 0o644, 0o600]),
    uid=st.sampled_from([None, 1, 2]),
    gid=st.sampled_from([None, 1, 2]),
    owner=st.sampled_from([None, "a", "b"]),
    group=st.sampled_from([None, "a", "b"]),
    target=st.sampled_from([b"x", b"y"]),
    rdev=st.integers(0, 1),
    content=st.sampled_from([None, b"1", b"2"]),
    checksum=st.sampled_from([None, Checksum("md5", b"1"), Checksum("sha1", b"1")]),
    exact=st.booleans(),
)
VERBS = st.sampled_from([Verb.COPY, Verb.SYNC, Verb.RESTORE])
FACTS = st.builds(Facts, st.none() | st.booleans(), st.none() | st.booleans())


def rules(**changes: object) -> Rules:
    return replace(rules_of(Verb.SYNC, Options(), FULL, FULL), **changes)  # type: ignore[arg-type]


def file(**changes: object) -> Node:
    return Node(b"f", NodeKind.FILE, 3, 100 * SECOND, 0o644)._replace(**changes)


@given(VERBS, OPTIONS, FEATURES, FEATURES, NODES, st.none() | NODES)
def test_asking_ends(
    verb: Verb, options: Options, ours: Features, theirs: Features, one: Node, other: Node | None
) -> None:
    """Whatever is needed, it is needed once, and then there is an answer."""
    chosen = rules_of(verb, options, ours, theirs)
    facts = Facts()
    for _ in range(len(Need) + 1):
        verdict = compare(chosen, one, other, facts)
        if verdict is Need.STAT:
            assert other is not None
            assert not (one.exact and other.exact)
            one, other = one._replace(exact=True), other._replace(exact=True)
        elif verdict is Need.CONTENT:
            assert facts.same_content is None
            facts = facts._replace(same_content=True)
        elif verdict is Need.XATTRS:
            assert facts.same_xattrs is None
            facts = facts._replace(same_xattrs=True)
        else:
            return
    raise AssertionError


@given(VERBS, OPTIONS, FEATURES, NODES, FACTS)
def test_what_was_made_like_the_source_is_equal(
    verb: Verb, options: Options, theirs: Features, one: Node, facts: Facts
) -> None:
    """A copy with coarser times, and without what the destination does not keep."""
    one = one._replace(exact=True)
    step = theirs.mtime_resolution_ns
    kept_ns = None if one.mtime_ns is None or not step else one.mtime_ns // step * step
    copy = one._replace(
        mtime_ns=kept_ns if options.times and step else 9 * SECOND,
        mode=one.mode if theirs.mode and options.modes else 0o7,
        uid=one.uid if theirs.owner and options.owners else 77,
        gid=one.gid if theirs.owner and options.owners else 77,
        owner=one.owner if theirs.owner and options.owners else "c",
        group=one.group if theirs.owner and options.owners else "c",
    )
    chosen = rules_of(verb, options, FULL, theirs)
    verdict = compare(chosen, one, copy, Facts(same_content=True, same_xattrs=True))
    assert verdict in {Finding.EQUAL, Finding.EXISTS, Finding.NEWER}
    if verb is Verb.SYNC and options.mode is not Mode.UPDATE:
        assert verdict is not Finding.NEWER


@given(VERBS, OPTIONS, FEATURES, FEATURES, NODES, st.none() | NODES, FACTS)
def test_nothing_is_made_that_the_destination_cannot_hold(
    verb: Verb,
    options: Options,
    ours: Features,
    theirs: Features,
    one: Node,
    other: Node | None,
    facts: Facts,
) -> None:
    verdict = compare(rules_of(verb, options, ours, theirs), one, other, facts)
    if isinstance(verdict, Action):
        lacking = {
            StepKind.MKDIR: not theirs.directories,
            StepKind.SYMLINK: not theirs.symlinks,
            StepKind.SPECIAL: not theirs.specials,
        }
        assert not lacking.get(verdict.kind, False)
        assert verdict.reason
        if options.ignore_existing:
            assert other is None or one.kind is NodeKind.DIRECTORY
        if other is not None and other.kind is NodeKind.DIRECTORY:
            assert verdict.kind is StepKind.METADATA


@given(st.sampled_from([Verb.COPY, Verb.SYNC]), st.sampled_from(Mode), st.integers(-3, 3))
def test_what_is_newer_stays(verb: Verb, mode: Mode, seconds: int) -> None:
    chosen = rules_of(verb, Options(mode=mode, mtime_window_ns=SECOND), FULL, FULL)
    assert chosen.deletes is (verb is Verb.SYNC and mode is Mode.MIRROR)
    verdict = compare(chosen, file(), file(mtime_ns=(100 + seconds) * SECOND))
    if abs(seconds) <= 1:
        assert verdict is Finding.EQUAL
    elif seconds > 0 and (verb is Verb.COPY or mode is Mode.UPDATE):
        assert verdict is Finding.NEWER
    else:
        assert verdict == Action(StepKind.COPY, "time differs")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (file(), file(size=4), Action(StepKind.COPY, "size differs")),
        (file(), file(mtime_ns=1), Action(StepKind.COPY, "time differs")),
        (file(), file(mtime_ns=None), Finding.EQUAL),
        (file(), file(mode=0o600), Action(StepKind.METADATA, "mode differs")),
        (file(), file(mode=None), Finding.EQUAL),
        (file(content=b"1"), file(content=b"1", mtime_ns=1),
         Action(StepKind.METADATA, "time differs")),
        (file(exact=False), file(), Need.STAT),
        (file(exact=False), file(size=4), Action(StepKind.COPY, "size differs")),
        (Node(b"l", NodeKind.SYMLINK, target=b"a"), Node(b"l", NodeKind.SYMLINK, target=b"b"),
         Action(StepKind.SYMLINK, "target differs")),
        (file(), Node(b"f", NodeKind.SYMLINK), Action(StepKind.COPY, "in place of a symlink")),
        (Node(b"f", NodeKind.DIRECTORY), file(), Action(StepKind.MKDIR, "in place of a file")),
        (file(), Node(b"f", NodeKind.DIRECTORY), Finding.IN_THE_WAY),
        (Node(b"n", NodeKind.BLOCK, rdev=1), Node(b"n", NodeKind.BLOCK, rdev=2),
         Action(StepKind.SPECIAL, "device differs")),
    ],
)  # fmt: skip
def test_examples(one: Node, other: Node, expected: object) -> None:
    assert compare(rules(), one, other) == expected


def test_owners_go_by_name_unless_numbers_are_wanted() -> None:
    one = file(uid=1, owner="a", gid=5)
    named = rules(owners=True)
    assert compare(named, one, file(uid=2, owner="a", gid=5)) is Finding.EQUAL
    assert compare(named, one, file(uid=1, owner="b")) == Action(StepKind.METADATA, "owner differs")
    assert compare(named, one, file(uid=2)) == Action(StepKind.METADATA, "owner differs")
    assert compare(named, one, file(gid=6)) == Action(StepKind.METADATA, "group differs")
    numbered = replace(named, numeric_ids=True)
    assert compare(numbered, one, file(uid=1, owner="b")) is Finding.EQUAL
    assert compare(numbered, one, file(uid=2, owner="a")) == Action(
        StepKind.METADATA, "owner differs"
    )


def test_checksums_tell_where_both_know_the_same_kind() -> None:
    by_content = rules(by_content=True)
    one = file(checksum=Checksum("md5", b"1"))
    assert compare(by_content, one, one) is Finding.EQUAL
    assert compare(by_content, one, file(checksum=Checksum("md5", b"2"))) == Action(
        StepKind.COPY, "content differs"
    )
    assert compare(by_content, one, file(checksum=Checksum("sha1", b"1"))) is Need.CONTENT
    assert compare(by_content, one, file(), Facts(same_content=False)) == Action(
        StepKind.COPY, "content differs"
    )


def test_without_times_a_copy_that_is_older_is_copied() -> None:
    timeless = rules(times=False)
    assert compare(timeless, file(), file(mtime_ns=99 * SECOND)) == Action(
        StepKind.COPY, "older than the source"
    )
    assert compare(timeless, file(), file(mtime_ns=101 * SECOND)) is Finding.EQUAL


def test_where_directories_are_only_names_a_file_gives_way_by_being_deleted() -> None:
    chosen = rules(directories=False)
    assert compare(chosen, Node(b"f", NodeKind.DIRECTORY), file()) == Action(
        StepKind.DELETE, "a directory takes its name"
    )


@given(st.none() | st.floats(0, 0.99) | st.integers(1, 50), st.integers(0, 1000), st.booleans())
def test_how_many_may_be_deleted(limit: float | None, files: int, force: bool) -> None:
    allowed = deletions_max(Options(delete_max=limit, force=force), files)
    if force:
        assert allowed is None
    else:
        assert allowed is not None
        share = 0.1 if limit is None else limit
        assert allowed <= (share if share >= 1 else share * files + 1e-6)
