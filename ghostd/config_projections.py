"""Projections in the configuration file: `[[projection]]`, one table for each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from blockstore.errors import OrbitError
from ghostd.knobs import format_size, parse_size

PROJECTION: Final = "projection"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_KEYS = ("url", "path", "mode", "ttl", "block_size", "options")

PROJECTION_DOCS: Final = [
    "",
    "## [[projection]]",
    "",
    "A remote tree to be attached when the daemon starts; one table for each. One that is taken",
    "out of the file is detached at the next start, unless it has local changes.",
    "",
    "| key | default | what it is |",
    "|---|---|---|",
    "| `url` | | what is projected; never with a password |",
    "| `path` | | where, from the root of the mount: `/photos` |",
    '| `mode` | `"ro"` | `"ro"`, `"cow"` (changes stay here) or `"rw"` (changes are pushed) |',
    '| `ttl` | `"60s"` | how old a listing may be: `"10s"`, `"5m"`, `"1h"`, `"7d"` |',
    '| `block_size` | `"1 MiB"` | what is fetched at a time: 128 KiB to 1 MiB |',
    "| `options` | | a table of the source's options, as text |",
]


class ConfigError(OrbitError):
    """A configuration that cannot be used: where, which key, and what is allowed there."""


@dataclass(frozen=True, slots=True)
class ProjectionConfig:
    """One `[[projection]]`."""

    url: str
    path: str
    mode: str = "ro"
    ttl_s: float = 60.0
    block_bytes: int = 1 << 20
    options: dict[str, str] = field(default_factory=dict)


def parse_duration(text: str) -> float:
    """Return the seconds that "60s", "5m", "1.5h" or "60" mean. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration like 60s, 5m, 1h or 7d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def parse_projections(tables: object, source: str) -> tuple[ProjectionConfig, ...]:
    """Return the projections of the file. Raises ConfigError."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{source}: projections are written [[projection]], one table for each")
    found = tuple(
        _parsed(table, f"{source}: [[projection]] {n}") for n, table in enumerate(tables, 1)
    )
    paths = [each.path for each in found]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{source}: two projections have the path {path}")
    return found


def _parsed(table: dict[str, object], where: str) -> ProjectionConfig:
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key}; there are {', '.join(_KEYS)}")
    options = table.get("options", {})
    texts = {key: value for key, value in table.items() if key != "options"}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {key} = {value!r}: text in quotes is wanted")
    if not isinstance(options, dict) or not all(isinstance(v, str) for v in options.values()):
        raise ConfigError(
            f'{where}: options must be a table of texts: options = {{ key = "value" }}'
        )
    for key in ("url", "path"):
        if not texts.get(key):
            raise ConfigError(f"{where}: {key} is missing")
    try:
        return ProjectionConfig(
            url=str(texts["url"]),
            path="/" + str(texts["path"]).strip("/"),
            mode=str(texts.get("mode", "ro")),
            ttl_s=parse_duration(str(texts.get("ttl", "60s"))),
            block_bytes=parse_size(str(texts.get("block_size", "1 MiB"))),
            options=dict(options),
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def projections_toml(projections: Sequence[ProjectionConfig]) -> list[str]:
    """Return lines that `parse_projections` reads back to the same values."""
    lines: list[str] = []
    for each in projections:
        lines += ["", f"[[{PROJECTION}]]"]
        lines += [f"url = {json.dumps(each.url)}", f"path = {json.dumps(each.path)}"]
        lines += [f'mode = "{each.mode}"', f'ttl = "{each.ttl_s:g}s"']
        lines.append(f'block_size = "{format_size(each.block_bytes)}"')
        if each.options:
            pairs = (f"{json.dumps(k)} = {json.dumps(v)}" for k, v in each.options.items())
            lines.append(f"options = {{ {', '.join(pairs)} }}")
    return lines
