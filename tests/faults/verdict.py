"""Whether what was stored is the right answer: read by plain HTTP and by DuckDB, compared with the workload's own answer."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tests.faults.workload import WINDOW_MS, Workload

APPLIED_WITHIN_S = 60.0
EXAMPLES = 3
_COLUMNS = {
    "window_start": pa.int64(), "window_end": pa.int64(), "key": pa.string(), "n": pa.int64(), "total": pa.int64(), "low": pa.int64(),
    "high": pa.int64(), "events": pa.int64(), "revision": pa.int64(), "final": pa.bool_(),
}  # fmt: skip
_LETTERS = {"split": pa.string(), "position": pa.int64(), "error_type": pa.string(), "payload": pa.binary()}


@dataclass
class Comparison:
    """Rows found and expected, by key. ``differing``: column -> rows in which it differs. ``examples``: a few of all differences."""

    what: str
    expected: int
    found: int
    missing: int
    unexpected: int
    repeated: int
    differing: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not (self.missing or self.unexpected or self.repeated or any(self.differing.values()))


@dataclass
class Verdict:
    """All comparisons of a run."""

    comparisons: list[Comparison]

    @property
    def right(self) -> bool:
        return all(comparison.right for comparison in self.comparisons)

    @property
    def word(self) -> str:
        return "PASS" if self.right else "FAIL"

    def __str__(self) -> str:
        """A table and the first differences."""
        lines = [f"{'':28}{'expected':>10}{'found':>10}{'missing':>10}{'unexpected':>12}{'repeated':>10}  differing"]
        for each in self.comparisons:
            differing = ", ".join(f"{column} {count:,}" for column, count in each.differing.items() if count) or "0"
            lines.append(
                f"{each.what:28}{each.expected:10,}{each.found:10,}{each.missing:10,}{each.unexpected:12,}{each.repeated:10,}  {differing}"
            )
            lines += [f"  {example}" for example in each.examples]
        return "\n".join(lines)


def judge(workload: Workload, questdb_url: str, table: str, letters: Path) -> Verdict:
    """Compares the results in QuestDB and the dead letters in Parquet files with what they should be.

    Besides what users read (the view), every final row that was ever written: none may have been wrong for a while.
    """
    expected = expected_rows(workload)
    _wait_until_applied(questdb_url, f"{table}_versions")
    return Verdict([
        compare("results", expected, stored_rows(questdb_url, table), ["window_start", "key"]),
        compare("final rows ever written", expected, stored_rows(questdb_url, f"{table}_versions", "WHERE _version >= 0"), ["window_start", "key"]),
        compare("dead letters", workload.expected_letters(), stored_letters(letters), ["split", "position"]),
    ])  # fmt: skip


def expected_rows(workload: Workload) -> pa.Table:
    """What the job should store, with the columns that rows have besides the aggregates."""
    answer = workload.expected()
    with duckdb.connect() as connection:
        connection.register("answer", answer)
        return connection.sql(
            f"SELECT window_start, window_start + {WINDOW_MS} AS window_end, key, n, total, low, high, n AS events, n AS revision, true AS final FROM answer"
        ).to_arrow_table()


def stored_rows(url: str, table: str, where: str = "") -> pa.Table:
    """Rows of a table in QuestDB; times in milliseconds."""
    names = list(_COLUMNS)
    read = [f'"{name}"::long / 1000 "{name}"' if name.startswith("window_") else f'"{name}"' for name in names]
    rows = _ask(url, f'SELECT {", ".join(read)} FROM "{table}" {where}')
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, _COLUMNS.values(), strict=True)], names=names)


def stored_letters(folder: Path) -> pa.Table:
    """Dead letters; none when there are no files."""
    if not any(folder.glob("*.parquet")):
        return pa.schema(list(_LETTERS.items())).empty_table()
    with duckdb.connect() as connection:
        return connection.sql(f"SELECT {', '.join(_LETTERS)} FROM read_parquet('{folder}/*.parquet')").to_arrow_table()


def compare(what: str, expected: pa.Table, found: pa.Table, key: list[str]) -> Comparison:
    """Rows by ``key``, whose nulls are equal; columns are those of ``expected``, whose keys are unique."""
    columns = [name for name in expected.column_names if name not in key]
    same = " AND ".join(f'e."{name}" IS NOT DISTINCT FROM f."{name}"' for name in key)
    with duckdb.connect() as connection:
        connection.register("expected", expected.append_column("there", pa.repeat(True, len(expected))))
        connection.register("found", found.append_column("there", pa.repeat(True, len(found))))
        connection.execute(f"CREATE TABLE matched AS SELECT e, f FROM expected e FULL JOIN found f ON {same}")
        differs = {name: f'(e.there AND f.there AND e."{name}" IS DISTINCT FROM f."{name}")' for name in columns}
        counts = [f"count(*) FILTER (WHERE {condition})" for condition in ("f.there IS NULL", "e.there IS NULL", *differs.values())]
        missing, unexpected, *differing = _row(connection, f"SELECT {', '.join(counts)} FROM matched")
        (keys,) = _row(connection, f"SELECT count(*) FROM (SELECT DISTINCT {', '.join(key)} FROM found)")
        wrong = " OR ".join(["f.there IS NULL", "e.there IS NULL", *differs.values()])
        examples = connection.execute(f"SELECT e, f FROM matched WHERE {wrong} LIMIT {EXAMPLES}").fetchall()
    told = [f"expected {_shown(wanted)}, found {_shown(stored)}" for wanted, stored in examples]
    return Comparison(what, len(expected), len(found), missing, unexpected, len(found) - keys, dict(zip(columns, differing, strict=True)), told)


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


def _shown(row: dict[str, Any] | None) -> str:
    if row is None or row["there"] is None:
        return "nothing"
    return ", ".join(f"{name}={value}" for name, value in row.items() if name != "there")


def _ask(url: str, query: str) -> list[list[Any]]:
    try:
        with urllib.request.urlopen(f"{url}/exec?" + urllib.parse.urlencode({"query": query}), timeout=60) as answer:
            found = json.loads(answer.read(), strict=False)
    except urllib.error.HTTPError as error:
        if "does not exist" in (said := error.read().decode(errors="replace")):
            return []  # a job that never wrote a row has made no table
        raise RuntimeError(f"QuestDB answered {said}") from None
    rows: list[list[Any]] = found["dataset"]
    assert len(rows) == found["count"], f"QuestDB has {found['count']} rows and sent {len(rows)}"
    return rows


def _wait_until_applied(url: str, store: str) -> None:
    """QuestDB shows what is in its write-ahead log a little later."""
    deadline = time.monotonic() + APPLIED_WITHIN_S
    while any(suspended or behind for suspended, behind in _ask(url, f"SELECT suspended, sequencerTxn - writerTxn FROM wal_tables() WHERE name = '{store}'")):
        assert time.monotonic() < deadline, f"QuestDB has not applied the write-ahead log of {store} in {APPLIED_WITHIN_S:g} s"
        time.sleep(0.1)
