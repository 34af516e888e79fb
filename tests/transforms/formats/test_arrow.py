from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.event_time import EventTime, TimeOptions
from streamgauge.transforms.formats.arrow import Arrow
from streamgauge.transforms.formats.base import Parsed
from streamgauge.transforms.sources.base import SourceError
from tests.examples import examples
from tests.transforms.formats.hostile import batch, comparable, mutated

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FLOAT32_LIMIT = float.fromhex("0x1.ffffffp+127")


def make(schema: dict[str, str], **options: Any) -> Arrow:
    return Arrow(Arrow.Options(schema=schema, **options))


def stream(*batches: pa.RecordBatch, compression: str | None = None, file: bool = False) -> bytes:
    """An IPC stream, or file, as a producer makes it."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, batches[0].schema, options=options) as writer:
        for each in batches:
            writer.write_batch(each)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def one(**columns: Any) -> bytes:
    return stream(pa.record_batch(columns))


def rejects(parsed: Parsed) -> list[tuple[int, str, str]]:
    found = parsed.rejects
    return list(zip(found.indices, found.error_types, found.messages, strict=True))


def read(kind: str, values: pa.Array) -> list[Any]:
    """What a field of that type makes of a column; a message in place of events of which one is rejected."""
    parsed = make({"x": kind}).parse(batch([one(x=values)]))
    return [message for _, _, message in rejects(parsed)] or parsed.events["x"].to_pylist()


def test_a_record_has_many_events() -> None:
    schema = pa.schema([("page", pa.string()), ("ms", pa.float64()), ("at", pa.timestamp("ms"))])
    first = pa.record_batch([["/", "/cart"], [31.5, 120], [1_000, 2_000]], schema=schema)
    second = pa.record_batch([["/"], [None], [3_000]], schema=schema)
    parsed = make({"at": "timestamp", "page": "string"}).parse(batch([stream(first, second), None, stream(second), stream(first.slice(0, 0))]))
    assert parsed.events.schema == pa.schema([("at", pa.timestamp("us", "UTC")), ("page", pa.string())])
    assert parsed.events["page"].to_pylist() == ["/", "/cart", "/", "/"]
    assert parsed.events["at"].cast(pa.int64()).to_pylist() == [1_000_000, 2_000_000, 3_000_000, 3_000_000]
    assert parsed.rows is not None
    assert parsed.rows.tolist() == [0, 0, 0, 2]
    assert rejects(parsed) == [(1, "tombstone", "the record has no value")]


def test_payloads_that_are_none() -> None:
    good = one(x=[1, 2])
    schema_bytes = pa.schema([("x", pa.int64())]).serialize().size
    payloads = [b"", b"{}", b'{"x": 1, "text": "long"}', good[:-9], good[:40], good + b"x", b"ARROW1\0\0" + good, good[schema_bytes:], good, good + good, b"ARROW1"]
    parsed = make({"x": "int64"}).parse(batch(payloads, offset=3))
    assert rejects(parsed) == [
        (0, "malformed", "empty"),
        (1, "malformed", "no Arrow IPC stream: it begins with b'{}', not with a schema"),
        (2, "malformed", "no Arrow IPC stream: it begins with b'{\"x\": 1,', not with a schema"),
        (3, "malformed", f"cut off after {len(good) - 9} bytes, within a body of 16 bytes at byte {len(good) - 24}"),
        (4, "malformed", f"cut off after 40 bytes, within a message of {schema_bytes} bytes at byte 0"),
        (5, "malformed", "1 bytes follow the end of the stream; write each stream into a record of its own"),
        (6, "malformed", "an Arrow IPC file that is cut off: its footer is missing"),
        (7, "malformed", f"no Arrow IPC stream: it begins with {good[schema_bytes:][:8]!r}, not with a schema"),
        (9, "malformed", f"{len(good)} bytes follow the end of the stream; write each stream into a record of its own"),
        (10, "malformed", "an Arrow IPC file that is cut off: its footer is missing"),
    ]
    assert parsed.events["x"].to_pylist() == [1, 2]
    # The mark of a stream's end may be missing: the payload ends it.
    assert make({"x": "int64"}).parse(batch([good[:-8]])).events.num_rows == 2


def test_schemas_that_do_not_fit() -> None:
    format_ = make({"at": "timestamp", "user.id": "int64"}, optional=["user.id"])
    at = pa.array([1], pa.timestamp("s"))
    twice = pa.record_batch([at, at], names=["at", "at"])
    parsed = format_.parse(batch([
        one(att=at), one(at=["2026-01-01"]), one(at=[1]), one(at=at, user=["u"]), stream(twice), one(at=at), one(at=at, user=[{"id": 7}]),
        stream(pa.record_batch([at, pa.array([8])], names=["at", "user.id"])), one(at=at, user=[{"name": "x"}]),
    ]))  # fmt: skip
    assert rejects(parsed) == [
        (0, "type", "at: the stream has no such field, it has att - did you mean 'att'?"),
        (1, "type", "at: expected timestamp, found string"),
        (2, "type", "at: expected timestamp, found int64 - declare timestamp[s], timestamp[ms], timestamp[us] or timestamp[ns] to read numbers"),
        (3, "type", "user: expected a struct, found string"),
        (4, "type", "at: the stream has 2 fields of this name"),
    ]
    assert parsed.events["user.id"].to_pylist() == [None, 7, 8, None]


def test_wrong_events_do_not_cost_the_others_and_are_one_reject_a_record() -> None:
    format_ = make({"at": "timestamp", "n": "int8", "items": "list<struct<x: int16>>"})
    record = pa.record_batch({
        "at": pa.array([1, None, 3, 4, 5], pa.timestamp("s")), "n": [1, 2, 300, 4, 5], "items": [[{"x": 1}], [], None, [{"x": 2}, {"x": 70_000}], [{"x": None}]],
    })  # fmt: skip
    parsed = EventTime(TimeOptions(field="at"), format_.schema).apply(batch([stream(record)] * 2), format_.parse(batch([stream(record)] * 2)))
    assert parsed.events["n"].to_pylist() == [1, 5, 1, 5]
    assert parsed.events["items"].to_pylist() == [[{"x": 1}], [{"x": None}]] * 2
    told = "n: 300 is out of the range of int8 (-128 to 127), in event 2 (the first of 3 events of this record that are rejected)"
    assert rejects(parsed) == [(0, "type", told), (1, "type", told)]
    nested = make({"items": "list<struct<x: int16>>"}).parse(batch([stream(record)]))
    assert rejects(nested) == [(0, "type", "items: 70000 is out of the range of int16 (-32768 to 32767), in event 3")]


def test_what_takes_too_much_memory_is_never_decoded() -> None:
    rows, megabyte = 1 << 20, 1 << 20
    zeros = pa.record_batch({"x": np.zeros(rows, np.int64)})
    text = "y" * megabyte
    _, place, memory = pa.array([text], pa.string_view()).buffers()
    view = pa.Array.from_buffers(pa.string_view(), 1_000, [None, pa.py_buffer(place.to_pybytes() * 1_000), memory])
    payloads = {
        "compressed": stream(zeros, compression="zstd"),
        "null": one(x=pa.nulls(rows)),
        "dictionary": one(x=pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int8()), [text])),
        "view": one(x=view),
        "list": one(x=pa.ListArray.from_arrays(pa.array([0, 1 << 24], pa.int32()), pa.nulls(1 << 24))),
    }
    for name, kind in (("compressed", "int64"), ("null", "int64"), ("dictionary", "string"), ("view", "string"), ("list", "list<int64>")):
        ((index, error_type, message),) = rejects(make({"x": kind}).parse(batch([payloads[name]])))
        assert (index, error_type) == (0, "too_large"), name
        assert "bytes when decoded, more than" in message
    small = make({"x": "int64"}, max_bytes=1_000)
    assert rejects(small.parse(batch([b"x" * 1_001]))) == [(0, "too_large", "1001 bytes, more than max_bytes (1000)")]
    ((_, error_type, message),) = rejects(small.parse(batch([stream(pa.record_batch({"x": [0] * 2_000}), compression="lz4")])))
    assert (error_type, message) == ("too_large", "16000 bytes when decoded, more than max_bytes (1000)")


def test_what_lies_below_a_null_is_no_value() -> None:
    """Memory that Arrow's validation does not look at, and whose kernels may."""
    shown = pa.py_buffer(b"\x01")  # the first of two
    garbage = np.array([[1, ord("a"), 0, 0], [0x7FFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF]], np.int32)
    view = pa.Array.from_buffers(pa.string_view(), 2, [shown, pa.py_buffer(garbage)])
    number = pa.Array.from_buffers(pa.int64(), 2, [shown, pa.py_buffer(np.array([1, 300]))])
    indices = pa.Array.from_buffers(pa.int8(), 2, [shown, pa.py_buffer(np.array([0, 100], np.int8))])
    items = pa.Array.from_buffers(pa.list_(pa.int64()), 2, [shown, pa.py_buffer(np.array([0, 1, 2], np.int32))], children=[pa.array([1, 300])])
    record = pa.record_batch({"v": view, "n": number, "d": pa.DictionaryArray.from_arrays(indices, ["x"], safe=False), "l": items})
    parsed = make({"v": "string", "n": "int8", "d": "string", "l": "list<int8>"}).parse(batch([stream(record)]))
    assert rejects(parsed) == []
    assert parsed.events.to_pylist() == [{"v": "a", "n": 1, "d": "x", "l": [1]}, {"v": None, "n": None, "d": None, "l": None}]


def test_files_dictionaries_compression_and_other_widths() -> None:
    values = ["a", None, "b", "a"]
    kinds = [
        pa.array(values), pa.array(values, pa.large_string()), pa.array(values, pa.string_view()), pa.array(values).dictionary_encode(),
        pa.array(values, pa.string_view()).dictionary_encode(), pa.array(values, pa.large_string()).dictionary_encode(),
    ]  # fmt: skip
    format_ = make({"x": "string", "y": "list<string>"})
    payloads = []
    for kind in kinds:
        record = pa.record_batch({"more": [0] * 4, "x": kind, "y": pa.array([["q"], None, [], [None]], pa.large_list(pa.string_view()))})
        payloads += [stream(record, record, compression=codec, file=file) for codec in (None, "zstd", "lz4") for file in (False, True)]
    for offset in (0, 1):
        parsed = format_.parse(batch(payloads, offset=offset))
        assert rejects(parsed) == []
        assert parsed.events["x"].to_pylist() == values * 2 * len(payloads)
        assert parsed.events["y"].to_pylist() == [["q"], None, [], [None]] * 2 * len(payloads)
        assert parsed.rows is not None
        assert parsed.rows.tolist() == [index for index in range(len(payloads)) for _ in range(8)]


def test_columns_are_aligned() -> None:
    """Kernels want it. Payloads stand in memory back to back."""
    payload = one(x=[1.0, 2.0], s=["a", "b"])
    for size in (1, 2):
        for offset in range(8):
            parsed = make({"x": "double", "s": "string"}).parse(batch([b"z" * offset, *[payload] * size]))
            addresses = [buffer.address for column in parsed.events.columns for buffer in column.buffers() if buffer is not None and buffer.size]
            assert not [address for address in addresses if address % 8]


def test_lines_are_refused() -> None:
    with pytest.raises(SourceError, match="^the format arrow reads whole payloads, but this source cuts what it reads into lines; use arrow with kafka$"):
        make({"x": "int64"}).parse(batch([b"x"], newline=True))


def test_options() -> None:
    with pytest.raises(ValidationError, match="optional has 'pages', which is no field of schema - did you mean 'page'?"):
        make({"page": "string"}, optional=["pages"])
    format_ = make({"page": "string"}, optional=["page"])
    format_.parse(batch([one(page=["x"])]))
    again = pickle.loads(pickle.dumps(format_))
    assert again.schema == format_.schema
    assert again.parse(batch([one(other=[1, 2])])).events.to_pylist() == [{"page": None}, {"page": None}]


def test_times_and_dates() -> None:
    assert read("timestamp", pa.array([-1, 1_999], pa.timestamp("ns"))) == [EPOCH - timedelta(microseconds=1), EPOCH + timedelta(microseconds=1)]
    assert read("timestamp", pa.array([1], pa.timestamp("s", "Europe/Paris"))) == [EPOCH + timedelta(seconds=1)]
    assert read("timestamp", pa.array([date(2026, 1, 1)])) == [datetime(2026, 1, 1, tzinfo=timezone.utc)]
    assert read("timestamp", pa.array([date(2026, 1, 1)], pa.date64())) == [datetime(2026, 1, 1, tzinfo=timezone.utc)]
    assert read("timestamp[ns]", pa.array([1_500, None], pa.uint64())) == [EPOCH + timedelta(microseconds=1), None]
    assert read("date", pa.array([date(2026, 1, 1), None], pa.date64())) == [date(2026, 1, 1), None]
    late = pa.array([253_402_300_800], pa.int64())
    (said,) = read("timestamp", late.view(pa.timestamp("s")))
    assert said == "x: 253402300800 (timestamp[s]) is out of the range of timestamp: before the year 1 or after 9999, in event 0"
    (said,) = read("timestamp[s]", late)
    assert said == "x: 253402300800 (int64) is out of the range of timestamp[s]: before the year 1 or after 9999, in event 0"
    (said,) = read("date", pa.array([2_932_897], pa.int32()).view(pa.date32()))
    assert said == "x: 2932897 (date32[day]) is no date: before the year 1 or after 9999, or no whole day, in event 0"


# Properties


INTEGERS = {f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)}
REALS = {"float": pa.float32(), "double": pa.float64()}
EDGES = [0, 1, -1, *(sign * (2**power + near) for power in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64) for near in (-1, 0, 1) for sign in (1, -1))]


def as_declared(declared: str, value: Any) -> Any:
    """What plain Python says that a number is as the declared type. ValueError: it is none."""
    if declared in INTEGERS:
        low, high = (0, 2 ** int(declared[4:])) if declared.startswith("u") else (-(2 ** int(declared[3:])) // 2, 2 ** int(declared[3:]) // 2)
        if isinstance(value, float) and (not math.isfinite(value) or Fraction(value).denominator != 1):
            raise ValueError
        if not low <= int(value) < high:
            raise ValueError
        return int(value)
    if isinstance(value, int):
        if abs(value) > (2**53 if declared == "double" else 2**24):
            raise ValueError
        return float(value)
    if declared == "float" and math.isfinite(value):
        if abs(value) >= FLOAT32_LIMIT:
            raise ValueError
        return float(np.float32(value))
    return value


@st.composite
def numbers(draw: st.DrawFn) -> tuple[pa.DataType, list[Any]]:
    source = draw(st.sampled_from([*INTEGERS.values(), *REALS.values(), pa.float16()]))
    if pa.types.is_integer(source):
        info = np.iinfo(source.to_pandas_dtype())
        value = st.one_of(st.sampled_from([edge for edge in EDGES if info.min <= edge <= info.max]), st.integers(int(info.min), int(info.max)))
    else:
        value = st.floats(width=source.bit_width)
        whole = [float(edge) for edge in EDGES if abs(edge) < 2**15 or (source == pa.float64()) or (source == pa.float32() and float(np.float32(edge)) == edge)]
        value = st.one_of(st.sampled_from(whole).filter(lambda found: source != pa.float16() or abs(found) < 2**11), value)
    return source, draw(st.lists(st.one_of(st.none(), value), min_size=1, max_size=12))


@settings(max_examples=examples(600), deadline=None)
@given(st.sampled_from([*INTEGERS, *REALS]), numbers())
@example("int64", (pa.float64(), [float(2**63), -float(2**63)]))
@example("uint64", (pa.float64(), [float(2**64), float(2**63)]))
@example("float", (pa.float64(), [FLOAT32_LIMIT, 3.4028234663852886e38]))
def test_numbers_are_what_python_says_or_rejects(declared: str, given_: tuple[pa.DataType, list[Any]]) -> None:
    source, values = given_
    expected, bad = [], 0
    for value in values:
        try:
            expected.append(None if value is None else as_declared(declared, value))
        except ValueError:
            bad += 1
    array = pa.array([None if value is None else np.float16(value) for value in values] if source == pa.float16() else values, source)
    parsed = make({"x": declared}).parse(batch([one(x=array)]))
    parsed.events.validate(full=True)
    found = parsed.events["x"].to_pylist()
    assert [str(each) for each in comparable(found)] == [str(each) for each in comparable(expected)]
    assert len(parsed.rejects) == (bad > 0)
    if bad > 1:
        assert f"(the first of {bad} events" in parsed.rejects.messages[0]


SCHEMA = {"at": "timestamp", "n": "int16", "real": "double", "text": "string", "flag": "bool", "day": "date", "user.id": "int64", "items": "list<struct<sku: string, count: int16>>"}
FORMAT = make(SCHEMA)
_MICROS = st.integers(-(2**40), 2**40)
EVENT = st.fixed_dictionaries({
    "at": st.none() | _MICROS.map(lambda us: EPOCH + timedelta(microseconds=us)),
    "n": st.none() | st.integers(-40_000, 40_000),
    "real": st.none() | st.floats(allow_nan=False),
    "text": st.none() | st.text(max_size=20),
    "flag": st.none() | st.booleans(),
    "day": st.none() | st.dates(),
    "user": st.none() | st.fixed_dictionaries({"name": st.just("x"), "id": st.none() | st.integers(-(2**40), 2**40)}),
    "items": st.none() | st.lists(st.none() | st.fixed_dictionaries({"count": st.none() | st.integers(-40_000, 40_000), "sku": st.none() | st.text(max_size=5)}), max_size=3),
    "more": st.none() | st.integers(0, 9),
})  # fmt: skip


def text_types(variant: int) -> pa.DataType:
    return [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.string_view())][variant % 5]


def payload_schema(variant: int) -> pa.Schema:
    """One of the schemas in which a producer may write the same events."""
    plain = [pa.string(), pa.large_string(), pa.string_view()][variant % 3]
    item = pa.struct([("count", pa.int32()), ("sku", plain)])
    columns = [
        ("more", pa.int8()), ("items", [pa.list_, pa.large_list][variant % 2](item)), ("user", pa.struct([("name", plain), ("id", pa.int64())])),
        ("day", [pa.date32(), pa.date64()][variant % 2]), ("flag", pa.bool_()), ("text", text_types(variant)), ("real", pa.float64()),
        ("n", [pa.int32(), pa.int64()][variant % 2]), ("at", pa.timestamp("us", [None, "UTC", "America/New_York"][variant % 3])),
    ]  # fmt: skip
    turn = variant % len(columns)
    return pa.schema(columns[turn:] + columns[:turn])


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_timestamp(kind):
        return pa.array([None if value is None else (value - EPOCH) // timedelta(microseconds=1) for value in values], pa.int64()).view(kind)
    return pa.array(values, kind)


@st.composite
def records(draw: st.DrawFn) -> tuple[bytes, list[dict[str, Any]]]:
    """A payload and its events."""
    schema = payload_schema(draw(st.integers(0, 40)))
    parts = draw(st.lists(st.lists(EVENT, max_size=5), min_size=1, max_size=3))
    made = [pa.RecordBatch.from_arrays([column([event[part.name] for event in events], part.type) for part in schema], schema=schema) for events in parts]
    compression, file = draw(st.sampled_from([None, None, "zstd", "lz4"])), draw(st.booleans())
    if file and pa.types.is_dictionary(schema.field("text").type):
        file = False  # a file has one dictionary a column
    return stream(*made, compression=compression, file=file), [event for events in parts for event in events]


def short(value: Any) -> bool:
    return value is None or -(2**15) <= value < 2**15


def right(event: dict[str, Any]) -> bool:
    return short(event["n"]) and all(short(item["count"]) for item in event["items"] or [] if item is not None)


def read_as(event: dict[str, Any]) -> dict[str, Any]:
    items = event["items"]
    found = {name: event[name] for name in ("at", "n", "real", "text", "flag", "day")}
    return {
        **found, "user.id": None if event["user"] is None else event["user"]["id"],
        "items": None if items is None else [None if item is None else {"sku": item["sku"], "count": item["count"]} for item in items],
    }  # fmt: skip


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.one_of(records(), records(), st.none(), records().flatmap(lambda record: mutated(record[0]))), max_size=6), st.integers(0, 2))
def test_events_are_what_python_says_whatever_their_neighbours(drawn: list[Any], offset: int) -> None:
    payloads = [item[0] if isinstance(item, tuple) else item for item in drawn]
    parsed = FORMAT.parse(batch(payloads, offset=offset))
    parsed.events.validate(full=True)
    assert parsed.events.schema == FORMAT.schema
    rows = (np.arange(len(payloads)) if parsed.rows is None else parsed.rows).tolist()
    assert rows == sorted(rows)
    assert len(set(parsed.rejects.indices)) == len(parsed.rejects)
    found = parsed.events.to_pylist()
    for index, item in enumerate(drawn):
        mine = [event for row, event in zip(rows, found, strict=True) if row == index]
        if isinstance(item, tuple):
            expected = [read_as(event) for event in item[1] if right(event)]
            assert mine == expected
            assert (index in parsed.rejects.indices) == any(not right(event) for event in item[1])
        elif item is None:
            assert (mine, index in parsed.rejects.indices) == ([], True)
        # What a damaged one gives is for Arrow to say: an event, a reject or both, but nothing of its neighbours.


@settings(max_examples=examples(200), deadline=None)
@given(records(), st.integers(1, 200))
def test_a_payload_that_is_cut_off_is_a_reject_or_ends_between_batches(record: tuple[bytes, list[dict[str, Any]]], cut: int) -> None:
    payload, events = record
    parsed = FORMAT.parse(batch([payload[:-cut]]))
    good = [event for event in events if right(event)]
    assert parsed.events.to_pylist() == [read_as(event) for event in good[: parsed.events.num_rows]]
    assert len(parsed.rejects) == 1 or payload[:6] != b"ARROW1"
