"""A job file as text: filled in by Beam's Jinja machinery, then read as YAML with the line of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import jinja2
import yaml
from apache_beam.yaml.yaml_transform import SafeLineLoader, expand_jinja, strip_leading_comments
from jinja2 import meta, nodes

from streamgauge.pipelines.job_errors import JobError, Path, Problem, written
from streamgauge.transforms.config import did_you_mean


@dataclass(frozen=True)
class Document:
    """A rendered job file.

    Attributes:
        file: as people named it. text: the rendered YAML. value: what it says. lines: line of each key and list item in the file.
    """

    file: str
    text: str
    value: Any
    lines: dict[Path, int]

    def problem(self, path: Path, message: str) -> Problem:
        """A mistake at ``path``, with the line of its nearest written part."""
        known = next((path[:size] for size in range(len(path), -1, -1) if path[:size] in self.lines), ())
        return Problem(self.file, self.lines.get(known, 0), written(path), message)


def read(file: str | FilePath, variables: Mapping[str, str]) -> Document:
    """Raises JobError."""
    path = FilePath(file)
    try:
        template = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(f"{file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{file}: not a text file: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise JobError(f"{file}: {error.strerror}") from None
    # Beam leaves the comments at the top out of what it renders.
    skipped = template[: len(template) - len(strip_leading_comments(template))].count("\n")
    return _parse(str(file), "\n" * skipped + _render(str(file), path, template, variables, skipped))


def _render(file: str, path: FilePath, template: str, variables: Mapping[str, str], skipped: int) -> str:
    try:
        names, complete = _variables(strip_leading_comments(template))
        for name in variables:
            if complete and name not in names:
                known = f"; it has {', '.join(names)}" if names else "; it has none"
                raise JobError(f"{file}: --set {name}: the job file has no such variable{did_you_mean(name, names)}{known}")
        return str(expand_jinja(template, variables, [str(path.parent)]))
    except jinja2.UndefinedError as error:
        line = _template_line(error)
        hint = ""
        if error.message and error.message.endswith("is undefined") and error.message.startswith("'"):
            hint = f"; give it a value: --set {error.message.split(chr(39))[1]}=..."
        raise JobError([Problem(file, line + skipped if line else 0, "", f"{error.message}{hint}")]) from None
    except jinja2.TemplateNotFound as error:
        raise JobError(f"{file}: it includes {error.name}, which is not there") from None
    except jinja2.TemplateSyntaxError as error:
        place = file if error.filename is None else error.filename
        raise JobError([Problem(place, error.lineno + skipped, "", f"template: {error.message}")]) from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, JobError):
            raise
        line = _template_line(error)
        raise JobError([Problem(file, line + skipped if line else 0, "", f"template: {error}")]) from None


def _variables(template: str) -> tuple[list[str], bool]:
    """Names that the template takes, and whether these are all (included templates may take more)."""
    tree = jinja2.Environment().parse(template)
    complete = not any(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)))
    return sorted(meta.find_undeclared_variables(tree) - {"datetime"}), complete


def _template_line(error: BaseException) -> int:
    """The line of the template at which rendering failed, 0 when not known."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _parse(file: str, text: str) -> Document:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        twice: list[tuple[Path, int, int]] = []
        if node is not None:
            _note_lines(node, (), lines, twice, set())
        if twice:
            raise JobError([Problem(file, line, written(path), f"the key is there twice, first at line {first}") for path, line, first in twice])
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context else ""
        raise JobError([Problem(file, mark.line + 1 if mark else 0, "", f"not YAML: {error.problem}{context}")]) from None
    except yaml.YAMLError as error:
        raise JobError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    return Document(file, text, value, lines)


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int], twice: list[tuple[Path, int, int]], above: set[int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias stands within its own anchor", problem_mark=node.start_mark)
    inside = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                twice.append(((*path, name), line, seen[name]))
            seen[name] = line
            lines[(*path, name)] = line
            _note_lines(value, (*path, name), lines, twice, inside)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines, twice, inside)


class _StableLoader(SafeLineLoader):  # type: ignore[misc]
    """Beam's loader, whose identifiers are the same each time a file is read."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._count = 0

    def create_uuid(self) -> str:
        self._count += 1
        return f"step-{self._count}"


def beam_spec(text: str) -> dict[str, Any]:
    """The job as Beam's YAML machinery takes it: with lines and identifiers in every mapping."""
    spec: dict[str, Any] = yaml.load(text, Loader=_StableLoader)
    return spec
