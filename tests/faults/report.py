"""Results of runs: a line of JSON each, and the table of docs/reliability.md made from them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

START, END = "<!-- faults:start -->", "<!-- faults:end -->"


@dataclass(frozen=True)
class Result:
    """One seed's run.

    Attributes:
        seed, events: of the workload. cluster: what ran the job. emit: its results, ``final`` or early ones too. kinds: of the faults that
            struck, in order. seconds: from the start of the command to its end. restarts: of the job by Flink. rows, letters: expected.
        verdict: PASS, FAIL, or FAIL with the reason why the job did not end well.
    """

    seed: int
    events: int
    cluster: str
    emit: str
    kinds: list[str]
    seconds: float
    restarts: int
    rows: int
    letters: int
    verdict: str


def append(path: Path, result: Result) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def load(path: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def table(results: list[Result]) -> str:
    """Markdown: a row a seed, and a last one with the sums.

    >>> print(table([Result(1, 1000, "cluster", "final", ["pool-kill", "pool-kill"], 61.2, 2, 90, 5, "PASS")]))
    | Seed | Flink | Events | Faults, in order | Seconds | Restarts | Rows | Dead letters | Verdict |
    |---:|---|---:|---|---:|---:|---:|---:|---|
    | 1 | cluster | 1,000 | pool-kill, pool-kill | 61 | 2 | 90 | 5 | PASS |
    | **1 run** | | 1,000 | **2** | 61 | 2 | 90 | 5 | **1 PASS** |
    """
    lines = ["| Seed | Flink | Events | Faults, in order | Seconds | Restarts | Rows | Dead letters | Verdict |", "|---:|---|---:|---|---:|---:|---:|---:|---|"]
    for each in sorted(results, key=lambda result: (result.cluster, result.seed)):
        lines.append(
            f"| {each.seed} | {each.cluster} | {each.events:,} | {', '.join(each.kinds)} | {each.seconds:.0f} | {each.restarts} | {each.rows:,} "
            f"| {each.letters:,} | {each.verdict} |"
        )
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(Counter(each.verdict for each in results).items(), reverse=True))
    total = f"**{len(results)} run{'s' if len(results) != 1 else ''}**"
    faults, seconds = sum(len(each.kinds) for each in results), sum(each.seconds for each in results)
    lines.append(
        f"| {total} | | {sum(each.events for each in results):,} | **{faults}** | {seconds:.0f} | {sum(each.restarts for each in results)} "
        f"| {sum(each.rows for each in results):,} | {sum(each.letters for each in results):,} | **{verdicts}** |"
    )
    return "\n".join(lines)


def put_into(page: Path, results: list[Result]) -> None:
    """Replaces what is between the markers of the page."""
    text = page.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    assert START in text and END in rest, f"{page} lacks the markers {START} and {END}"
    page.write_text(f"{before}{START}\n{table(results)}\n{END}{after}")
