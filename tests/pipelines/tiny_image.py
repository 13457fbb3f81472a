"""Tiny image pipelines of families with one pipeline: ERNIE-Image, Ideogram 4, Krea 2, NucleusMoE, Ovis-Image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_image_parts import flux2_vae, qwen3, qwen3_processor, qwen3_vl, qwen_tokenizer, qwen_vae
from tiny_parts import HEIGHT, WIDTH, Tiny, t5_tokenizer, vae
from transformers import Mistral3Config, Mistral3Model, MistralConfig, PixtralVisionConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

SIZES = dict(num_layers=2, attention_head_dim=16, num_attention_heads=4)


def ernie(name: str, folder: Path) -> Any:
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=64, num_attention_heads=4, num_layers=2, ffn_hidden_size=64, in_channels=16, out_channels=16, text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    text = MistralConfig(vocab_size=32, num_key_value_heads=1, pad_token_id=0, **sizes)
    config = Mistral3Config(text_config=text, vision_config=PixtralVisionConfig(image_size=32, patch_size=16, **sizes))
    return diffusers.ErnieImagePipeline(
        transformer=redraw(transformer), vae=flux2_vae(), text_encoder=Mistral3Model(config).eval(), tokenizer=t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def ideogram(name: str, folder: Path) -> Any:
    """Guidance by another transformer; thirteen layers of Qwen3-VL, up to the 36th, are read."""
    config = SIZES | dict(in_channels=16, intermediate_size=64, adaln_dim=32, llm_features_dim=13 * 16, rope_theta=10000, mrope_section=(3, 3, 2))
    transformer, without_text = (redraw(diffusers.Ideogram4Transformer2DModel(**config)) for _ in range(2))
    for parameter in without_text.parameters():
        parameter.data = -parameter.data  # not the same numbers
    return diffusers.Ideogram4Pipeline(
        transformer=transformer, unconditional_transformer=without_text, vae=flux2_vae(), text_encoder=qwen3_vl(Qwen3VLModel, layers=36),
        tokenizer=qwen_tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def krea2(name: str, folder: Path) -> Any:
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_key_value_heads=2, intermediate_size=64, timestep_embed_dim=32, text_hidden_dim=16, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6), **SIZES,
    )  # fmt: skip
    return diffusers.Krea2Pipeline(
        transformer=redraw(transformer), vae=qwen_vae(), text_encoder=qwen3_vl(Qwen3VLModel), tokenizer=qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), text_encoder_select_layers=(1, 2, 3),
    )  # fmt: skip


def nucleus(name: str, folder: Path) -> Any:
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16, out_channels=4, num_key_value_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6), num_experts=4,
        moe_intermediate_dim=32, capacity_factors=2.0, **SIZES,
    )  # fmt: skip
    return diffusers.NucleusMoEImagePipeline(
        transformer=redraw(transformer), vae=qwen_vae(), text_encoder=qwen3_vl(Qwen3VLForConditionalGeneration), processor=qwen3_processor(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def ovis(name: str, folder: Path) -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, num_single_layers=1, joint_attention_dim=16, axes_dims_rope=(4, 6, 6), **SIZES
    )
    return diffusers.OvisImagePipeline(
        transformer=redraw(transformer), vae=vae(shift_factor=0.1), text_encoder=qwen3(), tokenizer=qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


CALL = dict(prompt="a red heart", height=HEIGHT, width=WIDTH)
GUIDED = CALL | dict(negative_prompt="dog", guidance_scale=2.0)

TINY = {
    "ErnieImagePipeline": Tiny(ernie, GUIDED),
    "Ideogram4Pipeline": Tiny(ideogram, CALL | dict(guidance_scale=2.0, guidance_schedule=None, max_sequence_length=24)),
    "Krea2Pipeline": Tiny(krea2, GUIDED | dict(max_sequence_length=12, guidance_scale=1.0)),
    "NucleusMoEImagePipeline": Tiny(nucleus, GUIDED | dict(max_sequence_length=120, return_index=-2)),
    "OvisImagePipeline": Tiny(ovis, GUIDED | dict(max_sequence_length=12)),
}
