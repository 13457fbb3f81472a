"""scripts/bench_kernels.py on tiny shapes: every shape has a time and a fastest. Times themselves are not judged."""

import re
import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "bench_kernels.py"))
SHAPES = [(8, 16, 16), (8, 8, 16), (8, 2, 16), (12, 16, 16), (12, 8, 16), (12, 2, 16)]


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert SCRIPT["main"](["--device", "cpu", "--head-sizes", "8", "12", "--lengths", "16", "--heads", "2", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_shape_has_times_and_a_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys)
    assert lines[0].endswith("--head-sizes 8 12 --lengths 16 --heads 2")
    assert re.match(r"CPU, \d+ threads, torch \d", lines[1])
    assert lines[3].split() == ["head", "queries", "keys", "sdpa", "cpu", "fastest;", "with", "LSE"]
    rows = [re.fullmatch(r" *(\d+) +(\d+) +(\d+)(?: +[\d.]+ \([\d.]+\)){2}  (sdpa|cpu); cpu", line) for line in lines[4:10]]
    assert [tuple(map(int, row.groups()[:3])) for row in rows if row] == SHAPES
    assert "head size 12, fastest with LSE: cpu in 3" in lines


def test_what_there_was_no_time_for_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "--seconds", "0")
    assert all(line.endswith("-                 -  none; none") for line in lines[4:10])
    assert "not measured: sdpa, head size 8: no time was left" in lines


def test_flops_are_those_of_the_two_products() -> None:
    shape = SCRIPT["Shape"](batch=1, heads=24, head_dim=128, queries=4608, keys=4608)
    assert shape.flops / 0.417e-3 == pytest.approx(626e12, rel=0.01)  # cuDNN on an H100, in TFLOP/s by hand
