"""Expected rows against stored ones, compared by DuckDB."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa

from streamgauge.pipelines.verify_sql import sql_type
from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.config import Choice

SHOWN = 10
"""Differences that are shown of each table."""

RELATIVE, ROUNDING = 1e-9, 1e-12
"""Sums of floats may differ by this much of their value, and of the sum of their terms' sizes: additions in another order round differently."""

_FLOATS = ("FLOAT", "DOUBLE")


@dataclass(frozen=True)
class Difference:
    """One value that is not as it should be; a ``column`` in parentheses is the row as a whole."""

    key: dict[str, Any]
    column: str
    stored: str
    expected: str


@dataclass
class Comparison:
    """One table against the answer.

    Attributes:
        what: ``departures`` (a metric) or ``dead letters of files:x``. store: where the rows are. compared: rows in either.
        differing: rows that are not as they should be. differences: the first of them. windows: number of them, of a metric.
        late: events that the job set aside as too late. notes: what limits the comparison.
    """

    what: str
    store: str
    compared: int = 0
    differing: int = 0
    differences: list[Difference] = field(default_factory=list)
    windows: int | None = None
    late: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return not self.differing


def unknown_aggregates(options: AggregateOptions) -> list[str]:
    """Aggregates that only the job itself can compute."""
    return [f"{name} ({choice.name})" for name, choice in options.aggregates.items() if choice.name not in ("count", "sum", "min", "max", "mean")]


def _aggregate(choice: Choice, places: dict[str, tuple[int, str]]) -> tuple[str, str]:
    """(the value, the sum of its terms' sizes or NULL where it must be exact) in SQL."""
    if choice.name == "count":
        return "count(*)", "NULL"
    index, kind = places[choice.options.of]
    column = f"f{index}"
    if choice.name in ("min", "max"):
        return f"{choice.name}({column})", "NULL"
    sizes = f"fsum(abs({column}::DOUBLE))"
    if choice.name == "mean":
        return f"fsum({column}::DOUBLE) / nullif(count({column}), 0)", f"{sizes} / nullif(count({column}), 0)"
    if sql_type(kind) in _FLOATS:
        return f"fsum({column}::DOUBLE)", sizes
    return f"CASE WHEN sum({column}::HUGEINT) BETWEEN -9223372036854775808 AND 9223372036854775807 THEN sum({column}::HUGEINT) END", "NULL"


def make_expected(connection: Any, options: AggregateOptions, fields: dict[str, str], events: list[str], horizon: int | None) -> None:
    """Makes the table ``expected`` from tables of events (see verify_sql) and ``late`` (split, position).

    Columns: window_start (microseconds), k0.. (dimensions), events, a0.. (aggregates), m0.. (sizes, see ``ROUNDING``). ``horizon``: a
    window counts when its end plus the lateness is not after it.
    """
    places = {name: (index, kind) for index, (name, kind) in enumerate(fields.items())}
    size, offset = options.window.options.size, options.window.options.offset
    start = f"time - (((time - {offset}) % {size}) + {size}) % {size}"
    keys = [f"f{places[name][0]} AS k{number}" for number, name in enumerate(options.by.values())]
    values = []
    for number, choice in enumerate(options.aggregates.values()):
        value, sizes = _aggregate(choice, places) if choice.name in ("count", "sum", "min", "max", "mean") else ("NULL", "NULL")
        values += [f"{value} AS a{number}", f"{sizes} AS m{number}"]
    union = " UNION ALL ".join(f"SELECT * FROM {table}" for table in events)
    closed = "" if horizon is None else f"AND {start} + {size} + {options.lateness} <= {horizon}"
    connection.execute(f"""
        CREATE OR REPLACE TABLE expected AS
        SELECT {", ".join([f"{start} AS window_start", *keys, "count(*) AS events", *values])}
        FROM ({union}) AS event ANTI JOIN late ON event.split = late.split AND event.position = late.position
        WHERE reason IS NULL {closed} GROUP BY {", ".join(str(number + 1) for number in range(1 + len(keys)))}
    """)


def compare_results(connection: Any, options: AggregateOptions, stored: pa.Table, horizon: int | None, outcome: Comparison) -> None:
    """Fills ``outcome`` with how ``stored`` (the metric's rows) differs from the table ``expected``."""
    size = options.window.options.size
    names = [f"k{number}" for number in range(len(options.by))]
    skipped = {number for number, choice in enumerate(options.aggregates.values()) if choice.name not in ("count", "sum", "min", "max", "mean")}
    columns = ["window_start", *options.by, "window_end", "events", "revision", "final", *options.aggregates]
    as_named = ["window_start", *names, "window_end", "events", "revision", "final", *(f"a{number}" for number in range(len(options.aggregates)))]
    plain = pa.table([_plain(stored.column(name)) for name in columns], names=as_named)
    connection.register("stored_rows", plain)
    closed = "true" if horizon is None else f"window_start + {size} + {options.lateness} <= {horizon}"
    connection.execute(f"CREATE OR REPLACE TABLE stored AS SELECT *, count(*) OVER (PARTITION BY {', '.join(['window_start', *names])}) AS copies FROM stored_rows WHERE {closed}")
    connection.unregister("stored_rows")
    on = " AND ".join(f"e.{name} IS NOT DISTINCT FROM s.{name}" for name in ["window_start", *names])
    checks = [("window_end", "s.window_end", f"(e.window_start + {size})", "NULL"), ("events", "s.events", "e.events", "NULL"), ("revision", "s.revision", "e.events", "NULL")]
    checks += [("final", "s.final", "true", "NULL")]
    checks += [(name, f"s.a{number}", f"e.a{number}", f"e.m{number}") for number, name in enumerate(options.aggregates) if number not in skipped]
    both = "e.events IS NOT NULL AND s.events IS NOT NULL"
    found = [("(row)", "NOT (" + both + ")", "CASE WHEN s.events IS NULL THEN 'missing' ELSE 'events ' || s.events END", "CASE WHEN e.events IS NULL THEN 'no such row' ELSE 'events ' || e.events END")]
    found += [("(row)", both + " AND s.copies > 1", "s.copies || ' times'", "'once'")]
    for name, here, there, sizes in checks:
        near = f"abs({here} - {there}) <= {RELATIVE} * abs({there}) + {ROUNDING} * {sizes}"
        wrong = f"{here} IS DISTINCT FROM {there} AND NOT coalesce({near}, false)" if sizes != "NULL" else f"{here} IS DISTINCT FROM {there}"
        found.append((name, f"{both} AND {wrong}", f"{here}::VARCHAR", f"{there}::VARCHAR"))
    keys = ", ".join(f"coalesce(e.{name}, s.{name}) AS {name}" for name in ["window_start", *names])
    flags = ", ".join(f"({wrong}) AS w{index}, {here} AS s{index}, {there} AS e{index}" for index, (_, wrong, here, there) in enumerate(found))
    connection.execute(f"CREATE OR REPLACE TABLE compared AS SELECT {keys}, {flags} FROM expected e FULL OUTER JOIN stored s ON {on}")
    anything = " OR ".join(f"w{index}" for index in range(len(found)))
    outcome.compared, outcome.windows, outcome.differing = connection.execute(
        f"SELECT count(*), count(DISTINCT window_start), count(*) FILTER ({anything}) FROM compared"
    ).fetchall()[0]
    listed = " UNION ALL ".join(
        f"SELECT {', '.join(['window_start', *names])}, {index} AS which, s{index}::VARCHAR, e{index}::VARCHAR FROM compared WHERE w{index}" for index in range(len(found))
    )
    times = {index for index, (name, *_) in enumerate(found) if name == "window_end"}
    for start, *values, which, here, there in connection.execute(f"{listed} ORDER BY ALL LIMIT {SHOWN}").fetchall():
        key = {"window_start": written_time(start), **dict(zip(options.by, values, strict=True))}
        if which in times:
            here, there = written_time(int(here)), written_time(int(there))
        outcome.differences.append(Difference(key, found[which][0], _shown(here), _shown(there)))


def compare_late(connection: Any, events: list[str], ranges: str, outcome: Comparison) -> None:
    """Checks the table ``late``: every row is an event of the input, and there once. ``ranges``: condition for rows within what was read."""
    union = " UNION ALL ".join(f"SELECT split, position FROM {table} WHERE reason IS NULL" for table in events)
    rows = f"SELECT split, position, count(*) AS copies FROM late WHERE {ranges} GROUP BY ALL"
    wrong = f"""
        SELECT r.split, r.position, copies, e.position IS NOT NULL AS there FROM ({rows}) r
        LEFT JOIN ({union}) e ON e.split = r.split AND e.position = r.position WHERE copies > 1 OR e.position IS NULL
    """
    outcome.late = connection.execute(f"SELECT count(*) FROM ({rows})").fetchall()[0][0]
    found = connection.execute(f"{wrong} ORDER BY ALL").fetchall()
    outcome.differing += len(found)
    for split, position, copies, there in found[: SHOWN - len(outcome.differences)]:
        outcome.differences.append(
            Difference({"split": split, "position": position}, "(late event)", f"{copies} times" if copies > 1 else "once", "once" if there else "no such event")
        )


def compare_letters(connection: Any, events: str, stored: pa.Table, ranges: str, complete: bool, outcome: Comparison) -> None:
    """Fills ``outcome`` with how dead letters (split, position, error_type) differ from the records of ``events`` that have a reason."""
    connection.register("stored_letters", stored)
    connection.execute(f"CREATE OR REPLACE TABLE letters AS SELECT split, position, min(error_type) AS type, count(*) AS copies FROM stored_letters WHERE {ranges} GROUP BY ALL")
    connection.unregister("stored_letters")
    rows = connection.execute(f"""
        SELECT coalesce(e.split, l.split) AS split, coalesce(e.position, l.position) AS position, e.reason, l.type, l.copies
        FROM (SELECT * FROM {events} WHERE reason IS NOT NULL) e FULL OUTER JOIN letters l ON e.split = l.split AND e.position = l.position ORDER BY 1, 2
    """).fetchall()
    missing = 0
    for split, position, reason, kind, copies in rows:
        outcome.compared += 1
        outcome.reasons[kind or reason] = outcome.reasons.get(kind or reason, 0) + 1
        if kind is None and not complete:
            missing += 1
            continue
        if kind is not None and reason is not None and copies == 1:
            continue
        outcome.differing += 1
        if len(outcome.differences) < SHOWN:
            here = "missing" if kind is None else kind if copies == 1 else f"{kind}, {copies} times"
            there = "a good event" if reason is None else f"{reason}, once" if copies else reason
            outcome.differences.append(Difference({"split": split, "position": position}, "(dead letter)", here, there))
    if missing:
        outcome.notes.append(f"{missing:,} dead letters are not stored yet")


def _plain(column: Any) -> Any:
    """Times as microseconds, dates as days since the epoch, text as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    if pa.types.is_date(kind):
        return column.cast(pa.date32()).cast(pa.int32())
    return column


def written_time(micros: int) -> str:
    """
    >>> written_time(1_356_998_400_000_000), written_time(1_500_000)
    ('2013-01-01T00:00:00Z', '1970-01-01T00:00:01.500000Z')
    """
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=micros)
    return moment.isoformat().replace("+00:00", "Z")


def _shown(value: str | None) -> str:
    return "null" if value is None else value
