"""A job: what a job file says, validated; see job_yaml.py for the text, job_steps.py for who reads whom, job_flow.py for what flows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from streamgauge.pipelines.job_beam import refused
from streamgauge.pipelines.job_errors import JobError, Problem
from streamgauge.pipelines.job_flow import Flow
from streamgauge.pipelines.job_steps import VOCABULARY, Output, Step, Steps, origins
from streamgauge.pipelines.job_yaml import Document, beam_spec, read
from streamgauge.transforms.config import did_you_mean
from streamgauge.transforms.read import ReadOptions

__all__ = ["Job", "JobError", "Output", "Step", "home", "job_folder", "load_job", "origins"]

_TOP_KEYS = ("pipeline", "options", "providers", "tests")
PROVIDERS = [{"type": "python", "config": {}, "transforms": {name: f"streamgauge.transforms.{name}" for name in VOCABULARY}}]
"""What tells Beam YAML where our transforms are; they are imported, in this process."""


def home() -> Path:
    """The folder that holds the folders of all jobs: ``.streamgauge`` below the current folder, or what STREAMGAUGE_HOME says."""
    return Path(os.environ.get("STREAMGAUGE_HOME") or ".streamgauge").absolute()


def job_folder(name: str) -> Path:
    """The folder of a job, for its record, its checkpoints and its logs."""
    return home() / "jobs" / name


@dataclass(frozen=True)
class Job:
    """A validated job.

    Attributes:
        name: the stem of its file, unique on a machine. path: the file as people named it. document: its text and values. steps: its transforms.
    """

    name: str
    path: str
    document: Document
    steps: tuple[Step, ...]

    @property
    def reads(self) -> list[ReadOptions]:
        """The sources."""
        return [step.options for step in self.of("ReadEvents")]

    @property
    def record_folder(self) -> Path:
        """Where the running job says what it read; see transforms/record.py."""
        return job_folder(self.name) / "record"

    def of(self, kind: str) -> list[Step]:
        """The steps of a type."""
        return [step for step in self.steps if step.type == kind]

    @cached_property
    def bounded(self) -> bool:
        """Whether its input ends by itself."""
        given = self.document.value.get("options") or {}
        return not given.get("streaming") and all(read.source.create().bounded for read in self.reads)

    @property
    def options(self) -> list[str]:
        """Its ``options`` as Beam's command line takes them."""
        flags: list[str] = []
        for name, value in (self.document.value.get("options") or {}).items():
            if value is True:
                flags.append(f"--{name}")
            elif isinstance(value, list):
                flags += [f"--{name}={item}" for item in value]
            elif value is not None and value is not False:
                flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        return flags

    @property
    def spec(self) -> dict[str, Any]:
        """For Beam's ``expand_pipeline``; made anew each time, since that changes it."""
        return beam_spec(self.beam_yaml)

    @property
    def beam_yaml(self) -> str:
        """The whole job, to be run by ``python -m apache_beam.yaml.main`` too: with the providers of our transforms, and its templates filled in."""
        text = self.document.text
        if "providers" in self.document.value or text.lstrip().startswith("{"):
            return _with_providers(self.document.value)
        return text.rstrip("\n") + "\n" + _dumped({"providers": PROVIDERS})

    @property
    def fingerprint(self) -> str:
        """Tells whether two versions of a file describe the same pipeline: comments and order of keys do not count."""
        return hashlib.sha256(json.dumps(self.document.value["pipeline"], sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_job(path: str | Path, variables: Mapping[str, str] | None = None) -> Job:
    """Reads and checks a job file; nothing is started or connected.

    Args:
        path: the file.
        variables: values of its template variables.

    Raises JobError with every mistake that was found, each with file, line, key, and what would be accepted.
    """
    document = read(path, variables or {})
    _check_top(document)
    read_steps = Steps(document)
    problems = read_steps.problems or Flow(document, read_steps.steps, read_steps.read).problems
    if problems:
        raise JobError(problems)
    job = Job(Path(path).stem, str(path), document, tuple(read_steps.steps))
    if (message := refused(job.spec)) is not None:
        raise JobError(f"{job.path}: {message}")
    return job


def _check_top(document: Document) -> None:
    value = document.value
    if not isinstance(value, dict) or not isinstance(value.get("pipeline"), dict):
        raise JobError([document.problem(("pipeline",), "a job file starts with `pipeline: {transforms: [...]}`")])
    found: list[Problem] = []
    for key in value:
        if key not in _TOP_KEYS:
            found.append(document.problem((str(key),), f"unknown key{did_you_mean(str(key), list(_TOP_KEYS))}; known: {', '.join(_TOP_KEYS)}"))
    if not isinstance(value.get("options") or {}, dict):
        found.append(document.problem(("options",), "expected a mapping of Beam options, such as {streaming: true}"))
    for key in ("providers", "tests"):
        if not isinstance(value.get(key) or [], list):
            found.append(document.problem((key,), "expected a list"))
    if found:
        raise JobError(found)


def _with_providers(value: dict[str, Any]) -> str:
    ours = {name for provider in PROVIDERS for name in provider["transforms"]}
    others = [provider for provider in value.get("providers") or [] if not ours & set(provider.get("transforms") or {})]
    return _dumped({**value, "providers": [*PROVIDERS, *others]})


def _dumped(value: dict[str, Any]) -> str:
    return str(yaml.safe_dump(value, sort_keys=False))
