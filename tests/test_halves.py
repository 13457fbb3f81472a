"""cfg_degree=2 for every model whose guidance is two halves of one batch: the tiny models of the parity tests, batches of 2 and 3."""

import pytest
from test_parity import error, forward
from tiny import TINY, build

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.inject import parallelize, plan_of, unparallelize
from dit_usp.mesh import init_mesh

WHOLE = ("zimage_controlled", "omnigen_edit")  # their arguments hold all samples in one, and are refused


def halved(name):
    """The largest error over both batches; None for a model whose guidance is two calls."""
    if plan_of(build(name)[0]).guidance != "batch" or name == "sd3_skip":
        return None
    return max(_compared(*build(name, batch=batch)) for batch in (2, 3))


def _compared(model, inputs):
    expected = forward(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    out = forward(model, inputs)
    unparallelize(model)
    assert [o.shape for o in out] == [e.shape for e in expected]
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in TINY if name not in WHOLE])
def test_halves_equal_the_whole_batch(ranks, name):
    assert all(worst is None or worst <= 1e-5 for worst in ranks(2, halved, name))


def refused(name):
    with pytest.raises(UnsupportedError, match="cannot be halved for cfg_degree=2"):
        halved(name)
    return True


@pytest.mark.parametrize("name", WHOLE)
def test_what_holds_all_samples_is_refused(ranks, name):
    assert all(ranks(2, refused, name))
