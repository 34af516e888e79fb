"""CSV records, many payloads at a time, straight into columns. One pass; what is in doubt is left to the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamgauge.transforms.formats.compiled import (
    BOOL,
    DATE,
    DOUBT,
    EVENT,
    I64,
    SOURCES,
    STRING,
    TIME,
    U64,
    Bytes,
    Out,
    Plan,
    begin,
    compiled,
    drop,
    keep,
    kernel,
    pointer,
    put_null,
    raw_out,
    raw_plan,
)
from streamgauge.transforms.formats.scan_number import number, put_number
from streamgauge.transforms.formats.scan_text import character_bytes, day, timestamp

NO_QUOTE = -1
_IGNORED = -1


class Dialect(NamedTuple):
    """How records are written, and where the declared fields stand in them."""

    delimiter: int
    quote: int
    fields: int
    column: npt.NDArray[np.int64]
    """[field of the record] -> column, or -1."""
    nulls: int
    null_ends: npt.NDArray[np.int64]
    """[i]: where the i-th text for null ends in ``null_text``."""
    null_text: Bytes

    @classmethod
    def of(cls, delimiter: str, quote: str, names: Sequence[str], declared: Sequence[str], nulls: Sequence[str]) -> Dialect:
        column = [declared.index(name) if name in declared else _IGNORED for name in names]
        texts = [text.encode() for text in nulls]
        return cls(
            ord(delimiter), ord(quote) if quote else NO_QUOTE, len(names), np.array(column, np.int64), len(texts),
            np.cumsum([len(text) for text in texts], dtype=np.int64), np.array(list(b"".join(texts)), np.uint8),
        )  # fmt: skip


@compiled
def _is_null(dialect: Dialect, buf: Bytes, start: int, stop: int) -> bool:
    begin_ = 0
    for i in range(dialect.nulls):
        end = dialect.null_ends[i]
        if end - begin_ == stop - start:
            p = begin_
            while p < end and dialect.null_text[p] == buf[start + p - begin_]:
                p += 1
            if p == end:
                return True
        begin_ = end
    return False


@compiled
def _field_end(dialect: Dialect, buf: Bytes, p: int, end: int) -> tuple[int, int, bool]:
    """(behind the field's text or at its closing quote, behind the field, whether it holds doubled quotes); -1 when in doubt."""
    quoted = buf[p] == dialect.quote
    doubled = False
    p += quoted
    while True:
        if p >= end:
            return (-1, -1, False) if quoted else (p, p, False)
        c = buf[p]
        if quoted and c == dialect.quote:
            if p + 1 == end or buf[p + 1] == dialect.delimiter:
                return p, p + 1, doubled
            if buf[p + 1] != dialect.quote:
                return -1, -1, False
            doubled = True
            p += 2
        elif not quoted and c == dialect.delimiter:
            return p, p, False
        elif c == 10 or c == 13:
            return -1, -1, False
        elif c < 128:
            p += 1
        else:
            width = character_bytes(buf, p, end)
            if width == 0:
                return -1, -1, False
            p += width


@compiled
def _put_bool(out: Out, at: int, buf: Bytes, p: int, end: int) -> bool:
    """``true`` or ``false`` in any case, 1 or 0."""
    size = end - p
    if size == 1 and (buf[p] == 48 or buf[p] == 49):
        out.values[at] = buf[p] == 49
        return True
    word = U64(0)
    if size != 4 and size != 5:
        return False
    for i in range(p, end):
        word = word << U64(8) | U64(buf[i] | 32)
    out.values[at] = size == 4
    return word == U64(0x74727565) or word == U64(0x66616C7365)


@compiled
def _put_field(dialect: Dialect, plan: Plan, out: Out, c: int, k: int, buf: Bytes, p: int, end: int, doubled: bool) -> bool:
    """Stores a field's text. False: in doubt."""
    if _is_null(dialect, buf, p, end):
        put_null(plan, out, c, k)
        return True
    kind = plan.kind[c]
    slot = plan.slot[c]
    out.valid[c * out.room + k] = 1
    if kind == STRING:
        used = out.used[slot]
        while p < end:
            out.text[used] = buf[p]
            used += 1
            p += 2 if doubled and buf[p] == dialect.quote else 1
        out.used[slot] = used
        return True
    while p < end and (buf[p] == 32 or buf[p] == 9):
        p += 1
    while end > p and (buf[end - 1] == 32 or buf[end - 1] == 9):
        end -= 1
    at = slot * out.room + k
    if kind == BOOL:
        return _put_bool(out, at, buf, p, end)
    if kind in (TIME, DATE) and end - p >= 10 and buf[p + 4] == 45:
        known = False
        if kind == TIME:
            known, out.values[at] = timestamp(buf, p, end)
        elif end - p == 10:
            known, out.values[at] = day(buf, p, end)
        return known
    if kind == DATE:
        return False
    p, negative, mantissa, digits, exponent = number(buf, p, end)
    return p == end and put_number(plan, out, c, k, negative, mantissa, digits, exponent)


@compiled
def _event(dialect: Dialect, plan: Plan, out: Out, k: int, buf: Bytes, p: int, end: int) -> bool:
    """Reads the record from ``p`` to ``end``, which has no line end, into slot ``k``."""
    if p >= end:
        return False
    for i in range(dialect.fields):
        start, stop, behind, doubled = p, p, p, False
        if p < end:
            stop, behind, doubled = _field_end(dialect, buf, p, end)
            if stop < 0:
                return False
            start += buf[p] == dialect.quote
        c = dialect.column[i]
        if c >= 0 and not _put_field(dialect, plan, out, c, k, buf, start, stop, doubled):
            return False
        # Behind each field but the last there is a delimiter.
        if behind == end:
            return i == dialect.fields - 1
        p = behind + 1
    return False


def _compile(sources: str) -> Callable[..., int]:
    @kernel
    def parse_rows(dialect: Dialect, plan: Plan, out: Out, buf: Bytes, offsets: npt.NDArray[np.int32], status: Bytes, added: int) -> int:
        """Reads every payload whose status is EVENT, into the next slot, or makes its status DOUBT. Returns the number of events.

        Every payload ends with ``added`` bytes that are not its own.
        """
        sources  # noqa: B018  part of the key under which the machine code is kept
        plan, out = raw_plan(plan), raw_out(out)
        null_ends, null_text = pointer(dialect.null_ends), pointer(dialect.null_text)
        dialect = Dialect(dialect.delimiter, dialect.quote, dialect.fields, pointer(dialect.column), dialect.nulls, null_ends, null_text)
        buf = pointer(buf)
        begin(plan, out)
        k = 0
        for row in range(len(status)):
            if status[row] != EVENT:
                continue
            start, end = I64(offsets[row]), I64(offsets[row + 1]) - added
            if end > start and buf[end - 1] == 10:
                end -= 1
            if end > start and buf[end - 1] == 13:
                end -= 1
            if _event(dialect, plan, out, k, buf, start, end):
                keep(plan, out, k)
                k += 1
            else:
                status[row] = DOUBT
                drop(plan, out, k)
        return k

    return parse_rows


parse_rows = _compile(SOURCES)
