"""Listing directories: stable while they change, however large; positions, inode numbers and
types.
"""

import os
import random
import stat
import subprocess

import pytest

from tests.mount.posix import KINDS, DirectoryStream, make_node, needs_root


def names_of(stream: DirectoryStream) -> list[bytes]:
    """What is left to read, without "." and ".."."""
    found = []
    while (entry := stream.read()) is not None:
        if entry[1] not in (b".", b".."):
            found.append(entry[1])
    return found


def touch_all(folder, names) -> None:
    """Create empty files, quickly."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


@needs_root
def test_listings_give_inode_numbers_and_types(here):
    for kind in KINDS:
        make_node(kind, here / kind)
    found = {entry.name: entry for entry in os.scandir(here)}
    assert sorted(found) == sorted(KINDS)
    for kind in KINDS:
        entry = found[kind]
        assert entry.inode() == (here / kind).lstat().st_ino
        mode = (here / kind).lstat().st_mode
        assert entry.is_symlink() == stat.S_ISLNK(mode)
        assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(mode)
        assert entry.is_file(follow_symlinks=False) == stat.S_ISREG(mode)


def test_dot_and_dot_dot_are_listed_first(here):
    (here / "sub").mkdir()
    (here / "sub" / "file").touch()
    with DirectoryStream(here / "sub") as stream:
        entries = [stream.read() for _ in range(4)]
    assert entries[3] is None
    numbers = {entry[1]: entry[0] for entry in entries if entry}
    assert set(numbers) == {b".", b"..", b"file"}
    assert numbers[b"."] == (here / "sub").stat().st_ino
    assert numbers[b".."] == here.stat().st_ino


@pytest.mark.parametrize("count", [1, 10, 3000])
def test_positions_can_be_returned_to(here, count):
    touch_all(here, [f"{number:05}" for number in range(count)])
    with DirectoryStream(here) as stream:
        positions, names = [], []
        while True:
            position = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            positions.append(position)
            names.append(entry[1])
        assert len(names) == count + 2
        for index in [*range(0, len(names), 97), len(names) - 1, 0]:
            stream.seek(positions[index])
            entry = stream.read()
            assert entry is not None
            assert entry[1] == names[index]
        touch_all(here, ["new"])
        stream.rewind()
        assert sorted([b"new", *names]) == sorted([b".", b"..", *names_of(stream)])


@pytest.mark.parametrize("seed", range(3))
def test_what_stays_is_listed_exactly_once_while_the_directory_changes(here, seed):
    """POSIX: only entries added or removed after opening may be missing or there."""
    rng = random.Random(seed)
    stay = {b"stay%d" % number for number in range(2000)}
    go = [b"go%d" % number for number in range(2000)]
    names = [*stay, *go]
    rng.shuffle(names)
    touch_all(here, names)
    with DirectoryStream(here) as stream:
        found = []
        count = 0
        while (entry := stream.read()) is not None:
            found.append(entry[1])
            count += 1
            if count % 20 == 0:
                for _ in range(min(10, len(go))):
                    os.unlink(os.fsencode(here) + b"/" + go.pop(rng.randrange(len(go))))
                    touch_all(here, [b"new%d" % rng.randrange(10**9)])
    assert len(found) == len(set(found)), "an entry was listed twice"
    assert stay <= set(found)


def test_emptying_a_directory_while_listing_it(here):
    """rm -r works this way: nothing is skipped."""
    touch_all(here, [f"{number}" for number in range(5000)])
    with DirectoryStream(here) as stream:
        while (entry := stream.read()) is not None:
            if entry[1] not in (b".", b".."):
                os.unlink(os.fsencode(here) + b"/" + entry[1])
    assert os.listdir(here) == []


def test_replacing_names_while_listing_shows_each_once(here):
    touch_all(here, [f"{number}" for number in range(1000)])
    touch_all(here, [f"x{number}" for number in range(300)])
    with DirectoryStream(here) as stream:
        found = [stream.read()[1] for _ in range(50)]
        for number in range(300):
            os.rename(here / f"x{number}", here / f"{number * 3}")
        found += [name for name in names_of(stream) if not name.startswith(b"x")]
    found = [name for name in found if name not in (b".", b"..") and not name.startswith(b"x")]
    assert sorted(found) == sorted(b"%d" % number for number in range(1000))


def check_large_directory(shared, mnt, count: int) -> None:
    """Make `count` entries, list them in several ways and across a restart, and remove some."""
    folder = mnt / "large"
    folder.mkdir()
    touch_all(folder, (f"entry{number:07}" for number in range(count)))
    wanted = {f"entry{number:07}" for number in range(count)}
    assert set(os.listdir(folder)) == wanted
    shared.restart()
    with os.scandir(folder) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    assert set(listed) == wanted
    for name in random.Random(1).sample(sorted(wanted), 100):
        assert (folder / name).stat().st_ino == listed[name]
    gone = sorted(wanted)[::10]
    with DirectoryStream(folder) as stream:
        found = [stream.read() for _ in range(count // 2)]
        for name in gone:
            (folder / name).unlink()
        rest = names_of(stream)
    names = [entry[1] for entry in found if entry] + rest
    assert len(names) == len(set(names))
    assert {os.fsencode(name) for name in wanted - set(gone)} <= set(names)
    assert set(os.listdir(folder)) == wanted - set(gone)
    assert folder.stat().st_nlink == 2


def test_a_directory_of_50_000_entries(shared, mnt):
    check_large_directory(shared, mnt, 50_000)


@pytest.mark.soak
def test_a_directory_of_a_million_entries(shared, mnt):
    check_large_directory(shared, mnt, 1_000_000)


def test_tools_walk_and_remove_trees(here):
    for first in range(20):
        (here / f"{first}").mkdir()
        for second in range(20):
            (here / f"{first}" / f"{second}").mkdir()
            (here / f"{first}" / f"{second}" / "file").write_bytes(b"x")
    found = subprocess.check_output(["find", here], timeout=60).splitlines()
    assert len(found) == 1 + 20 + 400 + 400
    assert len(subprocess.check_output(["ls", "-lR", here], timeout=60).splitlines()) > 1200
    subprocess.run(["rm", "-r", *here.iterdir()], check=True, timeout=60)
    assert os.listdir(here) == []
    assert here.stat().st_nlink == 2


def test_deep_trees(here):
    fds = [os.open(here, os.O_RDONLY | os.O_DIRECTORY)]
    for _ in range(300):
        os.mkdir("deeper" * 4, dir_fd=fds[-1])
        fds.append(os.open("deeper" * 4, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fds[-1]))
    for fd in fds:
        os.close(fd)
    subprocess.run(["rm", "-r", here / ("deeper" * 4)], check=True, timeout=60)
    assert os.listdir(here) == []
