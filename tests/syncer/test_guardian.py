"""What is seen before a byte moves: on real folders, and on mounts as the kernel prints them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.guardian import (
    End,
    Finding,
    Need,
    Surroundings,
    check_space,
    inspect,
    name_check,
    refuse_findings,
    space_problem,
)
from syncer.guardian_mounts import Mounts, Place, absent_mount, is_within
from syncer.guardian_names import NameCheck
from syncer.guardian_quota import Left, _Dqblk, left_of, quota_left
from syncer.guidance import Refused, Severity
from syncer.options import JobSpec, Mode, Options, Verb
from syncer.tree import Features

LOCAL = Features(write=True, local=True)
ELSEWHERE = End(Features(write=True), kind="s3")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def end(path: Path | bytes) -> End:
    return End(LOCAL, os.fsencode(path))


def look(
    source: Path | End,
    destination: Path | End,
    *,
    fstab: bytes = b"",
    own: tuple[Path, ...] = (),
    filters: tuple[str, ...] = (),
    mirror: bool = False,
    one_file_system: bool = False,
    around: Surroundings | None = None,
) -> dict[str, Finding]:
    """The findings by their rules."""
    if around is None:
        around = Surroundings.look([os.fsencode(folder) for folder in own])
        around = Surroundings(around.mounts, fstab, around.own_folders)
    options = Options(
        mode=Mode.MIRROR if mirror else Mode.SYNC, one_file_system=one_file_system, filters=filters
    )
    found = inspect(
        JobSpec(Verb.SYNC, "", "", options),
        source if isinstance(source, End) else end(source),
        destination if isinstance(destination, End) else end(destination),
        around,
    )
    by_rule = {one.rule: one for one in found}
    assert len(by_rule) == len(found)
    return by_rule


def errors(found: dict[str, Finding]) -> set[str]:
    return {name for name, one in found.items() if one.severity is Severity.ERROR}


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    source, destination = tmp_path / "source", tmp_path / "destination"
    (source / "sub" / "deep").mkdir(parents=True)
    destination.mkdir()
    return source, destination


# Nothing is in the way, and nothing is left behind.


def test_ordinary_ends_are_fine_and_stay_as_they_are(ends: tuple[Path, Path]) -> None:
    source, destination = ends
    before = sorted(source.parent.rglob("*")), destination.stat().st_mtime_ns
    for to in (destination, destination / "new", destination / "a" / "b"):
        assert not look(source, to)
        assert not look(source, to, mirror=True)
        assert not check_space(end(to), Need(1 << 10, 1), 0, Surroundings.look())
        assert name_check(end(to), Surroundings.look()).check(b"any\nname \xff:") is None
    assert not look(source, ELSEWHERE)
    assert not look(ELSEWHERE, destination)
    assert not look(ELSEWHERE, ELSEWHERE)
    assert (sorted(source.parent.rglob("*")), destination.stat().st_mtime_ns) == before


# One inside the other.


def test_a_destination_inside_the_source_is_refused(ends: tuple[Path, Path]) -> None:
    source, _ = ends
    for inside in (source / "sub", source / "new", source / "sub" / "deep" / "new"):
        assert errors(look(source, inside)) == {"destination-in-source"}
    assert errors(look(source, source)) == {"same-place"}
    # Names that only begin alike are other places.
    assert not look(source, source.with_name("source2"))
    found = look(source, source / "sub" / "new")["destination-in-source"]
    assert "--filter '- /sub/new/'" in found.sentence


def test_filters_that_leave_the_destination_out_make_it_possible(ends: tuple[Path, Path]) -> None:
    source, _ = ends
    inside = source / "sub" / "backup"
    assert not look(source, inside, filters=("- /sub/backup/",))
    assert not look(source, inside, filters=("- sub",))
    assert "destination-in-source" in look(source, inside, filters=("- *.o", "- /backup"))


def test_a_source_inside_the_destination(ends: tuple[Path, Path]) -> None:
    source, _ = ends
    inside = source / "sub"
    assert errors(look(inside, source, mirror=True)) == {"source-in-destination"}
    assert "delete" in look(inside, source, mirror=True)["source-in-destination"].sentence
    found = look(inside, source)
    assert set(found) == {"source-in-destination"}
    assert not errors(found)
    assert not errors(look(inside, source, mirror=True, filters=("- /sub/",)))


def test_symlinks_hide_no_loop(ends: tuple[Path, Path]) -> None:
    source, destination = ends
    (destination / "link").symlink_to(source / "sub")
    found = look(source, destination / "link" / "new")
    assert errors(found) == {"destination-in-source"}
    assert set(found) == {"destination-in-source", "symlink-followed"}
    (destination / "same").symlink_to(source)
    assert "same-place" in look(source, destination / "same")
    assert "same-place" in look(destination / "same", source)


def test_single_files(ends: tuple[Path, Path]) -> None:
    source, destination = ends
    file = source / "file"
    file.touch()
    assert not look(file, source / "copy")
    assert not look(file, destination / "file")
    assert errors(look(file, file)) == {"same-place"}


BIND = """
import os, subprocess, sys
from pathlib import Path
from tests.syncer.test_guardian import look, errors
base = Path(sys.argv[1])
source, bound, other = base / "source", base / "bound", base / "other"
run = lambda *words: subprocess.run(words, check=True)
for folder in (source / "sub", bound, other, source / "in"):
    folder.mkdir(parents=True)
run("mount", "--bind", source / "sub", bound)
assert errors(look(source, bound)) == {"destination-in-source"}, look(source, bound)
assert errors(look(source, bound / "new")) == {"destination-in-source"}
assert errors(look(source / "sub", bound)) == {"same-place"}
assert not look(source, other)
assert not errors(look(source, bound / "new", filters=("- /sub/",)))
# A folder of the destination seen inside the source.
run("mount", "--bind", other, source / "in")
assert errors(look(source, other / "x")) == {"destination-in-source"}, look(source, other / "x")
assert errors(look(source / "in", other, mirror=True)) == {"same-place"}
run("mount", "-t", "tmpfs", "-o", "size=1m", "none", other)
assert not look(source, other), look(source, other)
# A file system of its own below the source, on which the destination is.
disk = source / "disk"
disk.mkdir()
run("mount", "-t", "tmpfs", "none", disk)
assert errors(look(source, disk / "x")) == {"destination-in-source"}
assert not look(source, disk / "x", one_file_system=True)
# What cannot be written, also by root.
run("mount", "-o", "remount,ro", other)
assert errors(look(source, other / "x")) == {"read-only"}
from syncer.guardian import check_space, Need, Surroundings
from tests.syncer.test_guardian import end
assert check_space(end(other), Need(2 << 20, 1), 0, Surroundings.look())
assert check_space(end(other / "new"), Need(1 << 19, 1), 1 << 20, Surroundings.look())
assert not check_space(end(other), Need(1 << 19, 1), 0, Surroundings.look())
print("as it should be")
"""


@ROOT_ONLY
def test_mounts_hide_no_loop(tmp_path: Path) -> None:
    """In a mount namespace of its own: nothing stays behind."""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", BIND, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("as it should be\n", 0), done.stderr


# Orbit's own state.


def test_orbits_own_state(tmp_path: Path, ends: tuple[Path, Path]) -> None:
    source, destination = ends
    state = source / "sub" / "state"
    (state / "packs").mkdir(parents=True)
    found = look(source, destination, own=(state,))
    assert set(found) == {"state-in-source"}
    assert "--filter '- /sub/state/'" in found["state-in-source"].sentence
    assert not look(source, destination, own=(state,), filters=("- state/",))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for inside in (state, state / "packs", state / "new"):
        assert errors(look(elsewhere, inside, own=(state,))) == {"own-state"}
    assert errors(look(elsewhere, source, own=(state,), mirror=True)) == {"own-state"}
    assert not look(elsewhere, source, own=(state,))
    assert not errors(
        look(elsewhere, source, own=(state,), mirror=True, filters=("- /sub/state/",))
    )


def test_the_state_is_not_copied_into_the_mount_that_it_holds(ends: tuple[Path, Path]) -> None:
    source, destination = ends
    state = source / "state"
    state.mkdir()
    real = Surroundings.look().mounts.place(os.fsencode(os.path.realpath(source)))
    assert real is not None
    mountinfo = b"1 0 %s / / rw - ext4 /dev/x rw\n2 1 0:99 / %s rw - fuse.orbit orbit rw\n" % (
        real.device,
        os.fsencode(os.path.realpath(destination)),
    )
    around = Surroundings(Mounts(mountinfo), b"", (os.fsencode(os.path.realpath(state)),))
    assert errors(look(source, destination, around=around)) == {"state-into-mount"}
    assert not look(source, destination, around=around, filters=("- /state/",))
    assert set(look(source, ELSEWHERE, around=around)) == {"state-in-source"}


# Disks that are not there.


def test_a_disk_that_is_not_mounted(tmp_path: Path, ends: tuple[Path, Path]) -> None:
    source, _ = ends
    point = tmp_path / "my disk"
    point.mkdir()
    fstab = (
        f"# {point}\n/dev/sda1 / ext4 defaults 0 1\nUUID=1 none swap sw 0 0\n"
        f"/dev/sdb1 {point} ext4 noauto 0 2\n".replace("my disk", r"my\040disk")
    ).encode()
    for path in (point, point / "a" / "b"):
        assert errors(look(source, path, fstab=fstab)) == {"disk-not-mounted"}
        assert not look(source, path)
    # A mirror of the empty folder under it would delete everything.
    assert "disk-not-mounted" in errors(look(point, source, fstab=fstab, mirror=True))
    assert not look(source, tmp_path / "my", fstab=fstab)
    (tmp_path / "by-name").symlink_to(point)
    assert "disk-not-mounted" in errors(look(source, tmp_path / "by-name" / "x", fstab=fstab))
    (point / "used").touch()
    found = look(source, point, fstab=fstab)
    assert set(found) == {"disk-not-mounted"}
    assert not errors(found)
    mounts = Mounts(b"1 0 8:17 / %s rw - ext4 /dev/sdb1 rw\n" % os.fsencode(point).replace(
        b" ", rb"\040"
    ))  # fmt: skip
    assert absent_mount(os.fsencode(point / "a"), fstab, mounts) is None


# What cannot be written.


def test_destinations_that_are_no_folders(ends: tuple[Path, Path]) -> None:
    source, destination = ends
    file = destination / "file"
    file.touch()
    (destination / "astray").symlink_to("nowhere")
    (destination / "folder").symlink_to(source.parent / "there")
    assert errors(look(source, file)) == {"not-a-folder"}
    assert errors(look(source, file / "below")) == {"not-a-folder"}
    assert errors(look(source, destination / "astray")) == {"symlink-astray"}
    (source.parent / "there").mkdir()
    assert set(look(source, destination / "folder")) == {"symlink-followed"}


WRITABLE = """
import os, sys
from pathlib import Path
from tests.syncer.test_guardian import look, errors
source, closed, open_ = map(Path, sys.argv[1:])
os.setgroups([]), os.setgid(65534), os.setuid(65534)
assert errors(look(source, closed)) == {"not-writable"}, look(source, closed)
assert errors(look(source, closed / "new")) == {"not-writable"}
assert not look(source, open_ / "new")
print("as it should be")
"""


@ROOT_ONLY
def test_a_folder_of_somebody_else() -> None:
    with tempfile.TemporaryDirectory(prefix="orbit-test-") as base:
        # Others may enter it, unlike pytest's own.
        os.chmod(base, 0o755)
        folders = [Path(base, name) for name in ("source", "closed", "open")]
        for folder, mode in zip(folders, (0o755, 0o755, 0o777), strict=True):
            folder.mkdir()
            folder.chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", WRITABLE, *folders],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.stdout, done.returncode) == ("as it should be\n", 0), done.stderr


@ROOT_ONLY
def test_an_immutable_folder(ends: tuple[Path, Path]) -> None:
    source, destination = ends
    try:
        subprocess.run(["chattr", "+i", destination], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this file system has no such flag")
    try:
        assert errors(look(source, destination / "new")) == {"immutable"}
    finally:
        subprocess.run(["chattr", "-i", destination], check=True)
    assert not look(source, destination / "new")


def test_errors_refuse_and_notices_are_handed_on(ends: tuple[Path, Path]) -> None:
    source, _ = ends
    with pytest.raises(Refused, match="same place"):
        refuse_findings(list(look(source, source).values()))
    notices = list(look(source / "sub", source).values())
    assert refuse_findings(notices) == notices


# Space.

GIB = 1 << 30


@pytest.mark.parametrize(
    ("need", "reserve", "free_files", "quota", "said"),
    [
        (Need(5 * GIB, 10), 5 * GIB, 10, Left(), ""),
        (Need(5 * GIB, 10), 5 * GIB + 1, 10, Left(), "5.0 GiB are needed and 5.0 GiB stay free"),
        (Need(11 * GIB, 10), 0, None, Left(), "only 10.0 GiB are free"),
        (Need(1, 11), 0, 10, Left(), "room for 10 only"),
        (Need(1, 11), 0, None, Left(), ""),
        (Need(2 * GIB, 1), 0, None, Left(bytes=2 * GIB), ""),
        (Need(2 * GIB + 1, 1), 0, None, Left(bytes=2 * GIB), "quota leaves 2.0 GiB"),
        (Need(1, 6), 0, None, Left(files=5), "quota leaves 5"),
    ],
)
def test_space(need: Need, reserve: int, free_files: int | None, quota: Left, said: str) -> None:
    problem = space_problem(need, reserve, free_bytes=10 * GIB, free_files=free_files, quota=quota)
    assert (said in problem) if said else not problem


def test_space_of_a_real_folder(tmp_path: Path) -> None:
    around = Surroundings.look()
    (found,) = check_space(end(tmp_path / "new"), Need(1 << 60, 1), 0, around)
    assert found.rule == "no-space"
    assert str(tmp_path) in found.sentence
    assert not check_space(end(tmp_path), Need(0, 0), 1 << 60, around)
    assert not check_space(ELSEWHERE, Need(1 << 60, 1), 0, around)


def test_quotas() -> None:
    found = _Dqblk(bhardlimit=1000, curspace=24_000, ihardlimit=10, curinodes=12, valid=15)
    assert left_of(found) == Left(bytes=1_000_000, files=0)
    found.valid = 1
    assert left_of(found) == Left()
    assert left_of(_Dqblk(bhardlimit=0, ihardlimit=0, valid=15)) == Left()
    assert quota_left(b"tmpfs", 1000) == Left()
    assert quota_left(b"/dev/null", 1000) == Left()


# Mounts, as the kernel prints them.

MOUNTINFO = b"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:17 /data /srv/my\\040data rw - ext4 /dev/sdb1 rw
31 22 8:1 /home/me/docs /mnt/docs ro,nosuid - ext4 /dev/sda1 rw
32 22 0:50 / /mnt/orbit rw - fuse.orbit orbit rw
33 22 8:99 / /mnt/twice rw - ext4 /dev/a rw
34 33 8:98 / /mnt/twice rw - xfs /dev/b rw
broken
"""


def test_where_paths_are() -> None:
    mounts = Mounts(MOUNTINFO)
    assert mounts.place(b"/etc/x") == Place(b"8:1", b"/etc/x")
    assert mounts.place(b"/") == Place(b"8:1", b"/")
    assert mounts.place(b"/srv/my data") == Place(b"8:17", b"/data")
    assert mounts.place(b"/srv/my data/a/b") == Place(b"8:17", b"/data/a/b")
    assert mounts.place(b"/mnt/docs/a") == mounts.place(b"/home/me/docs/a")
    assert mounts.place(b"/mnt/docs2") == Place(b"8:1", b"/mnt/docs2")
    for path, kind in ((b"/mnt/orbit/a", "fuse.orbit"), (b"/mnt/twice/x", "xfs"), (b"/x", "ext4")):
        mount = mounts.of(path)
        assert mount is not None
        assert mount.type == kind
    docs = mounts.of(b"/mnt/docs")
    assert docs is not None
    assert docs.read_only
    assert Mounts(b"").place(b"/a") is None


names = st.sampled_from((b"a", b"b", b"ab", b".."[:1]))
clean_paths = st.lists(names, max_size=4).map(lambda parts: b"/" + b"/".join(parts))


@settings(deadline=None)
@given(clean_paths, clean_paths)
def test_within(path: bytes, folder: bytes) -> None:
    parts, above = ([part for part in one.split(b"/") if part] for one in (path, folder))
    assert is_within(path, folder) is (parts[: len(above)] == above)


# Names.

LONG = Features(name_bytes_max=5, path_bytes_max=9)


@pytest.mark.parametrize(
    ("features", "kind", "path", "said"),
    [
        (LONG, "", b"ab/abcde", ""),
        (LONG, "", b"abcdef", "6 bytes"),
        (LONG, "", b"ab/ab/abcd", "10 bytes"),
        (Features(), "ext4", b'a:<>"|?*\n\xff. ', ""),
        *(
            (Features(), kind, name, said)
            for kind in ("smb", "vfat", "exfat", "ntfs3", "cifs")
            for name, said in (
                (b"a/b:c", "':'"), (b"what?", "'?'"), (b"a\nb", r"'\n'"), (b"a\\b", r"'\\'"),
                (b"x/con", "device"), (b"LPT1.txt", "device"), (b"end.", "dot or space"),
                (b"end ", "dot or space"), (b"\xff", "UTF-8"),
                (b"console", ""), (b".hidden", ""), ("ä b".encode(), ""), (b"com", ""),
            )
        ),
        (Features(), "s3", b"a\xff", "UTF-8"),
        (Features(), "s3", b"a:b?", ""),
        (Features(), "sftp", b"\xff", ""),
    ],
)  # fmt: skip
def test_names_that_cannot_be_held(features: Features, kind: str, path: bytes, said: str) -> None:
    problem = NameCheck(features, kind).check(path)
    if said:
        assert problem is not None
        assert problem.path == path
        assert said in problem.sentence
    else:
        assert problem is None
