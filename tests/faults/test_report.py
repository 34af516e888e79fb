"""Results of runs, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.main import main
from tests.faults.report import END, START, Result, append, load, table

ONE = Result(1, 1_000, "cluster", "final", ["pool-kill"], 61.2, 2, 90, 5, "PASS")


def test_the_page_shows_the_results(tmp_path: Path) -> None:
    results, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    append(results, replace(ONE, seed=2, verdict="FAIL"))
    append(results, ONE)
    for _ in range(2):
        assert main(["--json", str(results), "--page", str(page)]) == 0
        assert page.read_text() == f"before\n{START}\n{table(load(results))}\n{END}\nafter\n"
    rows = table(load(results)).splitlines()
    assert rows[2].startswith("| 1 |") and rows[3].startswith("| 2 |")
    assert rows[4].endswith("| **1 PASS, 1 FAIL** |")


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--kinds", "flood"], ["--flink", "embedded", "--kinds", "pool-kill"], ["--page", "x"]):
        with pytest.raises(SystemExit) as raised:
            main(wrong)
        assert raised.value.code == 2
    assert "there is no flood; the kinds are worker-kill" in capsys.readouterr().err
