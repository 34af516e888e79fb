"""JSON Schema of job files, for editors: Beam's own schema of its YAML, with our transforms' options from their models.

In an editor with the YAML language server: ``streamgauge check --schema > job.schema.json`` and a first line
``# yaml-language-server: $schema=job.schema.json`` in the job file.
"""

from __future__ import annotations

import copy
from typing import Any

from apache_beam.yaml.yaml_transform import pipeline_schema
from pydantic import BaseModel

from streamgauge.pipelines.job_steps import VOCABULARY

DRAFT = "http://json-schema.org/draft-07/schema#"
_METADATA = ("__line__", "__uuid__")


def editor_schema() -> dict[str, Any]:
    """The schema of a job file whose templates are filled in."""
    schema: dict[str, Any] = _without_metadata(copy.deepcopy(pipeline_schema("generic")))
    schema.pop("$id", None)
    schema["$schema"] = DRAFT
    schema["title"] = "Streamgauge job"
    schema["additionalProperties"] = False
    definitions = schema["$defs"]
    for name, model in VOCABULARY.items():
        definitions[name] = _of_model(model, definitions)
        definitions["transform"]["allOf"].append(_when_type(name))
    definitions["transformBase"]["properties"]["type"] = {"type": "string", "examples": [*VOCABULARY, "chain", "composite"]}
    return schema


def _when_type(name: str) -> dict[str, Any]:
    """A step of this type has these options."""
    return {
        "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
        "then": {"required": ["config"], "properties": {"config": {"$ref": f"#/$defs/{name}"}, "windowing": False, "output": False, "output_schema": False}},
    }


def _of_model(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    found = model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    definitions.update(found.pop("$defs", {}))
    return found


def _without_metadata(value: Any) -> Any:
    """Beam's loader adds lines and identifiers to mappings; people do not write them."""
    if isinstance(value, dict):
        return {key: _without_metadata(inner) for key, inner in value.items() if key not in _METADATA}
    if isinstance(value, list):
        return [_without_metadata(inner) for inner in value]
    return value
