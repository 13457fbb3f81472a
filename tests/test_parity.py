"""Every plan against its own model on one process: the real class, random weights, odd sizes, all layouts."""

import pytest
import torch
from tiny import TINY, build

from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import init_mesh

LAYOUTS = {2: [(2, 1), (1, 2)], 3: [(3, 1), (1, 3)], 4: [(2, 2), (4, 1)]}


def error(out, expected):
    """Largest difference relative to the largest expected value."""
    return ((out - expected).abs().max() / expected.abs().max()).item()


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def parity(name, layouts, methods=("rotate", "gather")):
    """Per layout: the error on this rank and whether unparallelize gave the very same output again."""
    model, inputs = build(name)
    expected = run(model, inputs)
    results = {}
    for ulysses, ring in layouts:
        for method in methods if ring > 1 else methods[:1]:
            config = ParallelConfig(ulysses, ring, ring_method=method)
            if ulysses > 3 and name == "cogvideox_2b":
                continue  # three heads
            parallelize(model, init_mesh(config, "cpu"))
            out = run(model, inputs)
            unparallelize(model)
            results[str(config), method] = (out.shape == expected.shape, error(out, expected), torch.equal(run(model, inputs), expected))
    return results


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("name", TINY)
def test_sharded_output_equals_one_process(ranks, name, world_size):
    for results in ranks(world_size, parity, name, LAYOUTS[world_size]):
        assert results
        for layout, (same_shape, worst, restored) in results.items():
            assert same_shape, layout
            assert worst <= 1e-5, (layout, worst)
            assert restored, layout
