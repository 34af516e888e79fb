"""Windows, aggregates and limits in job files: what each mistake is told as, and what the plan says of what is right."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from streamgauge.pipelines.check import plan, show
from streamgauge.pipelines.job import load_job
from tests.pipelines.test_job import AGGREGATE, GOOD, READ, WRITE, errors, line_of, write

WINDOW, AGGREGATES, LATENESS = "window: {tumbling: 10s}", "aggregates: {n_events: count, mean: {mean: value}}", "lateness: 5s"
TAKEN = "metric, window_start, window_end, events, revision, final, watermark, withdrawn, other are taken; choose another name"
OF_KEYS = "keys: {limit: 5, beyond: dead_letters}\n        "

MISTAKES = [
    # (instead of which line, what is written, part of the line that is blamed, key below the step's config, the message or its start)
    (WINDOW, "window: {sliding: {size: 1d, every: 1ms}}", "window:", "window.sliding",
     "a window of 1d every 1ms is made of 86,400,000 slices of 1ms, more than the 10,000 that state holds for each key; take an `every` that divides the size into fewer"),
    (WINDOW, "window: {sliding: {size: 10s, every: 1m}}", "window:", "window.sliding",
     "every 1m is longer than size 10s: events between two windows would be in none; use tumbling: 1m, or a size of at least 1m"),
    (WINDOW, "window: {sliding: 10s}", "window:", "window.sliding", "expected a mapping such as {size: ..., every: ...}; found '10s'"),
    (WINDOW, "window: {sliding: {size: 10s, evry: 1s}}", "window:", "window.sliding.evry", "unknown key - did you mean 'every'?; known: size, every, offset, timezone"),
    (WINDOW, "window: sliding", "window:", "window", "'size' is missing: Length of a window; whole milliseconds; 'every' is missing: "),
    (WINDOW, "window: {tumbling: {size: 1d, timezone: Europe/Berln}}", "window:", "window.tumbling.timezone",
     "unknown time zone 'Europe/Berln' - did you mean 'Europe/Berlin'?; write it like Europe/Berlin"),
    (WINDOW, "window: {tumbling: {size: 6h, timezone: Europe/Berlin}}", "window:", "window.tumbling", "with a timezone, size must be whole days; 6h is not. Hours need none"),
    (WINDOW, "window: {sliding: {size: 1d, every: 1h, timezone: Europe/Berlin}}", "window:", "window.sliding", "with a timezone, every must be whole days; 1h is not."),
    (WINDOW, "window: {cumulative: {size: 1d, every: 7h}}", "window:", "window.cumulative",
     "every 7h does not divide size 1d: the last window of a period would be shorter than the others"),
    (WINDOW, "window: {cumulative: 1d}", "window:", "window.cumulative", "expected a mapping such as {size: ..., every: ...}; found '1d'"),
    (WINDOW, "window: {cumulative: {size: 30d, every: 1s}}", "window:", "window.cumulative",
     "a window of 30d every 1s is made of 2,592,000 slices of 1s, more than the 10,000 that state holds for each key; take an `every` that divides the size into fewer"),
    (WINDOW, "window: {tumbling: 40000d}", "window:", "window.tumbling", "40000d is longer than a hundred years (36525d), the longest duration there can be"),
    (WINDOW, "window: {tumbling: 60}", "window:", "window.tumbling", "60 is not a duration; write a number with a unit (us, ms, s, m, h, d)"),
    (WINDOW, "window: {tumbling: {size: 1d, timezone: CEST}}", "window:", "window.tumbling.timezone", "unknown time zone 'CEST'; write it like Europe/Berlin"),
    (WINDOW, "window: {global: {size: 1m}}", "window:", "window.global.size", "unknown key; there are no options"),
    (WINDOW, "window: {session: {gap: 1h, max: 30m}}", "window:", "window.session", "max 30m must not be shorter than gap 1h: a session of one event is that long"),
    (WINDOW, "window: {session: {gap: 0s}}", "window:", "window.session.gap", "0s: expected whole milliseconds, from 1ms to 3660d"),
    (WINDOW, "window: session", "window:", "window", "'gap' is missing: A session ends when there is no event for so long"),
    (WINDOW, "window: {hopping: {size: 1m}}", "window:", "window", "unknown window 'hopping'; known: cumulative, global, session, sliding, tumbling"),
    (WINDOW, "window: {global: 10s}", "window:", "window.global", "expected nothing more: it has no options; found '10s'"),
    (AGGREGATES, "aggregates: {p: {quantile: {of: host, q: 0.5}}}", "aggregates:", "aggregates.p", "quantile needs a number; field 'host' is string"),
    (AGGREGATES, "aggregates: {p: {quantile: {of: value, q: 99}}}", "aggregates:", "aggregates.p.quantile.q",
     "a quantile is between 0 and 1, found 99; for the 99th percentile write 0.99"),
    (AGGREGATES, "aggregates: {p: {quantile: {of: value, q: -0.5}}}", "aggregates:", "aggregates.p.quantile.q", "a quantile is between 0 and 1, found -0.5"),
    (AGGREGATES, "aggregates: {p: {quantile: value}}", "aggregates:", "aggregates.p.quantile", "expected a mapping such as {of: ..., q: ...}; found 'value'"),
    (AGGREGATES, "aggregates: {p: {quantile: {of: value, q: 0.5, error: 2}}}", "aggregates:", "aggregates.p.quantile.error", "error is relative, at least 0.000001 and less than 1"),
    (AGGREGATES, "aggregates: {p: {quantil: value}}", "aggregates:", "aggregates.p", "unknown aggregate 'quantil' - did you mean 'quantile'?; known: all, any, "),
    (AGGREGATES, "aggregates: {p: mean}", "aggregates:", "aggregates.p", "'of' is missing: A numeric field."),
    (AGGREGATES, "aggregates: {p: {mean: {of: value, were: value > 3}}}", "aggregates:", "aggregates.p.mean.were", "unknown key - did you mean 'where'?; known: where, of"),
    (AGGREGATES, "aggregates: {p: {distinct: {of: hots}}}", "aggregates:", "aggregates.p", "distinct of 'hots': the schema has no such field - did you mean 'host'?"),
    (AGGREGATES, "aggregates: {p: {any: value}}", "aggregates:", "aggregates.p", "any needs a boolean field or a condition, such as `value IS NOT NULL`; field 'value' is double"),
    (AGGREGATES, "aggregates: {p: {count: {where: 'value >'}}}", "aggregates:", "aggregates.p", "'value >' is no SQL expression: syntax error at or near \">\""),
    (AGGREGATES, "aggregates: {p: {count: {where: valeu > 3}}}", "aggregates:", "aggregates.p", "'valeu > 3': the schema has no field 'valeu' - did you mean 'value'?"),
    (AGGREGATES, "aggregates: {p: {count: {where: value + 3}}}", "aggregates:", "aggregates.p",
     "'value + 3' is no condition: it is double, and not true or false; compare it with something, such as `value + 3 > 0`"),
    (AGGREGATES, "aggregates: {p: {count: {where: sum(value) > 3}}}", "aggregates:", "aggregates.p", "'sum(value) > 3': sum() is no function over one event"),
    (AGGREGATES, "aggregates: {}", "aggregates:", "aggregates", "expected at least one; found {}"),
    (AGGREGATES, "aggregates: {host: count}", "aggregates:", "aggregates.host", "result column 'host' is there twice: as dimension and as aggregate; give one of them another name"),
    (AGGREGATES, "aggregates: {watermark: count}", "aggregates:", "aggregates.watermark", f"result column 'watermark' is there twice: {TAKEN}"),
    (AGGREGATES, "aggregates:\n          n_events: count\n          host: count", "host: count", "aggregates.host", "result column 'host' is there twice"),
    (LATENESS, "lateness: 60", "lateness:", "lateness", "60 is not a duration; write a number with a unit"),
    (LATENESS, "keys: 5", "keys:", "keys", "expected a mapping such as {limit: ...}; found 5"),
    (LATENESS, "keys: {limit: 0}", "keys:", "keys.limit", "expected a number greater than or equal to 1; found 0"),
    (LATENESS, "keys: {limit: 5, beyond: drop}", "keys:", "keys.beyond", "expected 'other' or 'dead_letters'; found 'drop'"),
    (LATENESS, "emit: 1s", "emit:", "emit", "expected 'final' or 'on_change' or a mapping such as {every: ...}; found '1s'"),
    (LATENESS, "emit: {every: 9ms}", "emit:", "emit.every", "emit.every must be at least 10ms"),
    (LATENESS, OF_KEYS + "late: true\n        error_handling: {output: late}", "{output: late}", "error_handling.output",
     "'late' is the output with the late events of AggregateWindows; give dead letters another name, such as `rejected`"),
    (LATENESS, OF_KEYS + "error_handling: {output: results}", "{output: results}", "error_handling.output", "'results' is the output with the results of AggregateWindows;"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "blamed", "key", "words"), MISTAKES, ids=[mistake[1][:60] for mistake in MISTAKES])
def test_a_mistake_is_told_with_its_line_and_key(tmp_path: Path, before: str, after: str, blamed: str, key: str, words: str) -> None:
    assert GOOD.count(before) == 1
    text = GOOD.replace(before, after)
    found = errors(tmp_path, text)
    assert any(message.startswith(f"job.yaml:{line_of(text, blamed)}: transforms[1].config.{key}: {words}") for message in found), found


WHOLE_STEP = [
    ("window: {session: 10s}\n        keys: {limit: 5}", "keys: sessions have no limit on keys; `max` bounds how long each is kept"),
    ("window: {sliding: {size: 10s, every: 1s}}\n        emit: on_change\n        keys: {limit: 5}", "keys: with sliding windows a limit needs `emit: final`"),
    (f"{WINDOW}\n        error_handling: {{output: beyond}}", "error_handling: this step has no dead letters without `keys: {limit: ..., beyond: dead_letters}`"),
]


@pytest.mark.parametrize(("after", "words"), WHOLE_STEP)
def test_options_that_do_not_go_together_are_told(tmp_path: Path, after: str, words: str) -> None:
    (message,) = errors(tmp_path, GOOD.replace(WINDOW, after))
    assert f"transforms[1].config: {words}" in message


def test_dead_letters_do_not_hide_events(tmp_path: Path) -> None:
    (message,) = errors(tmp_path, GOOD.replace("{output: rejected}", "{output: events}").split("    - name: Rejected")[0])
    assert message.endswith("transforms[0].config.error_handling.output: 'events' is the output with the events of ReadEvents; give dead letters another name, such as `rejected`")


# Two metrics, one table

FIRST = AGGREGATE.replace("- type", "- name: First\n      type")
SECOND = AGGREGATE.replace("- type", "- name: Second\n      type").replace("metric: load", "metric: more")
INTO = "    - {name: W%s, type: WriteResults, input: %s, config: {to: {sqlite: {path: out/a.db, table: %s}}}}\n"
REST = "    - name: Rejected" + WRITE.partition("    - name: Rejected")[2]


def two(second: str, table: str = "load", first: str = FIRST) -> str:
    return f"pipeline:\n  transforms:\n{READ}{first}{second}{INTO % (1, 'First', 'load')}{INTO % (2, 'Second', table)}{REST}"


ONE_TABLE = [
    (SECOND.replace("metric: more", "metric: load"), "Second (line 19) and First (line 10) are both metric 'load': in one table their rows have the same keys and replace each other;"),
    (SECOND.replace("n_events: count", "n_rows: count"), "the results of Second (line 19) have other columns (n_events, n_rows) than those of First (line 10), which go to the same table;"),
    (SECOND.replace("mean: value", "max: n"), "the results of Second (line 19) have other columns (mean) than"),
    (SECOND.replace("by: [host]", "by: [host, n]"), "the results of Second (line 19) have other columns (n) than"),
    (SECOND.replace("{tumbling: 10s}", "{cumulative: {size: 1m, every: 10s}}"), "the results of Second (line 19) have another key (metric, host, window_end) than"),
]  # fmt: skip


@pytest.mark.parametrize(("second", "words"), ONE_TABLE)
def test_metrics_that_do_not_fit_into_one_table_are_told(tmp_path: Path, second: str, words: str) -> None:
    text = two(second)
    (message,) = errors(tmp_path, text)
    assert message.startswith(f"job.yaml:{line_of(text, 'name: W2')}: transforms[4].config.to: {words}"), message
    load_job(write(tmp_path, two(second, table="other")))
    # The same, where one sink takes both.
    text = two(second).replace(INTO % (1, "First", "load"), "").replace("input: Second", "input: [First, Second]")
    (message,) = errors(tmp_path, text)
    assert f"transforms[3].input: {words}" in message, message


def test_metrics_that_fit_may_share_a_table_and_all_may_be_printed(tmp_path: Path) -> None:
    assert len(load_job(write(tmp_path, two(SECOND))).of("WriteResults")) == 3
    assert len(load_job(write(tmp_path, two(SECOND.replace("{tumbling: 10s}", "{sliding: {size: 10s, every: 5s}}")))).of("WriteResults")) == 3
    printed = two(SECOND.replace("by: [host]", "by: [n]"))
    for table in ("load", "other"):
        printed = printed.replace(f"sqlite: {{path: out/a.db, table: {table}}}", "stdout: {}")
    load_job(write(tmp_path, printed))


def test_two_metrics_with_one_name_are_told(tmp_path: Path) -> None:
    found = errors(tmp_path, two(SECOND.replace("name: Second", "name: First"), "other").replace("input: Second", "input: First"))
    assert len(found) == 2 and all("'First' is ambiguous: there are 2 such steps (lines 9, 18); give each a `name` and use it" in message for message in found), found


# The plan

PLANS = [
    # (window, more of the config, whether the input ends, lines of the plan)
    ("sliding: {size: 10s, every: 4s}", "", True, ["window      sliding 10s every 4s, made of 5 slices of 2s", "row key     metric, host, window_start"]),
    ("sliding: {size: 10s, every: 1s}", "emit: on_change", True, [
        "window      sliding 10s every 1s, made of 10 slices of 1s",
        "emits       the final result, once the watermark has passed the window's end; the current one at every change"]),
    ("cumulative: {size: 1d, every: 1m, timezone: Europe/Berlin}", "emit: {every: 1s}", True, [
        "window      cumulative 1d every 1m in Europe/Berlin, made of 1,440 slices of 1m", "current ones every 1s while it changes", "row key     metric, host, window_end"]),
    ("session: 10s", "", True, [
        "window      session gap 10s", "note        a session lasts, and is kept, for as long as events come; `max` bounds that",
        "note        rows can be withdrawn (sessions that a late event joins become one): the store then hides them"]),
    ("global: {}", "", False, ["note        there is no result before the job is drained, as its input does not end; `emit: {every: 10s}` gives the current one"]),
    ("tumbling: {size: 1d, timezone: Europe/Berlin}", "keys: {limit: 1000}", True, [
        "window      tumbling 1d in Europe/Berlin",
        "keys        at most 1,000 have rows of their own in a window (125 in each of 8 shards); the others of a shard have one row together",
        "row key     metric, host, other, window_start"]),
    ("tumbling: 10s", "emit: on_change\n        shards: 1\n        keys: {limit: 10, beyond: dead_letters}", True, [
        "keys        at most 10 have rows of their own in a window; the others of the window are counted in a dead letter, which goes to parquet:",
        "note        rows can be withdrawn (a key may turn out to be beyond the limit): the store then hides them"]),
]  # fmt: skip


@pytest.mark.parametrize(("window", "more", "bounded", "lines"), PLANS, ids=[f"{case[0]} {case[1]}" for case in PLANS])
def test_the_plan_says_what_a_window_means(tmp_path: Path, window: str, more: str, bounded: bool, lines: list[str]) -> None:
    text = GOOD.replace("{tumbling: 10s}", f"{{{window}}}").replace("lateness: 5s", more or "lateness: 5s")
    job = load_job(write(tmp_path, text if bounded else text + "options: {streaming: true}\n" + " "))
    assert job.bounded == bounded or window != "global: {}"
    assert json.loads(json.dumps(plan(job))) == plan(job)
    out = StringIO()
    show(job, Console(file=out, highlight=False))
    for line in lines:
        assert line in out.getvalue(), out.getvalue()


def test_a_global_window_over_input_that_ends_has_no_note(tmp_path: Path) -> None:
    (metric,) = plan(load_job(write(tmp_path, GOOD.replace("{tumbling: 10s}", "global"))))["metrics"]
    assert (metric["window"], metric["slices"], metric["notes"]) == ("global", None, [])


def test_aggregates_stand_in_the_plan_as_they_were_written(tmp_path: Path) -> None:
    written = {
        "ok": ("{count: {where: value > 3}}", "count where value > 3"), "n_events": ("count", "count"), "mean": ("{mean: value}", "mean of value"),
        "p": ("{quantile: {of: value, q: [0.5, 0.95], error: 0.02}}", "quantile of value, q [0.5, 0.95], error 0.02"),
        "best": ("{top: {of: host, k: 3, by: value}}", "top of host, k 3, by value"), "share": ("{ratio: {of: n > 3, to: n > 0}}", "ratio of n > 3, to n > 0"),
        "cov": ("{covariance: {x: value, y: n}}", "covariance, x value, y n"), "speed": ("{rate: {of: n, per: 1m}}", "rate of n, per 1m"),
        "sd": ("{stddev: {of: value, population: true, where: host = 'a'}}", "stddev of value, population true where host = 'a'"),
    }  # fmt: skip
    text = GOOD.replace(AGGREGATES, "aggregates:\n" + "\n".join(f"          {name}: {given}" for name, (given, _) in written.items()))
    (metric,) = plan(load_job(write(tmp_path, text)))["metrics"]
    assert {name: values["is"] for name, values in metric["aggregates"].items()} == {name: words for name, (_, words) in written.items()}
