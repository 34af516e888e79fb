"""``scripts/faults``: kills every part of a running job, at random, and compares what it stored with an independent answer."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.faults import KINDS
from tests.faults.report import append, load, put_into
from tests.faults.suite import Plan, kinds_of, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.page is not None:
        if options.json is None:
            parser.error("--page needs --json: the results that the table is made from")
        put_into(options.page, load(options.json))
        return 0
    kinds = options.kinds or kinds_of(options.flink)
    if unfit := [kind for kind in kinds if kind not in kinds_of(options.flink)]:
        parser.error(f"--kinds: an embedded Flink cannot be put through {', '.join(unfit)}")
    wrong = 0
    for seed in options.seeds:
        plan = Plan(seed, options.faults, options.events, options.flink, kinds, options.pace, options.limit)
        wrong += not _run(plan, options.json, keep=options.keep)
    if len(options.seeds) > 1:
        print(f"{len(options.seeds) - wrong} of {len(options.seeds)} seeds passed")
    return 1 if wrong else 0


def _run(plan: Plan, results: Path | None, *, keep: bool) -> bool:
    folder = Path(tempfile.mkdtemp(prefix=f"streamgauge-faults-{plan.seed}-"))
    right = False
    try:
        result, verdict = run(plan, folder, lambda text: print(text, flush=True))
        print(f"{verdict}\n{result.verdict}", flush=True)
        if results is not None:
            append(results, result)
        right = result.verdict == "PASS"
        return right
    finally:
        if keep or not right:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=lambda text: [int(text)], default=[1], dest="seeds", metavar="N", help="decides the events, the faults and their moments (default 1)")
    which.add_argument("--seeds", type=_range, metavar="A-B", help="several seeds, one after the other")
    parser.add_argument("--faults", type=int, default=5, metavar="K", help="faults in a run (default %(default)s)")
    parser.add_argument("--events", type=int, default=5_000_000, metavar="M", help="events in the topic (default %(default)s)")
    parser.add_argument("--flink", choices=("cluster", "embedded"), default="cluster", help="what runs the job (default %(default)s)")
    parser.add_argument("--kinds", type=_kinds, metavar="KIND,...", help=f"only these kinds of faults, of {', '.join(KINDS)}")
    parser.add_argument("--pace", type=float, default=20.0, metavar="SECONDS", help="how long reading all events takes at least (default %(default)s)")
    parser.add_argument("--limit", type=float, default=420.0, metavar="SECONDS", help="for the job of one seed (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line of JSON for each seed")
    parser.add_argument("--page", type=Path, metavar="FILE", help="run nothing: write the results in --json as the table of this page")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs, topic and tables (of a run that fails it is always kept)")
    return parser


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; the kinds are {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
