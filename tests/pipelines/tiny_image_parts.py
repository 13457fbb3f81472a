"""What the tiny image pipelines share: language models that see, their processors, VAEs, and sizes that diffusers writes down as large ones."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import diffusers
from tiny_video_parts import chat_tokenizer, qwen_vl_text
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% set content = message['content'] %}"
    "{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = chat_tokenizer(*MARKS)
    tokenizer.chat_template = CHAT
    return tokenizer


def _ids() -> dict[str, int]:
    """Where a model of Qwen's finds pictures among words."""
    names = dict(vision_start_token_id=MARKS[2], vision_end_token_id=MARKS[3], image_token_id=MARKS[4], video_token_id=MARKS[5])
    return {name: qwen_tokenizer().convert_tokens_to_ids(mark) for name, mark in names.items()}


class _WithoutVideo:
    """transformers' processors ask for a video processor, whose class asks for torchvision."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]


class Qwen2Processor(_WithoutVideo, Qwen2VLProcessor):
    pass


class Qwen3Processor(_WithoutVideo, Qwen3VLProcessor):
    pass


def qwen2_processor() -> Qwen2Processor:
    """Four tokens a picture."""
    return Qwen2Processor(Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56), qwen_tokenizer(), chat_template=CHAT)


def qwen3_processor() -> Qwen3Processor:
    """A token for 32 x 32 pixels."""
    pictures = Qwen2VLImageProcessorPil(min_pixels=32 * 32, max_pixels=128 * 128, patch_size=16)
    return Qwen3Processor(pictures, qwen_tokenizer(), chat_template=CHAT)


def qwen2_vl(width: int = 16) -> Qwen2_5_VLForConditionalGeneration:
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=width, fullatt_block_indexes=[0])
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=qwen_vl_text(width).to_dict(), vision_config=vision, **_ids())).eval()


def qwen3_vl(kind: Callable[..., Any], width: int = 16, layers: int = 3) -> Any:
    """Some pipelines want what certain layers give: as many as the real model has."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = _language(width, layers) | dict(rope_parameters=rope)
    vision = dict(
        depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=width, num_position_embeddings=16, deepstack_visual_indexes=[0]
    )
    return kind(Qwen3VLConfig(text_config=text, vision_config=vision, **_ids())).eval()


def qwen3(width: int = 16) -> Qwen3Model:
    return Qwen3Model(Qwen3Config(**_language(width, 3))).eval()


def _language(width: int, layers: int) -> dict[str, Any]:
    return dict(
        vocab_size=48, hidden_size=width, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        pad_token_id=0,
    )  # fmt: skip


def qwen_vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKLQwenImage:
    """Half the size."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=channels, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.1] * channels,
        latents_std=[1.5] * channels, **config,
    ).eval()  # fmt: skip


def flux2_vae(channels: int = 4) -> diffusers.AutoencoderKLFlux2:
    """Half the size."""
    return diffusers.AutoencoderKLFlux2(
        latent_channels=channels, block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    ).eval()  # fmt: skip


def smaller(*modules: str) -> None:
    """These pipelines make pictures of a megapixel whatever they are asked for: here of a 256th of it."""
    for name in modules:
        module = importlib.import_module(f"diffusers.pipelines.{name}")
        sizes = module.calculate_dimensions
        module.calculate_dimensions = functools.partial(lambda sizes, area, ratio: sizes(area // 256, ratio), sizes)  # type: ignore[attr-defined]
