"""The same events as other payloads: what a producer may write into a record."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import polars as pl
import pyarrow as pa

from benchmarks.topic import FIELDS

EVENTS_A_STREAM = 1_000
MORE_FIELDS = 54
"""With the six of an event 60."""

_ORDER = list(FIELDS)
_FILLERS = 997
"""Different values of the further fields; a prime, so that they do not go with the hosts."""


def json(lines: list[bytes]) -> Iterator[bytes]:
    """As they are."""
    yield from lines


def wide(lines: list[bytes]) -> Iterator[bytes]:
    """With further fields behind the first three, so that those needed stand on both sides of them: numbers, texts, nested ones."""
    kinds = ('"f{0}":{1}', '"f{0}":"text {1}"', '"f{0}":{1}.5', '"f{0}":{{"a":[{1},2],"b":null}}', '"f{0}":true')
    fillers = [
        "".join("," + kinds[number % len(kinds)].format(number, (filler * 31 + number) % 9_973) for number in range(MORE_FIELDS)).encode() for filler in range(_FILLERS)
    ]
    for number, line in enumerate(lines):
        at = line.index(b',"value"')
        yield line[:at] + fillers[number % _FILLERS] + line[at:]


def csv(lines: list[bytes]) -> Iterator[bytes]:
    """A line each, without a header."""
    yield from _frame(lines).write_csv(include_header=False).encode().splitlines()


def arrow(lines: list[bytes]) -> Iterator[bytes]:
    """Arrow IPC streams of a thousand events."""
    for part in _frame(lines).iter_slices(EVENTS_A_STREAM):
        table = part.to_arrow().cast(pa.schema([(name, pa.type_for_alias(kind)) for name, kind in FIELDS.items()]))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        yield sink.getvalue().to_pybytes()


Payloads = Callable[[list[bytes]], Iterator[bytes]]


def _frame(lines: list[bytes]) -> pl.DataFrame:
    return pl.read_ndjson(io.BytesIO(b"\n".join(lines))).select(_ORDER)
