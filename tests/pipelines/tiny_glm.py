"""GLM-Image's tiny pipeline: an autoregressive model draws the picture's tokens, which the transformer then paints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import Tiny, t5, t5_tokenizer, vae
from transformers import ByT5Tokenizer, GlmImageConfig, GlmImageForConditionalGeneration, GlmImageProcessor
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

SHAPE, START, END, IMAGE = ("<sop>", "<eop>"), "<start>", "<end>", "<|image|>"
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start><|image|><end>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
CODES = 20


def processor() -> GlmImageProcessor:
    tokenizer = t5_tokenizer()
    tokenizer.add_tokens([*SHAPE, START, END, IMAGE], special_tokens=True)
    tokenizer.bos_token = START
    tokenizer.image_token, tokenizer.grid_bos_token, tokenizer.grid_eos_token = IMAGE, *SHAPE
    pictures = GlmImageImageProcessorPil(min_pixels=32 * 32, max_pixels=256 * 256, patch_size=16, merge_size=1, temporal_patch_size=1)
    return GlmImageProcessor(pictures, tokenizer, chat_template=CHAT)


def language(words: Any) -> GlmImageForConditionalGeneration:
    sizes = dict(hidden_size=16, intermediate_size=16)
    text = sizes | dict(
        vocab_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vision_vocab_size=CODES, eos_token_id=None, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    )  # fmt: skip
    config = GlmImageConfig(
        text_config=text, vision_config=sizes | dict(depth=1, num_heads=2, image_size=256, patch_size=16),
        vq_config=dict(embed_dim=8, num_embeddings=CODES, latent_channels=16), image_token_id=words.convert_tokens_to_ids(IMAGE),
        image_start_token_id=words.convert_tokens_to_ids(START), image_end_token_id=words.convert_tokens_to_ids(END),
    )  # fmt: skip
    return GlmImageForConditionalGeneration(config).eval()


def glm(name: str, folder: Path) -> Any:
    transformer = diffusers.GlmImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embed_dim=24, time_embed_dim=32,
        condition_dim=8, prior_vq_quantizer_codebook_size=CODES,
    )  # fmt: skip
    words = processor()
    return diffusers.GlmImagePipeline(
        tokenizer=ByT5Tokenizer(), processor=words, text_encoder=t5(words=384), vision_language_encoder=language(words.tokenizer),
        vae=vae(blocks=4, latents_mean=[0.1] * 4, latents_std=[1.5] * 4), transformer=redraw(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


TINY = {
    # Not a picture to edit: diffusers 0.42 fails on what transformers 5.24 makes of it.
    "GlmImagePipeline": Tiny(glm, dict(prompt='a red heart "dog"', height=96, width=160, guidance_scale=2.0)),
}
