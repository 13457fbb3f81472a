"""Model folders that hold the JSON files of real pipelines and no weights: what the command line reads before it starts a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "StableDiffusion3Pipeline": (
        "SD3Transformer2DModel",
        {"num_attention_heads": 6, "sample_size": 64, "patch_size": 2, "pos_embed_max_size": 96},
    ),
    "FluxPipeline": ("FluxTransformer2DModel", {"num_attention_heads": 24, "patch_size": 1, "in_channels": 64}),
    "FluxImg2ImgPipeline": ("FluxTransformer2DModel", {"num_attention_heads": 24, "patch_size": 1, "in_channels": 64}),
    "DiTPipeline": ("DiTTransformer2DModel", {"num_attention_heads": 16, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000}),
    "CogVideoXPipeline": (
        "CogVideoXTransformer3DModel",
        {"num_attention_heads": 30, "sample_height": 60, "sample_width": 90, "sample_frames": 49, "patch_size": 2, "patch_size_t": None},
    ),
    "FluxInpaintPipeline": ("FluxTransformer2DModel", {"num_attention_heads": 24, "patch_size": 1, "in_channels": 64}),
    "FluxFillPipeline": ("FluxTransformer2DModel", {"num_attention_heads": 24, "patch_size": 1, "in_channels": 384}),
    "Flux2Pipeline": ("Flux2Transformer2DModel", {"num_attention_heads": 48, "patch_size": 1, "in_channels": 64}),
    "WanPipeline": ("WanTransformer3DModel", {"num_attention_heads": 12, "patch_size": [1, 2, 2], "in_channels": 16}),
    "WanImageToVideoPipeline": ("WanTransformer3DModel", {"num_attention_heads": 40, "patch_size": [1, 2, 2], "in_channels": 36}),
    "WanVideoToVideoPipeline": ("WanTransformer3DModel", {"num_attention_heads": 12, "patch_size": [1, 2, 2], "in_channels": 16}),
    "WanAnimatePipeline": ("WanAnimateTransformer3DModel", {"num_attention_heads": 40, "patch_size": [1, 2, 2], "in_channels": 36}),
    "LTX2ConditionPipeline": ("LTX2VideoTransformer3DModel", {"num_attention_heads": 32, "patch_size": 1, "in_channels": 128}),
    "CosmosTextToWorldPipeline": ("CosmosTransformer3DModel", {"num_attention_heads": 32, "patch_size": [1, 2, 2], "in_channels": 16}),
    "StableAudioPipeline": ("StableAudioDiTModel", {"num_attention_heads": 24, "sample_size": 1024, "in_channels": 64}),
    "WanVACEPipeline": ("WanVACETransformer3DModel", {"num_attention_heads": 12, "patch_size": [1, 2, 2], "in_channels": 16}),
    "Kandinsky6SRPipeline": ("Kandinsky6SRTransformer3DModel", {"patch_size": [1, 2, 2]}),
    "QwenImagePipeline": ("QwenImageTransformer2DModel", {"num_attention_heads": 24, "patch_size": 2, "in_channels": 64}),
}


def write_folder(folder: Path, pipeline: str, **changes: Any) -> Path:
    """A folder for `pipeline`, named after it.

    Args:
        changes: entries of model_index.json to add or replace.
    """
    folder = folder / pipeline
    transformer, config = CONFIGS[pipeline]
    index = {"_class_name": pipeline, "transformer": ["diffusers", transformer], "vae": ["diffusers", "AutoencoderKL"], **changes}
    vae = {"block_out_channels": [1, 1, 1, 1], "latent_channels": 16, "temporal_compression_ratio": 4}
    files = {
        "model_index.json": index,
        "transformer/config.json": config,
        "vae/config.json": vae,
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").touch()
    return folder
