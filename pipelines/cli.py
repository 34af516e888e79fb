"""The command line: ``streamgauge run | check | verify | drain | jobs | savepoint | stop | resume | rescale | cancel | stack``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; the last as shells have it for Ctrl-C."""

_BEAM_REFUSES = ("Error applying transform", "Invalid transform specification", "Missing inputs for transform", "Unknown output", "Ambiguous output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. Mistakes of the user and failures of servers are told in plain lines on stderr."""
    _quiet()
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command not in ("run", "resume", "rescale"):
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


def command() -> NoReturn:
    """``streamgauge`` as a process. Ends at once: threads of Beam's that are still there keep objects alive, and libraries complain of them at length."""
    code = 1
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


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
    from streamgauge.pipelines.job import JobError, load_job

    job = load_job(options.job, _variables(options))
    from streamgauge.pipelines.run import run_job
    from streamgauge.pipelines.run_cluster import Launch

    if options.flink is None and (options.detach or options.restore_from or options.drop_state):
        raise JobError("--detach, --from and --drop-state are for a Flink cluster; name it with --flink HOST:PORT")
    if options.fresh and options.restore_from:
        raise JobError("--fresh starts anew and --from resumes; leave one of them out")
    if options.replay and (options.fresh or options.restore_from):
        raise JobError("--replay reads from recorded positions; leave --fresh and --from out")
    launch = Launch(replay=options.replay, detach=options.detach, restore_from=options.restore_from, allow_dropped=options.drop_state)
    return run_job(job, runner=options.runner, flink=options.flink, fresh=options.fresh, options=others, json_lines=options.json, launch=launch)


def _resume(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines.job import load_job
    from streamgauge.pipelines.run_cluster import Launch

    job = load_job(options.job, _variables(options))
    launch = Launch(detach=not options.follow, restore_from=options.restore_from, allow_dropped=options.drop_state, must_resume=True)
    return _launched(job, options, others, launch)


def _rescale(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines import operate
    from streamgauge.pipelines.job import load_job
    from streamgauge.pipelines.run_cluster import Launch
    from streamgauge.pipelines.services.flink_rest import FlinkRest

    job = load_job(options.job, _variables(options))
    flink = FlinkRest(f"http://{_cluster(options)}")
    name, job_id = operate.find(flink, job.name)
    before = flink.parallelism_of(job_id)
    path = operate.stop_with_savepoint(flink, name, job_id)
    print(f"{name}: stopped with savepoint {path}", flush=True)
    others = [*others, f"--parallelism={options.parallelism}"]
    code = _launched(job, options, others, Launch(detach=True, must_resume=True))
    print(f"  to undo it: streamgauge rescale {options.job} --parallelism {before}")
    return code


def _launched(job: Any, options: argparse.Namespace, others: list[str], launch: Any) -> int:
    from streamgauge.pipelines.run import run_job

    return run_job(job, runner="flink", flink=_cluster(options), fresh=False, options=others, json_lines=options.json, launch=launch)


def _jobs(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines import operate
    from streamgauge.pipelines.services.flink_rest import FlinkRest

    address = _cluster(options)
    jobs = operate.list_jobs(FlinkRest(f"http://{address}"))
    if options.json:
        return _print_json([job.as_dict() for job in jobs])
    print("\n".join(operate.job_lines(jobs, address)))
    return DONE


def _operate(options: argparse.Namespace, others: list[str]) -> int:
    from streamgauge.pipelines import operate
    from streamgauge.pipelines.run_scope import shown_as
    from streamgauge.pipelines.services.flink_rest import FlinkRest

    flink = FlinkRest(f"http://{_cluster(options)}")
    if options.command == "savepoint":
        print(operate.savepoint(flink, options.job, options.to))
    elif options.command == "cancel":
        print(operate.cancel(flink, options.job))
    elif options.drain:
        with shown_as(options.job, False) as shown:
            shown.say(operate.drain(flink, options.job, shown))
    else:
        print(operate.stop(flink, options.job, options.to))
    return DONE


def _cluster(options: argparse.Namespace) -> str:
    from streamgauge.pipelines.operate import default_cluster

    return options.flink or default_cluster()


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
    names = options.servers or (list(stack.PORTS) if options.action == "down" else ["kafka", "questdb"])
    calls: dict[str, Callable[[], list[Any]]] = {
        "up": lambda: stack.up(names, folder, sizes=stack.Sizes(options.task_managers, options.slots)), "down": lambda: stack.down(names, folder), "status": lambda: stack.status(folder),
    }  # fmt: skip
    servers = calls[options.action]()
    if options.json:
        return _print_json([vars(server) for server in servers])
    for server in servers:
        print(f"{server.name:<10} {server.state:<8} {server.address or ''}".rstrip() + (f"  (log: {server.log})" if server.state == "died" and server.log else ""))
        for part, state in server.parts.items():
            print(f"  {part:<16} {state}")
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="streamgauge", description="Exact, live, windowed metrics from event streams.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"streamgauge {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run a job to its end, or until Ctrl-C", "Other options are passed to Beam, such as --parallelism=4.")
    _job(run)
    run.add_argument("--runner", help="direct, flink, dataflow, or a runner that Beam knows; default: direct where the input ends, else flink")
    run.add_argument("--flink", metavar="HOST:PORT", help="REST address of a Flink cluster (see `stack up flink`); default: an embedded Flink")
    run.add_argument("--fresh", action="store_true", help="start anew instead of resuming from the last checkpoint")
    run.add_argument("--replay", action="store_true", help="start from recorded positions instead of state, after a change that state does not survive: windows that were not complete are computed anew")
    run.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")

    run.add_argument("--detach", action="store_true", help="on a cluster: come back once the job runs")
    _restore(run)

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

    jobs = _command(commands, "jobs", _jobs, "list the jobs of a Flink cluster: state, checkpoints, restarts and why")
    _flink(jobs)
    jobs.add_argument("--json", action="store_true", help="as JSON")

    savepoint = _command(commands, "savepoint", _operate, "take a savepoint of a job, which goes on")
    stop = _command(commands, "stop", _operate, "end a job with a savepoint, or drained")
    cancel = _command(commands, "cancel", _operate, "end a job at once; its last checkpoint stays")
    for command in (savepoint, stop, cancel):
        command.add_argument("job", metavar="JOB", help="its name, its file, or Flink's id")
        _flink(command)
    for command in (savepoint, stop):
        command.add_argument("--to", type=Path, metavar="FOLDER", help="where the savepoint goes; default: where the cluster is configured to put them")
    stop.add_argument("--drain", action="store_true", help="no savepoint: the readers end where they are and all windows close, those still open with what was read")

    resume = _command(commands, "resume", _resume, "start a job from where its last run stopped, or from a savepoint", "Other options are passed to Beam, such as --parallelism=4.")
    rescale = _command(commands, "rescale", _rescale, "stop a job with a savepoint and start it from there with another parallelism")
    rescale.add_argument("--parallelism", type=int, required=True, help="the new one: 1 to 128, and no more than the cluster has slots")
    for command in (resume, rescale):
        _job(command)
        _flink(command)
        command.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")
    resume.add_argument("--follow", action="store_true", help="follow the job instead of coming back once it runs")
    _restore(resume)

    stack = _command(commands, "stack", _stack, "real local servers, their data in one folder")
    stack.add_argument("action", choices=("up", "down", "status"), help="start them, end them, or say what runs")
    stack.add_argument("servers", nargs="*", metavar="SERVER", help="kafka, questdb, flink; default: kafka and questdb, for down all")
    stack.add_argument("--folder", type=Path, help="where their data, logs and state are; default: .streamgauge/stack")
    stack.add_argument("--task-managers", type=int, default=1, metavar="N", help="of the Flink cluster (default: %(default)s)")
    stack.add_argument("--slots", type=int, default=2, metavar="N", help="of each TaskManager: how many parallel parts of jobs it runs (default: %(default)s)")
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


def _flink(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flink", metavar="HOST:PORT", help="REST address of the cluster; default: the one of `stack up flink` here, else 127.0.0.1:8081")


def _restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", type=Path, metavar="PATH", dest="restore_from", help="on a cluster: the savepoint or checkpoint to start from; default: where the last run stopped")
    parser.add_argument("--drop-state", action="store_true", help="on a cluster: forget the state of steps that the job no longer has")


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
    command()
