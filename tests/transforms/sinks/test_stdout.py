import json
import math

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from streamgauge.transforms import dead_letter
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.stdout import Stdout, StdoutOptions
from tests.examples import examples
from tests.transforms.sinks import cases


def printed(capsys: pytest.CaptureFixture[str], table: pa.Table) -> list[dict]:
    sink = Stdout(StdoutOptions())
    sink.open(table.schema, cases.SESSION_ROWS)
    sink.write(table)
    text = capsys.readouterr().out
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=pytest.fail) for line in text.split("\n")[:-1]]


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases.histories())
def test_every_row_is_one_line_of_json(capsys: pytest.CaptureFixture[str], history: list) -> None:
    rows = [row for batch in history for row in batch]
    same_as_json = ("metric", "origin", "gate", "open", "count", "label", "any", "top", "events", "revision", "final")
    found = printed(capsys, cases.to_table(rows))
    assert [[line[name] for name in same_as_json] for line in found] == [[row[name] for name in same_as_json] for row in rows]
    means = [row["mean"] for row in rows]
    assert [line["mean"] for line in found] == [mean if mean is not None and math.isfinite(mean) else None for mean in means]
    assert [line["big"] for line in found] == [None if row["big"] is None else str(row["big"]) for row in rows]
    assert [line["tail"] for line in found] == [
        None if row["tail"] is None else [v if v is not None and math.isfinite(v) else None for v in row["tail"]] for row in rows
    ]
    assert [line["sketch"] and line["sketch"]["side"] for line in found] == [row["sketch"] and row["sketch"]["side"] for row in rows]
    assert all(list(line) == cases.schema_of(rows).names for line in found)


def test_a_withdrawn_row_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    row = cases.session(hour=1, revision=3, seen=[cases.START])
    kept, gone = printed(capsys, cases.to_table([row, cases.withdrawal(row, 5)]))
    assert (kept["withdrawn"], kept["revision"], kept["seen"]) == (False, 3, ["2013-01-01T05:00:00.000000Z"])
    assert (gone["withdrawn"], gone["revision"], gone["count"], gone["events"]) == (True, 5, None, 0)


def test_times_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"t": pa.array([cases.START + 1]).cast(cases.UTC), "d": pa.array([15706], pa.int32()).cast(pa.date32())})
    assert printed(capsys, table) == [{"t": "2013-01-01T05:00:00.000001Z", "d": "2013-01-01"}]
    letters = dead_letter.dead_letters(
        stage="read", source="s", split="p", positions=pa.array([1, 2, 3]), payloads=pa.array(["é".encode(), b"\xff\x00", None]),
        error_types=["malformed"] * 3, messages=["no"] * 3,
    )
    assert [line["payload"] for line in printed(capsys, pa.Table.from_batches([letters]))] == ["é", {"base64": "/wA="}, None]


def test_a_closed_pipe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        encoding = "utf-8"

        def write(self, text: str) -> None:
            raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(SinkError, match="takes no more lines: Broken pipe"):
        Stdout(StdoutOptions()).write(cases.to_table([cases.result()]))
