"""Perturbed attention (PAG): pipelines set its processors at every call and put back what they found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from test_every_pipeline import called, errors
from tiny_pipelines import build

from dit_usp import ParallelConfig, pipelines
from dit_usp.inject import unparallelize


def processors(pipe):
    return [type(module.processor) for module in pipe.transformer.modules() if hasattr(module, "processor")]


def twice(name, degrees, folder):
    """Without guidance, so of two parts; errors of both calls, and what is left of the processors."""
    pipe, changes = build(name, Path(folder, str(dist.get_rank()))), {"guidance_scale": 1.0}
    _, wanted = called(pipe, name, changes)
    before = processors(pipe)
    shared = getattr(pipelines, f"USP{name}").from_pipe(pipe, parallel=ParallelConfig(*degrees))
    given = [called(shared, name, changes)[1] for _ in range(2)]
    between = processors(pipe)
    called(shared, name, changes)
    assert processors(pipe) == between  # nothing piles up
    unparallelize(pipe.transformer)
    assert processors(pipe) == before
    return [errors(outs, wanted) for outs in given]


@pytest.mark.parametrize("name", ["StableDiffusion3PAGPipeline", "PixArtSigmaPAGPipeline", "SanaPAGPipeline"])
def test_calls_without_guidance_one_after_the_other(ranks, tmp_path, name):
    for worst in ranks(2, twice, name, (1, 2), str(tmp_path)):
        assert max(worst) <= 1e-5
