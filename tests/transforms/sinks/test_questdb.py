import pickle
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
from pydantic import ValidationError

from streamgauge.transforms import dead_letter
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks import rows_util
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.questdb import QuestDb, QuestDbOptions
from streamgauge.transforms.sinks.questdb_sql import Layout
from tests.transforms.sinks import cases


def test_results_are_a_view_over_versions() -> None:
    layout = Layout.of("delay", cases.SCHEMA, cases.ROWS)
    assert layout.store == "delay_versions"
    assert layout.create_store().endswith(
        'TIMESTAMP("window_start") PARTITION BY DAY WAL '
        'DEDUP UPSERT KEYS("metric", "window_start", "origin", "gate", "open", "day", "since", "_version")'
    )
    assert 'arg_max("count", _version) "count"' in layout.create_view()
    assert 'max(_version) >= 0 "final"' in layout.create_view()


def test_the_view_hides_what_is_withdrawn() -> None:
    layout = Layout.of("delay", cases.SESSIONS, cases.SESSION_ROWS)
    assert layout.columns()["withdrawn"] == "BOOLEAN"
    assert layout.create_view().endswith(' TIMESTAMP("window_start") WHERE NOT "withdrawn")')
    assert 'max(case when "withdrawn" then _version else -2 end) = max(_version) "withdrawn"' in layout.create_view()
    assert "WHERE" not in Layout.of("delay", cases.SCHEMA, cases.ROWS).create_view()


def test_the_view_hides_what_overlaps_an_earlier_row() -> None:
    view = Layout.of("delay", cases.SESSIONS, replace(cases.SESSION_ROWS, until="window_end")).create_view()
    assert 'OVER (PARTITION BY "metric", "origin", "gate", "open", "day", "since" ORDER BY "window_start" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)' in view
    assert "_covered" not in Layout.of("delay", cases.SESSIONS, cases.SESSION_ROWS).create_view()


def test_names_that_questdb_forbids() -> None:
    schema = pa.schema([pa.field("user.id", pa.string()), pa.field("time", cases.UTC)])
    layout = Layout.of("late", schema, RowSpec(kind="late", key=("user.id", "time"), time="time"))
    assert layout.create_store() == (
        'CREATE TABLE IF NOT EXISTS "late_versions" ("user_id" SYMBOL, "time" TIMESTAMP, "_version" LONG) '
        'TIMESTAMP("time") PARTITION BY DAY WAL DEDUP UPSERT KEYS("user_id", "time", "_version")'
    )


@pytest.mark.parametrize("names", [("a.b", "a-b"), ("a", "A"), ("a", "_version")])
def test_names_that_questdb_cannot_tell_apart(names: tuple[str, str]) -> None:
    schema = pa.schema([pa.field("time", cases.UTC), *(pa.field(name, pa.string()) for name in names)])
    with pytest.raises(ValueError, match=r"apart|reserved"):
        Layout.of("t", schema, RowSpec(kind="late", key=("time",), time="time"))


def test_dead_letters_are_refused_before_anything_is_asked() -> None:
    with pytest.raises(ValueError, match=r"cannot take dead_letters: their time is not in their key .* write them to sqlite or parquet"):
        QuestDb(QuestDbOptions(url="http://localhost:1", table="t")).open(dead_letter.SCHEMA, dead_letter.ROWS)


@pytest.mark.parametrize(
    "options", [{"url": "localhost:9", "table": "t"}, {"url": "tcp://x", "table": "t"}, {"table": "a'b"}, {"table": ""}, {"table": "a/b"}]
)
def test_options_that_cannot_work(options: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        QuestDbOptions.model_validate(options)


def test_a_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "questdb", None)
    with pytest.raises(SinkError, match=r"pip install 'streamgauge\[questdb\]'"):
        QuestDb(QuestDbOptions(table="t")).open(cases.SCHEMA, cases.ROWS)


def test_a_server_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_util, "RETRY_SECONDS", 0.2)
    sink = pickle.loads(pickle.dumps(QuestDb(QuestDbOptions(url="http://user:secret@127.0.0.1:1", table="t"))))
    with pytest.raises(SinkError, match=r"questdb:127.0.0.1:1/t: no answer from QuestDB, tried for 0.2 s: ") as caught:
        sink.open(cases.SCHEMA, cases.ROWS)
    assert "secret" not in str(caught.value)
