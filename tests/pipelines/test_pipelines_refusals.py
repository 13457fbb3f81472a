"""Ranks that do not mean the same call, and combinations that cannot work: one line, alike on every rank, naming what to do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from calls import plain, shared
from PIL import Image
from tiny_pipelines import default_call

from dit_usp import ParallelConfig, UnsupportedError, auto_pipeline, pipelines
from dit_usp.cli.model import find_model

PIXART, SD3, FLUX = "PixArtAlphaPipeline", "StableDiffusion3Pipeline", "FluxPipeline"
SAME = "give every rank the same arguments."


def refused(name, path, degrees, calls):
    """The error this rank raises; calls: one for each rank, or one for all."""
    with shared(name, path, degrees) as pipe, pytest.raises(ValueError) as caught:  # noqa: PT011
        pipe(**default_call(name) | calls[dist.get_rank() % len(calls)])
    return type(caught.value).__name__, str(caught.value)


def check(ranks, folder, name, degrees, calls, kind, text):
    results = ranks(int(np.prod(degrees)), refused, name, folder(name), degrees, calls)
    assert results == [(kind, text)] * len(results)


def compiled_from_outside(name, path):
    with shared(name, path, (1, 1, 2)) as pipe:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
        with pytest.raises(UnsupportedError) as caught:
            pipe(**default_call(name) | {"true_cfg_scale": 3.0, "negative_prompt": "grey"})
    return str(caught.value)


def test_a_compilation_that_would_have_all_ranks_compute_both_calls(ranks, folder):
    for said in ranks(2, compiled_from_outside, FLUX, folder(FLUX)):
        assert re.search(
            r"torch.compile around FluxTransformer2DModel has every rank compute both. Compile it in place: transformer.compile\(\)", said
        )


DIFFERENT = {
    "prompt": ([{}, {"prompt": "dog face"}], "rank 1 was called with prompt='dog face', rank 0 with prompt='a red heart'"),
    "number": ([{}, {"guidance_scale": 4.5}], "rank 1 was called with guidance_scale=4.5, rank 0 with guidance_scale=3.0"),
    "given": ([{}, {"eta": 0.5}], "rank 1 was called with eta=0.5, rank 0 with eta=nothing"),
    "list": ([{"prompt": ["a", "b"]}, {"prompt": ["a"]}], "rank 1 was called with prompt=['a'], rank 0 with prompt=['a', 'b']"),
    "long": (
        [{"prompt": "a " * 90}, {"prompt": "a " * 90 + "b"}],
        "rank 1 was called with prompt='{0}..., rank 0 with prompt='{0}...".format("a " * 28),
    ),
    "tensor": (
        [{"prompt_attention_mask": torch.ones(1, 9)}, {"prompt_attention_mask": torch.ones(2, 9)}],
        "rank 1 was called with prompt_attention_mask=float32 (2, 9), rank 0 with prompt_attention_mask=float32 (1, 9)",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
@pytest.mark.parametrize("degrees", [(2,), (1, 1, 1, 2)])
def test_ranks_called_differently(ranks, folder, what, degrees):
    calls, text = DIFFERENT[what]
    check(ranks, folder, PIXART, degrees, calls, "ValueError", f"{text}: {SAME}")


def with_other_weights(name, path, degrees, part):
    """Rank 3 holds another text encoder, as after a half-finished download."""
    weight = next(getattr(plain(name, path), part).parameters())
    kept = weight.clone()
    if dist.get_rank() == 3:
        weight.data += 1
    try:
        return refused(name, path, degrees, [{}])
    finally:
        weight.data.copy_(kept)


@pytest.mark.parametrize("degrees", [(4,), (2, 1, 2), (1, 2, 2)])
def test_ranks_with_different_embeddings(ranks, folder, degrees):
    """Told at the first step, before a picture is half one and half the other."""
    for result in ranks(4, with_other_weights, PIXART, folder(PIXART), degrees, "text_encoder"):
        assert result == (
            "ValueError",
            "rank 3 enters the first step with other numbers in encoder_hidden_states, where rank 0 has float32 (2, 9, 24): "
            "the ranks hold different weights, schedulers or libraries.",
        )


def test_the_first_step_of_a_second_replica_names_its_own_ranks(ranks, folder):
    calls = [{"prompt": ["a red heart", "cat"]}]

    results, drawn = zip(*ranks(4, second_replica, PIXART, folder(PIXART), calls), strict=True)
    text = (
        "rank 3 enters the first step with other numbers in encoder_hidden_states, where rank 2 has float32 (2, 9, 24): "
        "the ranks hold different weights, schedulers or libraries."
    )
    assert list(results) == [("ValueError", f"replica 1: {text}")] * 2 + [("ValueError", text)] * 2
    assert list(drawn) == [torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).tolist()] * 4


def second_replica(name, path, calls):
    """What is said, and numbers drawn afterwards: a refused call leaves torch's own random functions as they were."""
    weight = next(plain(name, path).text_encoder.parameters())
    kept = weight.clone()
    if dist.get_rank() == 3:
        weight.data += 1
    try:
        said = refused(name, path, (2, 1, 1, 2), calls)
    finally:
        weight.data.copy_(kept)
    return said, torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).tolist()


REFUSED = {
    "guidance off": (PIXART, (1, 1, 2), {"guidance_scale": 1.0}, "UnsupportedError",
        "cfg_degree=2 shares the two halves of guidance, which guidance_scale=1 switches off. "
        "Try guidance_scale above 1, or cfg_degree=1 with ulysses_degree=1 ring_degree=2 ring_method='gather'."),
    "guidance off, on 4": (SD3, (2, 1, 2), {"guidance_scale": 0}, "UnsupportedError",
        "cfg_degree=2 shares the two halves of guidance, which guidance_scale=0 switches off. "
        "Try guidance_scale above 1, or cfg_degree=1 with ulysses_degree=4 ring_degree=1."),
    "guidance off, in calls": (FLUX, (1, 1, 2), {"true_cfg_scale": 1.0}, "UnsupportedError",
        "cfg_degree=2 shares the two halves of guidance, which true_cfg_scale=1 switches off. "
        "Try true_cfg_scale above 1, or cfg_degree=1 with ulysses_degree=1 ring_degree=2 ring_method='gather'."),
    "nothing to guide away from": (FLUX, (1, 1, 2), {"true_cfg_scale": 3.0}, "UnsupportedError",
        "cfg_degree=2 shares the two halves of guidance, which a missing negative_prompt switches off. "
        "Try negative_prompt=' ', or cfg_degree=1 with ulysses_degree=1 ring_degree=2 ring_method='gather'."),
    "one step": (PIXART, (2,), {"num_inference_steps": 1}, "ValueError",
        "PixArt makes a picture with DPMSolverMultistepScheduler in 2 steps or more, not 1."),
    "diffusers' own check": (PIXART, (2,), {"height": 23}, "ValueError",
        "`height` and `width` have to be divisible by 8 but are 23 and 40."),
    "generators": (PIXART, (1, 1, 1, 2), {"generator": [torch.Generator()] * 3}, "ValueError", "generator has 3 entries for 1 images."),
    "negative prompts": (PIXART, (1, 1, 1, 2), {"negative_prompt": ["a", "b"]}, "ValueError", "negative_prompt has 2 entries for 1 prompts."),
    "pictures on replicas": ("StableDiffusion3Img2ImgPipeline", (1, 1, 1, 2), {}, "UnsupportedError",
        "data_degree=2 cannot deal out image to replicas. Try data_degree=1 with ulysses_degree or ring_degree 2."),
    "a PIL picture on replicas": ("StableDiffusion3Img2ImgPipeline", (1, 1, 1, 2), {"image": [Image.new("RGB", (40, 24))]}, "UnsupportedError",
        "data_degree=2 cannot deal out image to replicas. Try data_degree=1 with ulysses_degree or ring_degree 2."),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_calls_that_cannot_work(ranks, folder, what):
    name, degrees, changes, kind, text = REFUSED[what]
    if "generator" in changes:  # a generator does not travel to the ranks
        check_generators(ranks, folder, kind, text)
    else:
        check(ranks, folder, name, degrees, [changes], kind, text)


def three_generators(path):
    return refused(PIXART, path, (1, 1, 1, 2), [{"generator": [torch.Generator() for _ in range(3)]}])


def check_generators(ranks, folder, kind, text):
    assert ranks(2, three_generators, folder(PIXART)) == [(kind, text)] * 2


def test_an_idle_replica_is_told_of_anothers_failure(ranks, folder):
    """Only one replica has a picture to make; the other must not wait for it."""
    first, second = ranks(2, refused, PIXART, folder(PIXART), (1, 1, 1, 2), [{"height": 23}])
    assert first == ("ValueError", "`height` and `width` have to be divisible by 8 but are 23 and 40.")
    assert second == ("ValueError", "replica 0: `height` and `width` have to be divisible by 8 but are 23 and 40.")


# -- told from config.json, before weights are loaded


def loading(name, path, degrees):
    cls = getattr(pipelines, f"USP{name}")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        cls.from_pretrained(path, parallel=ParallelConfig(*degrees))
    return type(caught.value).__name__, str(caught.value)


LAYOUTS = {
    "heads": (PIXART, (8,), 1, "UnsupportedError", "ulysses_degree=8 needs at least 8 heads; PixArtTransformer2DModel has 4. "
        "Try ulysses_degree=4 ring_degree=2."),
    "guidance": ("FluxFillPipeline", (2, 1, 2), 1, "UnsupportedError",
        "cfg_degree=2 needs guidance as two halves of one batch or two calls a step, which FluxFillPipeline does not make: it makes one call a step. "
        "Try cfg_degree=1 with ulysses_degree=4 ring_degree=1."),
    "world": (PIXART, (3,), 2, "ValueError", "ulysses 3 x ring 1 x cfg 1 x data 1 needs 3 ranks, but 2 were started."),
}  # fmt: skip


@pytest.mark.parametrize("what", LAYOUTS)
def test_layouts_are_refused_before_weights_are_read(ranks, folder, tmp_path, what):
    name, degrees, world_size, kind, text = LAYOUTS[what]
    for part in ("transformer/config.json", "model_index.json"):  # all there is
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text(Path(folder(name), part).read_text())
    assert ranks(world_size, loading, name, str(tmp_path), degrees) == [(kind, text)] * world_size


def other_devices(name, path):
    texts = []
    with shared(name, path, (2,)) as pipe:
        for call in (lambda: pipe.to("cuda"), lambda: pipe.to(torch.device("cuda", 1), torch.float16), lambda: pipe.to(device="meta")):
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                call()
            texts.append(str(caught.value))
        assert pipe.to("cpu") is pipe
        with pytest.raises(ValueError, match=re.escape("shared by ulysses 2 x ring 1 x cfg 1 x data 1 already, not by ulysses 1 x ring 2")):
            type(pipe).from_pipe(pipe, parallel=ParallelConfig(1, 2))
    return texts


def test_a_rank_stays_on_its_device(ranks, folder):
    for texts in ranks(2, other_devices, PIXART, folder(PIXART)):
        assert texts == [
            f"this rank computes on cpu; leave out .to('{device}'), or load with device_map='cpu' or 'cuda'." for device in ("cuda", "cuda:1", "meta")
        ]


def test_a_device_map_over_several_devices(folder):
    with pytest.raises(ValueError, match=re.escape("device_map='balanced' would spread one rank over devices; each rank has its own.")):
        pipelines.USPPixArtAlphaPipeline.from_pretrained(folder(PIXART), device_map="balanced")


def test_a_pipeline_without_a_usp_class(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    nearest = "StableDiffusion3Pipeline, StableDiffusion3PAGPipeline, StableDiffusion3InpaintPipeline"
    text = f"StableDiffusionXLPipeline at {tmp_path} has no USP pipeline. The nearest that have one: {nearest}."
    with pytest.raises(UnsupportedError, match=re.escape(text)):
        auto_pipeline(tmp_path)
    with pytest.raises(AttributeError, match="has no attribute 'USPStableDiffusionXLPipeline'"):
        _ = pipelines.USPStableDiffusionXLPipeline


@pytest.mark.parametrize("file", ["model_index.json", "modular_model_index.json"])
def test_a_modular_pipeline(tmp_path, file):
    (tmp_path / file).write_text('{"_class_name": "Flux3ModularPipeline"}')
    text = "Flux3ModularPipeline{} is a modular pipeline; call parallelize(pipe.transformer, mesh) on every rank."
    with pytest.raises(UnsupportedError, match=re.escape(text.format(f" at {tmp_path}"))):
        auto_pipeline(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"--model {tmp_path}: {text.format('')}")):
        find_model(str(tmp_path))
