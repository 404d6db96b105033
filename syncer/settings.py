"""The user's own settings: `$XDG_CONFIG_HOME/orbit/config.toml`, where there is one.

The daemon has the same sections in its own file (docs/configuration.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockstore.errors import OrbitError

SEMANTIC: Final = "semantic"
AUDIT_DAYS_MAX: Final = 36_500
_JOBS: Final = "jobs"
_KEEP_DAYS: Final = "audit_keep_days"


class SettingsInvalid(OrbitError):
    """A file of settings that cannot be used; the message says which line, and what would do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user has decided for all jobs."""

    classes: tuple[tuple[str, str], ...] = ()  # globs and the semantic class of what they match
    audit_keep_days: int = 0  # see Context


def settings_path(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME/orbit/config.toml`."""
    if chosen := environment.get("XDG_CONFIG_HOME"):
        return Path(chosen, "orbit", "config.toml")
    return Path(environment.get("HOME") or "~", ".config", "orbit", "config.toml").expanduser()


def load_settings(path: Path | None = None) -> Settings:
    """Read the file; without one, everything has its default. Blocks. Raises SettingsInvalid."""
    path = settings_path() if path is None else path
    try:
        text = path.read_text("utf-8")
        import tomllib  # most users have no such file

        tables = tomllib.loads(text)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise SettingsInvalid(f"{path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise SettingsInvalid(f"{path}: {error}") from error
    classes = classes_of(tables.pop(SEMANTIC, {}), str(path))
    keep_days = _keep_days(tables.pop(_JOBS, {}), str(path))
    if tables:
        there = f"[{SEMANTIC}] and [{_JOBS}]"
        raise SettingsInvalid(f"{path}: unknown {', '.join(tables)}; there are {there}")
    return Settings(classes, keep_days)


def _keep_days(table: object, source: str) -> int:
    """What `[jobs]` says; the daemon's has more. Raises SettingsInvalid."""
    if not isinstance(table, dict) or table.keys() - {_KEEP_DAYS}:
        raise SettingsInvalid(f"{source}: in [{_JOBS}] there is {_KEEP_DAYS} only")
    days = table.get(_KEEP_DAYS, 0)
    if type(days) is not int or not 0 <= days <= AUDIT_DAYS_MAX:
        raise SettingsInvalid(f"{source}: {_KEEP_DAYS} is a number from 0 to {AUDIT_DAYS_MAX}")
    return days


def classes_of(table: object, source: str) -> tuple[tuple[str, str], ...]:
    """What `[semantic]` says: `"GLOB" = "CLASS"`, the first that matches wins.

    Raises SettingsInvalid.
    """
    if not isinstance(table, dict):
        raise SettingsInvalid(f"{source}: {SEMANTIC} must be a section, written [{SEMANTIC}]")
    found = tuple((str(glob), str(name)) for glob, name in table.items())
    if found:
        from syncer.filter_patterns import FilterError
        from syncer.semantic import Classes

        try:
            Classes(found)
        except FilterError as error:
            raise SettingsInvalid(f"{source}: [{SEMANTIC}] {error}") from error
    return found
