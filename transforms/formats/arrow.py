"""Arrow IPC: a payload is a stream of record batches, and so of many events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field as Described
from pydantic import model_validator

from streamgauge.transforms.config import Config, did_you_mean, user_error
from streamgauge.transforms.formats.arrow_stream import BATCH, Message, begin, messages_after, room, schema_of
from streamgauge.transforms.formats.arrow_values import Convert, converter, field_in, plain, plain_bytes, plain_type
from streamgauge.transforms.formats.base import Parsed, Rejects
from streamgauge.transforms.formats.fields import Field, FieldSchema, arrow_schema, fields_of
from streamgauge.transforms.formats.payloads import MAX_BYTES, BadPayloadError
from streamgauge.transforms.sources.base import RawBatch, SourceError

_KNOWN_SCHEMAS = 256
"""Schemas of payloads that are remembered."""

_SHOWN_CHARACTERS = 200
"""Of what a payload or Arrow says, in a message."""

_TEXT_BYTES = 4
"""What a value of a type without a fixed width takes at least."""

_DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, MemoryError)
"""What Arrow raises for a stream that is not right inside."""


@dataclass
class RecordRejects(Rejects):
    """Rejects that are one a payload, however many of its events are wrong: the first is told, the others are counted."""

    _places: dict[int, int] = field(default_factory=dict)
    _first: dict[int, str] = field(default_factory=dict)
    _events: dict[int, int] = field(default_factory=dict)

    def add(self, index: int, error_type: str, message: str, events: int = 1) -> None:
        place = self._places.setdefault(index, len(self.indices))
        if place == len(self.indices):
            super().add(index, error_type, message)
            self._first[index], self._events[index] = message, 0
        self._events[index] += events
        if self._events[index] > 1:
            self.messages[place] = f"{self._first[index]} (the first of {self._events[index]:,} events of this record that are rejected)"


class _Read(NamedTuple):
    """What a payload's schema says about its columns.

    Attributes:
        schema: of the payload's record batches.
        native: Arrow may read its record batches as they stand, one by one.
        columns: indices of the columns to read, growing.
        steps: by declared field, how it is found in what is read; None: it is null.
        weighed: places of fields of which a few bytes may stand for many.
        problem: why no event can be made of such a payload.
    """

    schema: pa.Schema
    native: bool
    columns: list[int]
    steps: list[Callable[[pa.Table], pa.Array] | None]
    convert: list[Convert]
    weighed: list[int]
    problem: BadPayloadError | None = None


class Arrow:
    """An Arrow IPC stream a payload, of any number of events; the declared fields become columns, others are ignored.

    A payload in the IPC *file* format is read as well. Bodies may be compressed (LZ4, Zstandard), columns dictionary-encoded. Each payload has
    its own schema: producers may add fields, and change types as long as the declared ones still hold every value. ``user.id`` is a column of
    that name or, if there is none, the field ``id`` of a struct ``user``.

    A payload of which no event can be made is a reject:

    - ``tombstone``: the record has no value.
    - ``too_large``: longer than ``max_bytes``; also when decoded, or when that would make it more than 128 times as long (and over 32 KiB).
    - ``malformed``: no Arrow stream, cut off, or damaged.
    - ``type``: a declared field that is not there, or has a type that does not fit.

    So is an event that has a value which the declared type does not hold (``type``), and one without a usable time (``no_event_time``). The
    other events of its record count. A record is one dead letter at most: it has the whole payload, and the message says how many of its events
    are rejected, and names the first.

    What fits: integers of any width, as far as each value is in range; whole numbers in floating-point columns as integers; integers as
    ``double`` as far as it holds them exactly; ``double`` as ``float``; timestamps of any unit and zone (without one: UTC), dates as timestamps,
    and integers where the type has a unit (``timestamp[ms]``). Digits below a microsecond are truncated toward the past. Strings are no numbers or
    times, nor the other way round. NaN and infinity are values. Lists and structs are read like their parts; what is missing in a struct is null.

    The position of an event is that of its record; events of one position keep their order.

    Picklable. ``parse`` releases the GIL in what is large.
    """

    class Options(Config):
        """An Arrow IPC stream a payload: many events at once."""

        fields: FieldSchema = Described(
            alias="schema",
            description="The fields to read, {name: type}, with types as Arrow names them. object.field reads a field within a struct.",
        )
        optional: list[str] = Described(default=[], description="Fields that a payload may lack, as older ones do: they are null then.")
        max_bytes: int = Described(default=MAX_BYTES, ge=1, description="Longer payloads, decompressed ones too, are rejected as too_large. Bytes.")

        @model_validator(mode="after")
        def _check(self) -> Arrow.Options:
            for name in self.optional:
                if name not in self.fields:
                    raise user_error(f"optional has '{name}', which is no field of schema{did_you_mean(name, list(self.fields))}")
            return self

    def __init__(self, options: Options) -> None:
        self._options = options
        self._fields = fields_of(options.fields)
        self._event_bytes = sum(_width(declared.arrow) for declared in self._fields)
        self._known: dict[bytes, _Read] = {}
        self._recent = b""
        self.schema: pa.Schema = arrow_schema(self._fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return Arrow, (self._options,)

    def parse(self, raw: RawBatch) -> Parsed:
        """The events of a batch and the rejects, see :class:`Arrow`. Raises SourceError when the source gives lines."""
        if raw.newline_terminated:
            raise SourceError("the format arrow reads whole payloads, but this source cuts what it reads into lines; use arrow with kafka")
        rejects, groups = RecordRejects(), dict[int, tuple[_Read, list[int], list[int], list[pa.RecordBatch]]]()
        for index, payload in _payloads(raw, self._options.max_bytes, rejects):
            try:
                read, batches = self._batches(payload)
            except BadPayloadError as error:
                rejects.add(index, error.error_type, str(error))
                continue
            _, indices, counts, found = groups.setdefault(id(read), (read, [], [], []))
            for batch in batches:
                indices.append(index)
                counts.append(batch.num_rows)
                found.append(batch)
        parts = [self._events(read, np.array(indices), np.array(counts), found, rejects) for read, indices, counts, found in groups.values() if found]
        return _in_order(parts, self.schema, rejects)

    def _batches(self, payload: pa.Buffer) -> tuple[_Read, list[pa.RecordBatch]]:
        """How a payload is read and its record batches, of the columns needed, valid to the last byte. Raises BadPayloadError."""
        view = memoryview(payload)
        start, size = begin(view), len(self._recent)
        if start or not size or bytes(view[:size]) != self._recent:
            head = schema_of(view, start)
            size = head.end
            self._recent = bytes(view[start:size])
            if self._recent not in self._known:
                if len(self._known) >= _KNOWN_SCHEMAS:
                    self._known.clear()
                self._known[self._recent] = self._read(payload.slice(start, size - start), head)
        read = self._known[self._recent]
        if read.problem is not None:
            raise read.problem
        messages = messages_after(view, size, file=start > 0)
        rows = sum([message.rows for message in messages if message.kind == BATCH])
        self._weigh(len(view), max(sum([message.body for message in messages]), rows * self._event_bytes))
        try:
            found = list(_decoded(payload, start, read, messages))
            for batch in found:
                batch.validate(full=True)
            if read.weighed:
                found = [self._plain(read, batch, len(view)) for batch in found]
        except BadPayloadError:
            raise
        except _DAMAGED as error:
            raise BadPayloadError("malformed", f"damaged: {_line(error)}") from None
        if sum([batch.num_rows for batch in found]) != rows:
            raise BadPayloadError("malformed", "damaged: its record batches have not as many rows as they say")
        return read, found

    def _read(self, message: pa.Buffer, head: Message) -> _Read:
        """How payloads with this schema are read."""
        try:
            schema = pa.ipc.read_schema(message)
            places = [_place(schema, declared, declared.name in self._options.optional) for declared in self._fields]
            kinds = [None if path is None else _type_at(schema, path) for path in places]
            convert = [converter(declared, pa.null() if kind is None else plain_type(kind)) for declared, kind in zip(self._fields, kinds, strict=True)]
        except BadPayloadError as error:
            return _refused(error.error_type, str(error))
        except _DAMAGED as error:  # names that are no UTF-8 among them
            return _refused("malformed", f"damaged schema: {_line(error)}")
        columns = sorted({path[0] for path in places if path is not None})
        steps = [None if path is None else _step(columns.index(path[0]), path[1:]) for path in places]
        weighed = [number for number, kind in enumerate(kinds) if kind is not None and (pa.types.is_nested(kind) or plain_type(kind) != kind)]
        return _Read(schema, head.native, columns, steps, convert, weighed)

    def _weigh(self, size: int, decoded: int) -> None:
        """Raises BadPayloadError when a payload of ``size`` bytes would take too many."""
        limit = room(size, self._options.max_bytes)
        if decoded > limit:
            bound = f"max_bytes ({limit})" if limit == self._options.max_bytes else f"{limit}, which is what its {size} bytes may make"
            raise BadPayloadError("too_large", f"{decoded} bytes when decoded, more than {bound}")

    def _plain(self, read: _Read, batch: pa.RecordBatch, size: int) -> pa.RecordBatch:
        """The fields themselves, without dictionaries and views: what these stand for is counted first."""
        columns = [pa.nulls(batch.num_rows) if step is None else step(batch) for step in read.steps]
        self._weigh(size, sum(plain_bytes(columns[number]) for number in read.weighed))
        for number in read.weighed:
            columns[number] = plain(columns[number])
        return pa.RecordBatch.from_arrays(columns, names=[str(number) for number in range(len(columns))])

    def _events(
        self, read: _Read, indices: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], found: list[pa.RecordBatch], rejects: RecordRejects
    ) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """Events of payloads with one schema, and the payload of each; those with a wrong value are rejected."""
        # Putting batches together also aligns them, which a payload is not, and kernels want.
        table = pa.concat_batches(found if len(found) > 1 else [*found, found[0].slice(0, 0)])
        rows = np.repeat(indices, counts)
        columns, wrong = [], np.zeros(len(rows), np.bool_)
        for number, (declared, step, convert) in enumerate(zip(self._fields, read.steps, read.convert, strict=True)):
            source = table.column(number) if read.weighed else pa.nulls(table.num_rows) if step is None else step(table)
            converted = convert(source)
            columns.append(converted.values)
            if converted.wrong is not None:
                bad = np.flatnonzero(converted.wrong & ~wrong)
                for index, first, events in zip(*np.unique(rows[bad], return_index=True, return_counts=True), strict=True):
                    row = int(bad[first])
                    within = row - int(np.searchsorted(rows, index))
                    rejects.add(int(index), "type", f"{declared.name}: {converted.words(row)}, in event {within}", int(events))
                wrong |= converted.wrong
        events_read = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return (events_read.filter(pa.array(~wrong)), rows[~wrong]) if wrong.any() else (events_read, rows)


def _payloads(raw: RawBatch, max_bytes: int, rejects: Rejects) -> Iterator[tuple[int, pa.Buffer]]:
    """Index and bytes (not copied) of each payload that may be one."""
    count, first = len(raw.payloads), raw.payloads.offset
    _, ends, data = raw.payloads.buffers()
    places = np.frombuffer(ends, np.int32)[first : first + count + 1].tolist() if count else []
    valid = raw.payloads.is_valid().to_pylist() if raw.payloads.null_count else None
    for index in range(count):
        start, size = places[index], places[index + 1] - places[index]
        if valid is not None and not valid[index]:
            rejects.add(index, "tombstone", "the record has no value")
        elif size > max_bytes:
            rejects.add(index, "too_large", f"{size} bytes, more than max_bytes ({max_bytes})")
        else:
            yield index, data.slice(start, size) if size else pa.py_buffer(b"")


def _decoded(payload: pa.Buffer, start: int, read: _Read, messages: list[Message]) -> Iterator[pa.RecordBatch]:
    """The record batches, of the columns to read."""
    if read.native and all(message.native for message in messages):
        for message in messages:
            batch = pa.ipc.read_record_batch(payload.slice(message.start, message.end - message.start), read.schema)
            yield batch if len(read.columns) == batch.num_columns else batch.select(read.columns)
    else:
        options = pa.ipc.IpcReadOptions(included_fields=read.columns, use_threads=False)
        yield from (batch if read.columns else batch.select([]) for batch in pa.ipc.open_stream(payload.slice(start), options=options))


def _place(schema: pa.Schema, declared: Field, optional: bool) -> list[int] | None:
    """Indices of a field's column and of the fields of structs below it; None when it may be missing and is. Raises BadPayloadError."""
    whole = field_in(schema, declared.name)
    if whole is not None:
        return [whole]
    places: list[int] = []
    inside: Any = schema
    for depth, name in enumerate(declared.path):
        if depth and not pa.types.is_struct(inside):
            raise BadPayloadError("type", f"{'.'.join(declared.path[:depth])}: expected a struct, found {inside}")
        place = field_in(inside, name)
        if place is None:
            if optional:
                return None
            near = did_you_mean(name, [part.name for part in inside])
            raise BadPayloadError("type", f"{declared.name}: the stream has no such field, it has {', '.join(part.name for part in schema)[:_SHOWN_CHARACTERS] or 'none'}{near}")
        places.append(place)
        inside = inside.field(place).type
    return places


def _type_at(schema: pa.Schema, path: list[int]) -> pa.DataType:
    kind = schema.field(path[0]).type
    for place in path[1:]:
        kind = kind.field(place).type
    return kind


def _step(column: int, path: list[int]) -> Callable[[pa.RecordBatch], pa.Array]:
    return (lambda batch: pc.struct_field(batch.column(column), path)) if path else (lambda batch: batch.column(column))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:_SHOWN_CHARACTERS]


def _refused(error_type: str, message: str) -> _Read:
    return _Read(pa.schema([]), False, [], [], [], [], BadPayloadError(error_type, message))


def _width(kind: pa.DataType) -> int:
    """Bytes that a value takes at least."""
    return _TEXT_BYTES if pa.types.is_nested(kind) or pa.types.is_string(kind) else (kind.bit_width + 7) // 8


def _in_order(parts: list[tuple[pa.RecordBatch, npt.NDArray[np.int64]]], schema: pa.Schema, rejects: Rejects) -> Parsed:
    """Events of payloads of different schemas, in the order of the payloads."""
    if len(parts) == 1:
        return Parsed(*parts[0], rejects)
    if not parts:
        return Parsed(pa.RecordBatch.from_arrays([pa.array([], kind) for kind in schema.types], schema=schema), np.empty(0, np.int64), rejects)
    rows = np.concatenate([rows for _, rows in parts])
    order = np.argsort(rows, kind="stable")
    return Parsed(pa.concat_batches([events for events, _ in parts]).take(pa.array(order)), rows[order], rejects)
