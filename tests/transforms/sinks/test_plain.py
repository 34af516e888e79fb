"""Plain columns lose nothing but what JSON lacks."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings

from streamgauge.transforms.sinks.plain import from_plain, plain_type, to_plain
from tests.examples import examples
from tests.transforms.sinks import cases


@pytest.mark.parametrize("values", [
    pa.array([1, None, -(2**31)], pa.int32()),
    pa.array([2**64 - 1, None, 0], pa.uint64()),
    pa.array([0.1, None, 3.4e38], pa.float32()),
    pa.array([True, None, False]),
    pa.array(["a", None, ""], pa.large_string()),
    pa.array(["a", None, "b"]).dictionary_encode(),
    pa.array([b"\xff", None, b""], pa.large_binary()),
    pa.array([0, None, -1], pa.int64()).cast(pa.timestamp("ns", "UTC")),
    pa.array([0, None, 2**40], pa.int64()).cast(pa.timestamp("ms")),
    pa.array([0, None, 2**62], pa.int64()).cast(pa.timestamp("us", "UTC")),
    pa.array([0, None, -800_000], pa.int32()).cast(pa.date32()),
    pa.array([0, None, 86_399], pa.int32()).cast(pa.time32("s")),
    pa.array([0, None, 86_399], pa.int64()).cast(pa.time64("us")),
    pa.array([0, None, -5], pa.int64()).cast(pa.duration("ms")),
    pa.array(["1.20", None, "-0.01"]).cast(pa.decimal128(10, 2)),
    pa.array([[1.5, None], None, []], pa.list_(pa.float64())),
    pa.array([{"a": "x", "b": [1]}, None, {"a": None, "b": None}], pa.struct([("a", pa.string()), ("b", pa.list_(pa.int64()))])),
    pa.array([[0, None, 2**62], None, []], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us", "UTC"))),
    pa.array([[-800_000, None], None], pa.list_(pa.int32())).cast(pa.large_list(pa.date32())),
    pa.array([[0.1, None], [3.4e38]], pa.list_(pa.float32())),
    pa.array([[2**64 - 1], [0, None]], pa.list_(pa.uint64())),
    pa.array([[{"t": 5, "n": [[1.5], None]}, None], []], pa.list_(pa.struct([("t", pa.int64()), ("n", pa.list_(pa.list_(pa.float64())))])))
    .cast(pa.list_(pa.struct([("t", pa.timestamp("ns")), ("n", pa.list_(pa.list_(pa.float64())))]))),
    pa.array([{"a": None}, None, {"a": []}], pa.struct([("a", pa.list_(pa.string()))])),
], ids=lambda values: str(values.type))
def test_plain_columns_lose_nothing(values: pa.Array) -> None:
    chunks = [values] if pa.types.is_dictionary(values.type) else [values.slice(0, 1), values.slice(1)]
    plain = to_plain(pa.chunked_array(chunks))
    assert plain.type == plain_type(values.type)
    assert from_plain(plain, values.type).equals(values)
    part = to_plain(pa.chunked_array([values.slice(1)]))
    assert part.equals(plain.slice(1)), "a slice is not what it is a part of"
    empty = to_plain(pa.chunked_array([], values.type))
    assert len(from_plain(empty, values.type)) == 0


def test_iso_text_sorts_as_time_does() -> None:
    moments = pa.array([0, 999_999, 253_402_300_799_999_999, -62_135_596_800_000_000, cases.START]).cast(cases.UTC)
    text = to_plain(pa.chunked_array([moments])).to_pylist()
    assert sorted(text) == [t for _, t in sorted(zip(moments.cast(pa.int64()).to_pylist(), text, strict=True))]
    assert text[-1] == "2013-01-01T05:00:00.000000Z"


def test_json_has_no_other_numbers() -> None:
    inf, nan = float("inf"), float("nan")
    column = pa.chunked_array([pa.array([{"x": [inf, 1.0, None], "y": -inf}, {"x": [nan], "y": 0.5}])])
    assert to_plain(column).to_pylist() == ['{"x": [null, 1.0, null], "y": null}', '{"x": [null], "y": 0.5}']


def test_times_within_lists_read_as_those_outside() -> None:
    times = pa.array([cases.START, None]).cast(cases.UTC)
    (found,) = to_plain(pa.chunked_array([pa.ListArray.from_arrays([0, 2], times)])).to_pylist()
    assert json.loads(found) == to_plain(pa.chunked_array([times])).to_pylist()


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.binary()), pa.struct([("x", pa.null())]), pa.list_(pa.decimal128(5))])
def test_what_has_no_plain_form(kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        plain_type(kind)


@settings(max_examples=examples(30), deadline=None)
@given(cases.histories())
def test_lists_and_structs_are_valid_json(history: list) -> None:
    table = cases.to_table(history[0])
    for name in ("top", "tail", "seen", "sketch"):
        text = to_plain(table[name])
        assert [None if v is None else json.loads(v, parse_constant=pytest.fail) is not None for v in text.to_pylist()] == [
            None if row[name] is None else True for row in history[0]
        ]
        finite = [{name: row[name]} for row in history[0]]
        cases.same(cases.plain(pa.table({name: from_plain(text, table.schema.field(name).type)})), finite, in_json=True)
