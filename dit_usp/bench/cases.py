"""What is timed: transformers as published, by their configs, with the tokens of a common size. Adding one is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Rand = Callable[..., Tensor]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Attributes:
        model: the transformer's class.
        config: what differs from the class's defaults, which are the published model's.
        inputs: of one step, made by a function that draws tensors in the model's type.
        layers: the config's entries that count layers, with the published numbers.
        guided: both halves of guidance are one batch.
        two_calls: a step is both calls of guidance, one after the other.
    """

    model: str
    config: Mapping[str, Any]
    inputs: Callable[[Rand], Inputs]
    layers: Mapping[str, int]
    guided: bool = False
    two_calls: bool = False

    @property
    def halves(self) -> bool:
        """Whether a step has two halves that different ranks can compute."""
        return self.guided or self.two_calls


def _flux(pixels: int, rand: Rand) -> Inputs:
    side = torch.arange(pixels // 16).float()
    return dict(
        hidden_states=rand(1, len(side) ** 2, 64),
        encoder_hidden_states=rand(1, 512, 4096),
        pooled_projections=rand(1, 768),
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=torch.cartesian_prod(torch.zeros(1), side, side),
        txt_ids=torch.zeros(512, 3),
    )


def _pixart(pixels: int, rand: Rand) -> Inputs:
    return dict(
        hidden_states=rand(2, 4, pixels // 8, pixels // 8),
        encoder_hidden_states=rand(2, 300, 4096),
        timestep=torch.tensor([500, 500]),
        added_cond_kwargs={"resolution": torch.full((2, 2), float(pixels)), "aspect_ratio": torch.ones(2, 1)},
    )


def _sd3(pixels: int, rand: Rand) -> Inputs:
    return dict(
        hidden_states=rand(2, 16, pixels // 8, pixels // 8),
        encoder_hidden_states=rand(2, 333, 4096),
        pooled_projections=rand(2, 2048),
        timestep=torch.tensor([500, 500]),
    )


def _qwen(pixels: int, rand: Rand) -> Inputs:
    side = pixels // 16
    return dict(
        hidden_states=rand(1, side * side, 64),
        encoder_hidden_states=rand(1, 300, 3584),
        encoder_hidden_states_mask=None,  # as its pipeline passes it where no prompt is padded
        timestep=torch.tensor([0.5]),
        img_shapes=[[(1, side, side)]],
    )


def _dit(pixels: int, rand: Rand) -> Inputs:
    return dict(hidden_states=rand(2, 4, pixels // 8, pixels // 8), timestep=torch.tensor([500, 500]), class_labels=torch.tensor([7, 1000]))


def _cogvideox(frames: int, height: int, width: int, rand: Rand) -> Inputs:
    angles = rand(frames * height * width // 4, 64).float()
    return dict(
        hidden_states=rand(2, frames, 16, height, width),
        encoder_hidden_states=rand(2, 226, 4096),
        timestep=torch.tensor([500, 500]),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )


def _wan(frames: int, height: int, width: int, rand: Rand) -> Inputs:
    return dict(hidden_states=rand(1, 16, frames, height, width), encoder_hidden_states=rand(1, 512, 4096), timestep=torch.tensor([500]))


def _hunyuan_video(frames: int, height: int, width: int, rand: Rand) -> Inputs:
    return dict(
        hidden_states=rand(1, 16, frames, height, width),
        encoder_hidden_states=rand(1, 256, 4096),
        encoder_attention_mask=torch.ones(1, 256, dtype=torch.int64),
        pooled_projections=rand(1, 768),
        timestep=torch.tensor([500]),
        guidance=torch.tensor([6000.0]),
    )


_PIXART = dict(sample_size=128, caption_channels=4096, cross_attention_dim=1152, out_channels=8)
_SD35 = dict(sample_size=128, num_attention_heads=38, caption_projection_dim=2432, in_channels=16, pos_embed_max_size=192, qk_norm="rms_norm")
_COGVIDEOX = dict(num_attention_heads=48, use_rotary_positional_embeddings=True, sample_height=60, sample_width=90)
_WAN13 = Case("WanTransformer3DModel", dict(num_attention_heads=12, ffn_dim=8960), partial(_wan, 21, 60, 104), {"num_layers": 30})
_FLUX_LAYERS = {"num_layers": 19, "num_single_layers": 38}
CASES = {
    "dit-512": Case("DiTTransformer2DModel", dict(sample_size=64, out_channels=8), partial(_dit, 512), {"num_layers": 28}, guided=True),
    "pixart-1024": Case("PixArtTransformer2DModel", _PIXART, partial(_pixart, 1024), {"num_layers": 28}, guided=True),
    "pixart-2048": Case("PixArtTransformer2DModel", _PIXART, partial(_pixart, 2048), {"num_layers": 28}, guided=True),
    "sd35-1024": Case("SD3Transformer2DModel", _SD35, partial(_sd3, 1024), {"num_layers": 38}, guided=True),
    "flux-1024": Case("FluxTransformer2DModel", dict(guidance_embeds=True), partial(_flux, 1024), _FLUX_LAYERS),
    "flux-2048": Case("FluxTransformer2DModel", dict(guidance_embeds=True), partial(_flux, 2048), _FLUX_LAYERS),
    "qwen-1024": Case("QwenImageTransformer2DModel", {}, partial(_qwen, 1024), {"num_layers": 60}),
    "cogvideox-49f": Case("CogVideoXTransformer3DModel", _COGVIDEOX, partial(_cogvideox, 13, 60, 90), {"num_layers": 42}, guided=True),
    "wan1.3b-480p": _WAN13,
    "wan1.3b-480p-guided": replace(_WAN13, two_calls=True),
    "wan14b-480p": Case("WanTransformer3DModel", {}, partial(_wan, 21, 60, 104), {"num_layers": 40}),
    "hunyuan-720p": Case(
        "HunyuanVideoTransformer3DModel", {}, partial(_hunyuan_video, 9, 90, 160), {"num_layers": 20, "num_single_layers": 40}
    ),
}  # fmt: skip


def _model(case: Case, layers: int | None) -> nn.Module:
    counts = {name: min(count, layers or count) for name, count in case.layers.items()}
    return getattr(diffusers, case.model)(**case.config, **counts).eval().requires_grad_(False)


def build(case: Case, layers: int | None, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Inputs]:
    """The model, its weights drawn on the device alike on every rank and none of them zero, and its inputs.

    Args:
        layers: at most so many of each kind; None: all.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = case.inputs(lambda *shape: torch.randn(*shape, generator=generator).to(dtype))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = _model(case, layers)
    finally:
        torch.set_default_dtype(before)
    for parameter in model.parameters():
        if not parameter.is_meta and not parameter.any():
            parameter.normal_(std=0.02)
    return model, each_tensor(inputs, lambda tensor: tensor.to(device))


def calls_of(case: Case, inputs: Inputs) -> tuple[Inputs, ...]:
    """What the model is called with in one step."""
    return (inputs, inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"].flip(-1)}) if case.two_calls else (inputs,)


def run_step(model: nn.Module, calls: tuple[Inputs, ...]) -> Tensor:
    """A step's output: of its one call, or of two as guidance puts them together."""
    outputs = [model(**call, return_dict=False)[0] for call in calls]
    return outputs[0] if len(outputs) == 1 else outputs[1] + 5 * (outputs[0] - outputs[1])


def again(model: nn.Module, case: Case, layers: int | None) -> nn.Module:
    """Another module with the same weights, which it shares."""
    with torch.device("meta"):
        other = _model(case, layers)
    other.load_state_dict(model.state_dict(), assign=True)
    for name, module in other.named_modules():  # tables that are not saved are lost on the meta device
        own = model.get_submodule(name)
        tables = {key: value for key, value in (*vars(own).items(), *own._buffers.items()) if isinstance(value, Tensor)}
        for key, table in tables.items():
            setattr(module, key, table)
    return other


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same inputs with every tensor changed."""
    if isinstance(value, tuple):
        return tuple(each_tensor(item, change) for item in value)
    if isinstance(value, dict):
        return {key: each_tensor(item, change) for key, item in value.items()}
    return change(value) if isinstance(value, Tensor) else value
