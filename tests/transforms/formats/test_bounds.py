"""The kernels index raw memory: here they run in a process of their own that checks every access."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import random
import numba
from streamgauge.transforms.formats import compiled
from streamgauge.transforms.formats.payloads import BadPayloadError
from tests.transforms.formats import test_csv, test_json
from tests.transforms.formats.hostile import HALVES, NUMBERS, TEXTS, TIMES, batch

assert numba.config.BOUNDSCHECK
chance = random.Random(7)
values = [*NUMBERS, *('"%s"' % t for t in TIMES + TEXTS + HALVES)]
values += ["null", "true", "false", "{}", "[[]]", '{"a":1}', '"\\\\u00e9"', '"\\\\ud83d\\\\ude00"']
for format_, typical in ((test_json.ALL, test_json.TYPICAL), (test_csv.ALL, test_csv.TYPICAL)):
    whole = [v.encode("utf-8", "surrogatepass") for v in values] + typical
    whole += [b'{"%s":%s}' % (name.encode(), v) for name in test_json.SCHEMA for v in whole]
    cut = [p[:n] for p in chance.sample(whole, 60) + typical for n in range(len(p))]
    changed = []
    for _ in range(2_000):
        p = bytearray(chance.choice(whole) or b" ")
        p[chance.randrange(len(p))] = chance.choice(b'"\\\\{}[]:,.-+eE0u\\n\\x00\\x80\\xc3\\xed\\xf4\\xff ')
        changed.append(bytes(p))
    # Each alone, so that its neighbour's bytes are out of bounds too, and all together.
    for payload in cut + changed:
        format_.parse(batch([payload]))
    parsed = format_.parse(batch(whole + cut + changed))
    assert parsed.events.num_rows + len(parsed.rejects) == len(whole + cut + changed)
"""


@pytest.mark.integration
def test_no_kernel_leaves_its_memory(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", CODE], cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
