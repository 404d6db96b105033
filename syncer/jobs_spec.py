"""A `JobSpec` as JSON: for `jobs.db` and for the control API. Pure."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from syncer.jobs_errors import BadJob
from syncer.options import JobSpec, Options, default_options


def spec_fields(spec: JobSpec) -> dict[str, Any]:
    """Return what JSON can hold; options that have their verb's default are left out."""
    fields = {
        field.name: value
        for field in dataclasses.fields(spec)
        if (value := getattr(spec, field.name)) != field.default and field.name != "options"
    }
    usual = default_options(spec.verb)
    options = {
        field.name: value
        for field in dataclasses.fields(Options)
        if (value := getattr(spec.options, field.name)) != getattr(usual, field.name)
    }
    return {**fields, "options": options} if options else fields


def encode_spec(spec: JobSpec) -> str:
    """Return the JSON of a job."""
    return json.dumps(spec_fields(spec), separators=(",", ":"))


def decode_spec(text: str) -> JobSpec:
    """Return the job of a JSON text. Raises BadJob."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise BadJob(f"the job is not JSON: {error}") from error
    return spec_of(fields)


def spec_of(fields: Any) -> JobSpec:
    """Return the job that `spec_fields` describes.

    Raises BadJob for a field that is unknown, missing or of a wrong type.
    """
    if not isinstance(fields, Mapping):
        raise BadJob("the job is not a JSON object")
    values = dict(fields)
    options = values.pop("options", {})
    if not isinstance(options, Mapping):
        raise BadJob("options: not a JSON object")
    spec = _spec(values)
    known = _known(Options, dict(options), "options.")
    return dataclasses.replace(
        spec, options=dataclasses.replace(default_options(spec.verb), **known)
    )


def _known(kind: type[JobSpec | Options], values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the values as the fields want them. Raises BadJob."""
    types_ = typing.get_type_hints(kind)
    known = {}
    for name, value in values.items():
        if name not in types_ or name == "options":
            raise BadJob(f"{prefix}{name}: there is no such field")
        known[name] = _value(types_[name], value, prefix + name)
    return known


def _spec(values: dict[str, Any]) -> JobSpec:
    """Return the job without its options. Raises BadJob."""
    known = _known(JobSpec, values, "")
    try:
        return JobSpec(**known)
    except TypeError as error:
        missing = [
            field.name
            for field in dataclasses.fields(JobSpec)
            if field.name not in known and field.default is dataclasses.MISSING
        ]
        raise BadJob(f"the job lacks {', '.join(missing)}") from error


def _value(kind: Any, value: Any, name: str) -> Any:
    """Return the value as the type `kind` wants it."""
    origin = typing.get_origin(kind)
    if origin in {types.UnionType, typing.Union}:
        if value is None:
            return None
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
        return _value(kind, value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise BadJob(f"{name}: not a list")
        return tuple(_value(typing.get_args(kind)[0], each, name) for each in value)
    if issubclass(kind, enum.StrEnum):
        try:
            return kind(value)
        except ValueError:
            raise BadJob(f"{name}: {value!r} is none of {', '.join(kind)}") from None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadJob(f"{name}: {value!r} is not of type {kind.__name__}")
    return value
