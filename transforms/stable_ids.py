"""Ids of a pipeline's transforms that do not change when other steps come and go.

Flink keeps the timers of a stateful step under the id of its transform. Beam for Python numbers these ids through the whole pipeline, so that
one more sink renames every step behind it, and a savepoint's timers find no receiver: the restored job fails, again and again.
"""

from __future__ import annotations

import hashlib
from typing import Any

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, ComponentIdMap

_DIGEST_BYTES = 8


class StableIds(ComponentIdMap):  # type: ignore[misc]
    """Names a transform after its full label, which is unique within a pipeline; everything else as Beam does."""

    def _unique_ref(self, obj: Any = None, obj_type: Any = None, label: str | None = None) -> str:
        if obj_type is not AppliedPTransform or label is None:
            return str(super()._unique_ref(obj, obj_type, label))
        return f"{self._normalize(label)[-80:]}_{hashlib.blake2b(label.encode(), digest_size=_DIGEST_BYTES).hexdigest()}"


def full_label(pipeline: beam.Pipeline) -> str:
    """The full name of the transform that is being expanded."""
    return str(pipeline.transforms_stack[-1].full_label)


def use_stable_ids(pipeline: beam.Pipeline) -> None:
    """From here on the pipeline names its transforms so. To be called while it is built, before it is translated."""
    if not isinstance(pipeline.component_id_map, StableIds):
        stable = StableIds(pipeline.component_id_map.namespace)
        stable.__dict__.update(pipeline.component_id_map.__dict__)
        pipeline.component_id_map = stable
