"""Bria's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_image_parts import flux2_vae, qwen3_processor, qwen3_vl
from tiny_parts import HEIGHT, WIDTH, Tiny, t5, t5_tokenizer, vae
from tiny_video_parts import picture, wan_vae
from transformers import Qwen3VLForConditionalGeneration, SmolLM3Config, SmolLM3ForCausalLM

SIZES = dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, axes_dims_rope=[4, 6, 6])


def bria(name: str, folder: Path) -> Any:
    """Sixteen channels of a token, whose half the VAE counts as one more halving."""
    transformer = diffusers.BriaTransformer2DModel(in_channels=16, joint_attention_dim=24, **SIZES)
    return diffusers.BriaPipeline(
        transformer=redraw(transformer), vae=vae(shift_factor=0.1), text_encoder=t5(), tokenizer=t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def fibo(name: str, folder: Path) -> Any:
    """Each block reads a layer of the language model; a token is one latent of 16 x 16 pixels."""
    transformer = diffusers.BriaFiboTransformer2DModel(in_channels=4, joint_attention_dim=32, text_encoder_dim=16, **SIZES)
    config = SmolLM3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return getattr(diffusers, name)(
        transformer=redraw(transformer), vae=wan_vae(patch_size=2, in_channels=12, out_channels=12), text_encoder=SmolLM3ForCausalLM(config).eval(),
        tokenizer=t5_tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def fibo2(name: str, folder: Path) -> Any:
    """Reads up to the 35th layer of Qwen3-VL."""
    transformer = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, cap_feat_dim=48, injection_layer_ids=(0, 0, 0, 0, 1),
        perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=12, gist_step=2, gist_min_text_len=2, gist_max_text_len=16,
        axes_dims=(4, 6, 6), axes_lens=(64, 32, 32),
    )  # fmt: skip
    return diffusers.BriaFibo2Pipeline(
        transformer=redraw(transformer), vae=flux2_vae(), text_encoder=qwen3_vl(Qwen3VLForConditionalGeneration, layers=36),
        processor=qwen3_processor(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


CALL = dict(prompt="a red heart", negative_prompt="dog", height=HEIGHT, width=WIDTH, guidance_scale=2.0)

TINY = {
    "BriaPipeline": Tiny(bria, CALL | dict(max_sequence_length=9)),
    "BriaFiboPipeline": Tiny(fibo, CALL | dict(height=96, width=160)),
    "BriaFiboEditPipeline": Tiny(
        fibo, lambda: CALL | dict(prompt='{"edit_instruction": "a red heart"}', height=96, width=160, image=[picture(), picture(1, 64, 96)])
    ),
    "BriaFibo2Pipeline": Tiny(fibo2, lambda: CALL | dict(image=picture(height=HEIGHT, width=WIDTH))),
}
