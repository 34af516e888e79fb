"""The events that a job should have seen, computed by DuckDB from raw payloads: nothing here uses our formats or kernels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from streamgauge.pipelines.verify_input import Raw
from streamgauge.transforms.event_time import MAX_TIME, MIN_TIME, TimeOptions

ROWS_A_CHUNK = 50_000

_RAW = pa.schema([
    ("split", pa.string()), ("position", pa.int64()), ("payload", pa.binary()), ("stamp", pa.int64()), ("reject", pa.string()),
    ("texts", pa.list_(pa.string())),
])  # fmt: skip
_YEAR_1, _YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000
_FLOAT32_LIMIT = "3.4028235677973366e38"
_DATE = r"\d{4}-\d\d-\d\d"
_ISO = rf"({_DATE})(?:[Tt ]((?:[01]\d|2[0-3]):[0-5]\d)(?::([0-5]\d)(?:\.(\d{{1,9}}))?)?(?:[Zz]|([+-])([01]\d|2[0-3])(?::?([0-5]\d))?)?)?"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_UNIT_POWER = {"s": 6, "ms": 3, "us": 0, "ns": -3}
_LAX = r",\s*[}\]]|(?i:nan|inf)"
"""What DuckDB takes for JSON and is none, outside of strings: a comma before a closing bracket, NaN, Infinity."""
_BARE = r"""regexp_replace(text, '"(?:[^"\\]|\\.)*"', '""', 'g')"""
_OBJECT = (
    "json_valid(text) AND json_type(CASE WHEN json_valid(text) THEN text END) = 'OBJECT' "
    f"AND NOT (regexp_matches(text, '{_LAX}') AND regexp_matches({_BARE}, '{_LAX}'))"
)


def sql_type(type_name: str) -> str:
    """How the values of a declared type are held: times as microseconds, dates as days since the epoch.

    >>> sql_type("int16"), sql_type("timestamp[ms]")
    ('HUGEINT', 'BIGINT')
    """
    if type_name.startswith("timestamp"):
        return "BIGINT"
    if type_name.startswith(("int", "uint")):
        return "HUGEINT"
    return {"string": "VARCHAR", "bool": "BOOLEAN", "float": "FLOAT", "float32": "FLOAT", "double": "DOUBLE", "float64": "DOUBLE"}.get(type_name, "INTEGER")


def load_raw(connection: Any, table: str, split: str, raws: Iterable[Raw], read: Any) -> int:
    """Adds the records of a split to ``table``; ``read`` is the Choice of its format. Returns their number."""
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {table} (split VARCHAR, position BIGINT, payload BLOB, stamp BIGINT, reject VARCHAR, texts VARCHAR[])"
    )
    rows, total = iter(raws), 0
    while chunk := list(islice(rows, ROWS_A_CHUNK)):
        texts = _csv_fields(chunk, read.options) if read.name == "csv" else [None] * len(chunk)
        positions, payloads, stamps, rejects = zip(*chunk, strict=True)
        batch = pa.table([[split] * len(chunk), positions, payloads, stamps, rejects, texts], schema=_RAW)
        connection.register("chunk", batch)
        connection.execute(f"INSERT INTO {table} SELECT * FROM chunk")
        connection.unregister("chunk")
        total += len(chunk)
    return total


def _csv_fields(chunk: list[Raw], options: Any) -> list[list[str] | None]:
    """The fields of each line by the standard library's reader; None for one that has not as many as it should, or is not UTF-8."""
    quoting = {"quotechar": options.quote} if options.quote else {"quoting": csv.QUOTE_NONE}
    names = _csv_names(options)
    found: list[list[str] | None] = []
    for raw in chunk:
        fields = None
        try:
            line = (raw.payload or b"").decode()
            if line:
                fields = next(csv.reader([line], delimiter=options.delimiter, strict=True, **quoting))
        except (UnicodeDecodeError, csv.Error, StopIteration):
            pass
        found.append(fields if fields is not None and len(fields) == len(names) else None)
    return found


def _csv_names(options: Any) -> list[str]:
    return list(options.fields) if options.columns is None else list(options.columns)


def make_events(connection: Any, raw: str, events: str, read: Any, time: TimeOptions) -> None:
    """From the raw table of a source the table ``events``: split, position, reason (null: it is an event), time (microseconds), f0, f1, ...

    Step by step, so that no expression is computed twice: ``RAW_read`` has the text of each field (s0, ...), what JSON says it
    is (t0, ...), and whether it is missing (null0, ...); then come values, then what is wrong with them.
    """
    fields = list(read.options.fields.items())
    if read.name == "json":
        _json_texts(connection, raw, [name for name, _ in fields])
    else:
        _csv_texts(connection, raw, read.options)
    typed = [_typed(index, kind, json=read.name == "json") for index, (_, kind) in enumerate(fields)]
    parts = ", ".join(["*", *(part.parts for part in typed if part.parts)])
    values = ", ".join(f"CASE WHEN NOT null{index} THEN {part.value} END AS f{index}" for index, part in enumerate(typed))
    wrong = " ".join(f"WHEN NOT (inside{index} AND (null{index} OR coalesce({part.good}, false))) THEN {_quoted(f'type: {fields[index][0]}')}" for index, part in enumerate(typed))
    columns = ", ".join(f"f{index}" for index in range(len(fields)))
    connection.execute(f"""
        CREATE TABLE {events} AS
        WITH parts AS (SELECT {parts} FROM {raw}_read), valued AS (SELECT *, {values} FROM parts), timed AS (SELECT *, {_event_time(fields, time)} AS time FROM valued)
        SELECT split, position, time, {columns}, CASE
            WHEN reject IS NOT NULL THEN reject
            WHEN bytes IS NULL THEN 'tombstone'
            WHEN bytes > {read.options.max_bytes} THEN 'too_large'
            WHEN malformed THEN 'malformed'
            {wrong}
            WHEN time IS NULL OR time NOT BETWEEN {MIN_TIME} AND {MAX_TIME} THEN 'no_event_time'
        END AS reason FROM timed
    """)


def _json_texts(connection: Any, raw: str, names: list[str]) -> None:
    """Of equal names in an object the last counts."""
    connection.execute(f"""
        CREATE OR REPLACE TABLE {raw}_documents AS
        WITH texts AS (SELECT split, position, stamp, octet_length(payload) AS bytes, reject, TRY(decode(payload)) AS text FROM {raw})
        SELECT split, position, stamp, bytes, reject, CASE WHEN {_OBJECT} THEN text END AS document FROM texts
    """)
    twice = connection.execute(f"""
        SELECT split, position, document FROM (SELECT *, json_keys(document) AS names FROM {raw}_documents WHERE document IS NOT NULL)
        WHERE len(names) <> list_unique(names)
    """).fetchall()
    for split, position, text in twice:
        once = json.dumps(json.loads(text))
        connection.execute(f"UPDATE {raw}_documents SET document = ? WHERE split = ? AND position = ?", [once, split, position])
    steps = [[step.replace("~", "~0").replace("/", "~1") for step in name.split(".")] for name in names]
    pointers = ["/" + "/".join(path) for path in steps]
    parents = sorted({"/" + "/".join(path[:depth]) for path in steps for depth in range(1, len(path))})
    columns = []
    for index, path in enumerate(steps):
        above = [parents.index("/" + "/".join(path[:depth])) for depth in range(1, len(path))]
        inside = " AND ".join(["true", *(f"coalesce(types[{len(names) + parent + 1}] IN ('OBJECT', 'NULL'), true)" for parent in above)])
        columns.append(f"types[{index + 1}] AS t{index}, texts[{index + 1}] AS s{index}, coalesce(types[{index + 1}] = 'NULL', true) AS null{index}, ({inside}) AS inside{index}")
    connection.execute(f"""
        CREATE OR REPLACE VIEW {raw}_read AS
        WITH found AS (
            SELECT *, json_type(document, [{", ".join(map(_quoted, [*pointers, *parents]))}]) AS types, json_extract_string(document, [{", ".join(map(_quoted, pointers))}]) AS texts
            FROM {raw}_documents
        )
        SELECT split, position, stamp, bytes, reject, document IS NULL AS malformed, {", ".join(columns)} FROM found
    """)


def _csv_texts(connection: Any, raw: str, options: Any) -> None:
    names = _csv_names(options)
    nulls = ", ".join(_quoted(text) for text in options.nulls) or "NULL"
    header = "NOT (position = 0 AND texts IS NOT NULL)" if options.header else "true"
    columns = []
    for index, (name, kind) in enumerate(options.fields.items()):
        text = f"texts[{names.index(name) + 1}]"
        bare = text if kind == "string" else f"trim({text}, ' \t')"
        columns.append(f"{bare} AS s{index}, coalesce({text} IN ({nulls}), true) AS null{index}, true AS inside{index}")
    connection.execute(f"""
        CREATE OR REPLACE VIEW {raw}_read AS
        SELECT split, position, stamp, octet_length(payload) AS bytes, reject, texts IS NULL AS malformed, {", ".join(columns)} FROM {raw} WHERE {header}
    """)


class _Typed(NamedTuple):
    """SQL of a field: columns to make first, its value, whether that is of the declared type."""

    parts: str
    value: str
    good: str


def _typed(index: int, kind: str, *, json: bool) -> _Typed:
    text, value = f"s{index}", f"f{index}"
    number = f"t{index} IN ('UBIGINT', 'BIGINT', 'HUGEINT', 'UHUGEINT', 'DOUBLE')" if json else f"regexp_full_match({text}, {_quoted(_NUMBER)})"
    string = f"t{index} = 'VARCHAR'" if json else "true"
    if kind == "string":
        return _Typed("", text, string)
    if kind == "bool":
        truth = f"t{index} = 'BOOLEAN'" if json else f"{text} IN ('true', 'True', 'TRUE', '1', 'false', 'False', 'FALSE', '0')"
        return _Typed("", f"({text} IN ('true', 'True', 'TRUE', '1'))", truth)
    if kind.startswith(("int", "uint")):
        bits = int(re.sub(r"\D", "", kind))
        low, high = (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        parts = f"TRY_CAST({text} AS DECIMAL(38, 12)) AS exact{index}, TRY_CAST({text} AS DOUBLE) AS real{index}"
        whole = f"exact{index} = floor(exact{index}) AND real{index} = floor(real{index})"
        return _Typed(parts, f"TRY_CAST(floor(exact{index}) AS HUGEINT)", f"({number} AND {whole} AND {value} BETWEEN {low} AND {high})")
    if kind in ("double", "float64"):
        return _Typed("", f"TRY_CAST({text} AS DOUBLE)", f"({number} AND isfinite({value}))")
    if kind in ("float", "float32"):
        return _Typed(f"TRY_CAST({text} AS DOUBLE) AS real{index}", f"TRY_CAST(real{index} AS FLOAT)", f"({number} AND abs(real{index}) < {_FLOAT32_LIMIT})")
    if kind.startswith("date"):
        parts = f"CASE WHEN regexp_full_match({text}, '{_DATE}') THEN TRY_CAST({text} AS DATE) END AS day{index}"
        return _Typed(parts, f"date_diff('day', DATE '1970-01-01', day{index})", f"({string} AND year(day{index}) > 0)")
    return _timestamp(index, kind, number, string)


def _timestamp(index: int, kind: str, number: str, string: str) -> _Typed:
    text, match, value = f"s{index}", f"m{index}", f"f{index}"
    parts = f"regexp_extract({text}, '^(?:{_ISO})$', ['day', 'clock', 'second', 'fraction', 'sign', 'hours', 'minutes']) AS {match}"
    clock = f"TRY_CAST({match}.day || ' ' || if({match}.clock = '', '00:00', {match}.clock) || ':' || if({match}.second = '', '00', {match}.second) AS TIMESTAMP)"
    fraction = f"TRY_CAST(left(rpad({match}.fraction, 6, '0'), 6) AS BIGINT)"
    minutes = f"(coalesce(TRY_CAST({match}.hours AS BIGINT), 0) * 60 + coalesce(TRY_CAST({match}.minutes AS BIGINT), 0))"
    read = f"CASE WHEN {string} AND {match}.day <> '' THEN epoch_us({clock}) + {fraction} - if({match}.sign = '-', -1, 1) * {minutes} * 60000000 END"
    if unit := re.search(r"\[(s|ms|us|ns)", kind):
        power = _UNIT_POWER[unit[1]]
        parts += f", TRY_CAST({text} AS DECIMAL(38, 12)) AS exact{index}"
        scaled = f"floor(exact{index} * {10**power})"
        if power < 0:
            # Division of decimals is one of doubles: first whole nanoseconds, then whole microseconds.
            scaled = _floor_divided(f"TRY_CAST(floor(exact{index}) AS HUGEINT)", 10**-power)
        # A hair before the epoch is nothing as a decimal.
        scaled = f"CASE WHEN exact{index} = 0 AND TRY_CAST({text} AS DOUBLE) < 0 THEN -1 ELSE {scaled} END"
        read = f"CASE WHEN {number} THEN CASE WHEN abs(exact{index}) < {10 ** (18 - power)} THEN TRY_CAST({scaled} AS BIGINT) END ELSE {read} END"
    return _Typed(parts, read, f"({value} >= {_YEAR_1} AND {value} < {_YEAR_10000})")


def _floor_divided(whole: str, divisor: int) -> str:
    return f"(({whole} - (({whole} % {divisor}) + {divisor}) % {divisor}) // {divisor})"


def _event_time(fields: list[tuple[str, str]], time: TimeOptions) -> str:
    """Microseconds since the epoch, in SQL."""
    if time.field is None:
        return "stamp"
    index = next(index for index, (name, _) in enumerate(fields) if name == time.field)
    if time.unit is None:
        return f"f{index}"
    factor, divisor = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}[time.unit]
    if sql_type(fields[index][1]) in ("DOUBLE", "FLOAT"):
        return f"TRY_CAST(floor(f{index}::DOUBLE * {factor / divisor}::DOUBLE) AS BIGINT)"
    return f"TRY_CAST({_floor_divided(f'(f{index} * {factor})', divisor)} AS BIGINT)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


