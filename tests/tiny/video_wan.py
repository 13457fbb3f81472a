"""Tiny transformers of the Wan family: one sequence of latent patches, text beside it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tiny.tools import Inputs, rand, times

FRAMES, HEIGHT, WIDTH = 3, 5, 7  # latent patches; 105 tokens
TEXT = 512  # Wan's own count: an image's context is what the text leaves of it


def _config(**config: Any) -> dict[str, Any]:
    sizes = dict(num_attention_heads=3, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=24, num_layers=2)
    return sizes | dict(rope_max_seq_len=32) | config


def _inputs(batch: int, text: int = 9) -> Inputs:
    return dict(
        hidden_states=rand(batch, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        timestep=(1000 * times(batch)).long(),
        encoder_hidden_states=rand(batch, text, 16, seed=2),
    )


def wan(batch: int = 2) -> tuple[nn.Module, Inputs]:
    return diffusers.WanTransformer3DModel(**_config()), _inputs(batch)


def wan_i2v(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """An image's CLIP tokens before the text: Wan 2.1's image-to-video."""
    model = diffusers.WanTransformer3DModel(**_config(image_dim=10, added_kv_proj_dim=36, qk_norm="rms_norm_across_heads"))
    return model, _inputs(batch, TEXT) | dict(encoder_hidden_states_image=rand(batch, 5, 10, seed=3))


def wan_ti2v(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A time for every token: Wan 2.2's, whose first frame is clean."""
    timestep = torch.full((batch, FRAMES, HEIGHT * WIDTH), 300)
    timestep[:, 0] = 0
    return diffusers.WanTransformer3DModel(**_config()), _inputs(batch) | dict(timestep=timestep.flatten(1))


def wan_vace(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.WanVACETransformer3DModel(**_config(num_layers=3, vace_layers=[0, 2], vace_in_channels=6))
    control = rand(batch, 6, FRAMES, 2 * HEIGHT, 2 * WIDTH, seed=3)
    return model, _inputs(batch) | dict(control_hidden_states=control, control_hidden_states_scale=torch.tensor([0.7, 1.0]))


def chronoedit(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Two frames, the second at the end of time."""
    model = diffusers.ChronoEditTransformer3DModel(**_config(image_dim=10, added_kv_proj_dim=36, rope_temporal_skip_len=4))
    inputs = _inputs(batch, TEXT) | dict(encoder_hidden_states_image=rand(batch, 5, 10, seed=3))
    return model, inputs | dict(hidden_states=rand(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH))


def skyreels(batch: int = 2) -> tuple[nn.Module, Inputs]:
    return diffusers.SkyReelsV2Transformer3DModel(**_config()), _inputs(batch)


def skyreels_forcing(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Diffusion forcing: a time for every frame, and frames that see no later ones."""
    model = diffusers.SkyReelsV2Transformer3DModel(**_config(num_frame_per_block=2))
    return model, _inputs(batch) | dict(
        hidden_states=rand(batch, 4, 4, 2 * HEIGHT, 2 * WIDTH),
        timestep=torch.tensor([[0, 100, 300, 500]]).expand(batch, -1).contiguous(),
        enable_diffusion_forcing=True,
    )


def helios(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Short, middle and long history before the latents, at time zero and amplified."""
    config = _config(rope_dim=(4, 4, 4), is_amplify_history=True)
    config.pop("rope_max_seq_len")
    model = diffusers.HeliosTransformer3DModel(**config)
    frames = dict(short=2, mid=2, long=4)
    history = {f"latents_history_{name}": rand(batch, 4, n, 2 * HEIGHT, 2 * WIDTH, seed=n) for name, n in frames.items()}
    indices = {f"indices_latents_history_{name}": torch.arange(n).expand(batch, -1) + 2 for name, n in frames.items()}
    return model, _inputs(batch) | history | indices | dict(indices_hidden_states=torch.arange(10, 10 + FRAMES).expand(batch, -1))


def helios_first(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """The first section: nothing came before."""
    model, inputs = helios(batch)
    return model, {name: value for name, value in inputs.items() if "history" not in name}


def anyflow(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.AnyFlowTransformer3DModel(**_config())
    times = torch.linspace(100, 900, batch * FRAMES).view(batch, FRAMES)
    return model, _inputs(batch) | dict(hidden_states=rand(batch, FRAMES, 4, 2 * HEIGHT, 2 * WIDTH), timestep=times, r_timestep=times - 50)


def wan_animate(batch: int = 2, width: int = WIDTH) -> tuple[nn.Module, Inputs]:
    """A pose added to the latents, and a face that is read frame by frame."""
    config = _config(latent_channels=4, image_dim=10, added_kv_proj_dim=36) | dict(in_channels=12)
    model = diffusers.WanAnimateTransformer3DModel(
        **config, motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4}, motion_encoder_size=16, motion_style_dim=4, motion_dim=3,
        motion_encoder_dim=6, face_encoder_hidden_dim=8, face_encoder_num_heads=2, inject_face_latents_blocks=1,
    )  # fmt: skip
    return model, _inputs(batch, TEXT) | dict(
        hidden_states=rand(batch, 12, FRAMES, 2 * HEIGHT, 2 * width),
        encoder_hidden_states_image=rand(batch, 5, 10, seed=3),
        pose_hidden_states=rand(batch, 4, FRAMES - 1, 2 * HEIGHT, 2 * width, seed=4),
        face_pixel_values=rand(batch, 3, 4 * (FRAMES - 1), 16, 16, seed=5),
    )


TINY = {
    make.__name__: make
    for make in (
        wan,
        wan_i2v,
        wan_ti2v,
        wan_vace,
        chronoedit,
        skyreels,
        skyreels_forcing,
        helios,
        helios_first,
        anyflow,
        wan_animate,
    )
}
