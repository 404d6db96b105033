"""Access control lists against the rules of acl(5), written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostd import acl
from ghostd.acl import AclEntry
from ghostd.errors import InvalidArgument, NotPermitted, NotSupported
from ghostd.filesystem import AttributeChanges, Caller
from tests.ghostd.world import ROOT, World
from tests.simdisk import SimDisk

UNDEFINED = 0xFFFFFFFF
RWX = st.integers(0, 7)


@st.composite
def lists(draw: st.DrawFn) -> list[AclEntry]:
    """Valid lists: the three basic entries, and a mask where there are named ones."""
    users = draw(st.lists(st.integers(1, 99), unique=True, max_size=3))
    groups = draw(st.lists(st.integers(1, 99), unique=True, max_size=3))
    entries = [AclEntry(acl.USER_OBJ, draw(RWX), UNDEFINED)]
    entries += [AclEntry(acl.USER, draw(RWX), uid) for uid in users]
    entries += [AclEntry(acl.GROUP_OBJ, draw(RWX), UNDEFINED)]
    entries += [AclEntry(acl.GROUP, draw(RWX), gid) for gid in groups]
    if users or groups or draw(st.booleans()):
        entries += [AclEntry(acl.MASK, draw(RWX), UNDEFINED)]
    return [*entries, AclEntry(acl.OTHER, draw(RWX), UNDEFINED)]


def permissions(entries: list[AclEntry], tag: int) -> int | None:
    return next((entry.permissions for entry in entries if entry.tag == tag), None)


@given(lists())
def test_encoding_is_the_kernels_and_inverse(entries: list[AclEntry]) -> None:
    value = acl.encode(entries)
    assert value[:4] == b"\x02\0\0\0"
    assert len(value) == 4 + 8 * len(entries)
    assert acl.decode(value) == entries


@pytest.mark.parametrize("value", [b"", b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0" + b"x" * 7])
def test_what_is_no_list_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="version 2"):
        acl.decode(value)


@given(lists(), st.integers(0, 0o7777))
def test_a_list_sets_the_modes_bits_and_chmod_sets_the_lists(
    entries: list[AclEntry], mode: int
) -> None:
    mask = permissions(entries, acl.MASK)
    group = permissions(entries, acl.GROUP_OBJ) if mask is None else mask
    user, other = permissions(entries, acl.USER_OBJ), permissions(entries, acl.OTHER)
    assert user is not None
    assert group is not None
    assert other is not None
    assert acl.mode_of(entries, 0o100000 | mode) == 0o100000 | mode & 0o7000 | (
        user << 6 | group << 3 | other
    )
    changed = acl.changed_mode(entries, mode)
    assert acl.mode_of(changed, mode) == mode, "chmod, then stat: what was asked for"
    for before, after in zip(entries, changed, strict=True):
        if before.tag in (acl.USER, acl.GROUP):
            assert before == after, "named entries stay"
        if before.tag == acl.GROUP_OBJ and mask is not None:
            assert before == after, "the group bits are the mask's"


@given(lists(), st.integers(0, 0o777))
def test_what_is_created_gets_the_default_within_what_was_asked_for(
    default: list[AclEntry], mode: int
) -> None:
    entries, result = acl.inherited(default, mode)
    assert result & ~mode == 0, "never more than the creator asked for"
    assert result == acl.mode_of(entries, mode)
    assert result & ~acl.mode_of(default, 0) == 0, "never more than the directory grants"
    assert [(e.tag, e.id) for e in entries] == [(e.tag, e.id) for e in default]


@given(lists())
def test_minimal_lists_are_those_that_a_mode_can_say(entries: list[AclEntry]) -> None:
    assert acl.minimal(entries) == (len(entries) == 3)


FULL = [
    AclEntry(acl.USER_OBJ, 7, UNDEFINED),
    AclEntry(acl.USER, 6, 1_000),
    AclEntry(acl.GROUP_OBJ, 5, UNDEFINED),
    AclEntry(acl.MASK, 6, UNDEFINED),
    AclEntry(acl.OTHER, 4, UNDEFINED),
]


@pytest.fixture
def world():
    world = World(SimDisk(1))
    yield world
    world.close()


def test_lists_and_modes_of_files_move_together(world: World) -> None:
    fs = world.fs
    ino = fs.create(1, b"f", 0o100644, ROOT).ino
    fs.setxattr(ino, acl.ACCESS, acl.encode(FULL), ROOT)
    assert world.tree.inode(ino).mode == 0o100764
    fs.setattr(ino, AttributeChanges(mode=0o600))
    kept = acl.decode(fs.getxattr(ino, acl.ACCESS))
    assert permissions(kept, acl.MASK) == 0
    assert permissions(kept, acl.USER) == 6
    minimal = [entry for entry in FULL if entry.tag not in (acl.USER, acl.MASK)]
    fs.setxattr(ino, acl.ACCESS, acl.encode(minimal), ROOT)
    assert world.tree.inode(ino).mode == 0o100754
    assert fs.listxattr(ino, ROOT) == [], "a list that a mode can say is the mode"


def test_a_default_list_takes_the_umasks_place(world: World) -> None:
    fs = world.fs
    careful = Caller(0, 0, 0, 0o077)
    folder = fs.create(1, b"d", 0o040755, ROOT).ino
    fs.setxattr(folder, acl.DEFAULT, acl.encode(FULL), ROOT)
    file = fs.create(folder, b"f", 0o100666, careful)
    assert file.mode == 0o100664
    assert permissions(acl.decode(fs.getxattr(file.ino, acl.ACCESS)), acl.USER) == 6
    below = fs.create(folder, b"below", 0o040777, careful)
    assert fs.getxattr(below.ino, acl.DEFAULT) == acl.encode(FULL)
    assert fs.create(1, b"plain", 0o100666, careful).mode == 0o100600
    assert fs.create(folder, b"s", 0o120777, careful, target=b"x").mode == 0o120777


def test_lists_that_cannot_be_are_refused(world: World) -> None:
    fs = world.fs
    file = fs.create(1, b"f", 0o100644, ROOT).ino
    link = fs.create(1, b"s", 0o120777, ROOT, target=b"x").ino
    with pytest.raises(InvalidArgument):
        fs.setxattr(file, acl.ACCESS, b"nonsense", ROOT)
    with pytest.raises(NotPermitted):
        fs.setxattr(file, acl.DEFAULT, acl.encode(FULL), ROOT)
    with pytest.raises(NotSupported):
        fs.setxattr(link, acl.ACCESS, acl.encode(FULL), ROOT)


def test_a_list_set_by_an_outsider_takes_set_group_id_away(world: World) -> None:
    fs = world.fs
    ino = fs.create(1, b"f", 0o102755, Caller(5, 50, 1, 0)).ino
    fs.setxattr(ino, acl.ACCESS, acl.encode(FULL), Caller(5, 50, 1, 0))
    assert world.tree.inode(ino).mode & 0o2000
    fs.setxattr(ino, acl.ACCESS, acl.encode(FULL), Caller(5, 51, 1, 0))
    assert not world.tree.inode(ino).mode & 0o2000
