"""Loading, saving, converting and calling USP pipelines as one does diffusers'."""

from __future__ import annotations

import io
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import torch.distributed as dist
from calls import arguments, array, error, expected, plain, shared
from safetensors.torch import save_file
from tiny_pipelines import build, default_call

from dit_usp import ParallelConfig, UnsupportedError, auto_pipeline, pipelines
from dit_usp.inject import mesh_of, unparallelize
from dit_usp.pipelines.base import sharded_parts

PIXART, SD3 = "PixArtAlphaPipeline", "StableDiffusion3Pipeline"


def loaded(path, degrees, dtype):
    """From files, on every rank; what load reports, and the picture."""
    stages, steps = [], []
    options = {"dtype": dtype} if dtype else {}
    pipe = auto_pipeline(path, parallel=ParallelConfig(*degrees) if degrees else None, on_stage=stages.append, **options)
    pipe.on_step = lambda step, total: steps.append((step, total))
    pipe.set_progress_bar_config(disable=True)
    call = {key: value for key, value in default_call(PIXART).items() if key != "use_resolution_binning"}
    output = pipe(**call, generator=torch.Generator().manual_seed(5), output_type="np")
    return type(pipe).__name__, str(pipe.mesh.config), str(pipe.transformer.dtype), str(pipe.text_encoder.dtype), stages, steps, output.images


@pytest.mark.parametrize("degrees", [(2,), None])
def test_from_pretrained_on_every_rank(ranks, folder, degrees):
    first, second = ranks(2, loaded, folder(PIXART), degrees, None)
    assert error(first[-1], expected(PIXART, folder(PIXART), output_type="np")) <= 1e-4
    assert second[-1] is None
    for name, config, *_, stages, steps, _ in (first, second):
        assert name == "USPPixArtAlphaPipeline"
        assert config == str(ParallelConfig(2) if degrees else ParallelConfig(cfg_degree=2))  # left alone, guidance is shared first
        assert stages == ["load", "encode", "denoise", "decode"]
        assert steps == [(1, 2), (2, 2)]


def test_every_part_gets_the_dtype_asked_for(ranks, folder, tmp_path):
    """Stored in half precision, transformers would keep it and diffusers would not."""
    build(PIXART, tmp_path).to(torch.float16).save_pretrained(tmp_path / "half")
    assert ranks(1, loaded, str(tmp_path / "half"), (1,), None)[0][2:4] == ("torch.float32", "torch.float32")
    assert ranks(1, loaded, str(tmp_path / "half"), (1,), torch.bfloat16)[0][2:4] == ("torch.bfloat16", "torch.bfloat16")


def of_several_models(name, path):
    """From files: the classes of what is shared, and the picture."""
    pipe = auto_pipeline(path, parallel=ParallelConfig(2))
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**arguments(name, {"seeds": 5, "output_type": "latent"}))
    return [type(part).__name__ for part in sharded_parts(pipe)], array(next(iter(vars(output).values())))


SEVERAL = {
    "FluxControlNetImg2ImgPipeline": ["FluxTransformer2DModel", "FluxControlNetModel"],
    "Ideogram4Pipeline": ["Ideogram4Transformer2DModel", "Ideogram4Transformer2DModel"],
    "WanPipeline": ["WanTransformer3DModel", "WanTransformer3DModel"],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_all_models_of_a_pipeline_are_shared(ranks, folder, name):
    (parts, out), (_, nothing) = ranks(2, of_several_models, name, folder(name))
    assert parts == SEVERAL[name]
    assert error(out, expected(name, folder(name))) <= 1e-5
    assert nothing is None


def saved(path, target):
    pipe = auto_pipeline(path, parallel=ParallelConfig(2))
    if dist.get_rank() == 0:
        pipe.save_pretrained(target)
        assert json.loads(pipe.to_json_string())["_class_name"] == PIXART
    return True


def test_a_saved_pipeline_is_diffusers_again(ranks, folder, tmp_path):
    assert all(ranks(2, saved, folder(PIXART), str(tmp_path)))
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(pipe) is diffusers.PixArtAlphaPipeline
    again = pipe(**default_call(PIXART), generator=torch.Generator().manual_seed(5), output_type="latent")[0]
    assert np.array_equal(again, expected(PIXART, folder(PIXART)))
    assert Path(tmp_path, "model_index.json").read_text().count("USP") == 0


def from_components(path):
    """Built from components, then given a mesh; and another class that takes over its parts and ranks."""
    from dit_usp.launch import join

    stored = diffusers.StableDiffusion3Pipeline.from_pretrained(path, dtype=torch.bfloat16)
    pipe = pipelines.USPStableDiffusion3Pipeline(**stored.components)
    assert pipe.mesh is None
    pipe.parallelize(join(ParallelConfig(2)))
    other = pipelines.USPStableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    assert other.mesh is pipe.mesh
    assert other.transformer is stored.transformer
    kept = other.transformer.dtype
    assert type(pipe).from_pipe(pipe, dtype=torch.float32).transformer.dtype == torch.float32
    call = default_call("StableDiffusion3Img2ImgPipeline")
    return str(kept), array(other(**call, generator=torch.Generator().manual_seed(5), output_type="np").images)


def test_from_components_and_from_another_pipeline(ranks, folder):
    (dtype, out), (_, nothing) = ranks(2, from_components, folder(SD3))
    assert dtype == "torch.bfloat16"
    assert out.shape == (1, 24, 40, 3)
    assert nothing is None


CONTROL = "StableDiffusion3ControlNetPipeline"


def with_a_net(path, net_path):
    """A shared pipeline's parts and ranks in a class with a ControlNet more, and in one that cannot take its layout."""
    steps = []
    with shared(SD3, path, (1, 1, 2)) as pipe, pytest.raises(UnsupportedError, match="which StableDiffusion3PAGPipeline does not make"):
        pipelines.USPStableDiffusion3PAGPipeline.from_pipe(pipe)
    with shared(SD3, path, (2,)) as pipe:
        pipe.on_step, pipe._graph = lambda step, total: steps.append(step), False
        other = pipelines.USPStableDiffusion3ControlNetPipeline.from_pipe(pipe, controlnet=plain(CONTROL, net_path).controlnet)
        assert other._graph is False
        assert [mesh_of(part) for part in sharded_parts(other)] == [pipe.mesh] * 2
        out = other(**arguments(CONTROL, {"seeds": 5, "output_type": "latent"})).images
        unparallelize(other.controlnet)
    return array(out), steps


def test_another_class_shares_what_is_new_to_it(ranks, folder):
    (out, steps), (_, others_steps) = ranks(2, with_a_net, folder(SD3), folder(CONTROL))
    assert error(out, expected(CONTROL, folder(CONTROL))) <= 1e-5
    assert steps == others_steps == [1, 2]


def of_a_single_file(path, file):
    """The transformer from one file, the other parts from elsewhere."""
    parts = {name: part for name, part in plain(SD3, path).components.items() if name != "transformer"}
    stages = []
    pipe = pipelines.USPStableDiffusion3Pipeline.from_single_file(
        file, config=path, parallel=ParallelConfig(2), on_stage=stages.append, graph=False, **parts
    )
    assert (pipe.mesh.config, pipe._graph, mesh_of(pipe.transformer)) == (ParallelConfig(2), False, pipe.mesh)
    with pytest.raises(UnsupportedError, match="ulysses_degree=8 needs at least 8 heads"):
        pipelines.USPStableDiffusion3Pipeline.from_single_file(file, config=path, parallel=ParallelConfig(8), **parts)
    return array(pipe(**arguments(SD3, {"seeds": 5, "output_type": "latent"})).images), stages


def test_from_a_single_file(ranks, folder, tmp_path):
    file = str(tmp_path / "all.safetensors")
    save_file(plain(SD3, folder(SD3)).transformer.state_dict(), file)
    (out, stages), (nothing, _) = ranks(2, of_a_single_file, folder(SD3), file)
    assert error(out, expected(SD3, folder(SD3))) <= 1e-5
    assert nothing is None
    assert stages == ["load", "encode", "denoise", "decode"]


def test_a_pipeline_that_diffusers_loads_from_no_single_file_has_no_such_method():
    assert not hasattr(pipelines.USPDiTPipeline, "from_single_file")


def call_forms(name, path):
    """Positional arguments, tuples, callbacks on every rank."""
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors), tuple(tensors["latents"].shape)))
        return {"latents": tensors["latents"] * 0.5} if step == 1 else {}

    with shared(name, path, (2,)) as pipe:
        call = default_call(name) | {"generator": torch.Generator().manual_seed(5), "output_type": "latent", "return_dict": False}
        prompt = call.pop("prompt")
        (by_position,) = pipe(prompt, **call)
        call["generator"].manual_seed(5)
        (halved,) = pipe(prompt, callback_on_step_end=callback, **call)
    return array(by_position), array(halved), seen


def test_forms_of_the_call(ranks, folder):
    first, second = ranks(2, call_forms, SD3, folder(SD3))
    wanted = expected(SD3, folder(SD3))
    assert error(first[0], wanted) <= 1e-5
    assert error(first[1], wanted * 0.5) <= 1e-5
    assert second[:2] == (None, None)
    assert first[2] == second[2] == [(step, ["latents"], (1, 16, 12, 20)) for step in (0, 1)]


def bars(name, path):
    """What each rank writes to its progress bar."""
    file = io.StringIO()
    with shared(name, path, (2,)) as pipe:
        pipe.set_progress_bar_config(file=file, mininterval=0)
        pipe(**default_call(name))
    return file.getvalue()


@pytest.mark.parametrize("name", [PIXART, "DiTPipeline"])
def test_one_bar_in_seconds_a_step(ranks, folder, name):
    first, second = ranks(2, bars, name, folder(name))
    assert "2/2" in first
    assert "s/it" in first
    assert second == ""


def lora_file(path, folder):
    """A LoRA of the transformer, trained by nobody."""
    from peft import LoraConfig, get_peft_model_state_dict

    transformer = diffusers.SD3Transformer2DModel.from_pretrained(path, subfolder="transformer")
    transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v", "proj_out"]))
    diffusers.StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))


def with_lora(name, path, lora):
    with shared(name, path, (2,)) as pipe:
        pipe.load_lora_weights(lora)
        out = pipe(**default_call(name), generator=torch.Generator().manual_seed(5), output_type="latent").images
        pipe.unload_lora_weights()
        without = pipe(**default_call(name), generator=torch.Generator().manual_seed(5), output_type="latent").images
    return array(out), array(without)


def test_a_lora_loaded_on_a_shared_pipeline(ranks, folder, tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(1)
    lora_file(folder(SD3), tmp_path)
    ordinary = diffusers.StableDiffusion3Pipeline.from_pretrained(folder(SD3), dtype=torch.float32)
    ordinary.load_lora_weights(tmp_path)
    wanted = ordinary(**default_call(SD3), generator=torch.Generator().manual_seed(5), output_type="latent").images.numpy()
    out, without = ranks(2, with_lora, SD3, folder(SD3), str(tmp_path))[0]
    assert error(out, wanted) <= 1e-5
    assert error(without, expected(SD3, folder(SD3))) <= 1e-5
    assert error(out, without) > 0.01


def test_plain_pipeline_is_not_touched(folder):
    """Loading the USP classes changes nothing in diffusers' own."""
    assert type(plain(PIXART, folder(PIXART))).__call__ is diffusers.PixArtAlphaPipeline.__call__
