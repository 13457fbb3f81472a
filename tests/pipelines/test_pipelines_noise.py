"""Every rank draws the first rank's noise, whatever the call was given, and the first rank's generators move on as on one process."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
import torch.distributed as dist
from calls import array, error, expected, made, plain, shared
from tiny_pipelines import default_call

PIXART = "PixArtAlphaPipeline"
ONCE = default_call(PIXART) | {"output_type": "latent"}
TWO = ONCE | {"prompt": ["a red heart", "cat"]}


def from_default_generators(name, path, degrees, seed):
    """No generator: torch's default one of the first rank counts. The other ranks' is elsewhere."""
    plain(name, path)  # loading draws random numbers
    torch.manual_seed(seed + dist.get_rank())
    with shared(name, path, degrees) as pipe:
        out = array(pipe(**TWO)[0]) if dist.get_rank() == 0 else pipe(**TWO)
        return out if dist.get_rank() == 0 else None, torch.rand(3).tolist()


@pytest.mark.parametrize("degrees", [(2,), (1, 1, 2), (1, 1, 1, 2)])
def test_without_generator_the_first_ranks_default_one_counts(ranks, folder, degrees):
    results = ranks(2, from_default_generators, PIXART, folder(PIXART), degrees, 4)
    pipe = plain(PIXART, folder(PIXART))
    torch.manual_seed(4)
    wanted = array(pipe(**TWO)[0])
    assert error(results[0][0], wanted) <= 1e-5
    assert results[0][1] == torch.rand(3).tolist()  # and goes on from where one process would be


def twice(name, path, degrees, seeds):
    """Two calls with the same generators; on the other ranks their own are elsewhere."""
    generators = [torch.Generator().manual_seed(seed + 7 * dist.get_rank()) for seed in seeds]
    with shared(name, path, degrees) as pipe:
        outputs = [pipe(**TWO, generator=generators if len(generators) > 1 else generators[0]).images for _ in range(2)]
    return [array(out) for out in outputs] if dist.get_rank() == 0 else None


@pytest.mark.parametrize("degrees", [(2,), (1, 1, 1, 2)])
@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
def test_generators_move_on_as_on_one_process(ranks, folder, seeds, degrees):
    results = ranks(2, twice, PIXART, folder(PIXART), degrees, seeds)[0]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    wanted = [array(plain(PIXART, folder(PIXART))(**TWO, generator=generators if len(seeds) > 1 else generators[0])[0]) for _ in range(2)]
    assert error(results[0], wanted[0]) <= 1e-5
    assert error(results[1], wanted[1]) <= 1e-5
    assert error(results[0], results[1]) > 0.1


def from_latents(name, path, degrees):
    """Given latents differ between ranks; another rank is given none."""
    latents = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(dist.get_rank()))
    with shared(name, path, degrees) as pipe:
        output = pipe(**TWO, latents=None if dist.get_rank() == 1 else latents)
    return array(output.images)


@pytest.mark.parametrize("degrees", [(3,), (1, 1, 1, 3)])
def test_latents_come_from_the_first_rank(ranks, folder, degrees):
    latents = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    wanted = expected(PIXART, folder(PIXART), prompt=TWO["prompt"], latents=latents)
    assert error(ranks(3, from_latents, PIXART, folder(PIXART), degrees)[0], wanted) <= 1e-5


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_picture_is_a_function_of_its_own_seed(ranks, folder, count):
    """Whatever is made beside it, on however many replicas."""
    alone = expected(PIXART, folder(PIXART), seeds=[8])
    changes = {"seeds": [8, *range(count - 1)], "num_images_per_prompt": count}
    out = ranks(4, made, PIXART, folder(PIXART), (1, 1, 1, 4), changes)[0]
    assert len(out) == count
    assert error(out[:1], alone) <= 1e-5
    assert count == 1 or error(out[1:2], alone) > 0.1


def with_a_stochastic_scheduler(name, path, make, *how):
    """make(name, path, *how) with a scheduler that draws with randn_like, from the default generator."""
    pipe = plain(name, path)
    ordinary, pipe.scheduler = pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    try:
        return make(name, path, *how)
    finally:
        pipe.scheduler = ordinary


def six_steps(name, path):
    return expected(name, path, **SIX)


SIX = {"num_images_per_prompt": 3, "num_inference_steps": 6}


def test_noise_of_a_schedulers_steps_is_dealt_too(ranks, folder):
    name = "StableDiffusion3Pipeline"
    wanted = with_a_stochastic_scheduler(name, folder(name), six_steps)
    assert error(wanted, six_steps(name, folder(name))) > 0.01
    assert error(ranks(2, with_a_stochastic_scheduler, name, folder(name), made, (1, 1, 1, 2), SIX)[0], wanted) <= 1e-5


def methods_left(name, path):
    """Nothing of a call stays on the scheduler or the decoder, also when it fails."""
    with shared(name, path, (1, 1, 1, 2)) as pipe:
        with pytest.raises(ValueError, match=r"`height` and `width` have to be divisible by 8 but are 23 and 40\."):
            pipe(**TWO | {"height": 23})
        return [key for owner in (pipe.scheduler, pipe.vae) for key in ("step", "decode") if key in vars(owner)], len(
            pipe.transformer._forward_pre_hooks
        )


def test_a_failed_call_leaves_nothing_behind(ranks, folder):
    assert ranks(2, methods_left, PIXART, folder(PIXART)) == [([], 0)] * 2
    assert np.isfinite(ranks(2, made, PIXART, folder(PIXART), (1, 1, 1, 2), {})[0]).all()
