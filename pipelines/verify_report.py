"""The verdict of ``streamgauge verify``, for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from streamgauge.pipelines.verify import Verdict
from streamgauge.pipelines.verify_compare import Comparison, Difference


def show(verdict: Verdict, console: Console) -> None:
    """Prints what was compared, the first differences, and as the last line the verdict."""
    console.print(f"input: {verdict.events:,} events, {verdict.rejected:,} rejected", soft_wrap=True)
    for note in verdict.notes:
        console.print(f"  note: {note}", style="yellow", soft_wrap=True)
    for comparison in verdict.results:
        console.print(
            f"{comparison.what} in {comparison.store}: {comparison.windows or 0:,} windows, {comparison.compared:,} rows, {comparison.late:,} late events",
            soft_wrap=True, markup=False,
        )  # fmt: skip
        _details(comparison, console)
    for comparison in verdict.letters:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(comparison.reasons.items()))
        console.print(f"{comparison.what} in {comparison.store or 'no store'}: {comparison.compared:,}{f' ({reasons})' if reasons else ''}", soft_wrap=True, markup=False)
        _details(comparison, console)
    console.print(Text(verdict.summary(), "bold green" if verdict.agrees else "bold red"), soft_wrap=True)


def _details(comparison: Comparison, console: Console) -> None:
    for note in comparison.notes:
        console.print(Text(f"  note: {note}", "yellow"), soft_wrap=True)
    if comparison.differences:
        for line in _table(comparison.differences):
            console.print(Text(f"  {line}"), soft_wrap=True)
        more = comparison.differing - len({tuple(difference.key.items()) for difference in comparison.differences})
        if more > 0:
            console.print(f"  ... and {more:,} more rows", soft_wrap=True)


def _table(differences: list[Difference]) -> list[str]:
    """Lines of a table whose columns are as wide as they must be.

    >>> print("\\n".join(_table([Difference({"host": "a"}, "count", "5", "6")])))
    key     column  stored  expected
    host=a  count   5       6
    """
    rows = [("key", "column", "stored", "expected")]
    rows += [(" ".join(f"{name}={value}" for name, value in item.key.items()), item.column, item.stored, item.expected) for item in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
