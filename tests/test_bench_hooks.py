"""The script that measures our share of a step's time on the CPU runs, and its sums make sense. Times themselves are not judged here."""

import importlib.util
from pathlib import Path

from dit_usp.config import ParallelConfig
from dit_usp.sharding import Sharding

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_hooks.py"


def test_a_line_for_a_layout(capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_hooks", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    attend = Sharding.attend
    monkeypatch.setattr(bench, "LAYOUTS", [ParallelConfig(2)])
    monkeypatch.setattr("sys.argv", ["bench_hooks.py", "pixart", "--runs", "1"])
    bench.main()
    name, *layout, plain, hooks, attending, packing, sending, each, _ = capsys.readouterr().out.splitlines()[-1].split()
    assert (name, layout) == ("pixart", ["2", "x", "1"])
    assert abs(28 * float(each) / 1000 - sum(map(float, (attending, packing, sending)))) < 0.1
    assert 0 < float(hooks) < float(plain)
    assert Sharding.attend is attend
