"""Standard output: rows as JSON lines, for a look at a pipeline and for shell pipes."""

from __future__ import annotations

import base64
import json
import math
import sys
from typing import Any, ClassVar

import pyarrow as pa

from streamgauge.transforms.config import Config
from streamgauge.transforms.rows import RowSpec
from streamgauge.transforms.sinks.base import SinkError
from streamgauge.transforms.sinks.rows_util import plain_type, to_plain


class StdoutOptions(Config):
    """Prints rows as JSON lines."""


class Stdout:
    """Prints one JSON object a row, in the order of the columns.

    Delivery: at least once. What is printed cannot be taken back, so a replay prints rows again; readers keep, of each key,
    the line of the highest revision. On a cluster the lines are in the workers' logs.

    Timestamps are ISO 8601 text in UTC. Null, NaN and infinities are ``null``. Bytes are text when they are UTF-8, else
    ``{"base64": ...}``.
    """

    Options = StdoutOptions
    guarantee: ClassVar[str] = "At least once: a replay after a failure prints rows again, since what was printed cannot be taken back."

    def __init__(self, options: StdoutOptions) -> None:
        self.name = "stdout"

    def open(self, schema: pa.Schema, rows: RowSpec) -> None:
        for field in schema:
            plain_type(field.type)

    def write(self, batch: pa.Table) -> None:
        columns = [_values(column) for column in batch.columns]
        ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
        lines = [
            json.dumps(dict(zip(batch.column_names, row, strict=True)), ensure_ascii=ascii_only, allow_nan=False) + "\n"
            for row in zip(*columns, strict=True)
        ]
        try:
            sys.stdout.write("".join(lines))
            sys.stdout.flush()
        except OSError as error:
            raise SinkError(f"standard output takes no more lines: {error}") from None

    def close(self) -> None:
        pass


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_nested(kind):
        return [_json(value) for value in column.to_pylist()]
    values = to_plain(column).to_pylist()
    if pa.types.is_floating(kind):
        return [value if value is not None and math.isfinite(value) else None for value in values]
    return [_text(value) for value in values] if plain_type(kind) == pa.binary() else values


def _json(value: Any) -> Any:
    """Inside lists and structs: NaN and infinities as null."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: bytes | None) -> str | dict[str, str] | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
