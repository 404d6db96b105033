"""The configuration: values arrive, mistakes are named, the docs say what the code does."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostd.config import (
    ENV,
    SECTIONS,
    Config,
    ConfigError,
    describe_knobs,
    knobs,
    load_config,
    show_config,
)
from ghostd.knobs import MIB, format_size, parse_size

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "orbit.toml"

    def loader(text: str, **env: str) -> Config:
        path.write_text(text)
        return load_config(path, env)

    loader.path = path
    return loader


def test_without_a_file_everything_has_its_default():
    assert load_config(None, {}) == Config()


def test_defaults_are_within_their_own_limits():
    config = Config()
    for section, key, knob, _ in knobs():
        value = getattr(getattr(config, section), key)
        assert knob.parse(value) == value, (section, key)


def test_every_section_is_reachable_from_config():
    assert {name: type(getattr(Config(), name)) for name in SECTIONS} == SECTIONS


def test_values_from_a_file(load):
    config = load(
        """
        [store]
        compression = "lz4"
        pack_bytes_max = "32 MiB"
        cache_bytes_max = 1048576
        [write]
        commit_interval_s = 2
        [mount]
        allow_other = false
        """
    )
    assert config.store.compression == "lz4"
    assert config.store.pack_bytes_max == 32 * MIB
    assert config.store.cache_bytes_max == MIB
    assert config.write.commit_interval_s == 2.0
    assert isinstance(config.write.commit_interval_s, float)
    assert config.mount.allow_other is False
    assert config.read == Config().read


def test_the_environment_wins_over_the_file(load):
    config = load(
        '[store]\ncache_bytes_max = "1M"\n[telemetry]\nlevel = "error"\n',
        ORBIT_CACHE="256M",
        ORBIT_LOG="DEBUG",
        ORBIT_TELEMETRY="json",
    )
    assert config.store.cache_bytes_max == 256 * MIB
    assert config.telemetry.level == "debug"
    assert config.telemetry.format == "json"


def test_orbit_config_names_the_file_and_the_flag_wins(tmp_path):
    named, flagged = tmp_path / "a.toml", tmp_path / "b.toml"
    named.write_text("[store]\nlevel = 3\n")
    flagged.write_text("[store]\nlevel = 5\n")
    assert load_config(None, {"ORBIT_CONFIG": str(named)}).store.level == 3
    assert load_config(flagged, {"ORBIT_CONFIG": str(named)}).store.level == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[store]\ncompresion = 'zstd'", ["[store]", "compresion", "did you mean compression?"]),
        ("[stor]\nlevel = 1", ["[stor]", "did you mean store?", "telemetry"]),
        ("[store]\ncommit_interval_s = 1", ["commit_interval_s", "belongs under [write]"]),
        ("level = 3", ["key level", "belongs under [store]"]),
        ("nonsense = 3", ["key nonsense", "outside a section"]),
        ("store = 3", ["store", "written [store]"]),
        ("[store]\ncompression = 'gzip'", ["'gzip'", '"zstd" or "lz4" or "none"']),
        ("[store]\nlevel = 99", ["level = 99", "out of range", "from -7 to 19"]),
        ("[store]\nlevel = true", ["level = True", "wrong type", "whole number"]),
        ("[store]\nlevel = 1.0", ["wrong type"]),
        ("[store]\npack_bytes_max = '64 MB'", ["'64 MB'", "64 MiB", "1 MiB to 1 GiB"]),
        ("[store]\npack_bytes_max = '2T'", ["out of range", "1 MiB to 1 GiB"]),
        ("[write]\ncommit_interval_s = nan", ["out of range", "from 0.05 to 60"]),
        ("[write]\ncommit_interval_s = inf", ["out of range"]),
        ("[mount]\nallow_other = 1", ["wrong type", "true or false"]),
        ("[store\n", ["not valid TOML", "line 1"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(load, text, words):
    with pytest.raises(ConfigError) as caught:
        load(text)
    for word in [str(load.path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("ORBIT_CACHE", "many"), ("ORBIT_LOG", "loud"), ("ORBIT_TELEMETRY", "xml")]
)
def test_a_bad_variable_is_named(name, value):
    with pytest.raises(ConfigError) as caught:
        load_config(None, {name: value})
    assert f"${name}" in str(caught.value)
    assert value in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: .*No such file"):
        load_config(tmp_path / "gone.toml", {})


def test_a_file_that_is_not_text_is_an_error(load):
    load.path.write_bytes(b"[store]\n\xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 8\)"):
        load_config(load.path, {})


def test_what_is_printed_reads_back_the_same(load):
    config = load("[store]\npack_bytes_max = 1048577\nlevel = -3\n[read]\nread_ahead_bytes = 0\n")
    assert load(show_config(config)) == config
    assert set(tomllib.loads(show_config(config))) == set(SECTIONS)


def test_the_docs_are_in_step():
    assert DOCS.read_text() == describe_knobs(), "run `make docs`"


def test_every_variable_sets_a_knob_that_exists():
    known = {(section, key) for section, key, _, _ in knobs()}
    assert set(ENV.values()) <= known


@given(st.integers(min_value=0, max_value=2**50))
def test_sizes_read_back_as_written(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 * MIB), ("64 mib", 64 * MIB), ("1.5k", 1536), ("12", 12), ("2 G", 2048 * MIB)],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "64 MB", "1e3", "0x10", "1 2", "9kk"])
def test_what_is_not_a_size(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
