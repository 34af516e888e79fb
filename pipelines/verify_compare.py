"""Expected rows against stored ones, compared by DuckDB."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.pipelines.verify_aggregates import Columns, Expected, expected
from streamgauge.pipelines.verify_windows import place, settled
from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.rows import CUT

SHOWN = 10
"""Differences that are shown of each table."""

RELATIVE, ROUNDING = 1e-9, 1e-12
"""Sums of floats may differ by this much of their value, and of the sum of their terms' sizes: additions in another order round differently."""

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


@dataclass(frozen=True)
class Question:
    """What the rows of a metric should be.

    Attributes:
        fields: declared types by name, in the order of f0, f1, ... schema: of the events, as Arrow has it.
        horizon: microseconds: only windows that nothing can change after it are compared; None: all of them.
        disorder: of the source, for what came late (microseconds).
    """

    options: AggregateOptions
    fields: dict[str, str]
    schema: pa.Schema
    horizon: int | None
    disorder: int

    @property
    def key(self) -> str:
        """The bound of a window that tells it from others of its key."""
        found: str = self.options.window.create().key
        return found

    @property
    def keys(self) -> list[str]:
        """Names of the columns with the dimensions."""
        return [f"k{number}" for number in range(len(self.options.by))]

    @property
    def closed(self) -> str:
        """SQL: a row's window is compared."""
        return "true" if self.horizon is None else f"window_end + {settled(self.options.window, self.options.lateness)} <= {self.horizon}"


    def known(self, columns: Columns) -> dict[int, tuple[str, Expected]]:
        """By their place, name and SQL of the aggregates that are compared."""
        made = {number: (name, expected(columns, choice)) for number, (name, choice) in enumerate(self.options.aggregates.items())}
        return {number: (name, value) for number, (name, value) in made.items() if value is not None}


def make_expected(connection: Any, question: Question, events: list[str]) -> int:
    """Makes the table ``expected`` from tables of events (see verify_sql) and ``late`` (split, position).

    Columns: window_start, window_end (microseconds), k0.. (dimensions), events, a0.. (aggregates), m0.. (sizes, see ``ROUNDING``), y0.. (whether the
    value is known). Returns the number of events that came when one of their windows was closed, and another was not.
    """
    options, columns = question.options, Columns(question.fields, question.schema)
    values = []
    for number, (_, made) in question.known(columns).items():
        values += [f"{made.value} AS a{number}", f"{made.sizes} AS m{number}", f"{made.known} AS y{number}"]
    # By position, as the job itself judges what is late, and before what was late is taken away.
    passed = f"max(time) OVER (PARTITION BY split ORDER BY position ROWS UNBOUNDED PRECEDING) - {question.disorder} AS passed"
    union = " UNION ALL ".join(f"SELECT *, {passed} FROM {table} WHERE reason IS NULL" for table in events)
    connection.execute(f"CREATE OR REPLACE TABLE counted AS SELECT event.* FROM ({union}) AS event ANTI JOIN late ON event.split = late.split AND event.position = late.position")
    keys = [f"{columns.field(name)} AS {key}" for key, name in zip(question.keys, options.by.values(), strict=True)]
    connection.execute(f"CREATE OR REPLACE TABLE judged AS SELECT {', '.join(['*', *keys])} FROM {columns.judged('counted')}")
    windows = place(connection, "judged", options.window, question.keys)
    grouped = ", ".join(["window_start", "window_end", *question.keys])
    connection.execute(f"""
        CREATE OR REPLACE TABLE expected AS SELECT {", ".join([grouped, "count(*) AS events", *values])} FROM ({windows}) WHERE {question.closed} GROUP BY {grouped}
    """)
    if options.window.name not in ("sliding", "cumulative"):
        return 0
    return int(connection.execute(f"SELECT count(DISTINCT (split, position)) FROM ({windows}) WHERE window_end + {options.lateness} <= passed").fetchall()[0][0])


def compare_results(connection: Any, question: Question, stored: pa.Table, outcome: Comparison) -> None:
    """Fills ``outcome`` with how ``stored`` (the metric's rows) differs from the table ``expected``."""
    options, key = question.options, question.key
    other_bound = "window_end" if key == "window_start" else "window_start"
    compared = question.known(Columns(question.fields, question.schema))
    shared = ["other"] if "other" in stored.column_names else []
    if "withdrawn" in stored.column_names:
        stored = stored.filter(pc.invert(stored.column("withdrawn")))
    own = ["events", "revision", "final"]
    plain = pa.table(
        [_plain(stored.column(name)) for name in ["window_start", "window_end", *options.by, *own, *(name for name, _ in compared.values()), *shared]],
        names=["window_start", "window_end", *question.keys, *own, *(f"a{number}" for number in compared), *shared],
    )
    connection.register("stored_rows", plain)
    names = [key, *question.keys]
    of_key = "other IS NULL" if shared else "true"
    copies = f"count(*) OVER (PARTITION BY {', '.join(names)}) AS copies"
    connection.execute(f"CREATE OR REPLACE TABLE stored AS SELECT *, {copies} FROM stored_rows WHERE {question.closed} AND {of_key}")
    if shared:
        connection.execute(f"CREATE OR REPLACE TABLE stored_together AS SELECT {key}, sum(events) AS events FROM stored_rows WHERE {question.closed} AND NOT {of_key} GROUP BY {key}")
    connection.unregister("stored_rows")
    both = "e.events IS NOT NULL AND s.events IS NOT NULL"
    # With a limit on keys, which of them have rows is a matter of hashes.
    wrong_row = "e.events IS NULL" if options.keys is not None else f"NOT ({both})"
    found = [("(row)", wrong_row, "CASE WHEN s.events IS NULL THEN 'missing' ELSE 'events ' || s.events END", "CASE WHEN e.events IS NULL THEN 'no such row' ELSE 'events ' || e.events END")]
    found += [("(row)", both + " AND s.copies > 1", "s.copies || ' times'", "'once'")]
    # The revision of a session that was cut is larger, so that it replaces one that was not.
    checks = [(other_bound, f"s.{other_bound}", f"e.{other_bound}", "NULL", "true"), ("events", "s.events", "e.events", "NULL", "true")]
    checks += [("revision", f"(s.revision % {CUT})" if options.window.name == "session" else "s.revision", "e.events", "NULL", "true"), ("final", "s.final", "true", "NULL", "true")]
    checks += [
        (name, f"s.a{number}", f"e.a{number}", "NULL" if made.sizes == "NULL" else f"e.m{number}", f"e.y{number}") for number, (name, made) in compared.items()
    ]
    for name, here, there, sizes, known in checks:
        near = "false" if sizes == "NULL" else f"coalesce(abs({here} - {there}) <= {RELATIVE} * abs({there}) + {ROUNDING} * {sizes}, false)"
        found.append((name, f"{both} AND {known} AND {here} IS DISTINCT FROM {there} AND NOT ({near})", f"{here}::VARCHAR", f"{there}::VARCHAR"))
    on = " AND ".join(f"e.{name} IS NOT DISTINCT FROM s.{name}" for name in names)
    shown = ", ".join(f"coalesce(e.{name}, s.{name}) AS {name}" for name in names)
    flags = ", ".join(f"({wrong}) AS w{index}, {here} AS s{index}, {there} AS e{index}" for index, (_, wrong, here, there) in enumerate(found))
    there = "WHERE s.events IS NOT NULL" if options.keys is not None else ""
    connection.execute(f"CREATE OR REPLACE TABLE compared AS SELECT {shown}, {flags} FROM expected e FULL OUTER JOIN stored s ON {on} {there}")
    anything = " OR ".join(f"w{index}" for index in range(len(found)))
    outcome.compared, outcome.windows, outcome.differing = connection.execute(f"SELECT count(*), count(DISTINCT {key}), count(*) FILTER ({anything}) FROM compared").fetchall()[0]
    listed = " UNION ALL ".join(f"SELECT {', '.join(names)}, {index} AS which, s{index}::VARCHAR, e{index}::VARCHAR FROM compared WHERE w{index}" for index in range(len(found)))
    for bound, *values, which, here, there in connection.execute(f"{listed} ORDER BY ALL LIMIT {SHOWN}").fetchall():
        if found[which][0] == other_bound:
            here, there = written_time(int(here)), written_time(int(there))
        row = {key: written_time(bound), **dict(zip(options.by, values, strict=True))}
        outcome.differences.append(Difference(row, found[which][0], _shown(here), _shown(there)))
    if shared:
        _compare_together(connection, key, on, outcome)
    elif options.keys is not None:
        outcome.notes.append("keys without a row are not compared: they are beyond the limit, and told as dead letters")


def _compare_together(connection: Any, key: str, on: str, outcome: Comparison) -> None:
    """The rows of all keys beyond the limit: in each window they count the events that have no row of their key."""
    found = connection.execute(f"""
        WITH beyond AS (SELECT {key}, sum(events) AS events FROM expected e WHERE NOT EXISTS (SELECT 1 FROM stored s WHERE {on}) GROUP BY {key})
        SELECT coalesce(b.{key}, t.{key}), t.events, b.events FROM beyond b FULL OUTER JOIN stored_together t ON b.{key} = t.{key}
        WHERE b.events IS DISTINCT FROM t.events ORDER BY 1
    """).fetchall()
    outcome.differing += len(found)
    for bound, here, there in found[: max(0, SHOWN - len(outcome.differences))]:
        outcome.differences.append(Difference({key: written_time(bound)}, "(keys beyond the limit)", f"events {here or 0}", f"events {there or 0}"))


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
