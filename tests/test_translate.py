"""A transformer that dit-usp does not know runs by its own `_cp_plan`."""

import torch
from test_parity import error, run
from tiny import build

from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize, plan_of, unparallelize
from dit_usp.mesh import init_mesh
from dit_usp.translate import translated


def by_cp_plan(name, config):
    model, inputs = build(name)
    expected = run(model, inputs)
    parallelize(model, init_mesh(config, "cpu"), plan=translated(model))
    errors = [error(run(model, inputs), expected)]
    inputs = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :5], "txt_ids": inputs["txt_ids"][:5]}
    sharded = run(model, inputs)  # other lengths are learnt anew
    unparallelize(model)
    return [*errors, error(sharded, run(model, inputs))]


def test_translated_plans_equal_one_process(ranks):
    for world_size, config in ((2, ParallelConfig(2)), (3, ParallelConfig(1, 3)), (4, ParallelConfig(2, 2))):
        for errors in ranks(world_size, by_cp_plan, "flux", config):
            assert max(errors) <= 1e-5, config


def test_an_unknown_class_takes_the_translated_plan():
    model, _ = build("flux")

    class Unknown(torch.nn.Module):
        _cp_plan = type(model)._cp_plan

    assert plan_of(Unknown()).model == "Unknown"
    assert [str(word.place) for word in plan_of(Unknown()).words if hasattr(word, "place")] == ["proj_out"]
