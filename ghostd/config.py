"""Every knob of the daemon: one table, from which checking, printing and the docs are made.

The table is the dataclasses below; a knob is a field whose metadata is a `Knob`. A value comes
from, in this order: the command line, the environment (`ENV`), the TOML file, the default.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from ghostd.config_projections import (
    PROJECTION,
    PROJECTION_DOCS,
    ConfigError,
    ProjectionConfig,
    parse_projections,
    projections_toml,
)
from ghostd.knobs import (
    GIB,
    MIB,
    TIB,
    Knob,
    bool_knob,
    choice_knob,
    float_knob,
    format_size,
    int_knob,
    size_knob,
    text_knob,
)
from syncer.settings import AUDIT_DAYS_MAX, SEMANTIC, SettingsInvalid, classes_of


def _is_root() -> bool:
    return os.geteuid() == 0


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How chunks are kept."""

    compression: str = choice_knob("zstd", "Codec of new chunks.", "zstd", "lz4", "none")
    level: int = int_knob(1, "Effort of zstd; negative is faster, lz4 ignores it.", low=-7, high=19)
    pack_bytes_max: int = size_knob(
        64 * MIB, "A pack is sealed at about this size.", low=MIB, high=GIB
    )
    cache_bytes_max: int = size_knob(64 * MIB, "Memory for decoded chunks.", low=MIB, high=64 * GIB)
    collect_waste_max: float = float_knob(
        0.25, "Collection rewrites packs with a larger share of dead bytes.", low=0.0, high=1.0
    )


@dataclass(frozen=True, slots=True)
class MountConfig:
    """What the kernel is told."""

    allow_other: bool = bool_knob(
        _is_root,
        "Other users may enter the mount (users need user_allow_other in /etc/fuse.conf).",
        default_text="true for root, else false",
    )
    attr_timeout_s: float = float_knob(
        3600.0, "How long the kernel keeps attributes.", low=0.0, high=86_400.0
    )
    entry_timeout_s: float = float_knob(
        3600.0, "How long the kernel keeps names.", low=0.0, high=86_400.0
    )
    read_ahead_kib: int = int_knob(
        4096,
        "The kernel's read-ahead of the mount, in KiB; applied when root.",
        low=128,
        high=65_536,
    )
    max_background: int = int_knob(
        24, "Requests the kernel keeps in flight; each may hold 2 MiB.", low=12, high=1024
    )
    requests_max: int = int_knob(512, "Requests the daemon works on at once.", low=16, high=4096)


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """When written data becomes durable, and how much may wait for it."""

    commit_interval_s: float = float_knob(
        1.0, "Longest time between a change and its commit without fsync.", low=0.05, high=60.0
    )
    dirty_bytes_max: int = size_knob(
        128 * MIB, "Data not stored yet; writers wait beyond it.", low=16 * MIB, high=16 * GIB
    )
    dirty_ops_max: int = int_knob(
        100_000, "Changed names and inodes not committed yet.", low=1_000, high=10_000_000
    )
    reserve_bytes: int = size_knob(
        64 * MIB,
        "Free space in the state folder below which writers get ENOSPC.",
        low=8 * MIB,
        high=TIB,
    )
    copy_interval_s: float = float_knob(
        3600.0,
        "Time between copies of namespace.db into the packs, for --recover.",
        low=10.0,
        high=604_800.0,
    )


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How reads reach ahead and when they give up."""

    read_ahead_bytes: int = size_knob(
        8 * MIB, "Decoded ahead of a sequential reader.", low=0, high=256 * MIB
    )
    deadline_s: float = float_knob(
        30.0,
        "A read that takes longer fails with an error instead of hanging.",
        low=1.0,
        high=600.0,
    )


@dataclass(frozen=True, slots=True)
class RemotesConfig:
    """Projections: their cache, and the patience with remotes. Rates of 0 mean: no limit."""

    cache_bytes_max: int = size_knob(
        10 * GIB,
        "Disk space for fetched blocks; the least used ones go.",
        low=64 * MIB,
        high=64 * TIB,
    )
    cache_free_floor_bytes: int = size_knob(
        GIB, "Free space in the state folder that the cache leaves alone.", low=0, high=TIB
    )
    cache_compression: str = choice_knob("none", "Codec of fetched blocks.", "none", "lz4", "zstd")
    read_ahead_bytes_max: int = size_knob(
        32 * MIB, "Fetched ahead of a sequential reader, at most.", low=0, high=GIB
    )
    request_bytes_max: int = size_knob(
        8 * MIB, "Neighbouring blocks asked for at once, at most.", low=MIB, high=256 * MIB
    )
    connections_max: int = int_knob(16, "Requests to one remote at a time.", low=1, high=1_024)
    listing_deadline_s: float = float_knob(
        30.0, "A first listing that makes no progress for so long fails.", low=1.0, high=600.0
    )
    stale_wait_s: float = float_knob(
        2.0,
        "So long is waited for a listing to be renewed; then the old one is shown.",
        low=0.0,
        high=600.0,
    )
    push_delay_s: float = float_knob(
        5.0,
        "From a change in a projection of mode rw to its push, so that changes go together.",
        low=0.05,
        high=86_400.0,
    )
    attempt_timeout_s: float = float_knob(
        15.0, "One request to a remote is given up after this.", low=0.5, high=600.0
    )
    attempts_max: int = int_knob(12, "Tries of one request.", low=1, high=100)
    backoff_s: float = float_knob(
        0.2, "Before the second try; doubles from one to the next.", low=0.001, high=60.0
    )
    backoff_max_s: float = float_knob(5.0, "Between two tries, at most.", low=0.001, high=600.0)
    breaker_failures: int = int_knob(
        5, "Failures in a row after which a host is left alone.", low=1, high=1_000
    )
    breaker_pause_s: float = float_knob(
        2.0, "How long at first; doubles while it stays silent.", low=0.1, high=600.0
    )
    breaker_pause_max_s: float = float_knob(15.0, "How long at most.", low=0.1, high=3_600.0)
    requests_per_s: float = float_knob(0.0, "Requests to one host.", low=0.0, high=1e6)
    read_bytes_per_s: int = size_knob(0, "Read from one host, bytes a second.", low=0, high=TIB)
    write_bytes_per_s: int = size_knob(0, "Written to one host, bytes a second.", low=0, high=TIB)
    credentials: str = text_knob(
        "", "Credentials file, mode 0600; empty: ~/.config/orbit/credentials.toml."
    )
    access_log: str = text_knob(
        "", "File for a JSON line about each read of a projected file; empty: none."
    )


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """Bounds of what is kept of the namespace in memory."""

    inodes_max: int = int_knob(
        20_000, "Inodes kept beyond those in use.", low=1_000, high=10_000_000
    )
    segments_max: int = int_knob(
        256,
        "Recipe segments (4 MiB of a file each) kept for one open file.",
        low=64,
        high=1_000_000,
    )


@dataclass(frozen=True, slots=True)
class JobsConfig:
    """Jobs of the syncer, which a process of their own carries out."""

    at_once: int = int_knob(2, "Jobs at a time.", low=1, high=64)
    bandwidth: str = text_knob(
        "", "A rate or timetable for all jobs together (docs/sync.md); empty: no limit."
    )
    audit_keep_days: int = int_knob(
        0,
        "Records of the audit trail that are older are removed; 0: none are (docs/jobs.md).",
        low=0,
        high=AUDIT_DAYS_MAX,
    )


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What the daemon tells on stderr."""

    level: str = choice_knob(
        "info", "Least important message that is logged.", "debug", "info", "warning", "error"
    )
    format: str = choice_knob(
        "text", "Lines to read, or JSON lines with a periodic stats event.", "text", "json"
    )
    stats_interval_s: float = float_knob(
        60.0, "Time between stats events (json only).", low=1.0, high=86_400.0
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; immutable while the daemon runs."""

    store: StoreConfig = field(default_factory=StoreConfig)
    mount: MountConfig = field(default_factory=MountConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    remotes: RemotesConfig = field(default_factory=RemotesConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    classes: tuple[tuple[str, str], ...] = ()  # [semantic] in the file: globs and classes
    projections: tuple[ProjectionConfig, ...] = ()  # [[projection]] in the file


SECTIONS: dict[str, type[Any]] = {
    "store": StoreConfig,
    "mount": MountConfig,
    "write": WriteConfig,
    "read": ReadConfig,
    "remotes": RemotesConfig,
    "memory": MemoryConfig,
    "jobs": JobsConfig,
    "telemetry": TelemetryConfig,
}

_SEMANTIC_DOCS = [
    "",
    f"## [{SEMANTIC}]",
    "",
    'What `--smart` is to take files for: `"GLOB" = "CLASS"`, as in `"*.sqlite" = "critical"`;',
    "the first glob that matches wins, then what names and first bytes say. Classes: critical,",
    "high, normal, low. `orbit` reads the same section of `$XDG_CONFIG_HOME/orbit/config.toml`.",
]

# Environment variable -> the knob it sets. ORBIT_CONFIG and ORBIT_SOCKET name places, not knobs.
ENV: dict[str, tuple[str, str]] = {
    "ORBIT_CACHE": ("store", "cache_bytes_max"),
    "ORBIT_LOG": ("telemetry", "level"),
    "ORBIT_TELEMETRY": ("telemetry", "format"),
}


def knobs() -> Iterator[tuple[str, str, Knob, object]]:
    """Yield section, key, knob and default of every knob, in the order of the docs."""
    for section, cls in SECTIONS.items():
        for each in fields(cls):
            default = each.default if each.default is not MISSING else None
            yield section, each.name, each.metadata["knob"], default


def config_path(flag: Path | None, env: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file to read: `--config`, else `$ORBIT_CONFIG`, else none (all defaults)."""
    if flag is not None:
        return flag
    return Path(env["ORBIT_CONFIG"]) if env.get("ORBIT_CONFIG") else None


def load_config(flag: Path | None = None, env: Mapping[str, str] = os.environ) -> Config:
    """Read the file (if one is named) and the environment. Raises ConfigError."""
    path = config_path(flag, env)
    tables = {} if path is None else _read_toml(path)
    projections = parse_projections(tables.pop(PROJECTION, []), str(path))
    classes = _classes(tables.pop(SEMANTIC, {}), str(path))
    chosen = _checked(tables, str(path))
    for name, (section, key) in ENV.items():
        if text := env.get(name, "").strip().lower():
            chosen.setdefault(section, {})[key] = _parsed(section, key, text, f"${name}")
    sections = {section: SECTIONS[section](**keys) for section, keys in chosen.items()}
    made = Config(**sections, classes=classes, projections=projections)
    _check_bandwidth(made.jobs.bandwidth, str(path))
    return made


def _classes(table: object, source: str) -> tuple[tuple[str, str], ...]:
    try:
        return classes_of(table, source)
    except SettingsInvalid as error:
        raise ConfigError(str(error)) from error


def _check_bandwidth(text: str, source: str) -> None:
    if not text:
        return
    from syncer.bandwidth import BadRate, parse_timetable

    try:
        parse_timetable(text)
    except BadRate as error:
        raise ConfigError(f"{source}: [jobs] bandwidth: {error}") from error


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the configuration cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _checked(tables: Mapping[str, object], source: str) -> dict[str, dict[str, object]]:
    chosen: dict[str, dict[str, object]] = {}
    for section, table in tables.items():
        if section not in SECTIONS:
            raise ConfigError(f"{source}: unknown {_unknown_top(section, table)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {section} must be a section, written [{section}]")
        chosen[section] = {
            key: _parsed(section, key, value, source) for key, value in table.items()
        }
    return chosen


def _unknown_top(name: str, value: object) -> str:
    if isinstance(value, dict):
        return f"section [{name}]{_hint(name, SECTIONS)}; there are {', '.join(SECTIONS)}"
    homes = [section for section, key, _, _ in knobs() if key == name]
    return f"key {name}" + (f"; it belongs under [{homes[0]}]" if homes else " outside a section")


def _parsed(section: str, key: str, value: object, source: str) -> object:
    table = {name: knob for part, name, knob, _ in knobs() if part == section}
    if key not in table:
        homes = [part for part, name, _, _ in knobs() if name == key]
        hint = f"; it belongs under [{homes[0]}]" if homes else _hint(key, table)
        raise ConfigError(
            f"{source}: unknown key {key} in [{section}]{hint}; there are {', '.join(table)}"
        )
    try:
        return table[key].parse(value)
    except ValueError as error:
        raise ConfigError(
            f"{source}: [{section}] {key} = {value!r}: {error}; allowed: {table[key].allowed()}"
        ) from error


def _hint(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _toml(knob: Knob, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if knob.kind == "size" and isinstance(value, int):
        return f'"{format_size(value)}"'
    return f"{value:_}" if isinstance(value, int) else f"{value}"


def show_config(config: Config) -> str:
    """Return the configuration as TOML that `load_config` reads back to the same values."""
    lines: list[str] = []
    previous = ""
    for section, key, knob, _ in knobs():
        if section != previous:
            lines += ([""] if lines else []) + [f"[{section}]"]
            previous = section
        lines.append(f"{key} = {_toml(knob, getattr(getattr(config, section), key))}")
    if config.classes:
        lines += ["", f"[{SEMANTIC}]"]
        lines += [f"{json.dumps(glob)} = {json.dumps(name)}" for glob, name in config.classes]
    return "\n".join(lines + projections_toml(config.projections)) + "\n"


def describe_knobs() -> str:
    """Return docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by `make docs` from ghostd/config.py; a test keeps the two in step. -->",
        "",
        "A TOML file, named by `ghostd --config FILE` or `$ORBIT_CONFIG`; without one, everything",
        "has its default. Unknown keys and values out of range are errors. Sizes are whole numbers",
        'of bytes, or text such as `"64 MiB"` or `"64M"`, in powers of 1,024. What is in force is',
        "printed by `ghostd --show-config`.",
        "",
        "| environment variable | meaning |",
        "|---|---|",
        "| `ORBIT_CONFIG` | the configuration file, where no `--config` is given |",
        "| `ORBIT_SOCKET` | the control socket, where no `--socket` is given |",
        *(
            f"| `{name}` | overrides `{key}` in `[{section}]` |"
            for name, (section, key) in ENV.items()
        ),
    ]
    previous = ""
    for section, key, knob, default in knobs():
        if section != previous:
            lines += ["", f"## [{section}]", "", f"{SECTIONS[section].__doc__}", ""]
            lines += ["| key | default | allowed | what it does |", "|---|---|---|---|"]
            previous = section
        shown = knob.default_text or f"`{_toml(knob, default)}`"
        lines.append(f"| `{key}` | {shown} | {knob.allowed()} | {knob.about} |")
    lines += _SEMANTIC_DOCS + PROJECTION_DOCS
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(describe_knobs())
