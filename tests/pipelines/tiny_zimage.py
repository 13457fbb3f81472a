"""Z-Image's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny import redraw
from tiny_image_parts import qwen3, qwen_tokenizer
from tiny_parts import HEIGHT, WIDTH, Tiny, mask, picture, vae
from tiny_video_parts import picture as photo
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil


def parts(**config: Any) -> dict[str, Any]:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=16, axes_dims=[4, 6, 6],
        axes_lens=[128, 64, 64], **config,
    )  # fmt: skip
    return dict(
        transformer=redraw(transformer), vae=vae(shift_factor=0.1), text_encoder=qwen3(), tokenizer=qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def zimage(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts())


def omni(name: str, folder: Path) -> Any:
    """Its pictures come to the VAE in bfloat16, whatever that is."""
    made = parts(siglip_feat_dim=12)
    config = Siglip2VisionConfig(hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=8, num_patches=16)
    pictures = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    made["vae"].to(torch.bfloat16)
    return diffusers.ZImageOmniPipeline(**made, siglip=Siglip2VisionModel(config).eval(), siglip_processor=pictures)


def with_net(name: str, folder: Path) -> Any:
    """To paint anew the net sees the control, the mask and the picture."""
    net = diffusers.ZImageControlNetModel(
        control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=9 if "Inpaint" in name else 4, dim=64, n_refiner_layers=1,
        n_heads=4, n_kv_heads=4,
    )  # fmt: skip
    return getattr(diffusers, name)(**parts(), controlnet=redraw(net))


CALL = dict(prompt="a red heart", negative_prompt="dog", height=HEIGHT, width=WIDTH, guidance_scale=2.0, max_sequence_length=9)

TINY = {
    "ZImagePipeline": Tiny(zimage, CALL),
    "ZImageImg2ImgPipeline": Tiny(zimage, lambda: CALL | dict(image=picture(), strength=0.9)),
    "ZImageInpaintPipeline": Tiny(zimage, lambda: CALL | dict(image=picture(), mask_image=mask())),
    "ZImageOmniPipeline": Tiny(omni, lambda: CALL | dict(image=[photo(height=64, width=96), photo(1, 96, 64)], max_sequence_length=24)),
    "ZImageControlNetPipeline": Tiny(with_net, lambda: CALL | dict(control_image=picture())),
    "ZImageControlNetInpaintPipeline": Tiny(with_net, lambda: CALL | dict(image=picture(), control_image=picture(1), mask_image=mask())),
}
