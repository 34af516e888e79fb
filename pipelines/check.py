"""``streamgauge check``: what a job will do, without starting or connecting anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from rich.console import Console
from rich.text import Text

from streamgauge.pipelines.job import Job, Output, Step, origins
from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.config import Choice, format_duration
from streamgauge.transforms.partials import Metric
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.windows.base import is_sliced

LABEL_WIDTH = 12


def plan(job: Job) -> dict[str, Any]:
    """The plan as plain values, for ``--json``. Durations are written as in job files."""
    return {
        "job": job.name,
        "file": job.path,
        "bounded": job.bounded,
        "runner": "direct" if job.bounded else "flink",
        "sources": [_source(job, step) for step in job.of("ReadEvents")],
        "maps": [_map(job, step) for step in job.of("MapEvents")],
        "deduplicates": [_deduplicate(step) for step in job.of("Deduplicate")],
        "metrics": [_metric(job, step) for step in job.of("AggregateWindows")],
        "sinks": [_sink(job, step) for step in job.of("WriteResults")],
        "others": [{"step": step.name, "type": step.type, "line": step.line} for step in job.steps if step.options is None],
    }


def _source(job: Job, step: Step) -> dict[str, Any]:
    options = step.options
    connector, time = options.source.create(), options.time
    return {
        "step": step.name,
        "line": step.line,
        "source": connector.name,
        "bounded": connector.bounded,
        "options": options.source.options.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "format": options.format.name,
        "fields": dict(options.format.options.fields),
        "time": {"field": time.field, "unit": time.unit, "disorder": format_duration(time.disorder), "idle": format_duration(time.idle)},
        "rejected": _letters(job, step),
    }


def _map(job: Job, step: Step) -> dict[str, Any]:
    options = step.options
    fields = [field for field in step.schema or [] if not field.name.startswith("__")]
    does = options.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"error_handling"})
    return {
        "step": step.name,
        "line": step.line,
        "reads": [output.step.name for output in origins(step)],
        "does": {name: does[name] for name in ("explode", "where", "fields", "python", "keep", "drop") if name in does},
        "fields": {field.name: str(field.type) for field in fields} if step.schema is not None else None,
        "rejected": _letters(job, step),
    }


def _deduplicate(step: Step) -> dict[str, Any]:
    options = step.options
    return {
        "step": step.name,
        "line": step.line,
        "reads": [output.step.name for output in origins(step)],
        "by": list(options.by),
        "horizon": format_duration(options.horizon),
        "shards": options.shards,
    }


def _metric(job: Job, step: Step) -> dict[str, Any]:
    options, metric = step.options, step.metric
    written = _as_written(job, step)["aggregates"]
    window = options.window.create()
    types = {name: str(aggregate.type) for name, aggregate in metric.aggregates.items()} if metric else {}
    return {
        "step": step.name,
        "line": step.line,
        "metric": options.metric,
        "reads": [output.step.name for output in origins(step)],
        "window": window.describe(),
        "slices": {"size": format_duration(window.slice_size), "in_window": options.window.options.size // window.slice_size} if is_sliced(window) else None,
        "by": dict(options.by),
        "aggregates": {name: {"is": _words(choice, written[name]), "type": types.get(name)} for name, choice in options.aggregates.items()},
        "lateness": format_duration(options.lateness),
        "emit": options.emit if isinstance(options.emit, str) else {"every": format_duration(options.emit.every)},
        "keys": {**options.keys.model_dump(), "a_shard": metric.limit if metric else None} if options.keys else None,
        "rejected": _letters(job, step) if options.letters else None,
        "late": _takers(job, step, "late") if options.late else None,
        "results": _takers(job, step, "results"),
        "key": list(RowSpec.of(metric.result_schema).key) if metric else ["metric", *options.by, "window_start"],
        "shards": options.shards,
        "notes": list(_notes(job, options, metric)),
    }


def _notes(job: Job, options: AggregateOptions, metric: Metric | None) -> Iterator[str]:
    """What may surprise people."""
    if options.window.name == "global" and options.emit == "final" and not job.bounded:
        yield "there is no result before the job is drained, as its input does not end; `emit: {every: 10s}` gives the current one"
    if options.window.name == "session" and options.window.options.max is None:
        yield "a session lasts, and is kept, for as long as events come; `max` bounds that"
    if metric is not None and metric.withdraws:
        why = "sessions that a late event joins become one" if options.window.name == "session" else "a key may turn out to be beyond the limit"
        yield f"rows can be withdrawn ({why}): the store then hides them"


def _as_written(job: Job, step: Step) -> Any:
    """The step's ``config`` as it stands in the job file."""
    return reduce(lambda value, key: value[key], (*step.path, "config"), job.document.value)


def _letters(job: Job, step: Step) -> list[str]:
    """Where the dead letters of a step go."""
    handling = step.options.error_handling
    return _takers(job, step, handling.output) if handling else [f"parquet:{job.record_folder / 'dead_letters'}"]


def _sink(job: Job, step: Step) -> dict[str, Any]:
    to = step.options.to
    return {
        "step": step.name,
        "line": step.line,
        "sink": to.create().name,
        "rejected": _refused(job, step),
        "takes": [f"{output.kind or 'rows'} of {output.step.name}" for output in origins(step)],
        "guarantee": to.registry.load(to.name).guarantee,
    }


def _refused(job: Job, step: Step) -> list[str] | None:
    """Where the rows go that the store can never take; None for dead letters: one that cannot be stored fails the job."""
    if all(output.kind == "dead letters" for output in origins(step)):
        return None
    handling = step.options.error_handling
    return _takers(job, step, handling.output) if handling else [f"parquet:{job.record_folder / 'dead_letters'}"]


def _takers(job: Job, step: Step, output: str) -> list[str]:
    """Who an output goes to: names of sinks, or of Beam's transforms."""
    takers = [other for other in job.steps if Output(step, output) in (origins(other) if other.options is not None else list(other.inputs))]
    return [taker.options.to.create().name if taker.type == "WriteResults" else taker.name for taker in takers if taker.type != "Flatten"]


def _words(choice: Choice, written: Any) -> str:
    """``quantile of dep_delay, q 0.95 where carrier = 'AA'``: what was ``written`` in the job file."""
    of, where = getattr(choice.options, "of", None), getattr(choice.options, "where", None)
    given = written.get(choice.name) if isinstance(written, Mapping) else None
    others = [f"{key} {_listed(value)}" for key, value in given.items() if key not in ("of", "where")] if isinstance(given, Mapping) else []
    return ", ".join([f"{choice.name} of {of}" if of else choice.name, *others]) + (f" where {where}" if where else "")


def _listed(value: Any) -> str:
    """A value of a job file, as there."""
    return json.dumps(value, default=str) if isinstance(value, (bool, list, Mapping)) else str(value)


def show(job: Job, console: Console) -> None:
    """Prints the plan for people."""
    found = plan(job)
    why = "its input ends" if found["bounded"] else "its input does not end"
    runner = "the DirectRunner, in this process" if found["runner"] == "direct" else "an embedded Flink, with checkpoints"
    _title(console, "job", job.name, job.path)
    _line(console, "runs on", f"{runner}: {why}")
    for source in found["sources"]:
        _show_source(console, job, source)
    for mapped in found["maps"]:
        _show_map(console, job, mapped)
    for deduplicate in found["deduplicates"]:
        _show_deduplicate(console, job, deduplicate)
    for metric in found["metrics"]:
        _show_metric(console, job, metric)
    for sink in found["sinks"]:
        _title(console, "sink", sink["sink"], f"{job.path}:{sink['line']}")
        _line(console, "takes", ", ".join(sink["takes"]))
        _line(console, "guarantee", sink["guarantee"])
        if sink["rejected"] is not None:
            _line(console, "rejected", f"rows that it can never take go to {_and(sink['rejected'])}")
    for other in found["others"]:
        _title(console, "Beam", other["type"], f"{job.path}:{other['line']}")


def _show_source(console: Console, job: Job, source: dict[str, Any]) -> None:
    time = source["time"]
    _title(console, "source", source["source"], f"{job.path}:{source['line']}")
    _line(console, "reads", "to its end" if source["bounded"] else "without end")
    _line(console, "format", f"{source['format']}: " + ", ".join(f"{name} {kind}" for name, kind in source["fields"].items()))
    unit = f" ({time['unit']})" if time["unit"] else ""
    _line(console, "event time", (f"field {time['field']}{unit}" if time["field"] else "the broker's time stamp of the record") + f", up to {time['disorder']} out of order within a split")
    if not source["bounded"]:
        _line(console, "idle", f"a split at its end for {time['idle']} no longer holds the watermark back")
    _line(console, "rejected", f"dead letters go to {_and(source['rejected'])}")


def _show_map(console: Console, job: Job, mapped: dict[str, Any]) -> None:
    _title(console, "map", mapped["step"], f"{job.path}:{mapped['line']}")
    _line(console, "reads", f"events of {_and(mapped['reads'])}")
    does = mapped["does"]
    if "explode" in does:
        explode = does["explode"]
        _line(console, "explode", f"one event of each item of {explode if isinstance(explode, str) else explode['field']}")
    if "where" in does:
        _line(console, "where", does["where"])
    for index, (name, sql) in enumerate(does.get("fields", {}).items()):
        _line(console, "" if index else "fields", f"{name} = {sql}")
    if "python" in does:
        python = does["python"]
        _line(console, "python", f"{', '.join(python['schema'])} = {python['function']} over {_TAKEN[python.get('takes', 'batch')]}")
    for key in ("keep", "drop"):
        if key in does:
            _line(console, key, ", ".join(does[key]) or "no field")
    if mapped["fields"] is not None:
        _line(console, "gives", ", ".join(f"{name} {kind}" for name, kind in mapped["fields"].items()) or "events without fields")
    _line(console, "rejected", f"events without an answer go to {_and(mapped['rejected'])}")


_TAKEN = {"batch": "Arrow batches", "pandas": "pandas frames", "polars": "Polars frames", "numpy": "NumPy arrays"}


def _show_deduplicate(console: Console, job: Job, deduplicate: dict[str, Any]) -> None:
    _title(console, "deduplicate", ", ".join(deduplicate["by"]), f"{job.path}:{deduplicate['line']}")
    _line(console, "reads", f"events of {_and(deduplicate['reads'])}")
    horizon = deduplicate["horizon"]
    _line(console, "drops", f"an event whose id was seen at most {horizon} of event time away")
    _line(console, "remembers", f"an id until the watermark is {horizon} past its event time; an older event goes on, counted")


def _show_metric(console: Console, job: Job, metric: dict[str, Any]) -> None:
    _title(console, "metric", metric["metric"], f"{job.path}:{metric['line']}")
    _line(console, "reads", f"events of {_and(metric['reads'])}")
    slices = metric["slices"]
    _line(console, "window", metric["window"] + (f", made of {slices['in_window']:,} slices of {slices['size']}" if slices else ""))
    _line(console, "by", ", ".join(name if name == field else f"{name} = {field}" for name, field in metric["by"].items()) or "nothing: one row a window")
    for index, (name, aggregate) in enumerate(metric["aggregates"].items()):
        _line(console, "" if index else "aggregates", f"{name} = {aggregate['is']}" + (f" ({aggregate['type']})" if aggregate["type"] else ""))
    emit = metric["emit"]
    early = {"final": "", "on_change": "; the current one at every change"}[emit] if isinstance(emit, str) else f"; current ones every {emit['every']} while it changes"
    _line(console, "emits", f"the final result, once the watermark has passed the window's end{early}")
    if metric["keys"]:
        keys = metric["keys"]
        beyond = "have one row together" if metric["rejected"] is None else f"are counted in a dead letter, which goes to {_and(metric['rejected'])}"
        each = f" ({keys['a_shard']:,} in each of {metric['shards']} shards)" if keys["a_shard"] and metric["shards"] > 1 else ""
        _line(console, "keys", f"at most {keys['limit']:,} have rows of their own in a window{each}; the others of {'a shard' if each else 'the window'} {beyond}")
    late = metric["late"]
    after = f"corrected for {metric['lateness']} after the window's end, then late events" if metric["lateness"] != "0s" else "late events"
    _line(console, "late", f"{after} are {'counted' if late is None else 'counted and go to ' + _and(late)}")
    _line(console, "row key", ", ".join(metric["key"]))
    _line(console, "results", f"go to {_and(metric['results'])}")
    for note in metric["notes"]:
        _line(console, "note", note)


def _and(names: list[str]) -> str:
    return " and ".join(names) or "nobody"


def _title(console: Console, what: str, name: str, place: str) -> None:
    console.print(Text.assemble((f"{what} ", "dim"), (name, "bold"), (f"  {place}", "dim")), soft_wrap=True)


def _line(console: Console, label: str, text: str) -> None:
    console.print(Text.assemble((f"  {label:<{LABEL_WIDTH}}", "cyan"), text), soft_wrap=True)
