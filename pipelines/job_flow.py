"""What flows between the steps of a job: whether fields, types and kinds of rows fit together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic_core import PydanticCustomError

from streamgauge.pipelines.job_errors import Path, Problem
from streamgauge.pipelines.job_steps import Output, Step, origins
from streamgauge.pipelines.job_yaml import Document
from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.deduplicate import DeduplicateOptions, check_ids
from streamgauge.transforms.event_time import EventTime
from streamgauge.transforms.map_events import MapOptions, mapped_schema, problems_of
from streamgauge.transforms.read import ReadOptions, read_schema
from streamgauge.transforms.reduce import late_schema
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.write import WriteOptions


class Flow:
    """Checks the steps, whose inputs are known, and gives each AggregateWindows its ``metric`` and each MapEvents its ``schema``; ``problems`` has every mistake."""

    def __init__(self, document: Document, steps: list[Step], read: set[tuple[int, str | None]]) -> None:
        self.steps = steps
        self.problems: list[Problem] = []
        self._document = document
        self._read = read
        self._flow()

    def _problem(self, path: Path, message: str) -> None:
        self.problems.append(self._document.problem(path, message))

    def _flow(self) -> None:
        for step in self.steps:
            if isinstance(step.options, ReadOptions):
                self._checked((*step.path, "config", "time", "field"), partial(event_schema, step))
        if self.problems:
            return
        for step in self.steps:
            if isinstance(step.options, (DeduplicateOptions, MapOptions)) and step in event_sources(step):
                self._problem((*step.path, "input"), f"{step.name} reads its own output")
        if self.problems:
            return
        for step in self.steps:
            if isinstance(step.options, MapOptions):
                self._mapped(step, step.options)
        if self.problems:
            return
        for step in self.steps:
            if isinstance(step.options, AggregateOptions):
                self._aggregated(step, step.options)
            elif isinstance(step.options, DeduplicateOptions):
                self._deduplicated(step, step.options)
            elif isinstance(step.options, WriteOptions):
                self._written(step)
            for name, kind in step.outputs().items():
                if (id(step), name) not in self._read:
                    wanted = step.name if name == next(iter(step.outputs())) and not len(step.outputs()) > 1 else f"{step.name}.{name}"
                    taker = "AggregateWindows" if kind == "events" else "WriteResults"
                    self._problem(step.path, f"nobody reads the {kind} of {step.name}; add {{type: {taker}, input: {wanted}, ...}}")
        self._one_table_each()

    def _events(self, step: Step) -> pa.Schema | None:
        """Columns of the events that a step takes; None when they are not known, or there is a problem."""
        for output in origins(step):
            if output.kind not in ("events", None):
                self._problem((*step.path, "input"), f"{step.type} takes events; {output.step.name}.{output.name} gives {output.kind}")
        schemas = self._schemas(step)
        if not schemas or self.problems:
            return None
        if any(not schema.equals(schemas[0]) for schema in schemas):
            self._problem((*step.path, "input"), "the inputs have different fields; events that are taken together must have the same schema")
            return None
        return schemas[0]

    def _schemas(self, step: Step) -> list[pa.Schema]:
        """Of the events of each step that a step reads, through Deduplicate; none of those that are not known."""
        found: list[pa.Schema] = []
        for output in origins(step):
            options = output.step.options
            if isinstance(options, ReadOptions):
                found.append(event_schema(output.step))
            elif isinstance(options, DeduplicateOptions):
                found += self._schemas(output.step)
            elif isinstance(options, MapOptions):
                before = self._schemas(output.step)
                found += [mapped_schema(options, before[0])] if before else []
        return found

    def _mapped(self, step: Step, options: MapOptions) -> None:
        """MapEvents that follow others are looked at after them, so that no mistake is told twice."""
        if step.schema is not None:
            return
        for before in event_sources(step):
            if isinstance(before.options, MapOptions):
                self._mapped(before, before.options)
        if self.problems:
            return
        schema = self._events(step)
        if schema is None:
            return
        found = problems_of(options, schema)
        for path, message in found:
            self._problem((*step.path, "config", *path), message)
        if not found:
            step.schema = mapped_schema(options, schema)

    def _deduplicated(self, step: Step, options: DeduplicateOptions) -> None:
        schema = self._events(step)
        if schema is not None:
            for index, name in enumerate(options.by):
                self._checked((*step.path, "config", "by", index), partial(check_ids, [name], schema))

    def _aggregated(self, step: Step, options: AggregateOptions) -> None:
        schema = self._events(step)
        if schema is None:
            return
        path, before = (*step.path, "config"), len(self.problems)
        for index, (name, field) in enumerate(options.by.items()):
            only = options.model_copy(update={"by": {name: field}, "aggregates": {}})
            self._checked((*path, "by", index if name == field else name), partial(build_metric, only, schema))
        by = options.by if len(self.problems) == before else {}
        for name, choice in options.aggregates.items():
            self._checked((*path, "aggregates", name), partial(build_metric, options.model_copy(update={"by": by, "aggregates": {name: choice}}), schema))
        if len(self.problems) == before:
            step.metric = self._checked((*path, "aggregates"), partial(build_metric, options, schema))

    def _written(self, step: Step) -> None:
        for output in origins(step):
            if output.kind == "events":
                self._problem(
                    (*step.path, "input"), f"WriteResults takes results, late events and dead letters; {output.step.name} gives events: aggregate them first"
                )

    def _one_table_each(self) -> None:
        """What goes to one table has the same columns, and no two rows of it the same key by chance."""
        kept: dict[str, list[tuple[Step, Output]]] = {}
        for step in self.steps:
            if isinstance(step.options, WriteOptions) and step.options.to.name != "stdout":
                before = kept.setdefault(step.options.to.create().name, [])
                for output in origins(step):
                    if output.kind is not None:
                        message = next((found for first, other in before if (found := _clash(step, output, first, other))), None)
                        if message is not None:
                            alone = not before or before[0][0] is step
                            self._problem((*step.path, "input") if alone else (*step.path, "config", "to"), message)
                            break
                        before.append((step, output))

    def _checked(self, path: Path, make: Callable[[], Any]) -> Any:
        """What ``make`` returns; None and a problem when it raises a user's error."""
        try:
            return make()
        except PydanticCustomError as error:
            message = error.message()
        except (ValueError, TypeError) as error:
            message = str(error)
        self._problem(path, message)
        return None


def event_schema(step: Step) -> pa.Schema:
    """Columns of the events of a ReadEvents. Raises PydanticCustomError when the time field does not fit."""
    options: ReadOptions = step.options
    return read_schema(EventTime(options.time, options.format.create().schema))


def event_sources(step: Step) -> list[Step]:
    """The steps whose events reach a step, also through Deduplicate and MapEvents; these are among them."""
    found: list[Step] = []
    asked = [step]
    while asked:
        others = [output.step for output in origins(asked.pop()) if output.step not in found]
        found += others
        asked += [other for other in others if isinstance(other.options, (DeduplicateOptions, MapOptions))]
    return found


def _clash(step: Step, output: Output, first: Step, other: Output) -> str | None:
    """Why an output cannot go to the table to which ``first`` writes the ``other``; None: it can."""
    there = f"where {first.name} at line {first.line} puts" if first is not step else "to one table with"
    if output.kind != other.kind:
        return f"the {output.kind} would go {there} the {other.kind}; choose another place"
    one, two = output.step.metric, other.step.metric
    if one is None or two is None or output.step is other.step or output.kind == "dead letters":
        return None
    mine, theirs = (f"{each.step.name} (line {each.step.line})" for each in (output, other))
    if one.name == two.name:
        return f"{mine} and {theirs} are both metric '{one.name}': in one table their rows have the same keys and replace each other; give one of them another name or table"
    columns, others = ((late_schema(each) if output.kind == "late events" else each.result_schema) for each in (one, two))
    differing = sorted({field.name for field in {*columns} ^ {*others}})
    if differing or RowSpec.of(columns).key != RowSpec.of(others).key:
        what = f"other columns ({', '.join(differing)})" if differing else f"another key ({', '.join(RowSpec.of(columns).key)})"
        return f"the {output.kind} of {mine} have {what} than those of {theirs}, which go to the same table; choose another table"
    return None
