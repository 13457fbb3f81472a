"""FLUX's tiny pipelines, with ControlNets, and VisualCloze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from PIL import Image
from tiny import redraw
from tiny_parts import HEIGHT, WIDTH, Tiny, clip, clip_tokenizer, mask, picture, t5, t5_tokenizer, vae
from transformers import CLIPTextModel

SIZES = dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=24, pooled_projection_dim=12)
MORE = SIZES | dict(guidance_embeds=True, axes_dims_rope=(4, 6, 6))


def parts(channels: int, folder: Path) -> dict[str, Any]:
    """Four latent channels in tokens of 2 x 2; `channels` go in, with those of a picture and a mask."""
    tokenizer = clip_tokenizer(folder / "clip")
    return dict(
        transformer=redraw(diffusers.FluxTransformer2DModel(in_channels=channels, out_channels=16, **MORE)), vae=vae(shift_factor=0.1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), text_encoder=clip(tokenizer, CLIPTextModel), tokenizer=tokenizer,
        text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def flux(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(16, folder))


def controlled(name: str, folder: Path) -> Any:
    """A picture to follow comes as more channels."""
    return getattr(diffusers, name)(**parts(32, folder))


def filled(name: str, folder: Path) -> Any:
    """The picture and its mask, 2 x 2 pixels a latent, come as more channels."""
    resolution = dict(resolution=32) if "VisualCloze" in name else {}
    return getattr(diffusers, name)(**parts(48, folder), **resolution)


def net(modes: int | None = None) -> Any:
    return redraw(diffusers.FluxControlNetModel(in_channels=16, num_mode=modes, **MORE))


def with_net(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(16, folder), controlnet=net())


def with_union_net(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(16, folder), controlnet=net(modes=3))


def with_two_nets(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(**parts(16, folder), controlnet=[net(), net()])


def grid() -> list[list[Image.Image | None]]:
    """An example, and a task without its answer."""
    red, green, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "green", "blue"))
    return [[red, green], [blue, None]]


CALL = dict(prompt="a red heart", height=HEIGHT, width=WIDTH, max_sequence_length=9)
EDIT = CALL | dict(max_area=HEIGHT * WIDTH, _auto_resize=False)
CLOZE = dict(task_prompt="a red heart", content_prompt="dog face", max_sequence_length=9)

TINY = {
    "FluxPipeline": Tiny(flux, CALL),
    "FluxImg2ImgPipeline": Tiny(flux, lambda: CALL | dict(image=picture(), strength=0.9)),
    "FluxInpaintPipeline": Tiny(flux, lambda: CALL | dict(image=picture(), mask_image=mask(), strength=1.0)),
    "FluxKontextPipeline": Tiny(flux, lambda: EDIT | dict(image=picture(), negative_prompt="cat", true_cfg_scale=2.0)),
    "FluxKontextInpaintPipeline": Tiny(flux, lambda: EDIT | dict(image=picture(), image_reference=picture(2), mask_image=mask(), strength=0.9)),
    "FluxFillPipeline": Tiny(filled, lambda: CALL | dict(image=picture(), mask_image=mask())),
    "FluxControlPipeline": Tiny(controlled, lambda: CALL | dict(control_image=picture())),
    "FluxControlImg2ImgPipeline": Tiny(controlled, lambda: CALL | dict(image=picture(), control_image=picture(1), strength=0.9)),
    "FluxControlInpaintPipeline": Tiny(controlled, lambda: CALL | dict(image=picture(), control_image=picture(1), mask_image=mask(), strength=0.9)),
    "FluxControlNetPipeline": Tiny(
        with_two_nets, lambda: CALL | dict(control_image=[picture(), picture(1)], controlnet_conditioning_scale=[0.7, 0.5])
    ),
    "FluxControlNetImg2ImgPipeline": Tiny(with_net, lambda: CALL | dict(image=picture(), control_image=picture(1), strength=0.9)),
    "FluxControlNetInpaintPipeline": Tiny(
        with_union_net, lambda: CALL | dict(image=picture(), control_image=picture(1), mask_image=mask(), control_mode=1, strength=0.9)
    ),
    "VisualClozePipeline": Tiny(
        filled, lambda: CLOZE | dict(image=grid(), upsampling_height=HEIGHT, upsampling_width=WIDTH, upsampling_strength=0.9)
    ),
    "VisualClozeGenerationPipeline": Tiny(filled, lambda: CLOZE | dict(image=grid(), output_type="pt")),
}
