"""What a push decides, without anything to push."""

from __future__ import annotations

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from syncer.options import Options
from syncer.push_changes import (
    Change,
    Gone,
    change_from_wire,
    change_to_wire,
    gone_from_wire,
    gone_to_wire,
)
from syncer.push_plan import (
    Act,
    attributes_of,
    conflict_name,
    decide,
    expected,
    is_as_seen,
    is_state,
)
from syncer.remotes.remote import Attributes, Capabilities, Entry, Kind, Version
from syncer.tree import NodeKind

ALL = Capabilities(
    write=True, rename=True, mkdir=True, symlinks=True, mode=True, owner=True, mtime_resolution_ns=1
)
STORE = Capabilities(write=True, rename=True)
NONE = Capabilities(write=True)
VERSION = Version(5, "e", 7)

names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name))
versions = st.builds(Version, st.integers(0, 9), st.text(max_size=3), st.integers(0, 9))
gones = st.builds(Gone, names, st.none() | versions, st.none() | names, st.none() | names)
changes = st.builds(
    Change,
    projection=st.integers(1),
    ino=st.integers(1),
    parent=st.integers(0),
    name=names,
    path=names,
    kind=st.sampled_from(NodeKind),
    size=st.integers(0),
    key=st.none() | names,
    version=st.none() | versions,
    goal=st.none() | names,
    settled=st.booleans(),
    written=st.booleans(),
    open=st.booleans(),
    names=st.integers(1, 3),
    target=st.none() | names,
    replaces=st.none() | gones,
    blocked=st.booleans(),
)


def file(**values: object) -> Change:
    change = Change(2, 3, 2, b"f", b"f", NodeKind.FILE, goal=b"f", settled=True, written=True)
    return change._replace(**values)


@given(changes, st.sampled_from([ALL, STORE, NONE]), st.booleans())
def test_nothing_is_done_that_the_remote_has_not(change, can, closed_only):
    act, reason = decide(change, can, Options(closed_only=closed_only))
    assert reason
    if change.goal is None or change.kind not in {
        NodeKind.FILE,
        NodeKind.DIRECTORY,
        NodeKind.SYMLINK,
    }:
        assert act is Act.REFUSE
    if act is Act.RENAME:
        assert can.rename
        assert change.moved
        assert change.names == 1
    if act is Act.SYMLINK:
        assert can.symlinks
    if act is Act.LATER:
        assert closed_only
        assert change.open
    if change.kind is NodeKind.FILE and act is Act.ATTRIBUTES:
        assert not change.written


@given(changes)
def test_only_what_was_seen_may_be_replaced(change):
    version = expected(change)
    if version is not None:
        assert version in {change.version, change.replaces and change.replaces.version}
    if change.key is None and change.replaces is None:
        assert version is None


@given(changes)
def test_changes_come_through_the_door_as_they_are(change):
    assert change_from_wire(change_to_wire(change)) == change


@given(gones)
def test_so_does_what_is_gone(gone):
    assert gone_from_wire(gone_to_wire(gone)) == gone


def test_a_file_is_based_on_its_own_version_or_replaces_what_was_there():
    assert expected(file()) is None
    assert expected(file(key=b"f", version=VERSION)) == VERSION
    assert expected(file(key=b"g", version=VERSION)) is None
    assert expected(file(replaces=Gone(b"f", VERSION))) == VERSION


def test_what_was_seen():
    entry = Entry(b"f", Kind.FILE, size=5, etag="e", mtime_ns=7)
    assert is_as_seen(Gone(b"f", VERSION), entry)
    assert not is_as_seen(Gone(b"f", None), entry)
    assert not is_as_seen(Gone(b"f", Version(5, "other", 7)), entry)
    assert not is_as_seen(Gone(b"f/", None), entry)
    assert is_as_seen(Gone(b"f/", None), Entry(b"f/", Kind.DIRECTORY))
    link = Entry(b"f", Kind.SYMLINK, target=b"t")
    assert is_as_seen(Gone(b"f", None, b"t"), link)
    assert not is_as_seen(Gone(b"f", None, b"u"), link)


def test_a_copy_at_the_server_is_told_by_its_etag_or_by_its_time():
    assert is_state(Entry(b"g", Kind.FILE, size=5, etag="e", mtime_ns=99), VERSION)
    assert not is_state(Entry(b"g", Kind.FILE, size=6, etag="e", mtime_ns=7), VERSION)
    assert is_state(Entry(b"g", Kind.FILE, size=5, mtime_ns=7), Version(5, "", 7))
    assert not is_state(Entry(b"g", Kind.FILE, size=5, mtime_ns=8), Version(5, "", 7))


def test_only_what_is_kept_is_set():
    change = file(mode=0o640, uid=1, gid=2, mtime_ns=3)
    assert attributes_of(change, ALL, Options()) == Attributes(mode=0o640, mtime_ns=3)
    assert attributes_of(change, ALL, Options(owners=True)).uid == 1
    assert attributes_of(change, STORE, Options(owners=True)) == Attributes()


@given(names, st.text(max_size=80))
def test_names_of_conflicts_are_names(name, host):
    found = conflict_name(name, host, datetime(2026, 1, 2, 3, 4, 5))  # noqa: DTZ001
    assert 0 < len(found) <= 255
    assert not {0, 47} & set(found)
    assert b".conflict-" in found


def test_the_extension_of_a_conflict_stays():
    moment = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001
    assert conflict_name(b"a.txt", "h", moment) == b"a.conflict-h-20260102-030405.txt"
    assert conflict_name(b".profile", "h", moment) == b".profile.conflict-h-20260102-030405"
