"""A pipeline on several ranks makes the picture that diffusers makes on one."""

from __future__ import annotations

import numpy as np
import pytest
from calls import arguments, array, error, expected, made, plain, shared
from diffusers.callbacks import SD3CFGCutoffCallback

# Ulysses, ring, cfg, data
LAYOUTS = {
    2: [(2, 1), (1, 2), (1, 1, 2), (1, 1, 1, 2)],
    3: [(3, 1), (1, 3), (1, 1, 1, 3)],
    4: [(2, 2), (2, 1, 2), (1, 2, 2), (1, 1, 2, 2), (2, 1, 1, 2)],
}
# Thoroughly these; test_every_pipeline has all of them
FROM_TEXT = ("DiTPipeline", "PixArtSigmaPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "CogVideoXPipeline")
FROM_IMAGES = ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
NAMES = FROM_TEXT + FROM_IMAGES


def takes(name, degrees):
    return not (name.startswith("Flux") and len(degrees) > 2 and degrees[2] > 1)


def limit(name):
    """Latents to 1e-5; DiT's pipeline gives only pictures, from a decoder that adds rounding of its own."""
    return 1e-4 if name == "DiTPipeline" else 1e-5


def two(name):
    """A call for two pictures."""
    return {"class_labels": [3, 7]} if name == "DiTPipeline" else {"prompt": ["a red heart", "dog face"]}


def one_rank(name, path, changes):
    wanted = array(plain(name, path)(**arguments(name, changes))[0])
    with shared(name, path, (1,)) as pipe:
        output = pipe(**arguments(name, changes))
        return np.array_equal(wanted, array(output[0])), type(output) is type(plain(name, path)(**arguments(name, changes)))


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_is_diffusers_bit_for_bit(ranks, folder, name):
    assert ranks(1, one_rank, name, folder(name), {"seeds": 5}) == [(True, True)]


def several(name, path, layouts, changes):
    return [made(name, path, degrees, changes) for degrees in layouts]


@pytest.mark.parametrize("world_size", LAYOUTS)
@pytest.mark.parametrize("name", FROM_TEXT)
def test_latents_equal_one_process(ranks, folder, name, world_size):
    layouts = [degrees for degrees in LAYOUTS[world_size] if takes(name, degrees)]
    results = ranks(world_size, several, name, folder(name), layouts, two(name))
    wanted = expected(name, folder(name), **two(name))
    for degrees, out in zip(layouts, results[0], strict=True):
        assert error(out, wanted) <= limit(name), degrees
    assert all(out is None for result in results[1:] for out in result)


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_pipelines_that_start_from_a_picture(ranks, folder, name):
    layouts = [degrees for degrees in [(2, 1), (1, 1, 2)] if takes(name, degrees)]
    for out in ranks(2, several, name, folder(name), layouts, {})[0]:
        assert error(out, expected(name, folder(name))) <= 1e-5


@pytest.mark.parametrize(
    ("name", "output_type"), [*((name, "pil") for name in FROM_TEXT), ("PixArtSigmaPipeline", "np"), ("StableDiffusion3Pipeline", "pt")]
)
def test_pictures_are_the_same(ranks, folder, name, output_type):
    """At most 2 of 255 steps of brightness apart."""
    changes = two(name) | {"output_type": output_type}
    layout = (1, 1, 1, 2) if output_type == "pt" else (2, 1)
    out, nothing = ranks(2, made, name, folder(name), layout, changes)
    wanted = expected(name, folder(name), **changes)
    assert wanted.std() > (10 if output_type == "pil" else 0.05)  # not one flat colour
    assert np.abs(out.astype(float) - wanted).max() <= (2 if output_type == "pil" else 2 / 255)
    assert nothing is None


@pytest.mark.parametrize("layout", [(1, 1, 1, 2), (1, 1, 1, 4)])
@pytest.mark.parametrize("name", FROM_TEXT)
@pytest.mark.parametrize("seeds", [5, [1, 2, 3]])
def test_three_pictures_on_several_replicas(ranks, folder, name, seeds, layout):
    """Uneven shares, and an idle replica: from one stream of noise or from a seed each, they are what one process makes."""
    if not takes(name, layout):
        pytest.skip("Flux has no guidance halves")
    per_prompt = {"num_images_per_prompt": 3}
    changes = {"DiTPipeline": {"class_labels": [3, 7, 1]}, "CogVideoXPipeline": {"prompt": ["a red heart", "dog face", "cat"]}}.get(name, per_prompt)
    changes = changes | {"seeds": seeds}
    wanted = expected(name, folder(name), **changes)
    results = ranks(int(np.prod(layout)), made, name, folder(name), layout, changes)
    assert error(results[0], wanted) <= limit(name)
    assert all(out is None for out in results[1:])


def test_prompts_times_pictures_in_order(ranks, folder):
    """Negative prompts too go with their own prompt."""
    name, changes = "PixArtSigmaPipeline", {
        "prompt": ["a red heart", "dog face"], "negative_prompt": ["cat", "blue"], "num_images_per_prompt": 2, "seeds": [4, 3, 2, 1],
    }  # fmt: skip
    wanted = expected(name, folder(name), **changes)
    assert error(ranks(3, made, name, folder(name), (1, 1, 1, 3), changes)[0], wanted) <= 1e-5


def cut_off(name, path, degrees):
    return made(name, path, degrees, {"callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=0.0)})


def test_guidance_that_ends_under_way(ranks, folder):
    """Both halves of the ranks compute the rest, of one picture, whole."""
    name = "StableDiffusion3Pipeline"
    wanted = expected(name, folder(name), callback_on_step_end=SD3CFGCutoffCallback(cutoff_step_ratio=0.0))
    assert error(expected(name, folder(name)), wanted) > 1e-4
    assert error(ranks(2, cut_off, name, folder(name), (1, 1, 2))[0], wanted) <= 1e-5


@pytest.mark.parametrize("layout", [(2, 1, 2), (1, 2, 2), (1, 1, 2, 2)])
@pytest.mark.parametrize("name", ["WanPipeline", "ChromaPipeline"])
def test_guidance_in_two_calls(ranks, folder, name, layout):
    """Wan's has a transformer for the first steps, and one for the others."""
    changes = {"prompt": ["a red heart", "dog face"], "negative_prompt": ["cat", "blue"], "num_inference_steps": 5}
    wanted = expected(name, folder(name), **changes)
    results = ranks(4, made, name, folder(name), layout, changes)
    assert error(results[0], wanted) <= 1e-5
    assert all(out is None for out in results[1:])


def off_after(first_steps):
    """A callback that switches guidance off, which the pipeline's loop asks for anew at each step."""

    def callback(pipe, step, time, kept):
        pipe._guidance_scale = 3.0 if step + 1 < first_steps else 1.0
        return kept

    return callback


def calls_cut_off(name, path, degrees):
    return made(name, path, degrees, {"callback_on_step_end": off_after(3), "num_inference_steps": 6})


def test_second_calls_that_end_under_way(ranks, folder):
    name = "WanVideoToVideoPipeline"
    wanted = expected(name, folder(name), callback_on_step_end=off_after(3), num_inference_steps=6)
    assert error(expected(name, folder(name), num_inference_steps=6), wanted) > 1e-4
    assert error(ranks(2, calls_cut_off, name, folder(name), (1, 1, 2))[0], wanted) <= 1e-5


def from_embeds(name, path, degrees):
    """Ready embeddings instead of a prompt."""
    embeds, mask, _, _ = plain(name, path).encode_prompt(["a red heart", "cat"], False, max_sequence_length=9, device="cpu")
    negative, negative_mask, _, _ = plain(name, path).encode_prompt(["", ""], False, max_sequence_length=9, device="cpu")
    changes = dict(
        prompt=None, prompt_embeds=embeds, prompt_attention_mask=mask, negative_prompt=None, negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
    )  # fmt: skip
    return made(name, path, degrees, changes)


@pytest.mark.parametrize("layout", [(1, 1, 1, 2), (2,)])
def test_prompt_embeddings(ranks, folder, layout):
    name = "PixArtAlphaPipeline"
    wanted = expected(name, folder(name), prompt=["a red heart", "cat"], negative_prompt=["", ""])
    assert error(ranks(2, from_embeds, name, folder(name), layout)[0], wanted) <= 1e-5


def decoded(name, path, degrees):
    """How often this rank decoded."""
    calls, decoder = [], plain(name, path).vae
    decode = decoder.decode
    decoder.decode = lambda *args, **kwargs: calls.append(1) or decode(*args, **kwargs)
    try:
        made(name, path, degrees, two(name) | {"output_type": "pil"})
    finally:
        del decoder.decode
    return len(calls)


@pytest.mark.parametrize("name", FROM_TEXT)
def test_only_the_first_rank_of_a_replica_decodes(ranks, folder, name):
    """DiT's pipeline decodes whatever it is asked for."""
    assert ranks(2, decoded, name, folder(name), (2,)) == [1, 1 if name == "DiTPipeline" else 0]
    assert ranks(2, decoded, name, folder(name), (1, 1, 1, 2)) == [1, 1]
