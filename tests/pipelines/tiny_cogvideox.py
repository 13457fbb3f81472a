"""CogVideoX' tiny pipelines: 3 frames of 3 x 5 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, t5, t5_tokenizer


def cogvideox(name: str, folder: Path) -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=24, num_layers=1,
        sample_width=10, sample_height=6, sample_frames=9, max_text_seq_length=8, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3, up_block_types=("CogVideoXUpBlock3D",) * 3, block_out_channels=(8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=4, sample_height=24, sample_width=40,
    )  # fmt: skip
    # draws noise at every step, from the call's generator
    return diffusers.CogVideoXPipeline(t5_tokenizer(), t5(), decoder.eval(), redraw(transformer), diffusers.CogVideoXDPMScheduler())


CALL = dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, num_frames=9, max_sequence_length=8)
TINY = {"CogVideoXPipeline": Tiny(cogvideox, CALL)}
