"""``scripts/bench --latency``: how long after an event its effect can be read, and how late final rows are, on one machine.

``python -m benchmarks.latency --seconds 20 --rate 20000 --store sqlite`` for a short try.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import latency_trace
from benchmarks.latency_figures import SHARES
from benchmarks.latency_producer import PARTITIONS
from benchmarks.latency_run import Case, Outcome, run
from benchmarks.measure import ContenderFailed
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.kafka import KafkaServer
from streamgauge.pipelines.services.questdb import QuestDbServer

RATES = (1_000, 20_000, 100_000)
STORES = ("sqlite", "questdb")
CONTENDERS = ("streamgauge", "python-loop")
SMALL_WINDOWS_MS = (100, 250)
SMALL_RATE = 20_000
SECONDS = 120.0
BROKER = {"num.network.threads": 1, "num.io.threads": 2}
"""The broker is on the same two cores: with its dozen threads it took half a core for 20,000 events a second, with these half of that."""
_SHOWN = ("samples", *(f"p{share:g}" for share in SHARES), "max")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    cases = chosen(options)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamgauge-latency-")))
        kafka = stack.enter_context(KafkaServer(folder / "kafka", properties=BROKER))
        questdb = stack.enter_context(QuestDbServer(folder / "questdb")) if any(case.store == "questdb" for case in cases) else None
        for number, case in enumerate(cases):
            print(f"{case.contender}, {case.store}, {case.rate:,} events/s, windows of {case.window_ms} ms, emit {case.emit} ...", flush=True)
            outcome = run(case, options.seconds, kafka.brokers, questdb.url if questdb else "", folder / f"case-{number}", options.trace)
            show(outcome)
            outcomes.append(outcome)
            if options.json is not None:
                options.json.write_text(json.dumps([row for found in outcomes for row in rows(found)], indent=1) + "\n")
    return 0 if all(outcome.correct for outcome in outcomes) else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="scripts/bench --latency", description="Milliseconds from an event to its effect in a store, beside a plain loop.")
    made.add_argument("--seconds", type=float, default=SECONDS, help="Measured seconds of each case, after 20 s to get warm (default %(default)s).")
    made.add_argument("--rate", type=int, action="append", help=f"Events per second; may be repeated (default {', '.join(map(str, RATES))}).")
    made.add_argument("--store", action="append", choices=STORES, help="Only this store; may be repeated.")
    made.add_argument("--contender", action="append", choices=CONTENDERS, help="Only this contender; may be repeated.")
    made.add_argument("--window-ms", type=int, action="append", help="Windows of so many milliseconds, multiples of 50 (default 1000, and 100 and 250 at one rate).")
    made.add_argument("--emit", default="on_change", help="Early results of windows of a second and more: on_change, final, or a period such as 50ms (default %(default)s).")
    made.add_argument("--shards", type=int, default=1, help="Parts that the keys are divided into (default %(default)s).")
    made.add_argument("--partitions", type=int, default=PARTITIONS, help="Of the topic (default %(default)s).")
    made.add_argument("--option", action="append", default=[], help="One more argument for `streamgauge run`, as in --option=--parallelism=1; may be repeated.")
    made.add_argument("--trace", action="store_true", help="Also note where each probe was and when: see latency_trace.py.")
    made.add_argument("--json", type=Path, help="Write the figures as a list of objects to this file.")
    made.add_argument("--keep", type=Path, help="Keep logs and notes in this folder, which must be new or empty.")
    return made


def chosen(options: argparse.Namespace) -> list[Case]:
    """Every contender, store and rate with windows of a second; small windows at one rate, for their final rows only."""
    given = options.window_ms
    cases = []
    for store in options.store or STORES:
        for contender in options.contender or CONTENDERS:
            for window in given or (1000, *SMALL_WINDOWS_MS):
                small = window < 1000
                rates = options.rate or ((SMALL_RATE,) if small else RATES)
                emit = "final" if small else options.emit
                cases += [Case(contender, store, rate, window, emit, options.shards, options.partitions, tuple(options.option)) for rate in rates]
    return cases


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Flat rows: what was run, what is measured, during what, figures in milliseconds."""
    case = outcome.case
    named = {"contender": case.contender, "store": case.store, "rate": case.rate, "window_ms": case.window_ms, "emit": case.emit, "shards": case.shards, "partitions": case.partitions, "options": list(case.options)}
    about = {"correct": outcome.correct, "seconds": outcome.seconds, "counts": outcome.counts, "producer": outcome.producer, "cpu_s": outcome.cpu_s, **({"where": outcome.where} if outcome.where else {})}
    live = [{**named, "measure": "event to live row", **row, **about} for row in outcome.live]
    final = [{**named, "measure": f"window end to final row, {what}", "during": "all", **row, **about} for what, row in outcome.final.items()]
    return [*live, *final]


def show(outcome: Outcome) -> None:
    case = outcome.case
    table = Table(title=f"{case.contender}, {case.store}, {case.rate:,} events/s, windows of {case.window_ms} ms, emit {case.emit}; milliseconds")
    table.add_column("measure")
    table.add_column("during")
    for name in _SHOWN:
        table.add_column(name, justify="right")
    for row in rows(outcome):
        table.add_row(row["measure"], row["during"], *("-" if row[name] is None else f"{row[name]:,}" if name == "samples" else f"{row[name]:,.1f}" for name in _SHOWN))
    console = Console()
    (console if console.is_terminal else Console(width=130)).print(table)
    behind, acknowledged = outcome.producer["behind"] * 1000, outcome.producer["acknowledged_ms"]
    print(f"producer: {outcome.producer['sent']:,} events, at most {behind:.0f} ms behind; acknowledged after {acknowledged} ms")
    latency_trace.show(outcome.where)
    print(f"{outcome.counts}, CPU seconds {outcome.cpu_s}, every event in one final row: {'yes' if outcome.correct else 'NO'}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ContenderFailed, ServiceError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
