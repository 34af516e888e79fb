"""Job files: what is accepted, and what each mistake is told as."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from apache_beam.yaml import main as beam_main

from streamgauge.pipelines.job import Job, JobError, load_job, origins

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

READ = """\
    - type: ReadEvents
      config:
        from: {files: "in/*.ndjson"}
        format: {json: {schema: {ts: timestamp, host: string, value: double, n: int64}}}
        time: {field: ts, disorder: 1s}
        error_handling: {output: rejected}
"""
AGGREGATE = """\
    - type: AggregateWindows
      input: ReadEvents
      config:
        metric: load
        window: {tumbling: 10s}
        by: [host]
        aggregates: {n_events: count, mean: {mean: value}}
        lateness: 5s
"""
WRITE = """\
    - type: WriteResults
      input: AggregateWindows
      config: {to: {sqlite: {path: out/a.db, table: load}}}
    - name: Rejected
      type: WriteResults
      input: ReadEvents.rejected
      config: {to: {parquet: {path: out/rejected}}}
"""
GOOD = f"pipeline:\n  transforms:\n{READ}{AGGREGATE}{WRITE}"


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def errors(folder: Path, text: str, **variables: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(JobError) as caught:
        load_job(path, variables)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_a_job_knows_its_steps(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD))
    assert (job.name, job.bounded, job.options) == ("job", True, [])
    assert [step.name for step in job.steps] == ["ReadEvents", "AggregateWindows", "WriteResults", "Rejected"]
    assert job.reads[0].time.disorder == 1_000_000
    (aggregate,) = job.of("AggregateWindows")
    assert aggregate.line == line_of(GOOD, "type: AggregateWindows")
    assert aggregate.metric is not None and str(aggregate.metric.aggregates["mean"].type) == "double"
    assert [(output.step.name, output.name, output.kind) for step in job.of("WriteResults") for output in origins(step)] == [
        ("AggregateWindows", "results", "results"), ("ReadEvents", "rejected", "dead letters"),
    ]  # fmt: skip


MISTAKES = [
    # (what stands there, what is written instead, part of the line that is blamed, key path, words of the message)
    ("tumbling: 10s", "tumbling: 1x", "window:", "transforms[1].config.window.tumbling", "'1x' is not a duration; write a number with a unit"),
    ("tumbling: 10s", "tumblin: 10s", "window:", "transforms[1].config.window", "unknown window 'tumblin' - did you mean 'tumbling'?"),
    ("by: [host]", "by: [hots]", "by:", "transforms[1].config.by[0]", "no such field - did you mean 'host'?; fields: ts, host, value, n"),
    ("by: [host]", "by: host", "by:", "transforms[1].config.by", "expected a list of fields, such as [host], or a mapping from result column to field; found 'host'"),
    ("by: [host]", "by: [host, host]", "by:", "transforms[1].config.by", "'host' is there twice; name each dimension once"),
    ("by: [host]", "by: [value]", "by:", "transforms[1].config.by[0]", "a double cannot be a dimension"),
    ("mean: value", "mean: host", "aggregates:", "transforms[1].config.aggregates.mean", "mean needs a number; field 'host' is string"),
    ("mean: value", "sum: valeu", "aggregates:", "transforms[1].config.aggregates.mean", "no such field - did you mean 'value'?"),
    ("n_events: count", "events: count", "aggregates:", "transforms[1].config.aggregates.events", "result column 'events' is there twice"),
    ("lateness: 5s", "latness: 5s", "latness", "transforms[1].config.latness", "unknown key - did you mean 'lateness'?; known: metric,"),
    ("lateness: 5s", "emit: {every: 1ms}", "emit:", "transforms[1].config.emit.every", "emit.every must be at least 10ms"),
    ("lateness: 5s", "emit: 5", "emit:", "transforms[1].config.emit", "expected 'final' or 'on_change' or a mapping such as {every: ...}; found 5"),
    ("lateness: 5s", "shards: 500", "shards:", "transforms[1].config.shards", "expected a number less than or equal to 128; found 500"),
    ("        metric: load\n", "", "transforms[1] config", "transforms[1].config", "'metric' is missing: Name of the metric"),
    ("field: ts", "field: sent", "time:", "transforms[0].config.time.field", "time field 'sent' is not in the schema"),
    ("field: ts", "field: n", "time:", "transforms[0].config.time.field", "say its unit, such as {field: n, unit: ms}"),
    ("n: int64", "n: int46", "format:", "transforms[0].config.format.json.schema.n", "unknown type 'int46' - did you mean 'int64'?"),
    ('files: "in/*.ndjson"', "files: {follow: 3, path: x}", "from:", "transforms[0].config.from.files.follow", "expected a boolean; found 3"),
    ('files: "in/*.ndjson"', "file: x", "from:", "transforms[0].config.from", "unknown source 'file' - did you mean 'files'?"),
    ("type: AggregateWindows", "type: AggregateWindow", "type: AggregateWindow", "transforms[1].type", "unknown transform 'AggregateWindow'"),
    ("input: AggregateWindows", "input: Aggregate", "input: Aggregate", "transforms[2].input", "is the output of no step - did you mean 'AggregateWindows'?"),
    ("input: AggregateWindows", "input: AggregateWindows.results", "input: AggregateWindows.results", "transforms[2].input", "no other output than its results: write `input: AggregateWindows`"),
    ("input: ReadEvents.rejected", "input: ReadEvents.reject", "input: ReadEvents.reject", "transforms[3].input", "not 'reject' - did you mean 'rejected'?"),
    ("        error_handling: {output: rejected}\n", "", "input: ReadEvents.rejected", "transforms[3].input", "`error_handling: {output: rejected}`"),
    ("      input: ReadEvents\n", "", "type: AggregateWindows", "transforms[1]", "AggregateWindows needs an input; name the step it reads"),
    ("input: AggregateWindows", "input: ReadEvents  # here", "# here", "transforms[2].input", "ReadEvents gives events: aggregate them first"),
    ("      input: ReadEvents\n", "      input: ReadEvents.rejected\n", "input: ReadEvents.rejected", "transforms[1].input", "ReadEvents.rejected gives dead letters"),
    ("path: out/rejected", "path: out/rejected, partition: week", "path: out/rejected", "transforms[3].config.to.parquet.partition", "expected 'hour', 'day' or 'month'"),
    ("parquet: {path: out/rejected}", "sqlite: {path: out/a.db, table: load}", "transforms[3] config", "transforms[3].config.to", "the dead letters would go where WriteResults"),
    ("lateness: 5s", "lateness: 5s\n        lateness: 6s", "lateness: 6s", "transforms[1].config.lateness", "the key is there twice, first at line"),
    ("by: [host]", "by: [host", "aggregates:", "", "not YAML: "),
    ("  transforms:", "  transform:", "  transform:", "pipeline.transform", "unknown key - did you mean 'transforms'?"),
    ("pipeline:", "pipelines:", "pipelines:", "pipeline", "a job file starts with `pipeline: {transforms: [...]}`"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "blamed", "path", "words"), MISTAKES, ids=[f"{m[1][:30]}-{m[3]}" for m in MISTAKES])
def test_a_mistake_is_told_with_its_line_and_key(tmp_path: Path, before: str, after: str, blamed: str, path: str, words: str) -> None:
    assert before in GOOD
    text = GOOD.replace(before, after, 1)
    found = errors(tmp_path, text)
    if blamed.endswith(" config"):
        index = int(blamed.split("[")[1].split("]")[0])
        line = [number for number, content in enumerate(text.splitlines(), 1) if content.strip().startswith("config:")][index]
    else:
        line = line_of(text, blamed)
    matching = [message for message in found if message.startswith(f"job.yaml:{line}: {path}") and words in message]
    assert matching, found


def test_all_mistakes_are_listed_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("disorder: 1s", "disorder: soon").replace("lateness: 5s", "lateness: late").replace("table: load", "tabel: load")
    found = errors(tmp_path, text)
    assert len(found) == 4  # the table is missing too
    lines = [int(message.split(":")[1]) for message in found]
    assert lines == sorted(lines)


def test_what_nobody_reads_is_a_mistake(tmp_path: Path) -> None:
    (message,) = errors(tmp_path, GOOD.split("    - name: Rejected")[0])
    assert "nobody reads the dead letters of ReadEvents; add {type: WriteResults, input: ReadEvents.rejected, ...}" in message
    (message,) = errors(tmp_path, f"pipeline:\n  transforms:\n{READ.replace('        error_handling: {output: rejected}', '')}")
    assert "nobody reads the events of ReadEvents; add {type: AggregateWindows, input: ReadEvents, ...}" in message


UNIQUE = """\
    - type: Deduplicate
      input: ReadEvents
      config: {by: [host, n], horizon: 1h}
"""
DEDUPLICATED = f"pipeline:\n  transforms:\n{READ}{UNIQUE}{AGGREGATE.replace('input: ReadEvents', 'input: Deduplicate')}{WRITE}"


def test_deduplicate_passes_on_what_it_takes(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, DEDUPLICATED))
    (step,) = job.of("Deduplicate")
    assert (step.options.horizon, [(output.step.name, output.kind) for output in origins(step)]) == (3_600_000_000, [("ReadEvents", "events")])
    assert job.of("AggregateWindows")[0].metric is not None and origins(job.of("AggregateWindows")[0])[0].step is step
    once, again = (UNIQUE.replace("- type", f"- name: {name}\n      type") for name in ("Once", "Again"))
    again = again.replace("input: ReadEvents", "input: Once")
    job = load_job(write(tmp_path, f"pipeline:\n  transforms:\n{READ}{once}{again}{AGGREGATE.replace('input: ReadEvents', 'input: Again')}{WRITE}"))
    assert job.of("AggregateWindows")[0].metric is not None


@pytest.mark.parametrize(
    ("before", "after", "blamed", "words"),
    [
        ("by: [host, n]", "by: [host, m]", "by: [host, m]", "transforms[1].config.by[1]: by 'm': the schema has no such field; fields: ts, host, value, n"),
        ("by: [host, n]", "by: [host, value]", "by: [host", "transforms[1].config.by[1]: by 'value': a double cannot be part of an id"),
        ("by: [host, n]", "by: [n, n]", "by: [n", "transforms[1].config.by: 'n' is there twice"),
        ("by: [host, n], ", "", "config: {horizon", "'by' is missing: Fields that together are the event's id"),
        ("horizon: 1h", "horizon: 4000d", "horizon:", "transforms[1].config.horizon: horizon must be from 0s to 3660d"),
        ("horizon: 1h", "horizn: 1h", "horizn:", "unknown key - did you mean 'horizon'?; known: by, horizon, shards"),
        ("      input: ReadEvents\n      config: {by", "      config: {by", "type: Deduplicate", "Deduplicate needs an input; name the step it reads, such as `input: ReadEvents`"),
        ("input: ReadEvents\n      config: {by", "input: ReadEvents.rejected\n      config: {by", "input: ReadEvents.rejected", "Deduplicate takes events; ReadEvents.rejected gives dead letters"),
        ("input: ReadEvents\n      config: {by", "input: AggregateWindows\n      config: {by", "input: AggregateWindows", "Deduplicate takes events; AggregateWindows.results gives results"),
        ("input: ReadEvents\n      config: {by", "input: Deduplicate\n      config: {by", "input: Deduplicate", "Deduplicate reads its own output"),
        ("input: Deduplicate\n", "input: Deduplicate.late\n", "input: Deduplicate.late", "Deduplicate has the output events, not 'late'"),
        ("input: Deduplicate\n", "input: ReadEvents\n", "type: Deduplicate", "nobody reads the events of Deduplicate; add {type: AggregateWindows, input: Deduplicate, ...}"),
        ("input: AggregateWindows\n", "input: Deduplicate  # here\n", "# here", "Deduplicate gives events: aggregate them first"),
    ],
)  # fmt: skip
def test_a_mistake_about_duplicates_is_told(tmp_path: Path, before: str, after: str, blamed: str, words: str) -> None:
    assert before in DEDUPLICATED
    text = DEDUPLICATED.replace(before, after, 1)
    found = errors(tmp_path, text)
    assert [message for message in found if message.startswith(f"job.yaml:{line_of(text, blamed)}: ") and words in message], found


def test_two_steps_of_one_name_are_ambiguous_only_when_named(tmp_path: Path) -> None:
    second = AGGREGATE.replace("metric: load", "metric: other")
    (message,) = errors(tmp_path, f"pipeline:\n  transforms:\n{READ}{AGGREGATE}{second}{WRITE}")
    assert "'AggregateWindows' is ambiguous: there are 2 such steps" in message
    named = second.replace("- type", "- name: Other\n      type")
    flat = WRITE.replace("input: AggregateWindows", "input: [Load, Other]")
    job = load_job(write(tmp_path, f"pipeline:\n  transforms:\n{READ}{AGGREGATE.replace('- type', '- name: Load' + chr(10) + '      type')}{named}{flat}"))
    assert [output.step.name for output in origins(job.of("WriteResults")[0])] == ["Load", "Other"]


def test_late_events_have_an_output_when_asked_for(tmp_path: Path) -> None:
    late = GOOD.replace("lateness: 5s", "late: true")
    (message,) = errors(tmp_path, late)
    assert "AggregateWindows has the outputs results and late: write AggregateWindows.results or AggregateWindows.late" in message


def test_chains_and_composites_are_looked_through(tmp_path: Path) -> None:
    read = "{type: ReadEvents, config: {from: {files: x}, format: {json: {schema: {ts: timestamp, host: string}}}, time: {field: ts}}}"
    aggregate = "{type: AggregateWindows, config: {metric: m, window: {tumbling: 1s}, by: [BY], aggregates: {n: count}}}"
    sink = "{type: WriteResults, config: {to: {sqlite: {path: x, table: t}}}}"
    chain = f"pipeline: {{type: chain, transforms: [{read}, {aggregate}, {sink}]}}"
    job = load_job(write(tmp_path, chain.replace("BY", "host")))
    assert job.of("AggregateWindows")[0].metric is not None and origins(job.of("WriteResults")[0])[0].kind == "results"
    assert "did you mean 'host'" in errors(tmp_path, chain.replace("BY", "hosst"))[0]

    inner = f"{{type: composite, name: Sums, input: ReadEvents, output: {{sums: AggregateWindows}}, transforms: [{aggregate[:-1]}, input: input}}]}}"
    outer = f"pipeline: {{transforms: [{read}, {inner}, {sink[:-1]}, input: Sums.sums}}]}}"
    job = load_job(write(tmp_path, outer.replace("BY", "host")))
    assert job.of("AggregateWindows")[0].metric is not None and origins(job.of("WriteResults")[0])[0].kind == "results"
    assert "did you mean 'host'" in errors(tmp_path, outer.replace("BY", "hosst"))[0]
    assert "Sums has the output sums, not 'sum'" in errors(tmp_path, outer.replace("BY", "host").replace("Sums.sums", "Sums.sum"))[0]


def test_templates_are_filled_in_and_lines_stay_those_of_the_file(tmp_path: Path) -> None:
    text = "# a comment\n\n" + GOOD.replace("10s", "{{ size | default('10s') }}").replace("table: load", "table: {{ table }}")
    assert load_job(write(tmp_path, text), {"table": "t"}).of("WriteResults")[0].options.to.options.table == "t"
    (message,) = errors(tmp_path, text)
    assert message == f"job.yaml:{line_of(text, '{{ table }}')}: 'table' is undefined; give it a value: --set table=..."
    (message,) = errors(tmp_path, text, table="t", size="1x")
    assert message.startswith(f"job.yaml:{line_of(text, 'size')}: transforms[1].config.window.tumbling: '1x'")
    (message,) = errors(tmp_path, text, tabel="t")
    assert message == "job.yaml: --set tabel: the job file has no such variable - did you mean 'table'?; it has size, table"
    (message,) = errors(tmp_path, text.replace("{{ table }}", "{% tabel %}"))
    assert message.startswith(f"job.yaml:{line_of(text, '{{ table }}')}: template: ")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no such file"):
        load_job(tmp_path / "job.yaml")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="not a text file"):
        load_job(tmp_path / "job.yaml")
    for text in ("", "[]", "just words", "pipeline: 5", "pipeline: {transforms: {}}", "pipeline: {transforms: [5]}", "a: &a [*a]"):
        assert errors(tmp_path, text)


def test_options_become_flags_and_decide_whether_it_ends(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD + "options: {streaming: true, parallelism: 4, save_main_session: false, experiments: [a, b]}\n"))
    assert job.options == ["--streaming", "--parallelism=4", "--experiments=a", "--experiments=b"]
    assert not job.bounded


def test_the_fingerprint_tells_pipelines_apart_not_texts(tmp_path: Path) -> None:
    one = load_job(write(tmp_path, GOOD)).fingerprint
    assert load_job(write(tmp_path, "# comment\n" + GOOD + "\n")).fingerprint == one
    assert load_job(write(tmp_path, GOOD.replace("5s", "6s"))).fingerprint != one
    job = load_job(write(tmp_path, GOOD))
    assert job.spec == job.spec


EVENTS = '{"ts": "2020-01-01T00:00:0%dZ", "host": "%s", "value": %d, "n": 1}\n'


def runnable(folder: Path) -> Job:
    (folder / "in").mkdir()
    lines = [EVENTS % (second, host, second) for second in range(10) for host in "ab"]
    (folder / "in" / "a.ndjson").write_text("".join(lines) + "nonsense\n")
    return load_job(write(folder, GOOD.replace("in/*", f"{folder}/in/*").replace("out/", f"{folder}/out/")))


@pytest.mark.slow
def test_what_beam_gets_runs_under_beams_own_main(tmp_path: Path) -> None:
    path = tmp_path / "beam.yaml"
    path.write_text(runnable(tmp_path).beam_yaml)
    command = [sys.executable, "-m", "apache_beam.yaml.main", f"--yaml_pipeline_file={path}"]
    done = subprocess.run([*command, f"--runner={RUNNER}"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = sqlite3.connect(tmp_path / "out/a.db").execute("SELECT host, n_events, mean, final FROM load ORDER BY host").fetchall()
    assert found == [("a", 10, 4.5, 1), ("b", 10, 4.5, 1)]
    assert list((tmp_path / "out/rejected").glob("*.parquet"))


def test_beams_tests_block_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = """
    - name: Rows
      type: PyTransform
      input: AggregateWindows
      config:
        constructor: __callable__
        kwargs:
          source: |
            def rows(batches):
                import apache_beam as beam
                return batches | beam.FlatMap(lambda batch: [beam.Row(host=str(r["host"]), n=int(r["n_events"])) for r in batch.to_pylist()])
    """
    tests = """
    tests:
    - name: counts
      allowed_sources: [ReadEvents]
      expected_outputs:
      - {name: Rows, elements: [{host: a, n: 10}, {host: b, n: COUNT}]}
    """
    job = runnable(tmp_path)
    # Beam tests only the steps that an expectation needs, and does not let an error output go unread: dead letters go where they go by default.
    without = Path(job.path).read_text().split("    - name: Rejected")[0].replace("        error_handling: {output: rejected}\n", "")
    monkeypatch.chdir(tmp_path)
    text = without + textwrap.indent(textwrap.dedent(rows), "    ") + textwrap.dedent(tests)
    for count, passes in (("10", True), ("11", False)):
        path = write(tmp_path, text.replace("COUNT", count))
        path.write_text(load_job(path).beam_yaml)
        run = lambda path=path: beam_main.run_tests([f"--yaml_pipeline_file={path}", "--tests", f"--runner={RUNNER}"], exit=False)  # noqa: E731
        if passes:
            run()
        else:
            with pytest.raises(RuntimeError):
                run()
