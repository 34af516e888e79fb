from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from streamgauge.transforms.config import Choice, Config, OneOf, format_duration, parse_duration, problems
from streamgauge.transforms.windows import WINDOWS


class Outer(Config):
    window: Annotated[Choice, OneOf(WINDOWS)]


@given(st.integers(0, 10**15))
def test_a_duration_reads_as_it_is_written(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds)) == microseconds


@pytest.mark.parametrize("text", ["", "5", "5 parsecs", "-5s", "s", "1h 30", "5s5", None, 5, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ({"tumblin": "1h"}, ("window",), "did you mean 'tumbling'"),
        ({"tumbling": "1x"}, ("window", "tumbling", "size"), "'1x' is not a duration"),
        ({"tumbling": {"size": "1h", "ofset": "1m"}}, ("window", "tumbling", "ofset"), "unknown key"),
        ({"tumbling": {}}, ("window", "tumbling", "size"), "missing"),
        ({"tumbling": "1h", "sliding": "1h"}, ("window",), "expected a mapping with one key"),
        (None, ("window",), "expected a mapping with one key"),
        ({"tumbling": {"size": "1s", "offset": "2s"}}, ("window", "tumbling"), "must be smaller than size"),
        ({"tumbling": "1500us"}, ("window", "tumbling", "size"), "whole number of milliseconds"),
    ],
)
def test_a_mistake_is_named_with_its_path(value: object, path: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer(window=value)
    (found,) = problems(caught.value)
    assert found[0] == path
    assert message in found[1]
