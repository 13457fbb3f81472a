"""Mistakes that a plan for an image model can make without a crash of the model itself.

Each is made here on purpose: the picture comes out wrong, or we refuse. The plan we have is right (test_parity).
"""

import dataclasses

import pytest
import torch
from test_parity import error, forward
from tiny import build

from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize, plan_of, unparallelize
from dit_usp.mesh import init_mesh
from dit_usp.plan import Exchange, Gather, LogBase, Replicate, exchange, split


def without(plan, *kinds):
    return dataclasses.replace(plan, words=tuple(word for word in plan.words if not isinstance(word, kinds)))


def moved(plan, place, *words):
    """The word that names `place` replaced by others."""
    kept = [word for word in plan.words if place not in map(str, getattr(word, "places", ()))]
    assert len(kept) < len(plan.words)
    return dataclasses.replace(plan, words=(*kept, *words))


def text_cut_before_its_positions(plan):
    """Every rank would give its words the positions 0, 1, 2 ..."""
    plan = moved(plan, "pos_embed[1]")
    return moved(
        plan, "transformer_blocks.0:encoder_hidden_states", split(":encoder_hidden_states", ":encoder_hidden_states_mask", dim=1, stream="text")
    )


def whole_text_counted_by_every_rank(plan):
    plan = moved(plan, "txt_in")
    return dataclasses.replace(
        without(plan, Exchange), words=(*without(plan, Exchange).words, exchange("blocks.*.attention", queries="image", keys="?"))
    )


def shared_text_counted_by_every_rank(plan):
    words = without(plan, Exchange).words
    return dataclasses.replace(plan, words=(*words, exchange("transformer_blocks.*.attn", queries="image", keys="?")))


def scale_from_the_piece(plan):
    return without(plan, LogBase)


def experts_choose_from_the_piece(plan):
    return without(plan, Replicate)


def mask_product_of_the_piece(plan):
    words = [dataclasses.replace(word, call=dataclasses.replace(word.call, mask="")) if isinstance(word, Exchange) else word for word in plan.words]
    return dataclasses.replace(plan, words=tuple(words))


def registers_added_to_every_piece(plan):
    return moved(plan, "joint_transformer_blocks.0:encoder_hidden_states", split(":encoder_hidden_states", dim=1, stream="text"))


def length_taken_before_the_cut(plan):
    plan = moved(plan, ":hidden_states", split("transformer_blocks.0:hidden_states", ":img_ids", dim=-2, stream=("reference", "image")))
    return moved(plan, ":encoder_hidden_states", split("transformer_blocks.0:encoder_hidden_states", ":txt_ids", dim=-2, stream="text"))


def output_not_collected(plan):
    return without(plan, Gather)


WRONG = [
    ("qwen", text_cut_before_its_positions),
    ("prx", whole_text_counted_by_every_rank),
    ("nucleus", shared_text_counted_by_every_rank),
    ("nucleus", experts_choose_from_the_piece),
    ("lumina_next", scale_from_the_piece),
]
REFUSED = [
    ("chroma", mask_product_of_the_piece, "rows"),
    ("cogview4_masked", mask_product_of_the_piece, "rows"),
    ("glm_image_masked", mask_product_of_the_piece, "rows"),
    ("auraflow", registers_added_to_every_piece, "lengths says"),
    ("flux2", length_taken_before_the_cut, "on the ranks where the shard plan expects 30, 30"),
    ("pixart", output_not_collected, "gathers nothing"),  # else a batch of 1 on 2 ranks
    ("dit", output_not_collected, "gathers nothing"),  # else a smaller square
]


def mistaken(name, mistake, size=2, **options):
    """The error of a wrong plan on `size` ranks, or what it is refused with."""
    model, inputs = build(name, **options)
    expected = forward(model, inputs)
    try:
        parallelize(model, init_mesh(ParallelConfig(size), "cpu"), plan=mistake(plan_of(model)))
        out = forward(model, inputs)
    except (ValueError, RuntimeError) as refusal:
        return str(refusal)
    assert [o.shape for o in out] == [e.shape for e in expected]
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize(("name", "mistake"), WRONG)
def test_the_obvious_plan_is_wrong(ranks, name, mistake):
    for worst in ranks(2, mistaken, name, mistake):
        assert worst > 1e-3


@pytest.mark.parametrize(("name", "mistake", "message"), REFUSED)
def test_the_obvious_plan_is_refused(ranks, name, mistake, message):
    for refusal in ranks(2, mistaken, name, mistake):
        assert message in refusal


def list_of_the_caller():
    """HunyuanDiT pops ControlNet residuals from the list it is given: we give it another one."""
    model, inputs = build("hunyuan_dit")
    expected = forward(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    with torch.no_grad():
        first, second = (model(**inputs, return_dict=False)[0] for _ in range(2))
    unparallelize(model)
    assert len(inputs["controlnet_block_samples"]) == 1
    return error(first, expected[0]), error(second, expected[0])


def test_the_callers_list_is_left_alone(ranks):
    assert all(max(errors) <= 1e-5 for errors in ranks(2, list_of_the_caller))
