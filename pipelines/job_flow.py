"""What flows between the steps of a job: whether fields, types and kinds of rows fit together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic_core import PydanticCustomError

from streamgauge.pipelines.job_errors import Path, Problem
from streamgauge.pipelines.job_steps import Step, origins
from streamgauge.pipelines.job_yaml import Document
from streamgauge.transforms.aggregate import AggregateOptions, build_metric
from streamgauge.transforms.deduplicate import DeduplicateOptions, check_ids
from streamgauge.transforms.event_time import EventTime
from streamgauge.transforms.map_events import MapOptions, mapped_schema, problems_of
from streamgauge.transforms.read import ReadOptions, read_schema
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
        for name, choice in options.aggregates.items():
            self._checked((*path, "aggregates", name), partial(choice.registry.load(choice.name), choice.options, schema))
        if len(self.problems) == before:
            step.metric = self._checked((*path, "aggregates"), partial(build_metric, options, schema))

    def _written(self, step: Step) -> None:
        for output in origins(step):
            if output.kind == "events":
                self._problem(
                    (*step.path, "input"), f"WriteResults takes results, late events and dead letters; {output.step.name} gives events: aggregate them first"
                )

    def _one_table_each(self) -> None:
        """Late events and dead letters have other columns than results: one table cannot hold both."""
        seen: dict[tuple[str, str], tuple[Step, set[str | None]]] = {}
        for step in self.steps:
            if isinstance(step.options, WriteOptions):
                to = step.options.to
                kinds = {output.kind for output in origins(step)} - {None}
                first, others = seen.setdefault((to.name, str(to.options)), (step, kinds))
                if kinds and others and kinds != others:
                    self._problem((*step.path, "config", "to"), f"the {_and(kinds)} would go where {first.name} at line {first.line} puts the {_and(others)}; choose another place")

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


def _and(kinds: set[str | None]) -> str:
    return " and ".join(sorted(str(kind) for kind in kinds))
