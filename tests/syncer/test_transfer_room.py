"""Room: what will be written, not what is listed."""

from syncer.guardian_mounts import Mounts
from syncer.options import Options
from syncer.steps import Step, StepKind
from syncer.transfer_room import BATCH_BYTES, Room, may_clone
from syncer.tree import Node, NodeKind

GIB = 1 << 30


def file(size, allocated=None, **more):
    return Node(b"f", NodeKind.FILE, size, allocated=allocated, **more)


def need(*steps, holes=True, options=None, **given):
    room = Room(options or Options(), holes=holes)
    for step in steps:
        room.add(step)
    found = room.need(2, **given)
    return found.bytes, found.files


def copy(node, old=None):
    return Step(StepKind.COPY, b"f", size=node.size, source_path=b"f", node=node, old=old)


def test_new_files_take_their_size():
    assert need(copy(file(10)), copy(file(20))) == (30, 2)
    assert need(copy(file(10)), copy(file(20)), bytes_done=10, files_done=1) == (20, 1)


def test_holes_take_no_room_where_they_are_kept():
    sparse = copy(file(100 * GIB, allocated=4096))
    assert need(sparse)[0] == 4096
    assert need(sparse, holes=False)[0] == 100 * GIB


def test_what_is_replaced_is_there_twice_for_a_while_only():
    steps = [copy(file(GIB), old=file(GIB)) for _ in range(100)]
    assert need(*steps) == (2 * GIB, 0)  # two at a time
    small = [copy(file(1 << 20), old=file(1 << 20)) for _ in range(2_000)]
    assert need(*small)[0] == 2 * BATCH_BYTES
    assert need(copy(file(GIB), old=file(1)))[0] == GIB


def test_what_keeps_its_old_bytes_frees_nothing():
    linked = file(GIB, link=7)
    assert need(*[copy(file(GIB), old=linked)] * 3)[0] == 3 * GIB
    plain = copy(file(GIB), old=file(GIB))
    assert need(plain, plain, plain, options=Options(trash=".t"))[0] == 3 * GIB


def test_directories_and_links_take_an_inode_or_nothing():
    directory = Step(StepKind.MKDIR, b"d", node=Node(b"d", NodeKind.DIRECTORY))
    assert need(directory, Step(StepKind.LINK, b"l"), Step(StepKind.DELETE, b"x")) == (0, 1)


def test_where_copies_may_share_blocks():
    mounts = Mounts(
        b"1 0 0:1 / / rw - ext4 /dev/a rw\n"
        b"2 1 0:2 / /b rw - btrfs /dev/b rw\n"
        b"3 1 0:3 / /x rw - xfs /dev/x rw\n"
        b"4 1 0:2 /sub /b2 rw - btrfs /dev/b rw\n"
    )
    assert may_clone(b"/b/from", b"/b/to", mounts)
    assert may_clone(b"/b/from", b"/b2/to", mounts)
    assert not may_clone(b"/b/from", b"/x/to", mounts)
    assert not may_clone(b"/from", b"/to", mounts)
