"""Names from remotes on a real mount: odd, hostile, too long; links that lead away."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import ClassVar

import pytest

from tests.projections.hostile_s3 import hostile_s3
from tests.projections.mounts import Projector, content

LONG = b"/".join([b"%d" % n + b"n" * 199 for n in range(5)])
KEYS = [
    b"plain", b"dir/file", b"dir/", b"marker/",
    b"a", b"a/", b"a/inside", b"b", b"b/inside",
    b"double//slash", b"double//", b"/lead", b"//two", b"trailing/slash/",
    b"k" * 1_024, LONG + b"l" * (1_024 - len(LONG)), b"x" * 255, b"y" * 256, b"z" * 256 + b"/deep",
    b"@orbit:fake", b"@orbit:%2F", b"%2F", b"%00", b"%", b"nul\0byte", b"new\nline", b"\x01\x7f",
    b"odd\xff\xfe", b"\xc3", "é".encode(), "e\u0301".encode(), b"UPPER", b"upper", b"Upper",
    b" lead", b"trail ", b"'\"$(touch pwned);`id`", b"-rf", b"*", b"~", b"back\\slash", b"c:\\x",
    b"con", b"#frag?query=1&x", b"a+b", b"lost+found", b".hidden", b"...", b"..almost", b"x/...",
]  # fmt: skip
# Content under the key of a directory has no name in it, and is left out.
NAMELESS = [b"double//", b"trailing/slash/"]
# What HTTP cannot carry is left out.
UNSPEAKABLE = [b"..", b".", b"../up", b"x/../y", b"x/..", b"./z", b"../../../../etc/passwd"]


def what(key: bytes) -> bytes:
    """What is stored under a key: it tells the key."""
    return b"" if key in (b"dir/", b"marker/", b"a/") else b"under " + key


class Hostile:
    """See mounts.Site; nothing here fails."""

    environment: ClassVar[dict[str, str]] = {}
    url = "s3://bucket/"

    def __init__(self, endpoint: str) -> None:
        self.options = {"endpoint": endpoint, "anonymous": "true", "path_style": "true"}


def test_every_key_is_shown_safely_or_left_out(new_daemon, workplace):
    outside = workplace / "outside"
    outside.write_bytes(b"not touched")
    with hostile_s3({key: what(key) for key in KEYS + UNSPEAKABLE}) as endpoint:
        far = Projector(new_daemon, Hostile(endpoint), config="")
        (far.daemon.mount / "beside").write_bytes(b"not touched")
        found: dict[bytes, bytes] = {}
        names = 0
        for folder, folders, files in os.walk(os.fsencode(far.far)):
            assert len({*folders, *files}) == len(folders) + len(files)
            for name in folders + files:
                names += 1
                assert 0 < len(name) <= 255
                assert name not in (b".", b"..")
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    data = file.read()
                assert os.stat(path).st_size == len(data)
                assert data not in found, f"{path!r} and {found[data]!r} show the same object"
                found[data] = path
        assert set(found) == {what(key) for key in KEYS if key not in NAMELESS} - {b""}
        for key in (
            b"plain",
            b"dir/file",
            b"a",
            b"b",
            b"x" * 255,
            b"odd\xff\xfe",
            b"new\nline",
            b"-rf",
        ):
            assert found[what(key)] == os.path.join(os.fsencode(far.far), key)
        # The second one of a name has another one.
        beside = os.path.join(os.fsencode(far.far), b"@orbit:a%2F/inside")
        assert found[what(b"a/inside")] == beside
        assert sorted(os.listdir(far.daemon.mount)) == ["beside", "far"]
        assert (far.daemon.mount / "beside").read_bytes() == b"not touched"
        assert os.listdir(far.far / "marker") == []
        shown = {path: data for data, path in found.items()}
        far.daemon.check_clean(data=True)
        # The names are the same ones after a restart, and when each is asked for by itself.
        far.crash()
        for path, data in shown.items():
            with open(path, "rb") as file:
                assert file.read() == data
        far.call("refresh", path="/far", recursive=True)
        again = sum(len(d) + len(f) for _, d, f in os.walk(os.fsencode(far.far)))
        assert again == names
        far.stop()
    assert outside.read_bytes() == b"not touched"


def test_a_name_that_is_asked_for_leads_nowhere_else(new_daemon):
    """Names that no listing gave, spelled by a user."""
    with hostile_s3({b"in/file": b"inside", b"secret": b"beside it"}) as endpoint:
        site = Hostile(endpoint)
        site.url = "s3://bucket/in/"
        far = Projector(new_daemon, site, config="")
        for name in ("@orbit:..%2Fsecret", "@orbit:..", "%2e%2e", "..%2fsecret", "file/", "file/x"):
            with pytest.raises(OSError, match=r"No such file|Not a directory"):
                os.stat(f"{far.far}/{name}")
        assert os.listdir(far.far) == ["file"]
        far.stop()


ODD_FILES = [
    b"odd\xff\xfe", b"new\nline", b"-rf", b" lead", b"x" * 255, b"'\"$(touch pwned)",
    b"@orbit:fake", b"%2F", b"*", "e\u0301".encode(), "é".encode(), b"\x01\x7f", b"back\\slash",
    b"...",
]  # fmt: skip
LINKS = {
    "absolute": "/etc/passwd",
    "up": "../../../../etc/passwd",
    "beside": "plain",
    "down": "dir/inner",
    "back": "../plain",  # in dir
    "dangling": "nowhere",
    "loop": "loop",
    "long": "t" * 4_000,
}


def test_odd_names_and_links_over_sftp(folder, projector, tmp_path):
    source = os.fsencode(folder.path)
    for name in ODD_FILES:
        with open(os.path.join(source, name), "wb") as file:
            file.write(b"in " + name)
    folder.fill({"plain": b"plain", "dir/inner": b"inner", "-dir/é": b"e"})
    for name, target in LINKS.items():
        os.symlink(target, folder.path / ("dir/back" if name == "back" else name))
    os.mkfifo(folder.path / "fifo")
    far = projector(folder)
    shown = os.fsencode(far.far)
    for name in ODD_FILES:
        if name.startswith(b"@orbit:"):
            continue
        with open(os.path.join(shown, name), "rb") as file:
            assert file.read() == b"in " + name
    # A name that looks like one of ours is shown by another one, which means it.
    (escaped,) = [name for name in os.listdir(shown) if name.startswith(b"@orbit:")]
    with open(os.path.join(shown, escaped), "rb") as file:
        assert file.read() == b"in @orbit:fake"
    for name, target in LINKS.items():
        path = far.far / ("dir/back" if name == "back" else name)
        assert stat.S_ISLNK(path.lstat().st_mode)
        assert os.readlink(path) == target
    assert (far.far / "beside").read_bytes() == b"plain"
    assert (far.far / "down").read_bytes() == b"inner"
    assert (far.far / "dir/back").read_bytes() == b"plain"
    with pytest.raises(OSError, match="No such file"):
        (far.far / "dangling").read_bytes()
    with pytest.raises(OSError, match="Too many levels"):
        (far.far / "loop").read_bytes()
    # Resolved by the reader's kernel, not by the daemon or the server.
    assert (far.far / "absolute").read_bytes() == Path("/etc/passwd").read_bytes()
    expected = {*os.listdir(source), escaped} - {b"fifo", b"@orbit:fake"}
    assert set(os.listdir(shown)) == expected
    assert far.projection()["left_out"] == 1
    far.daemon.check_clean(data=True)
    far.stop()


def test_a_file_and_a_directory_change_places(site, projector):
    """Again and again, also while they are open."""
    site.fill({"keep": b"k", "thing": content("one", 300_000)})
    far = projector(site, config="", ttl="0s")
    with open(far.far / "thing", "rb") as file:
        assert file.read(100) == content("one", 300_000)[:100]
        for round_ in range(3):
            site.delete("thing")
            inner = content(round_, 1_000 + round_)
            site.put("thing/inner", inner)
            far.call("refresh", path="/far")
            assert (far.far / "thing/inner").read_bytes() == inner
            site.delete("thing/inner")
            if site.url.startswith("sftp"):
                os.rmdir(site.path / "thing")
            site.put("thing", inner)
            far.call("refresh", path="/far")
            far.call("refresh", path="/far")
            assert (far.far / "thing").read_bytes() == inner
    assert sorted(os.listdir(far.far)) == ["keep", "thing"]
    far.daemon.check_clean(data=True)
    far.stop()
