"""Which changes of a job resume, in the words that people read; and that the state has the names that the layout says."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.yaml.yaml_transform import expand_pipeline

from streamgauge.pipelines.compat import ANEW, OF_ITS_OWN, REPLAY, Change, compare
from streamgauge.pipelines.job import Job, load_job
from streamgauge.pipelines.job_layout import layout_of
from streamgauge.pipelines.reshard import with_reach
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.flink import EmbeddedFlink, latest_checkpoint, silence_unknown_options
from streamgauge.pipelines.services.flink_rest import END_OF_TIME_MS
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.state_layout import Layout, earlier_partials, read_layouts, schema_of, write_layouts

READ = """
    - type: ReadEvents
      name: Read
      config:
        from: {kafka: {brokers: "a:9092, b:9092", topic: flights}}
        format: {json: {schema: {ts: timestamp, host: string, up: bool, x: double, n: int64, small: int16}}}
        time: {field: ts, disorder: 5s}
"""
DEDUP = """
    - type: Deduplicate
      input: Read
      config: {by: [host], horizon: 1m}
"""
AGGREGATE = """
    - type: AggregateWindows
      name: Agg
      input: Read
      config:
        metric: load
        window: {tumbling: 10s}
        by: [host]
        aggregates: {events_n: count, total: {sum: x}, worst: {max: x}, xs: {sum: small}}
        lateness: 5s
"""
WRITE = """
    - type: WriteResults
      input: Agg
      config: {to: {sqlite: {path: a.db, table: load}}}
"""
JOB = f"pipeline:\n  transforms:{READ}{AGGREGATE}{WRITE}options: {{streaming: true}}\n"
DEDUPED = JOB.replace(READ, READ + DEDUP).replace("name: Agg\n      input: Read", "name: Agg\n      input: Deduplicate")
OTHER = AGGREGATE.replace("name: Agg", "name: Other")
OTHER_WRITE = WRITE.replace("input: Agg", "name: W2\n      input: Other").replace("a.db", "b.db")
OF_READ2 = READ.replace("name: Read", "name: Read2").replace("topic: flights", "topic: more") + OTHER.replace("input: Read", "input: Read2") + OTHER_WRITE
WITH_LATE = AGGREGATE.replace("lateness: 5s", "lateness: 5s\n        late: true") + WRITE.replace("input: Agg", "input: Agg.results")
LATE_WRITE = WRITE.replace("input: Agg", "name: Late\n      input: Agg.late").replace("a.db", "late.db")


def job_of(folder: Path, text: str) -> Job:
    path = folder / "job.yaml"
    path.write_text(text)
    return load_job(path)


def layout(folder: Path, text: str) -> Layout:
    return layout_of(job_of(folder, text))


A = "Agg: "
R = "Read: "
CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    # (what stands there, what is written instead, (verdict, the whole sentence) of each change)
    ("path: a.db", "path: other.db", []),
    ("options:", "# a comment\noptions:", []),
    (WRITE, WRITE + WRITE.replace("type: WriteResults", "type: WriteResults\n      name: More").replace("a.db", "c.db"), []),
    ("events_n: count", "number: count", [
        ("resumes", A + "aggregates number: open windows have all that they need"), ("resumes", A + "without events_n: open windows are kept")]),
    (", worst: {max: x}", "", [("resumes", A + "without worst: max(x) of open windows is dropped when they are next merged")]),
    ("total: {sum: x}", "total: {sum: x}, more: {sum: x}", [("resumes", A + "aggregates more: open windows have all that they need")]),
    ("total: {sum: x}", "total: {sum: x}, avg: {mean: x}", [
        ("refused", A + "aggregates avg: open windows do not have count(x); give the new aggregates an AggregateWindows of their own (it starts empty "
         f"from where reading stands), or {REPLAY}")]),
    ("x: double", "x: float", [
        ("refused", A + "types of the fields of max(x): open windows do not have max(x) as float; give the new aggregates an AggregateWindows of their own "
         f"(it starts empty from where reading stands), or {REPLAY}"),
        ("resumes", R + "format: payloads are read so from here on; no state has their fields")]),
    ("small: int16", "small: int32", [("resumes", R + "format: payloads are read so from here on; no state has their fields")]),
    ("n: int64, ", "", [("resumes", R + "format: payloads are read so from here on; no state has their fields")]),
    ("host: string", "host: int32", [
        ("refused", A + f"by host (string) -> host (int32): open windows are grouped by the old dimensions; {REPLAY}"),
        ("resumes", R + "format: payloads are read so from here on; no state has their fields")]),
    ("by: [host]", "by: [host, up]", [
        ("refused", A + f"by host (string) -> host (string), up (bool): open windows are grouped by the old dimensions; {REPLAY}")]),
    ("by: [host]", "by: {server: host}", [("resumes", A + "columns host -> server: the same fields under other names: open windows are kept")]),
    ("tumbling: 10s", "tumbling: 1m", [("refused", A + f"window tumbling 10s -> tumbling 1m: open windows are of the old kind; {REPLAY}")]),
    ("{tumbling: 10s}", "{tumbling: {size: 10s, offset: 1s}}", [
        ("refused", A + f"window tumbling 10s -> tumbling 10s offset 1s: open windows are of the old kind; {REPLAY}")]),
    ("lateness: 5s", "lateness: 1m", [
        ("refused", A + "lateness 5s -> 1m: open windows hold the time at which they are cleared, and closed ones would open again with part of their "
         f"events; {REPLAY}")]),
    ("lateness: 5s", "lateness: 5s\n        shards: 4", [("refused", A + f"shards 8 -> 4: it is not known which windows have begun; {REPLAY}")]),
    ("lateness: 5s", "lateness: 5s\n        emit: {every: 1s}", [("resumes", A + "emit final -> every 1s: open windows are kept; it holds for what comes from here on")]),
    (AGGREGATE + WRITE, WITH_LATE + LATE_WRITE, []),
    ("metric: load", "metric: use", [
        ("resumes", A + "metric load -> use: rows from here on have the new name; an open window may have rows under both")]),
    ("disorder: 5s", "disorder: 1m, idle: 1h", [
        ("resumes", R + "time.disorder 5s -> 1m: the watermark waits so long from here on; it never goes back"), ("resumes", R + "time.idle 30s -> 1h: it holds from here on")]),
    ("time: {field: ts,", "time: {", [
        ("refused", R + "time.field ts -> unset: watermark and open windows are of the old event times; start anew with --fresh, into another table")]),
    ("topic: flights", "topic: other", [
        ("refused", R + f"reads kafka:flights -> kafka:other: the positions in the state are those of kafka:flights; {REPLAY}")]),
    ("topic: flights", "topic: flights, stop: latest", [
        ("refused", R + f"reads kafka:flights -> kafka:flights, which ends: the positions in the state are those of kafka:flights; {REPLAY}")]),
    ("topic: flights", "topic: flights, start: latest, client: {x: y}", [
        ("resumes", R + "from.client: new connections have the new settings"),
        ("resumes", R + "from.start: partitions go on where they stand; it only says where a new job begins")]),
    ("a:9092, b:9092", "b:9092,c:9092", [
        ("resumes", R + "from.brokers a:9092, b:9092 -> b:9092,c:9092: an address in common: it is the same cluster, and reading goes on where it stands")]),
    ("a:9092, b:9092", "c:9092", [
        ("refused", R + "from.brokers: c:9092 may be another cluster than a:9092, b:9092, with other offsets; keep one of the old addresses in the list, or "
         "start anew with --fresh")]),
    (WRITE, WRITE + OTHER + OTHER_WRITE, [
        ("resumes", "Other: is new: it starts empty from where reading stands: its first windows hold only what comes from here on")]),
    ("name: Agg", "name: Renamed", [
        ("refused", A + "is not there any more: its open windows are in the state (renamed to Renamed? A step is known by its name); give the step its name back, "
         "or --drop-state forgets it"),
        ("resumes", "Renamed: is new: it starts empty from where reading stands: its first windows hold only what comes from here on")]),
    (WRITE, WRITE + OF_READ2, [
        ("refused", f"Read2: is new: an embedded Flink would mistake one source for another; give it a job file of its own, run on a cluster, or {REPLAY}"),
        ("resumes", "Other: is new: it starts empty from where reading stands: its first windows hold only what comes from here on")]),
    (JOB, DEDUPED, [
        ("refused", A + f"input Read -> Deduplicate: open windows hold events of the old input; {REPLAY}"),
        ("resumes", "Deduplicate: is new: it starts empty from where reading stands")]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CASES)
def test_a_change_and_what_becomes_of_the_state(tmp_path: Path, old: str, new: str, expected: list[tuple[str, str]]) -> None:
    assert JOB.count(old) == 1
    text = JOB.replace(old, new)
    if "Renamed" in new:
        text = text.replace("input: Agg", "input: Renamed")
    found = compare(layout(tmp_path, JOB), layout(tmp_path, text))
    assert sorted((change.verdict, str(change)) for change in found) == sorted(expected)


@pytest.mark.parametrize(
    ("config", "verdict", "words"),
    [
        ("window: {tumbling: 10s}", "resumes", "no window has begun yet"),
        ("window: {tumbling: {size: 1d, timezone: Asia/Kolkata}}", "resumes", "no window has begun yet"),
        ("window: {tumbling: 10s}\n        keys: {limit: 9}", "refused", f"keys of open windows would be in other shards; {REPLAY}"),
        ("window: {sliding: {size: 10s, every: 1s}}", "refused", f"keys of open windows would be in other shards; {REPLAY}"),
        ("window: {cumulative: {size: 1d, every: 1m}}", "refused", f"keys of open windows would be in other shards; {REPLAY}"),
        ("window: {session: 10s}", "refused", f"keys of open windows would be in other shards; {ANEW}"),
        ("window: global", "refused", f"keys of open windows would be in other shards; {REPLAY}"),
    ],
)
def test_windows_to_come_may_have_other_shards(tmp_path: Path, config: str, verdict: str, words: str) -> None:
    record = JobRecord(tmp_path / "record")
    record.put("splits", "s", {}, now=True)
    old, new = (layout(tmp_path, JOB.replace(WINDOW, f"{config}\n        shards: {shards}")) for shards in (2, 6))
    assert [(change.verdict, str(change)) for change in compare(with_reach(old, record), new)] == [(verdict, f"Agg: shards 2 -> 6: {words}")]


WINDOW, AGGREGATES = "window: {tumbling: 10s}", "aggregates: {events_n: count, total: {sum: x}, worst: {max: x}, xs: {sum: small}}"
WINDOWS = [
    # (before, after, how they are told)
    ("sliding: {size: 10s, every: 1s}", "sliding: {size: 10s, every: 2s}", "sliding 10s every 1s -> sliding 10s every 2s", REPLAY),
    ("tumbling: 10s", "sliding: {size: 10s, every: 1s}", "tumbling 10s -> sliding 10s every 1s", REPLAY),
    ("cumulative: {size: 1d, every: 1m}", "cumulative: {size: 1d, every: 1m, timezone: Europe/Berlin}", "cumulative 1d every 1m -> cumulative 1d every 1m in Europe/Berlin", REPLAY),
    ("tumbling: 1d", "tumbling: {size: 1d, timezone: Asia/Kolkata}", "tumbling 1d -> tumbling 1d in Asia/Kolkata", REPLAY),
    ("tumbling: 1d", "global: {}", "tumbling 1d -> global", REPLAY),
    ("session: 10s", "session: {gap: 10s, max: 1m}", "session gap 10s -> session gap 10s max 1m", ANEW),
    ("session: {gap: 10s, max: 1m}", "session: {gap: 20s, max: 1m}", "session gap 10s max 1m -> session gap 20s max 1m", ANEW),
]


@pytest.mark.parametrize(("before", "after", "words", "way"), WINDOWS)
def test_other_windows_do_not_resume(tmp_path: Path, before: str, after: str, words: str, way: str) -> None:
    old, new = (layout(tmp_path, JOB.replace(WINDOW, f"window: {{{window}}}")) for window in (before, after))
    assert compare(old, old) == compare(new, new) == []
    assert [(change.verdict, str(change)) for change in compare(old, new)] == [("refused", f"Agg: window {words}: open windows are of the old kind; {way}")]


KEPT = "open windows have all that they need"
PARAMETERS = [
    # (before, after, columns that lack, columns that are dropped); None: it resumes
    ("quantile: {of: x, q: 0.5}", "quantile: {of: x, q: [0.9, 0.99]}", None, None),
    ("rate: n", "rate: {of: n, per: 1m}", None, None),
    ("variance: x", "stddev: {of: x, population: true}", None, None),
    ("quantile: {of: x, q: 0.5}", "quantile: {of: x, q: 0.5, error: 0.02}", "dd(0.02,2048,x)", "dd(0.01,2048,x)"),
    ("distinct: host", "distinct: {of: host, precision: 12}", "distinct(host,12,1024)", "distinct(host,14,1024)"),
    ("distinct: host", "distinct: {of: host, exact: true}", "set(host)", "distinct(host,14,1024)"),
    ("count: {where: x > 1}", "count: {where: x > 2}", "events where x > 2", "events where x > 1"),
    ("max: {of: x, where: up}", "max: x", "max(x)", "max(x) where up"),
    ("top: {of: host, k: 3}", "top: {of: host, k: 30}", "top(300,host)", "top(100,host)"),
    ("ewm: {of: x, half_life: 1s}", "ewm: {of: x, half_life: 2s}", "ewm(2s, x)", "ewm(1s, x)"),
    ("histogram: {of: n, bounds: [1, 2]}", "histogram: {of: n, bounds: [1, 3]}", "histogram(1.0,3.0;n)", "histogram(1.0,2.0;n)"),
    ("first: host", "last: host", "last(host)", "first(host)"),
]


@pytest.mark.parametrize(("before", "after", "lacking", "dropped"), PARAMETERS)
def test_parameters_of_aggregates_resume_where_state_does_not_hold_them(tmp_path: Path, before: str, after: str, lacking: str | None, dropped: str | None) -> None:
    old, new = (layout(tmp_path, JOB.replace(AGGREGATES, f"aggregates: {{a: {{{aggregate}}}}}")) for aggregate in (before, after))
    found = [(change.verdict, str(change)) for change in compare(old, new)]
    if lacking is None:
        assert found == [("resumes", f"Agg: aggregates a: {KEPT}")]
    else:
        assert found == [
            ("refused", f"Agg: aggregates a: open windows do not have {lacking}; {OF_ITS_OWN}"),
            ("resumes", f"Agg: without {dropped}: {dropped} of open windows is dropped when they are next merged"),
        ]


LIMITS = [
    ("shards: 8", "keys: {limit: 5}", "refused", f"keys without a limit -> limit 5, beyond other: open windows have the keys of the old limit; {REPLAY}"),
    ("keys: {limit: 5}", "keys: {limit: 70}", "refused", f"keys limit 5, beyond other -> limit 70, beyond other: open windows have the keys of the old limit; {REPLAY}"),
    ("keys: {limit: 5}", "keys: {limit: 5, beyond: dead_letters}", "refused",
     f"keys limit 5, beyond other -> limit 5, beyond dead_letters: open windows have the keys of the old limit; {REPLAY}"),
    ("emit: final", "emit: on_change", "resumes", "emit final -> on_change: open windows are kept; it holds for what comes from here on"),
    ("emit: on_change", "emit: {every: 500ms}", "resumes", "emit on_change -> every 500ms: open windows are kept; it holds for what comes from here on"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "verdict", "words"), LIMITS)
def test_limits_and_emission(tmp_path: Path, before: str, after: str, verdict: str, words: str) -> None:
    old, new = (layout(tmp_path, JOB.replace(WINDOW, f"{WINDOW}\n        {line}")) for line in (before, after))
    assert ((verdict, f"Agg: {words}")) in [(change.verdict, str(change)) for change in compare(old, new)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("horizon: 1m", "horizon: 2m", f"Deduplicate: horizon 1m -> 2m: its state was made with the old value; {REPLAY}"),
        ("by: [host], hor", "by: [up], hor", f"Deduplicate: by ['host'] -> ['up']: its state was made with the old value; {REPLAY}"),
        ("host: string", "host: date", f"Deduplicate: types ['string'] -> ['date32[day]']: its state was made with the old value; {REPLAY}"),
    ],
)
def test_a_deduplicate_has_to_stay_as_it_is(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert DEDUPED.count(old) == 1
    found = compare(layout(tmp_path, DEDUPED), layout(tmp_path, DEDUPED.replace(old, new)))
    assert message in [str(change) for change in found if change.verdict == "refused"]


def test_state_is_dropped_only_when_asked(tmp_path: Path) -> None:
    two = layout(tmp_path, JOB.replace(WRITE, WRITE + OTHER + OTHER_WRITE))
    one = layout(tmp_path, JOB)
    assert compare(two, one, allow_dropped=True) == [Change("Other", "is not there any more", "resumes", "its open windows are forgotten")]
    assert [change.verdict for change in compare(two, one)] == ["refused"]


@pytest.mark.parametrize(
    ("before", "after", "named", "expected"),
    [
        ({"parallelism": 2}, {"parallelism": 4}, False, ("resumes", "parallelism 2 -> 4: its state is divided among the subtasks anew")),
        ({"parallelism": 2}, {"parallelism": 1}, True, ("resumes", "parallelism 2 -> 1: its state is divided among the subtasks anew")),
        ({"parallelism": 2}, {"parallelism": 1}, False, ("refused", f"parallelism 2 -> 1: an embedded Flink would not know its sources again; keep 2, or {REPLAY}")),
        ({"parallelism": 2}, {"parallelism": 129}, True, ("refused", "parallelism 2 -> 129: state is divided into 128 parts; take at most 128")),
        ({"beam": "1.0"}, {"beam": "2.0"}, True, (
            "refused", f"Apache Beam 1.0 -> 2.0: state does not survive another version of Beam; drain the job with the old one, or {REPLAY}")),
        ({"state_version": 0}, {"state_version": 1}, True, (
            "refused", f"the state is of version 0, this release reads version 1: let the earlier release drain the job, or {REPLAY}")),
    ],
)  # fmt: skip
def test_what_concerns_the_whole_job(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], named: bool, expected: tuple[str, str]) -> None:
    same = layout(tmp_path, JOB)
    found = compare(replace(same, **before), replace(same, **after), named_sources=named)
    assert [(change.verdict, str(change)) for change in found] == [expected]


def test_sources_that_are_named_may_come(tmp_path: Path) -> None:
    found = compare(layout(tmp_path, JOB), layout(tmp_path, JOB.replace(WRITE, WRITE + OF_READ2)), named_sources=True)
    assert "Read2: is new: it is read from its own start" in [str(change) for change in found]
    assert {change.verdict for change in found} == {"resumes"}


def test_layouts_survive_their_file_and_lead_to_the_schemas_of_partials(tmp_path: Path) -> None:
    first, second = layout(tmp_path, JOB), layout(tmp_path, JOB.replace(", worst: {max: x}", ""))
    write_layouts(tmp_path / "layouts.json", [second, first, second])
    assert read_layouts(tmp_path / "layouts.json") == [first, second]
    assert compare(read_layouts(tmp_path / "layouts.json")[0], first) == []
    schemas = earlier_partials(str(tmp_path / "layouts.json"), "Agg")
    assert [schema.names for schema in schemas] == [["host", "events", "exact_sum(x)", "max(x)", "sum(small)"], ["host", "events", "exact_sum(x)", "sum(small)"]]
    assert schema_of(first.steps["Agg"].values["partial"]) == schemas[0]
    assert earlier_partials(str(tmp_path / "layouts.json"), "Other") == earlier_partials(None, "Agg") == ()


def test_no_secret_is_written_down(tmp_path: Path) -> None:
    found = layout(tmp_path, JOB.replace("topic: flights", "topic: flights, client: {sasl.password: hunter2}"))
    assert "hunter2" not in str(found.as_dict())


NESTED = f"""
pipeline:
  transforms:
    - type: composite
      name: Comp
      transforms:
        - type: chain
          name: Inner
          transforms:{READ.replace(chr(10), chr(10) + "        ")}
        - type: AggregateWindows
          name: Agg
          input: Inner
          config: {{metric: m, window: {{tumbling: 1s}}, aggregates: {{n: count}}}}
      output: Agg
    - type: WriteResults
      input: Comp
      config: {{to: {{sqlite: {{path: a.db, table: load}}}}}}
options: {{streaming: true}}
"""


def test_steps_have_the_names_that_their_state_has(tmp_path: Path) -> None:
    job = job_of(tmp_path, NESTED)
    found = layout_of(job)
    assert {name: step.kind for name, step in found.steps.items()} == {"Comp/Inner/Read": "ReadEvents", "Comp/Agg": "AggregateWindows"}
    assert found.steps["Comp/Agg"].values["reads"] == ["Comp/Inner/Read"]


def transform_ids(job: Job) -> dict[str, str]:
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    expand_pipeline(pipeline, job.spec)
    transforms = pipeline.to_runner_api().components.transforms
    return {transform.unique_name: name for name, transform in transforms.items() if transform.unique_name != name}


def test_ids_of_transforms_stay_when_steps_come(tmp_path: Path) -> None:
    """Timers are kept under them."""
    before = transform_ids(job_of(tmp_path, JOB))
    more = transform_ids(job_of(tmp_path, JOB.replace(AGGREGATE, OTHER + OTHER_WRITE + AGGREGATE)))
    assert len(set(more.values())) == len(more) > len(before)
    assert {name: more[name] for name in before} == before


FLINK_JOB = """
pipeline:
  transforms:
    - type: ReadEvents
      name: Read
      config:
        from: {generator: {events: EVENTS, splits: 3, RATE event_rate: 6000, keys: 5, seed: 1}}
        format: {json: {schema: {ts: int64, host: string, value: double}}}
        time: {field: ts, unit: ms, disorder: 1s}
MORE
    - type: AggregateWindows
      name: Agg
      input: Read
      config: {metric: load, window: {tumbling: 1s}, by: [host], aggregates: {AGGREGATES}, shards: 4, emit: {every: 100ms}}
    - type: WriteResults
      input: Agg
      config: {to: {sqlite: {path: "OUT", table: TABLE}}}
STREAMING
"""
FIRST = "n: count, total: {sum: value}, worst: {max: value}, avg: {mean: value}"
SECOND = "avg: {mean: value}, number: count, sum_again: {sum: value}"
MORE = """
    - type: AggregateWindows
      name: Before
      input: Read
      config: {metric: b, window: {tumbling: 3s}, aggregates: {n: count}}
    - type: WriteResults
      name: WriteBefore
      input: Before
      config: {to: {sqlite: {path: "OUT", table: before}}}
"""
EVENTS = 60_000


def run_on_flink(job: Job, folder: Path, restore: Path | None, to_the_end: bool, options: list[str]) -> None:
    """Ends with a checkpoint: of the end, or of the middle, once a final row is stored."""
    silence_unknown_options()
    with EmbeddedFlink(folder / "flink", 2, 500, restore_from=restore) as flink:
        pipeline = beam.Pipeline(options=PipelineOptions([f"--record_folder={folder / 'record'}", *flink.pipeline_options(), *options]))
        expand_pipeline(pipeline, job.spec)
        pipeline.run()
        deadline, job_id = time.monotonic() + 120, None
        while time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                job_id = job_id or next((str(each["jid"]) for each in flink.jobs()), None)
                reached = job_id and (
                    flink.least_watermark(job_id) == END_OF_TIME_MS if to_the_end else any(values["final"] for values in JobRecord(folder / "record").all("sinks"))
                )
                if reached and flink.checkpoint_now(job_id):
                    flink.cancel(job_id)
                    return
            except ServiceError:
                continue
        raise AssertionError(f"not in time; see {flink.log_path}")


@pytest.mark.integration
def test_a_changed_job_resumes_from_a_checkpoint_exactly(tmp_path: Path) -> None:
    """A column of state is dropped, others are used otherwise and stand elsewhere, and steps come before: what is stored is as if it had been so always."""

    def job(aggregates: str, more: str, table: str, rate: int = 0, streaming: bool = True) -> Job:
        text = FLINK_JOB.replace("MORE", more).replace("AGGREGATES", aggregates).replace("OUT", str(tmp_path / "out.db")).replace("TABLE", table)
        text = text.replace("EVENTS", str(EVENTS)).replace("RATE", f"rate: {rate}," if rate else "")
        return job_of(tmp_path, text.replace("STREAMING", "options: {streaming: true}" if streaming else ""))

    whole = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    expand_pipeline(whole, job(SECOND, MORE, "whole", streaming=False).spec)
    whole.run().wait_until_finish()
    first = job(FIRST, "", "first", rate=3000)  # it is stopped long before its end
    write_layouts(tmp_path / "layouts.json", [layout_of(first)])
    run_on_flink(first, tmp_path, None, False, [])
    checkpoint = latest_checkpoint(tmp_path / "flink")
    assert checkpoint is not None
    second = job(SECOND, MORE, "second")
    assert {change.verdict for change in compare(layout_of(first), layout_of(second))} == {"resumes"}
    run_on_flink(second, tmp_path, checkpoint, True, [f"--earlier_layouts={tmp_path / 'layouts.json'}"])

    with closing(sqlite3.connect(tmp_path / "out.db")) as connection:
        rows = {
            table: connection.execute(f"SELECT window_start, host, number, round(avg, 3), round(sum_again, 1), events, final FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("second", "whole")
        }
        closed = connection.execute("SELECT window_start, host, n, round(avg, 3), round(total, 1), events, final FROM first WHERE final ORDER BY 1, 2").fetchall()
        assert connection.execute("SELECT sum(n) FROM before").fetchone()[0] > 0
    assert sum(row[5] for row in rows["whole"]) == EVENTS
    stored = {**{row[:2]: row for row in closed}, **{row[:2]: row for row in rows["second"]}}
    assert sorted(stored.values()) == rows["whole"]
    assert len(rows["second"]) < len(rows["whole"]), "the second run took over in the middle"
