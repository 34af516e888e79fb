"""As much of a QuestDB as the sink talks to: one table of versions with DEDUP, kept in a dictionary."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.questdb_sql import VERSION, Layout
from tests.transforms.sinks import cases
from tests.transforms.sinks.faults import Answer, Row, lines


class FakeQuestDb:
    """``take`` answers requests; ``shown`` is what the view would show. Refuses, as the real one does for a column that someone made
    another type, requests in which a row's label is ``poison``: with none of their rows stored."""

    def __init__(self, schema: pa.Schema = cases.SCHEMA, table: str = "delay") -> None:
        self.layout = Layout.of(table, schema, RowSpec.of(schema))
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.requests = 0

    def take(self, method: str, path: str, body: bytes) -> Answer:
        if path.startswith("/write"):
            return self._write(body)
        return 200, "application/json", json.dumps(self._exec(parse_qs(urlsplit(path).query)["query"][0])).encode()

    def _write(self, body: bytes) -> Answer:
        self.requests += 1
        rows = [row for _, row in lines(body)]
        for number, row in enumerate(rows):
            if row.get("label") == "poison":
                message = f"failed to parse line protocol:errors encountered on line(s):\\nerror in line {number + 1}: cast error"
                return 400, "application/json", json.dumps({"code": "invalid", "message": message, "line": number + 1, "errorId": "x-1"}).encode()
        for row in rows:
            row["window_start"] = row.pop("")
            self.rows[tuple(row.get(name) for name in (*cases.ROWS.key, VERSION))] = row
        return 204, "", b""

    def _exec(self, statement: str) -> dict[str, Any]:
        if "SHOW COLUMNS" in statement:
            return {"dataset": [[key] for key in (*cases.ROWS.key, VERSION)]}
        columns = self.layout.store_columns() if f'"{self.layout.store}"' in statement else self.layout.columns()
        return {"columns": [{"name": name, "type": kind} for name, kind in columns.items()], "dataset": []}

    def shown(self) -> dict[tuple[int, str | None], tuple[int, int, bool]]:
        """Count, revision and final by window and origin."""
        best: dict[tuple[int, str | None], Row] = {}
        for row in self.rows.values():
            key = (row["window_start"], row.get("origin"))
            if key not in best or row[VERSION] > best[key][VERSION]:
                best[key] = row
        return {key: (row["count"], row["revision"], row["final"]) for key, row in best.items() if not row.get("withdrawn")}
