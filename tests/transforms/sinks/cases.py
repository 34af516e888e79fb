"""Result rows made of hostile values, and the plain-Python answer to what a store must hold after they were written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from streamgauge.transforms.rows import RowSpec

UTC = pa.timestamp("us", tz="UTC")
ROWS = RowSpec(
    kind="results",
    key=("metric", "window_start", "origin", "gate", "open", "day", "since"),
    time="window_start",
    revision="revision",
    final="final",
)
SCHEMA = ROWS.attach(
    pa.schema([
        pa.field("metric", pa.string(), nullable=False),
        pa.field("window_start", UTC, nullable=False),
        pa.field("window_end", UTC, nullable=False),
        pa.field("origin", pa.string()),
        pa.field("gate", pa.int64()),
        pa.field("open", pa.bool_()),
        pa.field("day", pa.date32()),
        pa.field("since", UTC),
        pa.field("count", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("label", pa.string()),
        pa.field("any", pa.bool_()),
        pa.field("last_seen", UTC),
        pa.field("top", pa.list_(pa.struct([("value", pa.string()), ("count", pa.int64())]))),
        pa.field("big", pa.uint64()),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("revision", pa.int64(), nullable=False),
        pa.field("final", pa.bool_(), nullable=False),
    ])
)
START = 1_357_016_400_000_000
HOUR = 3_600_000_000
INT_EDGES = (0, 1, -1, 2**63 - 1, -(2**63) + 1, 2**53 + 1)
TEXT_EDGES = (
    "", " ", "n", "v", "null", "NaN", "0", "x''", "a,b=c d", "it's", '"', "\\", "\n", "\r\n", "\t", "a\0b", "\0", "\x01\x7f", "\u2028",
    "é", "e\u0301", "😀",
)


def integers() -> st.SearchStrategy[int]:
    return st.sampled_from(INT_EDGES) | st.integers(-(2**63) + 1, 2**63 - 1)


def texts() -> st.SearchStrategy[str]:
    return st.sampled_from(TEXT_EDGES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def keys() -> st.SearchStrategy[tuple[Any, ...]]:
    """Many differ in one value only: in null against the values that a store might take for it."""
    start = st.sampled_from([START, START + HOUR, START + 30 * HOUR, START + 900 * HOUR, 0])
    near_null = st.tuples(st.just("delay"), st.just(START), st.sampled_from([None, "", "\0", "0"]),
                          st.sampled_from([None, 0, -(2**63) + 1]), st.sampled_from([None, False]),
                          st.sampled_from([None, 0]), st.sampled_from([None, 0]))
    anything = st.tuples(st.sampled_from(["delay", "é b"]), start, maybe(texts()), maybe(integers()), maybe(st.booleans()),
                         maybe(st.integers(-1_000_000, 1_000_000)), maybe(integers()))
    return near_null | anything


def rows_of(key: tuple[Any, ...]) -> st.SearchStrategy[dict[str, Any]]:
    top = st.lists(st.fixed_dictionaries({"value": maybe(texts()), "count": integers()}), max_size=2)
    values = st.fixed_dictionaries({
        "window_end": st.just(key[1] + HOUR), "count": maybe(integers()), "mean": maybe(st.floats()), "label": maybe(texts()),
        "any": maybe(st.booleans()), "last_seen": maybe(integers()), "top": maybe(top), "big": maybe(st.integers(0, 2**64 - 1)),
        "events": st.integers(0, 2**62), "revision": st.integers(0, 4), "final": st.booleans(),
    })
    return values.map(lambda v: dict(zip(ROWS.key, key, strict=True)) | v)


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Batches in the order of their writing: keys come again with rising and falling revisions, batches are replayed."""
    pool = draw(st.lists(keys(), min_size=1, max_size=8, unique=True))
    batches = [
        [draw(rows_of(key)) for key in draw(st.lists(st.sampled_from(pool), min_size=1, max_size=8, unique=True))]
        for _ in range(draw(st.integers(1, 5)))
    ]
    replayed = draw(st.lists(st.sampled_from(batches), max_size=3))
    return draw(st.permutations(batches + replayed))


def to_table(rows: Iterable[dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Timestamps and dates are given as their integers, which have no bounds of Python's datetime."""
    rows = list(rows)

    def column(field: pa.Field) -> pa.Array:
        values = [row[field.name] for row in rows]
        if pa.types.is_date(field.type):
            return pa.array(values, pa.int32()).cast(field.type)
        return pa.array(values, pa.int64()).cast(field.type) if pa.types.is_timestamp(field.type) else pa.array(values, field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """The inverse of ``to_table``."""

    def values(column: pa.ChunkedArray) -> list[Any]:
        if pa.types.is_date(column.type):
            return column.cast(pa.int32()).to_pylist()
        return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()

    columns = {name: values(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stored(history: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a conditional store holds in the end."""
    held: dict[tuple[Any, ...], dict[str, Any]] = {}
    for batch in history:
        for row in batch:
            key = tuple(row[name] for name in ROWS.key)
            old = held.get(key)
            newer = old is None or row["revision"] > old["revision"]
            if newer or (row["revision"] == old["revision"] and (row["final"] or not old["final"])):
                held[key] = row
    return list(held.values())


def same(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], as_null: Callable[[float], bool] = lambda value: False
) -> None:
    """Asserts equal rows in any order; floats for which ``as_null`` holds are expected as null."""

    def comparable(row: dict[str, Any], expect: bool) -> str:
        values = {name: None if expect and isinstance(value, float) and as_null(value) else value for name, value in row.items()}
        return json.dumps(values, sort_keys=True)

    assert sorted(comparable(row, False) for row in found) == sorted(comparable(row, True) for row in expected)


def result(
    hour: int = 0, origin: str | None = "JFK", revision: int = 1, final: bool = False, count: int = 1, **other: Any
) -> dict[str, Any]:
    """A row like those of a real job."""
    start = START + hour * HOUR
    return {
        "metric": "delay", "window_start": start, "window_end": start + HOUR, "origin": origin,
        "gate": None, "open": None, "day": None, "since": None, "count": count, "mean": 0.5,
        "label": None, "any": None, "last_seen": None, "top": None, "big": None, "events": count,
        "revision": revision, "final": final, **other,
    }
