"""The command line: ``streamgauge run | check | verify | drain | stack``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; the last as shells have it for Ctrl-C."""

_BEAM_REFUSES = ("Error applying transform", "Invalid transform specification", "Missing inputs for transform", "Unknown output", "Ambiguous output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Mistakes of the user and failures of servers are told in plain lines on stderr."""
    _quiet()
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command != "run":
        options.parser.error(f"unknown: {' '.join(others)}")
    try:
        return int(options.act(options, others))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        print(str(error), file=sys.stderr)
        return code


def _code(error: Exception) -> int | None:
    """The exit code of an error whose message is all that people need; None for one that is a bug of ours."""
    from streamgauge.pipelines.job_errors import JobError
    from streamgauge.pipelines.services.errors import ServiceError
    from streamgauge.transforms.sinks.base import SinkError
    from streamgauge.transforms.sources.base import SourceError

    if isinstance(error, JobError) or (isinstance(error, ValueError) and str(error).startswith(_BEAM_REFUSES)):
        return WRONG_INPUT
    return FAILED if isinstance(error, (ServiceError, SourceError, SinkError)) else None


def _run(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines.job import load_job

    job = load_job(options.job, _variables(options))
    from streamgauge.pipelines.run import run_job

    return run_job(job, runner=options.runner, flink=options.flink, fresh=options.fresh, options=others, json_lines=options.json)


def _check(options: argparse.Namespace, others: list[str]) -> int:
    if options.schema:
        from streamgauge.pipelines.editor_schema import editor_schema

        return _print_json(editor_schema())
    if options.job is None:
        options.parser.error("name a job file, or ask for --schema")
    from rich.console import Console

    from streamgauge.pipelines.check import plan, show
    from streamgauge.pipelines.job import load_job

    job = load_job(options.job, _variables(options))
    if options.json:
        return _print_json(plan(job))
    if options.beam:
        sys.stdout.write(job.beam_yaml)
    else:
        show(job, Console(highlight=False))
    return DONE


def _verify(options: argparse.Namespace, others: list[str]) -> int:
    from rich.console import Console

    from streamgauge.pipelines.job import load_job
    from streamgauge.pipelines.verify import verify_job
    from streamgauge.pipelines.verify_report import show

    job = load_job(options.job, _variables(options))
    progress = Console(stderr=True)
    if progress.is_terminal:
        with progress.status("verify") as status:
            verdict = verify_job(job, options.record, lambda text: status.update(f"verify: {text}"))
    else:
        verdict = verify_job(job, options.record)
    if options.json:
        _print_json(verdict.as_dict())
    else:
        show(verdict, Console(highlight=False))
    return DONE if verdict.agrees else FAILED


def _drain(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines.job import job_folder
    from streamgauge.pipelines.job_errors import JobError
    from streamgauge.transforms.record import JobRecord

    name = Path(options.job).stem
    folder = options.record or job_folder(name) / "record"
    if not folder.exists():
        raise JobError(f"{name}: there is no record of a run in {folder}; call drain in the folder in which the job runs, or name its record with --record")
    JobRecord(folder).ask_to_drain()
    print(f"{name}: its readers end where they are; the job is done when all windows are stored")
    return DONE


def _demo(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines.demo import run_demo

    return run_demo(kafka=options.kafka, rate=options.rate)


def _stack(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines.job import home
    from streamgauge.pipelines.services import stack

    folder = options.folder or home() / "stack"
    names = options.servers or list(stack.PORTS)
    calls: dict[str, Callable[[], list[Any]]] = {
        "up": lambda: stack.up(names, folder), "down": lambda: stack.down(names, folder), "status": lambda: stack.status(folder),
    }  # fmt: skip
    servers = calls[options.action]()
    if options.json:
        return _print_json([vars(server) for server in servers])
    for server in servers:
        print(f"{server.name:<10} {server.state:<8} {server.address or ''}".rstrip() + (f"  (log: {server.log})" if server.state == "died" and server.log else ""))
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="streamgauge", description="Exact, live, windowed metrics from event streams.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"streamgauge {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run a job to its end, or until Ctrl-C", "Other options are passed to Beam, such as --parallelism=4.")
    _job(run)
    run.add_argument("--runner", help="direct, flink, dataflow, or a runner that Beam knows; default: direct where the input ends, else flink")
    run.add_argument("--flink", metavar="HOST:PORT", help="Beam job server of a Flink cluster; default: an embedded Flink")
    run.add_argument("--fresh", action="store_true", help="start anew instead of resuming from the last checkpoint")
    run.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")

    check = _command(commands, "check", _check, "validate a job and print its plan; nothing is started")
    _job(check, optional=True)
    form = check.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the plan as JSON")
    form.add_argument("--beam", action="store_true", help="the whole job for `python -m apache_beam.yaml.main`")
    form.add_argument("--schema", action="store_true", help="the JSON Schema of job files, for editors")

    verify = _command(commands, "verify", _verify, "compute a job's results again, independently, and compare what it stored")
    _job(verify)
    _record(verify)
    verify.add_argument("--json", action="store_true", help="the verdict as JSON")

    drain = _command(commands, "drain", _drain, "let a running job end where it is, with all its windows closed")
    drain.add_argument("job", metavar="JOB.yaml", help="the job file")
    _record(drain)

    stack = _command(commands, "stack", _stack, "real local servers, their data in one folder")
    stack.add_argument("action", choices=("up", "down", "status"), help="start them, end them, or say what runs")
    stack.add_argument("servers", nargs="*", metavar="SERVER", help="kafka, questdb; default: all")
    stack.add_argument("--folder", type=Path, help="where their data, logs and state are; default: .streamgauge/stack")
    stack.add_argument("--json", action="store_true", help="what runs, as JSON")

    demo = _command(commands, "demo", _demo, "a year of real flights as a live stream, through an embedded Flink, into exact hourly results, checked")
    demo.add_argument("--kafka", action="store_true", help="through a Kafka broker and into QuestDB, both started here")
    demo.add_argument("--rate", type=float, default=20_000, help="events a second (default: %(default)s)")
    return parser


def _command(commands: Any, name: str, act: Callable[[argparse.Namespace, list[str]], int], text: str, more: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip(), allow_abbrev=False)
    parser.set_defaults(act=act, parser=parser)
    return parser


def _job(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument("job", metavar="JOB.yaml", nargs="?" if optional else None, help="the job file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="variables", help="value of a template variable; as often as needed")


def _record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="the job's record; default: .streamgauge/jobs/NAME/record")


def _variables(options: argparse.Namespace) -> dict[str, str]:
    found = {}
    for text in options.variables:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            options.parser.error(f"--set {text}: expected NAME=VALUE")
        found[name] = value
    return found


def _print_json(value: object) -> int:
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))
    return DONE


def _version() -> str:
    try:
        return importlib.metadata.version("streamgauge")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _quiet() -> None:
    """Beam and its clients warn about parts that are not installed and options that are not theirs: that belongs into a job's log."""
    if not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())
    logging.captureWarnings(True)


if __name__ == "__main__":
    sys.exit(main())
