from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamgauge.transforms.formats.json import MAX_DEPTH, Json
from tests.examples import examples
from tests.transforms.formats.hostile import HALVES, NUMBERS, TEXTS, TIMES, batch, check_against_definition, comparable, mutated

SCHEMA = {
    "text": "string",
    "flag": "bool",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "u64": "uint64",
    "real": "double",
    "small": "float",
    "day": "date",
    "time": "timestamp",
    "ms": "timestamp[ms]",
    "ns": "timestamp[ns]",
    "s": "timestamp[s]",
    "user.id": "int64",
    "user.name": "string",
    "user.at.x": "double",
    "émile": "string",
}


def make(schema: dict[str, str], **options: Any) -> Json:
    return Json(Json.Options(schema=schema, **options))


ALL = make(SCHEMA)

NUMBERS_HINT = "declare timestamp[s], timestamp[ms], timestamp[us] or timestamp[ns] to read numbers"


def one(schema: dict[str, str], payload: bytes | str) -> Any:
    """The event, or (error type, message)."""
    parsed = make(schema).parse(batch([payload.encode() if isinstance(payload, str) else payload]))
    return parsed.events.to_pylist()[0] if parsed.events.num_rows else (parsed.rejects.error_types[0], parsed.rejects.messages[0])


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("double", "1", 1.0),
        ("double", "123456789012345678901234567890", 123456789012345678901234567890.0),
        ("double", "-0", -0.0),
        ("double", "1e999", ("type", "x: 1e999 is out of the range of double")),
        ("double", "1e-999", 0.0),
        ("double", '"abc"', ("type", "x: expected double, found string 'abc'")),
        ("double", "true", ("type", "x: expected double, found true")),
        ("double", "NaN", ("malformed", "not JSON: NaN is no value")),
        ("double", "-Infinity", ("malformed", "not JSON: -Infinity is no value")),
        ("double", "[1]", ("type", "x: expected double, found array")),
        ("double", "null", None),
        ("int64", "3.0", 3),
        ("int64", "1.5", ("type", "x: expected int64, found number 1.5")),
        ("int64", "1e3", 1000),
        ("int64", "9223372036854775807", 2**63 - 1),
        ("int64", "-9223372036854775808", -(2**63)),
        ("uint64", "18446744073709551615", 2**64 - 1),
        ("int64", "9223372036854775808", ("type", f"x: 9223372036854775808 is out of the range of int64 ({-(2**63)} to {2**63 - 1})")),
        ("int64", "9007199254740993.0", 9007199254740993),
        ("int8", "128", ("type", "x: 128 is out of the range of int8 (-128 to 127)")),
        ("int64", "1e999999999", ("type", f"x: 1e999999999 is out of the range of int64 ({-(2**63)} to {2**63 - 1})")),
        ("int64", "-0", 0),
        ("int64", '"7"', ("type", "x: expected int64, found string '7'")),
        ("int64", "true", ("type", "x: expected int64, found true")),
        ("string", "12", ("type", "x: expected string, found number 12")),
        ("string", "{}", ("type", "x: expected string, found object")),
        ("string", '"\\ud83d\\ude00\\u00e9\\n"', "😀é\n"),
        ("string", '"a\nb"', ("malformed", "not JSON: Invalid control character at at character 7")),
        ("string", '"\\ud800"', ("type", "x: expected string, found half of a surrogate pair in '\\ud800'")),
        ("bool", "1", ("type", "x: expected bool, found number 1")),
        ("bool", "false", False),
        ("float", "3.5e38", ("type", "x: 3.5e38 is out of the range of float")),
        ("date", '"2013-02-29"', ("type", "x: expected date, found '2013-02-29': there is no such day")),
        ("timestamp", "5", ("type", f"x: expected timestamp, found number 5 - {NUMBERS_HINT}")),
        ("timestamp", '"noon"', ("type", "x: expected timestamp, found 'noon'; write it as 2013-01-31T12:00:00Z")),
        ("timestamp[s]", "253402300800", ("type", "x: 253402300800 is out of the range of timestamp[s]: before the year 1 or after 9999")),
    ],
)
def test_a_value(type_: str, value: str, expected: Any) -> None:
    found = one({"x": type_}, f'{{"x":{value}}}')
    assert repr(found) == repr(expected if isinstance(expected, tuple) else {"x": expected})


@pytest.mark.parametrize(
    ("type_", "value", "microseconds"),
    [
        ("timestamp", '"2013-01-01T05:00:00Z"', 1_357_016_400_000_000),
        ("timestamp", '"2013-01-01 07:00:00+02:00"', 1_357_016_400_000_000),
        ("timestamp", '"2013-01-01T05:00:00.1234569"', 1_357_016_400_123_456),
        ("timestamp", '"1969-12-31T23:59:59.9999999Z"', -1),
        ("timestamp", '"2013-01-01"', 1_356_998_400_000_000),
        ("timestamp[s]", "1.5", 1_500_000),
        ("timestamp[ms]", "1767225600123", 1_767_225_600_123_000),
        ("timestamp[us]", "-0.1", -1),
        ("timestamp[ns]", "-1", -1),
        ("timestamp[ns]", "1999", 1),
        ("timestamp[ns]", "-1e-999999999", -1),
        ("timestamp[ms]", '"2013-01-01T05:00:00Z"', 1_357_016_400_000_000),
    ],
)
def test_a_time(type_: str, value: str, microseconds: int) -> None:
    assert make({"x": type_}).parse(batch([f'{{"x":{value}}}'.encode()])).events["x"].cast("int64").to_pylist() == [microseconds]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", ("malformed", "empty")),
        (b" \n", ("malformed", "empty")),
        (b"[1]", ("malformed", "expected an object, found array")),
        (b"5", ("malformed", "expected an object, found number 5")),
        (b"null", ("malformed", "expected an object, found null")),
        (b'{"x":1} x', ("malformed", "not JSON: Extra data at character 8")),
        (b'{"x":1}{"x":1}', ("malformed", "not JSON: Extra data at character 7")),
        (b'{"y":"\xff","x":1}', ("malformed", "not UTF-8: byte 0xff at 6")),
        (b'\xef\xbb\xbf{"x":1}', ("malformed", "not JSON: Expecting value at character 0")),
        (b'{"y":tru,"x":1}', ("malformed", "not JSON: Expecting value at character 5")),
        (b'{"y":01,"x":1}', ("malformed", "not JSON: Expecting ',' delimiter at character 6")),
        (b'{"x":"a","x":1}', {"x": 1, "o.y": None}),
        (b'{"\\u0078":1}', {"x": 1, "o.y": None}),
        (b'{"z":"\\ud800","x":1}', {"x": 1, "o.y": None}),
        (b"{}", {"x": None, "o.y": None}),
        (b'{"o":null}', {"x": None, "o.y": None}),
        (b'{"o":{"y":"b","y":"c"}}', {"x": None, "o.y": "c"}),
        (b'{"o":{"y":"b"},"o":{}}', {"x": None, "o.y": None}),
        (b'{"o":5}', ("type", "o: expected an object, found number 5")),
        (b'{"o.y":"b"}', {"x": None, "o.y": None}),
        (b' { "x" : 1 , "o" : { "y" : "b" } } \r\n', {"x": 1, "o.y": "b"}),
    ],
)
def test_a_payload(payload: bytes, expected: Any) -> None:
    assert one({"x": "int64", "o.y": "string"}, payload) == expected


def test_a_record_without_a_value_and_one_that_is_too_long() -> None:
    parsed = make({"x": "int64"}, max_bytes=10).parse(batch([None, b'{"x":1234}', b'{"x":12345}'], newline=True))
    assert parsed.events.to_pylist() == [{"x": 1234}]
    assert parsed.rows is not None
    assert parsed.rows.tolist() == [1]
    assert list(zip(parsed.rejects.indices, parsed.rejects.error_types, parsed.rejects.messages, strict=True)) == [
        (0, "tombstone", "the record has no value"),
        (2, "too_large", "11 bytes, more than max_bytes (10)"),
    ]


@pytest.mark.parametrize("field", ["ignored", "text", "i64", "user"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_a_reject_and_never_the_end_of_the_process(field: str, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    depths = [1, 59, 60, 61, MAX_DEPTH - 1, MAX_DEPTH, 5_000, 100_000]
    payloads = [b'{"%s":' % field.encode() + opening * depth + b"1" + closing * depth + b"}" for depth in depths]
    check_against_definition(ALL, batch(payloads), payloads)
    malformed = [
        i
        for i, type_ in zip(*(lambda r: (r.indices, r.error_types))(ALL.parse(batch(payloads)).rejects), strict=True)
        if type_ == "malformed"
    ]
    assert malformed == [5, 6, 7]


def test_very_long_texts_and_numbers() -> None:
    payloads = [
        b'{"text":"%s"}' % (b"x" * 10_000_000),
        b'{"ignored":"%s","i64":1}' % (b"\\n" * 5_000_000),
        b'{"real":%s}' % (b"1" * 10_000_000),
        b'{"ignored":%s}' % (b"1" * 10_000_000),
        b'{"%s":1}' % (b"k" * 10_000_000),
        b'{"text":"%s' % (b"[" * 10_000_000),
        b'{"text":"ok"}',
    ]
    parsed = ALL.parse(batch(payloads))
    assert parsed.rows is not None
    assert parsed.rows.tolist() == [0, 1, 3, 4, 6]
    assert parsed.rejects.messages[0] == "real: expected double, found a number of 10000000 characters"
    assert parsed.events["text"].to_pylist()[::4] == ["x" * 10_000_000, "ok"]


TYPICAL = [
    b'{"text": "u1", "flag": true, "i8": -8, "u64": 1, "real": 12.345, "small": 0.1, "day": "2013-01-31", "ms": 1767225600123}',
    '{"text":"\\u00e9 é 😀 \\ud83d\\ude00 \\"q\\"","extra":[1,{"a":[null,true,-1.5e-3]}],"émile":"x"}'.encode(),
    b'{"user":{"id":7,"more":{},"name":null,"at":{"x":0.8444218515250481}},"time":"2013-01-01T05:00:00.5+02:00"}',
    b'{"i64":9007199254740993,"i32":3.0,"real":1.7976931348623157e308,"ns":1767225600123456789,"s":1767225600.25,"flag":null}',
    b"{}",
]


def test_good_payloads_never_need_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [ALL.parse_one(payload) for payload in TYPICAL]
    monkeypatch.setattr(Json, "parse_one", lambda *_: pytest.fail("the kernel was in doubt"))
    events = ALL.parse(batch(TYPICAL)).events
    assert events == ALL._columns.of_rows(expected)


def test_an_empty_batch() -> None:
    parsed = ALL.parse(batch([]))
    assert (parsed.events.num_rows, parsed.events.schema, len(parsed.rejects)) == (0, ALL.schema, 0)


def test_a_copy_made_by_pickle_reads_the_same() -> None:
    assert pickle.loads(pickle.dumps(ALL)).parse(batch(TYPICAL)).events == ALL.parse(batch(TYPICAL)).events


def test_equal_events_are_equal_bytes() -> None:
    first, second = (ALL.parse(batch(TYPICAL * 3)).events.serialize().to_pybytes() for _ in range(2))
    assert first == second


def test_many_fields_with_names_that_begin_alike() -> None:
    names = ["a" * n for n in range(1, 60)] + [f"field{n}" for n in range(300)]
    event = {name: n for n, name in enumerate(names)}
    payload = json.dumps({**event, "a" * 60: 1, "field": 2, "field3000": 3}).encode()
    assert make(dict.fromkeys(names, "int64")).parse(batch([payload])).events.to_pylist() == [event]


# ---- the kernel against the definition, on hostile payloads

number = st.one_of(
    st.sampled_from(NUMBERS),
    st.integers().map(str),
    st.floats().map(repr),
    st.from_regex(r"-?[0-9]{1,22}(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
string = st.one_of(
    st.sampled_from(TIMES), st.sampled_from(TEXTS + HALVES), st.text(max_size=8), st.datetimes().map(str), st.sampled_from(NUMBERS)
)


@st.composite
def written_string(draw: st.DrawFn) -> str:
    value = draw(string)
    ascii_ = draw(st.booleans()) or any("\ud800" <= c <= "\udfff" for c in value)
    return json.dumps(value, ensure_ascii=ascii_)


scalar = st.one_of(number, written_string(), st.sampled_from(["null", "true", "false", "nul", "True", "{}", "[]", '"\\u00zz"', '"\\x"']))
value = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from(["id", "name", "at", "x", "é"]), inner), max_size=3).map(
            lambda items: "{" + ",".join(f'"{k}":{v}' for k, v in items) + "}"
        ),
    ),
    max_leaves=5,
)
key = st.one_of(
    st.sampled_from([*{name.split(".")[0] for name in SCHEMA}]),
    st.sampled_from(["other", "tex", "texts", "", "user.id", "\\u0074ext", "é"]),
)


@st.composite
def payload(draw: st.DrawFn) -> bytes:
    blank = draw(st.sampled_from(["", " ", "\n\t "]))
    fields = draw(st.lists(st.tuples(key, value), max_size=4))
    text = "{" + (blank + "," + blank).join(f'"{k}"{blank}:{blank}{v}' for k, v in fields) + "}" + blank
    return draw(mutated(text.encode("utf-8", "surrogatepass")))


payloads = st.lists(st.one_of(payload(), payload(), st.binary(max_size=20), st.none(), st.sampled_from(TYPICAL)), max_size=6)


@settings(max_examples=examples(600), deadline=None)
@given(payloads, st.booleans(), st.integers(0, 2))
@example([b'{"text":"a\xed\xa0\x80"}', b'{"\xed\xa0\x80":1}', b'{"text":"\xf4\x90\x80\x80"}', b'{"text":"\xc3'], False, 1)
def test_kernel_and_definition_agree(found: list[bytes | None], newline: bool, offset: int) -> None:
    check_against_definition(ALL, batch(found, newline, offset), found)


@pytest.mark.parametrize("name", SCHEMA)
def test_kernel_and_definition_agree_on_every_edge(name: str) -> None:
    values = [*NUMBERS, *(json.dumps(t) for t in (*TIMES, *TEXTS, *HALVES, *NUMBERS)), "null", "true", "false", "{}", "[]", "", '"', '"\\']
    path = name.split(".")
    written = ["".join(f'{{"{part}":' for part in path) + v + "}" * len(path) for v in values]
    found = [text.encode() for text in written]
    check_against_definition(ALL, batch(found), found)


@settings(max_examples=examples(300), deadline=None)
@given(payload())
def test_what_is_malformed_is_what_another_parser_refuses(found: bytes) -> None:
    try:
        malformed = not isinstance(orjson.loads(found), dict)
    except orjson.JSONDecodeError:
        malformed = True
    types = ALL.parse(batch([found])).rejects.error_types
    # orjson also refuses numbers that no double holds, and halves of surrogate pairs anywhere.
    if b"\\u" not in found and b"e" not in found.lower().replace(b"true", b"").replace(b"false", b"") and len(found) < 300:
        assert (types == ["malformed"]) == malformed


written_double = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,29})(\.[0-9]{1,30})?(e-?[0-9]{1,3})?", fullmatch=True),
).filter(lambda text: abs(float(text)) <= sys.float_info.max)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(written_double, min_size=1, max_size=200))
@example(["-0.0", "-0", "0e5", "-0.00e-3"])
def test_doubles_are_the_nearest(texts: list[str]) -> None:
    found = make({"x": "double"}).parse(batch([b'{"x":%s}' % text.encode() for text in texts])).events["x"].to_pylist()
    assert comparable(found) == comparable([float(text) for text in texts])
