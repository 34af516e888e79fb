"""Result rows made of hostile values, and the plain-Python answer to what a store must hold after they were written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from streamgauge.transforms.rows import RowSpec

UTC = pa.timestamp("us", tz="UTC")
SKETCH = pa.struct([("scale", pa.int32()), ("side", pa.struct([("offset", pa.int32()), ("counts", pa.list_(pa.int64()))])), ("day", pa.date32())])
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
        pa.field("share", pa.float32()),
        pa.field("on", pa.date32()),
        pa.field("tail", pa.list_(pa.float64())),
        pa.field("seen", pa.list_(UTC)),
        pa.field("sketch", SKETCH),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("revision", pa.int64(), nullable=False),
        pa.field("final", pa.bool_(), nullable=False),
        pa.field("watermark", UTC),
    ])
)
SESSION_ROWS = replace(ROWS, withdrawn="withdrawn")
SESSIONS = SESSION_ROWS.attach(SCHEMA.append(pa.field("withdrawn", pa.bool_(), nullable=False)))
"""Rows that can be withdrawn."""
EARLIER = ROWS.attach(SCHEMA.remove(SCHEMA.get_field_index("watermark")))
"""As an earlier version wrote them."""
START = 1_357_016_400_000_000
HOUR = 3_600_000_000
INT_EDGES = (0, 1, -1, 2**63 - 1, -(2**63) + 1, 2**53 + 1)
TEXT_EDGES = (
    "", " ", "n", "v", "null", "NaN", "0", "x''", "a,b=c d", "it's", '"', "\\", "\n", "\r\n", "\t", "a\0b", "\0", "\x01\x7f", "\u2028",
    "é", "e\u0301", "😀",
)
INF, NAN = math.inf, math.nan
OTHER_EDGES: dict[str, tuple[Any, ...]] = {
    "share": (None, 0.0, -0.0, 0.5, -(2.0**-149), 2.0**127, INF, -INF, NAN),
    "on": (None, 0, 15706, -1_000_000, 1_000_000),
    "watermark": (None, 0, START, *INT_EDGES),
    "tail": (None, [], [None], [0.1, NAN, None, -0.0], [INF, -INF], [5e-324, 1.7976931348623157e308]),
    "seen": (None, [], [None, START], [*INT_EDGES]),
    "sketch": (
        None, {"scale": None, "side": None, "day": None}, {"scale": -3, "side": {"offset": None, "counts": None}, "day": 15706},
        {"scale": 2**31 - 1, "side": {"offset": -(2**31), "counts": []}, "day": -1_000_000}, {"scale": 0, "side": {"offset": 0, "counts": [None, *INT_EDGES]}, "day": 0},
    ),
}
"""Drawn from few: what is stored of them does not depend on other columns."""


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


def rows_of(key: tuple[Any, ...], sessions: bool) -> st.SearchStrategy[dict[str, Any]]:
    top = st.lists(st.fixed_dictionaries({"value": maybe(texts()), "count": integers()}), max_size=2)
    values = st.fixed_dictionaries({
        "window_end": st.just(key[1] + HOUR), "count": maybe(integers()), "mean": maybe(st.floats()), "label": maybe(texts()),
        "any": maybe(st.booleans()), "last_seen": maybe(integers()), "top": maybe(top), "big": maybe(st.integers(0, 2**64 - 1)),
        **{name: st.sampled_from(edges) for name, edges in OTHER_EDGES.items()},
        "events": st.integers(0, 2**62), "revision": st.integers(0, 4), "final": st.booleans(),
        **({"withdrawn": st.booleans()} if sessions else {}),
    })
    return values.map(lambda v: dict(zip(ROWS.key, key, strict=True)) | v)


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Batches in the order of their writing: keys come again with rising and falling revisions, batches are replayed. In every second one rows
    may be withdrawn."""
    sessions = draw(st.booleans())
    pool = draw(st.lists(keys(), min_size=1, max_size=8, unique=True))
    batches = [
        [draw(rows_of(key, sessions)) for key in draw(st.lists(st.sampled_from(pool), min_size=1, max_size=8, unique=True))]
        for _ in range(draw(st.integers(1, 5)))
    ]
    replayed = draw(st.lists(st.sampled_from(batches), max_size=3))
    return draw(st.permutations(batches + replayed))


def schema_of(rows: list[dict[str, Any]]) -> pa.Schema:
    return SESSIONS if rows and "withdrawn" in rows[0] else SCHEMA


def as_numbers(kind: pa.DataType) -> pa.DataType:
    """The type with integers in place of times and dates: Python's datetime has bounds."""
    if pa.types.is_list(kind):
        return pa.list_(as_numbers(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, as_numbers(kind.field(i).type)) for i in range(kind.num_fields)])
    return pa.int32() if pa.types.is_date(kind) else pa.int64() if pa.types.is_timestamp(kind) else kind


def to_table(rows: Iterable[dict[str, Any]], schema: pa.Schema | None = None) -> pa.Table:
    rows = list(rows)
    schema = schema or schema_of(rows)
    columns = [pa.array([row[field.name] for row in rows], as_numbers(field.type)).cast(field.type) for field in schema]
    return pa.table(columns, schema=schema)


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """The inverse of ``to_table``."""
    columns = {name: column.cast(as_numbers(column.type)).to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stored(history: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a conditional store shows in the end."""
    held: dict[tuple[Any, ...], dict[str, Any]] = {}
    for batch in history:
        for row in batch:
            key = tuple(row[name] for name in ROWS.key)
            old = held.get(key)
            newer = old is None or row["revision"] > old["revision"]
            if newer or (row["revision"] == old["revision"] and (row["final"] or not old["final"])):
                held[key] = row
    return [row for row in held.values() if not row.get("withdrawn")]


def same(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], as_null: Callable[[float], bool] = lambda value: False, *, in_json: bool = False
) -> None:
    """Asserts equal rows in any order; floats for which ``as_null`` holds are expected as null. ``in_json``: lists and structs are kept as JSON."""

    def no_number(value: float) -> bool:
        return in_json and not math.isfinite(value)

    def expected_as(value: Any, is_null: Callable[[float], bool]) -> Any:
        if isinstance(value, dict):
            return {name: expected_as(item, no_number) for name, item in value.items()}
        if isinstance(value, list):
            return [expected_as(item, no_number) for item in value]
        return None if isinstance(value, float) and is_null(value) else value

    def comparable(row: dict[str, Any], expect: bool) -> str:
        values = {name: expected_as(value, as_null) if expect else value for name, value in row.items()}
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
        "label": None, "any": None, "last_seen": None, "top": None, "big": None, "share": None, "on": None, "tail": None, "seen": None,
        "sketch": None, "events": count, "revision": revision, "final": final, "watermark": None, **other,
    }


def session(hour: int = 0, revision: int = 1, final: bool = False, count: int = 1, **other: Any) -> dict[str, Any]:
    """A row that can be withdrawn."""
    return result(hour=hour, revision=revision, final=final, count=count, **other) | {"withdrawn": False}


def withdrawal(row: dict[str, Any], revision: int) -> dict[str, Any]:
    """The row that withdraws ``row``, as a job emits it."""
    kept = {name: row[name] for name in (*ROWS.key, "window_end")}
    return dict.fromkeys(row) | kept | {"events": 0, "revision": revision, "final": True, "withdrawn": True}
