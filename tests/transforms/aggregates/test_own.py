"""An aggregate of one's own: the code, the entry point and the job of docs/how-to/own-aggregate.md, as they stand there."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from streamgauge.transforms.aggregates import AGGREGATES
from streamgauge.transforms.aggregates.trial import events_of, result_of
from tests.examples import examples
from tests.running import Command, until
from tests.transforms.aggregates.any_order import Algebra, Event, by_key, events

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "own-aggregate.md").read_text()
BLOCKS = dict(re.findall(r"^```([\w -]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))

REQUESTS = [
    {"at": "2026-01-01T10:00:01Z", "page": "/", "ms": 20.0}, {"at": "2026-01-01T10:00:01.9Z", "page": "/", "ms": 40.0},
    {"at": "2026-01-01T10:00:59Z", "page": "/", "ms": 10.0}, {"at": "2026-01-01T10:00:05Z", "page": "/cart", "ms": 10.0},
    {"at": "2026-01-01T10:01:01Z", "page": "/", "ms": 31.0},
]  # fmt: skip


def install(folder: Path) -> None:
    """What a package manager leaves of the page's package."""
    (folder / "active_seconds.py").write_text(BLOCKS["python"])
    package = folder / "documented-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: documented\nVersion: 1\n")
    group = re.search(r'entry-points\."([\w.]+)"\]\n(\w+) = "(.+)"', BLOCKS["toml"])
    assert group is not None
    (package / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2]} = {group[3]}\n")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site-packages")
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


ALGEBRA = Algebra(
    {"active": {"active_seconds": "at"}, "slow": {"active_seconds": {"of": "at", "where": "ms > 30"}}},
    {"at": pa.timestamp("ms", "UTC"), "ms": pa.float64()},
)


@settings(deadline=None, max_examples=examples(15))
@given(events({"at": st.none() | st.integers(-(10**6), 10**6), "ms": st.sampled_from([None, 20.0, 40.0])}), st.integers(0, 1000))
def test_its_kernel_gives_the_same_in_any_order(some: list[Event], seed: int) -> None:
    found = ALGEBRA.results(some, seed)
    for key, own in by_key(some).items():
        counted = [event for event in own if event["at"] is not None]
        assert found[key]["active"] == len({event["at"] // 1000 % 60 for event in counted})
        assert found[key]["slow"] == len({event["at"] // 1000 % 60 for event in counted if event["ms"] == 40.0})


def test_it_is_known_by_its_name_and_tells_mistakes() -> None:
    assert "active_seconds" in AGGREGATES.names()
    assert result_of({"active_seconds": "at"}, events_of({"at": pa.array([0, 500, 1_500, 61_500], pa.timestamp("ms"))})) == 2
    with pytest.raises(PydanticCustomError, match="active_seconds needs a timestamp; field 'at' is int64"):
        result_of({"active_seconds": "at"}, events_of({"at": [1]}))


def test_its_doctest_holds() -> None:
    found = doctest.testmod(importlib.import_module("active_seconds"))
    assert (found.attempted, found.failed) == (3, 0)


def test_a_job_file_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (tmp_path / "requests.ndjson").write_text("".join(f"{json.dumps(request)}\n" for request in REQUESTS))
    (tmp_path / "job.yaml").write_text(BLOCKS["yaml plug-in"])
    with Command(tmp_path, "run", "job.yaml", "--runner", "direct") as command:
        until(lambda: not command.running(), "the job ends")
        assert command.process.returncode == 0, command.out + command.err
    with closing(sqlite3.connect(tmp_path / "activity.db")) as connection:
        rows = connection.execute("SELECT page, requests, active, slow FROM activity ORDER BY window_start, page").fetchall()
    assert rows == [("/", 3, 2, 1), ("/cart", 1, 1, 0), ("/", 1, 1, 1)]
