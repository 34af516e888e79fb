"""MapEvents in job files: what check finds, shows, and what runs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from io import StringIO
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.yaml.yaml_transform import expand_pipeline
from rich.console import Console

from streamgauge.pipelines.check import plan, show
from streamgauge.pipelines.compat import compare
from streamgauge.pipelines.editor_schema import editor_schema
from streamgauge.pipelines.job import Job, JobError, load_job
from streamgauge.pipelines.job_layout import layout_of
from streamgauge.pipelines.progress import snapshot
from streamgauge.transforms.record import JobRecord

pytestmark = pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result")

JOB = """\
pipeline:
  transforms:
    - type: ReadEvents
      config:
        from: {files: "in.ndjson"}
        format: {json: {schema: {at: timestamp, shop: string, lines: "list<struct<sku: string, price: string>>"}}}
        time: {field: at}
    - type: MapEvents
      input: ReadEvents
      config:
        explode: {field: lines, as: line}
        where: shop <> 'test'
        fields:
          price: '"line.price"::DOUBLE'
          sku: upper("line.sku")
        keep: [shop, sku, price]
        error_handling: {output: rejected}
    - type: Deduplicate
      input: MapEvents
      config: {by: [shop, sku], horizon: 1h}
    - type: AggregateWindows
      input: Deduplicate
      config:
        metric: sales
        window: {tumbling: 1m}
        by: [sku]
        aggregates: {paid: {sum: price}}
    - type: WriteResults
      input: AggregateWindows
      config: {to: {sqlite: {path: out.db, table: sales}}}
    - name: Rejected
      type: WriteResults
      input: MapEvents.rejected
      config: {to: {sqlite: {path: out.db, table: rejected}}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMGAUGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, text: str = JOB) -> Job:
    (folder / "job.yaml").write_text(text)
    return load_job(folder / "job.yaml")


def test_the_plan_has_the_fields_that_come_out(folder: Path) -> None:
    job = load(folder)
    (found,) = plan(job)["maps"]
    assert json.loads(json.dumps(plan(job))) == plan(job)
    assert found["fields"] == {"shop": "string", "price": "double", "sku": "string"}
    assert (found["reads"], found["rejected"]) == (["ReadEvents"], ["sqlite:out.db/rejected"])
    assert found["does"]["explode"] == {"field": "lines", "as": "line"} and list(found["does"]) == ["explode", "where", "fields", "keep"]
    out = StringIO()
    show(job, Console(file=out, highlight=False))
    for words in ("map MapEvents", "one event of each item of lines", "where       shop <> 'test'", 'price = "line.price"::DOUBLE', "shop string, price double, sku string"):
        assert words in out.getvalue(), words


MISTAKES = [
    ("where: shop <> 'test'", "where: shpo <> 'test'", "where: shpo", "config.where: 'shpo <> 'test'': the schema has no field 'shpo' - did you mean 'shop'?"),
    ("where: shop <> 'test'", "where: shop", "where: shop", "config.where: 'shop' is no condition: it is string"),
    ('upper("line.sku")', 'upper("line.skuu")', "sku: upper", "config.fields.sku: 'upper(\"line.skuu\")': the schema has no field 'line.skuu'"),
    ('upper("line.sku")', "uper(shop)", "sku: uper", "config.fields.sku: 'uper(shop)': Catalog Error: Scalar Function with name uper does not exist"),
    ("field: lines", "field: line", "explode:", "config.explode: explode 'line': the schema has no such field - did you mean 'lines'?"),
    ("keep: [shop, sku, price]", "keep: [shop, sku]", "aggregates:", "sum of 'price': the schema has no such field"),
    ("by: [shop, sku]", "by: [shop, price]", "by: [shop, price]", "a double cannot be part of an id"),
    ("keep: [shop", "kep: [shop", "kep:", "config.kep: unknown key - did you mean 'keep'?; known: explode, where, fields, python, keep, drop, error_handling"),
    ("as: line", "ass: line", "explode:", "config.explode.ass: unknown key - did you mean 'as'?"),
    ("keep: [shop, sku, price]", "python: {function: 'json:dump', schema: {x: flot}}", "python:", "config.python.schema.x: unknown type 'flot'"),
    ("keep: [shop, sku, price]", "python: {function: 'nowhere:f', schema: {x: int8}}", "python:", "config.python.function: the module 'nowhere' cannot be imported"),
    ("      input: ReadEvents\n", "", "type: MapEvents", "MapEvents needs an input; name the step it reads, such as `input: ReadEvents`"),
    ("input: ReadEvents", "input: Deduplicate", "input: Deduplicate", "MapEvents reads its own output"),
    ("input: ReadEvents", "input: AggregateWindows", "input: AggregateWindows", "MapEvents takes events; AggregateWindows.results gives results"),
    ("input: MapEvents.rejected", "input: MapEvents.bad", "input: MapEvents.bad", "not 'bad'"),
    ("        error_handling: {output: rejected}\n", "", "input: MapEvents.rejected", "`error_handling: {output: rejected}`"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "blamed", "words"), MISTAKES, ids=[mistake[1][:40] for mistake in MISTAKES])
def test_a_mistake_is_told_with_its_line_and_key(folder: Path, before: str, after: str, blamed: str, words: str) -> None:
    assert before in JOB
    text = JOB.replace(before, after, 1)
    with pytest.raises(JobError) as caught:
        load(folder, text)
    line = next(number for number, content in enumerate(text.splitlines(), 1) if blamed in content)
    found = str(caught.value).splitlines()
    assert [message for message in found if f"job.yaml:{line}: " in message and words in message], found


def test_a_mistake_is_told_once_through_several_steps(folder: Path) -> None:
    second = "    - {name: Second, type: MapEvents, input: MapEvents, config: {where: price > 0}}\n    - type: Deduplicate\n      input: Second\n"
    second = second.replace("input: MapEvents", "input: First")
    text = JOB.replace("    - type: Deduplicate\n      input: MapEvents\n", second).replace("- type: MapEvents", "- name: First\n      type: MapEvents").replace("MapEvents.rejected", "First.rejected")
    assert [list(found["fields"]) for found in plan(load(folder, text))["maps"]] == [["shop", "price", "sku"]] * 2
    with pytest.raises(JobError) as caught:
        load(folder, text.replace("shop <> 'test'", "shpo <> 'test'"))
    assert len(str(caught.value).splitlines()) == 1


def test_another_expression_resumes_freely(folder: Path) -> None:
    before = layout_of(load(folder))
    assert not any("MapEvents" in step.kind for step in before.steps.values()), "it has no state"
    assert compare(before, layout_of(load(folder, JOB.replace("shop <> 'test'", "shop LIKE 'a%'").replace("upper", "lower")))) == []
    refused = compare(before, layout_of(load(folder, JOB.replace("::DOUBLE", "::BIGINT"))))
    assert "refused" in [change.verdict for change in refused], "the sum behind it has another type"


def test_editors_know_it() -> None:
    assert set(editor_schema()["$defs"]["MapEvents"]["properties"]) == {"explode", "where", "fields", "python", "keep", "drop", "error_handling"}


def test_it_runs(folder: Path) -> None:
    def line(second: int, shop: str, *prices: str) -> str:
        return json.dumps({"at": f"2024-01-01T00:00:{second:02}Z", "shop": shop, "lines": [{"sku": "ab"[i], "price": price} for i, price in enumerate(prices)]})

    events = [line(1, "x", "1", "2"), line(2, "test", "100"), line(3, "y", "3", "much"), line(4, "y", "4", "0.5"), line(5, "x", "9"), line(6, "z")]
    (folder / "in.ndjson").write_text("\n".join(events) + "\n")
    job = load(folder)
    record = JobRecord(folder / "record")
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([f"--record_folder={record.folder}"])) as pipeline:
        expand_pipeline(pipeline, job.spec)
    with closing(sqlite3.connect(folder / "out.db")) as database:
        assert database.execute("SELECT sku, paid, events FROM sales ORDER BY sku").fetchall() == [("A", 5.0, 2), ("B", 2.5, 2)]
        (letter,) = database.execute("SELECT stage, source, error_type, payload FROM rejected").fetchall()
    assert letter[:3] == ("map", "MapEvents", "expression") and json.loads(letter[3])["lines"][1] == {"sku": "b", "price": "much"}
    assert snapshot(record).rejected == 1


def test_people_are_told_of_a_function(folder: Path) -> None:
    out = StringIO()
    text = JOB.replace("        keep: [shop, sku, price]\n", "        python: {function: 'statistics:mean', takes: pandas, schema: {score: double}}\n")
    show(load(folder, text), Console(file=out, highlight=False))
    assert "score = statistics:mean over pandas frames" in out.getvalue() and "price double, sku string, score double" in out.getvalue()
