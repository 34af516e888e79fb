"""Ids of a pipeline's transforms and timers: they do not change when other steps come and go, and no two are alike.

Flink keeps the timers of a stateful step under the id of its transform. Beam for Python numbers these ids through the whole pipeline, so that
one more sink renames every step behind it, and a savepoint's timers find no receiver: the restored job fails, again and again.

Beam's FnApiRunner (the DirectRunner) tells timers apart by their name only: of two steps of one stage whose timers have one name, one gets
the timers of both, and the other never emits anything.
"""

from __future__ import annotations

import functools
import hashlib
from types import FunctionType
from typing import Any

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, ComponentIdMap
from apache_beam.transforms.core import _TimerDoFnParam
from apache_beam.transforms.userstate import TimerSpec, on_timer

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


@functools.cache
def own_timers(kind: Any, step: str) -> type[beam.DoFn]:
    """``kind``, but its timers have names that no other step of the pipeline has.

    Beam reads a timer off the parameters of a DoFn's methods, so these are copied with other parameters; objects of the class
    are pickled by ``kind`` and ``step``.
    """
    own = {spec: TimerSpec(f"{spec.name.removeprefix(TimerSpec.prefix)}:{step}", spec.time_domain) for spec in vars(kind).values() if isinstance(spec, TimerSpec)}

    def with_own(method: FunctionType) -> FunctionType:
        defaults = tuple(beam.DoFn.TimerParam(own[value.timer_spec]) if isinstance(value, _TimerDoFnParam) else value for value in method.__defaults__ or ())
        copy = FunctionType(method.__code__, method.__globals__, method.__name__, defaults, method.__closure__)
        functools.update_wrapper(copy, method)
        del copy.__dict__["__wrapped__"]  # Beam would read the parameters there.
        return copy

    methods = {name: with_own(method) for name, method in vars(kind).items() if isinstance(method, FunctionType)}
    for spec, renamed in own.items():
        on_timer(renamed)(methods[spec._attached_callback.__name__])

    def reduce(dofn: beam.DoFn) -> tuple[Any, ...]:
        return _empty, (kind, step), dict(vars(dofn))

    made: type[beam.DoFn] = type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods, "__reduce__": reduce})
    return made


def _empty(kind: Any, step: str) -> beam.DoFn:
    return object.__new__(own_timers(kind, step))
