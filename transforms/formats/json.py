"""JSON: one object a payload."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
from pydantic import Field as Described

from streamgauge.transforms.config import Config
from streamgauge.transforms.formats.base import Parsed, Rejects
from streamgauge.transforms.formats.columns import Columns
from streamgauge.transforms.formats.compiled import DOUBT
from streamgauge.transforms.formats.fields import Field, FieldSchema, fields_of
from streamgauge.transforms.formats.json_kernel import Keys, parse_rows
from streamgauge.transforms.formats.payloads import MAX_BYTES, BadPayloadError, decode, finish, prepare, read_row
from streamgauge.transforms.formats.values import Number, Value, describe, from_json
from streamgauge.transforms.sources.base import RawBatch

MAX_DEPTH = 500
"""Levels of nesting, declared or not, that a payload may have; Python's own reader counts on the C stack."""

_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def _not_json(literal: str) -> None:
    raise BadPayloadError("malformed", f"not JSON: {literal} is no value")


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_not_json)


def decode_object(payload: bytes) -> dict[str, Any]:
    """The object that a payload holds, its numbers as text (:class:`Number`). Of equal names the last counts. Raises BadPayloadError.

    >>> decode_object(b'{"a": 1.50, "a": 2}')
    {'a': '2'}
    """
    text = decode(payload)
    try:
        if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(text):
            raise BadPayloadError("malformed", f"nested deeper than {MAX_DEPTH} levels")
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadPayloadError("malformed", f"not JSON: {error.msg} at character {error.pos}" if text.strip() else "empty") from None
    except RecursionError:
        raise BadPayloadError("malformed", "nested too deeply") from None
    if not isinstance(value, dict):
        raise BadPayloadError("malformed", f"expected an object, found {describe(value)}")
    return value


def _too_deep(text: str) -> bool:
    depth, in_string = 0, False
    for match in _MARK.finditer(text):
        if match[0] == '"':
            in_string = not in_string
        elif not in_string:
            depth += _STEP.get(match[0], 0)
            if depth > MAX_DEPTH:
                return True
    return False


class Json:
    """One JSON object (RFC 8259, UTF-8) a payload; the declared fields become columns, others are ignored.

    A field that is missing or null is null. Whatever is not what the schema declares is a reject, and nothing is quietly turned
    into null or into another type:

    - ``tombstone``: the record has no value.
    - ``too_large``: longer than ``max_bytes``.
    - ``malformed``: not JSON (``NaN`` is not), not UTF-8, not an object, nested deeper than 500 levels.
    - ``type``: ``dep_delay: expected double, found string 'abc'``; also integers out of range, and text that has only half of a
      surrogate pair.

    Numbers are read from their text: the nearest double; ``3.0`` is a whole number, ``1.5`` in an integer field is a reject.
    Times are ISO 8601 strings, UTC unless they say otherwise, or numbers where the type has a unit (``timestamp[ms]``); digits
    below a microsecond are truncated toward the past. Of equal names in an object the last counts.

    Lists and structs (``list<struct<sku: string, count: int64>>``) are read by the definition, in Python, and with them every field of the
    schema: some ten thousand events a second in place of millions. What is missing in a struct is null.

    Picklable. ``parse`` releases the GIL.
    """

    class Options(Config):
        """One JSON object a payload."""

        fields: FieldSchema = Described(
            alias="schema",
            description="The fields to read, {name: type}, with types as Arrow names them. object.field reads a field within an object.",
        )
        max_bytes: int = Described(default=MAX_BYTES, ge=1, description="Longer payloads are rejected as too_large. Bytes.")

    def __init__(self, options: Options) -> None:
        self._max_bytes = options.max_bytes
        self._fields = fields_of(options.fields)
        self._keys = Keys.of(self._fields)
        self._columns = Columns(self._fields)
        self.schema: pa.Schema = self._columns.schema

    def parse(self, raw: RawBatch) -> Parsed:
        """The events of a batch and the rejects, see :class:`Json`."""
        buf, offsets, status = prepare(raw, self._max_bytes)
        if self._columns.nested:
            status[:] = DOUBT
            return finish(raw, self._columns, self._columns.of_rows([]), status, self.parse_one, self._max_bytes, Rejects())
        out = self._columns.room(len(raw), int(offsets[-1] - offsets[0]))
        scratch = self._keys.scratch(len(self._fields))
        count = parse_rows(self._keys, self._columns.plan, out, scratch, buf, offsets, status)
        return finish(raw, self._columns, self._columns.batch(out, count), status, self.parse_one, self._max_bytes, Rejects())

    def parse_one(self, payload: bytes) -> tuple[Value, ...]:
        """The values of one payload: the definition of this format, which the kernel abides by. Raises BadPayloadError."""
        found = decode_object(payload)
        return read_row(self._fields, lambda field, _: from_json(field, _within(found, field)))


def _within(found: dict[str, Any], field: Field) -> object:
    value: object = found
    for depth, name in enumerate(field.path):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise BadPayloadError("type", f"{'.'.join(field.path[:depth])}: expected an object, found {describe(value)}")
        value = value.get(name)
    return value
