"""The user's settings, and those of the daemon that are the same."""

import os
import subprocess
import sys

import pytest

from ghostd.config import ConfigError, load_config, show_config
from syncer.settings import Settings, SettingsInvalid, load_settings, settings_path

GOOD = '[semantic]\n"*.sqlite" = "critical"\n"cache/**" = "low"\n'


def test_where_they_are():
    assert str(settings_path({"XDG_CONFIG_HOME": "/c"})) == "/c/orbit/config.toml"
    assert str(settings_path({"HOME": "/h"})) == "/h/.config/orbit/config.toml"


def test_without_a_file_there_are_defaults(tmp_path):
    assert load_settings(tmp_path / "none") == Settings()


def test_days_of_the_audit_trail(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[jobs]\naudit_keep_days = 90\n")
    assert load_settings(path) == Settings(audit_keep_days=90)
    assert load_config(path, {}).jobs.audit_keep_days == 90


def test_classes_keep_their_order(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    classes = (("*.sqlite", "critical"), ("cache/**", "low"))
    assert load_settings(path).classes == classes
    config = load_config(path, {})
    assert config.classes == classes
    path.write_text(show_config(config))
    assert load_config(path, {}) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[semantic", "table declaration"),
        ('[semantic]\n"*.a" = "urgent"', "no class"),
        ('[semantic]\n"a/" = "low"', "those of files"),
        ("semantic = 3", "must be a section"),
        ("[sematic]", "there are [semantic] and [jobs]"),
        ("[jobs]\nat_once = 3", "audit_keep_days only"),
        ("[jobs]\naudit_keep_days = -1", "from 0 to"),
        ("[jobs]\naudit_keep_days = true", "from 0 to"),
        ("\xff", "utf-8"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text, said):
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsInvalid, match=str(path)) as error:
        load_settings(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text", ['[semantic]\n"*.a" = "urgent"', '[jobs]\nbandwidth = "fast"', "[jobs]\nat_once = 0"]
)
def test_the_daemon_refuses_it_too(tmp_path, text):
    path = tmp_path / "orbit.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path, {})


def test_a_worker_with_broken_settings_says_which_line(tmp_path):
    path = tmp_path / "orbit" / "config.toml"
    path.parent.mkdir()
    path.write_text('[semantic]\n"*.a" = "low"\n"*.b" = \n')
    ran = subprocess.run(
        [sys.executable, "-m", "syncer.worker", "--state", str(tmp_path / "state")],
        env=os.environ | {"XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    (said,) = ran.stderr.splitlines()
    assert said.startswith(f"no jobs are carried out: {path}: ")
    assert "line 3" in said
