"""The tiny models at the width they are published with: their heads, head sizes, hidden sizes and rotary axes, as few layers, the same small inputs.

A class's defaults are its published config, so that its width is what they say; `PUBLISHED` has what they do not. Channels, words and their sizes
stay those of the tiny model, whose inputs fit therefore, but for residuals and rotary tables.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tiny import TINY, controlnet, image, image_more, image_rest, video
from tiny.tools import Inputs, redraw

WIDTHS = (
    {"num_attention_heads", "attention_head_dim", "num_heads", "n_heads", "head_dim", "dit_heads", "linear_head_dim"}
    | {"num_key_value_heads", "num_key_value_attention_heads", "num_kv_heads", "n_kv_heads"}
    | {"hidden_size", "dim", "model_dim", "embed_dim", "dit_dim", "model_channels", "caption_projection_dim"}
    | {"ffn_dim", "ff_dim", "intermediate_size", "ffn_hidden_size", "ff_inner_dim", "moe_intermediate_dim"}
    | {"mlp_ratio", "mlp_width_ratio", "ff_mult", "multiple_of"}
    | {"axes_dims_rope", "rope_axes_dim", "axes_dims", "axes_dim_rope", "axes_dim", "rope_dim", "rope_dim_list", "mrope_section"}
    | {"rope_freq_dim", "rotary_dim", "axes_lens"}
    | {"cross_attention_dim", "num_cross_attention_heads", "cross_attention_head_dim", "cross_attn_num_heads", "cross_attn_dim_head"}
    | {"audio_num_attention_heads", "audio_attention_head_dim", "audio_cross_attention_dim"}
    | {"face_encoder_hidden_dim", "face_encoder_num_heads"}
    | {"time_embed_dim", "time_embed_hidden_dim", "timestep_embed_dim", "time_dim", "timestep_channels", "freq_dim"}
    | {"adaln_dim", "adaln_lora_dim"}
)
_WAN = dict(added_kv_proj_dim=5120)
PUBLISHED: dict[str, dict[str, Any]] = {  # by class: no default, or one that fits no published model
    "ChronoEditTransformer3DModel": _WAN,
    "CosmosControlNetModel": dict(num_attention_heads=16),
    "ConsisIDTransformer3DModel": dict(num_attention_heads=48, LFE_output_dim=2048),
    "Cosmos3OmniTransformer": dict(rope_axes_dim=(24, 20, 20)),
    "HiDreamImageTransformer2DModel": dict(axes_dims_rope=(64, 32, 32)),
    "HunyuanDiT2DControlNetModel": dict(hidden_size=1408),
    "HunyuanDiT2DModel": dict(hidden_size=1408),
    "Kandinsky6Transformer3DModel": dict(model_dim_a=4096, ff_dim_a=16384, axes_dims_a=(32, 48, 48)),
    "LatteTransformer3DModel": dict(attention_head_dim=72, cross_attention_dim=1152),
    "LuminaNextDiT2DModel": dict(num_kv_heads=8),
    "NucleusMoEImageTransformer2DModel": dict(num_key_value_heads=4),
    "OmniGenTransformer2DModel": dict(rope_scaling={"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}),
    "PRXTransformer2DModel": dict(axes_dim=[32, 32]),
    "WanAnimateTransformer3DModel": _WAN,
}
TEXT = {"HunyuanDiT2DControlNetModel", "HunyuanDiT2DModel", "LuminaNextDiT2DModel"}  # whose cross_attention_dim is the size of the words
RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples", "block_controlnet_hidden_states")
ROTATIONS = ("image_rotary_emb", "rotary_embedding", "video_rotary_emb")
HEADED = ("video_rotary_emb",)  # (batch, heads, tokens, size)


ODD = dict(HEIGHT=5, WIDTH=11, TOKENS=55)


@contextlib.contextmanager
def odd_pictures() -> Iterator[None]:
    """Pictures of 55 tokens, which 2, 3 and 4 ranks cut unevenly. Clips and sounds are odd anyway; the 60 of other tests make mistakes fit."""
    with contextlib.ExitStack() as stack:
        for module in (controlnet, image, image_more, image_rest, video):
            stack.enter_context(mock.patch.multiple(module, **{name: value for name, value in ODD.items() if hasattr(module, name)}))
        yield


def wide(name: str, device: torch.device) -> tuple[nn.Module, Inputs]:
    """The case `name` at its published width on the device, its weights drawn alike on every rank, and its inputs."""
    tiny, inputs = TINY[name]()
    config = wide_config(tiny)
    with torch.device(device):
        model = type(tiny)(**config)
    if isinstance(model, diffusers.ZImageControlNetModel):  # it shares embedders
        model = diffusers.ZImageControlNetModel.from_transformer(model, wide("zimage", device)[0])
    for place, module in tiny.named_modules():
        if backend := getattr(getattr(module, "processor", None), "_attention_backend", None):
            model.get_submodule(place).processor._attention_backend = backend
    return redraw(model.to(device)), moved(_fitted(inputs, _settings(tiny), config), device)


def wide_config(tiny: nn.Module) -> dict[str, Any]:
    """The tiny model's config with the published widths."""
    own, cls = _settings(tiny), type(tiny)
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls.__init__).parameters.items()}
    widths = WIDTHS - {"cross_attention_dim"} if cls.__name__ in TEXT else WIDTHS
    return own | {name: defaults[name] for name in own if name in widths and defaults[name] is not None} | PUBLISHED.get(cls.__name__, {})


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """All tensors on the device."""
    return tree_map(lambda item: item.to(device) if isinstance(item, Tensor) else item, inputs)


def _settings(model: nn.Module) -> dict[str, Any]:
    """What a model was built with."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def _fitted(inputs: Inputs, tiny: Mapping[str, Any], real: Mapping[str, Any]) -> Inputs:
    """The same inputs, but for those that have the model's width."""
    fitted = dict(inputs)
    for names, size in ((RESIDUALS, _hidden), (ROTATIONS, _head_size)):
        fitted |= {name: _stretched(inputs[name], -1, size(tiny), size(real)) for name in names if name in inputs}
    heads = tiny.get("num_attention_heads", 1), real.get("num_attention_heads", 1)
    return fitted | {name: _stretched(fitted[name], 1, *heads) for name in HEADED if name in inputs}


def _stretched(value: Any, dim: int, tiny: int, real: int) -> Any:
    """Every tensor of floats in `value`, its dim longer in the relation of both sizes; neighbours repeat, so that cosine and sine stay together."""

    def stretch(item: Any) -> Any:
        if not isinstance(item, Tensor) or not (item.is_floating_point() or item.is_complex()):
            return item
        size = item.shape[dim] * real // tiny
        return item.index_select(dim, torch.arange(size) * item.shape[dim] // size)

    return tree_map(stretch, value)


def _hidden(config: Mapping[str, Any]) -> int:
    return (
        next((config[name] for name in ("hidden_size", "dim") if config.get(name)), 0) or config["num_attention_heads"] * config["attention_head_dim"]
    )


def _head_size(config: Mapping[str, Any]) -> int:
    return config.get("attention_head_dim") or config["hidden_size"] // config["num_attention_heads"]
