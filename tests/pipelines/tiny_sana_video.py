"""SANA's video pipelines: Gemma's text, Wan's or LTX-2's VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from tiny import redraw
from tiny_ltx2 import vae as ltx2_vae
from tiny_parts import Tiny, t5_tokenizer
from tiny_video_parts import gemma2, picture, wan_vae


def sana_video(name: str, folder: Path) -> Any:
    dit = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=12, num_layers=1, num_cross_attention_heads=4,
        cross_attention_head_dim=12, cross_attention_dim=48, caption_channels=16, sample_size=8,
    )  # fmt: skip
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
    image = name == "SanaImageToVideoPipeline"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if image else diffusers.DPMSolverMultistepScheduler(**flow)
    return getattr(diffusers, name)(tokenizer=t5_tokenizer(), text_encoder=gemma2(), vae=wan_vae(), transformer=redraw(dit), scheduler=scheduler)


def sana_wm(name: str, folder: Path) -> Any:
    dit = diffusers.SanaWMTransformer3DModel(
        in_channels=6, num_layers=1, hidden_size=64, num_attention_heads=4, softmax_every_n=2, linear_head_dim=16, caption_channels=16,
        mlp_ratio=2.0,
    )  # fmt: skip
    return diffusers.SanaWMPipeline(
        tokenizer=t5_tokenizer(), text_encoder=gemma2(causal=True), vae=ltx2_vae(), transformer=redraw(dit),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def path() -> np.ndarray:
    """A camera's, to the right."""
    poses = np.tile(np.eye(4, dtype=np.float32), (17, 1, 1))
    poses[:, 0, 3] = np.arange(17) / 17
    return poses


CALL = dict(
    prompt="a red heart", height=32, width=96, frames=9, guidance_scale=3.0, use_resolution_binning=False, max_sequence_length=9,
    complex_human_instruction=["a big"],
)  # fmt: skip
WALK = dict(prompt="a red heart", height=96, width=160, guidance_scale=3.0, max_sequence_length=9, chi_prompt=["a big"])

TINY = {
    "SanaVideoPipeline": Tiny(sana_video, CALL),
    "SanaImageToVideoPipeline": Tiny(sana_video, lambda: CALL | dict(image=picture())),
    "SanaWMPipeline": Tiny(sana_wm, lambda: WALK | dict(image=picture(), c2w=path(), intrinsics=[80.0, 80.0, 40.0, 24.0])),
}
