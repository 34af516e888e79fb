"""Sink: writes rows to a store, idempotently by their natural key."""

from __future__ import annotations

from typing import ClassVar, Protocol

import pyarrow as pa

from streamgauge.transforms.rows import RowSpec


class SinkError(RuntimeError):
    """The store cannot take the rows now (down, locked, refused): the bundle fails and is tried again. One line, says what to do."""


class Sink(Protocol):
    """A configured sink. Picklable until ``open``.

    Attributes:
        name: ``sqlite:metrics.db/departure_delay``, for progress and messages.
        guarantee: one sentence: what a replay does to the rows, and why.
    """

    guarantee: ClassVar[str]
    name: str

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        """Connects, and makes the table if it is not there. Raises SinkError; raises ValueError in one line when a
        table of that name has other columns."""

    def write(self, batch: pa.Table) -> None:
        """Returns when the rows are durable. Keys are unique within ``batch``. Raises SinkError after bounded retries with back-off."""

    def close(self) -> None: ...


class ReadableSink(Protocol):
    """A sink whose table can be read back: what ``streamgauge verify`` needs."""

    def read(self) -> pa.Table:
        """The rows as they stand now, one a key; column types as written where the store can hold them. Raises SinkError."""
