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
    """

    name: str
    path: tuple[str, ...]
    type_name: str
    arrow: pa.DataType
    kind: Kind
    scale: int = NO_NUMBERS

    @classmethod
    def of(cls, name: str, type_name: str) -> Field:
        """Raises a pydantic error when there is no such type.

        >>> Field.of("user.id", "int32").path, str(Field.of("t", "timestamp[ms]").arrow)
        (('user', 'id'), 'timestamp[us, tz=UTC]')
        """
        if match := _TIMESTAMP_TYPE.fullmatch(type_name):
            return cls(name, tuple(name.split(".")), type_name, TIMESTAMP, Kind.TIMESTAMP, _UNIT_EXPONENT[match[1]])
        if type_name not in _KINDS:
            other = _OTHER_NAMES.get(type_name.lower())
            hint = f" - did you mean '{other}'?" if other else did_you_mean(type_name, TYPE_NAMES)
            raise user_error(f"unknown type '{type_name}'{hint}; known: {', '.join(TYPE_NAMES)}")
        kind, arrow = _KINDS[type_name]
        return cls(name, tuple(name.split(".")), type_name, arrow, kind)

    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer field.

        >>> Field.of("x", "uint8").limits()
        (0, 255)
        """
        info = np.iinfo(self.arrow.to_pandas_dtype())
        return int(info.min), int(info.max)


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
    dict[str, Annotated[str, AfterValidator(_check_type), WithJsonSchema({"type": "string", "enum": TYPE_NAMES})]],
    AfterValidator(_check_names),
]
"""The value of ``schema:`` in a job file, ``{name: type}``."""


def fields_of(schema: Mapping[str, str]) -> tuple[Field, ...]:
    """The declared fields, in order."""
    return tuple(Field.of(name, type_name) for name, type_name in schema.items())


def arrow_schema(fields: tuple[Field, ...]) -> pa.Schema:
    """Columns of the events: named as declared, all nullable."""
    return pa.schema([pa.field(field.name, field.arrow) for field in fields])
