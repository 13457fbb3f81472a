"""The parts of the pipeline (VAE, transformer, T5, tokenizer, scheduler): made new, read from a folder, written in fp16."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel, SchedulerMixin
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from emoji.captions import CaptionBank

LATENT_CHANNELS = 8
VAE_CHANNELS = (32, 48, 64, 96)
VAE_SCALE = 2 ** (len(VAE_CHANNELS) - 1)
HEADS, HEAD_DIM, LAYERS = 8, 32, 6
TEXT_DIM, TEXT_LAYERS, TEXT_HEADS = 128, 3, 4
VOCABULARY = 4096


def new_vae(pixels: int) -> AutoencoderKL:
    """A VAE of 1.8 M parameters; an eighth of the width, 8 channels. Whitened latents: scaling_factor 1 and shift_factor 0 hold."""
    levels = len(VAE_CHANNELS)
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=VAE_CHANNELS,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=pixels,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def new_transformer(pixels: int) -> PixArtTransformer2DModel:
    """A transformer of 7 M parameters, (pixels / 16)^2 tokens; its output and modulation start at zero."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        cross_attention_dim=HEADS * HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        sample_size=pixels // VAE_SCALE,
        patch_size=2,
        caption_channels=TEXT_DIM,
    )
    start_at_zero(transformer.proj_out, transformer.adaln_single.linear)
    return transformer


def start_at_zero(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    """A T5 encoder of 1.1 M parameters, trained together with the transformer."""
    return T5EncoderModel(T5Config(**text_config(vocabulary)))


def text_config(vocabulary: int) -> dict[str, Any]:
    """T5's and UMT5's."""
    return dict(
        vocab_size=vocabulary,
        d_model=TEXT_DIM,
        d_kv=TEXT_DIM // TEXT_HEADS,
        num_heads=TEXT_HEADS,
        d_ff=320,
        num_layers=TEXT_LAYERS,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


def new_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A unigram vocabulary learnt from the captions; lower case, T5's special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789,.-"),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=120)


def tokens_of(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> torch.Tensor:
    """Padded to one length: (N, length) int16."""
    return torch.tensor(tokenizer(texts, padding="max_length", max_length=length, truncation=True)["input_ids"], dtype=torch.int16)


def caption_tensors(tokenizer: PreTrainedTokenizerFast, bank: CaptionBank, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Tokens (N, captions, length) of a bank's captions, and the scene that each one fits."""
    texts = [text for some in bank.texts for text in some]
    return {
        "tokens": tokens_of(tokenizer, texts, length).view(len(bank.texts), -1, length).to(device),
        "chosen": torch.tensor(bank.chosen, device=device),
    }


def read_vae(folder: Path) -> AutoencoderKL:
    """The VAE of a pipeline folder, in fp32, frozen."""
    return AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32).eval().requires_grad_(False)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")


def read_denoiser(folder: Path) -> tuple[PixArtTransformer2DModel, T5EncoderModel]:
    """Transformer and text encoder of a pipeline folder, in fp32."""
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    return transformer, T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)


def save_half(module: nn.Module, folder: Path) -> None:
    """Write an fp16 copy; the module itself stays as it is."""
    copy.deepcopy(module).to("cpu").half().save_pretrained(folder)


def save_pipeline(folder: Path, transformer: nn.Module, text_encoder: nn.Module) -> None:
    """Complete a folder that has its VAE and tokenizer to a PixArtAlphaPipeline."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    save_parts(folder, PixArtAlphaPipeline, scheduler, {"transformer": transformer, "text_encoder": text_encoder, "vae": read_vae(folder)})


def save_parts(folder: Path, pipeline: Callable[..., DiffusionPipeline], scheduler: SchedulerMixin, parts: Mapping[str, nn.Module]) -> None:
    """Write the transformer, the text encoder, the scheduler and model_index.json beside the VAE and the tokenizer."""
    for part in ("transformer", "text_encoder"):
        save_half(parts[part], folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    pipeline(scheduler=scheduler, tokenizer=read_tokenizer(folder), **parts).save_config(folder)
    for file in (folder / "model_index.json", folder / "tokenizer" / "tokenizer_config.json", *folder.glob("*/config.json")):
        # transformers 5 writes its new name of the class (versions 4 and 5 both know the old one); others, where they read the part from, and how
        text = file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        content = {key: value for key, value in json.loads(text).items() if key not in ("_name_or_path", "is_local", "local_files_only")}
        file.write_text(json.dumps(content, indent=2) + "\n")
