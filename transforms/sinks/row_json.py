"""Rows as JSON text: what standard output prints, and what dead letters keep of a row that its store refused."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pyarrow as pa

from streamgauge.transforms.sinks.plain import json_values, one_array, plain_type, to_plain


def json_rows(table: pa.Table, *, ascii_only: bool = False) -> list[str]:
    """One JSON object a row, in the order of the columns.

    Timestamps are ISO 8601 text in UTC. Null, NaN and infinities are ``null``, within lists and structs too. Bytes are text when they
    are UTF-8, else ``{"base64": ...}``.

    >>> json_rows(pa.table({"n": [1], "x": [float("nan")], "b": [b"\\xff"]}))
    ['{"n": 1, "x": null, "b": {"base64": "/w=="}}']
    """
    columns = [_values(column) for column in table.columns]
    return [
        json.dumps(dict(zip(table.column_names, row, strict=True)), ensure_ascii=ascii_only, allow_nan=False)
        for row in zip(*columns, strict=True)
    ]


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_nested(kind):
        return json_values(one_array(column))
    values = to_plain(column).to_pylist()
    if pa.types.is_floating(kind):
        return [value if value is not None and math.isfinite(value) else None for value in values]
    return [_text(value) for value in values] if plain_type(kind) == pa.binary() else values


def _text(value: bytes | None) -> str | dict[str, str] | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
