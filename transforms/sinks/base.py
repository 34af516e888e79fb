"""Sink: writes rows to a store, idempotently by their natural key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import pyarrow as pa

from streamgauge.transforms.rows import RowSpec


class SinkError(RuntimeError):
    """The store cannot take the rows now (down, locked, refused): the bundle fails and is tried again. One line, says what to do."""


@dataclass(frozen=True)
class Rejected:
    """Rows that a store can never take, however often they are tried.

    Attributes:
        rows: one or more, with the columns of the batch.
        reason: a sentence for people. error_type: one word for programs.
    """

    rows: pa.Table
    reason: str
    error_type: str = "refused"


class Sink(Protocol):
    """A configured sink. Until ``open`` it can be pickled and copied.

    Attributes:
        name: ``sqlite:metrics.db/departure_delay``, for progress and messages.
        guarantee: one sentence: what a replay does to the rows, and why.
    """

    guarantee: ClassVar[str]
    name: str

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        """Connects, and makes the table if it is not there. Raises SinkError; raises ValueError in one line when a
        table of that name has other columns."""

    def write(self, batch: pa.Table) -> list[Rejected]:
        """Stores the rows and returns when they are durable, with those that the store can never take: one bad row costs no other.

        Keys are unique within ``batch``; columns whose field is not nullable have no nulls. Which rows are rejected is a function
        of the rows and of the store's table, not of the moment. Raises SinkError after bounded retries with back-off, within
        ``rows_util.GIVE_UP_SECONDS`` also when the store accepts the connection and never answers.
        """

    def close(self) -> None: ...


class ReadableSink(Protocol):
    """A sink whose table can be read back: what ``streamgauge verify`` needs."""

    def read(self) -> pa.Table:
        """The rows as they stand now, one a key; column types as written where the store can hold them. Raises SinkError."""
