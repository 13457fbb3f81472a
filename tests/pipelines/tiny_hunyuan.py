"""Hunyuan's tiny image pipelines: HunyuanDiT and HunyuanImage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers.guiders import AdaptiveProjectedMixGuidance
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, picture, t5, t5_tokenizer, vae
from tiny_video_parts import chat_tokenizer, qwen_vl_text
from transformers import BertConfig, BertModel, ByT5Tokenizer, Qwen2_5_VLTextModel

DIT = dict(
    num_attention_heads=4, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=16, hidden_size=64, mlp_ratio=2.0, cross_attention_dim=24,
    cross_attention_dim_t5=16, pooled_projection_dim=16,
)  # fmt: skip
IMAGE = dict(num_attention_heads=4, attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16)


def parts() -> dict[str, Any]:
    """Always 77 and 256 words; eight pixels a latent."""
    bert = BertConfig(vocab_size=32, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=80)
    return dict(
        vae=vae(blocks=4), text_encoder=BertModel(bert).eval(), tokenizer=t5_tokenizer(), text_encoder_2=t5(width=16), tokenizer_2=t5_tokenizer(),
        scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction"), transformer=redraw(diffusers.HunyuanDiT2DModel(**DIT, num_layers=4)),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def dit(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts())


def with_net(name: str, folder: Path) -> Any:
    net = redraw(diffusers.HunyuanDiT2DControlNetModel(**DIT, transformer_num_layers=4))
    return getattr(diffusers, name)(**parts(), controlnet=net)


def image(name: str, folder: Path) -> Any:
    """What stands in quotes is read letter by letter too."""
    autoencoder = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1, spatial_compression_ratio=2,
        sample_size=32, scaling_factor=0.5,
    )  # fmt: skip
    transformer = diffusers.HunyuanImageTransformer2DModel(
        **IMAGE, in_channels=4, out_channels=4, patch_size=(2, 2), text_embed_2_dim=24, rope_axes_dim=(8, 8)
    )
    pipe = diffusers.HunyuanImagePipeline(
        **written(), text_encoder_2=t5(words=384), tokenizer_2=ByT5Tokenizer(), transformer=redraw(transformer), vae=autoencoder.eval(),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.0), ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=2.0),
    )  # fmt: skip
    pipe.tokenizer_2_max_length = 7
    return short_template(pipe)


def refiner(name: str, folder: Path) -> Any:
    """Two frames of the VAE's four channels are one of eight, and as many of the picture's."""
    autoencoder = diffusers.AutoencoderKLHunyuanImageRefiner(
        latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, spatial_compression_ratio=2, temporal_compression_ratio=1
    )
    transformer = diffusers.HunyuanImageTransformer2DModel(
        **IMAGE, in_channels=16, out_channels=8, patch_size=(1, 2, 2), guidance_embeds=True, rope_axes_dim=(4, 6, 6)
    )
    guider = AdaptiveProjectedMixGuidance(guidance_scale=3.0)
    pipe = diffusers.HunyuanImageRefinerPipeline(**written(), transformer=redraw(transformer), vae=autoencoder.eval(), guider=guider)
    return short_template(pipe)


def written() -> dict[str, Any]:
    encoder = Qwen2_5_VLTextModel(qwen_vl_text()).eval()
    return dict(text_encoder=encoder, tokenizer=chat_tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def short_template(pipe: Any) -> Any:
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length = "big {}", 1, 9
    return pipe


CALL = dict(prompt="a red heart", height=4 * HEIGHT, width=4 * WIDTH, use_resolution_binning=False)
TINY = {
    "HunyuanDiTPipeline": Tiny(dit, CALL),
    "HunyuanDiTPAGPipeline": Tiny(dit, CALL),
    "HunyuanDiTControlNetPipeline": Tiny(
        with_net, lambda: CALL | dict(control_image=picture().repeat(1, 1, 4, 4), controlnet_conditioning_scale=0.7)
    ),
    "HunyuanImagePipeline": Tiny(image, dict(prompt='a red heart "dog"', negative_prompt="cat", height=HEIGHT, width=WIDTH)),
    "HunyuanImageRefinerPipeline": Tiny(
        refiner, lambda: dict(prompt="a red heart", negative_prompt="cat", image=picture(), height=HEIGHT, width=WIDTH)
    ),
}
