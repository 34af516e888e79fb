"""A reader beside the job: polls the store and writes down when it saw what.

``python -m benchmarks.latency_reader KIND ADDRESS TABLE OUT`` runs until SIGTERM, then writes OUT: JSON with ``probes``, a list of
[time stamp of the event, when its row was seen], and ``finals``, a list of [start of a window, when more final rows of it were seen, how many];
all in microseconds since the epoch, the last in rows.
"""

from __future__ import annotations

import http.client
import json
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import orjson

from benchmarks.latency_producer import PROBE

SQLITE_POLL_SECONDS = 0.001
QUESTDB_POLL_SECONDS = 0.004
"""Pauses between two looks. Part of what is measured: a reader that looks more often takes the cores from the job."""
OPEN_SECONDS = 10.0
"""Windows that ended longer ago are not asked for any more."""
_RECENT_SECONDS, _EVERYTHING_SECONDS, _EVERYTHING_EACH = 0.7, 10.0, 20
"""How much older than the newest seen a probe may be that a look asks for, and one in so many looks."""


class Table(Protocol):
    """A store as a reader sees it."""

    def look(self) -> tuple[list[tuple[str, int]], dict[int, int]] | None:
        """New or known probes as (host, time stamp), and final rows so far by start of window; None: nothing has changed."""


class SqliteTable:
    """Rows of a table have ascending row numbers, and keep theirs when they are replaced: new ones are found without an index on time.

    ``+`` before a column keeps SQLite from going by an index of the key instead, all of it, at each look.
    """

    poll = SQLITE_POLL_SECONDS

    def __init__(self, path: str, table: str, connect: Any = sqlite3.connect) -> None:
        self._connection = connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self._table = table
        self._version: object = None
        self._newest = 0
        self._rows: dict[str, tuple[int, int]] = {}
        self._whole: dict[str, tuple[tuple[int, int], int]] = {}

    def look(self) -> tuple[list[tuple[str, int]], dict[int, int]] | None:
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return None
        self._version = version
        execute = self._connection.execute
        execute("BEGIN")
        try:
            (highest,) = execute(f"SELECT max(rowid) FROM {self._table}").fetchone()
            highest = highest or 0
            probes = execute(f"SELECT host, newest FROM {self._table} WHERE rowid > ? AND +series = ?", (self._newest, PROBE)).fetchall()
            ranges = execute(f"SELECT window_start, min(rowid), max(rowid) FROM {self._table} WHERE rowid > ? GROUP BY +window_start", (self._newest,))
            for start, low, high in ranges.fetchall():
                first, last = self._rows.get(start, (low, high))
                self._rows[start] = (min(first, low), max(last, high))
            self._newest = highest
            return probes, {_micros(start): self._final(start, rows) for start, rows in self._open().items()}
        finally:
            execute("COMMIT")

    def _open(self) -> dict[str, tuple[int, int]]:
        oldest = datetime.fromtimestamp(time.time() - OPEN_SECONDS, timezone.utc).isoformat()
        self._rows = {start: rows for start, rows in self._rows.items() if start >= oldest[:26]}
        self._whole = {start: whole for start, whole in self._whole.items() if start in self._rows}
        return self._rows

    def _final(self, start: str, rows: tuple[int, int]) -> int:
        """A window whose rows are all final is counted once: only a further row could change that, and would be outside of its range."""
        if start in self._whole and self._whole[start][0] == rows:
            return self._whole[start][1]
        query = f"SELECT count(*), sum(final) FROM {self._table} WHERE rowid BETWEEN ? AND ? AND +window_start = ?"
        count, final = self._connection.execute(query, (*rows, start)).fetchone()
        if final == count:
            self._whole[start] = (rows, final)
        return int(final)


class QuestDbTable:
    """Asks the view that users read, over HTTP. It would be cheaper to ask ``wal_tables()`` first, but that tells of a transaction up to half a second after its rows can be read."""

    poll = QUESTDB_POLL_SECONDS

    def __init__(self, url: str, table: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=30)
        self._table = table
        self._looks = 0
        self._newest = time.time_ns() // 1000
        self._open_since = 0

    def look(self) -> tuple[list[tuple[str, int]], dict[int, int]] | None:
        self._looks += 1
        everything = self._looks % _EVERYTHING_EACH == 0
        seconds = _EVERYTHING_SECONDS if everything else _RECENT_SECONDS
        newest = self._newest - int(seconds * 1e6)
        since = _iso(newest / 1e6 - 1)
        rows = self._ask(f"SELECT host, newest FROM {self._table} WHERE series = '{PROBE}' AND window_start >= '{since}' AND newest > {newest}")
        probes = [(host, int(stamp)) for host, stamp in rows]
        self._newest = max([self._newest, *(stamp for _, stamp in probes)])
        return probes, self._finals(everything)

    def _finals(self, everything: bool) -> dict[int, int]:
        """Windows whose rows are all final are not asked for at each look."""
        oldest = round((time.time() - OPEN_SECONDS) * 1e6)
        since = oldest if everything else max(oldest, self._open_since)
        number_final = "sum(CASE WHEN final THEN 1 ELSE 0 END)"
        found = self._ask(f"SELECT window_start, count(), {number_final} FROM {self._table} WHERE window_start >= '{_iso(since / 1e6)}' GROUP BY window_start")
        counts = {_micros(start): (int(rows), int(final)) for start, rows, final in found}
        self._open_since = min((start for start, (rows, final) in counts.items() if final < rows), default=max(counts, default=since))
        return {start: final for start, (_, final) in counts.items()}

    def _ask(self, query: str) -> list[list[Any]]:
        self._connection.request("GET", f"/exec?query={quote(query)}")
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"QuestDB answered {answer.status} to {query}: {body[:300].decode(errors='replace')}")
        return list(orjson.loads(body)["dataset"])


TABLES = {"sqlite": SqliteTable, "questdb": QuestDbTable}


class Seen:
    """What was seen first, and when."""

    def __init__(self) -> None:
        self.probes: list[tuple[int, int]] = []
        self.hosts: list[tuple[str, int, int]] = []
        self.finals: list[tuple[int, int, int]] = []
        self._known: set[str] = set()
        self._final: dict[int, int] = {}

    def note(self, probes: list[tuple[str, int]], finals: dict[int, int], now: int) -> None:
        """``now``: microseconds."""
        for host, stamp in probes:
            if host not in self._known:
                self._known.add(host)
                self.probes.append((stamp, now))
                self.hosts.append((host, stamp, now))
        for start, count in finals.items():
            more = count - self._final.get(start, 0)
            if more > 0:
                self._final[start] = count
                self.finals.append((start, now, more))

    def as_dict(self) -> dict[str, Any]:
        return {"probes": self.probes, "finals": self.finals, "hosts": self.hosts}


def read(table: Any, ended: Callable[[], object]) -> Seen:
    """Polls until ``ended()``."""
    seen = Seen()
    while not ended():
        time.sleep(table.poll)
        found = table.look()
        if found is not None:
            seen.note(*found, time.time_ns() // 1000)
    return seen


def _micros(text: str) -> int:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round(moment.timestamp() * 1_000_000)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def main(kind: str, address: str, table: str, out: Path) -> None:
    ended: list[int] = []  # no Event: a handler that sets one while it is waited for never returns
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    seen = read(TABLES[kind](address, table), lambda: ended)
    out.write_text(json.dumps(seen.as_dict()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
