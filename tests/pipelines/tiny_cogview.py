"""CogView's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import build, redraw
from tiny_parts import Tiny, picture, t5, t5_tokenizer, vae
from transformers import GlmConfig, GlmModel


def cogview3(name: str, folder: Path) -> Any:
    transformer, _ = build("cogview3")
    scheduler = diffusers.CogVideoXDPMScheduler()  # draws noise at every step
    return diffusers.CogView3PlusPipeline(t5_tokenizer(), t5(), vae(), transformer, scheduler)


def cogview4(name: str, folder: Path) -> Any:
    """A picture to follow comes as more channels."""
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=8 if "Control" in name else 4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embed_dim=24,
        time_embed_dim=32, condition_dim=8, rope_axes_dim=(64, 64),
    )  # fmt: skip
    config = GlmConfig(
        vocab_size=32, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        pad_token_id=0,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256)
    return getattr(diffusers, name)(t5_tokenizer(), GlmModel(config).eval(), vae(), redraw(transformer), scheduler)


CALL = dict(prompt="a red heart", height=32, width=48, max_sequence_length=9)
TINY = {
    "CogView3PlusPipeline": Tiny(cogview3, CALL),
    "CogView4Pipeline": Tiny(cogview4, CALL),
    "CogView4ControlPipeline": Tiny(cogview4, lambda: CALL | dict(control_image=picture())),
}
