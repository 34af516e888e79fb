"""How many examples a property test tries."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("STREAMGAUGE_TEST_EXAMPLES", "1"))
"""Of the examples that a test asks for; ``scripts/test --fast`` tries a third of them."""


def examples(number: int) -> int:
    """So many, or a share of them: for Hypothesis' ``max_examples``."""
    return max(1, round(number * SHARE))
