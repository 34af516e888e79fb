"""Payloads that good parsers are afraid of, and how the tests hand them over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from streamgauge.transforms.formats.base import Parsed
from streamgauge.transforms.formats.payloads import BadPayloadError
from streamgauge.transforms.sources.base import RawBatch

_NUMBERS = """
0 -0 1 -1 01 +1 .5 5. 1.5 -1.5 3.0 3.000 -3.00 1e3 1E+3 1e-3 1e400 -1e400 1e-400 1e999999999999 1e-999999999999 0e999999999999 NaN nan
Infinity -Infinity inf 127 128 -128 -129 255 256 32767 32768 65535 65536 2147483647 2147483648 -2147483648 -2147483649 4294967295
4294967296 9007199254740991 9007199254740992 9007199254740993 9007199254740993.0 9223372036854775807 9223372036854775808
-9223372036854775808 -9223372036854775809 18446744073709551615 18446744073709551616 9999999999999999999 99999999999999999999
1767225600123 1767225600123.4567 -62135596800 -62135596801 253402300799 253402300800 253402300799999 253402300800000 253402300799999999
253402300799999999.9 253402300799999999999 -62135596800000 -62135596800001 0.1 0.30000000000000004 2.2250738585072014e-308
2.2250738585072011e-308 4.9406564584124654e-324 2.4703282292062327e-324 1.7976931348623157e308 1.7976931348623159e308
3.4028235677973366e38 3.4028235677973362e38 3.4028236e38 123456789012345678901234567890 0.000000000000000000000001
1.00000000000000000000000000000001 8.5e22 1e22 1e23 7.2057594037927933e16 9355950000000000000.00 1e 1e+ - -. 1.e5 0x10 1_000 --1 1-1
"""
NUMBERS = [*_NUMBERS.split(), "1" * 1000, "1" * 1001, "0." + "0" * 400 + "1"]

_TIMES = """
2013-01-01T05:00:00Z 2013-01-01T05:00:00 2013-01-01t05:00:00z 2013-01-01T05:00 2013-01-01 2013-01-01T05:00:00.1
2013-01-01T05:00:00.123456789Z 2013-01-01T05:00:00.1234567891Z 2013-01-01T05:00:00.Z 2013-01-01T05:00:00+02:00 2013-01-01T05:00:00-0230
2013-01-01T05:00:00+02 2013-01-01T05:00:00+2 2013-01-01T05:00:00+24:00 2013-01-01T05:00:00+02:60 2013-02-29 2012-02-29 1900-02-29
2000-02-29 2013-13-01 2013-00-01 2013-01-00 2013-01-32 2013-04-31 2013-01-01T24:00:00Z 2013-01-01T23:60:00Z 2013-01-01T23:59:60Z
0000-01-01 0001-01-01T00:00:00Z 0001-01-01T00:00:00+00:01 0001-01-01T00:01:00+00:01 9999-12-31T23:59:59.999999999Z
9999-12-31T23:59:59-00:01 1969-12-31T23:59:59.9999999Z 1582-10-10 20130101T050000Z 2013-1-1 2013-01-01T5:00:00Z 2013-01-01Z
2013-01-01+02:00 12013-01-01 +2013-01-01 -2013-01-01 2013-01-01T 2013-01-01T05 2013-01-01T05:00:00ZZ 2013/01/01 2013-01-01T05-00-00 now
"""
TIMES = [
    *_TIMES.split(),
    "2013-01-01 05:00:00",
    "2013-01-01  05:00:00",
    " 2013-01-01",
    "2013-01-01T05:00:00 Z",
    "",
    "2013-01-01T05:00:00.١",
    "２013-01-01",
]

TEXTS = [
    "",
    "abc",
    "é",
    "中文",
    "😀",
    "\x7f",
    "\u2028",
    "\ufeff",
    "null",
    'a"b',
    "a\\b",
    "a\nb",
    "\x00",
    "NaN",
    "true",
    "x" * 300,
    " x ",
    "a,b",
]
HALVES = ["\ud800", "\udc00\ud800"]
"""Halves of surrogate pairs: no UTF-8, but JSON can write them."""


def batch(payloads: Sequence[bytes | None], newline: bool = False, offset: int = 0, position: int = 0) -> RawBatch:
    """``offset`` payloads are cut off from the front of a longer array, so that buffers do not begin at the first payload."""
    own = [None if p is None else p + b"\n" if newline else p for p in payloads]
    array = pa.array([b"cut\n"] * offset + own + [b"}"] * offset, pa.binary()).slice(offset, len(own))
    return RawBatch(array, np.arange(position, position + len(own)), position + len(own), newline_terminated=newline)


@st.composite
def mutated(draw: st.DrawFn, payload: bytes) -> bytes:
    """The payload with up to three bytes or runs removed, doubled, replaced or put in."""
    for _ in range(draw(st.integers(0, 3))):
        i = draw(st.integers(0, len(payload)))
        j = min(len(payload), i + draw(st.integers(0, 6)))
        new = draw(
            st.one_of(
                st.just(b""),
                st.just(payload[i:j] * 2),
                st.binary(max_size=3),
                st.sampled_from(
                    [
                        b'"',
                        b"\\",
                        b"{",
                        b"}",
                        b",",
                        b":",
                        b"[",
                        b"\xc3",
                        b"\xed\xa0\x80",
                        b"\xf4\x90\x80\x80",
                        b"\xc0\x80",
                        b"\n",
                        b"\r",
                        b"\x00",
                        b" ",
                        b"null",
                        b"\\u00",
                        b"\\ud83d",
                        b'""',
                    ]
                ),
            )
        )
        payload = payload[:i] + new + payload[j:]
    return payload


def comparable(row: Sequence[Any]) -> list[Any]:
    """Tells -0.0 from 0.0."""
    return [(value, math.copysign(1, value)) if isinstance(value, float) else value for value in row]


def check_against_definition(format_: Any, raw: RawBatch, payloads: Sequence[bytes | None]) -> None:
    """Every payload is an event or a reject, exactly as ``parse_one`` says, in order, whatever its neighbours."""
    parsed: Parsed = format_.parse(raw)
    events, rows, rejects, messages = [], [], [], []
    for index, payload in enumerate(payloads):
        if payload is None:
            rejects.append((index, "tombstone"))
            messages.append("the record has no value")
            continue
        try:
            events.append(format_.parse_one(payload))
            rows.append(index)
        except BadPayloadError as error:
            rejects.append((index, error.error_type))
            messages.append(str(error))
    assert list(zip(parsed.rejects.indices, parsed.rejects.error_types, strict=True)) == rejects
    assert parsed.rejects.messages == messages
    assert (list(range(len(payloads))) if parsed.rows is None else parsed.rows.tolist()) == rows
    parsed.events.validate(full=True)
    assert parsed.events.schema.equals(format_.schema)
    # Through the same Arrow types: float32 rounds, dates and times are objects.
    expected = [pa.array(column, field.type).to_pylist() for column, field in zip(zip(*events, strict=True), format_.schema, strict=False)]
    found = [column.to_pylist() for column in parsed.events.columns]
    for have, want, field in zip(found, expected, format_.schema, strict=False):
        assert comparable(have) == comparable(want), field
    assert parsed.events.num_rows == len(events)
