"""Qwen-Image's tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_image_parts import qwen2_processor, qwen2_vl, qwen3_processor, qwen3_vl, qwen_tokenizer, qwen_vae, smaller
from tiny_parts import HEIGHT, WIDTH, Tiny, mask, picture
from tiny_video_parts import picture as photo
from transformers import Qwen3VLForConditionalGeneration

smaller(*(f"qwenimage.pipeline_qwenimage_{kind}" for kind in ("edit", "edit_plus", "edit_inpaint", "layered")))

SIZES = dict(
    in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=16, axes_dims_rope=(4, 6, 6)
)


def parts(**config: Any) -> dict[str, Any]:
    return dict(
        transformer=redraw(diffusers.QwenImageTransformer2DModel(**SIZES | config)), vae=qwen_vae(), text_encoder=qwen2_vl(),
        tokenizer=qwen_tokenizer(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def qwen(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts())


def edit(name: str, folder: Path) -> Any:
    """The pictures' tokens come after the new one's, as of time 0."""
    return getattr(diffusers, name)(**parts(zero_cond_t="Plus" in name), processor=qwen2_processor())


def layered(name: str, folder: Path) -> Any:
    """Every layer has its own alpha, and positions of its own. Five latent channels: a picture of four would pass for latents."""
    made = parts(in_channels=20, out_channels=5, use_layer3d_rope=True, use_additional_t_cond=True)
    return diffusers.QwenImageLayeredPipeline(**made | dict(vae=qwen_vae(5, input_channels=4)), processor=qwen2_processor())


def net(extra: int = 0) -> Any:
    return redraw(diffusers.QwenImageControlNetModel(**SIZES, extra_condition_channels=extra))


def with_net(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(), controlnet=net())


def with_mask_net(name: str, folder: Path) -> Any:
    """The mask is one more channel of the picture's latents."""
    return getattr(diffusers, name)(**parts(), controlnet=net(extra=4))


def qwen21(name: str, folder: Path) -> Any:
    """One token for 16 x 16 pixels; pictures are read as words and as latents."""
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=8, out_channels=8, num_layers=1, attention_head_dim=16, num_attention_heads=4, context_in_dim=16, axes_dims_rope=(4, 6, 6)
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=8, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 8, latents_std=[1.5] * 8
    )
    return diffusers.QwenImage21Pipeline(
        transformer=redraw(transformer), vae=vae.eval(), text_encoder=qwen3_vl(Qwen3VLForConditionalGeneration), processor=qwen3_processor(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


CALL = dict(prompt="a red heart", negative_prompt="dog", height=HEIGHT, width=WIDTH, true_cfg_scale=2.0)
EDIT = dict(prompt="a red heart", negative_prompt="dog", true_cfg_scale=2.0)

TINY = {
    "QwenImagePipeline": Tiny(qwen, CALL),
    "QwenImageImg2ImgPipeline": Tiny(qwen, lambda: CALL | dict(image=picture(), strength=0.9)),
    "QwenImageInpaintPipeline": Tiny(qwen, lambda: CALL | dict(image=picture(), mask_image=mask(), strength=1.0)),
    "QwenImageControlNetPipeline": Tiny(with_net, lambda: CALL | dict(control_image=picture())),
    "QwenImageControlNetInpaintPipeline": Tiny(with_mask_net, lambda: CALL | dict(control_image=picture(), control_mask=mask())),
    "QwenImageEditPipeline": Tiny(edit, lambda: CALL | dict(image=photo(height=HEIGHT, width=WIDTH))),
    "QwenImageEditPlusPipeline": Tiny(edit, lambda: CALL | dict(image=[photo(height=HEIGHT, width=WIDTH), photo(1, WIDTH, HEIGHT)])),
    "QwenImageEditInpaintPipeline": Tiny(
        edit, lambda: CALL | dict(image=photo(height=HEIGHT, width=WIDTH), mask_image=photo(1, HEIGHT, WIDTH), strength=1.0)
    ),
    "QwenImage21Pipeline": Tiny(qwen21, lambda: EDIT | dict(image=photo(height=HEIGHT, width=WIDTH), height=96, width=160, output_resolution=64)),
    "QwenImageLayeredPipeline": Tiny(layered, lambda: EDIT | dict(image=photo(height=HEIGHT, width=WIDTH).convert("RGBA"), layers=2)),
}
