"""Described options: one description drives validation, error messages, help and the editors' schema.

Every configurable part (connector, format, window, aggregate, sink, transform) has one pydantic model
derived from :class:`Config`. A family of plug-ins ("kafka or files or ...") is a :class:`Registry`;
in a job file one of them is chosen by a mapping with a single key, ``{kafka: {...}}``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

MICROSECONDS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
LONGEST_DURATION = 36_525 * MICROSECONDS["d"]
"""A hundred years: no sum of a few of them and an event time overflows."""

JOB_FILE = "job file"
"""Key of pydantic's validation context that is there when what is validated stands in a job file."""

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)\s*")


def user_error(message: str) -> PydanticCustomError:
    """An error about the user's input that is shown as it stands."""
    return PydanticCustomError("streamgauge", "{message}", {"message": message})


def did_you_mean(word: str, known: list[str]) -> str:
    """`` - did you mean 'x'?`` or nothing.

    >>> did_you_mean("kafak", ["kafka", "files"])
    " - did you mean 'kafka'?"
    """
    close = get_close_matches(word, known, n=1)
    return f" - did you mean '{close[0]}'?" if close else ""


class Config(BaseModel):
    """Base of all described options: unknown keys are errors, values are not changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def parse_duration(value: object) -> int:
    """Microseconds of a duration such as ``250ms``, ``5s``, ``10m``, ``1h30m``, ``1d``.

    >>> parse_duration("1h30m")
    5400000000
    """
    if isinstance(value, str) and value.strip():
        total, position = 0.0, 0
        while position < len(value):
            match = _DURATION.match(value, position)
            if match is None:
                break
            total += float(match[1]) * MICROSECONDS[match[2]]
            position = match.end()
        else:
            return round(total)
    raise user_error(f"{value!r} is not a duration; write a number with a unit (us, ms, s, m, h, d), such as 250ms, 5s or 1h30m")


def format_duration(microseconds: int) -> str:
    """The shortest writing of a duration.

    >>> format_duration(5_400_000_000), format_duration(250_000), format_duration(0)
    ('90m', '250ms', '0s')
    """
    if microseconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms"):
        if microseconds % MICROSECONDS[unit] == 0:
            return f"{microseconds // MICROSECONDS[unit]}{unit}"
    return f"{microseconds}us"


def _duration(value: object, info: ValidationInfo) -> int:
    plain = isinstance(value, int) and not isinstance(value, bool) and (value == 0 or JOB_FILE not in (info.context or {}))
    duration: int = value if plain else parse_duration(value)  # type: ignore[assignment]
    if duration > LONGEST_DURATION:
        raise user_error(f"{value} is longer than a hundred years ({format_duration(LONGEST_DURATION)}), the longest duration there can be")
    return duration


Duration = Annotated[
    int,
    BeforeValidator(_duration),
    WithJsonSchema({"type": "string", "pattern": r"^\s*(\d+(\.\d+)?\s*(us|ms|s|m|h|d)\s*)+$", "examples": ["250ms", "5s", "1h30m"]}),
]
"""Microseconds. Job files write ``5s``; Python programs may also give microseconds as an int."""


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind, by the name that job files use. They are imported when first used.

    ``builtin`` maps a name to ``module:Class``; others come from the entry-point group ``streamgauge.<kind>``.
    Every plug-in class has an attribute ``Options``, a :class:`Config`.
    """

    kind: str
    builtin: Mapping[str, str]

    def names(self) -> list[str]:
        return sorted({*self.builtin, *(e.name for e in self._entry_points())})

    def load(self, name: str) -> Any:
        """The plug-in class. KeyError when there is none of that name."""
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for entry in self._entry_points():
            if entry.name == name:
                return entry.load()
        raise KeyError(name)

    def _entry_points(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=f"streamgauge.{self.kind}")

    def create(self, chosen: Choice) -> Any:
        """The plug-in that a job file chose, made with its validated options."""
        return self.load(chosen.name)(chosen.options)


@dataclass(frozen=True)
class Choice:
    """One plug-in of a registry with its validated options."""

    registry: Registry
    name: str
    options: Any

    def create(self) -> Any:
        return self.registry.create(self)


@dataclass(frozen=True)
class OneOf:
    """Annotation for a field that holds one plug-in: ``Annotated[Choice, OneOf(CONNECTORS)]``.

    Accepts ``{name: {option: value}}``, ``name`` alone (all defaults), and, where the options class
    has an attribute ``short``, ``{name: value}`` for that one option: ``{tumbling: 1h}``.
    """

    registry: Registry

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, value: object, info: ValidationInfo | None = None) -> Choice:
        if isinstance(value, Choice):
            return value
        names = self.registry.names()
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, Mapping) or len(value) != 1:
            found = f"{len(value)} keys" if isinstance(value, Mapping) else repr(value)
            raise user_error(f"expected a mapping with one key out of {', '.join(names)}; found {found}")
        name, options = next(iter(value.items()))
        if name not in names:
            raise user_error(f"unknown {self.registry.kind[:-1]} '{name}'{did_you_mean(str(name), names)}; known: {', '.join(names)}")
        model = self.registry.load(name).Options
        short = getattr(model, "short", None)
        if options is None:
            options = {}
        elif short and not isinstance(options, (Mapping, Config)):
            options = {short: options}
        return Choice(self.registry, name, _nested(model, name, options, info and info.context))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        variants: list[dict[str, Any]] = []
        for name in self.registry.names():
            plugin = self.registry.load(name)
            options = plugin.Options.model_json_schema(ref_template="#/$defs/{model}")
            options.pop("$defs", None)
            short = getattr(plugin.Options, "short", None)
            alternatives = [options, *([options["properties"][short]] if short else [])]
            variants.append({
                "type": "object", "additionalProperties": False, "required": [name], "description": options.get("description", ""),
                "properties": {name: alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}},
            })
            if not options.get("required"):
                variants.append({"const": name})
        return {"oneOf": variants}


def _nested(model: type[Config], name: str, options: object, context: Any) -> Config:
    """Validate the options of a plug-in; its errors keep their path below ``name``."""
    try:
        return model.model_validate(options, context=context)
    except ValidationError as error:
        raise nested_errors(name, error) from None


def nested_errors(name: str, error: ValidationError) -> PydanticCustomError:
    """Carries the errors of a plug-in's options through the validation of what contains it."""
    inner = [((name, *path), message) for path, message in problems(error)]
    summary = "; ".join(f"{'.'.join(str(p) for p in path)}: {message}" for path, message in inner)
    return PydanticCustomError("streamgauge_nested", "{summary}", {"summary": summary, "errors": inner})


def problems(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """All errors of a pydantic ValidationError as (path of keys, message in plain words)."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    for item in error.errors():
        path = tuple(item["loc"])
        if item["type"] == "streamgauge_nested":
            found += [((*path, *inner), message) for inner, message in item["ctx"]["errors"]]
        elif item["type"] == "extra_forbidden":
            found.append((path, "unknown key"))
        elif item["type"] == "missing":
            found.append((path, "missing"))
        else:
            found.append((path, item["msg"] if item["type"] == "streamgauge" else f"{item['msg'][0].lower()}{item['msg'][1:]}; found {item['input']!r}"))
    return found
