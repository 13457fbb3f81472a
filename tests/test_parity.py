"""Every plan against its own model on one process: the real class, random weights, odd sizes, all layouts."""

import copy

import pytest
import torch
from tiny import TINY, build

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import init_mesh
from dit_usp.places import argument_names

LAYOUTS = {2: [(2, 1), (1, 2)], 3: [(3, 1), (1, 3)], 4: [(2, 2), (4, 1)]}
THOROUGH = (
    "dit",
    "pixart",
    "pixart_masked",
    "sd3",
    "sd35",
    "flux",
    "flux_controlled",
    "cogvideox",
    "cogvideox_2b",
)  # every layout, both ring methods


def error(out, expected):
    """Largest difference relative to the largest expected value."""
    return ((out - expected).abs().max() / expected.abs().max()).item()


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def tensors(output):
    """Every tensor of an output: transformers return one, ControlNets lists or dicts, some models two streams."""
    if isinstance(output, torch.Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in tensors(item)] if isinstance(output, (dict, list, tuple)) else []


def parity(name, layouts, methods):
    """Per layout: the error on this rank and whether unparallelize gave the very same output again."""
    model, inputs = build(name)
    expected = forward(model, inputs)
    results = {}
    for ulysses, ring in layouts:
        for method in methods if ring > 1 else methods[:1]:
            config = ParallelConfig(ulysses, ring, ring_method=method)
            try:
                parallelize(model, init_mesh(config, "cpu"))
            except UnsupportedError as refusal:
                if "heads" not in str(refusal):  # a tiny model may have fewer than there are ranks
                    raise
                continue
            out = forward(model, inputs)
            unparallelize(model)
            again = forward(model, inputs)
            assert [o.shape for o in out] == [e.shape for e in expected], config
            worst = max(error(o, e) for o, e in zip(out, expected, strict=True))
            results[str(config), method] = (worst, all(torch.equal(a, e) for a, e in zip(again, expected, strict=True)))
    return results


def forward(model, inputs):
    """All output tensors, from inputs that nobody has changed (some models pop from their arguments)."""
    options = {"return_dict": False} if "return_dict" in argument_names(model) else {}
    with torch.no_grad():
        return tensors(model(**copy.deepcopy(inputs), **options))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("name", TINY)
def test_sharded_output_equals_one_process(ranks, name, world_size):
    thorough = name in THOROUGH
    layouts = LAYOUTS[world_size] if thorough else LAYOUTS[world_size][: 1 + (world_size == 2)]
    for results in ranks(world_size, parity, name, layouts, ("rotate", "gather") if thorough else ("rotate",)):
        assert results
        for layout, (worst, restored) in results.items():
            assert worst <= 1e-5, (layout, worst)
            assert restored, layout
