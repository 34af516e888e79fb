"""JSON objects, many payloads at a time, straight into columns. One pass; what is in doubt is left to the definition.

The names of the declared fields are one automaton over bytes (:class:`Keys`), so looking up a key costs one table look-up
a byte, however many fields are declared. Values that are not declared are checked and skipped.
"""

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
from streamgauge.transforms.formats.fields import Field
from streamgauge.transforms.formats.scan_number import number, put_number
from streamgauge.transforms.formats.scan_text import blanks, character_bytes, copy_string, day, literal, skip_string, timestamp

MAX_KERNEL_DEPTH = 60
"""Levels of nesting that fit into the kernel's stack, one word of bits."""

_UNKNOWN = -1


class Keys(NamedTuple):
    """Automaton of the declared names, per object that holds declared fields (object 0 is the payload)."""

    step: npt.NDArray[np.int32]
    """[state * 256 + byte] -> state; state 0 is for names that are not declared."""
    target: npt.NDArray[np.int32]
    """[state] -> column, or number of columns + object, or -1."""
    start: npt.NDArray[np.int32]
    """[object] -> state before the first byte of a name."""

    @classmethod
    def of(cls, fields: Sequence[Field]) -> Keys:
        objects: dict[tuple[str, ...], int] = {(): 0}
        names: list[tuple[int, str, int]] = []
        for column, field in enumerate(fields):
            for depth in range(1, len(field.path)):
                path = field.path[:depth]
                if path not in objects:
                    objects[path] = len(objects)
                    names.append((objects[path[:-1]], path[-1], len(fields) + objects[path]))
            names.append((objects[field.path[:-1]], field.path[-1], column))
        states = 1 + len(objects) + sum(len(name.encode()) for _, name, _ in names)
        step = np.zeros((states, 256), np.int32)
        target = np.full(states, _UNKNOWN, np.int32)
        start = np.arange(1, len(objects) + 1, dtype=np.int32)
        used = 1 + len(objects)
        for holder, name, meaning in names:
            state = int(start[holder])
            for byte in name.encode():
                if step[state, byte] == 0:
                    step[state, byte] = used
                    used += 1
                state = int(step[state, byte])
            target[state] = meaning
        return cls(step.reshape(-1), target, start)

    def scratch(self, columns: int) -> Scratch:
        """For one run over a batch."""
        return Scratch(np.full(columns + len(self.start), -1, np.int64), np.zeros(len(self.start) + 1, np.int64))


class Scratch(NamedTuple):
    """What the kernel remembers within a payload."""

    met: npt.NDArray[np.int64]
    """[column, or number of columns + object]: the last row in which it was met."""
    open: npt.NDArray[np.int64]
    """[depth] -> object that is open there."""


@compiled
def _colon(buf: Bytes, p: int, end: int) -> int:
    """Behind a colon and its blanks."""
    p = blanks(buf, p, end)
    return blanks(buf, p + 1, end) if p < end and buf[p] == 58 else -1


@compiled
def _skip_key(buf: Bytes, p: int, end: int) -> int:
    """Behind ``"name":`` and its blanks."""
    p = blanks(buf, p, end)
    if p >= end or buf[p] != 34:
        return -1
    p = skip_string(buf, p + 1, end)
    return _colon(buf, p, end) if p >= 0 else -1


@compiled
def _skip_value(buf: Bytes, p: int, end: int, room: int) -> int:
    """Checks a value nested at most ``room`` deep."""
    inside = U64(0)  # one bit a level: is it an object?
    one = U64(1)
    depth = 0
    while True:
        p = blanks(buf, p, end)
        if p >= end:
            return -1
        c = buf[p]
        if c == 34:
            p = skip_string(buf, p + 1, end)
        elif c == 123 or c == 91:
            depth += 1
            if depth > room:
                return -1
            inside = inside << one | U64(c == 123)
            p = blanks(buf, p + 1, end)
            if p >= end or buf[p] != c + 2:
                if c == 123:
                    p = _skip_key(buf, p, end)
                    if p < 0:
                        return -1
                continue
            p += 1
            depth -= 1
            inside >>= one
        elif c == 45 or 48 <= c <= 57:
            p = number(buf, p, end)[0]
        else:
            p = literal(buf, p, end, c)
        # Behind a value: close what ends here.
        while True:
            if p < 0 or depth == 0:
                return p
            p = blanks(buf, p, end)
            if p >= end:
                return -1
            c = buf[p]
            p += 1
            if c == 44:
                if inside & one:
                    p = _skip_key(buf, p, end)
                    if p < 0:
                        return -1
                break
            if c != (125 if inside & one else 93):
                return -1
            depth -= 1
            inside >>= one


@compiled
def _put_value(plan: Plan, out: Out, c: int, k: int, buf: Bytes, p: int, end: int) -> int:
    """Stores the value at ``p`` in column ``c``."""
    kind = plan.kind[c]
    first = buf[p]
    if first == 110:
        put_null(plan, out, c, k)
        return literal(buf, p, end, first)
    slot = plan.slot[c]
    at = slot * out.room + k
    out.valid[c * out.room + k] = 1
    if first == 34:
        if kind == STRING:
            p, used = copy_string(buf, p + 1, end, out.text, out.used[slot])
            out.used[slot] = used
            return p
        if kind != TIME and kind != DATE:
            return -1
        start = p + 1
        p = start
        while p < end and buf[p] != 34:  # neither escapes nor anything but ASCII is part of a time
            p += 1
        known = False
        if kind == TIME:
            known, out.values[at] = timestamp(buf, start, p)
        elif p == start + 10:
            known, out.values[at] = day(buf, start, p)
        return p + 1 if known and p < end else -1
    if first == 45 or 48 <= first <= 57:
        if kind in (STRING, BOOL, DATE):
            return -1
        p, negative, mantissa, digits, exponent = number(buf, p, end)
        return p if p >= 0 and put_number(plan, out, c, k, negative, mantissa, digits, exponent) else -1
    if kind != BOOL:
        return -1
    out.values[at] = first == 116
    return literal(buf, p, end, first)


@compiled
def _event(keys: Keys, plan: Plan, out: Out, scratch: Scratch, row: int, k: int, buf: Bytes, p: int, end: int) -> bool:
    """Reads the payload of a row, from ``p`` to ``end``, into slot ``k``."""
    columns = plan.columns
    p = blanks(buf, p, end)
    if p >= end or buf[p] != 123:
        return False
    p = blanks(buf, p + 1, end)
    depth = 0
    scratch.open[0] = 0
    behind_value = False
    while True:
        # In an object, behind its brace or behind a value.
        if p >= end:
            return False
        if buf[p] == 125:
            p = blanks(buf, p + 1, end)
            behind_value = True
            depth -= 1
            if depth < 0:
                return p == end
            continue
        if behind_value:
            if buf[p] != 44:
                return False
            p = blanks(buf, p + 1, end)
        if p >= end or buf[p] != 34:
            return False
        p += 1
        state = keys.start[scratch.open[depth]]
        while True:
            if p >= end:
                return False
            c = buf[p]
            if c == 34:
                break
            if c < 32 or c == 92:  # an escape may spell a declared name
                return False
            if c >= 128:
                width = character_bytes(buf, p, end)
                if width == 0:
                    return False
                for i in range(p, p + width - 1):
                    state = keys.step[state * 256 + buf[i]]
                p += width - 1
                c = buf[p]
            state = keys.step[state * 256 + c]
            p += 1
        p = _colon(buf, p + 1, end)
        if p < 0 or p >= end:
            return False
        meaning = keys.target[state]
        behind_value = True
        if meaning < 0:
            p = _skip_value(buf, p, end, MAX_KERNEL_DEPTH - depth)
        else:
            if scratch.met[meaning] == row:
                return False
            scratch.met[meaning] = row
            if meaning < columns:
                p = _put_value(plan, out, meaning, k, buf, p, end)
            elif buf[p] == 123:
                depth += 1
                scratch.open[depth] = meaning - columns
                behind_value = False
                p += 1
            elif buf[p] == 110:
                p = literal(buf, p, end, 110)
            else:
                return False
        if p < 0:
            return False
        p = blanks(buf, p, end)


def _compile(sources: str) -> Callable[..., int]:
    @kernel
    def parse_rows(keys: Keys, plan: Plan, out: Out, scratch: Scratch, buf: Bytes, offsets: npt.NDArray[np.int32], status: Bytes) -> int:
        """Reads every payload whose status is EVENT, into the next slot, or makes its status DOUBT. Returns the number of events."""
        sources  # noqa: B018  part of the key under which the machine code is kept
        plan, out = raw_plan(plan), raw_out(out)
        keys = Keys(pointer(keys.step), pointer(keys.target), pointer(keys.start))
        scratch = Scratch(pointer(scratch.met), pointer(scratch.open))
        buf = pointer(buf)
        begin(plan, out)
        k = 0
        for row in range(len(status)):
            if status[row] != EVENT:
                continue
            if _event(keys, plan, out, scratch, row, k, buf, I64(offsets[row]), I64(offsets[row + 1])):
                for c in range(plan.columns):
                    if scratch.met[c] != row:
                        put_null(plan, out, c, k)
                keep(plan, out, k)
                k += 1
            else:
                status[row] = DOUBT
                drop(plan, out, k)
        return k

    return parse_rows


parse_rows = _compile(SOURCES)
