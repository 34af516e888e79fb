"""``streamgauge`` with batches of another size: ``python -m benchmarks.sized_job EVENTS run JOB.yaml ...``. Users have no such option: nobody needs it."""

from __future__ import annotations

import sys

from streamgauge.pipelines import cli
from streamgauge.transforms import read

if __name__ == "__main__":
    read.MAX_BATCH_EVENTS = int(sys.argv[1])
    sys.argv = ["streamgauge", *sys.argv[2:]]
    cli.command()
