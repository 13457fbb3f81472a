"""What the tiny video pipelines share: pictures and clips to give them, text encoders, VAEs that shrink time and space.

Videos are 9 frames of 48 x 80 pixels: 3 latent frames of 6 x 10, patches of 2 x 2 make 45 tokens.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from PIL import Image
from tiny_parts import t5_tokenizer
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

HEIGHT, WIDTH, FRAMES = 48, 80, 9
VIDEO = dict(prompt="a red heart", height=HEIGHT, width=WIDTH, num_frames=FRAMES)
LTX_VIDEO = dict(prompt="a red heart", height=96, width=160, num_frames=17)  # 3 latent frames of 3 x 5


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(frames: int = FRAMES, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> list[Image.Image]:
    return [picture(100 * seed + frame, height, width) for frame in range(frames)]


def without_frames(call: dict[str, Any]) -> dict[str, Any]:
    """For pipelines that make as many frames as they are given."""
    return {name: value for name, value in call.items() if name != "num_frames"}


def chat_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Words, the marks of a language model, and messages written one after the other."""
    tokenizer = t5_tokenizer()
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}{% set content = message['content'] %}{{ content if content is string else content[0]['text'] }} {% endfor %}"
    )
    return tokenizer


def llama(width: int = 16) -> LlamaConfig:
    """Three layers: pipelines take what comes before the last two."""
    return LlamaConfig(
        vocab_size=32, hidden_size=width, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0
    )


def gemma2(width: int = 16, causal: bool = False) -> Gemma2Model | Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=32, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
    )
    return (Gemma2ForCausalLM if causal else Gemma2Model)(config).eval()


def qwen_vl_text(width: int = 16) -> Qwen2_5_VLTextConfig:
    return Qwen2_5_VLTextConfig(
        vocab_size=48, hidden_size=width, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}, pad_token_id=0,
    )  # fmt: skip


def qwen_vl(width: int = 16) -> Qwen2_5_VLForConditionalGeneration:
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=width, fullatt_block_indexes=[0])
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=qwen_vl_text(width).to_dict(), vision_config=vision)).eval()


def umt5(width: int = 16) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=32, d_model=width, d_kv=8, num_heads=2, d_ff=16, num_layers=1)).eval()


def clip_vision(width: int = 10, **config: Any) -> CLIPVisionModel:
    """Five tokens a picture."""
    sizes = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
    return CLIPVisionModel(CLIPVisionConfig(**sizes, **config)).eval()


def clip_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def siglip(width: int = 6) -> SiglipVisionModel:
    """Four tokens a picture."""
    sizes = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    return SiglipVisionModel(SiglipVisionConfig(**sizes)).eval()


def siglip_processor() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": 32, "width": 32})


def hunyuan_vae(channels: int = 4) -> diffusers.AutoencoderKLHunyuanVideo:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    ).eval()


def wan_vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * channels, latents_std=[1.5] * channels, **config
    ).eval()


def ltx_vae(channels: int = 6) -> diffusers.AutoencoderKLLTXVideo:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=channels, block_out_channels=(4, 4, 4, 4), decoder_block_out_channels=(4, 4, 4, 4), layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    ).eval()  # fmt: skip
