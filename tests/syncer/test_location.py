"""What SRC and DST mean, and which trees they open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from syncer.context import Context, _Shared
from syncer.ends import open_ends, open_tree
from syncer.local_tree import LocalTree
from syncer.location import Location, LocationKind, absolute, parse, split
from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import BadUrl, Missing, Unsupported
from syncer.remotes.held import Held
from syncer.tree import ROOT, Metadata
from tests.remotes.kinds import machinery
from tests.servers.openssh import openssh

HOME = b"/home/anna"


@pytest.mark.parametrize(
    ("text", "path", "slash"),
    [
        ("data", b"/home/anna/data", False),
        ("./data/", b"/home/anna/data", True),
        ("/srv//data/./x", b"/srv/data/x", False),
        ("../b", b"/home/anna/../b", False),  # where a symlink may have led
        ("..", b"/home/anna/..", True),
        (".", b"/home/anna", True),
        ("/", b"/", True),
        ("//host/share", b"/host/share", False),
        ("./s3:/bucket", b"/home/anna/s3:/bucket", False),
        ("a/b:c", b"/home/anna/a/b:c", False),
        ("/x:y", b"/x:y", False),
        ("-dash", b"/home/anna/-dash", False),
        ("file:///srv/a%20b/", b"/srv/a b", True),
        ("file://localhost/srv", b"/srv", False),
        ("caf\udce9", b"/home/anna/caf\xe9", False),
        ("new\nline", b"/home/anna/new\nline", False),
    ],
)
def test_local_paths(text: str, path: bytes, slash: bool) -> None:
    found = parse(text, HOME)
    assert (found.kind, found.path, found.slash) == (LocationKind.LOCAL, path, slash)


@pytest.mark.parametrize("url", ["s3://bucket/x y", "sftp://anna@nas:2222/srv/", "smb://nas/d"])
def test_urls_stay_as_they_were_written(url: str) -> None:
    found = parse(url, HOME)
    assert (found.kind, found.place, str(found)) == (LocationKind.REMOTE, url, url)


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("snapshot:nightly", "nightly", b""),
        ("snapshot:latest:tag/a/b", "latest:tag", b"a/b"),
        ("snapshot:n/./a//b/", "n", b"a/b"),
    ],
)
def test_snapshots(text: str, name: str, path: bytes) -> None:
    found = parse(text, HOME)
    assert found == Location(LocationKind.SNAPSHOT, path, snapshot=name, slash=text.endswith("/"))


@pytest.mark.parametrize(
    ("text", "place", "name", "path"),
    [
        ("repo:backup", "/home/anna/backup", "", b""),
        ("repo:/mnt/b/#latest/etc", "/mnt/b", "latest", b"etc"),
        ("repo:s3://bucket/r#n/a#b", "s3://bucket/r", "n", b"a#b"),
        ("repo:sftp://nas/r%23x#n", "sftp://nas/r%23x", "n", b""),
    ],
)
def test_repositories(text: str, place: str, name: str, path: bytes) -> None:
    found = parse(text, HOME)
    assert (found.kind, found.place, found.snapshot, found.path) == (
        LocationKind.REPOSITORY,
        place,
        name,
        path,
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "a path or a URL"),
        ("s3:/bucket/x", "Write s3://bucket/x"),
        ("s3:bucket/x", "Write s3://bucket/x"),
        ("S3:bucket", r"\./S3:bucket"),
        ("anna@nas:/data", "Write sftp://anna@nas/data"),
        ("nas:/data", "Write sftp://nas/data"),
        ("a:b", r"write \./a:b"),
        ("ftp://host/x", "unknown scheme 'ftp'"),
        ("file://other/x", "file:///path"),
        ("sftp://anna:secret@nas/x", "password"),
        ("snapshot:", "which snapshot"),
        ("snapshot:/x", "which snapshot"),
        ("snapshot:n/../x", r"no '\.\.'"),
        ("repo:", "no repository"),
        ("repo:/r#", "which snapshot"),
        ("repo:snapshot:x", "a local folder or a URL"),
        ("a\0b", "NUL"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(BadUrl, match=hint) as caught:
        parse(text, HOME)
    assert "secret" not in str(caught.value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_absolute_locations_mean_the_same_anywhere(text: str) -> None:
    try:
        here = parse(text, HOME)
    except BadUrl:
        return
    written = absolute(text, HOME)
    assert parse(written, b"/elsewhere") == here
    assert absolute(written, b"/elsewhere") == written


def test_split() -> None:
    folder, name = split(parse("s3://bucket/a/b%20c", HOME))
    assert (folder.place, name) == ("s3://bucket/a/", b"b c")
    folder, name = split(parse("/x", HOME))
    assert (folder.path, name) == (b"/", b"x")
    folder, name = split(parse("repo:/r#n/a/b", HOME))
    assert (str(folder), name) == ("repo:/r#n/a/", b"b")
    for root in ("/", "s3://bucket", "s3://bucket/", "snapshot:n"):
        with pytest.raises(BadUrl):
            split(parse(root, HOME))


# ---- opening ----


@pytest.fixture
def context(tmp_path: Path):
    context = Context(state=tmp_path / "state", cache=tmp_path / "cache")
    yield context
    context.close()


def at(path: Path, slash: str = "") -> Location:
    return parse(f"{path}{slash}", b"/")


def root_of(tree: object) -> bytes:
    assert isinstance(tree, LocalTree)
    return tree.root.root


async def test_a_directory_is_mapped_onto_its_destination(tmp_path: Path, context: Context) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    for there in (False, True):
        for slash in ("", "/"):
            async with open_ends(at(source, slash), at(target, slash), context) as ends:
                assert root_of(ends.source) == os.fsencode(source)
                assert root_of(ends.destination) == os.fsencode(target)
                assert ends.file is None
        assert target.exists() == there
        target.mkdir(exist_ok=True)


async def test_a_file_goes_into_a_directory_or_gets_a_name(
    tmp_path: Path, context: Context
) -> None:
    source, folder = tmp_path / "a", tmp_path / "there"
    source.write_bytes(b"x")
    folder.mkdir()
    cases = [
        (at(folder), folder, b"a"),
        (at(tmp_path / "new", "/"), tmp_path / "new", b"a"),
        (at(tmp_path / "new"), tmp_path, b"new"),
        (at(source), tmp_path, b"a"),
    ]
    for destination, root, name in cases:
        async with open_ends(at(source), destination, context) as ends:
            assert root_of(ends.source) == os.fsencode(tmp_path)
            assert root_of(ends.destination) == os.fsencode(root)
            assert (ends.file, ends.file_as) == (b"a", name)
    assert not (tmp_path / "new").exists()


async def test_ends_that_do_not_fit(tmp_path: Path, context: Context) -> None:
    file, folder = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"x")
    folder.mkdir()
    cases = [
        (at(tmp_path / "gone"), at(folder), Missing, "no such file"),
        (at(folder), at(file), Unsupported, "is a file"),
        (at(file, "/"), at(folder), Unsupported, "without the slash"),
        (parse("repo:/r", b"/"), at(folder), Unsupported, "#SNAPSHOT"),
        (parse("snapshot:x", b"/"), at(folder), Unsupported, "in which repository"),
    ]
    for source, destination, error, says in cases:
        with pytest.raises(error, match=says):
            async with open_ends(source, destination, context):
                raise AssertionError


async def test_folders_of_a_server_are_made_when_they_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    bridge = Bridge()
    bridge.start()
    with openssh() as sshd:
        shared = _Shared(machinery=machinery(bridge, sshd.home))
        context = Context(state=tmp_path / "state", cache=tmp_path / "cache", _shared=shared)

        def there(path: str) -> Location:
            return parse(f"{sshd.url(tmp_path)}/{path}", b"/")

        async with open_ends(at(tmp_path / "folder"), there("new/one"), context) as ends:
            assert not (tmp_path / "new").exists()
            await ends.destination.mkdir(ROOT, Metadata())
        for written, name in (("new/two/", b"a"), ("new/three/b", b"b")):
            async with open_ends(at(tmp_path / "a"), there(written), context) as ends:
                assert (ends.file, ends.file_as) == (b"a", name)
                await ends.destination.write(ends.file_as, Held(b"y"), Metadata())
    bridge.stop()
    assert os.listdir(tmp_path / "new" / "one") == []
    assert os.listdir(tmp_path / "new" / "two") == ["a"]
    assert os.listdir(tmp_path / "new" / "three") == ["b"]


async def test_errors_of_the_body_come_out_as_they_are(tmp_path: Path, context: Context) -> None:
    with pytest.raises(KeyError):  # noqa: PT012
        async with open_tree(at(tmp_path), context):
            await trio.lowlevel.checkpoint()
            raise KeyError
