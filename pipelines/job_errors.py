"""What is wrong with a job file: each mistake with its line and key, in words that say what would be accepted."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from streamgauge.transforms.config import Config, OneOf, did_you_mean, problems

Path = tuple[str | int, ...]
"""Keys and indices from the top of the job file: ``("pipeline", "transforms", 1, "config")``."""


@dataclass(frozen=True)
class Problem:
    """One mistake. ``line`` counts from 1, 0 where there is none; ``path`` as people write it: ``transforms[1].config.by``."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class JobError(ValueError):
    """The job cannot be run as it is written; ``str`` is what a person sees, one line a mistake."""

    def __init__(self, found: str | Sequence[Problem]) -> None:
        self.problems = () if isinstance(found, str) else tuple(sorted(found, key=lambda problem: problem.line))
        super().__init__(found if isinstance(found, str) else "\n".join(map(str, self.problems)))


def written(path: Path) -> str:
    """The path as people write it.

    >>> written(("pipeline", "transforms", 1, "config", "by", 0))
    'transforms[1].config.by[0]'
    """
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in (path[1:] if path[:2] == ("pipeline", "transforms") else path))
    return text.removeprefix(".")


def explain(model: type[Config], options: object, error: ValidationError) -> list[tuple[Path, str]]:
    """The mistakes that ``error`` found in ``options``, each with its path in what was written, and with the keys that would be accepted."""
    found: dict[Path, dict[str, str]] = {}
    for path, message in problems(error):
        keys = path[:-1] if message in ("missing", "unknown key") else path
        place, tag = _in(options, keys)
        if message == "missing":
            message = f"'{path[-1]}' is missing" + _described(_model_at(model, keys), str(path[-1]))
        elif message == "unknown key":
            known = _keys(_model_at(model, keys))
            place, message = (*place, path[-1]), f"unknown key{did_you_mean(str(path[-1]), known)}; " + (f"known: {', '.join(known)}" if known else "there are no options")
        found.setdefault(place, {})[message] = tag
    fitting = [(place, _either([_plain(message, _model_at(model, place)) for message in _fitting(options, place, messages)])) for place, messages in found.items()]
    return [(place, message) for place, message in fitting if message] or [((), str(error))]


def _in(options: object, path: Path) -> tuple[Path, str]:
    """The part of ``path`` that was written, without pydantic's names of a union's members, and the first such name."""
    place: list[str | int] = []
    tag = ""
    value = options
    for key in path:
        if (isinstance(value, Mapping) and key in value) or (isinstance(value, (list, tuple)) and isinstance(key, int) and key < len(value)):
            value = value[key]  # type: ignore[index]
            place.append(key)
        else:
            tag = tag or str(key)
    return tuple(place), tag


def _fitting(options: object, place: Path, messages: dict[str, str]) -> list[str]:
    """Of a union's complaints about one value those of the members that the value was meant for."""
    value: Any = options
    for key in place:
        value = value[key] if not isinstance(value, Mapping) or key in value else None
    return [message for message, tag in messages.items() if not (isinstance(value, Mapping) and tag.startswith("literal["))]


def _either(messages: list[str]) -> str:
    """
    >>> _either(["expected 'final'; found 5", "expected a mapping; found 5"])
    "expected 'final' or a mapping; found 5"
    >>> _either(["'size' is missing: Length.", "'every' is missing: Step."])
    "'size' is missing: Length; 'every' is missing: Step."
    """
    if len(messages) > 1 and all("is missing" in message for message in messages):
        return "; ".join([*(message.removesuffix(".") for message in messages[:-1]), messages[-1]])
    heads, _, tails = zip(*(message.partition("; found ") for message in messages), strict=True) if messages else ((), (), ())
    if len(messages) > 1 and len(set(tails)) == 1 and tails[0] and all(head.startswith("expected ") for head in heads):
        return f"expected {' or '.join(head.removeprefix('expected ') for head in heads)}; found {tails[0]}"
    return " or ".join(messages)


_WORDS = (
    (re.compile(r"input should be a valid (dictionary|mapping)( or instance of \w+)?"), "expected a mapping"),
    (re.compile(r"input should be a valid (tuple|list)"), "expected a list"),
    (re.compile(r"input should be a valid (\w+)(, [\w ]+)?"), r"expected a \1"),
    (re.compile(r"input should be (?=greater|less)"), "expected a number "),
    (re.compile(r"input should be"), "expected"),
    (re.compile(r"string should have at least 1 character"), "expected at least one character"),
    (re.compile(r"(dictionary|list|tuple) should have at least 1 item after validation, not 0"), "expected at least one"),
)


def _plain(message: str, model: type[Config] | None = None) -> str:
    """Pydantic's words in ours. ``model``: what stands there, where that is a mapping of options.

    >>> _plain("input should be a valid string; found 5")
    'expected a string; found 5'
    """
    for pattern, words in _WORDS:
        message = pattern.sub(words, message, count=1)
    if model is not None and message.startswith("expected a mapping;"):
        message = message.replace("a mapping", _mapping(model), 1)
    return re.sub(r"\bexpected a (?=[aeio])", "expected an ", message)


def _mapping(model: type[Config]) -> str:
    """What a mapping of its options looks like: ``a mapping such as {of: ..., q: ...}``."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    shown = [key for key, field in fields.items() if field.is_required()] or list(fields)
    return f"a mapping such as {{{', '.join(f'{key}: ...' for key in shown)}}}" if shown else "nothing more: it has no options"


def _described(model: type[Config] | None, key: str) -> str:
    if model is None:
        return ""
    for name, field in model.model_fields.items():
        if key in (name, field.alias) and field.description:
            return f": {field.description}"
    return ""


def _keys(model: type[Config] | None) -> list[str]:
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[Config] | None, path: Path) -> type[Config] | None:
    """The model whose keys stand at ``path`` below one of ``model``."""
    if not path:
        return model
    if model is None:
        return None
    for name, field in model.model_fields.items():
        if path[0] in (name, field.alias):
            return _below((field.annotation, *field.metadata), path[1:])
    return None


def _below(hints: tuple[Any, ...], path: Path) -> type[Config] | None:
    """The model at ``path`` below a value with these type hints."""
    for hint in _members(hints):
        if isinstance(hint, OneOf) and path and path[0] in hint.registry.names():
            return _model_at(hint.registry.load(str(path[0])).Options, path[1:])
        if isinstance(hint, type) and issubclass(hint, Config):
            # A union's member may stand in pydantic's path.
            rest = path[1:] if path and path[0] == hint.__name__ else path
            if (model := _model_at(hint, rest)) is not None:
                return model
        if typing.get_origin(hint) is dict and path:
            return _below((typing.get_args(hint)[1],), path[1:])
    return None


def _members(hints: tuple[Any, ...]) -> Iterator[Any]:
    """Type hints without Annotated, Optional and unions around them."""
    for hint in hints:
        origin = typing.get_origin(hint)
        if origin is None or origin is dict or isinstance(hint, OneOf):
            yield hint
        else:
            yield from _members(typing.get_args(hint))
