"""A tiny pipeline of every class in the table: the real diffusers classes with random weights and tokenizers made here, nothing downloaded.

Pictures are 24 x 40 pixels, 6 x 10 tokens (CogVideoX: 3 frames of 3 x 5).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny import redraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

HEIGHT, WIDTH = 24, 40
WORDS = ["a", "red", "blue", "green", "heart", "dog", "face", "cat", "big", "small", "on", "the", "left", "of", "right", "puppy", "rocket"]


def t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=12)


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token a letter: CLIP's byte alphabet without merges."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=24, d_kv=8, num_heads=3, d_ff=32, num_layers=1, feed_forward_proj="gated-gelu")).eval()


def clip(tokenizer: CLIPTokenizer, kind: Callable[..., Any], width: int = 12) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        projection_dim=width, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    return kind(config).eval()


def vae(channels: int = 4, **config: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8, 16), norm_num_groups=4, sample_size=32, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    ).eval()  # fmt: skip


def dit(name: str, folder: Path) -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=10
    )
    return diffusers.DiTPipeline(redraw(transformer), vae(), diffusers.DDPMScheduler())  # draws noise at every step, from the default generator


def pixart(name: str, folder: Path) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32, sample_size=16,
        caption_channels=24,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return getattr(diffusers, name)(t5_tokenizer(), t5(), vae(), redraw(transformer), scheduler)


def sd3(name: str, folder: Path) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32,
        pooled_projection_dim=24, out_channels=16, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder / "clip")
    return getattr(diffusers, name)(
        transformer=redraw(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(16, shift_factor=0.1),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection), tokenizer_2=tokenizer, text_encoder_3=t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux(name: str, folder: Path) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=24,
        pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder / "clip")
    return getattr(diffusers, name)(
        transformer=redraw(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(shift_factor=0.1),
        text_encoder=clip(tokenizer, CLIPTextModel), tokenizer=tokenizer, text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def cogvideox(name: str, folder: Path) -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=24, num_layers=1,
        sample_width=10, sample_height=6, sample_frames=9, max_text_seq_length=8, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3, up_block_types=("CogVideoXUpBlock3D",) * 3, block_out_channels=(8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=4, sample_height=24, sample_width=40,
    )  # fmt: skip
    # draws noise at every step, from the call's generator
    return diffusers.CogVideoXPipeline(t5_tokenizer(), t5(), decoder.eval(), redraw(transformer), diffusers.CogVideoXDPMScheduler())


FAMILIES = {
    "DiT": (dit, dict(class_labels=[3], guidance_scale=3.0)),
    "PixArt": (
        pixart,
        dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, max_sequence_length=9, use_resolution_binning=False),
    ),
    "StableDiffusion3": (sd3, dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, max_sequence_length=9)),
    "Flux": (flux, dict(prompt="a red heart", height=HEIGHT, width=WIDTH, max_sequence_length=9)),
    "CogVideoX": (cogvideox, dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, num_frames=9, max_sequence_length=8)),
}


def family(name: str) -> str:
    return next(prefix for prefix in FAMILIES if name.startswith(prefix))


def build(name: str, folder: Path) -> Any:
    """The tiny pipeline of diffusers class `name`, its weights drawn alike each time."""
    torch.manual_seed(0)
    return FAMILIES[family(name)][0](name, folder)


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def default_call(name: str) -> dict[str, Any]:
    """Arguments that make a picture in 2 steps."""
    call = {"num_inference_steps": 2, **FAMILIES[family(name)][1]}
    if "Img2Img" in name or "Inpaint" in name:
        call |= {"image": picture(), "strength": 1.0 if "Inpaint" in name else 0.9}
    if "Inpaint" in name:
        call["mask_image"] = (picture(1)[:, :1] > 0.5).float()
    return call
