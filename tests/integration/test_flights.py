"""All flights of 2013 through the whole of it, three ways; each must give the rows that DuckDB's SQL, written here, gives of the raw lines."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from streamgauge.pipelines.flights import (
    EMPTY_PARTITION,
    PARTITIONS,
    PAUSING_PARTITION,
    FlightsInput,
    Line,
    Phase,
    kafka_phases,
    write_events,
)
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.questdb import QuestDbServer
from streamgauge.transforms.record import JobRecord
from tests.running import Command, until

confluent_kafka = pytest.importorskip("confluent_kafka")
admin_module = pytest.importorskip("confluent_kafka.admin")

pytestmark = pytest.mark.integration

JOBS = Path(__file__).parents[2] / "templates" / "jobs"
EVENTS = 336_776
TOPIC = "flights"
MINUTE = 60_000_000
"""In microseconds, as all times here."""
DISORDER, HOUR = 15 * MINUTE, 60 * MINUTE

Placed = tuple[str, int, Line]
"""A line where it lies: split, position."""

EXPECTED = """
    WITH good AS (
        SELECT *, (text ->> '$.scheduled_departure')::TIMESTAMPTZ AS moment, (text ->> '$.dep_delay')::DOUBLE AS delay, (text ->> '$.distance')::BIGINT AS miles
        FROM lines ANTI JOIN late USING (split, position)
    )
    SELECT
        epoch_us(date_trunc('hour', moment)) AS start, epoch_us(date_trunc('hour', moment)) + 3600000000 AS stop, text ->> '$.origin' AS origin, text ->> '$.carrier' AS carrier,
        count(*) AS flights, avg(delay) AS mean_delay, max(delay) AS max_delay, min(delay) AS min_delay, sum(miles)::BIGINT AS miles
    FROM good GROUP BY ALL
"""
DIFFERENT = """
    SELECT * FROM expected e FULL JOIN found f USING (start, origin, carrier)
    WHERE e.flights IS DISTINCT FROM f.flights OR e.stop IS DISTINCT FROM f.stop OR e.max_delay IS DISTINCT FROM f.max_delay
       OR e.min_delay IS DISTINCT FROM f.min_delay OR e.miles IS DISTINCT FROM f.miles
       OR (e.mean_delay IS NULL) <> (f.mean_delay IS NULL) OR abs(e.mean_delay - f.mean_delay) > 1e-9 * abs(e.mean_delay)
       OR f.events IS DISTINCT FROM e.flights OR f.revision IS DISTINCT FROM e.flights OR f.final IS DISTINCT FROM true OR f.metric IS DISTINCT FROM 'departures'
    LIMIT 5
"""
SQLITE_ROWS = """
    SELECT epoch_us(window_start::TIMESTAMPTZ) AS start, epoch_us(window_end::TIMESTAMPTZ) AS stop, origin, carrier, flights, mean_delay, max_delay, min_delay,
        miles, events, revision, final = 1 AS final, metric
    FROM sqlite_rows
"""
COLUMNS = ("start", "stop", "origin", "carrier", "flights", "mean_delay", "max_delay", "min_delay", "miles", "events", "revision", "final", "metric")


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> FlightsInput:
    found = write_events(tmp_path_factory.mktemp("flights"))
    assert found.events + len(found.damaged) == EVENTS
    assert set(found.damaged.values()) > {"truncated", "wrong_type", "bad_time"}
    return found


def in_file(flights: FlightsInput, split: str) -> Iterator[Placed]:
    """The lines with their byte offsets."""
    lines = list(flights.lines())
    starts = accumulate((len(line.data) + 1 for line in lines), initial=0)
    return ((split, start, line) for start, line in zip(starts, lines, strict=False))


def reason(line: Line) -> str:
    """What a dead letter must say of a damaged line."""
    if line.kind == "missing_time" or (line.kind == "bad_time" and b'"scheduled_departure":null' in line.data):
        return "no_event_time"
    return "type" if line.kind in ("wrong_type", "bad_time") else "malformed"


def check(placed: Sequence[Placed], found: pa.Table, out: Path, source: str) -> None:
    """Compares the stored rows, the late events and the dead letters with the lines.

    Args:
        found: the rows, columns ``COLUMNS``. out: folder with the Parquet of late events and dead letters. source: as dead letters name it.
    """
    good = [(split, position, line.data.decode()) for split, position, line in placed if not line.damaged]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("lines", pa.table(dict(zip(("split", "position", "text"), map(list, zip(*good, strict=True)), strict=True))))
        db.register("found", found.rename_columns(list(COLUMNS)))
        late = sorted((out / "late").glob("*.parquet"))
        db.execute("CREATE TABLE late AS SELECT split, position FROM lines LIMIT 0")
        if late:
            db.execute("INSERT INTO late SELECT split, position FROM read_parquet($1)", [[str(path) for path in late]])
        assert db.execute("SELECT count(*) FROM late").fetchall() == db.execute("SELECT count(*) FROM lines SEMI JOIN late USING (split, position)").fetchall()
        db.execute(f"CREATE TABLE expected AS {EXPECTED}")
        assert db.execute(DIFFERENT).fetchall() == []
        rows = db.execute("SELECT count(*), sum(flights) FROM expected").fetchone()
        assert rows == (found.num_rows, len(good) - db.execute("SELECT count(*) FROM late").fetchall()[0][0])
        assert rows[0] > 50_000
        letters = db.execute("SELECT split, position, error_type, payload, source, stage FROM read_parquet($1)", [f"{out}/rejected/*.parquet"]).fetchall()
    damaged = [(split, position, reason(line), line.data, source, "read") for split, position, line in placed if line.damaged]
    assert sorted(letters) == sorted(damaged)


def sqlite_rows(path: Path) -> pa.Table:
    import sqlite3

    with sqlite3.connect(path) as connection:
        cursor = connection.execute("SELECT * FROM departures")
        columns = list(zip(*cursor.fetchall(), strict=True))
    table = pa.table({name[0]: list(values) for name, values in zip(cursor.description, columns, strict=True)})
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register("sqlite_rows", table)
        return db.sql(SQLITE_ROWS).to_arrow_table()


def progress(command: Command) -> dict[str, Any]:
    """The last line of ``--json``."""
    last: dict[str, Any] = json.loads(command.out.splitlines()[-1])
    return last


def verified(folder: Path, *arguments: str | Path) -> None:
    with Command(folder, "verify", *arguments) as command:
        assert command.wait() == 0, command.out + command.err
        assert command.lines[-1].startswith("verify: ") and command.lines[-1].endswith(" rows agree")


@pytest.mark.parametrize("runner", ["direct", "flink"])
def test_files(flights: FlightsInput, tmp_path: Path, runner: str) -> None:
    arguments = (JOBS / "flights.yaml", "--set", f"input={flights.files[0]}", "--set", "out=out")
    with Command(tmp_path, "run", *arguments, "--runner", runner, "--json") as command:
        assert command.wait() == 0, command.err
        end = progress(command)
        print(f"\n{runner}: {command.seconds:.1f} s, {end}")
    assert (end["events"], end["rejected"], end["restarts"]) == (flights.events, len(flights.damaged), 0)
    assert end["checkpoints"] >= (2 if runner == "flink" else 0)
    split = str(flights.files[0])
    check(list(in_file(flights, split)), sqlite_rows(tmp_path / "out" / "departures.db"), tmp_path / "out", f"files:{split}")
    verified(tmp_path, *arguments)


def times(phases: Sequence[Phase]) -> list[int]:
    """Event times of the good lines."""
    texts = [json.loads(line.data)["scheduled_departure"] for phase in phases for lines in phase for line in lines if not line.damaged]
    with duckdb.connect() as db:
        db.register("texts", pa.table({"text": texts}))
        return [row[0] for row in db.execute("SELECT epoch_us(text::TIMESTAMPTZ) FROM texts").fetchall()]


def produce(brokers: str, phase: Phase) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "log_level": 0, "queue.buffering.max.messages": 1_000_000})
    # All partitions at one pace: one that got its lines after the others, by more than the idle time, would be idle, and they late.
    for lines in zip_longest(*phase):
        for partition, line in enumerate(lines):
            if line is not None:
                producer.produce(TOPIC, line.data, partition=partition)
    assert producer.flush(60) == 0


def questdb(url: str, query: str) -> list[list[Any]]:
    """Rows of a query; none while the table is not there yet."""
    try:
        with urllib.request.urlopen(f"{url}/exec?{urllib.parse.urlencode({'query': query})}", timeout=60) as answer:
            return list(json.load(answer)["dataset"])
    except urllib.error.HTTPError as error:
        assert "does not exist" in (text := error.read().decode()), text
        return []


def test_kafka_with_an_empty_and_a_pausing_partition_into_questdb(flights: FlightsInput, tmp_path: Path) -> None:
    phases = kafka_phases(list(flights.lines()))
    before, pause, held, after = phases
    assert all(not phase[EMPTY_PARTITION] for phase in phases) and not pause[PAUSING_PARTITION] and len(held[PAUSING_PARTITION]) > 5
    lengths = [[sum(len(phase[partition]) for phase in phases[: number + 1]) for partition in range(PARTITIONS)] for number in range(4)]
    with KafkaServer(tmp_path / "kafka") as kafka, QuestDbServer(tmp_path / "questdb") as store:
        admin = admin_module.AdminClient({"bootstrap.servers": kafka.brokers, "log_level": 0})
        admin.create_topics([admin_module.NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(60)
        values = {"brokers": kafka.brokers, "questdb": store.url, "topic": TOPIC, "idle": "2s", "out": "out"}
        arguments = (JOBS / "flights-kafka.yaml", *(part for name, value in values.items() for part in ("--set", f"{name}={value}")))
        with Command(tmp_path, "run", *arguments, "--set", "topic=flight") as wrong:
            assert wrong.wait() == 1
            assert len(wrong.lines) == 1 and f"no topic 'flight'; similar ones: {TOPIC}" in wrong.lines[0]
        record = JobRecord(tmp_path / ".streamgauge/jobs/flights-kafka/record")

        def split(partition: int) -> dict[str, Any]:
            return next((each for each in record.all("splits") if each["split"] == f"{TOPIC}-{partition}"), {"position": 0, "watermark": None})

        def consumed(number: int) -> bool:
            return [split(partition)["position"] for partition in range(PARTITIONS)] == lengths[number]

        with Command(tmp_path, "run", *arguments, "--json") as command:
            produce(kafka.brokers, before)
            until(lambda: consumed(0), "what comes before the pause is read", of=command)
            produce(kafka.brokers, pause)
            until(lambda: consumed(1), "what comes during the pause is read", of=command)
            # As idle partitions they follow the newest event: closed by then are windows that the held back events belong to.
            idle = max(times([before, pause])) - DISORDER - 2_000
            for partition in (PAUSING_PARTITION, EMPTY_PARTITION):
                until(lambda partition=partition: (split(partition)["watermark"] or 0) >= idle, f"partition {partition} counts as idle", of=command)
            ends = {time // HOUR * HOUR + HOUR for time in times([held])}
            closed = {end for end in ends if end <= idle}
            assert closed and all(end + HOUR > idle for end in ends), "held back are events that are late, but none too late"
            query = f"SELECT count() FROM departures WHERE final AND window_end = {max(closed)}"
            until(lambda: (questdb(store.url, query) or [[0]])[0][0], "windows of held back events are final", of=command)
            produce(kafka.brokers, held)
            until(lambda: consumed(2), "what was held back is read", of=command)
            produce(kafka.brokers, after)
            until(lambda: consumed(3), "all is read", of=command)
            with Command(tmp_path, "drain", arguments[0]) as drain:
                assert drain.wait() == 0, drain.err
            assert command.wait() == 0, command.err
            end = progress(command)
            print(f"\nKafka: {command.seconds:.1f} s, {end}")
        assert (end["events"], end["rejected"], end["late"], end["restarts"]) == (flights.events, len(flights.damaged), 0, 0)
        assert end["checkpoints"] >= 2
        rows = questdb(
            store.url,
            "SELECT window_start::long, window_end::long, origin, carrier, flights, mean_delay, max_delay, min_delay, miles, events, revision, final, metric FROM departures",
        )
        verified(tmp_path, *arguments)
    placed = [
        (f"{TOPIC}-{partition}", position, line)
        for partition in range(PARTITIONS)
        for position, line in enumerate(line for phase in phases for line in phase[partition])
    ]
    check(placed, pa.table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "out", f"kafka:{TOPIC}")
