"""Paths as the shell sees them: resolved like the kernel does, without touching the mount."""

import os

import pytest

from cli.paths import OutsideMount, under_mount
from cli.units import parse_bytes, parse_duration

MOUNT = b"/mnt/orbit"


class Links:
    """Symbolic links, and a record of what was looked at."""

    def __init__(self, **links: bytes) -> None:
        self.links = {key.encode(): value for key, value in links.items()}
        self.looked: list[bytes] = []

    def read(self, path: bytes) -> bytes:
        self.looked.append(path)
        if path in self.links:
            return self.links[path]
        raise OSError(22, "Invalid argument")


def resolved(path: bytes, cwd: bytes = b"/home/me", links: Links | None = None) -> bytes:
    links = links or Links()
    found = under_mount(path, MOUNT, lambda: cwd, links.read)
    touched = [p for p in links.looked if p == MOUNT or p.startswith(MOUNT + b"/")]
    assert touched == [], "the mount was touched"
    return found


@pytest.mark.parametrize(
    ("path", "cwd", "expected"),
    [
        (b"/mnt/orbit", b"/", b"/"),
        (b"/mnt/orbit/", b"/", b"/"),
        (b"/mnt/orbit/a/b/", b"/", b"/a/b"),
        (b"/mnt//orbit/./a", b"/", b"/a"),
        (b"a", b"/mnt/orbit", b"/a"),
        (b"../b", b"/mnt/orbit/a", b"/b"),
        (b".", b"/mnt/orbit/a", b"/a"),
        (b"../mnt/orbit/a", b"/etc", b"/a"),
        (b"/mnt/orbit/a/../../orbit/b", b"/", b"/b"),
        (b"/mnt/orbit/caf\xe9\n%41", b"/", b"/caf\xe9\n%41"),
    ],
)
def test_what_lies_below_the_mount(path, cwd, expected):
    assert resolved(path, cwd) == expected


@pytest.mark.parametrize(
    ("path", "cwd"),
    [
        (b"/mnt/orbital/a", b"/"),
        (b"/etc/passwd", b"/"),
        (b"a", b"/home"),
        (b"/mnt/orbit/../x", b"/"),
        (b"/mnt", b"/"),
        (b"/", b"/"),
    ],
)
def test_what_does_not_is_refused(path, cwd):
    with pytest.raises(OutsideMount, match="not in the mount at /mnt/orbit"):
        resolved(path, cwd)


def test_links_outside_are_followed_as_the_kernel_does():
    links = Links(**{"/home/me/data": b"/mnt/orbit/a", "/home/me/up": b"data/b", "/l": b"/l"})
    assert resolved(b"data/x", links=links) == b"/a/x"
    assert resolved(b"up", links=links) == b"/a/b"
    assert resolved(b"up/..", links=links) == b"/a"
    with pytest.raises(OutsideMount, match="too many"):
        resolved(b"/l", links=links)


def test_a_directory_that_is_gone_is_told():
    def gone() -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(OutsideMount, match="current directory is gone"):
        under_mount(b"a", MOUNT, gone)
    assert under_mount(b"/mnt/orbit/a", MOUNT, gone) == b"/a"


def test_a_real_link(tmp_path):
    mount = tmp_path / "mnt"
    mount.mkdir()
    (tmp_path / "link").symlink_to("mnt/a", target_is_directory=True)
    path = os.fsencode(tmp_path / "link" / "b")
    assert under_mount(path, os.fsencode(mount.resolve())) == b"/a/b"


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90", 90), ("5m", 300), ("1.5h", 5400), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("1M", 1 << 20), ("128k", 1 << 17), ("512 KiB", 1 << 19), ("4096", 4096)]
)
def test_sizes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "x", "-5s", "5 weeks", "1e3"])
def test_what_is_neither(text):
    with pytest.raises(ValueError, match="write a"):
        parse_duration(text)
    with pytest.raises(ValueError, match="write a"):
        parse_bytes(text)
