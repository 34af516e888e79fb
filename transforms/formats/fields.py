"""Field types of a job file's ``schema:``, ``{name: type}`` with types as Arrow names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, WithJsonSchema

from streamgauge.transforms.config import did_you_mean, user_error

TIMESTAMP = pa.timestamp("us", tz="UTC")


class Kind(IntEnum):
    """How a value is read; the kernels branch on it."""

    BOOL = 0
    INTEGER = 1
    DOUBLE = 2
    FLOAT = 3
    TIMESTAMP = 4
    DATE = 5
    STRING = 6
    NESTED = 7
    """A list or a struct: no kernel reads it."""


_KINDS: dict[str, tuple[Kind, pa.DataType]] = {
    "string": (Kind.STRING, pa.string()),
    "bool": (Kind.BOOL, pa.bool_()),
    **{f"{sign}int{bits}": (Kind.INTEGER, getattr(pa, f"{sign}int{bits}")()) for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float": (Kind.FLOAT, pa.float32()),
    "float32": (Kind.FLOAT, pa.float32()),
    "double": (Kind.DOUBLE, pa.float64()),
    "float64": (Kind.DOUBLE, pa.float64()),
    "date": (Kind.DATE, pa.date32()),
    "date32": (Kind.DATE, pa.date32()),
    "timestamp": (Kind.TIMESTAMP, TIMESTAMP),
}
_UNIT_EXPONENT = {"s": 6, "ms": 3, "us": 0, "ns": -3}
_TIMESTAMP_TYPE = re.compile(r"timestamp\[(s|ms|us|ns)(?:, ?(?:tz=)?UTC)?\]")
_NESTED_TYPE = re.compile(r"(list|struct)\s*<(.*)>", re.DOTALL)
TYPE_NAMES = [*_KINDS, *(f"timestamp[{unit}]" for unit in _UNIT_EXPONENT)]
_OTHER_NAMES = {
    "int": "int64", "integer": "int64", "long": "int64", "bigint": "int64", "number": "double", "real": "double",
    "str": "string", "text": "string", "varchar": "string", "utf8": "string", "boolean": "bool",
    "datetime": "timestamp", "time": "timestamp", "date32[day]": "date",
}  # fmt: skip

NO_NUMBERS = -128
"""Scale of a field whose type does not say what a number would mean."""


@dataclass(frozen=True)
class Field:
    """A declared field.

    Attributes:
        name: as declared, the name of the column.
        path: names of the objects on the way, and the field's own: ``("user", "id")``.
        type_name: as declared.
        arrow: type of the column.
        kind: how values are read.
        scale: of timestamps given as numbers: the number times 10**scale is microseconds.
        parts: of a list the item, of a struct its fields.
    """

    name: str
    path: tuple[str, ...]
    type_name: str
    arrow: pa.DataType
    kind: Kind
    scale: int = NO_NUMBERS
    parts: tuple[Field, ...] = ()

    @classmethod
    def of(cls, name: str, type_name: str) -> Field:
        """Raises a pydantic error when there is no such type.

        >>> Field.of("user.id", "int32").path, str(Field.of("t", "timestamp[ms]").arrow)
        (('user', 'id'), 'timestamp[us, tz=UTC]')
        >>> Field.of("items", "list<struct<sku: string, count: int64>>").arrow.value_type.names
        ['sku', 'count']
        """
        if match := _NESTED_TYPE.fullmatch(type_name.strip()):
            return cls._nested(name, type_name, match[1], match[2])
        if match := _TIMESTAMP_TYPE.fullmatch(type_name):
            return cls(name, tuple(name.split(".")), type_name, TIMESTAMP, Kind.TIMESTAMP, _UNIT_EXPONENT[match[1]])
        if type_name not in _KINDS:
            other = _OTHER_NAMES.get(type_name.lower())
            hint = f" - did you mean '{other}'?" if other else did_you_mean(type_name, TYPE_NAMES)
            raise user_error(f"unknown type '{type_name}'{hint}; known: {', '.join(TYPE_NAMES)}, list<...>, struct<name: ..., ...>")
        kind, arrow = _KINDS[type_name]
        return cls(name, tuple(name.split(".")), type_name, arrow, kind)

    @classmethod
    def _nested(cls, name: str, type_name: str, kind: str, inside: str) -> Field:
        path = tuple(name.split("."))
        if kind == "list":
            item = cls.of("", inside.strip())
            return cls(name, path, type_name, pa.list_(item.arrow), Kind.NESTED, parts=(item,))
        parts: list[Field] = []
        for part in _divided(inside):
            own, colon, own_type = part.partition(":")
            if not colon or not own.strip() or own.strip() in [known.name for known in parts]:
                raise user_error(f"'{part.strip()}' in '{type_name}' is no field of a struct; write different ones as name: type, such as struct<sku: string, price: double>")
            parts.append(cls.of(own.strip(), own_type.strip()))
        return cls(name, path, type_name, pa.struct([pa.field(part.name, part.arrow) for part in parts]), Kind.NESTED, parts=tuple(parts))

    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer field.

        >>> Field.of("x", "uint8").limits()
        (0, 255)
        """
        info = np.iinfo(self.arrow.to_pandas_dtype())
        return int(info.min), int(info.max)


def _divided(text: str) -> list[str]:
    """The parts between commas that are within no angle brackets.

    >>> _divided("a: list<struct<b: int64, c: string>>, d: double")
    ['a: list<struct<b: int64, c: string>>', ' d: double']
    """
    parts, depth = [""], 0
    for character in text:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _check_type(type_name: str) -> str:
    Field.of("", type_name)
    return type_name


def _check_names(schema: dict[str, str]) -> dict[str, str]:
    if not schema:
        raise user_error("no field is declared; write at least one, such as {user: string}")
    for name in schema:
        if name.startswith("__"):
            raise user_error(f"the field name '{name}' is reserved: names must not start with two underscores")
        if not all(name.split(".")):
            raise user_error(f"'{name}' is no field name; write the name of a field, or object.field for one within an object")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise user_error(f"the field name {name!r} is no valid Unicode text") from None
        parents = name.split(".")[:-1]
        for depth in range(1, len(parents) + 1):
            if (parent := ".".join(parents[:depth])) in schema:
                raise user_error(f"'{parent}' is declared as a {schema[parent]} and, by '{name}', as an object; it can only be one")
    return schema


FieldSchema = Annotated[
    dict[str, Annotated[str, AfterValidator(_check_type), WithJsonSchema({"anyOf": [{"type": "string", "enum": TYPE_NAMES}, {"type": "string", "pattern": r"^\s*(list|struct)\s*<.*>\s*$"}]})]],
    AfterValidator(_check_names),
]
"""The value of ``schema:`` in a job file, ``{name: type}``."""


def fields_of(schema: Mapping[str, str]) -> tuple[Field, ...]:
    """The declared fields, in order."""
    return tuple(Field.of(name, type_name) for name, type_name in schema.items())


def arrow_schema(fields: tuple[Field, ...]) -> pa.Schema:
    """Columns of the events: named as declared, all nullable."""
    return pa.schema([pa.field(field.name, field.arrow) for field in fields])
