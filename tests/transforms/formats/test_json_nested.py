"""Lists and structs in JSON, against the standard library's decoder."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.formats.csv import Csv
from streamgauge.transforms.formats.json import Json
from streamgauge.transforms.sources.base import RawBatch
from tests.examples import examples

SCHEMA = {"id": "int64", "lines": "list<struct<sku: string, price: double, at: timestamp[s]>>", "user.tags": "list<list<int8>>", "place": "struct<x: double, y: struct<z: bool>>"}
FORMAT = Json(Json.Options(schema=SCHEMA))

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
REALS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
LINES = st.none() | st.lists(st.none() | st.fixed_dictionaries({}, optional={"sku": st.none() | TEXTS, "price": REALS, "at": st.none() | st.integers(0, 2**31), "more": TEXTS}), max_size=3)
TAGS = st.none() | st.lists(st.none() | st.lists(st.none() | st.integers(-128, 127), max_size=3), max_size=3)
PLACES = st.none() | st.fixed_dictionaries({"x": REALS}, optional={"y": st.none() | st.fixed_dictionaries({"z": st.none() | st.booleans()})})
EVENTS = st.lists(st.fixed_dictionaries({"id": st.integers(-5, 5)}, optional={"lines": LINES, "place": PLACES, "user": st.none() | st.fixed_dictionaries({"tags": TAGS})}), max_size=6)


def parse(payloads: list[bytes]) -> Any:
    return FORMAT.parse(RawBatch(pa.array(payloads, pa.binary()), np.arange(len(payloads)), len(payloads)))


def _line(line: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if line is None else {"sku": line.get("sku"), "price": line.get("price"), "at": None if line.get("at") is None else line["at"] * 1_000_000}


def _place(place: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if place is None else {"x": place.get("x"), "y": place.get("y")}


@settings(max_examples=examples(60), deadline=None)
@given(EVENTS)
def test_lists_and_structs_are_what_the_payload_has(events: list[dict[str, Any]]) -> None:
    parsed = parse([json.dumps(event).encode() for event in events])
    plain = parsed.events.set_column(1, "lines", parsed.events.column("lines").cast(pa.list_(pa.struct([("sku", pa.string()), ("price", pa.float64()), ("at", pa.int64())]))))
    assert not len(parsed.rejects) and parsed.events.schema == FORMAT.schema
    assert plain.to_pylist() == [
        {
            "id": event["id"],
            "lines": None if event.get("lines") is None else [_line(line) for line in event["lines"]],
            "user.tags": (event.get("user") or {}).get("tags"),
            "place": _place(event.get("place")),
        }
        for event in events
    ]  # fmt: skip


def test_what_is_not_as_declared_is_told_with_its_place_and_costs_no_other() -> None:
    bad = [
        ('{"lines": [{"price": 1}, {"price": "much"}]}', "lines[1].price: expected double, found string 'much'"),
        ('{"lines": {}}', "lines: expected list<struct<sku: string, price: double, at: timestamp[s]>>, found object"),
        ('{"lines": [3]}', "lines[0]: expected struct<sku: string, price: double, at: timestamp[s]>, found number 3"),
        ('{"user": {"tags": [[1], [300]]}}', "user.tags[1][0]: 300 is out of the range of int8 (-128 to 127)"),
        ('{"place": {"y": {"z": 0}}}', "place.y.z: expected bool, found number 0"),
    ]
    parsed = parse([b'{"id": 1}', *(payload.encode() for payload, _ in bad), b'{"id": 2}', b"{"])
    assert parsed.events.column("id").to_pylist() == [1, 2] and parsed.rows.tolist() == [0, len(bad) + 1]
    assert parsed.rejects.messages[:-1] == [message for _, message in bad]
    assert parsed.rejects.error_types == ["type"] * len(bad) + ["malformed"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("list<int46>", "unknown type 'int46' - did you mean 'int64'?"),
        ("list<>", "unknown type ''"),
        ("struct<a>", "'a' in 'struct<a>' is no field of a struct"),
        ("struct<a: int64, a: string>", "'a: string' in"),
        ("map<int64>", "unknown type 'map<int64>'"),
    ],
)
def test_a_wrong_type_is_told(written: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Json.Options(schema={"x": written})
    assert words in str(caught.value)


def test_csv_has_no_lists() -> None:
    with pytest.raises(ValidationError, match=r"'x' is a list<int64>, which CSV has not; read a string"):
        Csv.Options(schema={"x": "list<int64>"})
