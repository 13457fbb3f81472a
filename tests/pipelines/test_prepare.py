"""The command line on the folder of every pipeline: what its JSON files and its source say is enough for a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from files import prepared, write_configs
from tiny_pipelines import TINY, build

from dit_usp.cli import sizes
from dit_usp.cli.inputs import FROM_PYTHON
from dit_usp.cli.model import find_model

# What the pipelines call their factors once they are loaded.
SPATIAL = ("vae_scale_factor_spatial", "vae_scale_factor", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
# A constant of the pipeline, which its tiny VAE does not follow; or a number that has the packing in it.
FIXED = ("LuminaPipeline", "Lumina2Pipeline", "BriaFiboPipeline", "BriaFiboEditPipeline", "BriaPipeline", "ErnieImagePipeline")


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("name", sorted(set(TINY) - set(FROM_PYTHON)))
def test_every_pipeline_has_a_plan(name: str, inputs: Path, tmp_path: Path) -> None:
    pipe = build(name, tmp_path / "parts")
    model = find_model(str(write_configs(pipe, tmp_path / name)))
    made = prepared(model, inputs)
    assert f"by {name} of {model.name}" in made.plan[2]
    assert made.request.pictures[0].path.endswith({"picture": ".png", "clip": (".mp4", ".safetensors"), "sound": ".wav"}[model.call.kind])
    if model.call.kind != "sound" and name not in FIXED:
        assert sizes.pixels_a_latent(model.vae) == factor(pipe, SPATIAL, sizes.pixels_a_latent(model.vae))
    if model.call.kind == "clip":
        assert sizes.frames_a_latent(model.vae) == factor(pipe, TEMPORAL, 1)


def factor(pipe: Any, names: tuple[str, ...], otherwise: int | None) -> Any:
    return next((getattr(pipe, name) for name in names if hasattr(pipe, name)), otherwise)
