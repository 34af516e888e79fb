"""Standard output: rows as JSON lines, for a look at a pipeline and for shell pipes."""

from __future__ import annotations

import sys
from typing import ClassVar

import pyarrow as pa

from streamgauge.transforms.config import Config
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.base import Rejected, SinkError
from streamgauge.transforms.sinks.plain import plain_type
from streamgauge.transforms.sinks.row_json import json_rows


class StdoutOptions(Config):
    """Prints rows as JSON lines."""


class Stdout:
    """Prints one JSON object a row, in the order of the columns.

    Delivery: at least once. What is printed cannot be taken back, so a replay prints rows again; readers keep, of each key,
    the line of the highest revision, and none where that one is withdrawn. On a cluster the lines are in the workers' logs. A reader
    that is slow slows the job down; one that is gone fails the bundle at once. There is no row that it cannot print.

    Timestamps are ISO 8601 text in UTC. Null, NaN and infinities are ``null``, within lists and structs too. Bytes are text when they
    are UTF-8, else ``{"base64": ...}``.
    """

    Options = StdoutOptions
    guarantee: ClassVar[str] = "At least once: a replay after a failure prints rows again, since what was printed cannot be taken back."

    def __init__(self, options: StdoutOptions) -> None:
        self.name = "stdout"

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        for field in schema:
            plain_type(field.type)

    def write(self, batch: pa.Table) -> list[Rejected]:
        ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
        try:
            sys.stdout.write("".join(f"{line}\n" for line in json_rows(batch, ascii_only=ascii_only)))
            sys.stdout.flush()
        except OSError as error:
            raise SinkError(f"standard output takes no more lines: {error}") from None
        return []

    def close(self) -> None:
        pass
