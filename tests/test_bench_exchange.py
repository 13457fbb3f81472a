"""scripts/bench_exchange.py on gloo: every exchange has a time at every size. Times themselves are not judged."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from ranks import RankPool, run_script

SCRIPT = str(Path(__file__).parents[1] / "scripts" / "bench_exchange.py")


def test_every_exchange_has_a_time(ranks: RankPool, tmp_path: Path) -> None:
    first, second = ranks.launched(2, run_script, SCRIPT, str(tmp_path), "--device", "cpu", "--mib", "1", "2")
    rows = re.findall(r"^ +(\d+) MiB  (.{10}) +([\d.]+) \(([\d.]+) to ([\d.]+)\)$", first, re.MULTILINE)
    assert [(size, name.strip()) for size, name, *_ in rows] == list(product(("1", "2"), ("gather", "in place", "pass", "all-to-all")))
    assert all(0 < float(least) <= float(median) <= float(most) for *_, median, least, most in rows)
    assert not second
