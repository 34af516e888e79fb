"""The documentation: the reference is what the code says, links lead somewhere, job files load, examples run, commands exist."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from streamgauge.pipelines import cli
from streamgauge.pipelines.job import load_job
from streamgauge.transforms.sinks import SINKS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUG_INS = sorted((ROOT / "docs" / "how-to").glob("write-a*.md"))

FENCE = re.compile(r"^```(\w+)(?: ([\w-]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block; ``mark`` is the second word of its fence."""

    page: str
    language: str
    mark: str
    text: str


def blocks(language: str, mark: str = "") -> list[Block]:
    found = [Block(page.relative_to(ROOT).as_posix(), *match) for page in PAGES for match in FENCE.findall(page.read_text())]
    return [block for block in found if block.language == language and block.mark == mark]


def named(items: list[Block]) -> list[Any]:
    return [pytest.param(block, id=f"{block.page}-{number}") for number, block in enumerate(items)]


def requests(folder: Path) -> list[str]:
    """The README's events, as the file that the examples read."""
    (text,) = (block.text for block in blocks("json") if block.page == "README.md")
    (folder / "requests.ndjson").write_text(text)
    return text.splitlines()


def test_the_reference_is_what_the_code_says() -> None:
    loader = SourceFileLoader("reference", str(ROOT / "scripts" / "reference"))
    spec = spec_from_loader("reference", loader)
    assert spec is not None
    module = module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    stored = {path.name: path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")}
    wanted = module.pages()
    stale = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    assert not stale, "run .venv/bin/python scripts/reference"


def test_every_sink_has_its_guarantee_among_the_concepts() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    missing = [name for name in SINKS.builtin if f"(reference/sinks.md#{name}) | {SINKS.load(name).guarantee} |" not in text]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_of_docs_is_reached() -> None:
    reached = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in LINK.findall(page.read_text())}
    assert not [page.name for page in PAGES[1:] if page not in reached and page.name != "README.md"]


@pytest.mark.parametrize("block", named(blocks("yaml")))
def test_job_files_load(block: Block, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(block.text)
    load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize("block", named(blocks("yaml", "fragment")))
def test_fragments_are_yaml(block: Block) -> None:
    yaml.safe_load(block.text)


def test_no_block_has_an_unknown_mark() -> None:
    known = {("yaml", ""), ("yaml", "fragment"), ("yaml", "plug-in"), ("python", ""), ("python", "flink")}
    assert not [block for language in ("yaml", "python") for mark in _marks(language) if (language, mark) not in known for block in blocks(language, mark)]


def _marks(language: str) -> set[str]:
    return {mark for page in PAGES for found, mark, _ in FENCE.findall(page.read_text()) if found == language}


@pytest.mark.parametrize("block", named(blocks("sh")))
def test_commands_exist(block: Block) -> None:
    for line in block.text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if ">" in arguments:
            arguments = arguments[: arguments.index(">")]
        if program == "streamgauge":
            options, others = cli._parser().parse_known_args(arguments)
            assert options.command == "run" or not others
        elif program != "python":
            assert os.access(ROOT / program, os.X_OK), line


def test_scripts_and_extras_that_are_named_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert not [name for name in set(re.findall(r"`(?:\S+ )?(scripts/[\w-]+)", text)) if not (ROOT / name).is_file()]
    setup = (ROOT / "setup.py").read_text()
    assert not [name for name in set(re.findall(r"streamgauge\[(\w+)\]", text)) if f'"{name}":' not in setup]


@pytest.mark.slow
def test_the_job_of_the_readme_gives_what_the_readme_shows(tmp_path: Path) -> None:
    requests(tmp_path)
    (job,) = (block.text for block in blocks("yaml") if block.page == "README.md")
    (tmp_path / "requests.yaml").write_text(job)
    shown = [line for block in blocks("text") if block.page == "README.md" for line in block.text.splitlines()]
    for command in ("run", "verify"):
        output = streamgauge(tmp_path, command, "requests.yaml")
        assert output.splitlines()[-1] in shown


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in named(blocks("python")) if not block.values[0].page.startswith("docs/how-to/write-a")])
def test_python_examples_run(block: Block, tmp_path: Path) -> None:
    requests(tmp_path)
    finished([sys.executable, "-c", block.text], tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("block", named(blocks("python", "flink")))
def test_python_examples_run_on_flink(block: Block, tmp_path: Path) -> None:
    finished([sys.executable, "-c", block.text], tmp_path)
    with closing(sqlite3.connect(tmp_path / "load.db")) as connection:
        assert connection.execute("SELECT sum(n) FROM load").fetchall() == [(100_000,)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PLUG_INS, ids=lambda page: page.name)
def test_plug_ins_work_as_packages(page: Path, tmp_path: Path) -> None:
    """The code, the entry point and the job of a page, as they stand there."""
    found = {language: text for language, _, text in FENCE.findall(page.read_text())}
    module = found["python"].splitlines()[0].removeprefix("# ")
    (tmp_path / module).write_text(found["python"])
    group = re.search(r'entry-points\."([\w.]+)"\]\n(.+)', found["toml"])
    assert group is not None
    package = tmp_path / "documented-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: documented\nVersion: 1\n")
    (package / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2].replace(chr(34), '')}\n")
    (tmp_path / "job.yaml").write_text(found["yaml"])
    lines = requests(tmp_path)
    with closing(sqlite3.connect(tmp_path / "queue.db")) as connection, connection:
        connection.execute("CREATE TABLE requests (payload TEXT)")
        connection.executemany("INSERT INTO requests VALUES (?)", [(line,) for line in lines])
    output = streamgauge(tmp_path, "run", "job.yaml")
    assert "done, 4 events, 1 rejected, 0 late" in output
    if "json_file" in found["yaml"]:
        assert '"slowest_ms": 31.5' in (tmp_path / "speed.json").read_text()
        return
    with closing(sqlite3.connect(tmp_path / "result.db")) as connection:
        rows = connection.execute("SELECT page, requests, round(spread_ms, 9) FROM result" if "spread" in found["yaml"] else "SELECT page, requests, slowest_ms FROM result").fetchall()
    home, cart = (3.0, 0.0) if "spread" in found["yaml"] else (31.5, 120.0)
    assert sorted(rows) == sorted([("/", 2, home), ("/cart", 1, cart), ("/", 1, 0.0 if "spread" in found["yaml"] else 33.0)])


def streamgauge(folder: Path, *arguments: str) -> str:
    return finished([sys.executable, "-m", "streamgauge.pipelines.cli", *arguments], folder)


def finished(command: list[str], folder: Path) -> str:
    """Standard output of a command that ends well, run in ``folder``, from where it may import."""
    paths = [str(folder), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])]
    environment = {name: value for name, value in os.environ.items() if name != "STREAMGAUGE_HOME"} | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
