"""Format: from raw payloads to columns. It knows nothing of where the bytes come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamgauge.transforms.sources.base import RawBatch


@dataclass
class Rejects:
    """Payloads that are no events: index into the RawBatch, one-word error type, a sentence."""

    indices: list[int] = field(default_factory=list)
    error_types: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def add(self, index: int, error_type: str, message: str) -> None:
        self.indices.append(index)
        self.error_types.append(error_type)
        self.messages.append(message)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass
class Parsed:
    """The events of a RawBatch, in its order, and the rejects.

    Attributes:
        events: RecordBatch of the format's ``schema``.
        rows: int64 array, the index in the RawBatch of each event; None when every payload became an event.
        rejects: the payloads that did not. Every payload is in exactly one of the two.
    """

    events: pa.RecordBatch
    rows: npt.NDArray[np.int64] | None = None
    rejects: Rejects = field(default_factory=Rejects)


class Format(Protocol):
    """A configured format. Picklable.

    Attributes:
        schema: the columns of ``events``, named and typed as the job file declares them (``user.id`` is one flat column). All nullable.
    """

    schema: pa.Schema

    def parse(self, raw: RawBatch) -> Parsed:
        """Never raises for what a payload holds: one bad payload never costs the good ones of its batch. The payloads may be of several splits, one after the other."""
