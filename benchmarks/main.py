"""``scripts/bench``: what is measured, by option."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import aggregates, instructions, latency, metrics, report, variants, windows
from benchmarks.contenders import CONTENDERS
from benchmarks.measure import ContenderFailed
from streamgauge.pipelines.services.errors import ServiceError
from streamgauge.pipelines.services.kafka import KafkaServer


def main() -> int:
    if "--instructions" in sys.argv:
        return instructions.main(["--write"] if "--write" in sys.argv else [])
    if "--latency" in sys.argv:
        return latency.main([argument for argument in sys.argv[1:] if argument != "--latency"])
    options = parser().parse_args()
    return beside(options) if options.windows is not None or options.aggregates or options.variants is not None else metrics.main(options)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="scripts/bench", description="Events per second and per CPU second, beside baselines, in one run.")
    made.add_argument("--events", type=int, default=3_000_000, help="Events in the topic (default %(default)s).")
    made.add_argument("--runs", type=int, default=1, help="Runs of each contender; the table has their medians, --json all (default %(default)s).")
    made.add_argument("--only", action="append", choices=list(CONTENDERS), help="Only this contender; may be repeated.")
    made.add_argument("--json", type=Path, help="Write the figures as a list of objects to this file.")
    made.add_argument("--compare", type=Path, help="Also show the figures as multiples of those in this file, which an earlier run wrote with --json.")
    made.add_argument("--stages", action="store_true", help="Instead: CPU time an event of each step alone, without Flink.")
    made.add_argument("--windows", nargs="*", choices=windows.PARTS, help="Instead: what keys, sessions, sliding windows and windows with hardly an event cost; no Kafka. All, or those named.")
    made.add_argument("--aggregates", action="store_true", help="Instead: CPU time an event and state a key of each aggregate; no Kafka.")
    made.add_argument("--variants", nargs="*", choices=variants.VARIANTS, metavar="VARIANT", help=f"Instead: one thing changed at a time. All, or those named: {', '.join(variants.VARIANTS)}.")
    made.add_argument("--instructions", action="store_true", help="Instead: machine instructions an event of the kernels, beside those of an earlier commit; --write keeps them for later ones.")
    made.add_argument("--latency", action="store_true", help="Instead: milliseconds from an event to its effect in a store; see scripts/bench --latency --help.")
    return made


def beside(options: argparse.Namespace) -> int:
    """What has tables of its own."""
    title = f"{options.events:,} events, median of {options.runs}"
    with tempfile.TemporaryDirectory(prefix="streamgauge-bench-") as name:
        folder = Path(name)
        if options.aggregates:
            title, rows = "Beside count, 1,000 keys; the first line is count itself", aggregates.measure()
        elif options.variants is not None:
            with KafkaServer(folder / "kafka") as kafka:
                names = options.variants or list(variants.VARIANTS)
                rows = [row.as_dict() for row in variants.measure(names, kafka.brokers, options.events, options.runs, folder, _say)]
        else:
            parts = tuple(options.windows) or windows.PARTS
            rows = [row.as_dict() for row in windows.measure(parts, options.events, options.runs, folder, _say)]
    _print(title, [{name: value for name, value in row.items() if name != "runs"} for row in rows])
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row.get("correct", True) for row in rows) else 1


def _say(text: str) -> None:
    print(text, flush=True)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_text(name, value) for name, value in row.items()))
    report.console().print(table)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.2f}" if name == "times" else f"{value:,.0f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ContenderFailed, ServiceError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
