"""The diffusers pipelines that have a USP class, by the transformer they run. Data only: no torch, no diffusers."""

from __future__ import annotations

PIPELINES: dict[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": ("DiTPipeline",),
    "PixArtTransformer2DModel": ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    "SD3Transformer2DModel": ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "FluxTransformer2DModel": ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    "CogVideoXTransformer3DModel": ("CogVideoXPipeline",),
}
NAMES = tuple(name for names in PIPELINES.values() for name in names)

ONE_A_PROMPT = ("CogVideoXPipeline",)  # diffusers 0.42 sets their num_videos_per_prompt to 1, whatever it is
