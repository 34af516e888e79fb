"""What Beam's own YAML machinery knows and checks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class BeamTypes:
    """Beam's own transforms, and those of the job's providers."""

    def __init__(self, providers: list[Any]) -> None:
        self._given = {name for provider in providers if isinstance(provider, Mapping) for name in provider.get("transforms") or {}}
        self._open = any(isinstance(provider, Mapping) and "include" in provider for provider in providers)

    def names(self) -> list[str]:
        with quiet():
            from apache_beam.yaml.yaml_provider import standard_providers

            return sorted({*self._given, *standard_providers(), *(name.rsplit("-", 1)[0] for name in standard_providers())})

    def has(self, name: str) -> bool:
        return self._open or name in self._given or name in self.names()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that Beam logs about its own optional parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def refused(spec: dict[str, Any]) -> str | None:
    """What Beam finds wrong before it would build the pipeline (the shape of its own transforms, unread error outputs), in one line."""
    from apache_beam.yaml import yaml_provider, yaml_transform

    with quiet():
        try:
            yaml_transform.validate_against_schema(spec, "generic")
            known = {*yaml_provider.standard_providers(), *(name for provider in spec["providers"] for name in provider.get("transforms") or {})}
            complete = not any("include" in provider for provider in spec["providers"])
            yaml_transform.preprocess(yaml_transform.pipeline_as_composite(spec["pipeline"]), known_transforms=known if complete else None)
        except Exception as error:  # jsonschema's and Beam's own, of several kinds
            return str(getattr(error, "message", error)).splitlines()[0]
    return None
