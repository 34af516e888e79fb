"""MapEvents: what events become, and what an event costs that has no answer. The oracle is plain Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from streamgauge.transforms import AggregateWindows, Deduplicate, MapEvents, ReadEvents
from streamgauge.transforms.batch import EVENT_TIME, EVENT_TIME_TYPE, POSITION, SPLIT, SPLIT_TYPE, BatchType, disorder_of, with_disorder
from streamgauge.transforms.map_events import MapOptions, build_steps, letters, run_steps
from streamgauge.transforms.map_python import ContractError
from streamgauge.transforms.map_steps import Mapped
from streamgauge.transforms.record import JobRecord
from tests.collect import Collected
from tests.examples import examples

pytestmark = pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result")

ITEM = pa.struct([("sku", pa.string()), ("count", pa.int64())])
SCHEMA = with_disorder(
    pa.schema([
        pa.field(EVENT_TIME, EVENT_TIME_TYPE, nullable=False), pa.field(SPLIT, SPLIT_TYPE, nullable=False), pa.field(POSITION, pa.int64(), nullable=False),
        pa.field("n", pa.int64()), pa.field("text", pa.string()), pa.field("items", pa.list_(ITEM)), pa.field("tags", pa.list_(pa.string())),
    ]), 5_000,
)  # fmt: skip
Row = dict[str, Any]
NUMBERS = st.none() | st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]) | st.integers(-50, 50)
TEXTS = st.none() | st.sampled_from(["", "1", "-7", "x", "é", "\U0001f600", "9" * 30])
ITEMS = st.none() | st.lists(st.none() | st.fixed_dictionaries({"sku": TEXTS, "count": NUMBERS}), max_size=3)
ROWS = st.lists(st.fixed_dictionaries({"n": NUMBERS, "text": TEXTS, "items": ITEMS, "tags": st.none() | st.lists(TEXTS, max_size=3)}), min_size=1, max_size=10)


def batch(rows: list[Row]) -> pa.RecordBatch:
    """Row i is at position 10 i and time i."""
    n = len(rows)
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in list(SCHEMA)[3:]]
    splits = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array(["s-0"]))
    return pa.record_batch([pa.array(range(n), EVENT_TIME_TYPE), splits, pa.array(range(0, 10 * n, 10)), *columns], schema=SCHEMA)


def mapped(rows: list[Row], **options: Any) -> Mapped:
    """What the steps make, as a worker would have them."""
    steps = pickler.loads(pickler.dumps(build_steps(MapOptions(**options), SCHEMA)))
    found = run_steps(steps, batch(rows))
    assert found.events.schema.equals(steps[-1].schema, check_metadata=True) and disorder_of(found.events.schema) == 5_000
    found.events.validate(full=True)
    if found.events.num_rows:
        assert found.events.column(POSITION).to_pylist() == [10 * row for row in found.rows], "lineage stays"
        assert found.events.column(EVENT_TIME).cast(pa.int64()).to_pylist() == list(found.rows), "event time stays"
    return found


def values(found: Mapped, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(found.events.column(name).to_pylist() for name in names), strict=True))


def whole(text: str | None) -> int | None:
    """int64 of a text, as SQL casts it. Raises ValueError."""
    if text is None:
        return None
    number = int(text)
    if abs(number) >= 2**63:
        raise ValueError(text)
    return number


@settings(max_examples=examples(60), deadline=None)
@given(ROWS, st.booleans())
def test_lists_become_rows(rows: list[Row], keep_empty: bool) -> None:
    found = mapped(rows, explode={"field": "items", "as": "item", "index": "place", "keep_empty": keep_empty}, drop=["tags"])
    expected = []
    for row in rows:
        for place, item in enumerate(row["items"] or []):
            expected.append((row["n"], row["text"], (item or {}).get("sku"), (item or {}).get("count"), place))
        if keep_empty and not row["items"]:
            expected.append((row["n"], row["text"], None, None, None))
    assert values(found, "n", "text", "item.sku", "item.count", "place") == expected and not found.failed
    found = mapped(rows, explode="tags", keep=["n", "tags"])
    assert values(found, "n", "tags") == [(row["n"], tag) for row in rows for tag in row["tags"] or []]


@settings(max_examples=examples(25), deadline=None)
@given(ROWS)
def test_an_event_without_an_answer_costs_itself_only(rows: list[Row]) -> None:
    found = mapped(rows, where="n IS NULL OR n >= 0", fields={"whole": "text::BIGINT", "n": "n + 1", "half": "n * 0.5"})
    expected, failed = [], set()
    for place, row in enumerate(rows):
        n = row["n"]
        if n is not None and n < 0:
            continue
        try:
            if n == 2**63 - 1:
                raise ValueError("n + 1")
            expected.append((whole(row["text"]), None if n is None else n + 1, None if n is None else n * 0.5, row["text"]))
        except ValueError:
            failed.add(place)
    assert values(found, "whole", "n", "half", "text") == expected
    assert set(found.failed) == failed and all(why.error_type == "expression" and str(why).startswith("fields: ") for why in found.failed.values())


@settings(max_examples=examples(40), deadline=None)
@given(ROWS)
def test_an_event_of_which_one_item_fails_gives_none(rows: list[Row]) -> None:
    found = mapped(rows, explode="items", fields={"whole": '"items.sku"::BIGINT'}, keep=["whole", "items.count"])
    expected, failed = [], set()
    for place, row in enumerate(rows):
        try:
            expected += [(whole((item or {}).get("sku")), (item or {}).get("count")) for item in row["items"] or []]
        except ValueError:
            failed.add(place)
    assert values(found, "whole", "items.count") == expected and set(found.failed) == failed


def double_numpy(arrays: Mapping[str, Any]) -> dict[str, Any]:
    assert set(arrays) == {EVENT_TIME, "n", "text", "items", "tags"}
    if any(text == "x" for text in arrays["text"]):
        raise RuntimeError("no\nx here")
    return {"half": arrays["n"] / 2, "n": np.ma.masked_array(arrays["n"])}


def double_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    if (frame["text"] == "x").any():
        raise RuntimeError("no\nx here")
    frame["half"] = frame["n"] / 2
    return frame


def double_polars(frame: pl.DataFrame) -> pl.DataFrame:
    if (frame["text"] == "x").any():
        raise RuntimeError("no\nx here")
    return frame.with_columns(half=pl.col("n") / 2)


def double_batch(events: pa.RecordBatch) -> pa.Table:
    if "x" in events.column("text").to_pylist():
        raise RuntimeError("no\nx here")
    return pa.table({"half": [None if n is None else n / 2 for n in events.column("n").to_pylist()], "n": events.column("n")})


@pytest.mark.parametrize(("takes", "function"), [("numpy", double_numpy), ("pandas", double_pandas), ("polars", double_polars), ("batch", double_batch)])
@settings(max_examples=examples(25), deadline=None)
@given(rows=ROWS)
def test_a_function_that_raises_for_one_event_costs_that_event(takes: str, function: Callable[[Any], Any], rows: list[Row]) -> None:
    found = mapped(rows, python={"function": function, "takes": takes, "schema": {"half": "double", "n": "int64"}})
    good = [row for row in rows if row["text"] != "x"]
    assert values(found, "n", "half", "text") == [(row["n"], None if row["n"] is None else row["n"] / 2, row["text"]) for row in good]
    assert {place: (why.error_type, str(why)) for place, why in found.failed.items()} == {
        place: ("function", "RuntimeError: no x here") for place, row in enumerate(rows) if row["text"] == "x"
    }


def test_what_a_function_writes_over_later_stays_as_it_was() -> None:
    scratch = np.zeros(2)
    steps = build_steps(MapOptions(python={"function": lambda arrays: {"y": scratch[: len(arrays["n"])]}, "takes": "numpy", "schema": {"y": "double"}}), SCHEMA)
    first = run_steps(steps, batch([{}, {}])).events
    scratch[:] = 9
    assert first.column("y").to_pylist() == [0, 0]


def test_values_that_do_not_fit_the_declared_type_are_told_apart() -> None:
    found = mapped([{"n": 1}, {"n": 500}, {"n": -1}], python={"function": lambda events: {"small": events["n"]}, "takes": "numpy", "schema": {"small": "uint8"}})
    assert values(found, "small") == [(1,)]
    assert {place: why.error_type for place, why in found.failed.items()} == {1: "type", 2: "type"} and "small: expected uint8" in str(found.failed[1])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda arrays: {"z": [1.0]}, "the function returned 1 values of 'z' for 0 events; only `where` drops events"),
        (lambda arrays: {"y": arrays["n"]}, "the function returned no field 'z'; it has y"),
        (lambda arrays: 5, "the function returned int; expected a mapping of names to arrays"),
    ],
)
def test_a_function_that_returns_something_else_is_found_before_the_start(function: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        mapped([{}], python={"function": function, "takes": "numpy", "schema": {"z": "double"}})
    assert words in caught.value.message()


def test_a_function_that_drops_rows_fails_the_job() -> None:
    """Asked for each event alone it might seem right."""
    with pytest.raises(ContractError, match="1 values of 'z' for 2 events"):
        mapped([{"n": 1}, {"n": None}], python={"function": lambda frame: frame.dropna(subset=["n"]).assign(z=1.0), "takes": "pandas", "schema": {"z": "double"}})


def test_types_of_derived_fields() -> None:
    sql = {"whole": "2::HUGEINT", "part": "1.5", "at": "TIMESTAMP '2020-01-02'", "list": "[n]", "object": "{'a': n}", "day": "DATE '2020-01-02'", "n": "n > 1"}
    steps = build_steps(MapOptions(fields=sql), SCHEMA)
    found = {field.name: str(field.type) for field in steps[-1].schema}
    assert [found[name] for name in ("whole", "part", "at", "day", "n")] == ["int64", "double", "timestamp[us, tz=UTC]", "date32[day]", "bool"]
    assert pa.types.is_list(steps[-1].schema.field("list").type) and pa.types.is_struct(steps[-1].schema.field("object").type)
    assert steps[-1].schema.names[:4] == SCHEMA.names[:4] and steps[-1].schema.names[-1] == "day"
    assert run_steps(steps, batch([{"n": 2}])).events.column("at").cast(pa.int64()).to_pylist() == [1_577_923_200_000_000]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"explode": "item"}, "explode 'item': the schema has no such field - did you mean 'items'?"),
        ({"explode": "text"}, "explode: 'text' is string, and no list; make a list of it first"),
        ({"explode": {"field": "tags", "as": "n"}}, "explode: there is a field 'n' already"),
        ({"explode": {"field": "items", "index": "items.sku"}}, "explode: index 'items.sku' is a field of the items; choose another name"),
        ({"explode": {"field": "tags", "as": "__tag"}}, "explode: '__tag' cannot be the name of a field"),
        ({"where": "n + 1"}, "'n + 1' is no condition: it is int64"),
        ({"where": "text > "}, "no SQL expression"),
        ({"fields": {"a": "n", "b": "a + 1"}}, "no field 'a'"),
        ({"fields": {"a": "null"}}, "'null' has no type; say which, such as `CAST(null AS DOUBLE)`"),
        ({"fields": {"a": "INTERVAL 1 HOUR"}}, "which no field can be; convert it"),
        ({"keep": ["m"]}, "keep 'm': the schema has no such field"),
        ({"drop": ["__time"]}, "drop '__time': the schema has no such field"),
    ],
)
def test_what_does_not_fit_the_events_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        build_steps(MapOptions(**options), SCHEMA)
    assert words in caught.value.message()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "there is nothing to do"),
        ({"keep": ["n"], "drop": ["n"]}, "give `keep` or `drop`, not both"),
        ({"fields": {"__time": "n"}}, "'__time' cannot be the name of a field"),
        ({"python": {"function": "json:lods", "schema": {"z": "double"}}}, "'json' has no 'lods' - did you mean 'load"),
        ({"python": {"function": "no_such_module:f", "schema": {"z": "double"}}}, "cannot be imported: ModuleNotFoundError"),
        ({"python": {"function": "json", "schema": {"z": "double"}}}, "write `module:name`"),
        ({"python": {"function": "json:decoder", "schema": {"z": "double"}}}, "is module, and no function"),
        ({"python": {"function": "json:loads", "schema": {"z": "dubble"}}}, "unknown type 'dubble'"),
    ],
)
def test_what_is_wrong_by_itself_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MapOptions(**options)
    assert words in str(caught.value)


def test_a_dead_letter_has_the_event_as_it_came() -> None:
    rows = [{"n": 1, "text": "x", "items": [{"sku": "a", "count": 2}]}, {"n": 2, "text": "7"}]
    found = mapped(rows, fields={"whole": "text::BIGINT"}, drop=["n"])
    (letter,) = letters(batch(rows), found.failed, "Clean").to_pylist()
    assert (letter["stage"], letter["source"], letter["split"], letter["position"], letter["error_type"]) == ("map", "Clean", "s-0", 0, "expression")
    assert json.loads(letter["payload"]) == {EVENT_TIME: "1970-01-01T00:00:00.000000Z", "n": 1, "text": "x", "items": [{"sku": "a", "count": 2}], "tags": None}
    assert letter["message"].startswith("fields: Conversion Error: Could not convert string 'x'")


def run(tmp_path: Path, batches: list[pa.RecordBatch], **options: Any) -> tuple[Collected, Collected, JobRecord]:
    out, rejected = Collected(), Collected()
    with beam.Pipeline(BundleBasedDirectRunner(), PipelineOptions(["--record_folder", str(tmp_path / "record")])) as pipeline:
        events = pipeline | beam.Create([0]) | beam.FlatMap(lambda _: (TimestampedValue(part, 7) for part in batches))
        events.element_type = BatchType(SCHEMA)
        made = events | "Clean" >> MapEvents(error_handling={"output": "bad"}, **options)
        _ = made["events"] | "Times" >> beam.Map(lambda part, at=beam.DoFn.TimestampParam: pa.record_batch({"at": [int(at)], "rows": [part.num_rows]})) | out
        _ = made["bad"] | rejected
    return out, rejected, JobRecord(tmp_path / "record")


def test_elements_keep_their_timestamp_and_a_large_list_makes_several(tmp_path: Path) -> None:
    many = batch([{"tags": ["a"] * 20_000}, {"tags": []}])
    out, rejected, record = run(tmp_path, [many, batch([{"tags": []}])], explode="tags")
    assert (out.rows, rejected.rows) == ([{"at": 7, "rows": 16_384}, {"at": 7, "rows": 3_616}], []), "what is empty is not sent"
    (noted,) = record.all("maps")
    assert (noted["step"], noted["events"], noted["made"], noted["rejected"]) == ("Clean", 3, 20_000, 0)


def test_a_function_that_always_fails_is_seen_in_the_record(tmp_path: Path) -> None:
    def broken(events: pa.RecordBatch) -> Any:
        raise ZeroDivisionError("so")

    out, rejected, record = run(tmp_path, [batch([{}] * 5)] * 3, python={"function": broken, "schema": {"z": "double"}})
    assert out.rows == [] and len(rejected.rows) == 15 and {row["message"] for row in rejected.rows} == {"ZeroDivisionError: so"}
    assert [(noted["made"], noted["rejected"]) for noted in record.all("maps")] == [(0, 15)]


def test_from_files_to_results(tmp_path: Path) -> None:
    """Lists in JSON, a derived field, duplicates and windows; what fails goes to the job's dead letters, as with ReadEvents."""
    orders = [{"at": f"2024-01-01T00:00:{i:02}Z", "order": i % 8, "lines": [{"sku": sku, "price": str(i)} for sku in "ab"]} for i in range(10)]
    orders[3]["lines"][1]["price"] = "much"
    (tmp_path / "in.ndjson").write_text("".join(json.dumps(order) + "\n" for order in orders))
    results = Collected()
    with beam.Pipeline(FnApiRunner(), PipelineOptions(["--record_folder", str(tmp_path / "record")])) as pipeline:
        schema = {"at": "timestamp", "order": "int64", "lines": "list<struct<sku: string, price: string>>"}
        read = pipeline | ReadEvents(**{"from": {"files": str(tmp_path / "in.ndjson")}, "format": {"json": {"schema": schema}}, "time": {"field": "at"}})
        lines = read | MapEvents(explode={"field": "lines", "as": "line"}, fields={"price": '"line.price"::DOUBLE', "sku": 'upper("line.sku")'}, where='"line.sku" <> \'c\'')
        once = lines | Deduplicate(by=["order", "sku"], horizon="1m")
        _ = once | AggregateWindows(metric="sales", window={"tumbling": "1m"}, by=["sku"], aggregates={"paid": {"sum": "price"}}) | results
    prices = sum(i for i in range(8) if i != 3)
    final = [row for row in results.rows if row["final"]]
    assert sorted((row["sku"], row["paid"], row["events"]) for row in final) == [("A", prices, 7), ("B", prices, 7)]
    import pyarrow.dataset as ds

    (letter,) = ds.dataset(tmp_path / "record" / "dead_letters").to_table().to_pylist()
    assert (letter["stage"], letter["error_type"]) == ("map", "expression") and json.loads(letter["payload"])["order"] == 3
