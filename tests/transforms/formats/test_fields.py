from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from streamgauge.transforms.config import Config, problems
from streamgauge.transforms.formats.csv import Csv
from streamgauge.transforms.formats.fields import FieldSchema, arrow_schema, fields_of
from streamgauge.transforms.formats.json import Json


def messages(model: type[Config], **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(options)
    return [(".".join(map(str, path)), message) for path, message in problems(caught.value)]


def test_every_type_becomes_its_arrow_type() -> None:
    declared = {
        "a": "string",
        "b": "bool",
        "c": "int8",
        "d": "uint64",
        "e": "float",
        "f": "float32",
        "g": "double",
        "h": "float64",
        "i": "date",
        "j": "date32",
        "k": "timestamp",
        "l": "timestamp[ms]",
        "m": "timestamp[ns]",
        "n": "timestamp[us, tz=UTC]",
        "user.id": "int32",
    }
    time = pa.timestamp("us", tz="UTC")
    types = [pa.string(), pa.bool_(), pa.int8(), pa.uint64(), pa.float32(), pa.float32(), pa.float64(), pa.float64(), pa.date32()]
    assert arrow_schema(fields_of(TypeAdapter(FieldSchema).validate_python(declared))) == pa.schema(
        list(zip(declared, [*types, pa.date32(), time, time, time, time, pa.int32()], strict=True))
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("int", "int64"),
        ("integer", "int64"),
        ("str", "string"),
        ("boolean", "bool"),
        ("doubl", "double"),
        ("timestamp[m]", "timestamp[ms]"),
        ("datetime", "timestamp"),
    ],
)
def test_an_unknown_type_is_named_with_what_was_meant(written: str, meant: str) -> None:
    [(path, message)] = messages(Json.Options, schema={"delay": written})
    assert path == "schema.delay"
    assert message.startswith(f"unknown type '{written}' - did you mean '{meant}'?; known: string, bool, ")


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({}, "no field is declared"),
        ({"__time": "string"}, "'__time' is reserved"),
        ({"a..b": "string"}, "'a..b' is no field name"),
        ({"": "string"}, "'' is no field name"),
        ({"user": "string", "user.id": "int8"}, "'user' is declared as a string and, by 'user.id', as an object"),
        ({"\ud800": "string"}, "is no valid Unicode text"),
    ],
)
def test_a_wrong_name_is_refused(schema: dict[str, str], part: str) -> None:
    [(path, message)] = messages(Json.Options, schema=schema)
    assert path == "schema"
    assert part in message


def test_wrong_csv_options_are_refused() -> None:
    good = {"schema": {"user": "string"}}
    assert messages(Csv.Options, **good, columns=["usr"]) == [("", "columns lacks 'user', a field of schema - did you mean 'usr'?")]
    assert messages(Csv.Options, **good, columns=["user", "user"]) == [("", "columns has 'user' more than once")]
    assert messages(Csv.Options, **good, delimiter='"') == [("", "delimiter and quote are both '\"'")]
    assert messages(Csv.Options, **good, nulls=['"']) == [("", 'a text of nulls has the quote " in it')]
    assert [path for path, _ in messages(Csv.Options, **good, delimiter=";;", quote="é")] == ["delimiter", "quote"]
    assert messages(Csv.Options, **good, sep=";") == [("sep", "unknown key")]


@pytest.mark.parametrize("format_", [Json, Csv])
def test_options_have_an_editor_schema(format_: Any) -> None:
    schema = format_.Options.model_json_schema()
    assert "double" in schema["properties"]["schema"]["additionalProperties"]["anyOf"][0]["enum"]
    assert all("description" in key for key in schema["properties"].values())
