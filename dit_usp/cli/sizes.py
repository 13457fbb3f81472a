"""Pixels, frames, latents and tokens of a model, from its configs alone. None wherever they do not say: then the pipeline has the word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dit_usp.signature import Call

Config = Mapping[str, Any]

# A number of latents' pixels or frames by itself, and lists whose length says how often their number is halved (with how many entries more).
_SPATIAL = ("scale_factor_spatial", "spatial_compression_ratio")
_TEMPORAL = ("scale_factor_temporal", "temporal_compression_ratio", "temporal_compress_times")
_LEVELS = {"temperal_downsample": 0, "encoder_block_out_channels": 1, "block_out_channels": 1, "ch_mult": 1}

_PATCHES = ("patch_size", "all_patch_size", "latent_patch_size")

# Pipelines that put 2 x 2 latents in one token themselves have four times as many channels in the transformer's config as in the VAE's, or a multiple
# of that where pictures to follow are put beside them; Qwen-Image's config has it as its patch.
_PACKED = 4

SAMPLES_ARE_TOKENS = ("BriaPipeline",)  # its constant counts what it packs by 2 x 2

# Pipelines with frame counts of their own: whole windows, the frames of another clip, or a rule that is not of the form k * t + 1.
OWN_FRAMES = (
    "AllegroPipeline",
    "ChronoEditPipeline",
    "Cosmos2_5_TransferPipeline",
    "HeliosPipeline",
    "HeliosPyramidPipeline",
    "HunyuanVideoFramepackPipeline",
    "LTX2DFRTemporalRefinePipeline",
    "SanaWMPipeline",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    "WanAnimatePipeline",
)


def _first(config: Config, names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def pixels_a_latent(vae: Config) -> int | None:
    """Along height and width; 1 without a VAE."""
    if not vae:
        return 1
    if (stated := _first(vae, _SPATIAL)) is not None:
        return stated
    if isinstance(scaled := vae.get("spatio_temporal_scaling"), list):  # LTX's
        return int(vae.get("patch_size", 1)) * 2 ** sum(scaled)
    return next((2 ** (len(vae[name]) - less) for name, less in _LEVELS.items() if isinstance(vae.get(name), list)), None)


def frames_a_latent(vae: Config) -> int | None:
    """t of the k * t + 1 frames that a causal VAE makes of k + 1 latents; 1 for pictures' VAEs."""
    if (stated := _first(vae, _TEMPORAL)) is not None:
        return stated
    if isinstance(scaled := vae.get("spatio_temporal_scaling"), list):
        return int(vae.get("patch_size_t", 1)) * 2 ** sum(scaled)
    if isinstance(expansions := vae.get("temporal_expansions"), list):  # Mochi's
        return math.prod(expansions)
    if isinstance(halved := vae.get("temperal_downsample"), list):
        return 2 ** sum(halved)
    return {"AutoencoderKL": 1, "AutoencoderKLMagvit": 4}.get(vae.get("_class_name", ""))


def latents_a_token(transformer: Config, vae: Config) -> int | None:
    """Along height and width."""
    latents, channels = _first(vae, ("latent_channels", "z_dim")), transformer.get("in_channels")
    patch = next((transformer[name] for name in _PATCHES if name in transformer), None)
    if isinstance(patch, list) and patch:  # time, height, width
        patch = patch[-1]
    if not isinstance(patch, int):
        return None
    packed = latents and isinstance(channels, int) and patch == 1 and channels % (_PACKED * latents) == 0
    return 2 if packed else patch


def latent_frames_a_token(transformer: Config) -> int:
    """Along time."""
    patch = transformer.get("patch_size")
    first = patch[0] if isinstance(patch, list) and len(patch) == 3 else transformer.get("patch_size_t")
    return first or 1


def made_frames(frames: float, call: Call, vae: Config) -> int:
    """The number of frames a pipeline makes when asked for `frames`."""
    frames, step = int(frames), frames_a_latent(vae)
    if step is None or step == 1 or call.name in OWN_FRAMES or frames % step == 1:
        return frames
    return frames // step * step + 1 if call.rounds_up else (frames - 1) // step * step + 1


def at_most(frames: int, call: Call, vae: Config) -> int:
    """The largest number up to `frames` that a pipeline makes."""
    step = frames_a_latent(vae)
    return frames if step is None or call.name in OWN_FRAMES else (frames - 1) // step * step + 1


def nearest_frames(frames: float, call: Call, vae: Config) -> int:
    """The number a pipeline makes that is nearest to `frames`."""
    step = frames_a_latent(vae)
    if step is None or call.name in OWN_FRAMES:
        return max(1, round(frames))
    return max(0, round((frames - 1) / step)) * step + 1
