"""No plan makes the CPU wait for a GPU where the model alone does not: once its lengths are learnt, a step is launched in one go."""

import copy

import pytest
import torch
from test_caches import flux2_steps, glm_steps, nucleus_steps, qwen21_steps
from test_parity import tensors
from tiny import TINY, build
from tiny.tools import redraw
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map
from waits import Waits

from dit_usp.bench import alone
from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize
from dit_usp.mesh import init_mesh


@pytest.fixture
def mesh(monkeypatch):
    """This process as the first of four ranks, the others copies of it: half the heads, and half the keys."""
    whole = flex_attention.flex_attention

    def unseen(*args, **kwargs):  # it is compiled, and looks for modes
        with _disable_current_modes():
            return whole(*args, **kwargs)

    monkeypatch.setattr(flex_attention, "flex_attention", unseen)
    alone.start(4)
    return init_mesh(ParallelConfig(2, 2), "cpu")


def step(model, inputs):
    """A forward with the same tensors as the last one, as a pipeline makes it."""
    own = tree_map(lambda value: value if isinstance(value, Tensor) else copy.deepcopy(value), inputs)  # some models pop from their arguments
    return tensors(model(**own))


def waits(function, *args):
    with Waits() as waits, torch.no_grad():
        function(*args)
    return waits.met


def more(model, mesh, function, *args):
    """What the parallel model waits for beyond the model alone."""
    expected = waits(function, *args)
    parallelize(model, mesh)
    with torch.no_grad():  # the first forward learns lengths
        function(*args)
    return waits(function, *args) - expected


@pytest.mark.parametrize("name", TINY)
def test_no_plan_adds_a_wait(mesh, name):
    model, inputs = build(name)
    assert not more(model, mesh, step, model, inputs)


@pytest.mark.parametrize(("make", "reads"), [(flux2_steps, 1), (glm_steps, 4), (qwen21_steps, 0), (nucleus_steps, 0)])
def test_steps_with_a_cache_wait_once_for_each_way_to_use_it(mesh, make, reads):
    model, steps = make()
    assert more(redraw(model), mesh, steps)["tolist"] == reads


def test_what_is_counted():
    mask = torch.tensor([True, False])
    assert waits(lambda: mask[mask]) == {"index": 1}
    assert waits(mask.nonzero) == {"nonzero": 1}
    assert waits(lambda: mask.sum().item()) == {"_local_scalar_dense": 1}
    assert waits(lambda: bool(mask.any())) == {"_local_scalar_dense": 1}
    assert waits(mask.tolist) == {"tolist": 1}
    assert waits(lambda: mask.repeat_interleave(mask.long()))["repeat_interleave"] == 1
    assert not waits(lambda: mask.repeat_interleave(2)[1:].float() @ torch.ones(3))
