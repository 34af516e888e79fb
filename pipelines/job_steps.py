"""The steps of a job and which reads which, looked up through chains and composites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from streamgauge.pipelines.job_beam import BeamTypes
from streamgauge.pipelines.job_errors import Path, Problem, explain
from streamgauge.pipelines.job_yaml import Document
from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.config import JOB_FILE, Config, did_you_mean
from streamgauge.transforms.deduplicate import DeduplicateOptions
from streamgauge.transforms.map_events import MapOptions
from streamgauge.transforms.partials import Metric
from streamgauge.transforms.read import ReadOptions
from streamgauge.transforms.write import WriteOptions

VOCABULARY: dict[str, type[Config]] = {
    "ReadEvents": ReadOptions, "MapEvents": MapOptions, "Deduplicate": DeduplicateOptions, "AggregateWindows": AggregateOptions,
    "WriteResults": WriteOptions,
}  # fmt: skip
"""Our transforms by the name that job files use, with their options."""

_STEP_KEYS = ("type", "name", "input", "config", "resource_hints")
_BEAM_STEP_KEYS = (*_STEP_KEYS, "output", "windowing", "output_schema")
_NEST_KEYS = ("type", "name", "input", "output", "windowing", "resource_hints", "transforms", "extra_transforms", "source", "sink")
_NESTS = ("chain", "composite")
_DEAD_LETTERS = "; dead letters have one with `error_handling: {output: rejected}`"
_MORE_OUTPUTS = {"ReadEvents": _DEAD_LETTERS, "MapEvents": _DEAD_LETTERS, "AggregateWindows": "; late events have one with `late: true`"}
"""By type of step, what to do for the output that it has only when asked for."""


@dataclass(eq=False)
class Step:
    """A transform that is no chain or composite.

    Attributes:
        name: as other steps call it. options: validated; None for Beam's own transforms. inputs: what it reads, looked up through chains and composites.
        metric: of an AggregateWindows whose events' schema is known. schema: of the events of a MapEvents, where it is known.
    """

    name: str
    type: str
    path: Path
    line: int
    options: Any = None
    inputs: tuple[Output, ...] = ()
    metric: Metric | None = None
    schema: pa.Schema | None = None

    def outputs(self) -> dict[str, str]:
        """What the rows of each output are; the main output first. Nothing is known of Beam's own transforms."""
        if isinstance(self.options, (ReadOptions, MapOptions)):
            handling = self.options.error_handling
            return {"events": "events"} | ({handling.output: "dead letters"} if handling else {})
        if isinstance(self.options, DeduplicateOptions):
            return {"events": "events"}
        if isinstance(self.options, AggregateOptions):
            handling = self.options.error_handling
            return {"results": "results"} | ({"late": "late events"} if self.options.late else {}) | ({handling.output: "dead letters"} if handling else {})
        if isinstance(self.options, WriteOptions) and self.options.error_handling is not None:
            return {self.options.error_handling.output: "dead letters"}
        return {}


@dataclass(frozen=True)
class Output:
    """A collection: output ``name`` of a step; None for the only output of a step that is Beam's."""

    step: Step
    name: str | None

    @property
    def kind(self) -> str | None:
        """``events``, ``results``, ``late events``, ``dead letters``; None: not known."""
        return None if self.name is None else self.step.outputs().get(self.name)


@dataclass
class _Nest:
    """A chain or composite, or the pipeline itself."""

    spec: Mapping[str, Any]
    path: Path
    name: str
    members: list[tuple[str, str, Step | _Nest]] = field(default_factory=list)
    """(name, type, what it is), in order."""
    above: _Nest | None = None

    @property
    def chain(self) -> bool:
        return self.spec.get("type") == "chain"


class _NotThere(Exception):
    """A reference that leads nowhere; the message says why."""


class Steps:
    """Reads a job's steps; ``problems`` has every mistake. ``read``: the outputs that somebody reads, by the id of their step."""

    def __init__(self, document: Document) -> None:
        self.steps: list[Step] = []
        self.problems: list[Problem] = []
        self._document = document
        self.read: set[tuple[int, str | None]] = set()
        self._known = BeamTypes(document.value.get("providers") or [])
        pipeline = document.value["pipeline"]
        self._root = _Nest(pipeline, ("pipeline",), "the pipeline")
        self._members(self._root)
        if not self.problems:
            self._connect(self._root)

    def _problem(self, path: Path, message: str) -> None:
        self.problems.append(self._document.problem(path, message))

    # What is there

    def _members(self, nest: _Nest) -> None:
        self._only_keys(nest.spec, nest.path, [key for key in _NEST_KEYS if nest.above or key not in ("name", "input", "output")])
        listed = nest.spec.get("transforms", [])
        if not isinstance(listed, list) or not (listed or "source" in nest.spec):
            self._problem((*nest.path, "transforms"), "expected a list of transforms, such as [{type: ReadEvents, config: {...}}]")
            return
        specs: list[tuple[Path, Any]] = [((*nest.path, "transforms", index), spec) for index, spec in enumerate(listed)]
        if "source" in nest.spec:
            specs.insert(0, ((*nest.path, "source"), nest.spec["source"]))
        if "sink" in nest.spec:
            specs.append(((*nest.path, "sink"), nest.spec["sink"]))
        specs += [((*nest.path, "extra_transforms", index), spec) for index, spec in enumerate(nest.spec.get("extra_transforms") or [])]
        for path, spec in specs:
            self._member(nest, path, spec)

    def _member(self, nest: _Nest, path: Path, spec: Any) -> None:
        if not isinstance(spec, Mapping) or not isinstance(spec.get("type"), str):
            self._problem(path, f"expected a transform with a type: {{type: {' or '.join(VOCABULARY)}, config: {{...}}}}; found {_short(spec)}")
            return
        kind = spec["type"]
        name = str(spec.get("name", kind))
        if kind in _NESTS:
            inner = _Nest(spec, path, name, above=nest)
            nest.members.append((name, kind, inner))
            self._members(inner)
            return
        step = Step(name, kind, path, self._document.lines.get((*path, "type"), 0))
        nest.members.append((name, kind, step))
        self.steps.append(step)
        if kind in VOCABULARY:
            self._only_keys(spec, path, _STEP_KEYS)
            config = spec.get("config")
            try:
                step.options = VOCABULARY[kind].model_validate({} if config is None else config, context={JOB_FILE: True})
            except ValidationError as error:
                for place, message in explain(VOCABULARY[kind], config, error):
                    self._problem((*path, "config", *place), message)
            self._named_apart(step)
        else:
            self._only_keys(spec, path, _BEAM_STEP_KEYS)
            if not self._known.has(kind):
                known = [*VOCABULARY, *_NESTS, *self._known.names()]
                self._problem((*path, "type"), f"unknown transform '{kind}'{did_you_mean(kind, known)}; ours: {', '.join(VOCABULARY)}; others are those of Beam YAML")

    def _named_apart(self, step: Step) -> None:
        """The output of dead letters must not hide another one."""
        handling = getattr(step.options, "error_handling", None)
        if handling is not None:
            others = replace(step, options=step.options.model_copy(update={"error_handling": None})).outputs()
            if handling.output in others:
                message = f"'{handling.output}' is the output with the {others[handling.output]} of {step.type}; give dead letters another name, such as `rejected`"
                self._problem((*step.path, "config", "error_handling", "output"), message)

    def _only_keys(self, spec: Mapping[str, Any], path: Path, known: Any) -> None:
        for key in spec:
            if key not in known:
                self._problem((*path, str(key)), f"unknown key{did_you_mean(str(key), list(known))}; known: {', '.join(known)}")

    # What reads what

    def _connect(self, nest: _Nest) -> None:
        for index, (_, _, member) in enumerate(nest.members):
            spec = self._spec(member)
            if isinstance(member, _Nest):
                self._connect(member)
            before: Step | _Nest | None = nest.members[index - 1][2] if nest.chain and index else None
            references = _references(spec)
            if nest.chain and references and index < len(nest.members) - len(nest.spec.get("extra_transforms") or []):
                self._problem((*member.path, "input"), "in a chain each transform reads the one before it: leave `input` out")
                continue
            found: list[Output] = []
            try:
                if before is not None and not references:
                    found = self._output(before, None, frozenset())
                elif nest.chain and index == 0 and nest.above and not references:
                    found = [output for _, name in _references(nest.spec) for output in self._find(nest.above, name, frozenset())]
            except _NotThere as error:
                self._problem(member.path, str(error))
            for where, name in references:
                try:
                    found += self._find(nest, name, frozenset())
                except _NotThere as error:
                    self._problem((*member.path, *where), str(error))
            self.read.update((id(output.step), output.name) for output in found)
            if isinstance(member, Step):
                member.inputs = tuple(found)
                self._input_given(member)
        if nest.above and not self.problems:
            self._given_out(nest)

    def _given_out(self, nest: _Nest) -> None:
        """What a chain or composite gives out is read: whether anybody takes it shows where it stands."""
        given = _references(nest.spec, "output")
        found: list[Output] = []
        try:
            if nest.chain and not given:
                last = nest.members[-1][2]
                found = self._output(last, None, frozenset()) if not isinstance(last, Step) or last.outputs() else []
            for where, name in given:
                path = (*nest.path, *where)
                found += self._output(nest.members[-1][2], name, frozenset()) if nest.chain else self._find(nest, name, frozenset())
        except _NotThere as error:
            self._problem(path if given else nest.path, str(error))
        self.read.update((id(output.step), output.name) for output in found)

    def _input_given(self, step: Step) -> None:
        if step.options is None:
            return
        if isinstance(step.options, ReadOptions) and step.inputs:
            self._problem((*step.path, "input"), "ReadEvents reads its source and takes no input")
        elif not isinstance(step.options, ReadOptions) and not step.inputs and not self.problems:
            other = "AggregateWindows" if step.type == "WriteResults" else "ReadEvents"
            self._problem(step.path, f"{step.type} needs an input; name the step it reads, such as `input: {other}`")

    def _spec(self, member: Step | _Nest) -> Mapping[str, Any]:
        value = self._document.value
        for key in member.path:
            value = value[key]
        return value  # type: ignore[no-any-return]

    def _find(self, nest: _Nest, name: str, asked: frozenset[tuple[int, str]]) -> list[Output]:
        """The collections that ``name`` means within ``nest``."""
        if (id(nest), name) in asked:
            raise _NotThere(f"'{name}' goes round in a circle")
        asked |= {(id(nest), name)}
        if nest.above:
            inputs = [reference for where, reference in _references(nest.spec) if name == (where[1] if len(where) > 1 and isinstance(where[1], str) else "input")]
            if inputs:
                return [output for reference in inputs for output in self._find(nest.above, reference, asked)]
        wanted, _, output = name.partition(".")
        found = [member for own, kind, member in nest.members if wanted in (own, kind)]
        if not found:
            names = [own for own, _, _ in nest.members]
            raise _NotThere(f"'{name}' is the output of no step{did_you_mean(wanted, names)}; steps: {', '.join(dict.fromkeys(names))}")
        if len(found) > 1:
            lines = ", ".join(str(self._document.lines.get(member.path, 0)) for member in found)
            raise _NotThere(f"'{wanted}' is ambiguous: there are {len(found)} such steps (lines {lines}); give each a `name` and use it")
        return self._output(found[0], output or None, asked)

    def _output(self, member: Step | _Nest, name: str | None, asked: frozenset[tuple[int, str]]) -> list[Output]:
        if isinstance(member, Step):
            return [self._step_output(member, name)]
        given = {(where[1] if len(where) > 1 else "output"): reference for where, reference in _references(member.spec, "output")}
        if member.chain and not given:
            return self._output(member.members[-1][2], name, asked)
        if name is None and len(given) == 1:
            name = str(next(iter(given)))
        if name not in given:
            raise _NotThere(f"{member.name} has {_list('the output', [str(key) for key in given])}" + (f", not '{name}'" if name else ": say which"))
        inside = f"{member.members[-1][0]}.{given[name]}" if member.chain else given[name]
        return self._find(member, inside, asked)

    def _step_output(self, step: Step, name: str | None) -> Output:
        if step.options is None:
            return Output(step, name)
        outputs = list(step.outputs())
        if not outputs:
            raise _NotThere(f"{step.name} has no output; it is where rows leave the job")
        handled = isinstance(step.options, (ReadOptions, MapOptions))
        if name is None:
            if len(outputs) > 1 and not handled:
                raise _NotThere(f"{step.name} has the outputs {' and '.join(outputs)}: write {' or '.join(f'{step.name}.{output}' for output in outputs)}")
            return Output(step, outputs[0])
        if name not in outputs:
            hint = did_you_mean(name, outputs)
            if len(outputs) == 1:
                hint += _MORE_OUTPUTS.get(step.type, "")
            raise _NotThere(f"{step.name} has {_list('the output', outputs)}, not '{name}'{hint}")
        if len(outputs) == 1 and not isinstance(step.options, WriteOptions):  # Beam calls an only output `out`, unless its transform names it
            raise _NotThere(f"{step.name} has no other output than its {name}: write `input: {step.name}`")
        return Output(step, name)


def origins(step: Step, _through: frozenset[int] = frozenset()) -> list[Output]:
    """What reaches a step, seen through Beam's Flatten and LogForTesting."""
    found = []
    for output in step.inputs:
        if output.step.type in ("Flatten", "LogForTesting") and id(output.step) not in _through:
            found += origins(output.step, _through | {id(output.step)})
        else:
            found.append(output)
    return list(dict.fromkeys(found))


def _references(spec: Mapping[str, Any], key: str = "input") -> list[tuple[Path, str]]:
    """Names under ``input`` or ``output``, each with its path there: a name, a list, or a mapping of either."""
    given = spec.get(key) or {}
    if isinstance(given, str):
        return [((key,), given)]
    if isinstance(given, list):
        return [((key, index), str(name)) for index, name in enumerate(given)]
    found: list[tuple[Path, str]] = []
    for inner, value in given.items():
        names = value if isinstance(value, list) else [value]
        found += [((key, str(inner)), str(name)) for name in names]
    return found


def _list(what: str, names: list[str]) -> str:
    return f"{what} {names[0]}" if len(names) == 1 else f"{what}s {' and '.join(names)}" if names else "no output"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
