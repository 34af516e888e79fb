"""Going on with another number of shards: which windows keep the old one, see transforms/sharding.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from streamgauge.pipelines.job_layout import AGGREGATE
from streamgauge.transforms.record import JobRecord
from streamgauge.transforms.sharding import Sharding, begin_from, reached
from streamgauge.transforms.state_layout import Layout, StepLayout

REACHED = "reached"
"""Of an AggregateWindows in the layout of a state: the start of the last slice that may have some, microseconds; None: no slice. Where it is missing that is not known."""

_EMPTY = StepLayout(AGGREGATE, {REACHED: None})
"""What is known of the state of a step that was not there."""


def with_reach(layout: Layout, record: JobRecord) -> Layout:
    """The layout of a run, with what its record tells of the state that it has."""
    if not record.all("splits"):  # a record that is not there does not say that nothing was read
        return layout
    known = reached(record)

    def told(name: str, values: dict[str, Any]) -> dict[str, Any]:
        return values if name in known and known[name] is None else {**values, REACHED: known.get(name)}

    return _changed(layout, told)


def without_reach(layout: Layout) -> Layout:
    """What ``with_reach`` was given."""
    return _changed(layout, lambda _, values: {key: value for key, value in values.items() if key != REACHED})


def resharded(before: Layout, after: Layout) -> Layout:
    """The layout of a job that starts from the state of ``before``, with the shards of windows that have begun; see ``compat.compare`` for whether it may."""

    def divided(name: str, values: dict[str, Any]) -> dict[str, Any]:
        old = before.steps[name].values if name in before.steps else {}
        if values["earlier_shards"] is None or old.get("earlier_shards") is None:
            return values
        sharding = Sharding.read(old["shards"], old["earlier_shards"]).changed(values["shards"], old.get(REACHED))
        return {**values, "earlier_shards": [list(entry) for entry in sharding.earlier]}

    return _changed(after, divided)


def carry_reach(record: JobRecord, before: Layout | None, after: Layout) -> None:
    """Has the record tell of the state that a run starts from, and of no other. ``before``: see ``with_reach``; None: nothing is known."""
    known: dict[str, int | None] = {}
    for name, step in after.steps.items():
        if step.kind == AGGREGATE:
            old = {} if before is None else before.steps.get(name, _EMPTY).values
            if REACHED not in old or old[REACHED] is not None:
                known[name] = old.get(REACHED)
    begin_from(record, known)


def _changed(layout: Layout, change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Layout:
    steps = {name: StepLayout(step.kind, change(name, step.values)) if step.kind == AGGREGATE else step for name, step in layout.steps.items()}
    return replace(layout, steps=steps)
