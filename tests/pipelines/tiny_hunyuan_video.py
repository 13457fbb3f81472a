"""Pipelines of the HunyuanVideo family: a language model's and CLIP's text, HunyuanVideo's VAEs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import Tiny, clip, clip_tokenizer, t5
from tiny_video_parts import (
    VIDEO,
    chat_tokenizer,
    clip_processor,
    clip_vision,
    hunyuan_vae,
    llama,
    picture,
    qwen_vl_text,
    siglip,
    siglip_processor,
)
from transformers import ByT5Tokenizer, CLIPTextModel, LlamaModel, LlavaConfig, LlavaForConditionalGeneration, Qwen2_5_VLTextModel

PARTS = "<image>", "<|end_header_id|>"  # a header before each of a chat's three parts
HEADED = "a big <image> face {0} on {0} the {{}} {0} left of".format(PARTS[1])


def transformer(kind: Any, **config: Any) -> Any:
    sizes = dict(in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1, num_refiner_layers=1, mlp_ratio=2.0)
    return redraw(kind(**sizes | dict(text_embed_dim=16, rope_axes_dim=(2, 2, 4)) | config))


def clip_text(folder: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(folder / "clip")
    return dict(tokenizer_2=tokenizer, text_encoder_2=clip(tokenizer, CLIPTextModel, tokens=77))


def hunyuan(name: str, folder: Path) -> Any:
    dit = transformer(
        diffusers.HunyuanVideoTransformer3DModel, num_single_layers=1, pooled_projection_dim=12, guidance_embeds="Skyreels" not in name,
        in_channels=8 if "Skyreels" in name else 4,
    )  # fmt: skip
    return getattr(diffusers, name)(
        text_encoder=LlamaModel(llama()).eval(), tokenizer=chat_tokenizer(), **clip_text(folder), transformer=dit, vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip


def hunyuan_i2v(name: str, folder: Path) -> Any:
    """The first frame's tokens are the picture's; the language model sees it too."""
    dit = transformer(diffusers.HunyuanVideoTransformer3DModel, num_single_layers=1, pooled_projection_dim=12, image_condition_type="token_replace")
    tokenizer = chat_tokenizer(*PARTS)
    config = LlavaConfig(
        vision_config=clip_vision().config, text_config=llama(), image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default", vision_feature_layer=-2, pad_token_id=0,
    )  # fmt: skip
    return diffusers.HunyuanVideoImageToVideoPipeline(
        text_encoder=LlavaForConditionalGeneration(config).eval(), tokenizer=tokenizer, **clip_text(folder), transformer=dit, vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), image_processor=clip_processor(),
    )  # fmt: skip


def framepack(name: str, folder: Path) -> Any:
    dit = transformer(
        diffusers.HunyuanVideoFramepackTransformer3DModel, num_single_layers=1, pooled_projection_dim=12, has_image_proj=True, image_proj_dim=6,
        has_clean_x_embedder=True,
    )  # fmt: skip
    return diffusers.HunyuanVideoFramepackPipeline(
        text_encoder=LlamaModel(llama()).eval(), tokenizer=chat_tokenizer(), **clip_text(folder), transformer=dit, vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), image_encoder=siglip(), feature_extractor=siglip_processor(),
    )  # fmt: skip


def hunyuan15(name: str, folder: Path) -> Any:
    """About two thousand words, nearly all of them masked, and no picture's tokens without one."""
    image = dict(image_encoder=siglip(), feature_extractor=siglip_processor()) if "Image" in name else {}
    dit = transformer(diffusers.HunyuanVideo15Transformer3DModel, in_channels=9, text_embed_2_dim=24, image_embed_dim=6, target_size=64, patch_size=1)
    vae = diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
    return getattr(diffusers, name)(
        text_encoder=Qwen2_5_VLTextModel(qwen_vl_text()).eval(), tokenizer=chat_tokenizer(), text_encoder_2=t5(words=384),
        tokenizer_2=ByT5Tokenizer(), **image, transformer=dit, vae=vae.eval(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )  # fmt: skip


CHAT = VIDEO | dict(prompt_template={"template": "a big {}", "crop_start": 2}, max_sequence_length=9)
GUIDED = dict(negative_prompt="a dog", true_cfg_scale=2.0)
SEEN = {"template": HEADED, "crop_start": 4, "image_emb_start": 2, "image_emb_end": 6, "image_emb_len": 4}
GLYPHS = VIDEO | dict(prompt='a red heart "dog"', negative_prompt="a cat")

TINY = {
    "HunyuanVideoPipeline": Tiny(hunyuan, CHAT | GUIDED),
    "HunyuanSkyreelsImageToVideoPipeline": Tiny(hunyuan, lambda: CHAT | GUIDED | dict(image=picture())),
    "HunyuanVideoImageToVideoPipeline": Tiny(
        hunyuan_i2v, lambda: CHAT | GUIDED | dict(prompt_template=SEEN, image=picture(), max_sequence_length=14, guidance_scale=3.0)
    ),
    "HunyuanVideoFramepackPipeline": Tiny(
        framepack, lambda: CHAT | dict(image=picture(), last_image=picture(1), num_frames=18, latent_window_size=3)
    ),
    "HunyuanVideo15Pipeline": Tiny(hunyuan15, GLYPHS),
    "HunyuanVideo15ImageToVideoPipeline": Tiny(
        hunyuan15, lambda: {name: value for name, value in GLYPHS.items() if name not in ("height", "width")} | dict(image=picture())
    ),
}
