"""PixArt's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, t5, t5_tokenizer, vae


def pixart(name: str, folder: Path) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32, sample_size=16,
        caption_channels=24,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return getattr(diffusers, name)(t5_tokenizer(), t5(), vae(), redraw(transformer), scheduler)


CALL = dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, max_sequence_length=9, use_resolution_binning=False)
TINY = {name: Tiny(pixart, CALL) for name in ("PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline")}
