"""What Deduplicate passes on, computed by DuckDB: which copy of an event went on is a question of order, and the record has none between splits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa

from streamgauge.transforms.deduplicate import DeduplicateOptions


def make_unique(connection: Any, table: str, events: list[str], options: DeduplicateOptions, fields: list[str], used: list[str]) -> int:
    """Makes ``table`` of those in the tables ``events`` (see verify_sql) that go on; ``fields`` are their names, ``used`` those that matter further on.

    Copies of an event are equal in what is used, or else are in one split, where the first is the one with the smallest position. Of equal ones
    in several splits that is taken which the table ``late`` has, for it has only events that went on. Returns the number of ids for which
    neither holds: for these it is not known what went on.
    """
    union = " UNION ALL ".join(f"SELECT *, {number} AS origin FROM {name} WHERE reason IS NULL" for number, name in enumerate(events))
    ids = [f"f{fields.index(name)}" for name in options.by]
    key = ", ".join(ids)
    content = ", ".join(["time", *(f"f{fields.index(name)}" for name in used)])
    connection.execute(f"CREATE OR REPLACE TEMP TABLE all_events AS SELECT *, row_number() OVER () AS number FROM ({union})")
    # A gap of more than the horizon parts the copies of an id for good: what is before it has no bearing on what is after it.
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE copies AS
        WITH gaps AS (
            SELECT *, time - lag(time) OVER (PARTITION BY {key} ORDER BY time, number) > {options.horizon} AS gap
            FROM all_events WHERE {" OR ".join(f"{name} IS NOT NULL" for name in ids)}
        ), parted AS (
            SELECT *, count(*) FILTER (gap) OVER (PARTITION BY {key} ORDER BY time, number ROWS UNBOUNDED PRECEDING) AS part FROM gaps
        ), counted AS (
            SELECT {key}, part, row_number() OVER () AS cluster, count(*) AS members, max(time) - min(time) <= {options.horizon} AS near,
                count(DISTINCT row(origin, split)) = 1 AS one_split, count(DISTINCT row({content})) = 1 AS equal
            FROM parted GROUP BY {key}, part
        )
        SELECT number, cluster, time, near, one_split, near AND equal OR one_split AS certain, position, (split, position) IN (SELECT (split, position) FROM late) AS late
        FROM parted JOIN counted ON {" AND ".join(f"parted.{name} IS NOT DISTINCT FROM counted.{name}" for name in [*ids, "part"])} WHERE members > 1
    """)
    # Nearest copies: all but the first are dropped. Others are gone through one by one.
    order = "CASE WHEN one_split THEN position ELSE 0 END, NOT late, number"
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE dropped AS
        SELECT number FROM (SELECT number, row_number() OVER (PARTITION BY cluster ORDER BY {order}) AS place FROM copies WHERE near) WHERE place > 1
    """)
    far = connection.execute("SELECT cluster, number, time FROM copies WHERE NOT near ORDER BY cluster, CASE WHEN one_split THEN position ELSE time END, number").fetchall()
    found = pa.table({"number": pa.array(_dropped(far, options.horizon), pa.int64())})
    connection.register("dropped_rows", found)
    connection.execute("INSERT INTO dropped SELECT number FROM dropped_rows")
    connection.unregister("dropped_rows")
    connection.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT * EXCLUDE (origin, number) FROM all_events ANTI JOIN dropped USING (number)")
    return int(connection.execute("SELECT count(DISTINCT cluster) FROM copies WHERE NOT certain").fetchall()[0][0])


def _dropped(copies: list[tuple[int, int, int]], horizon: int) -> list[int]:
    """Numbers of the (cluster, number, time) that follow one of their cluster that went on, at most the horizon away."""
    kept: defaultdict[int, list[int]] = defaultdict(list)
    dropped = []
    for cluster, number, time in copies:
        if any(abs(other - time) <= horizon for other in kept[cluster]):
            dropped.append(number)
        else:
            kept[cluster].append(time)
    return dropped
