"""The layout of a job's state, read off the pipeline that Beam builds of it: steps and their state have Beam's names there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import reduce
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.common import DoFnSignature
from apache_beam.version import __version__ as beam_version
from apache_beam.yaml.yaml_transform import expand_pipeline

from streamgauge.pipelines.job import Job
from streamgauge.transforms.aggregate import AggregateWindows, build_metric
from streamgauge.transforms.config import Choice, Config
from streamgauge.transforms.deduplicate import Deduplicate
from streamgauge.transforms.partials import Metric
from streamgauge.transforms.read import ReadEvents
from streamgauge.transforms.state_layout import Layout, StepLayout, schema_text

READ, AGGREGATE, DEDUPLICATE = "ReadEvents", "AggregateWindows", "Deduplicate"
FOREIGN_SOURCE = "Impulse"
"""Kind of a source that is Beam's own."""

_SECRET = ("client",)
_OWN_SOURCES = ("kafka", "files", "generator")
"""Options of other sources may hold passwords under any name: only their digests are written down."""


def layout_of(job: Job, parallelism: int | None = None) -> Layout:
    """What the job keeps in state. Nothing is started or connected."""
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    expand_pipeline(pipeline, job.spec)
    found = _Stateful()
    pipeline.visit(found)
    foreign = _digest([reduce(lambda value, key: value[key], step.path, job.document.value) for step in job.steps if step.options is None])
    steps = {node.full_label: _step(node, found.owners, foreign) for node in found.owners}
    return Layout(steps, beam_version, parallelism=parallelism)


class _Stateful(PipelineVisitor):  # type: ignore[misc]
    """Finds the transforms that have state: the outermost of ours that contains some, or Beam's own."""

    def __init__(self) -> None:
        self.owners: dict[AppliedPTransform, None] = {}

    def visit_transform(self, node: AppliedPTransform) -> None:
        if _has_state(node.transform):
            self.owners[_owner(node)] = None


def _has_state(transform: Any) -> bool:
    if isinstance(transform, beam.ParDo):
        signature = DoFnSignature(transform.dofn)
        return bool(signature.is_stateful_dofn() or signature.is_splittable_dofn())
    return isinstance(transform, (beam.Impulse, beam.GroupByKey))


def _owner(node: AppliedPTransform) -> AppliedPTransform:
    found = node
    above = node
    while above is not None:
        if isinstance(getattr(above.transform, "options", None), Config):
            found = above
        above = above.parent
    return found


def _above(node: AppliedPTransform, owners: Mapping[AppliedPTransform, None]) -> list[str]:
    """Names of the steps with state that a step reads, seen through what has none."""
    found: set[str] = set()
    waiting = list(node.inputs)
    while waiting:
        producer = waiting.pop().producer
        owner = _owner(producer)
        if owner in owners:
            found.add(owner.full_label)
        else:
            waiting += producer.inputs
    return sorted(found)


def _step(node: AppliedPTransform, owners: Mapping[AppliedPTransform, None], foreign: str) -> StepLayout:
    transform = node.transform
    if isinstance(transform, ReadEvents):
        return StepLayout(READ, _reading(transform))
    reads = {"reads": _above(node, owners)}
    if isinstance(transform, AggregateWindows):
        metric = build_metric(transform.options, node.inputs[0].element_type.schema)
        return StepLayout(AGGREGATE, {**_aggregating(transform, metric), **reads})
    kind = type(transform).__name__
    if isinstance(transform, Deduplicate):
        schema = node.inputs[0].element_type.schema
        return StepLayout(kind, {**_plain(transform.options), "types": [str(schema.field(name).type) for name in transform.options.by], **reads})
    if isinstance(getattr(transform, "options", None), Config):
        return StepLayout(kind, {"options": _digest(_plain(transform.options)), **reads})
    return StepLayout(kind, {} if kind == FOREIGN_SOURCE else {"other steps": foreign, **reads})


def _reading(transform: ReadEvents) -> dict[str, Any]:
    source, time = transform.options.source, transform.options.time
    given = _plain(source.options)
    hidden = given if source.name not in _OWN_SOURCES else _SECRET
    return {
        "source": {
            "kind": source.name, "name": transform.connector.name, "bounded": transform.connector.bounded,
            "options": {name: _digest(value) if name in hidden else value for name, value in given.items()},
        },
        "time": _plain(time),
        "format": _digest([transform.options.format.name, _plain(transform.options.format.options)]),
    }  # fmt: skip


def _aggregating(transform: AggregateWindows, metric: Metric) -> dict[str, Any]:
    options = transform.options
    window = options.window.create()
    return {
        "metric": options.metric,
        "dimensions": [[name, field, str(metric.schema.field(field).type)] for name, field in options.by.items()],
        "aggregates": {name: [choice.name, _plain(choice.options)] for name, choice in options.aggregates.items()},
        "state": {column.name: str(column.type) for column in metric.state},
        "partial": schema_text(metric.partial_schema),
        "window": {
            "kind": options.window.name, "options": _plain(options.window.options), "says": window.describe(),
            "slice_size": getattr(window, "slice_size", None), "offset": getattr(window, "offset", None),
        },
        "lateness": options.lateness,
        "keys": None if options.keys is None else _plain(options.keys),
        "shards": options.shards,
        "earlier_shards": [] if options.reshards else None,
        "emit": options.emit if options.emit == "final" else _plain(options.emit),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Options as values of JSON; what a plug-in within them holds, as a digest."""
    if isinstance(value, Config):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Choice):
        return {value.name: _digest(_plain(value.options))}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
