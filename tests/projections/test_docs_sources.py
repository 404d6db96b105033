"""docs/sources says what the drivers do: examples, options, messages, variables.

The drivers themselves are asked, none of them asks a server.
"""

from __future__ import annotations

import ast
import errno
import functools
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.projections import project
from ghostd.config_projections import parse_projections
from ghostd.projection import OWN_OPTIONS
from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import BadUrl
from syncer.remotes.registry import FSSPEC, MODULES, open_remote
from syncer.remotes.url import RemoteUrl
from tests.remotes.kinds import machinery

TOP = Path(__file__).parents[2]
INDEX = TOP / "docs/sources/README.md"
SOURCES = sorted(path for path in INDEX.parent.glob("*.md") if path != INDEX)
PAGES = [*SOURCES, INDEX, TOP / "README.md"]
# `file:` stands on the same modules as local folders.
CODE = [path for part in ("remotes/", "local_") for path in TOP.glob(f"syncer/{part}*.py")]
CODE += TOP.glob("ghostd/*.py")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Example:
    """What an example would attach."""

    url: str
    options: Mapping[str, str]  # of the remote

    @property
    def scheme(self) -> str:
        scheme = RemoteUrl.parse(self.url).scheme
        return "fsspec" if scheme.startswith(FSSPEC) else scheme


@dataclass(frozen=True, slots=True)
class Page:
    """A page, taken apart."""

    path: Path
    text: str

    @property
    def schemes(self) -> list[str]:
        """Which its title names."""
        return self.text.partition(":")[0].removeprefix("# ").split(", ")

    def blocks(self, language: str) -> list[str]:
        return [body for found, body in _FENCE.findall(self.text) if found == language]

    @property
    def spans(self) -> list[str]:
        return _SPAN.findall(_FENCE.sub("", self.text))

    def rows(self, head: str) -> Iterator[str]:
        """The first cells of all tables whose first column has this name."""
        inside = False
        for line in _FENCE.sub("", self.text).splitlines():
            if not line.startswith("|"):
                inside = False
                continue
            cell = line.split("|")[1].strip()
            if inside and not cell.startswith("---"):
                yield cell.strip("`")
            inside = inside or cell == head

    @property
    def examples(self) -> list[Example]:
        """Both forms. Raises what the command line and the configuration file do."""
        found = []
        for line in "".join(self.blocks("sh")).splitlines():
            words = shlex.split(line.replace("$PWD", "/checkout"), comments=True)
            if words[:2] == ["orbit-ctl", "project"]:
                given = project.make_context("project", words[2:]).params
                pairs = [option.partition("=") for option in given["options"]]
                found.append((given["url"], {name: value for name, _, value in pairs}))
        for block in self.blocks("toml"):
            tables = tomllib.loads(block).get("projection")
            if tables is not None:
                parsed = parse_projections(tables, self.path.name)
                found += [(each.url, each.options) for each in parsed]
        return [
            Example(url, {n: v for n, v in options.items() if n not in OWN_OPTIONS})
            for url, options in found
            if not url.startswith("snapshot:")  # in the store: no source has a page for it
        ]

    @property
    def logins(self) -> list[str]:
        """Examples of the credentials file."""
        return [block for block in self.blocks("toml") if "[[projection]]" not in block]


def read_page(path: Path) -> Page:
    return Page(path, path.read_text())


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    bridge.start()
    yield bridge
    bridge.stop()


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def source(request: pytest.FixtureRequest) -> Page:
    """The page of each source."""
    return read_page(request.param)


@pytest.fixture(params=PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def page(request: pytest.FixtureRequest) -> Page:
    """Every page with examples."""
    return read_page(request.param)


async def known_options(source: Page, bridge: Bridge, home: Path) -> set[str]:
    """What the drivers of the page's examples answer to an option that nobody knows."""
    known = set()
    for example in source.examples:
        with pytest.raises(BadUrl, match="unknown option 'nonsense'") as caught:
            await open_remote(example.url, {"nonsense": "1"}, machinery(bridge, home))
        names = str(caught.value).rpartition(" knows: ")[2]
        known |= set() if names == "none" else set(names.split(", "))
    return known


@functools.cache
def said_by_the_code() -> tuple[str, ...]:
    """Every text in the code, with `\\0` where a value stands."""
    found = [os.strerror(errno.EACCES)]
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_said(text: str) -> bool:
    return any(text in each for each in said_by_the_code())


def test_every_scheme_has_a_page_and_every_page_is_in_the_index() -> None:
    pages = [read_page(path) for path in SOURCES]
    schemes = [scheme for page in pages for scheme in page.schemes]
    assert sorted(schemes) == sorted([*MODULES, "fsspec"])
    linked = set(re.findall(r"\]\((\w+)\.md\)", INDEX.read_text()))
    assert linked == {path.stem for path in SOURCES}


def test_a_page_shows_its_schemes_in_both_forms(source: Page) -> None:
    assert {example.scheme for example in source.examples} == set(source.schemes)
    assert any("orbit-ctl project " in block for block in source.blocks("sh"))
    assert any("[[projection]]" in block for block in source.blocks("toml"))


async def test_the_options_of_a_page_are_those_of_the_driver(
    source: Page, bridge: Bridge, tmp_path: Path
) -> None:
    known = await known_options(source, bridge, tmp_path)
    told = list(source.rows("option"))
    if source.schemes == ["fsspec"]:  # whose options are those of libraries: some are told
        assert told
        assert set(told) <= known
    else:
        assert sorted(told) == sorted(known)
    named = {span.partition("=")[0] for span in source.spans if re.fullmatch(r"[a-z_]+=\S+", span)}
    assert named <= known | set(OWN_OPTIONS)


def test_the_index_tells_the_options_that_all_have() -> None:
    assert sorted(read_page(INDEX).rows("option")) == sorted(OWN_OPTIONS)


async def test_examples_open(page: Page, bridge: Bridge, tmp_path: Path) -> None:
    assert page.examples
    (tmp_path / ".aws").mkdir()
    for url, options in [(each.url, each.options) for each in page.examples]:
        profile = options.get("profile", "default")
        (tmp_path / ".aws/config").write_text(f"[profile {profile}]\nregion = x\n")
        remote = await open_remote(url, options, machinery(bridge, tmp_path))
        assert remote.url == url
        await remote.close()


def test_logins_are_for_the_examples_beside_them(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    for block in page.logins:
        path.write_text(block)
        path.chmod(0o600)
        credentials = Credentials(path)
        found = [credentials.find(RemoteUrl.parse(example.url)) for example in page.examples]
        assert any(found), block
        keys = {key for section in tomllib.loads(block).values() for key in section}
        assert all(is_said(key) for key in keys)


def test_messages_are_those_of_the_code(page: Page) -> None:
    told = list(page.rows("says"))
    assert told or page.path == TOP / "README.md"
    fragments = {part.strip() for message in told for part in message.split("…")} - {""}
    assert {fragment for fragment in fragments if not is_said(fragment)} == set()


def test_variables_are_those_of_the_code() -> None:
    spans = {span for path in [*SOURCES, INDEX] for span in read_page(path).spans}
    named = {span for span in spans if re.fullmatch(r"[A-Z]+_[A-Z0-9_]+", span)}
    assert len(named) > 20
    # The three of AWS are put together from the keys of its files.
    assert {
        name
        for name in named
        if not is_said(name) and not is_said(name.removeprefix("AWS_").lower())
    } == set()


def test_links_lead_somewhere(page: Page) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(?:#[\w-]+)?\)", page.text)
    assert targets
    assert [t for t in targets if t and not (page.path.parent / t).exists()] == []
