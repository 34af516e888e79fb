"""The QuestDB sink against a real server."""

import itertools
import json
import math
import os
import signal
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamgauge.pipelines.services.questdb import QuestDbServer
from streamgauge.transforms.config import Choice
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import SINKS, questdb, questdb_sql, rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.questdb import QuestDb, QuestDbOptions
from streamgauge.transforms.write import _WriteDoFn
from tests.examples import examples
from tests.transforms.failed_sessions import history
from tests.transforms.sinks import cases, faults
from tests.transforms.sinks.faults import FaultyServer
from tests.transforms.sinks.frozen import frozen
from tests.transforms.test_sessions import Store

pytestmark = pytest.mark.integration
tables = (f"delay {number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuestDbServer]:
    with QuestDbServer(tmp_path_factory.mktemp("questdb"), progress=False) as running:
        yield running


def opened(server: QuestDbServer, table: str, schema: pa.Schema = cases.SCHEMA) -> QuestDb:
    sink = QuestDb(QuestDbOptions(url=server.url, table=table))
    sink.open(schema, RowSpec.of(schema))
    return sink


def sql(server: QuestDbServer, statement: str) -> list[list[Any]]:
    with urllib.request.urlopen(f"{server.url}/exec?" + urllib.parse.urlencode({"query": statement})) as answer:
        return json.loads(answer.read(), strict=False).get("dataset", [])


def shown(history: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the view shows in the end: the last written of the highest final revision, else the last written; nothing where that one is withdrawn."""

    def version(row: dict[str, Any]) -> int:
        return int(row["revision"]) if row["final"] or row.get("withdrawn") else -1

    held: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in itertools.chain(*history):
        key = tuple(row[name] for name in cases.ROWS.key)
        old = held.get(key)
        if old is None or version(row) >= version(old):
            held[key] = row
    return [row for row in held.values() if not row.get("withdrawn")]


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases.histories())
def test_the_view_shows_what_the_rule_says(server: QuestDbServer, history: list) -> None:
    table, schema = next(tables), cases.schema_of(history[0])
    sink = opened(server, table, schema)
    for batch in history:
        sink.write(cases.to_table(batch))
    found = sink.read()
    sink.close()
    assert found.schema.equals(schema, check_metadata=True)
    cases.same(cases.plain(found), shown(history), as_null=lambda value: not math.isfinite(value), in_json=True)


def test_a_worker_that_wakes_up_late_changes_nothing(server: QuestDbServer) -> None:
    sink = opened(server, "zombie")
    early = cases.to_table([cases.result(revision=3, count=3)])
    final = cases.to_table([cases.result(revision=9, count=9, final=True)])
    corrected = cases.to_table([cases.result(revision=11, count=11, final=True)])
    for rows in (early, final, corrected, early, final):
        sink.write(rows)
    assert sink.read().equals(corrected)


def test_early_results_take_one_row_a_key(server: QuestDbServer) -> None:
    sink = opened(server, "early")
    for revision in range(10):
        sink.write(cases.to_table([cases.result(origin=origin, revision=revision, count=revision) for origin in ("JFK", None, "")]))
    assert sorted(str(row["origin"]) for row in sink.read().to_pylist()) == ["", "JFK", "None"]
    assert set(sink.read()["count"].to_pylist()) == {9}
    assert sql(server, "SELECT count() FROM early_versions") == [[3]]


def test_a_dashboard_reads_it_as_a_table(server: QuestDbServer) -> None:
    sink = opened(server, "dashboard")
    rows = [cases.result(hour=h, origin=origin, count=h, final=True) for h in range(48) for origin in ("JFK", "LGA")]
    for _ in range(2):
        sink.write(cases.to_table(rows))
    sink.read()
    counts = sql(server, "SELECT window_start, count FROM dashboard WHERE count > 40")
    assert len(counts) == 14, "a column called count is taken for the function"
    assert sql(server, "SELECT sum(count) FROM dashboard") == [[2 * sum(range(48))]]
    assert sql(server, "SELECT sum(count) FROM dashboard WHERE window_start IN '2013-01-01' AND origin = 'JFK'") == [[sum(range(19))]]
    by_day = sql(server, "SELECT window_start, sum(count) FROM dashboard WHERE final SAMPLE BY 1d")
    assert by_day[0] == ["2013-01-01T00:00:00.000000Z", 2 * sum(range(19))]
    plan = str(sql(server, "EXPLAIN SELECT * FROM dashboard WHERE window_start IN '2013-01-01'"))
    assert "Interval forward scan" in plan, "the time filter does not reach the table below the view"


def test_withdrawn_rows_are_not_seen_and_not_put_back(server: QuestDbServer) -> None:
    sink = opened(server, "sessions", cases.SESSIONS)
    early, told = cases.session(hour=1, revision=2), cases.session(hour=1, revision=3, final=True)
    joined = cases.session(hour=0, revision=5, final=True, count=5)
    for rows in ([early], [told], [joined, cases.withdrawal(told, 5)], [told], [early]):
        sink.write(cases.to_table(rows))
    cases.same(cases.plain(sink.read()), [joined])
    assert sql(server, "SELECT count(), sum(events), sum(count) FROM sessions") == [[1, 5, 5]]
    assert sql(server, "SELECT count FROM sessions WHERE window_start IN '2013-01-01' AND count > 4") == [[5]]
    plan = str(sql(server, "EXPLAIN SELECT * FROM sessions WHERE window_start IN '2013-01-01'"))
    assert "Interval forward scan" in plan, "the time filter does not reach the table below the view"
    back = cases.session(hour=1, revision=6, final=True)
    sink.write(cases.to_table([back]))
    cases.same(cases.plain(sink.read()), [joined, back])


@settings(max_examples=examples(6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_what_a_failed_attempt_left_is_not_seen(server: QuestDbServer, seed: int) -> None:
    written, expected = history(seed)
    table = next(tables)
    sink = opened(server, table, written[0].schema)
    for batch in written:
        sink.write(pa.Table.from_batches([batch]))
    found = {Store.key(row): {name: row[name] for name in ("total", "least", "n", "events")} for row in sink.read().to_pylist()}
    assert found == {key: {name: row[name] for name in ("total", "least", "n", "events")} for key, row in expected.items()}
    assert sql(server, f"SELECT count() FROM '{table}' WHERE window_start >= 0 AND key IN ('a', 'b')") == [[sum(key is not None for key, _ in expected)]]
    sink.close()


@pytest.mark.parametrize("schema", [cases.SCHEMA, cases.SESSIONS], ids=["watermark", "withdrawn too"])
def test_a_table_of_an_earlier_version_gets_the_columns_that_it_lacks(server: QuestDbServer, schema: pa.Schema) -> None:
    make = cases.session if schema is cases.SESSIONS else cases.result
    table = f"earlier {len(schema)}"
    opened(server, table, cases.EARLIER).write(cases.to_table([make(hour=0), make(hour=1)], cases.EARLIER))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: opened(server, table, schema).close(), range(4)))
    sink = opened(server, table, schema)
    newer = make(hour=1, revision=2, watermark=cases.START)
    sink.write(cases.to_table([newer], schema))
    cases.same(cases.plain(sink.read()), [make(hour=0), newer])
    assert sink.read().schema.equals(schema, check_metadata=True)
    with pytest.raises(ValueError, match="is another table: it has the columns"):
        opened(server, table, cases.EARLIER)


def test_lists_and_structs_are_read_with_sql(server: QuestDbServer) -> None:
    sink = opened(server, "nested")
    sketch = {"scale": 3, "side": {"offset": -2, "counts": [4, 2**53 + 1]}, "day": 15706}
    sink.write(cases.to_table([cases.result(tail=[0.5, math.nan], sketch=sketch)]))
    sink.read()
    assert sql(server, "SELECT tail, json_extract(sketch::varchar, '$.side.counts[1]')::long FROM nested") == [["[0.5, null]", 2**53 + 1]]


def test_rows_it_cannot_hold_do_not_cost_the_others(server: QuestDbServer) -> None:
    sink = opened(server, "poison")
    rows = [cases.result(hour=h) for h in range(4)]
    too_early = cases.result(origin="early") | {"window_start": -1}
    too_late = cases.result(origin="late") | {"window_start": 253_402_300_800_000_000}
    null_key = cases.result(origin="null", gate=-(2**63))
    (rejected,) = sink.write(cases.to_table([too_early, *rows, too_late, null_key]))
    assert cases.plain(rejected.rows) == [too_early, too_late, null_key] and rejected.reason.startswith("its time")
    cases.same(cases.plain(sink.read()), rows)


def test_rows_that_the_server_refuses_are_found(server: QuestDbServer) -> None:
    sink = opened(server, "refused")
    sql(server, 'ALTER TABLE refused_versions ALTER COLUMN "label" TYPE LONG')
    rows = [cases.result(hour=h, label="text" if h == 5 else None) for h in range(8)]
    (rejected,) = sink.write(cases.to_table(rows))
    assert cases.plain(rejected.rows) == [rows[5]] and "cast error" in rejected.reason
    assert sql(server, "SELECT count() FROM wal_tables() WHERE name = 'refused_versions' AND suspended") == [[0]]
    sink._server._wait_until_applied("refused_versions")
    assert sql(server, "SELECT count() FROM refused_versions") == [[7]]


def test_another_job_cannot_take_the_table(server: QuestDbServer) -> None:
    opened(server, "taken")
    opened(server, "taken")
    with pytest.raises(ValueError, match="'taken_versions' is another table: it has the columns"):
        opened(server, "taken", cases.SCHEMA.append(pa.field("more", pa.int64())))
    sql(server, "CREATE TABLE mine (ts TIMESTAMP) TIMESTAMP(ts) PARTITION BY DAY WAL")
    with pytest.raises(ValueError, match="'mine' is another table"):
        opened(server, "mine")
    other_key = RowSpec(**(vars(cases.ROWS) | {"key": ("metric", "window_start")})).attach(cases.SCHEMA)
    with pytest.raises(ValueError, match="'taken_versions' is another table: its DEDUP keys are"):
        opened(server, "taken", other_key)


def test_late_events_and_names_with_dots(server: QuestDbServer) -> None:
    rows = RowSpec(kind="late", key=("user.id", "time"), time="time")
    schema = rows.attach(pa.schema([pa.field("user.id", pa.string()), pa.field("time", cases.UTC), pa.field("payload", pa.binary())]))
    sink = opened(server, "late", schema)
    late = pa.table([["a", None], pa.array([cases.START, cases.START]).cast(cases.UTC), [b"\xff\0", None]], schema=schema)
    sink.write(late)
    sink.write(late)
    assert sink.read().sort_by("user.id").equals(late)
    assert QuestDb(QuestDbOptions(url=server.url, table="late")).read()["user_id"].null_count == 1


def test_nothing_there(server: QuestDbServer) -> None:
    with pytest.raises(SinkError, match="there is no table 'nothing'"):
        QuestDb(QuestDbOptions(url=server.url, table="nothing")).read()
    assert len(opened(server, "empty").read()) == 0
    opened(server, "empty").write(cases.SCHEMA.empty_table())


def test_a_restart_is_waited_for_and_a_dead_server_is_named(server: QuestDbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = opened(server, "restart")
    rows = cases.to_table([cases.result(hour=h) for h in range(3)])
    server.stop()
    with monkeypatch.context() as short:
        short.setattr(rows_util, "RETRY_SECONDS", 0.2)
        with pytest.raises(SinkError, match=r"questdb:127\.0\.0\.1:\d+/restart: .*Connection refused, tried for [\d.]+ s"):
            sink.write(rows)
    starter = threading.Timer(0.5, server.start)
    starter.start()
    try:
        sink.write(rows)
    finally:
        starter.join()
    assert sink.read().equals(rows)
    assert opened(server, "restart").read().equals(rows)


def to(url: str, table: str) -> Choice:
    return Choice(SINKS, "questdb", QuestDbOptions(url=url, table=table))


def forward(server: QuestDbServer) -> Callable[[str, str, bytes], faults.Answer]:
    def take(method: str, path: str, body: bytes) -> faults.Answer:
        request = urllib.request.Request(server.url + path, data=body if method == "POST" else None, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers.get("content-type", ""), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("content-type", ""), error.read()

    return take


@contextmanager
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.05)
        monkeypatch.setattr(questdb_sql, "REQUEST_SECONDS", 1.0)
        monkeypatch.setattr(questdb, "_CLIENT_SECONDS", 0.5)
        yield


@settings(max_examples=examples(6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_the_view_is_right_whatever_fails(server: QuestDbServer, seed: int) -> None:
    random, table, broken = Random(seed), next(tables), threading.Event()
    # A time before 1970 is one that QuestDB has no value for.
    bundles = faults.job(random, poison={"gate": -(2**63), "label": "poison"})
    quick = [kind for kind in FaultyServer.KINDS if not kind.startswith("silent")]
    kinds = [*quick, *quick, "silent after"]
    with FaultyServer(forward(server), lambda path: random.choice(kinds) if broken.is_set() else "ok") as proxy:

        @contextmanager
        def trouble(worker: _WriteDoFn) -> Iterator[None]:
            broken.set()
            with impatient():
                try:
                    yield
                finally:
                    broken.clear()

        letters, _ = faults.drive(to(proxy.url, table), bundles, random, trouble)
    sink = opened(server, table, cases.schema_of(bundles[0]))
    good = [[row for row in bundle if row["label"] != "poison"] for bundle in bundles]
    cases.same(cases.plain(sink.read()), cases.stored(good))
    faults.same_letters(letters, [[row for row in bundle if row["label"] == "poison"] for bundle in bundles])
    sink.close()


@pytest.mark.parametrize("fault", [kind for kind in FaultyServer.KINDS if kind != "ok"])
def test_a_lasting_fault_is_named_and_what_took_effect_is_no_matter(server: QuestDbServer, fault: str) -> None:
    table, now = next(tables), ["ok"]
    rows = [cases.result(hour=h, count=h, final=True) for h in range(6)]
    with FaultyServer(forward(server), lambda path: now[0]) as proxy, impatient():
        sink = to(proxy.url, table).create()
        sink.open(cases.SCHEMA, cases.ROWS)
        now[0] = fault
        with pytest.raises(SinkError, match=rf"^questdb:127\.0\.0\.1:\d+/{table}: [^\n]*, tried for [\d.]+ s$"):
            sink.write(cases.to_table(rows))
        now[0] = "ok"
        with pytest.MonkeyPatch.context() as patient:
            patient.setattr(rows_util, "RETRY_SECONDS", 30)
            assert sink.write(cases.to_table(rows[:3])) == [] and sink.write(cases.to_table(rows[3:])) == []
        sink.close()
    cases.same(cases.plain(opened(server, table).read()), rows)


def test_a_server_killed_between_requests_loses_nothing(server: QuestDbServer) -> None:
    sink = opened(server, "killed")
    rows = [cases.result(hour=h, count=h, final=True) for h in range(40)]
    assert server.pid is not None
    killer = threading.Timer(0.05, os.killpg, [server.pid, signal.SIGKILL])
    killer.start()
    written = 0
    try:
        with pytest.raises(SinkError), impatient():
            for written in itertools.count():
                sink.write(cases.to_table([rows[written % 40]]))
    finally:
        killer.join()
        server.stop()
        server.start()
    again = opened(server, "killed")
    found = {row["count"] for row in again.read().to_pylist()}
    assert found >= set(range(min(written, 40))), "what a write returned for is gone"
    again.write(cases.to_table(rows))
    cases.same(cases.plain(again.read()), rows)


def test_workers_open_the_table_at_the_same_time(server: QuestDbServer) -> None:
    def write(number: int) -> None:
        sink = opened(server, "together")
        assert sink.write(cases.to_table([cases.result(hour=number)])) == []
        sink.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert len(opened(server, "together").read()) == 6


def before_the_request(stop: Callable[[], None]) -> None:
    real = questdb._outgoing

    def outgoing(*arguments: Any) -> pa.Table:
        found = real(*arguments)
        stop()
        return found

    questdb._outgoing = outgoing


def test_a_frozen_worker_changes_no_final_row(server: QuestDbServer) -> None:
    old = [cases.session(revision=3, count=3), cases.session(hour=1, revision=4, count=4, final=True)]
    old += [cases.session(hour=2, revision=5, final=True), cases.session(hour=3, revision=5)]
    new = [cases.session(revision=9, count=9, final=True), cases.session(hour=1, revision=6, count=6, final=True)]
    gone = [cases.withdrawal(row, 9) for row in old[2:]]
    sink = opened(server, "frozen", cases.SESSIONS)
    with frozen(to(server.url, "frozen"), old, before_the_request) as worker:
        assert sink.write(cases.to_table([*new, *gone])) == []
        cases.same(cases.plain(sink.read()), new)
        worker.wake()
    cases.same(cases.plain(sink.read()), new)


def test_an_early_row_of_a_frozen_worker_stands_until_the_next_row_of_its_key(server: QuestDbServer) -> None:
    sink = opened(server, "thawed")
    with frozen(to(server.url, "thawed"), [cases.result(revision=3, count=3)], before_the_request) as worker:
        assert sink.write(cases.to_table([cases.result(revision=5, count=5)])) == []
        worker.wake()
    assert sink.read()["count"].to_pylist() == [3]
    assert sink.write(cases.to_table([cases.result(revision=6, count=6)])) == []
    assert sink.read()["count"].to_pylist() == [6]
