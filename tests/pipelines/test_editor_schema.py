"""The editors' schema agrees with what jobs accept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from streamgauge.pipelines.editor_schema import editor_schema
from streamgauge.pipelines.job import load_job

JOBS = sorted((Path(__file__).parents[2] / "templates" / "jobs").glob("*.yaml"))
VALIDATOR = jsonschema.Draft7Validator(editor_schema())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    value = load_job(path).document.value
    assert [error.message for error in VALIDATOR.iter_errors(value)] == []


def test_it_is_a_schema_and_every_reference_leads_somewhere() -> None:
    schema = editor_schema()
    jsonschema.Draft7Validator.check_schema(schema)

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [value.get("$ref")] * isinstance(value.get("$ref"), str) + [name for inner in value.values() for name in references(inner)]
        return [name for inner in value for name in references(inner)] if isinstance(value, list) else []

    found = set(references(schema))
    assert "#/$defs/AggregateWindows" in found
    assert {name for name in found if name.removeprefix("#/$defs/") not in schema["$defs"]} == set()


def test_every_key_is_described() -> None:
    schema = editor_schema()
    for name in ("ReadEvents", "Deduplicate", "AggregateWindows", "WriteResults"):
        assert schema["$defs"][name]["description"]
        for key, value in schema["$defs"][name]["properties"].items():
            assert value.get("description"), f"{name}.{key}"


@pytest.mark.parametrize(
    ("config", "valid"),
    [({"by": ["origin"]}, True), ({"by": ["origin"], "horizon": "1h30m", "shards": 3}, True), ({}, False), ({"by": []}, False), ({"by": "origin"}, False),
     ({"by": ["origin"], "horizon": "soon"}, False), ({"by": ["origin"], "shards": 0}, False)],
)  # fmt: skip
def test_what_deduplicate_takes(config: dict[str, Any], valid: bool) -> None:
    document = copy.deepcopy(load_job(next(path for path in JOBS if path.stem == "flights")).document.value)
    document["pipeline"]["transforms"].insert(1, {"type": "Deduplicate", "input": "ReadEvents", "config": config})
    assert VALIDATOR.is_valid(document) == valid


BROKEN = [
    (("pipeline", "transforms", 1, "config", "window"), {"tumbling": "1x"}),
    (("pipeline", "transforms", 1, "config", "window"), {"tumblin": "1s"}),
    (("pipeline", "transforms", 1, "config", "aggregates"), {"n": "cont"}),
    (("pipeline", "transforms", 1, "config", "aggregates"), {}),
    (("pipeline", "transforms", 1, "config", "latness"), "1s"),
    (("pipeline", "transforms", 1, "config", "by"), "host"),
    (("pipeline", "transforms", 0, "config", "from"), {"files": {"paths": "x"}}),
    (("pipeline", "transforms", 0, "config", "from"), "files"),
    (("pipeline", "transforms", 0, "config", "format"), {"json": {"schema": {"a": "int46"}}}),
    (("pipeline", "transforms", 0, "config", "time", "disorder"), "soon"),
    (("pipeline", "transforms", 2, "config", "to"), {"sqlite": {"path": "x"}}),
    (("pipeline", "transforms", 2, "windowing"), {"type": "fixed", "size": "1s"}),
    (("pipelin",), {}),
]


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[f"{'.'.join(map(str, path[3:] or path))}={value}" for path, value in BROKEN])
def test_mistakes_are_invalid(path: tuple[str | int, ...], value: Any) -> None:
    document = copy.deepcopy(load_job(next(path for path in JOBS if path.stem == "flights")).document.value)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(document)
