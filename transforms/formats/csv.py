"""CSV: one record a payload."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field as Described
from pydantic import model_validator

from streamgauge.transforms.config import Config, did_you_mean, user_error
from streamgauge.transforms.formats.base import Parsed, Rejects
from streamgauge.transforms.formats.columns import Columns
from streamgauge.transforms.formats.compiled import EVENT, SKIP
from streamgauge.transforms.formats.csv_kernel import Dialect, parse_rows
from streamgauge.transforms.formats.fields import Field, FieldSchema, Kind, fields_of
from streamgauge.transforms.formats.payloads import MAX_BYTES, BadPayloadError, decode, finish, prepare, read_row
from streamgauge.transforms.formats.values import Value, from_text
from streamgauge.transforms.sources.base import RawBatch

_BYTE_ORDER_MARK = "\ufeff"
_MARK = r"[\x01-\x09\x0b\x0c\x0e-\x7f]"


def split_record(text: str, delimiter: str, quote: str) -> list[str]:
    """The fields of a record (RFC 4180); a quote within a field that does not begin with one is text. Raises BadPayloadError.

    >>> split_record('1,"a ""b"", c",', ",", '"')
    ['1', 'a "b", c', '']
    """
    fields: list[str] = []
    p = 0
    while True:
        if quote and text.startswith(quote, p):
            parts, p = [], p + 1
            while True:
                end = text.find(quote, p)
                if end < 0:
                    raise BadPayloadError("malformed", f"field {len(fields) + 1} has no closing quote")
                parts.append(text[p:end])
                p = end + 1
                if not text.startswith(quote, p):
                    break
                p += 1
            field = quote.join(parts)
            if p < len(text) and text[p] != delimiter:
                raise BadPayloadError("malformed", f"field {len(fields) + 1} goes on behind its closing quote")
        else:
            end = text.find(delimiter, p)
            field, p = (text[p:], len(text)) if end < 0 else (text[p:end], end)
            if "\n" in field or "\r" in field:
                raise BadPayloadError("malformed", f"field {len(fields) + 1} has a line end but no quotes")
        fields.append(field)
        if p == len(text):
            return fields
        p += 1


class Csv:
    r"""One CSV record (RFC 4180, UTF-8) a payload; the declared fields become columns, others are ignored.

    A line of a file is a record: line ends within quotes do not work there. A line end at the payload's end (``\n``, ``\r\n``) does not
    count. An empty field is null, quoted or not, as is any other text of ``nulls``. What is not as declared is a reject:

    - ``tombstone``: the record has no value. ``too_large``: longer than ``max_bytes``.
    - ``malformed``: another number of fields, quotes that do not match, not UTF-8, an empty line.
    - ``type``: ``dep_delay: expected double, found 'abc'``; also numbers out of range.

    Numbers are written as in JSON, or with a plus sign, leading zeros, or no digit on one side of the point; ``nan`` and ``inf``
    are rejects. Booleans are true, false (in any case), 1, 0. Times are as for JSON; a number is one only where the type has a unit
    (``timestamp[ms]``). Blanks around anything but a string do not count.

    Picklable. ``parse`` releases the GIL.
    """

    class Options(Config):
        """One CSV record a payload."""

        fields: FieldSchema = Described(alias="schema", description="The fields to read, {name: type}, with types as Arrow names them.")
        columns: list[str] | None = Described(
            default=None, description="The names of all fields of a record, in their order. Default: those of schema, in its order."
        )
        header: bool = Described(
            default=False,
            description="The record at position 0 of a split (the first line of a file) has the names: it is checked and skipped.",
        )
        delimiter: str = Described(default=",", pattern=rf"^{_MARK}$", description="The ASCII character between fields.")
        quote: str = Described(default='"', pattern=rf"^{_MARK}?$", description="The ASCII character around fields; '' for none.")
        nulls: list[str] = Described(default=[""], description="What is written for a missing value.")
        max_bytes: int = Described(default=MAX_BYTES, ge=1, description="Longer payloads are rejected as too_large. Bytes.")

        @model_validator(mode="after")
        def _check(self) -> Csv.Options:
            if self.delimiter == self.quote:
                raise user_error(f"delimiter and quote are both {self.quote!r}")
            if self.quote and any(self.quote in text for text in self.nulls):
                raise user_error(f"a text of nulls has the quote {self.quote} in it")
            for field in fields_of(self.fields):
                if field.kind is Kind.NESTED:
                    raise user_error(f"'{field.name}' is a {field.type_name}, which CSV has not; read a string, and make a list of it with MapEvents")
            columns = self.names()
            for name in columns:
                if columns.count(name) > 1:
                    raise user_error(f"columns has '{name}' more than once")
            for name in self.fields:
                if name not in columns:
                    raise user_error(f"columns lacks '{name}', a field of schema{did_you_mean(name, columns)}")
            return self

        def names(self) -> list[str]:
            """The fields of a record."""
            return list(self.fields) if self.columns is None else self.columns

    def __init__(self, options: Options) -> None:
        self._options = options
        self._names = options.names()
        self._fields = fields_of(options.fields)
        self._places = [self._names.index(field.name) for field in self._fields]
        self._dialect = Dialect.of(options.delimiter, options.quote, self._names, list(options.fields), options.nulls)
        self._columns = Columns(self._fields)
        self.schema: pa.Schema = self._columns.schema

    def parse(self, raw: RawBatch) -> Parsed:
        """The events of a batch and the rejects, see :class:`Csv`. A header is neither, unless its names are wrong."""
        options, rejects = self._options, Rejects()
        buf, offsets, status = prepare(raw, options.max_bytes)
        for row in np.flatnonzero((raw.positions == 0) & (status == EVENT)).tolist() if options.header else ():  # of several splits, perhaps
            status[row] = SKIP
            if problem := self._header_problem(raw.payloads[row].as_py()):
                rejects.add(row, "malformed", problem)
        out = self._columns.room(len(raw), int(offsets[-1] - offsets[0]))
        count = parse_rows(self._dialect, self._columns.plan, out, buf, offsets, status, int(raw.newline_terminated))
        return finish(raw, self._columns, self._columns.batch(out, count), status, self.parse_one, options.max_bytes, rejects)

    def parse_one(self, payload: bytes) -> tuple[Value, ...]:
        """The values of one payload: the definition of this format, which the kernel abides by. Raises BadPayloadError."""
        found = self._split(decode(payload))
        if len(found) != len(self._names):
            raise BadPayloadError("malformed", f"expected {len(self._names)} fields, found {len(found)}")
        nulls = self._options.nulls

        def read(field: Field, column: int) -> Value:
            text = found[self._places[column]]
            return None if text in nulls else from_text(field, text)

        return read_row(self._fields, read)

    def _split(self, text: str) -> list[str]:
        record = text.removesuffix("\n").removesuffix("\r")
        if not record:
            raise BadPayloadError("malformed", "an empty line")
        return split_record(record, self._options.delimiter, self._options.quote)

    def _header_problem(self, payload: bytes) -> str | None:
        try:
            found = [name.strip() for name in self._split(decode(payload).removeprefix(_BYTE_ORDER_MARK))]
        except BadPayloadError as error:
            return f"no header: {error}"
        if found == self._names:
            return None
        return f"the header has the columns {', '.join(found)}; expected {', '.join(self._names)}: list those of the file under columns"
