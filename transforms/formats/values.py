"""The exact meaning of one value: how the text of a number, a string, a CSV field becomes a value of a declared field.

This is the definition, in plain Python. The kernels (``scan.py``) accept only what it accepts, with the same result, and
leave every doubtful value to it; it alone words the rejects.
"""

from __future__ import annotations

import math
import re
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa

from streamgauge.transforms.formats.fields import NO_NUMBERS, Field, Kind

MIN_TIMESTAMP, MAX_TIMESTAMP = -62_135_596_800_000_000, 253_402_300_799_999_999
"""0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z in microseconds since the epoch."""

FLOAT32_LIMIT = float.fromhex("0x1.ffffffp+127")
"""The smallest double that rounds to infinity as a float32."""

MAX_NUMBER_CHARACTERS = 1_000
"""A longer number in a declared field is refused: reading it exactly could take unbounded time."""

_SHOWN_CHARACTERS = 40
_EXPONENT_BOUND = 100_000
_INTEGER_DIGITS = 20
_TIMESTAMP_DIGITS = 20
_EPOCH = date(1970, 1, 1).toordinal()
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)?)?", re.ASCII
)  # fmt: skip
_CSV_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CSV_BOOL = {"true": True, "1": True, "false": False, "0": False}

Value = int | float | str | bool | list[Any] | dict[str, Any] | None
"""Timestamps are microseconds, dates days since the epoch; lists and structs hold values."""


class BadValueError(ValueError):
    """A value that the declared type does not have: ``expected double, found string 'abc'``. ``place``: where in the field, such as ``[2].price``."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class Number(str):
    """The text of a JSON number."""


def from_json(field: Field, value: object) -> Value:
    """A field's value from JSON as the standard library decodes it, but for numbers, which are their text. Raises BadValueError.

    >>> from_json(Field.of("x", "int32"), Number("3.0")), from_json(Field.of("x", "double"), None)
    (3, None)
    """
    if value is None:
        return None
    if field.kind is Kind.NESTED:
        return _nested(field, value)
    if isinstance(value, Number):
        return from_number(field, value)
    if isinstance(value, str):
        if field.kind is Kind.STRING:
            return _text(value)
        if field.kind in (Kind.TIMESTAMP, Kind.DATE):
            return _time(field, value)
    elif isinstance(value, bool) and field.kind is Kind.BOOL:
        return value
    raise BadValueError(f"expected {field.type_name}, found {describe(value)}")


def _nested(field: Field, value: object) -> Value:
    """A list or a struct; what is missing in a struct is null, what is not declared does not count."""
    if isinstance(field.arrow, pa.StructType) and isinstance(value, dict):
        return {part.name: _within(f".{part.name}", part, value.get(part.name)) for part in field.parts}
    if not isinstance(field.arrow, pa.StructType) and isinstance(value, list):
        return [_within(f"[{place}]", field.parts[0], item) for place, item in enumerate(value)]
    raise BadValueError(f"expected {field.type_name}, found {describe(value)}")


def _within(place: str, field: Field, value: object) -> Value:
    try:
        return from_json(field, value)
    except BadValueError as error:
        raise BadValueError(str(error), place + error.place) from None


def from_text(field: Field, text: str) -> Value:
    """A field's value from a CSV field that is not null. Blanks around anything but a string do not count. Raises BadValueError.

    >>> from_text(Field.of("x", "int8"), " +7 "), from_text(Field.of("x", "bool"), "TRUE"), from_text(Field.of("t", "timestamp[s]"), "1.5")
    (7, True, 1500000)
    """
    if field.kind is Kind.STRING:
        return text
    bare = text.strip(" \t")
    if field.kind is Kind.BOOL and bare.isascii() and bare.lower() in _CSV_BOOL:
        return _CSV_BOOL[bare.lower()]
    if field.kind not in (Kind.BOOL, Kind.DATE) and _CSV_NUMBER.fullmatch(bare):
        return from_number(field, bare)
    if field.kind in (Kind.TIMESTAMP, Kind.DATE):
        return _time(field, bare)
    raise BadValueError(f"expected {field.type_name}, found {_short(text)}")


def from_number(field: Field, text: str) -> Value:
    """A field's value from the text of a number. Raises BadValueError.

    Doubles are the nearest to the text; an integer field takes whole numbers however they are written (3.0, 1e3); digits below
    a microsecond are truncated toward the past.
    """
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise BadValueError(f"expected {field.type_name}, found a number of {len(text)} characters")
    if field.kind in (Kind.DOUBLE, Kind.FLOAT):
        real = float(text)
        if math.isinf(real) or (field.kind is Kind.FLOAT and abs(real) >= FLOAT32_LIMIT):
            raise BadValueError(f"{_shown(text)} is out of the range of {field.type_name}")
        return real
    if field.kind is Kind.INTEGER:
        return _integer(field, text)
    if field.kind is Kind.TIMESTAMP and field.scale != NO_NUMBERS:
        return _scaled(field, text)
    hint = " - declare timestamp[s], timestamp[ms], timestamp[us] or timestamp[ns] to read numbers" if field.kind is Kind.TIMESTAMP else ""
    raise BadValueError(f"expected {field.type_name}, found number {_shown(text)}{hint}")


def describe(value: object) -> str:
    """What was found, for a message.

    >>> describe(Number("1.5")), describe("x" * 50), describe({}), describe(True)
    ('number 1.5', "string 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...' of 50 characters", 'object', 'true')
    """
    if isinstance(value, Number):
        return f"number {_shown(value)}"
    if isinstance(value, str):
        return f"string {_short(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "null"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _short(text: str) -> str:
    # Half of a surrogate pair could not be written to a dead letter.
    quoted = repr(_shown(text)).encode("utf-8", "backslashreplace").decode()
    return quoted if len(text) <= _SHOWN_CHARACTERS else f"{quoted} of {len(text)} characters"


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValueError(f"expected string, found half of a surrogate pair in {_short(value)}") from None
    return value


def _decimal(text: str) -> Decimal:
    """Exact, but for exponents so large that only their sign matters."""
    mantissa, _, exponent = text.lower().partition("e")
    bounded = max(-_EXPONENT_BOUND, min(_EXPONENT_BOUND, int(exponent or 0)))
    return Decimal(f"{mantissa}e{bounded}")


def _integer(field: Field, text: str) -> int:
    value = _decimal(text)
    if not value:
        return 0
    low, high = field.limits()
    if value.adjusted() < 0 or (value.adjusted() <= MAX_NUMBER_CHARACTERS and value != value.to_integral_value()):
        raise BadValueError(f"expected {field.type_name}, found number {_shown(text)}")
    if value.adjusted() > _INTEGER_DIGITS or not low <= value <= high:
        raise BadValueError(f"{_shown(text)} is out of the range of {field.type_name} ({low} to {high})")
    return int(value)


def _scaled(field: Field, text: str) -> int:
    value = _decimal(text)
    magnitude = value.adjusted() + field.scale
    if not value or magnitude < 0:
        return -1 if value < 0 else 0
    if magnitude <= _TIMESTAMP_DIGITS:
        microseconds = math.floor(Fraction(value) * Fraction(10) ** field.scale)
        if MIN_TIMESTAMP <= microseconds <= MAX_TIMESTAMP:
            return microseconds
    raise BadValueError(f"{_shown(text)} is out of the range of {field.type_name}: before the year 1 or after 9999")


def _time(field: Field, text: str) -> int:
    """Days or microseconds since the epoch."""
    match = (_DATE if field.kind is Kind.DATE else _ISO).fullmatch(text)
    form = "2013-01-31" if field.kind is Kind.DATE else "2013-01-31T12:00:00Z"
    if match is None:
        raise BadValueError(f"expected {field.type_name}, found {_short(text)}; write it as {form}")
    try:
        days = date(int(match[1]), int(match[2]), int(match[3])).toordinal() - _EPOCH
    except ValueError:
        raise BadValueError(f"expected {field.type_name}, found {_short(text)}: there is no such day") from None
    if field.kind is Kind.DATE:
        return days
    hour, minute, second, off_hour, off_minute = (int(match[i] or 0) for i in (4, 5, 6, 9, 10))
    if hour > 23 or minute > 59 or second > 59 or off_hour > 23 or off_minute > 59:
        raise BadValueError(f"expected {field.type_name}, found {_short(text)}: there is no such time of day")
    offset = (off_hour * 60 + off_minute) * (-1 if match[8] == "-" else 1)
    seconds = days * 86_400 + hour * 3_600 + (minute - offset) * 60 + second
    microseconds = seconds * 1_000_000 + int((match[7] or "").ljust(6, "0")[:6])
    if not MIN_TIMESTAMP <= microseconds <= MAX_TIMESTAMP:
        raise BadValueError(f"{_short(text)} is out of the range of {field.type_name}: before the year 1 or after 9999")
    return microseconds
