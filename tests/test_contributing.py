"""CONTRIBUTING's worked example is run as it stands there: its shard plan on its tiny config, two ranks against one process."""

import dataclasses
import re
from pathlib import Path

import pytest
from test_parity import error, run
from tiny import image
from tiny.tools import redraw

from dit_usp import plan as words
from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import init_mesh
from dit_usp.plan import Call, Exchange

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def worked_example():
    """The page's entry and tiny config, run where they would stand: the plan, the model, its inputs."""
    entry, config = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert entry.count("\n") <= 10
    scope = dict(vars(image))
    exec(config, scope)
    model, inputs = scope[re.search(r"def (\w+)", config)[1]]()
    return eval(entry.rstrip().rstrip(","), dict(vars(words))), redraw(model), inputs


def without_exchange(plan):
    local = [dataclasses.replace(word, call=Call(local=True)) if isinstance(word, Exchange) else word for word in plan.words]
    return dataclasses.replace(plan, words=tuple(local))


def parity(ulysses, ring, cfg, sabotage):
    plan, model, inputs = worked_example()
    expected = run(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(ulysses, ring, cfg), "cpu"), plan=without_exchange(plan) if sabotage else plan)
    out = run(model, inputs)
    unparallelize(model)
    assert out.shape == expected.shape
    return error(out, expected)


@pytest.mark.parametrize("degrees", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_the_worked_example_equals_one_process(ranks, degrees):
    assert max(ranks(2, parity, *degrees, False)) <= 1e-5


def test_the_worked_example_needs_its_exchange(ranks):
    assert min(ranks(2, parity, 2, 1, 1, True)) > 1e-3
