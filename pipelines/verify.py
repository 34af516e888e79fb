"""``streamgauge verify``: is what a job stored the right answer?

The job's input is read again by plain means (verify_input.py), DuckDB computes what every row should be (verify_sql.py), and each row
of the job's stores is compared with it (verify_compare.py). What was read is known from the job's record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from streamgauge.pipelines.job import Job, JobError, Output, Step, origins
from streamgauge.pipelines.job_flow import event_schema, event_sources
from streamgauge.pipelines.run_state import REPLAY_POINT
from streamgauge.pipelines.verify_aggregates import fields_used, unknown_aggregates
from streamgauge.pipelines.verify_compare import (
    Comparison,
    Question,
    compare_late,
    compare_letters,
    compare_results,
    make_expected,
    written_time,
)
from streamgauge.pipelines.verify_input import SplitRange, plain, records
from streamgauge.pipelines.verify_sql import load_raw, make_events
from streamgauge.pipelines.verify_unique import make_unique
from streamgauge.pipelines.verify_windows import KINDS
from streamgauge.transforms.config import Choice
from streamgauge.transforms.deduplicate import DeduplicateOptions
from streamgauge.transforms.read import ReadOptions
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.sinks import SINKS
from streamgauge.transforms.sinks.base import SinkError

Say = Callable[[str], None]


@dataclass
class Verdict:
    """What was found.

    Attributes:
        events, rejected: of the input. results, letters: one comparison a metric and store, and a source. notes: what limits them.
    """

    events: int = 0
    rejected: int = 0
    results: list[Comparison] = field(default_factory=list)
    letters: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return all(comparison.agrees for comparison in (*self.results, *self.letters))

    def summary(self) -> str:
        """The last line of the report."""
        windows = sum(comparison.windows or 0 for comparison in self.results)
        rows = sum(comparison.compared for comparison in self.results)
        if self.agrees:
            return f"verify: {windows:,} windows, {rows:,} rows agree"
        parts = []
        for name, comparisons in (("rows", self.results), ("dead letters", self.letters)):
            differing = sum(comparison.differing for comparison in comparisons)
            if differing:
                parts.append(f"{differing:,} of {sum(comparison.compared for comparison in comparisons):,} {name} differ")
        return f"verify: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "agrees": self.agrees}


@dataclass
class _Source:
    """A ReadEvents, what was read of it, and the table with its events."""

    step: Step
    name: str
    ranges: list[SplitRange]
    table: str

    @property
    def complete(self) -> bool:
        return all(what.done for what in self.ranges)

    @property
    def fields(self) -> dict[str, str]:
        return dict(self.step.options.format.options.fields)


def verify_job(job: Job, record_folder: Path | None = None, say: Say = lambda text: None) -> Verdict:
    """Compares everything that the job has stored. Raises JobError, SourceError, SinkError."""
    try:
        import duckdb
    except ImportError:
        raise JobError("verify needs duckdb; run: pip install 'streamgauge[verify]'") from None
    folder = record_folder or job.record_folder
    record = JobRecord(folder)
    _can_verify(job)
    if (folder.parent / REPLAY_POINT).exists():
        raise JobError(
            f"{job.name}: its last run was a replay, which read a part of the input only, beside what earlier runs had stored; verify can check a run "
            "that began at the beginning (run it with --fresh into another table)"
        )
    sources = _sources(job, record, folder)
    verdict = Verdict()
    with tempfile.TemporaryDirectory(prefix="streamgauge-verify-") as scratch, duckdb.connect(f"{scratch}/verify.duckdb") as connection:
        for source in sources:
            _read_again(connection, source, verdict, say)
        for step in job.of("AggregateWindows"):
            say(f"comparing {step.options.metric}")
            verdict.results += _check_metric(connection, job, step, sources, record)
        for source in sources:
            verdict.letters.append(_check_letters(connection, job, source, folder))
    return verdict


def _can_verify(job: Job) -> None:
    for step in job.of("ReadEvents"):
        if step.options.format.name not in ("json", "csv"):
            raise JobError(f"{job.path}:{step.line}: verify reads json and csv again, not {step.options.format.name}")
    for step in job.of("AggregateWindows"):
        if step.options.window.name not in KINDS:
            raise JobError(f"{job.path}:{step.line}: verify knows {', '.join(KINDS)} windows, not {step.options.window.name}")
        for other in event_sources(step):
            if not isinstance(other.options, (ReadOptions, DeduplicateOptions)):
                raise JobError(
                    f"{job.path}:{step.line}: verify cannot compute {step.options.metric} again: {other.name} (line {other.line}) changes its events first, and verify "
                    "knows only what ReadEvents and Deduplicate do"
                )
        if not _stores(job, step, "results"):
            raise JobError(f"{job.path}:{step.line}: the results of {step.name} go to no store that can be read back; such are {', '.join(_readable_sinks())}")


def _sources(job: Job, record: JobRecord, folder: Path) -> list[_Source]:
    splits = record.all("splits")
    if not splits:
        raise JobError(f"{job.name}: nothing has been read according to {folder}; run the job first, in this folder, or name its record with --record")
    sources = []
    for index, step in enumerate(job.of("ReadEvents")):
        name = step.options.source.create().name
        ranges = [
            SplitRange(name, values["split"], values["start"], values["position"], values["done"], values["watermark"])
            for values in splits if values["source"] == name
        ]  # fmt: skip
        if not ranges:
            known = sorted({values["source"] for values in splits})
            raise JobError(f"{job.name}: the record in {folder} has {', '.join(known)}, not {name}; verify takes the same --set values as the run did")
        sources.append(_Source(step, name, ranges, f"events{index}"))
    return sources


def _read_again(connection: Any, source: _Source, verdict: Verdict, say: Say) -> None:
    options, raw = source.step.options, f"{source.table}_raw"
    load_raw(connection, raw, "", (), options.format)
    for what in source.ranges:
        say(f"reading {source.name} {what.split}")
        load_raw(connection, raw, what.split, records(options.source, what), options.format)
    if not plain(options.source):
        verdict.notes.append(f"{source.name}: read again by its own connector")
    say(f"parsing {source.name}")
    make_events(connection, raw, source.table, options.format, options.time)
    events, rejected = connection.execute(f"SELECT count(*) FILTER (reason IS NULL), count(reason) FROM {source.table}").fetchall()[0]
    verdict.events += events
    verdict.rejected += rejected
    if not source.complete:
        done = sum(what.done for what in source.ranges)
        verdict.notes.append(f"{source.name}: {done} of {len(source.ranges)} splits are read to their end; only windows that are closed for good are compared")


def _check_metric(connection: Any, job: Job, step: Step, sources: list[_Source], record: JobRecord) -> list[Comparison]:
    options = step.options
    before = event_sources(step)
    mine = [source for source in sources if source.step in before]
    horizon = _horizon(mine)
    notes = [] if horizon is None else [f"windows are compared up to {written_time(horizon)}" if horizon > 0 else "no window is closed for good yet"]
    notes += [f"not compared: {', '.join(unknown)}" for unknown in [unknown_aggregates(options)] if unknown]
    tables = [source.table for source in mine]
    late_stores = _stores(job, step, "late")
    late, late_notes = _late_rows(late_stores, options.metric)
    connection.register("late_rows", late)
    connection.execute("CREATE OR REPLACE TABLE late AS SELECT * FROM late_rows")
    connection.unregister("late_rows")
    schema = event_schema(mine[0].step)
    question = Question(options, mine[0].fields, schema, horizon, min(source.step.options.time.disorder for source in mine))
    between = make_expected(connection, question, _reaching(connection, step, mine, fields_used(options, schema), record, notes))
    if between:
        notes.append(f"{between:,} events came when some of their windows were closed: rows of those may lack them, and differ")
    found = []
    for to in _stores(job, step, "results"):
        sink = to.create()
        outcome = Comparison(options.metric, sink.name, notes=[*notes, *late_notes])
        stored = _rows(sink, step.metric.result_schema if step.metric else None, outcome)
        compare_results(connection, question, stored.filter(pc.equal(stored.column("metric"), options.metric)), outcome)
        compare_late(connection, tables, _within(mine), outcome)
        if not late_stores:
            outcome.late = sum(values["events"] for values in record.all("late") if values["metric"] == options.metric)
            if outcome.late:
                outcome.notes.append(f"the job counted {outcome.late:,} late events but stored none (`late: true`): rows that lack them differ")
        found.append(outcome)
    return found


def _reaching(connection: Any, step: Step, sources: list[_Source], used: list[str], record: JobRecord, notes: list[str]) -> list[str]:
    """Tables of the events that a step takes. ``notes`` gets what is not certain of them."""
    tables = []
    for output in origins(step):
        other = output.step
        if not isinstance(other.options, DeduplicateOptions):
            tables.append(next(source.table for source in sources if source.step is other))
            continue
        by = other.options.by
        tables.append(f"unique{id(other)}")
        taken = _reaching(connection, other, sources, [*used, *by], record, notes)
        unknown = make_unique(connection, tables[-1], taken, other.options, list(sources[0].fields), used)
        if unknown:
            notes.append(f"{other.name}: {unknown:,} ids have copies in several splits that are not alike: which of them went on is not known, and their rows may differ")
        unjudged = sum(values["unjudged"] for values in record.all("duplicates") if values["by"] == by)
        if unjudged:
            notes.append(f"{other.name}: {unjudged:,} events came too late to be judged and went on: where one is a duplicate, its row differs")
    return tables


def _horizon(sources: list[_Source]) -> int | None:
    """Microseconds: what is before is complete. None: everything is."""
    unfinished = [what.watermark for source in sources for what in source.ranges if not what.done]
    if not unfinished:
        return None
    return min(-(2**62) if watermark is None else watermark for watermark in unfinished)


def _within(sources: list[_Source]) -> str:
    """SQL: the row lies in what the job's record says was read. What was read since is not compared."""
    unfinished = [what for source in sources for what in source.ranges if not what.done]
    beyond = [f"(split = '{what.split.replace(chr(39), chr(39) * 2)}' AND position >= {what.position})" for what in unfinished]
    return f"NOT ({' OR '.join(beyond)})" if beyond else "true"


def _late_rows(stores: list[Choice], metric: str) -> tuple[pa.Table, list[str]]:
    tables = [pa.table({"split": pa.array([], pa.string()), "position": pa.array([], pa.int64())})]
    outcome = Comparison("late", "")
    for to in stores[:1]:
        rows = _rows(to.create(), None, outcome)
        if rows.num_rows:
            rows = rows.filter(pc.equal(rows.column("metric"), metric))
            tables.append(pa.table({"split": rows.column("split").cast(pa.string()), "position": rows.column("position").cast(pa.int64())}))
    return pa.concat_tables(tables), []


def _check_letters(connection: Any, job: Job, source: _Source, folder: Path) -> Comparison:
    handling = source.step.options.error_handling
    if handling is None:
        stores = [Choice(SINKS, "parquet", SINKS.load("parquet").Options(path=str(folder / "dead_letters")))]
    else:
        stores = _stores(job, source.step, handling.output)
    outcome = Comparison(f"dead letters of {source.name}", "")
    if not stores:
        outcome.notes.append("not compared: they go to no store that can be read back")
        return outcome
    sink = stores[0].create()
    outcome.store = sink.name
    rows = _rows(sink, None, outcome)
    letters = pa.table({"split": pa.array([], pa.string()), "position": pa.array([], pa.int64()), "error_type": pa.array([], pa.string())})
    if rows.num_rows:
        mine = rows.filter(pc.and_(pc.equal(rows.column("stage"), "read"), pc.equal(rows.column("source"), source.name)))
        letters = mine.select(["split", "position", "error_type"])
    compare_letters(connection, source.table, letters, _within([source]), source.complete, outcome)
    if not rows.num_rows and not outcome.differing:
        # A table that was never made is right where nothing was rejected.
        outcome.notes.clear()
    return outcome


def _stores(job: Job, step: Step, output: str) -> list[Choice]:
    """The readable stores that an output of a step is written to."""
    writes = [write for write in job.of("WriteResults") if Output(step, output) in origins(write)]
    return [write.options.to for write in writes if hasattr(SINKS.load(write.options.to.name), "read")]


def _readable_sinks() -> list[str]:
    return [name for name in SINKS.names() if hasattr(SINKS.load(name), "read")]


def _rows(sink: Any, schema: pa.Schema | None, outcome: Comparison) -> pa.Table:
    """What the store holds; a table that nothing was ever written to is not there, which the outcome notes."""
    try:
        table = sink.read()
    except SinkError as error:
        outcome.notes.append(str(error))
        return (schema or pa.schema([])).empty_table()
    missing = [name for name in schema.names if name not in table.column_names] if schema else []
    if missing:
        raise JobError(f"{sink.name} lacks the columns {', '.join(missing)}: it was written by another version of the job")
    return table
