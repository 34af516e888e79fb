"""Collects what a pipeline in this process emits: ``results = Collected(); pcoll | results``."""

from __future__ import annotations

import uuid
from typing import Any

import apache_beam as beam
import pyarrow as pa

_FOUND: dict[str, list[pa.RecordBatch]] = {}


class _Append(beam.DoFn):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, batch: pa.RecordBatch) -> None:
        _FOUND[self._name].append(batch)


class Collected(beam.PTransform):  # type: ignore[misc]
    """A sink into a list of this process."""

    def __init__(self) -> None:
        super().__init__(f"Collect{uuid.uuid4().hex}")
        self.name = uuid.uuid4().hex
        _FOUND[self.name] = []

    def expand(self, batches: beam.PCollection) -> None:
        _ = batches | beam.ParDo(_Append(self.name))

    @property
    def batches(self) -> list[pa.RecordBatch]:
        return _FOUND[self.name]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_pylist()]
