"""What a job keeps in the runner's state, written down, so that another version of the job can tell whether it may start from it."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamgauge.transforms.files import replace_text

STATE_VERSION = 2
"""Version of everything that outlives a process in state. To be raised when old state would be read wrongly, and only then: another hash or
shard key (hashing.py, aggregate.py), another element of a split (splits.py), restriction (restriction.py), name or content of a state cell or
timer (merge.py), batch encoding (batch.py), id of a transform (stable_ids.py), or other transforms within a step of ours."""


@dataclass(frozen=True)
class StepLayout:
    """The state of one step.

    Attributes:
        kind: type of the transform, such as ``AggregateWindows``.
        values: what its state depends on, and what is told to people of a change; values of JSON only.
    """

    kind: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The state of a job.

    Attributes:
        steps: by full Beam name (``Chain/AggregateWindows``).
        beam: version of Beam's SDK. state_version: see STATE_VERSION. parallelism: of the run; None: not known.
    """

    steps: dict[str, StepLayout]
    beam: str
    state_version: int = STATE_VERSION
    parallelism: int | None = field(default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Layout:
        """The layout that ``as_dict`` wrote."""
        return cls(**{**values, "steps": {name: StepLayout(**step) for name, step in values["steps"].items()}})


def write_layouts(path: Path, layouts: list[Layout]) -> None:
    """The layouts of a job's runs since its state began, oldest first, each once; that of the last run is the last."""
    distinct = [layout for index, layout in enumerate(layouts) if layout not in layouts[index + 1 :]]
    replace_text(path, json.dumps([layout.as_dict() for layout in distinct]))


def read_layouts(path: Path) -> list[Layout]:
    """What ``write_layouts`` wrote. Raises FileNotFoundError."""
    return [Layout.of(values) for values in json.loads(path.read_text())]


def schema_text(schema: pa.Schema) -> str:
    """A schema as text: its Arrow IPC message in base64.

    >>> schema_of(schema_text(pa.schema([("x", pa.int64())])))
    x: int64
    """
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of(text: str) -> pa.Schema:
    """The schema that ``schema_text`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def earlier_shards(path: str | None, step: str) -> list[list[int]]:
    """What an AggregateWindows is to know of the slices that have other shards than its options say (``Sharding.earlier``); ``path`` as in ``--earlier_layouts``."""
    found = _layouts(path, step)[-1:]
    return found[0].values.get("earlier_shards") or [] if found else []


def earlier_partials(path: str | None, step: str) -> tuple[pa.Schema, ...]:
    """Schemas of the partials that earlier runs may have left in the state of an AggregateWindows; ``path`` as in ``--earlier_layouts``."""
    texts = [layout.values.get("partial") for layout in _layouts(path, step)]
    return tuple(schema_of(text) for text in dict.fromkeys(texts) if text is not None)


def _layouts(path: str | None, step: str) -> list[StepLayout]:
    """Of a step, in the runs that had it."""
    return [layout.steps[step] for layout in ([] if path is None else read_layouts(Path(path))) if step in layout.steps]
