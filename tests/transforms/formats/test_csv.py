from __future__ import annotations

import csv
import io
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.transforms.formats.csv import Csv, split_record
from streamgauge.transforms.formats.payloads import BadPayloadError
from tests.examples import examples
from tests.transforms.formats.hostile import NUMBERS, TEXTS, TIMES, batch, check_against_definition, mutated

SCHEMA = {
    "text": "string",
    "flag": "bool",
    "i8": "int8",
    "i64": "int64",
    "u64": "uint64",
    "real": "double",
    "small": "float",
    "day": "date",
    "time": "timestamp",
    "ms": "timestamp[ms]",
    "more": "string",
}
COLUMNS = ["other", *SCHEMA, "last"]


def make(schema: dict[str, str], **options: Any) -> Csv:
    return Csv(Csv.Options(schema=schema, **options))


ALL = make(SCHEMA, columns=COLUMNS, nulls=["", "NA"])


def rejects(format_: Csv, *payloads: bytes | None, position: int = 0) -> list[tuple[int, str, str]]:
    found = format_.parse(batch(payloads, position=position)).rejects
    return list(zip(found.indices, found.error_types, found.messages, strict=True))


def test_a_file() -> None:
    lines = [b"origin,dep_delay,time_hour", b"JFK,-3,2013-01-01T05:00:00Z", b'"LGA, ""NY""",,2013-01-01 06:00:00', b"EWR,1.5,\r"]
    format_ = make(
        {"time_hour": "timestamp", "dep_delay": "double", "origin": "string"}, columns=["origin", "dep_delay", "time_hour"], header=True
    )
    for newline in (False, True):
        parsed = format_.parse(batch(lines, newline))
        assert parsed.events.schema.names == ["time_hour", "dep_delay", "origin"]
        assert parsed.events["origin"].to_pylist() == ["JFK", 'LGA, "NY"', "EWR"]
        assert parsed.events["dep_delay"].to_pylist() == [-3.0, None, 1.5]
        assert parsed.events["time_hour"].cast("int64").to_pylist() == [1_357_016_400_000_000, 1_357_020_000_000_000, None]
        assert parsed.rows is not None
        assert (parsed.rows.tolist(), len(parsed.rejects)) == ([1, 2, 3], 0)


def test_a_header_counts_only_at_position_0_and_only_when_it_is_declared() -> None:
    lines = [b"a", b"1"]
    assert make({"a": "string"}).parse(batch(lines)).events["a"].to_pylist() == ["a", "1"]
    with_header = make({"a": "string"}, header=True)
    assert with_header.parse(batch(lines)).events["a"].to_pylist() == ["1"]
    assert with_header.parse(batch(lines, position=2)).events["a"].to_pylist() == ["a", "1"]
    assert with_header.parse(batch(["\ufeff a\r\n".encode()])).events.num_rows == 0


def test_a_header_with_other_names_is_reported() -> None:
    format_ = make({"a": "int8", "b": "int8"}, header=True)
    message = "the header has the columns b, a; expected a, b: list those of the file under columns"
    assert rejects(format_, b"b,a", b"x,1") == [(0, "malformed", message), (1, "type", "a: expected int8, found 'x'")]
    assert rejects(format_, b'"b') == [(0, "malformed", "no header: field 1 has no closing quote")]
    assert rejects(format_, None) == [(0, "tombstone", "the record has no value")]


def test_rejects() -> None:
    format_ = make({"a": "int8", "b": "string"}, max_bytes=20)
    assert rejects(
        format_,
        b"1,x",
        b"1",
        b"1,2,3",
        b"",
        b"x,y",
        b"300,y",
        None,
        b"1,\xff",
        b'1,"x',
        b'1,"x"y',
        b"1," + b"x" * 20,
        b"1,x\ny",
        b'1,"x\ny"',
    ) == [
        (1, "malformed", "expected 2 fields, found 1"),
        (2, "malformed", "expected 2 fields, found 3"),
        (3, "malformed", "an empty line"),
        (4, "type", "a: expected int8, found 'x'"),
        (5, "type", "a: 300 is out of the range of int8 (-128 to 127)"),
        (6, "tombstone", "the record has no value"),
        (7, "malformed", "not UTF-8: byte 0xff at 2"),
        (8, "malformed", "field 2 has no closing quote"),
        (9, "malformed", "field 2 goes on behind its closing quote"),
        (10, "too_large", "22 bytes, more than max_bytes (20)"),
        (11, "malformed", "field 2 has a line end but no quotes"),
    ]


def test_other_dialects() -> None:
    assert make({"a": "string", "b": "string"}, delimiter="\t", quote="").parse(batch([b'"x\t"'])).events.to_pylist() == [
        {"a": '"x', "b": '"'}
    ]
    assert make({"a": "string", "b": "int8"}, delimiter=";", quote="'").parse(batch([b"'x;''';1"])).events.to_pylist() == [
        {"a": "x;'", "b": 1}
    ]
    nulls = make({"a": "string", "b": "int8"}, nulls=["NA", "-"]).parse(batch([b"NA,-", b"NAN,5", b",1"]))
    assert nulls.events.to_pylist() == [{"a": None, "b": None}, {"a": "NAN", "b": 5}, {"a": "", "b": 1}]


TYPICAL = [
    b'x,"a, ""b""",True,-8,9007199254740993,0,12.345,.1e1,2013-01-31,2013-01-01 05:00:00.5+02:00,1767225600123,NA,'.replace(
        b".1e1", b"0.1"
    ),
    'x,é 😀,,NA, 5 ,\t7,-1.7976931348623157e308,1e3,,2013-01-01T05:00Z,2013-01-01T05:00:00,"","y"'.encode(),
    b"," * 12,
]


def test_good_payloads_never_need_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [ALL.parse_one(payload) for payload in TYPICAL]
    monkeypatch.setattr(Csv, "parse_one", lambda *_: pytest.fail("the kernel was in doubt"))
    for newline in (False, True):
        assert ALL.parse(batch(TYPICAL, newline)).events == ALL._columns.of_rows(expected)


def test_an_empty_batch_and_a_copy_made_by_pickle() -> None:
    copy = pickle.loads(pickle.dumps(ALL))
    assert copy.parse(batch([])).events.num_rows == 0
    assert copy.parse(batch(TYPICAL)).events == ALL.parse(batch(TYPICAL)).events


def test_very_long_fields() -> None:
    found = [
        b"x," + b"y" * 10_000_000 + b"," * 11,
        b'"' + b'""' * 1_000_000 + b'"' + b"," * 12,
        b"," * 1_000_000,
        b",,,,%s,,,,,,,," % (b"1" * 10_000_000),
    ]
    check_against_definition(ALL, batch(found), found)


plain = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TIMES),
    st.sampled_from(TEXTS),
    st.text(max_size=6),
    st.sampled_from(["true", "FALSE", "NA", "", "1", "0"]),
)


@st.composite
def written(draw: st.DrawFn) -> str:
    text = draw(plain)
    return '"' + text.replace('"', '""') + '"' if draw(st.booleans()) else text


@st.composite
def payload(draw: st.DrawFn) -> bytes:
    count = draw(st.sampled_from([len(COLUMNS)] * 4 + [0, 1, len(COLUMNS) - 1, len(COLUMNS) + 1]))
    fields = draw(st.lists(st.one_of(st.just(""), written()), min_size=count, max_size=count))
    text = ",".join(fields) + draw(st.sampled_from(["", "", "\n", "\r\n", "\r"]))
    return draw(mutated(text.encode("utf-8", "surrogatepass")))


@settings(max_examples=examples(600), deadline=None)
@given(
    st.lists(st.one_of(payload(), payload(), st.binary(max_size=20), st.none(), st.sampled_from(TYPICAL)), max_size=6),
    st.booleans(),
    st.integers(0, 2),
)
def test_kernel_and_definition_agree(found: list[bytes | None], newline: bool, offset: int) -> None:
    check_against_definition(ALL, batch(found, newline, offset), found)


@pytest.mark.parametrize("name", SCHEMA)
def test_kernel_and_definition_agree_on_every_edge(name: str) -> None:
    texts = [
        *NUMBERS,
        *TIMES,
        *TEXTS,
        "true",
        "False",
        "TRUE",
        "1",
        "0",
        "NA",
        " 1",
        "2\t",
        " ",
        '"1"',
        '" 1 "',
        '"1""',
        '""""',
        "-",
        "+",
    ]
    place = COLUMNS.index(name)
    found = [("," * place + text + "," * (len(COLUMNS) - 1 - place)).encode() for text in texts]
    check_against_definition(ALL, batch(found), found)


@settings(max_examples=examples(500), deadline=None)
@given(st.text(alphabet='ab",\n ', max_size=12).filter(lambda text: text.strip("\n")))
def test_records_are_split_as_pythons_csv_splits_them(text: str) -> None:
    try:
        expected = next(csv.reader(io.StringIO(text, newline=""), strict=True))
        whole = list(csv.reader(io.StringIO(text, newline=""), strict=True)) == [expected]
    except csv.Error:
        expected, whole = [], False
    try:
        found = split_record(text, ",", '"')
    except BadPayloadError:
        assert not whole or text.endswith("\n")
    else:
        assert whole
        assert found == expected


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_what_pythons_csv_writes_is_read_back(fields: list[str]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerow(fields)
    columns = [f"c{n}" for n in range(len(fields))]
    [event] = make(dict.fromkeys(columns, "string"), nulls=[]).parse(batch([file.getvalue().encode()])).events.to_pylist()
    assert list(event.values()) == fields
