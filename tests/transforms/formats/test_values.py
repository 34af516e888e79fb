"""The definition, against arithmetic with fractions and Python's own calendar."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.transforms.formats.fields import Field
from streamgauge.transforms.formats.values import BadValueError, Number, Value, from_json, from_text

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
DECIMALS = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
LAST = 253_402_300_799_999_999


def read(type_: str, text: str) -> Value:
    """None for a reject."""
    try:
        return from_json(Field.of("x", type_), Number(text))
    except BadValueError:
        return None


@given(DECIMALS, st.sampled_from(["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]))
def test_whole_numbers_in_range_and_no_others(text: str, type_: str) -> None:
    value, bits, signed = Fraction(text), int(type_.lstrip("uint")), type_[0] == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    assert read(type_, text) == (int(value) if value.denominator == 1 and low <= value <= high else None)


@given(DECIMALS, st.sampled_from([("s", 6), ("ms", 3), ("us", 0), ("ns", -3)]))
def test_numbers_as_times_are_truncated_toward_the_past(text: str, unit: tuple[str, int]) -> None:
    microseconds = math.floor(Fraction(text) * Fraction(10) ** unit[1])
    in_range = -62_135_596_800_000_000 <= microseconds <= LAST
    assert read(f"timestamp[{unit[0]}]", text) == (microseconds if in_range else None)


@given(
    st.datetimes(),
    st.sampled_from(["T", "t", " "]),
    st.integers(0, 9),
    st.integers(0, 999),
    st.none() | st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.sampled_from(["{}{:02}:{:02}", "{}{:02}{:02}"]),
)
def test_iso_times(when: datetime, separator: str, digits: int, nanoseconds: int, offset: int | None, zone: str) -> None:
    text = when.strftime(f"%m-%d{separator}%H:%M:%S")
    fraction = f"{when.microsecond:06}{nanoseconds:03}"[:digits]
    text = f"{when.year:04}-{text}" + (f".{fraction}" if digits else "")
    text += "Z" if offset is None else zone.format("-" if offset < 0 else "+", *divmod(abs(offset), 60))
    micros = int(fraction[:6].ljust(6, "0"))
    expected = (when.replace(microsecond=0, tzinfo=timezone.utc) - EPOCH) // timedelta(microseconds=1) + micros - (offset or 0) * 60_000_000
    field = Field.of("x", "timestamp")
    if -62_135_596_800_000_000 <= expected <= LAST:
        assert from_json(field, text) == from_text(field, f" {text}\t") == expected
    else:
        with pytest.raises(BadValueError, match="out of the range of timestamp: before the year 1 or after 9999"):
            from_json(field, text)


@given(st.dates())
def test_dates(when: object) -> None:
    assert from_json(Field.of("x", "date"), str(when)) == (datetime.fromisoformat(str(when)) - datetime(1970, 1, 1)).days


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        ("int64", "+007", 7),
        ("double", ".5", 0.5),
        ("double", "5.", 5.0),
        ("double", " 1e3 ", 1000.0),
        ("string", " x ", " x "),
        ("bool", "True", True),
        ("bool", "FALSE", False),
        ("bool", "1", True),
        ("bool", "0", False),
        ("timestamp[s]", "+1", 1_000_000),
        ("date", " 1970-01-02 ", 1),
    ],
)
def test_csv_is_more_lenient_than_json(type_: str, text: str, value: Value) -> None:
    assert from_text(Field.of("x", type_), text) == value


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("double", "nan"),
        ("double", "inf"),
        ("double", "1_000"),
        ("double", "1 000"),
        ("int64", "0x10"),
        ("int64", "１"),
        ("bool", "yes"),
        ("date", "1"),
        ("timestamp", "1"),
        ("int64", ""),
    ],
)
def test_csv_rejects(type_: str, text: str) -> None:
    with pytest.raises(BadValueError):
        from_text(Field.of("x", type_), text)
