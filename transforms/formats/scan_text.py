"""Texts and times out of bytes; see ``scan_number.py`` for the rules.

References: RFC 8259 for JSON strings, RFC 3629 for UTF-8, RFC 3339 for times, Hinnant, "chrono-Compatible Low-Level Date
Algorithms", for dates.
"""

from __future__ import annotations

import numpy as np

from streamgauge.transforms.formats.compiled import I64, Bytes, compiled
from streamgauge.transforms.formats.values import MAX_TIMESTAMP, MIN_TIMESTAMP

_SECOND = 1_000_000
_DAY_SECONDS = 86_400
_FRACTION_POWERS = np.array([1_000_000, 100_000, 10_000, 1_000, 100, 10, 1], np.int64)
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_ESCAPED = np.zeros(256, np.uint8)
_ESCAPED[[ord(c) for c in '"\\/bfnrt']] = [ord(c) for c in '"\\/\b\f\n\r\t']


@compiled
def blanks(buf: Bytes, p: int, end: int) -> int:
    """The first position at or after ``p`` that is no JSON white space."""
    while p < end and (buf[p] == 32 or buf[p] == 10 or buf[p] == 13 or buf[p] == 9):
        p += 1
    return p


@compiled
def literal(buf: Bytes, p: int, end: int, c: int) -> int:
    """Behind ``true``, ``false`` or ``null``, of which ``c`` is the first byte; -1 when it is something else."""
    if c == 116:
        return p + 4 if p + 4 <= end and buf[p + 1] == 114 and buf[p + 2] == 117 and buf[p + 3] == 101 else -1
    if c == 110:
        return p + 4 if p + 4 <= end and buf[p + 1] == 117 and buf[p + 2] == 108 and buf[p + 3] == 108 else -1
    if c == 102 and p + 5 <= end and buf[p + 1] == 97 and buf[p + 2] == 108 and buf[p + 3] == 115 and buf[p + 4] == 101:
        return p + 5
    return -1


@compiled
def character_bytes(buf: Bytes, p: int, end: int) -> int:
    """How many bytes the UTF-8 character at ``p`` has, which is not ASCII; 0 when it is none."""
    a = buf[p]
    width = 2 if a < 0xE0 else 3 if a < 0xF0 else 4
    if a < 0xC2 or a > 0xF4 or p + width > end:
        return 0
    b = buf[p + 1]
    low = 0xA0 if a == 0xE0 else 0x90 if a == 0xF0 else 0x80
    high = 0x9F if a == 0xED else 0x8F if a == 0xF4 else 0xBF
    if b < low or b > high:
        return 0
    for i in range(p + 2, p + width):
        if buf[i] & 0xC0 != 0x80:
            return 0
    return width


@compiled
def hexadecimal(buf: Bytes, p: int, end: int) -> int:
    """The value of four hexadecimal digits, or -1."""
    if p + 4 > end:
        return -1
    value = 0
    for i in range(p, p + 4):
        c = I64(buf[i])
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= c <= 102:
            digit = c - 87
        elif 65 <= c <= 70:
            digit = c - 55
        else:
            return -1
        value = value * 16 + digit
    return value


@compiled
def skip_string(buf: Bytes, p: int, end: int) -> int:
    """Checks a JSON string; ``p`` is behind its opening quote."""
    while p < end:
        c = buf[p]
        if c == 34:
            return p + 1
        if c < 32:
            return -1
        if c == 92:
            if p + 1 >= end:
                return -1
            if buf[p + 1] == 117:
                if hexadecimal(buf, p + 2, end) < 0:
                    return -1
                p += 6
            elif _ESCAPED[buf[p + 1]] == 0:
                return -1
            else:
                p += 2
        elif c < 128:
            p += 1
        else:
            width = character_bytes(buf, p, end)
            if width == 0:
                return -1
            p += width
    return -1


@compiled
def copy_string(buf: Bytes, p: int, end: int, text: Bytes, at: int) -> tuple[int, int]:
    """Unescapes a JSON string to ``text[at:]``; ``p`` is behind its opening quote. Returns the positions behind both."""
    while p < end:
        c = buf[p]
        if c == 34:
            return p + 1, at
        if c < 32:
            return -1, at
        if c == 92:
            if p + 1 >= end:
                return -1, at
            plain = _ESCAPED[buf[p + 1]]
            if plain != 0:
                text[at] = plain
                at += 1
                p += 2
            elif buf[p + 1] == 117:
                p, at = _copy_escape(buf, p + 2, end, text, at)
                if p < 0:
                    return -1, at
            else:
                return -1, at
        elif c < 128:
            text[at] = c
            at += 1
            p += 1
        else:
            width = character_bytes(buf, p, end)
            if width == 0:
                return -1, at
            for i in range(width):
                text[at + i] = buf[p + i]
            at += width
            p += width
    return -1, at


@compiled
def _copy_escape(buf: Bytes, p: int, end: int, text: Bytes, at: int) -> tuple[int, int]:
    r"""The character of ``\uXXXX`` as UTF-8; ``p`` is at the digits. Half a surrogate pair is none."""
    code = hexadecimal(buf, p, end)
    p += 4
    if 0xD800 <= code <= 0xDFFF:
        if code >= 0xDC00 or p + 6 > end or buf[p] != 92 or buf[p + 1] != 117:
            return -1, at
        second = hexadecimal(buf, p + 2, end)
        if second < 0xDC00 or second > 0xDFFF:
            return -1, at
        code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00)
        p += 6
    if code < 0:
        return -1, at
    if code < 0x80:
        text[at] = code
        return p, at + 1
    if code < 0x800:
        text[at] = 0xC0 | code >> 6
        text[at + 1] = 0x80 | code & 0x3F
        return p, at + 2
    if code < 0x10000:
        text[at] = 0xE0 | code >> 12
        text[at + 1] = 0x80 | code >> 6 & 0x3F
        text[at + 2] = 0x80 | code & 0x3F
        return p, at + 3
    text[at] = 0xF0 | code >> 18
    text[at + 1] = 0x80 | code >> 12 & 0x3F
    text[at + 2] = 0x80 | code >> 6 & 0x3F
    text[at + 3] = 0x80 | code & 0x3F
    return p, at + 4


@compiled
def _digits(buf: Bytes, p: int, count: int) -> int:
    """The value of so many digits, or a large negative number."""
    value = 0
    for i in range(p, p + count):
        c = I64(buf[i]) - 48
        if c < 0 or c > 9:
            return -1_000_000
        value = value * 10 + c
    return value


@compiled
def day(buf: Bytes, p: int, end: int) -> tuple[bool, int]:
    """``YYYY-MM-DD`` at ``p`` in days since the epoch."""
    if p + 10 > end or buf[p + 4] != 45 or buf[p + 7] != 45:
        return False, 0
    y, m, d = _digits(buf, p, 4), _digits(buf, p + 5, 2), _digits(buf, p + 8, 2)
    if y < 1 or m < 1 or m > 12 or d < 1:
        return False, 0
    leap = y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
    if d > _MONTH_DAYS[m] + (1 if leap and m == 2 else 0):
        return False, 0
    if m <= 2:
        y -= 1
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    return True, era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


@compiled
def timestamp(buf: Bytes, p: int, end: int) -> tuple[bool, int]:
    """The bytes from ``p`` to ``end`` as microseconds since the epoch, when they are an ISO 8601 time."""
    known, days = day(buf, p, end)
    if not known:
        return False, 0
    seconds = days * _DAY_SECONDS
    p += 10
    if p == end:
        return True, seconds * _SECOND
    if p + 6 > end or (buf[p] != 84 and buf[p] != 32 and buf[p] != 116) or buf[p + 3] != 58:
        return False, 0
    hour, minute, second = _digits(buf, p + 1, 2), _digits(buf, p + 4, 2), 0
    p += 6
    micros = 0
    if p + 3 <= end and buf[p] == 58:
        second = _digits(buf, p + 1, 2)
        p += 3
        if p < end and buf[p] == 46:
            p += 1
            start = p
            while p < end and 48 <= buf[p] <= 57:
                if p - start < 6:
                    micros = micros * 10 + I64(buf[p]) - 48
                p += 1
            if p == start or p - start > 9:
                return False, 0
            micros *= _FRACTION_POWERS[min(p - start, 6)]
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return False, 0
    known, offset = _zone(buf, p, end)
    micros += (seconds + hour * 3_600 + minute * 60 + second - offset) * _SECOND
    return known and MIN_TIMESTAMP <= micros <= MAX_TIMESTAMP, micros


@compiled
def _zone(buf: Bytes, p: int, end: int) -> tuple[bool, int]:
    """Nothing, Z, +HH, +HHMM or +HH:MM from ``p`` to ``end``, in seconds east."""
    if p == end or (p + 1 == end and (buf[p] == 90 or buf[p] == 122)):
        return True, 0
    length = end - p
    if (length != 3 and length != 5 and (length != 6 or buf[p + 3] != 58)) or (buf[p] != 43 and buf[p] != 45):
        return False, 0
    hours = _digits(buf, p + 1, 2)
    minutes = 0 if length == 3 else _digits(buf, end - 2, 2)
    if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
        return False, 0
    offset = (hours * 60 + minutes) * 60
    return True, -offset if buf[p] == 45 else offset
